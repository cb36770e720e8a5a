"""A real agent at its socket: whatever peers send, and however they or the agent end, what is acknowledged arrives, once."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forwarder.spool.spools import MOST_APPS
from tests.conftest import AgentFactory, AppFactory
from tests.harness.agent import Agent, to_toml
from tests.harness.apps import finish
from tests.harness.gate import Gate
from tests.harness.kafka import Kafka
from tests.harness.native import Native, connect
from tests.harness.oracle import judge
from tests.harness.wait import eventually

pytestmark = pytest.mark.slow

MIB = 1 << 20

Start = Callable[..., Agent]


@pytest.fixture
def start(kafka: Kafka, topic: str, agent: AgentFactory) -> Start:
    """Starts an agent that ships to the test's topic; keywords are settings of its socket, or whole tables."""

    def start(*, socket: Mapping[str, Any] | None = None, **tables: Any) -> Agent:
        kafka_table = {"bootstrap_servers": kafka.bootstrap, "topic": topic, **tables.pop("kafka", {})}
        running = agent({"kafka": kafka_table, **tables})
        if socket is not None:
            running.config["socket"][0].update(socket)
            running.file.write_text(to_toml(running.config), encoding="utf-8")
        running.start()
        return running

    return start


def lines(writer: str, numbers: range, size: int = 0) -> list[bytes]:
    """Numbered records, each with `size` bytes of filling."""
    return [b'{"writer":"%s","seq":%d,"text":"%s"}' % (writer.encode(), number, b"x" * size) for number in numbers]


def send_plain(path: Path, data: bytes) -> None:
    """What `nc -U` does with its input."""
    with connect(path) as peer:
        peer.send_bytes(data)


def closed_by_agent(peer: Native) -> bool:
    """Whether the agent hangs up, within the peer's timeout and without another byte."""
    try:
        return peer.socket.recv(1) == b""
    except ConnectionResetError:
        return True


def rejected(agent: Agent) -> float:
    return agent.metric("forwarder_connections_rejected_total")


def log_lines(agent: Agent, text: str) -> list[str]:
    return [line for line in agent.log().splitlines() if text in line]


# Greeting and acknowledgements


def test_a_session_goes_on_from_where_the_spool_is_after_the_agent_was_killed(
    start: Start, gate: Gate, kafka: Kafka, topic: str
) -> None:
    running = start(kafka=gate.settings)
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one") == 0
        peer.send(lines("w", range(500)))
        peer.await_ack(500)
        peer.send(lines("w", range(500, 600)))
    running.kill()
    gate.open()
    running.start()
    with connect(running.socket) as peer:
        known = peer.greet(app="shop", session="one", first=500)
        assert 500 <= known <= 600
        peer.send(lines("w", range(500, 1000)))
        peer.await_ack(1000)
    judge(kafka.values(topic, expected=1000), {"w": 1000}).assert_exact()


def test_records_that_the_spool_has_already_are_not_written_twice(start: Start, kafka: Kafka, topic: str) -> None:
    running = start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(100)))
        peer.await_ack(100)
    for first, end in ((0, 100), (50, 150), (0, 200), (199, 201)):
        with connect(running.socket) as peer:
            peer.greet(app="shop", session="one", first=first)
            peer.send(lines("w", range(first, end)))
            peer.await_ack(end)
    assert running.terminate() == 0
    judge(kafka.values(topic), {"w": 201}).assert_exact()


def test_acknowledgements_of_a_session_only_grow(start: Start) -> None:
    running = start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(100)))
        peer.await_ack(100)
    with connect(running.socket) as peer:
        seen = [peer.greet(app="shop", session="one", first=0)]
        for number in range(150):
            peer.send(lines("w", range(number, number + 1)))
        while seen[-1] < 150:
            seen.append(peer.read_ack())
    assert seen[0] == 100
    assert seen == sorted(seen)


def test_a_session_that_begins_at_a_later_number_is_told_that_the_spool_has_nothing(
    start: Start, kafka: Kafka, topic: str
) -> None:
    running = start()
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one", first=700) == 0
        peer.send(lines("w", range(700, 710)))
        peer.await_ack(710)
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one", first=710) == 710
    judge(kafka.values(topic, expected=10), {"w": range(700, 710)}).assert_exact()


def test_sessions_that_send_in_turn_do_not_disturb_each_other(start: Start, kafka: Kafka, topic: str) -> None:
    running = start()
    with connect(running.socket) as one, connect(running.socket) as two:
        one.greet(app="shop", session="one")
        two.greet(app="shop", session="two")
        for number in range(100):
            one.send(lines("one", range(number, number + 1)))
            two.send(lines("two", range(2 * number, 2 * number + 2)))
        assert one.await_ack(100) == 100
        assert two.await_ack(200) == 200
    judge(kafka.values(topic, expected=300), {"one": 100, "two": 200}).assert_exact()


