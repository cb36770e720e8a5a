"""`forwarder dead`: what Kafka refused is listed, shown and sent again, beside a running agent too, and none of it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from forwarder import dead
from tests.conftest import AgentFactory
from tests.harness.agent import BOUND_BY_PERMISSIONS, Agent
from tests.harness.apps import environment
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.process import memory
from tests.harness.wait import eventually

TOO_LARGE = "Broker: Message size too large"
NOON = 1_767_268_800.0


def command(agent: Agent, *args: str) -> list[str]:
    return [sys.executable, "-m", "forwarder", "dead", *args, "-c", str(agent.file)]


def run(agent: Agent, *args: str, wrapper: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run `forwarder dead` with the agent's configuration."""
    return subprocess.run(
        [*wrapper, *command(agent, *args)],
        capture_output=True,
        text=True,
        check=False,
        env=environment({"COLUMNS": "120"}),
        cwd=agent.directory,
    )


def done(agent: Agent, *args: str) -> str:
    """What the command prints, when it succeeds without a word of complaint."""
    process = run(agent, *args)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def letter(value: bytes, topic: str = "logs", reason: str = TOO_LARGE, key: bytes | None = None) -> dead.DeadLetter:
    return dead.DeadLetter(topic, 0, reason, key, value)


def large(number: int, size: int = 4000) -> bytes:
    """A record that compression does not make small."""
    return b'{"seq":%d,"text":"%s"}' % (number, os.urandom(size // 2).hex().encode())


def left(agent: Agent, app: str = "shop") -> list[bytes]:
    """The values of the dead letters that there are."""
    found = []
    for file in dead.files(agent.state / "dead"):
        if file.app == app:
            found += [each.value for _, _, each in dead.letters(file) if each is not None]
    return found


@pytest.fixture
def small(kafka: Kafka) -> str:
    """A topic that takes no large records."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    kafka.create_topic(name, config={"max.message.bytes": "2000"})
    return name


@pytest.fixture
def stopped(agent: AgentFactory, kafka: Kafka, small: str) -> Agent:
    """An agent that does not run."""
    made = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small}})
    made.state.mkdir()
    return made


# Looking


def test_list_tells_how_many_since_when_and_why(stopped: Agent) -> None:
    directory = stopped.state / "dead"
    dead.write(directory, "shop", [letter(b"1"), letter(b"2", reason="Broker: Invalid record")], NOON)
    dead.write(directory, "shop", [letter(b"3")], NOON + 60)
    dead.write(directory, "bank", [letter(b"4")], NOON)
    size = (directory / "shop.jsonl").stat().st_size
    listing = done(stopped, "list")
    (row,) = re.findall(r"\bshop .*", listing)
    assert re.findall(r"\d\S*", row)[:4] == ["3", str(size), "2026-01-01T12:00:00.000Z", "2026-01-01T12:01:00.000Z"]
    assert f"{TOO_LARGE} (2)" in listing
    assert "Broker: Invalid record (1)" in listing
    assert "bank" in listing


def test_show_prints_what_is_asked_for(stopped: Agent) -> None:
    directory = stopped.state / "dead"
    dead.write(directory, "shop", [letter(b"one\x1b[31m", key=b"k"), letter(b"\xff\xfe", reason="Broker: Invalid record")], NOON)
    dead.write(directory, "bank", [letter(b"x" * 1000, topic="money")], NOON)
    shown = done(stopped, "show", "shop").splitlines()
    assert shown[:2] == [f"2026-01-01T12:00:00.000Z shop logs[0]: {TOO_LARGE}, 8 bytes, key k", r"  one\x1b[31m"]
    assert done(stopped, "show", "--topic", "money").splitlines()[1] == f"  {'x' * 300}…"
    assert len(done(stopped, "show", "--limit", "1").splitlines()) == 2
    (found,) = map(json.loads, done(stopped, "show", "--json", "--reason", "INVALID").splitlines())
    assert (found["app"], found["value_base64"], found["reason"]) == ("shop", "//4=", "Broker: Invalid record")


def test_nothing_there_is_told_and_no_error_and_nothing_is_made(agent: AgentFactory) -> None:
    never = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
    for action in ("list", "replay"):
        assert done(never, action) == f"no dead letters in {never.state}/dead\n"
    assert done(never, "show") == ""
    assert not never.state.exists()


def test_an_app_that_is_not_there_and_a_reason_nobody_has_are_told(stopped: Agent) -> None:
    dead.write(stopped.state / "dead", "shop", [letter(b"1")], NOON)
    for action in ("show", "replay"):
        process = run(stopped, action, "shpo")
        assert (process.returncode, process.stdout) == (1, "")
        assert f"there are no dead letters of app shpo in {stopped.state}/dead; there are: shop" in process.stderr
    process = run(stopped, "replay", "--reason", "weather")
    assert process.returncode == 1
    assert "there are no dead letters like that" in process.stderr
    assert left(stopped) == [b"1"]


def test_who_may_not_look_is_told_who_may(stopped: Agent) -> None:
    dead.write(stopped.state / "dead", "shop", [letter(b"1")], NOON)
    (stopped.state / "dead").chmod(0)
    for action in ("list", "show", "replay"):
        process = run(stopped, action, wrapper=BOUND_BY_PERMISSIONS)
        assert process.returncode == 1
        assert "Permission denied" in process.stderr
        assert "run this as the agent's user, or as root" in process.stderr


def test_a_line_that_is_no_letter_is_told_and_stays(stopped: Agent, kafka: Kafka, small: str) -> None:
    directory = stopped.state / "dead"
    dead.write(directory, "shop", [letter(b"1", small)], NOON)
    dead.append(directory, "shop", b'{"half":\n')
    listed = run(stopped, "list")
    assert listed.returncode == 0
    assert listed.stderr == f"{directory}/shop.jsonl: 1 lines are no dead letters, left as they are\n"
    assert done(stopped, "replay") == "shop: 1 sent, 0 refused again, 1 not asked for\n"
    assert kafka.values(small, expected=1) == [b"1"]
    assert (directory / "shop.jsonl").read_bytes() == b'{"half":\n'


# Sending again


def test_what_kafka_refused_is_sent_again_once_it_is_allowed_and_nothing_is_left(
    agent: AgentFactory, kafka: Kafka, small: str
) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small, "key": "{field:seq}"}})
    running.start()
    records = [large(number) for number in range(20)]
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(records)
        peer.await_ack(20)
    eventually(lambda: len(left(running)) == 20, what="all to be refused")
    kafka.configure_topic(small, {"max.message.bytes": "100000"})
    assert done(running, "replay") == "shop: 20 sent, 0 refused again, 0 not asked for\n"
    found = kafka.records(small, expected=20)
    assert sorted(record.value for record in found) == sorted(records)
    assert all(json.loads(record.value)["seq"] == int(record.key or b"-1") for record in found)
    assert not list((running.state / "dead").iterdir())


def test_what_is_refused_again_stays_with_the_new_reason_and_what_is_not_takes_its_way(
    stopped: Agent, kafka: Kafka, small: str
) -> None:
    refused = [large(number) for number in range(5)]
    good = [b'{"seq":%d}' % number for number in range(2000)]
    mixed = [letter(value, small, "Broker: Invalid record") for value in [*good[:1000], *refused, *good[1000:]]]
    dead.write(stopped.state / "dead", "shop", mixed, NOON)
    process = run(stopped, "replay", "shop")
    assert process.returncode == 1
    assert process.stdout == "shop: 2000 sent, 5 refused again, 0 not asked for\n"
    assert sorted(kafka.values(small, expected=2000)) == sorted(good)
    (file,) = dead.files(stopped.state / "dead")
    found = [(each.value, each.reason) for _, _, each in dead.letters(file) if each]
    assert sorted(found) == [(value, TOO_LARGE) for value in refused]


def test_only_what_is_asked_for_is_sent_and_where_it_is_to_go(stopped: Agent, kafka: Kafka, small: str, topic: str) -> None:
    directory = stopped.state / "dead"
    dead.write(directory, "shop", [letter(b"1", small), letter(b"2", "elsewhere"), letter(b"3", small, "Broker: Other")], NOON)
    dead.write(directory, "bank", [letter(b"4", small)], NOON)
    sent = done(stopped, "replay", "shop", "--topic", small, "--reason", "too large", "--to", topic)
    assert sent == "shop: 1 sent, 0 refused again, 2 not asked for\n"
    assert kafka.values(topic, expected=1) == [b"1"]
    assert (left(stopped), left(stopped, "bank")) == ([b"2", b"3"], [b"4"])


def test_a_topic_that_is_missing_keeps_its_records_with_that_reason(stopped: Agent, kafka: Kafka, small: str) -> None:
    wrong = letter(b"1", "no such topic")
    dead.write(stopped.state / "dead", "shop", [wrong, letter(b"2", small)], NOON)
    assert run(stopped, "replay").returncode == 1
    assert kafka.values(small, expected=1) == [b"2"]
    assert left(stopped) == [b"1"]


def test_kafka_away_is_told_and_all_is_still_there(agent: AgentFactory) -> None:
    lonely = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
    lonely.state.mkdir()
    dead.write(lonely.state / "dead", "shop", [letter(b"1")], NOON)
    process = run(lonely, "replay")
    assert (process.returncode, process.stdout) == (1, "")
    assert re.fullmatch(
        r"forwarder: 127.0.0.1:1: Kafka does not answer: .*; nothing was sent, all is still there\n", process.stderr
    )
    assert left(lonely) == [b"1"]


def test_two_replays_do_not_send_the_same_records(stopped: Agent) -> None:
    dead.write(stopped.state / "dead", "shop", [letter(b"1")], NOON)
    with dead.replaying(stopped.state / "dead"):
        process = run(stopped, "replay")
    assert process.returncode == 1
    assert "another replay is at work" in process.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can replay for another user")
def test_what_root_puts_back_is_the_agents_to_append_to(stopped: Agent, small: str) -> None:
    directory = stopped.state / "dead"
    dead.write(directory, "shop", [letter(large(1), small)], NOON)
    for path in (directory, directory / "shop.jsonl"):
        os.chown(path, 65534, 65534)
    assert run(stopped, "replay").returncode == 1
    assert len(left(stopped)) == 1
    assert (directory / "shop.jsonl").stat().st_uid == 65534


@pytest.mark.slow
def test_a_replay_that_is_killed_at_any_moment_loses_nothing(stopped: Agent, kafka: Kafka, small: str) -> None:
    """Some records are taken, some refused again, some not asked for, and meanwhile others are set aside."""
    directory = stopped.state / "dead"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = [b'{"seq":%d,"text":"%s"}' % (number, b"x" * 500) for number in range(40_000)]
    bad = [large(number) for number in range(100_000, 100_020)]
    other = [b'{"seq":%d}' % number for number in range(200_000, 202_000)]
    letters = [letter(value, small) for value in good + bad] + [letter(value, "elsewhere") for value in other]
    chance.shuffle(letters)
    dead.write(directory, "shop", letters, NOON)
    late = 0

    def taken_to() -> list[int]:
        return [file.start for file in dead.files(directory) if file.taken]

    for _ in range(5):
        before = taken_to()
        replay = subprocess.Popen(command(stopped, "replay", "--topic", small), stdout=subprocess.DEVNULL, env=environment())
        eventually(lambda before=before: taken_to() > before, what="the replay to get on")  # type: ignore[misc]
        # Random moments are the point here: nothing is waited for.
        until = time.monotonic() + chance.choice([0, 0.01, 0.1])
        while time.monotonic() < until:
            with contextlib.suppress(dead.InUse):
                late += dead.write(directory, "shop", [letter(b'{"late":%d}' % late, "elsewhere")], NOON)
            time.sleep(0.001)
        assert replay.poll() is None, "the replay was done before it was killed"
        replay.kill()
        replay.wait()
    assert run(stopped, "replay", "--topic", small).returncode == 1
    taken = set(kafka.values(small))
    assert taken == set(good)
    assert set(left(stopped)) == {*bad, *other, *(b'{"late":%d}' % number for number in range(late))}
    assert [file.taken for file in dead.files(directory)] == [False]


def test_beside_an_agent_that_sets_records_aside_none_of_them_is_lost(agent: AgentFactory, kafka: Kafka, small: str) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small}})
    running.start()
    sent = []
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        for turn in range(6):
            records = [large(turn * 20 + number) for number in range(20)]
            sent += records
            peer.send(records)
            peer.await_ack(len(sent))
            if turn == 0:
                eventually(lambda: left(running), what="the first to be refused")
            assert run(running, "replay").returncode == 1
    eventually(lambda: set(left(running)) == set(sent), what="all to be set aside")
    assert running.metric("forwarder_records_dead_total") == len(sent)
    assert kafka.values(small) == []


def test_a_file_of_any_size_is_replayed_in_little_memory(stopped: Agent, kafka: Kafka, small: str) -> None:
    value = b"x" * 10_000
    for _ in range(10):
        dead.write(stopped.state / "dead", "shop", [letter(value, small)] * 1000, NOON)
    process = subprocess.Popen(command(stopped, "replay"), stdout=subprocess.PIPE, env=environment())
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            peak = max(peak, memory(process.pid, "VmHWM"))
        time.sleep(0.01)
    said, _ = process.communicate()
    assert said == b"shop: 10000 sent, 0 refused again, 0 not asked for\n"
    assert sum(kafka.end_offsets(small).values()) == 10_000
    print(f"{peak >> 20} MiB for 100 MB of dead letters")
    assert peak < 100 << 20


# Bounds


def test_a_storm_of_refused_records_is_bounded_and_what_is_dropped_is_counted(
    agent: AgentFactory, kafka: Kafka, small: str
) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small}, "spool": {"max_bytes_dead": "200KiB"}})
    running.start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send([record for number in range(100) for record in (large(number), b'{"seq":%d}' % (number + 1000))])
        peer.await_ack(200)
    assert len(kafka.values(small, expected=100)) == 100

    def judged() -> tuple[float, float]:
        dropped = running.metric("forwarder_records_dropped_total", app="shop", reason="dead_letters_full")
        return running.metric("forwarder_records_dead_total"), dropped

    eventually(lambda: sum(judged()) == 100, what="each refused record to be kept or dropped")
    kept, _ = judged()
    assert 0 < kept == len(left(running)) < 100
    assert kept == len(set(left(running)))
    assert (running.state / "dead" / "shop.jsonl").stat().st_size <= 100 * 1024
    with connect(running.socket) as peer:
        peer.greet(app="bank", session="one")
        peer.send([large(2000)])
        peer.await_ack(1)
    eventually(lambda: len(left(running, "bank")) == 1, what="the other app's record to be set aside")
    (told,) = [line for line in running.log().splitlines() if "dropped, as there are" in line]
    assert "app shop" in told


def test_dead_letters_that_cannot_be_written_wait_until_they_can(agent: AgentFactory, kafka: Kafka, small: str) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small}})
    running.start()
    (running.state / "dead").write_text("a file where a directory should be")
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send([b'{"seq":1}', large(2), b'{"seq":3}'])
        peer.await_ack(3)
    eventually(lambda: "its dead letters cannot be written" in running.log(), what="a line in the log")
    Path(running.state / "dead").unlink()
    eventually(lambda: len(left(running)) == 1, what="the record to be set aside")
    assert len(kafka.values(small, expected=2)) == 2
    assert running.log().count("its dead letters cannot be written") == 1
    eventually(lambda: "its records are taken again" in running.log(), what="the end of it in the log")