def test_the_same_session_name_in_two_apps_is_two_sessions(start: Start, kafka: Kafka, topic: str) -> None:
    running = start()
    for app in ("shop", "bank"):
        with connect(running.socket) as peer:
            assert peer.greet(app=app, session="one") == 0
            peer.send(lines(app, range(10)))
            peer.await_ack(10)
    judge(kafka.values(topic, expected=20), {"shop": 10, "bank": 10}).assert_exact()


def test_a_half_sent_record_of_a_session_is_not_taken_and_comes_whole_the_next_time(
    start: Start, kafka: Kafka, topic: str
) -> None:
    running = start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send_bytes(b"\n".join(lines("w", range(2)))[:-5])
        peer.await_ack(1)
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one", first=1) == 1
        peer.send(lines("w", range(1, 2)))
        peer.await_ack(2)
    judge(kafka.values(topic, expected=2), {"w": 2}).assert_exact()


def test_with_fsync_always_every_record_is_acknowledged_after_it_is_synced(start: Start, kafka: Kafka, topic: str) -> None:
    running = start(spool={"fsync": "always"})
    with connect(running.socket) as one, connect(running.socket) as two:
        for name, peer in (("one", one), ("two", two)):
            peer.greet(app=name, session=name)
        for number in range(50):
            one.send(lines("one", range(number, number + 1)))
            two.send(lines("two", range(number, number + 1)))
            assert one.await_ack(number + 1) == number + 1
        two.await_ack(50)
    judge(kafka.values(topic, expected=100), {"one": 50, "two": 50}).assert_exact()


# Plain lines


def test_plain_lines_arrive_whatever_their_ends_and_the_last_one_without_an_end_too(
    start: Start, kafka: Kafka, topic: str
) -> None:
    running = start()
    send_plain(running.socket, b"unix\nwindows\r\n\n\r\n\nafter empty lines\nno end")
    values = kafka.values(topic, expected=4)
    assert sorted(values) == sorted([b"unix", b"windows", b"after empty lines", b"no end"])


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_a_first_line_of_json_that_is_no_greeting_is_a_record(start: Start, kafka: Kafka, topic: str, ending: bytes) -> None:
    running = start()
    send_plain(running.socket, b'{"message":"hello"}' + ending)
    assert kafka.values(topic, expected=1) == [b'{"message":"hello"}']
    assert rejected(running) == 0


def test_lines_of_connections_without_a_greeting_belong_to_the_app_of_the_socket(start: Start) -> None:
    running = start(socket={"app": "legacy"})
    send_plain(running.socket, b"one\ntwo\n")
    eventually(lambda: running.metric("forwarder_records_received_total", app="legacy") == 2, what="two records of app legacy")


# Greetings that are refused, routed or counted


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b'{"forwarder":2,"app":"shop"}', "the greeting asks for version 2; this agent speaks version 1"),
        (b'{"forwarder":1,"app":7}', "app in the greeting is 7; it must be a string"),
        (b'{"forwarder":1,', "the greeting is not valid JSON"),
    ],
    ids=["version", "type", "garbage"],
)
def test_a_greeting_that_cannot_be_used_closes_that_connection_with_one_line_and_a_count(
    start: Start, greeting: bytes, reason: str
) -> None:
    running = start()
    with connect(running.socket) as neighbour, connect(running.socket) as peer:
        neighbour.greet(app="shop", session="one")
        peer.send_bytes(greeting + b"\nrecord\n")
        assert closed_by_agent(peer)
        neighbour.send(lines("w", range(1)))
        assert neighbour.await_ack(1) == 1
    assert len(log_lines(running, "connection closed")) == 1
    (line,) = log_lines(running, reason)
    assert f"pid {os.getpid()} (" in line, "the peer is named"
    assert running.metric("forwarder_connections_rejected_total", reason="greeting") == 1


def test_a_greeting_gets_a_topic_that_is_allowed_and_otherwise_the_sockets_own_with_one_warning(
    start: Start, kafka: Kafka, topic: str
) -> None:
    kafka.create_topic(f"{topic}-audit")
    running = start(socket={"allow_topics": [f"{topic}-au*"]})
    for number, wanted in enumerate((f"{topic}-audit", "elsewhere", "elsewhere")):
        with connect(running.socket) as peer:
            peer.greet(app="shop", session=f"s{number}", topic=wanted)
            peer.send(lines("w", range(number, number + 1)))
            peer.await_ack(1)
    assert kafka.values(f"{topic}-audit", expected=1) == lines("w", range(1))
    judge(kafka.values(topic, expected=2), {"w": range(1, 3)}).assert_exact()
    (warning,) = log_lines(running, "asks for topic elsewhere")
    assert "WARNING" in warning
    assert running.metric("forwarder_topics_refused_total", app="shop") == 2


def test_records_have_the_key_that_their_greeting_asks_for(start: Start, kafka: Kafka, topic: str) -> None:
    running = start(socket={"key": "{host}"})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one", key="{app}-{field:writer}")
        peer.send(lines("w", range(10)))
        peer.await_ack(10)
    records = kafka.records(topic, expected=10)
    assert {record.key for record in records} == {b"shop-w"}
    assert len({record.partition for record in records}) == 1


def test_what_a_handler_says_it_dropped_is_counted_once(start: Start) -> None:
    running = start()
    for _ in range(2):
        with connect(running.socket) as peer:
            peer.greet(app="shop", session="one", dropped=7)
    assert running.metric("forwarder_client_dropped_total", app="shop") == 7
    assert len(log_lines(running, "dropped 7 records")) == 1


def test_only_allowed_users_get_in(start: Start) -> None:
    running = start(socket={"allow_uids": [os.getuid() + 1]})
    with connect(running.socket) as peer:
        assert closed_by_agent(peer)
    assert len(log_lines(running, "is not among allow_uids and allow_groups")) == 1
    assert running.metric("forwarder_connections_rejected_total", reason="not_allowed") == 1


def test_users_in_an_allowed_group_get_in(start: Start) -> None:
    running = start(socket={"allow_uids": [os.getuid() + 1], "allow_groups": ["no-such-group", str(os.getgid())]})
    with connect(running.socket) as peer:
        assert peer.greet(app="shop") == 0


def test_a_peer_whose_name_is_no_text_is_still_named_by_its_pid(start: Start, app: AppFactory) -> None:
    running = start()
    peer = app(
        """
        import socket, sys
        with open("/proc/self/comm", "wb") as comm: comm.write(b"\\xff\\xfe")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(sys.argv[1])
            sock.sendall(b'{"forwarder":9}\\n')
            print(sock.recv(1))
        """,
        running.socket,
    )
    pid = peer.pid
    finish(peer)
    (line,) = log_lines(running, "this agent speaks version 1")
    assert f"pid {pid} (" in line


# Pickled records


def pythons() -> list[tuple[str, str]]:
    """Every Python that can be found, from 3.8 on: (version, path)."""
    found: dict[str, str] = {}
    candidates = [sys.executable, *map(str, Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python3"))]
    candidates += filter(None, (shutil.which(f"python3.{minor}") for minor in range(8, 15)))
    for path in candidates:
        said = subprocess.run(
            [path, "-S", "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        if re.fullmatch(r"3\.\d+", said) and int(said[2:]) >= 8:
            found.setdefault(said, path)
    return sorted(found.items(), key=lambda item: int(item[0][2:]))


STOCK = """
import logging, logging.handlers, sys
handler = logging.handlers.SocketHandler(sys.argv[1], None)
log = logging.getLogger("stock.app")
log.setLevel("DEBUG")
log.addHandler(handler)
log.info("plain %s %d", "words", 7)
log.warning("extra", extra={"user": "ann", "nested": {"a": [1, 2.5, None, True, (3,)], 5: "five"}, "raw": b"\\x00\\xff"})
try:
    {}["missing"]
except KeyError:
    log.exception("failed")
log.error("where", stack_info=True)
log.info("\\u4f60\\u597d \\U0001f600 \\ud800")
log.info("x" * 100_000)
handler.close()
"""


@pytest.mark.parametrize("python", [pytest.param(path, id=f"python{version}") for version, path in pythons()])
def test_the_standard_librarys_own_handler_needs_only_the_path_of_the_socket(
    start: Start, kafka: Kafka, topic: str, app: AppFactory, python: str
) -> None:
    running = start(socket={"app": "stock"})
    finish(app(STOCK, running.socket, python=python, flags=("-S", "-I")))
    records = [json.loads(value) for value in kafka.values(topic, expected=6)]
    plain, extra, failed, where, unicode, long = sorted(records, key=lambda record: str(record["@timestamp"]))
    assert plain["message"] == "plain words 7"
    assert (plain["name"], plain["levelname"], plain["funcName"]) == ("stock.app", "INFO", "<module>")
    assert extra["user"] == "ann"
    assert extra["nested"] == {"a": [1, 2.5, None, True, [3]], "5": "five"}
    assert failed["message"] == "failed"
    assert "KeyError: 'missing'" in json.dumps(failed)
    assert "Stack (most recent call last)" in json.dumps(where)
    assert unicode["message"].startswith("你好 😀 ")
    assert long["message"] == "x" * 100_000
    assert rejected(running) == 0


TRACE = Path("/tmp", f"forwarder-test-{os.getpid()}-was-here")


class _Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {TRACE}",)


def frame(payload: bytes) -> bytes:
    return struct.pack(">L", len(payload)) + payload


HOSTILE: dict[str, tuple[str, bytes]] = {
    "reduce": ("pickle", frame(pickle.dumps({"msg": _Command()}, 1))),
    "reduce-4": ("pickle", frame(pickle.dumps({"msg": _Command()}, 4))),
    "long-binput": ("pickle", frame(b"}r\xff\xff\xff\x7f.")),
    "nested": ("pickle", frame(b"]" * 100_000 + b"a" * 99_999 + b".")),
    "nested-tuples": ("pickle", frame(b")" + b"\x85" * 100_000 + b".")),
    "16-mib": ("frame", struct.pack(">L", (1 << 24) - 1) + b"x"),
    "string-of-2-gib": ("pickle", frame(b"}X\xff\xff\xff\x7fmsg.")),
    "cut": ("pickle", frame(pickle.dumps({"msg": "hello" * 100}, 1)[:-20])),
    "no-record": ("pickle", frame(pickle.dumps([1, 2, 3], 1))),
    "empty": ("frame", frame(b"")),
    "endless": ("pickle", frame(b"}" * (3 * MIB))),
}


def test_hostile_pickles_cost_their_own_connection_one_line_and_next_to_no_memory(start: Start, kafka: Kafka, topic: str) -> None:
    running = start()
    TRACE.unlink(missing_ok=True)
    with connect(running.socket) as neighbour:
        neighbour.greet(app="shop", session="one")
        neighbour.send(lines("w", range(100)))
        kafka.values(topic, expected=100)
        before = running.rss()
        attempts = [(name, *case) for _ in range(3) for name, case in HOSTILE.items()]
        grown = []
        for number, (name, reason, data) in enumerate(attempts):
            with connect(running.socket) as peer:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    peer.send_bytes(data)
                assert closed_by_agent(peer), name
            told = log_lines(running, "connection closed")
            assert len(told) == number + 1, name
            assert f"sent a {reason} that is no log record" in told[-1]
            neighbour.send(lines("w", range(100 + number, 101 + number)))
            neighbour.await_ack(101 + number)
            if (number + 1) % len(HOSTILE) == 0:
                grown.append(running.rss() - before)
    # What the allocator keeps for the next time comes and goes; what something holds on to would be there after each round.
    assert min(grown) < 8 * MIB, f"the agent grew by {[round(size / MIB, 1) for size in grown]} MiB"
    assert rejected(running) == len(attempts)
    assert not TRACE.exists()
    assert "Traceback" not in running.log()
    sent = 100 + len(attempts)
    judge(kafka.values(topic, expected=sent), {"w": sent}).assert_exact()


def test_peers_that_leave_in_the_middle_of_large_records_leave_nothing_behind(start: Start) -> None:
    running = start()
    with connect(running.socket) as neighbour:
        neighbour.greet(app="shop", session="one")
        before = running.rss()
        for _ in range(20):
            for beginning in (struct.pack(">L", 4 * MIB), b'{"forwarder":1,"app":"shop","session":"two"}\nno end: '):
                send_plain(running.socket, beginning + b"x" * (MIB - 100))
        eventually(lambda: len(log_lines(running, "in the middle of a record")) == 20, what="twenty lines in the log")
        grown = running.rss() - before
    assert grown < 12 * MIB, f"the agent grew by {grown / MIB:.1f} MiB"


@pytest.mark.parametrize("hostile", [HOSTILE["reduce"][1], struct.pack(">L", 2 << 30)], ids=["pickle", "frame-of-2-gib"])
def test_good_records_before_a_hostile_one_are_kept(start: Start, kafka: Kafka, topic: str, hostile: bytes) -> None:
    running = start()
    good = frame(pickle.dumps({"msg": "good", "levelname": "INFO", "created": 1.0}, 1))
    with connect(running.socket) as peer:
        peer.send_bytes(good + good + hostile + good)
        assert closed_by_agent(peer)
    assert [json.loads(value)["message"] for value in kafka.values(topic, expected=2)] == ["good", "good"]


def test_an_app_that_ends_in_the_middle_of_a_pickled_record_is_told_and_counted(start: Start, kafka: Kafka, topic: str) -> None:
    running = start()
    good = frame(pickle.dumps({"msg": "good"}, 1))
    send_plain(running.socket, good + good[:-4])
    assert len(kafka.values(topic, expected=1)) == 1
    eventually(lambda: log_lines(running, "in the middle of a record"), what="a line in the log")
    assert running.metric("forwarder_connections_rejected_total", reason="cut") == 1


# Many peers


def test_a_thousand_connections_at_once_are_served_with_the_usual_limit_on_descriptors(
    start: Start, kafka: Kafka, topic: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connect(running.socket)) for _ in range(1000)]
        for number, peer in enumerate(peers):
            peer.send(lines("w", range(10 * number, 10 * number + 10)))
        eventually(lambda: sum(running.status()["connections"].values()) == 1000, what="a thousand connections")
    judge(kafka.values(topic, expected=10_000), {"w": 10_000}).assert_exact()


def test_a_burst_of_peers_while_the_agent_is_busy_is_not_turned_away(start: Start, kafka: Kafka, topic: str) -> None:
    # The standard library's handler connects with a timeout: when the queue is full it fails at once and the record is gone.
    running = start()
    running.freeze()
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            peer.setblocking(False)
            peer.connect(str(running.socket))
            peer.sendall(lines("w", range(number, number + 1))[0] + b"\n")
        running.thaw()
        judge(kafka.values(topic, expected=1000), {"w": 1000}).assert_exact()


# The socket file


def test_the_socket_file_of_a_dead_agent_is_taken_over(start: Start) -> None:
    running = start()
    running.kill()
    assert running.socket.exists()
    running.start()
    with connect(running.socket) as peer:
        assert peer.greet(app="shop") == 0


def refusal(second: Agent) -> str:
    """The one line with which an agent refuses to start."""
    second.start(wait=False)
    assert second.wait() == 1
    (line,) = second.log().splitlines()
    assert line.startswith("forwarder: cannot run: ")
    return line


def test_a_second_agent_at_the_same_socket_refuses_and_the_first_goes_on(start: Start, agent: AgentFactory) -> None:
    first = start()
    second = agent({"kafka": first.config["kafka"], "socket": [{"path": str(first.socket)}]})
    assert refusal(second).endswith(f"{first.socket}: another process answers there; stop it or choose another path")
    with connect(first.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(1)))
        assert peer.await_ack(1) == 1


def test_a_second_agent_in_the_same_state_directory_refuses_and_the_first_goes_on(start: Start, agent: AgentFactory) -> None:
    first = start()
    second = agent({"kafka": first.config["kafka"], "agent": {"state_dir": str(first.state)}})
    assert f"{first.state}: another agent (pid {first.pid}) works in this state directory" in refusal(second)
    with connect(first.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(1)))
        assert peer.await_ack(1) == 1


def test_a_file_that_is_no_socket_is_refused_and_not_deleted(directory: Path, agent: AgentFactory) -> None:
    precious = directory / "precious"
    precious.write_text("data")
    running = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "socket": [{"path": str(precious)}]})
    assert "something that is no socket is there" in refusal(running)
    assert precious.read_text() == "data"


def test_a_socket_has_the_mode_that_was_asked_for_and_is_removed_at_the_end(start: Start) -> None:
    running = start(socket={"mode": "0600"})
    assert running.socket.stat().st_mode & 0o777 == 0o600
    assert running.terminate() == 0
    assert not running.socket.exists()


# Stopping


class Sender(threading.Thread):
    """A peer that sends in batches, in a session of its own, and goes on from the acknowledgement when it is cut off."""

    def __init__(self, path: Path, name: str, size: int = 100) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.name = name
        self.acknowledged = 0
        self.sent = 0
        self.done = threading.Event()
        self._size = size

    def run(self) -> None:
        while not (self.done.is_set() and self.acknowledged == self.sent):
            try:
                with connect(self.path) as peer:
                    at = self.acknowledged
                    self.acknowledged = peer.greet(app=self.name, session=self.name, first=at)
                    while not self.done.is_set() or at < self.sent:
                        end = max(self.sent, at + 20) if not self.done.is_set() else self.sent
                        self.sent = max(self.sent, end)
                        peer.send(lines(self.name, range(at, end), self._size))
                        at = end
                        self.acknowledged = peer.await_ack(end)
            except (OSError, ConnectionError):
                time.sleep(0.02)


def _reached(aims: dict[Sender, int]) -> bool:
    return all(sender.acknowledged > aim for sender, aim in aims.items())


def test_what_is_acknowledged_while_the_agent_is_told_to_stop_arrives_exactly_once(
    start: Start, kafka: Kafka, topic: str
) -> None:
    running = start()
    senders = [Sender(running.socket, f"w{number}") for number in range(4)]
    for sender in senders:
        sender.start()
    for _ in range(2):
        aims = {sender: sender.acknowledged + 100 for sender in senders}
        eventually(partial(_reached, aims), what="traffic")
        assert running.terminate() == 0, running.log_tail()
        running.start()
    for sender in senders:
        sender.done.set()
    for sender in senders:
        sender.join(30)
        assert sender.acknowledged == sender.sent
    expected = {sender.name: sender.sent for sender in senders}
    kafka.values(topic, expected=sum(expected.values()))
    assert running.terminate() == 0
    judge(kafka.values(topic), expected).assert_exact()


def test_what_is_acknowledged_and_cannot_be_sent_before_the_stop_is_sent_after_the_start(
    start: Start, gate: Gate, kafka: Kafka, topic: str
) -> None:
    running = start(kafka=gate.settings, agent={"shutdown_timeout": "500ms"})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(1000)))
        peer.await_ack(1000)
        assert running.terminate() == 0
    assert "are not in Kafka yet; they are on disk" in running.log()
    gate.open()
    running.start()
    judge(kafka.values(topic, expected=1000), {"w": 1000}).assert_exact()


# A full spool


def fill(peer: Native, writer: str, size: int = 1000, first: int = 0) -> int:
    """Send until the agent reads no more; returns how many whole records went into the socket."""
    peer.socket.setblocking(False)
    waiting = b""
    sent = first
    quiet = time.monotonic()
    while time.monotonic() - quiet < 1:
        if not waiting:
            waiting = b"".join(line + b"\n" for line in lines(writer, range(sent, sent + 20), size))
            sent += 20
        try:
            waiting = waiting[peer.socket.send(waiting) :]
            quiet = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    peer.socket.settimeout(10)
    threading.Thread(target=_finish, args=(peer, waiting), daemon=True).start()
    return sent


def _finish(peer: Native, waiting: bytes) -> None:
    with contextlib.suppress(OSError):
        peer.socket.settimeout(60)
        peer.send_bytes(waiting)


SMALL = {"max_bytes": "2MiB", "max_bytes_per_app": "1MiB"}


def test_a_full_spool_makes_apps_wait_and_loses_nothing(start: Start, gate: Gate, kafka: Kafka, topic: str) -> None:
    running = start(kafka=gate.settings, spool=SMALL)
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        sent = fill(peer, "w")
        status = running.status()["spool"]
        assert status["apps"]["shop"] <= MIB
        with contextlib.suppress(TimeoutError):
            while True:
                peer.read_ack(0.5)
        stopped_at = peer.acknowledged
        assert 0 < stopped_at < sent
        assert len(log_lines(running, "the spool is full: apps wait")) == 1
        gate.open()
        peer.await_ack(sent, 30)
    judge(kafka.values(topic, expected=sent), {"w": sent}).assert_exact()
    assert running.metric("forwarder_records_dropped_total") == 0


def test_one_app_at_its_share_of_the_spool_does_not_stop_another(start: Start, gate: Gate, kafka: Kafka, topic: str) -> None:
    running = start(kafka=gate.settings, spool=SMALL)
    with connect(running.socket) as greedy, connect(running.socket) as modest:
        greedy.greet(app="greedy", session="one")
        modest.greet(app="modest", session="one")
        sent = fill(greedy, "greedy")
        modest.send(lines("modest", range(100)))
        assert modest.await_ack(100) == 100
        gate.open()
        greedy.await_ack(sent, 30)
    judge(kafka.values(topic, expected=sent + 100), {"greedy": sent, "modest": 100}).assert_exact()


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_records_that_a_full_spool_drops_are_counted_and_the_others_arrive(
    start: Start, gate: Gate, kafka: Kafka, topic: str, policy: str
) -> None:
    running = start(kafka=gate.settings, spool={**SMALL, "when_full": policy})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        for first in range(0, 3000, 100):
            peer.send(lines("w", range(first, first + 100), 1000))
            peer.await_ack(first + 100)
    dropped = int(running.metric("forwarder_records_dropped_total", app="shop", reason="spool_full"))
    assert 1500 < dropped < 3000
    assert len(log_lines(running, "the spool is full")) == 1
    gate.open()
    values = kafka.values(topic, expected=3000 - dropped)
    kept = range(dropped, 3000) if policy == "drop-oldest" else range(3000 - dropped)
    judge(values, {"w": kept}).assert_exact()


def test_many_apps_with_little_each_do_not_fill_the_spool_once_kafka_has_it_all(start: Start, kafka: Kafka, topic: str) -> None:
    running = start(spool={"max_bytes": "1MiB", "max_bytes_per_app": "1MiB"})
    for number in range(60):
        with connect(running.socket) as peer:
            peer.greet(app=f"app{number}", session="one")
            peer.send(lines(f"app{number}", range(30), 900))
            peer.await_ack(30)
    judge(kafka.values(topic, expected=1800), {f"app{number}": 30 for number in range(60)}).assert_exact()


def test_many_short_sessions_take_no_more_room_than_their_records_are_worth(start: Start, gate: Gate) -> None:
    running = start(kafka=gate.settings, spool=SMALL)
    for number in range(6000):
        with connect(running.socket) as peer:
            peer.greet(app="cron", session=str(number))
            peer.send(lines("w", range(number, number + 1)))
            peer.await_ack(1)
    assert running.status()["spool"]["apps"]["cron"] < 6000 * 150
    assert not log_lines(running, "the spool is full")


def test_a_record_larger_than_the_share_of_its_app_does_not_wait_for_ever(start: Start, kafka: Kafka, topic: str) -> None:
    kafka.create_topic(f"{topic}-large", config={"max.message.bytes": str(4 * MIB)})
    running = start(
        kafka={"topic": f"{topic}-large", "compression": "none"},
        socket={"max_record": "2MiB"},
        spool={"max_bytes_per_app": "1MiB"},
    )
    sent = [*lines("w", range(10)), *lines("w", range(10, 11), 3 * MIB // 2), *lines("w", range(11, 20))]
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(sent)
        peer.await_ack(20)
    assert sorted(kafka.values(f"{topic}-large", expected=20)) == sorted(sent)


def test_an_app_whose_spool_cannot_be_opened_is_turned_away_with_one_line(start: Start) -> None:
    running = start()
    (running.state / "spool").mkdir(exist_ok=True)
    (running.state / "spool" / "broken").write_text("a file where a directory should be")
    with connect(running.socket) as peer:
        peer.send_bytes(b'{"forwarder":1,"app":"broken"}\n')
        assert closed_by_agent(peer)
    (line,) = log_lines(running, "broken")
    assert "the spool of app broken cannot be opened" in line
    assert running.metric("forwarder_connections_rejected_total", reason="spool") == 1
    assert "Traceback" not in running.log()


def test_a_greeting_that_invents_one_app_too_many_is_turned_away_and_the_others_are_served(start: Start, gate: Gate) -> None:
    running = start(kafka=gate.settings)
    for number in range(MOST_APPS):
        with connect(running.socket) as peer:
            peer.greet(app=f"app{number}", session="one")
            if number % 100 == 0:
                peer.send(lines("w", range(1)))
                peer.await_ack(1)
    with connect(running.socket) as peer:
        peer.send_bytes(b'{"forwarder":1,"app":"one too many"}\n')
        assert closed_by_agent(peer)
    (line,) = log_lines(running, "one too many")
    assert f"there are {MOST_APPS} apps already" in line
    assert running.metric("forwarder_connections_rejected_total", reason="spool") == 1
    with connect(running.socket) as peer:
        assert peer.greet(app="app0", session="one", first=1) == 1
    assert len(list((running.state / "spool").iterdir())) == MOST_APPS


# A full disk


class Disk:
    """Where a state directory is: a small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, leave: int = 0) -> None:
        """Take all room but `leave` bytes."""
        self.free()
        room = os.statvfs(self.path)
        size = room.f_bavail * room.f_bsize - leave
        # An agent may have taken some of it meanwhile.
        with contextlib.suppress(OSError), (self.path / "filling").open("wb", buffering=0) as file:
            file.write(bytes(size))

    def free(self) -> None:
        (self.path / "filling").unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """A file system of four megabytes at `path`; raises CalledProcessError without the right to mount."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=True, capture_output=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def disk(directory: Path) -> Iterator[Disk]:
    (directory / "disk").mkdir()
    with mounted(directory / "disk") as path:
        yield Disk(path)


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        try:
            with mounted(Path(directory)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


# Without that right the limit on the size of files, which needs none, is what shows that a refusing disk is waited out.
needs_mount = pytest.mark.skipif(not may_mount(), reason="a small file system needs the right to mount")


def test_a_limit_on_the_size_of_files_is_waited_out(start: Start, gate: Gate, kafka: Kafka, topic: str) -> None:
    running = start(kafka=gate.settings)
    _, hard = resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        sent = fill(peer, "w")
        assert running.status()["spool"]["disk_errors"] > 0
        assert len(log_lines(running, "the disk does not take records")) == 1
        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (hard, hard))
        peer.await_ack(sent, 30)
        gate.open()
    judge(kafka.values(topic, expected=sent), {"w": sent}).assert_exact()


@needs_mount
def test_a_disk_that_others_filled_is_waited_out(start: Start, gate: Gate, kafka: Kafka, topic: str, disk: Disk) -> None:
    running = start(kafka=gate.settings, agent={"state_dir": str(disk.path / "state")})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(100)))
        peer.await_ack(100)
        disk.fill(leave=100_000)
        sent = fill(peer, "w", first=100)
        assert running.alive
        assert running.status()["spool"]["disk_errors"] > 0
        disk.free()
        peer.await_ack(sent, 30)
        gate.open()
    judge(kafka.values(topic, expected=sent), {"w": sent}).assert_exact()


@needs_mount
def test_a_disk_that_the_spool_filled_is_free_again_when_kafka_has_it_all(
    start: Start, gate: Gate, kafka: Kafka, topic: str, disk: Disk
) -> None:
    running = start(kafka=gate.settings, agent={"state_dir": str(disk.path / "state")})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        sent = fill(peer, "w")
        assert sent > 2000
        gate.open()
        peer.await_ack(sent, 30)
    judge(kafka.values(topic, expected=sent), {"w": sent}).assert_exact()


@needs_mount
def test_an_app_that_is_new_on_a_full_disk_is_turned_away_with_a_line_and_served_later(
    start: Start, kafka: Kafka, topic: str, disk: Disk
) -> None:
    running = start(agent={"state_dir": str(disk.path / "state")})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(1)))
        peer.await_ack(1)
    disk.fill()
    with connect(running.socket) as peer, pytest.raises((ConnectionError, TimeoutError)):
        peer.greet(app="new", session="one")
        peer.send(lines("w", range(1, 2)))
        peer.socket.settimeout(1)
        peer.await_ack(1, 1)
    assert "Traceback" not in running.log()
    disk.free()
    with connect(running.socket) as peer:
        peer.greet(app="new", session="one")
        peer.send(lines("w", range(1, 2)))
        peer.await_ack(1)
    judge(kafka.values(topic, expected=2), {"w": 2}).assert_exact()


@needs_mount
def test_an_agent_that_was_killed_on_a_disk_that_its_spool_filled_starts_and_sends_what_is_there(
    start: Start, gate: Gate, kafka: Kafka, topic: str, disk: Disk
) -> None:
    running = start(kafka=gate.settings, agent={"state_dir": str(disk.path / "state")})
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        fill(peer, "w")
        running.kill()
        with contextlib.suppress(ConnectionError):
            while True:
                peer.read_ack()
        acknowledged = peer.acknowledged
    (segment,) = (disk.path / "state" / "spool" / "shop").glob("*.seg")
    with segment.open("ab") as file, contextlib.suppress(OSError):
        file.write(b"FWSB\x01\x00torn")
    gate.open()
    running.start()
    with connect(running.socket) as peer:
        known = peer.greet(app="shop", session="one", first=acknowledged)
        assert known >= acknowledged > 1000
        peer.send(lines("w", range(acknowledged, known + 100), 1000))
        peer.await_ack(known + 100, 30)
    judge(kafka.values(topic, expected=known + 100), {"w": known + 100}).assert_exact()


# A damaged spool


def test_a_torn_end_of_the_spool_is_set_aside_at_start_and_everything_else_arrives(
    start: Start, gate: Gate, kafka: Kafka, topic: str
) -> None:
    running = start(kafka=gate.settings)
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("w", range(100)))
        peer.await_ack(100)
    running.kill()
    (segment,) = (running.state / "spool" / "shop").glob("*.seg")
    whole = segment.stat().st_size
    torn = b"FWSB\x01\x00\x00\x00" + b"half a block"
    with segment.open("ab") as file:
        file.write(torn)
    running.start()
    assert segment.stat().st_size == whole
    (kept,) = (running.state / "spool" / "shop" / "quarantine").iterdir()
    assert kept.read_bytes() == torn
    assert len(log_lines(running, "are no whole block, moved to")) == 1
    assert running.metric("forwarder_spool_damaged_bytes_total") == len(torn)
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one", first=100) == 100
        peer.send(lines("w", range(100, 200)))
        peer.await_ack(200)
    gate.open()
    judge(kafka.values(topic, expected=200), {"w": 200}).assert_exact()
