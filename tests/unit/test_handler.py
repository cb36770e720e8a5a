"""What the handlers promise an app, against a fake agent on a real socket; promises about processes with real processes."""

from __future__ import annotations

import json
import logging
import logging.config
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import forwarder.handler
import forwarder.ring
import forwarder.session
import forwarder.turns
from forwarder import JSONFormatter, KafkaLoggingHandler, LogstashFormatterV1, SocketHandler
from forwarder.ring import Kept, Ring
from forwarder.settings import parse_level, parse_size
from tests.harness.pythons import PYTHONS
from tests.unit.fake_agent import PATIENCE, FakeAgent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def agent(path: Path) -> Iterator[FakeAgent]:
    """A fake agent that has not been started."""
    agent = FakeAgent(path)
    yield agent
    agent.stop()


@pytest.fixture
def handler(path: Path) -> Iterator[SocketHandler]:
    handler = SocketHandler(str(path), "shop", close_timeout=PATIENCE)
    yield handler
    handler.close_timeout = 0.0
    handler.close()


@pytest.fixture
def small(path: Path) -> Iterator[SocketHandler]:
    """A handler whose ring holds a few hundred records."""
    handler = SocketHandler(str(path), "shop", backlog="256KiB", close_timeout=PATIENCE)
    yield handler
    handler.close_timeout = 0.0
    handler.close()


@pytest.fixture
def log(handler: SocketHandler) -> logging.Logger:
    return logger_of(handler)


def logger_of(handler: logging.Handler) -> logging.Logger:
    log = logging.Logger("app.pay")
    log.addHandler(handler)
    return log


def strict(line: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line.decode("utf-8"), parse_constant=refuse)


def numbers(agent: FakeAgent) -> list[int]:
    return [int(message.split()[0]) for message in agent.messages()]


# Delivery


def test_a_record_arrives_as_one_line_of_json(agent: FakeAgent, log: logging.Logger) -> None:
    with agent:
        log.warning("paid %d €", 3, extra={"order": 17})
        agent.until_records(1)
        record = strict(agent.records[0])
        assert (record["message"], record["levelname"], record["order"]) == ("paid 3 €", "WARNING", 17)
        assert agent.greetings[0]["app"] == "shop"


def test_flush_returns_when_everything_is_acknowledged(agent: FakeAgent, handler: SocketHandler, log: logging.Logger) -> None:
    with agent:
        for number in range(1000):
            log.info("%d", number)
        handler.flush()
        assert numbers(agent) == list(range(1000))
        assert handler.dropped == 0


def test_what_was_logged_while_the_agent_was_away_arrives_when_it_is_back_and_the_app_idle(
    agent: FakeAgent, log: logging.Logger
) -> None:
    for number in range(100):
        log.info("%d", number)
    with agent:
        agent.until_records(100)
        assert numbers(agent) == list(range(100))


def test_what_was_not_acknowledged_is_sent_again_under_the_same_numbers(agent: FakeAgent, log: logging.Logger) -> None:
    with agent:
        log.info("0")
        agent.until_records(1)
        agent.set(acknowledges=False)
        for number in range(1, 10):
            log.info("%d", number)
        agent.until_records(10)
    agent.set(acknowledges=True)
    with agent:
        log.info("10")
        agent.until_records(11)
    assert numbers(agent) == list(range(11))
    assert agent.arrivals > 11
    assert [greeting["session"] for greeting in agent.greetings] == [agent.greetings[0]["session"]] * 2
    assert agent.greetings[1]["first"] in (0, 1)
    assert agent.gaps == []


def test_what_an_agent_without_memory_of_it_has_acknowledged_is_not_sent_again(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    with agent:
        for number in range(10):
            log.info("%d", number)
        handler.flush()
    agent.sessions.clear()
    with agent:
        log.info("10")
        agent.until_records(11)
        assert agent.greetings[-1]["first"] == 10
        assert numbers(agent) == list(range(11))


@pytest.mark.parametrize("at", [0, 1, 7, 99, 2999])
def test_an_agent_that_hangs_up_in_the_middle_of_a_record_gets_it_again_whole(
    at: int, agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    agent.set(hang_up_at=at)
    with agent:
        for number in range(3000):
            log.info("%d %s", number, "x" * 100)
        handler.flush()
    assert numbers(agent) == list(range(3000))
    assert agent.gaps == []
    assert agent.hang_up_at is None


def test_an_agent_that_comes_and_goes_loses_and_repeats_nothing(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    for turn in range(20):
        with agent:
            for number in range(50 * turn, 50 * turn + 25):
                log.info("%d", number)
            agent.until_records(50 * turn + 1)
        for number in range(50 * turn + 25, 50 * turn + 50):
            log.info("%d", number)
        handler.retryTime = None
    with agent:
        handler.flush()
    assert numbers(agent) == list(range(1000))
    assert agent.gaps == []


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", (2**64 - 1).to_bytes(8, "big"), (5).to_bytes(8, "big")],
    ids=["another protocol", "an impossible number", "more than was sent"],
)
def test_an_agent_that_answers_nonsense_disturbs_nobody(answer: bytes, agent: FakeAgent, log: logging.Logger) -> None:
    agent.set(answer=answer)
    with agent:
        log.info("0")
        agent.until(lambda: agent.accepted >= 3)
        log.info("1")
        agent.set(answer=None)
        agent.until_records(2)
        agent.until(lambda: numbers(agent) == [0, 1])
        assert agent.gaps == []


def test_acknowledgements_may_arrive_in_pieces(path: Path, agent: FakeAgent, log: logging.Logger, handler: SocketHandler) -> None:
    with agent:
        log.info("0")
        handler.flush()
        agent.set(acknowledges=False)
        log.info("1")
        agent.until_records(2)
        agent.set(acknowledges=True, answer=b"\0\0\0")
        agent.until(lambda: handler._session._acks == b"\0\0\0")
        agent.set(answer=b"\0\0\0\0\2")
        handler.flush()
        assert handler._session.ring.first == 2


# The ring


def test_the_ring_is_bounded_keeps_the_newest_and_tells_the_agent_what_it_dropped(agent: FakeAgent, small: SocketHandler) -> None:
    log = logger_of(small)
    for number in range(3000):
        log.info("%d", number)
        assert small._session.ring.size <= small.backlog
    kept = 3000 - small.dropped
    assert 100 < kept < 1000
    with agent:
        small.flush()
        assert numbers(agent) == list(range(small.dropped, 3000))
        assert agent.greetings[-1]["dropped"] == small.dropped
        assert agent.gaps == []


def test_an_agent_that_reads_and_never_acknowledges_does_not_make_the_ring_grow(agent: FakeAgent, small: SocketHandler) -> None:
    log = logger_of(small)
    agent.set(acknowledges=False)
    with agent:
        for number in range(3000):
            log.info("%d", number)
            assert small._session.ring.size <= small.backlog
        agent.until_records(100)
        assert small.dropped > 1000
        agent.set(acknowledges=True)
        small.flush()
        assert len(agent.records) == 3000 - small.dropped
        assert numbers(agent)[-1] == 2999
        assert agent.greetings[-1]["dropped"] == small.dropped


def test_an_agent_that_hangs_with_a_full_socket_never_blocks_the_app(agent: FakeAgent, small: SocketHandler) -> None:
    log = logger_of(small)
    agent.set(reads=False)
    with agent:
        slowest = 0.0
        for number in range(3000):
            before = time.perf_counter()
            log.info("%d %s", number, "x" * 10_000)
            slowest = max(slowest, time.perf_counter() - before)
        assert slowest < 1.0  # a blocking send would take for ever; the rest is for a busy machine
        assert small.dropped > 1000
        agent.set(reads=True)
        agent.until(lambda: bool(agent.greetings) and agent.greetings[-1]["dropped"] == small.dropped > 0)
        small.flush()
        assert numbers(agent)[-1] == 2999
        assert len(agent.records) == 3000 - small.dropped


def test_drops_are_told_to_an_agent_that_was_never_away_and_only_once(agent: FakeAgent, small: SocketHandler) -> None:
    log = logger_of(small)
    with agent:
        log.info("%s", "x" * 300_000)
        assert small.dropped == 1
        log.info("small")
        small.flush()
        assert agent.messages() == ["small"]
        assert [greeting["dropped"] for greeting in agent.greetings][-1] == 1
        accepted = agent.accepted
        log.info("another")
        small.flush()
        assert agent.accepted == accepted


def test_a_small_ring_loses_nothing_as_long_as_the_agent_keeps_up(agent: FakeAgent, path: Path) -> None:
    handler = SocketHandler(str(path), backlog="16KiB", close_timeout=PATIENCE)
    log = logger_of(handler)
    with agent:
        for number in range(500):
            log.info("%d", number)
            agent.until_records(number - 5)
        handler.close()
        assert numbers(agent) == list(range(500))


def test_a_ring_numbers_records_when_they_are_taken_and_drops_only_those_that_wait() -> None:
    ring = Ring(100)
    for letter in b"abcdefgh":
        ring.put(bytes([letter]) * 20)
    assert ring.take(40) == b"a" * 20 + b"b" * 20
    assert ring.take(40) == b""
    assert ring.held_back
    ring.make_room()
    assert (ring.size, ring.dropped, len(ring)) == (100, 3, 5)
    ring.acknowledge(1)
    assert ring.first == 1
    ring.rewind()
    assert ring.take(40) == b"b" * 20
    assert ring.take(40) == b"f" * 20
    with pytest.raises(ValueError, match="4 records are acknowledged, of 3 sent"):
        ring.acknowledge(4)
    ring.acknowledge(3)
    assert ring.take(1000) == b"g" * 20 + b"h" * 20
    ring.acknowledge(5)
    assert (ring.size, ring.under_way, len(ring), ring.first) == (0, 0, 0, 5)


@pytest.mark.parametrize(("drop", "kept_numbers"), [("oldest", range(2600, 3000)), ("newest", range(400))])
def test_the_oldest_or_the_newest_are_dropped_as_the_app_has_chosen(
    drop: str, kept_numbers: range, agent: FakeAgent, path: Path
) -> None:
    handler = SocketHandler(str(path), backlog="256KiB", close_timeout=PATIENCE, drop=drop)
    log = logger_of(handler)
    for number in range(3000):
        log.info("%d", number)
    with agent:
        handler.close()
        found = numbers(agent)
    assert found == sorted(found)
    assert set(kept_numbers) < set(found)
    assert len(found) + handler.dropped == 3000


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_records_at_or_above_keep_level_are_dropped_last_and_keep_their_place(drop: str, agent: FakeAgent, path: Path) -> None:
    handler = SocketHandler(str(path), backlog="256KiB", close_timeout=PATIENCE, drop=drop, keep_level="ERROR")
    log = logger_of(handler)
    for number in range(3000):
        log.log(logging.ERROR if number % 30 == 0 else logging.WARNING, "%d", number)
    with agent:
        handler.close()
        found = numbers(agent)
    assert set(range(0, 3000, 30)) < set(found)
    assert found == sorted(found)
    assert len(found) + handler.dropped == 3000 > len(found)


@pytest.mark.parametrize(("drop", "first"), [("oldest", 1), ("newest", 0)])
def test_a_ring_of_records_to_keep_is_bounded_too(drop: str, first: int) -> None:
    ring = Ring(100, drop)
    for number in range(6):
        ring.put(Kept([48 + number] * 20))
    ring.put(b"x" * 20)
    ring.make_room()
    assert (ring.size, ring.dropped, len(ring)) == (100, 2, 5)
    assert ring.take(20) == b"%d" % first * 20
    ring.recount()
    assert (ring.size, ring.under_way) == (100, 20)


def test_what_would_get_a_number_and_never_arrive_or_is_larger_than_the_ring_is_dropped_at_once() -> None:
    ring = Ring(100)
    for record in (b"", b"x" * 101, b"x" * 100):
        ring.put(record)
    assert (ring.size, ring.dropped, len(ring)) == (100, 2, 1)


# Errors


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


CIRCLE: dict[str, Any] = {"name": "circle"}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize("schema", ["logstash", "ecs", "otel"])
@pytest.mark.parametrize(
    ("message", "args", "extra"),
    [
        ("%d %d", (1,), {}),
        ("%d", ("x",), {}),
        ("%s", (Unprintable(),), {}),
        (Unprintable(), (), {}),
        ("\ud800 %s", ("\udfff",), {"\ud801": "\udc80"}),
        ("m", (), {"x": math.nan, "y": math.inf}),
        ("m", (), {"x": 10**6000}),
        ("m", (), {"x": b"\xff\0"}),
        ("m", (), {"x": CIRCLE}),
        ("m", (), {"x": {1: 2, None: 3, (4, 5): 6, Unprintable(): 7}}),
        ("m", (), {"x": {Unprintable(), "a"}}),
        ("m", (), {"x": Unprintable()}),
        ("a\nb\r\nc\u2028d", (), {}),
        ({"x": Unprintable()}, (), {}),
        (None, (), {}),
    ],
    ids=[
        "too few arguments",
        "argument of the wrong type",
        "argument without text",
        "message without text",
        "lone surrogates",
        "nan and infinity",
        "huge integer",
        "bytes",
        "circle",
        "keys that are not strings",
        "set",
        "extra without text",
        "line ends",
        "dict",
        "none",
    ],
)
def test_a_record_that_is_hard_to_write_still_arrives_as_one_line(
    schema: str, message: Any, args: tuple[Any, ...], extra: dict[str, Any], agent: FakeAgent, path: Path, capsys: Any
) -> None:
    handler = SocketHandler(str(path), schema=schema, close_timeout=PATIENCE)
    with agent:
        logger_of(handler).error(message, *args, extra=extra)
        handler.close()
        assert [type(strict(line)) for line in agent.records] == [dict]
        assert handler.dropped == 0


def test_a_record_with_wrong_arguments_says_what_is_wrong_and_is_shown_on_stderr_too(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with agent:
        log.info("paid %d for %s", "three", Unprintable())
        handler.flush()
        record = strict(agent.records[0])
        assert record["message"] == "paid %d for %s ('three', <unprintable Unprintable>)"
        assert record["logging_error"].startswith("TypeError: %d format")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_nothing_is_shown_when_raise_exceptions_is_off(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with agent:
        log.info("%d", "three")
        agent.until_records(1)
    assert capsys.readouterr().err == ""


def test_a_formatter_that_fails_costs_no_record(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger, capsys: Any
) -> None:
    class Broken(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise LookupError("no such thing")

    handler.setFormatter(Broken())
    with agent:
        try:
            raise KeyError("inner")
        except KeyError:
            log.exception("paid %d", 3)
        handler.flush()
    record = strict(agent.records[0])
    assert record["message"] == "paid %d (3,)"
    assert record["logging_error"] == "LookupError: no such thing"
    assert record["exception"][-1] == "KeyError: 'inner'\n"


def test_a_stderr_that_is_closed_is_no_error_to_the_app(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    with agent:
        log.info("%d", "three")
        handler.flush()
        assert agent.messages() == ["%d ('three',)"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_goes_through(kind: type[BaseException], log: logging.Logger) -> None:
    class Interrupting:
        def __str__(self) -> str:
            raise kind

    with pytest.raises(kind):
        log.info("%s", Interrupting())


def test_the_kafka_handler_raises_interrupts_through_and_gives_all_else_to_handle_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising:
        def __init__(self, kind: type[BaseException]) -> None:
            self.kind = kind

        def __str__(self) -> str:
            raise self.kind

    handler = KafkaLoggingHandler("h1:9092", "orders", address=str(path), close_timeout=0.0)
    heard: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", heard.append)
    log = logger_of(handler)
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind):
            log.info("%s", Raising(kind))
    log.info("%s", Raising(LookupError))
    assert len(heard) == 1
    handler.close()


def test_what_is_logged_while_a_record_is_logged_arrives_too(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    class Talkative:
        def __str__(self) -> str:
            log.info("inner")
            return "outer"

    with agent:
        log.info("%s", Talkative())
        handler.flush()
        assert set(agent.messages()) == {"inner", "outer"}
        assert handler.dropped == 0


def test_logging_without_end_while_a_record_is_logged_comes_to_an_end_and_is_counted(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    class Recursive:
        def __str__(self) -> str:
            log.info("%s", self)
            return "text"

    with agent:
        log.info("%s", Recursive())
        handler.flush()
        assert set(agent.messages()) == {"text"}
        assert handler.dropped == agent.greetings[-1]["dropped"] > 0


def test_an_app_whose_stderr_is_a_logger_gets_no_recursion(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ToLog:
        def write(self, text: str) -> None:
            log.error("%d", text)  # wrong once more

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stderr", ToLog())
    with agent:
        log.info("%d", "three")
        handler.flush()
    assert any("three" in message for message in agent.messages())


@pytest.mark.parametrize("wrong", ["missing", "no directory", "stale", "a file", "a directory", "too long", "another kind"])
def test_no_kind_of_missing_agent_is_an_error_to_the_app(wrong: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if wrong == "another kind" else socket.SOCK_STREAM)
    address = path
    if wrong in ("stale", "another kind"):
        listening.bind(str(path))
    if wrong == "no directory":
        address = path / "deeper"
    elif wrong == "a file":
        path.write_text("")
    elif wrong == "a directory":
        path.mkdir()
    elif wrong == "too long":
        address = path.with_name("x" * 150)
    handler = SocketHandler(str(address), close_timeout=0.05)
    log = logger_of(handler)
    for number in range(100):
        log.info("%d", number)
    handler.flush()
    handler.close()
    listening.close()
    assert len(handler._session.ring) == 100
    assert capsys.readouterr().err == ""


def test_a_connection_the_kernel_has_no_room_for_does_not_block(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        handlers = [SocketHandler(str(path), close_timeout=0.0) for _ in range(5)]
        for handler in handlers:
            logger_of(handler).info("waiting")
        assert any(handler.sock is None for handler in handlers)
        for handler in handlers:
            handler.close()


EVERY = 7
"""Of so many instructions one is interrupted, starting anywhere; 1 takes a minute and has been done."""
where: list[Any] = []
"""Function and line of the last interrupt."""


def run_with_interrupt(emit: Callable[[], None], at: int) -> int:
    """Call `emit` with KeyboardInterrupt raised before the instruction number `at` within our modules; how many ran."""
    files = {module.__file__ for module in (forwarder.handler, forwarder.ring, forwarder.session, forwarder.turns)}
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == at:
                where[:] = [frame.f_code.co_name, frame.f_lineno]
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        emit()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket interrupted before it had an owner
@pytest.mark.parametrize("state", ["connected", "away", "reconnecting", "acknowledged"])
def test_an_interrupt_at_any_instruction_loses_no_other_record(state: str, agent: FakeAgent, path: Path) -> None:
    agent.start()
    at = random.randint(1, EVERY)
    finished = False
    while not finished:
        handler = SocketHandler(str(path), close_timeout=PATIENCE)
        log = logger_of(handler)
        seen = len(agent.records)
        log.info("%d before", at)
        agent.until_records(seen + 1)
        if state == "acknowledged":
            handler._session._read_at = 0
        elif state != "connected":
            assert handler.sock is not None
            handler.sock.shutdown(socket.SHUT_RDWR)
            if state == "away":
                handler.address = "/nowhere/at/all"
        steps = run_with_interrupt(partial(log.info, "interrupted"), at)
        finished = steps < at
        handler.address = str(path)
        handler.retryTime = None
        log.info("%d after", at)
        handler.flush()
        found = Counter(agent.messages()[seen:])
        assert found[f"{at} after"], (state, at, where)
        assert found[f"{at} before"], (state, at, where)
        assert agent.gaps == []
        assert len(handler._session.ring) == 0, (state, at, where)
        handler.close()
        at += EVERY
    assert steps > 100


def test_a_signal_handler_that_logs_at_any_time_loses_nothing(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    signals = 0

    def on_alarm(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        log.info("signal")

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with agent:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
            for _ in range(3000):
                log.info("plain")
            signal.setitimer(signal.ITIMER_REAL, 0)
            handler.flush()
            found = Counter(agent.messages())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert found["plain"] == 3000
    assert signals > 0
    assert found["signal"] + handler.dropped == signals


# Threads


def test_records_of_many_threads_arrive_once_each_and_in_each_threads_order(agent: FakeAgent, path: Path) -> None:
    handler = SocketHandler(str(path), close_timeout=PATIENCE)
    log = logger_of(handler)

    def work(thread: int) -> None:
        for number in range(200):
            log.info("%d %d", thread, number)

    with agent:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        handler.close()
    found = [tuple(map(int, message.split())) for message in agent.messages()]
    for number in range(16):
        assert [entry[1] for entry in found if entry[0] == number] == list(range(200))
    assert len(found) == 3200


def test_a_thread_that_is_sending_holds_up_no_other(agent: FakeAgent, path: Path) -> None:
    sending, go_on = threading.Event(), threading.Event()

    class Slow(socket.socket):
        def send(self, *args: Any) -> int:
            sending.set()
            go_on.wait(PATIENCE)
            return super().send(*args)

    class SlowHandler(SocketHandler):
        def makeSocket(self, timeout: float = 1) -> socket.socket:
            return Slow(fileno=super().makeSocket(timeout).detach())

    handler = SlowHandler(str(path), close_timeout=PATIENCE)
    log = logger_of(handler)
    with agent:
        other = threading.Thread(target=log.info, args=("first",))
        other.start()
        assert sending.wait(PATIENCE)
        log.info("second")  # returns, or the test hangs: nobody else sets go_on
        go_on.set()
        other.join()
        handler.close()
        assert agent.messages() == ["first", "second"]


@contextmanager
def standing_still(path: Path, backlog: str) -> Iterator[SocketHandler]:
    """A handler one thread of which is at work, having logged "first", and stands still until the block ends."""
    standing, go_on = threading.Event(), threading.Event()

    class Standing(SocketHandler):
        def makeSocket(self, timeout: float = 1) -> socket.socket:
            standing.set()
            go_on.wait(PATIENCE)
            return super().makeSocket(timeout)

    handler = Standing(str(path), backlog=backlog, close_timeout=PATIENCE)
    other = threading.Thread(target=logger_of(handler).info, args=("first",))
    other.start()
    try:
        assert standing.wait(PATIENCE)
        yield handler
    finally:
        go_on.set()
        other.join()
        handler.close()


def bytes_left(handler: SocketHandler) -> int:
    return sum(len(record) for _, record in handler._inbox)


@pytest.mark.parametrize("sizes", [(1,), (20_000,), (1, 40_000), (40_000, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(("level", "backlogs"), [(logging.INFO, 1), (logging.ERROR, 2)], ids=["info", "error"])
def test_what_waits_is_bounded_also_while_the_thread_that_should_send_it_stands_still(
    level: int, backlogs: int, sizes: tuple[int, ...], agent: FakeAgent, path: Path
) -> None:
    with agent:
        with standing_still(path, "64KiB") as handler:
            log = logger_of(handler)
            for number in range(1000):
                log.log(level, "%d %s", number, "x" * sizes[number % len(sizes)])
                assert bytes_left(handler) <= backlogs * handler.backlog
            assert bytes_left(handler) > (backlogs - 0.5) * handler.backlog
        assert handler.dropped > 500
        assert len(agent.records) + handler.dropped == 1001
        assert agent.greetings[-1]["dropped"] == handler.dropped


def test_a_large_record_is_not_dropped_as_long_as_there_is_room_for_it(agent: FakeAgent, path: Path) -> None:
    with agent:
        with standing_still(path, "1MiB") as handler:
            log = logger_of(handler)
            for _ in range(150):
                log.info("small")
            log.info("large %s", "x" * 100_000)
        assert handler.dropped == 0
        assert agent.messages()[-1].startswith("large")


def test_records_to_keep_have_room_where_no_other_has_any(agent: FakeAgent, path: Path) -> None:
    with agent:
        with standing_still(path, "64KiB") as handler:
            log = logger_of(handler)
            for number in range(1000):
                log.info("%d", number)
            for number in range(30):
                log.error("kept %d", number)
            log.error("large %s", "x" * 5_000)
        found = agent.messages()
        assert [message for message in found if message.startswith("kept")] == [f"kept {number}" for number in range(30)]
        assert found[-1].startswith("large")
        assert handler.dropped > 900


def test_a_wrong_count_of_what_waits_is_right_again_with_the_next_records(agent: FakeAgent, path: Path) -> None:
    with agent:
        with standing_still(path, "64KiB") as handler:
            handler._arrived += 10 * handler.backlog  # as an interrupt in the middle of `send` may leave it
            logger_of(handler).info("second")
        logger_of(handler).info("third")
        handler.close()
        assert (handler._arrived, handler.dropped) == (handler._taken, 0)
        assert agent.messages() == ["first", "second", "third"]


def test_threads_that_log_as_fast_as_they_can_let_the_one_that_sends_go_on(path: Path) -> None:
    handler = SocketHandler(str(path), backlog="1MiB", close_timeout=0.0)
    log = logger_of(handler)
    most = [0] * 32

    def work(thread: int) -> None:
        for _ in range(1000):
            log.info("%s", "x" * 100)
            most[thread] = max(most[thread], len(handler._inbox))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    assert max(most) < 1000  # of 32,000
    assert handler.dropped + len(handler._session.ring) == 32_000


def test_threads_of_a_process_that_was_forked_without_telling_python_begin_it_once(agent: FakeAgent, path: Path) -> None:
    handler = SocketHandler(str(path), close_timeout=PATIENCE)
    log = logger_of(handler)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with agent:
            for fork in range(100):
                handler._pid = -1
                gate = threading.Barrier(4)

                def work(thread: int, fork: int = fork, gate: threading.Barrier = gate) -> None:
                    gate.wait()
                    log.info("%d", 4 * fork + thread)

                threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                handler.flush()
            handler.close()
    finally:
        sys.setswitchinterval(before)
    assert sorted(numbers(agent)) == list(range(400))
    assert agent.gaps == []


# Descriptors that the app closes, as daemons do


CLOSING = """
import logging, os, socket, sys, time, forwarder
handler = forwarder.SocketHandler(sys.argv[1], close_timeout=20)
log = logging.getLogger()
log.addHandler(handler)
log.warning("before")
handler.flush()
os.closerange(3, 100)
opened = os.open(sys.argv[1] + ".file", os.O_CREAT | os.O_RDWR) if sys.argv[2] == "file" else -1
ours, theirs = socket.socketpair() if sys.argv[2] == "socket" else (None, None)
time.sleep(0.01)  # what was there a moment ago is trusted
log.warning("after")
handler.flush()
if opened > 0:
    assert os.write(opened, b"mine") == 4
    assert os.pread(opened, 100, 0) == b"mine"
if ours:
    ours.sendall(b"mine")
    assert theirs.recv(100) == b"mine"
"""


@pytest.mark.parametrize("used_again", ["not", "file", "socket"])
def test_a_descriptor_that_the_app_has_closed_is_left_alone_and_nothing_is_lost(
    used_again: str, agent: FakeAgent, path: Path
) -> None:
    with agent:
        assert run(CLOSING, str(path), used_again).stderr == ""
        assert agent.messages() == ["before", "after"]
        assert len({greeting["session"] for greeting in agent.greetings}) == 1


# Closing


def test_close_and_flush_take_no_longer_than_close_timeout_together(agent: FakeAgent, path: Path) -> None:
    handler = SocketHandler(str(path), close_timeout=0.3)
    agent.set(acknowledges=False)
    with agent:
        logger_of(handler).info("never acknowledged")
        before = time.monotonic()
        handler.flush()
        handler.close()
        handler.close()
        handler.flush()
        assert 0.3 <= time.monotonic() - before < 0.6


def test_a_closed_handler_opens_again_when_used_and_remembers_what_is_not_acknowledged(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    handler.close_timeout = 0.01
    log.info("0")
    handler.close()
    with agent:
        handler.close_timeout = PATIENCE
        handler.retryTime = None
        log.info("1")
        handler.close()
        assert numbers(agent) == [0, 1]
        log.info("2")
        handler.close()
        assert numbers(agent) == [0, 1, 2]


def test_close_leaves_no_thread_and_no_descriptor(agent: FakeAgent, path: Path) -> None:
    with agent:
        before = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))  # noqa: PTH208
        handler = SocketHandler(str(path), close_timeout=PATIENCE)
        logger_of(handler).info("0")
        agent.until(lambda: agent.accepted == 1)
        assert len(os.listdir("/proc/self/task")) == before[1] + 1  # noqa: PTH208
        handler.close()
        accepted = 1  # the agent's own end, in this process too
        agent.until(lambda: len(os.listdir("/proc/self/fd")) <= before[0] + accepted)  # noqa: PTH208
        agent.until(lambda: len(os.listdir("/proc/self/task")) == before[1])  # noqa: PTH208


def test_retry_time_keeps_its_meaning(agent: FakeAgent, handler: SocketHandler, log: logging.Logger) -> None:
    assert handler.retryTime is None
    log.info("0")
    assert handler.retryTime is not None
    assert time.time() - 1 < handler.retryTime <= time.time() + handler.retryMax
    handler.retryTime = time.time() + 3600
    with agent:
        log.info("1")
        assert handler.sock is None
        handler.retryTime = None
        log.info("2")
        agent.until_records(3)


# Settings


def test_the_environment_gives_defaults(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SocketHandler().address == "/run/forwarder/forwarder.sock"
    assert SocketHandler().app is None
    monkeypatch.setenv("FORWARDER_SOCKET", str(path))
    monkeypatch.setenv("FORWARDER_APP", "from-environment")
    assert (SocketHandler().address, SocketHandler().app) == (str(path), "from-environment")
    given = SocketHandler("/given", "app")
    assert (given.address, given.app) == ("/given", "app")


@pytest.mark.parametrize(
    "settings",
    [
        {"app": ""},
        {"app": "a\nb"},
        {"app": "x" * 201},
        {"topic": ""},
        {"topic": 7},
        {"key": "\0"},
        {"backlog": "0"},
        {"backlog": "-1"},
        {"backlog": "8 parsecs"},
        {"schema": "xml"},
        {"drop": "all"},
        {"keep_level": "LOUD"},
    ],
    ids=str,
)
def test_a_setting_the_agent_would_refuse_is_refused_at_once(settings: dict[str, Any]) -> None:
    if settings == {"app": ""}:
        assert SocketHandler(**settings).app is None
        return
    with pytest.raises(ValueError):
        SocketHandler(**settings)


def test_a_size_is_a_number_of_bytes_or_has_a_unit() -> None:
    assert [parse_size(size) for size in (8192, "8192", "8KiB", "2 MiB", "1GiB", "1kb")] == [
        8192,
        8192,
        8192,
        2 << 20,
        1 << 30,
        1000,
    ]


def test_a_level_is_a_number_or_a_name() -> None:
    logging.addLevelName(25, "Notice")
    assert [parse_level(value) for value in (30, "WARNING", "error", "Notice")] == [30, 30, 40, 25]
    with pytest.raises(ValueError, match="keep_level is 'LOUD'"):
        parse_level("LOUD")


def test_file_config_and_dict_config_build_the_handlers(agent: FakeAgent, path: Path, tmp_path: Path) -> None:
    (tmp_path / "logging.conf").write_text(
        f"""
[loggers]
keys=root
[handlers]
keys=ours,kafka
[formatters]
keys=logstash,plain
[logger_root]
level=INFO
handlers=ours,kafka
[handler_ours]
class=forwarder.SocketHandler
formatter=plain
args=({str(path)!r}, 'from-file')
kwargs={{'close_timeout': {PATIENCE}}}
[handler_kafka]
class=forwarder.KafkaLoggingHandler
formatter=logstash
args=('h1:9092, h2:9092', 'orders')
kwargs={{'key': 'k', 'address': {str(path)!r}, 'close_timeout': {PATIENCE}}}
[formatter_logstash]
class=forwarder.LogstashFormatterV1
format={{"extra": {{"env": "test"}}}}
[formatter_plain]
format=%(levelname)s %(message)s
"""
    )
    script = f"""
import logging, logging.config, sys
if sys.argv[1] == "file":
    logging.config.fileConfig({str(tmp_path / "logging.conf")!r})
else:
    logging.config.dictConfig({{
        "version": 1,
        "formatters": {{"ecs": {{"()": "forwarder.JSONFormatter", "schema": "ecs", "extra": {{"service": {{"name": "s"}}}}}}}},
        "handlers": {{"ours": {{"class": "forwarder.SocketHandler", "formatter": "ecs", "address": {str(path)!r}}}}},
        "root": {{"level": "INFO", "handlers": ["ours"]}},
    }})
logging.getLogger("a").info("paid %d", 3)
logging.getLogger("kafka.client").info("of a child")
logging.getLogger("kafka").info("left out by one")
"""
    with agent:
        run(script, "file")
        lines = [strict(line) for line in agent.records]
        assert sorted(line["message"] for line in lines) == [
            "INFO left out by one",
            "INFO of a child",
            "INFO paid 3",
            "of a child",
            "paid 3",
        ]
        assert {line.get("env") for line in lines} == {None, "test"}
        by_topic = {greeting.get("topic"): greeting for greeting in agent.greetings}
        assert by_topic["orders"]["key"] == "k"
        assert by_topic[None]["app"] == "from-file"
        run(script, "dict")
        assert [strict(line)["service"] for line in agent.records[5:]] == [{"name": "s"}] * 3


def test_a_plain_formatters_text_becomes_the_message_of_one_line(
    agent: FakeAgent, handler: SocketHandler, log: logging.Logger
) -> None:
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    with agent:
        log.info("two\nlines")
        handler.setFormatter(logging.Formatter('{"own": "%(message)s"}'))
        log.info("object \ud800")
        log.info('no "object')
        handler.setFormatter(None)
        log.info("none")
        handler.flush()
    first, second, third, fourth = map(strict, agent.records)
    assert first["message"] == "INFO two\nlines"
    assert second == {"own": "object ?"}
    assert third["message"] == '{"own": "no "object"}'
    assert fourth["message"] == "none"


def test_a_filter_may_drop_or_replace_a_record(agent: FakeAgent, handler: SocketHandler, log: logging.Logger) -> None:
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    with agent:
        log.info("secret")
        log.info("open")
        handler.flush()
        assert agent.messages() == ["open"]


def test_the_kafka_handlers_options_of_a_kafka_client_are_accepted() -> None:
    handler = KafkaLoggingHandler("h1:9092", "orders", timeout_secs=5, batch_size=10, address="/given", app="shop")
    assert (handler.topic, handler.key, handler.address, handler.app) == ("orders", None, "/given", "shop")
    assert KafkaLoggingHandler("h1:9092", "orders", 10).key is None
    assert KafkaLoggingHandler("h1:9092", "orders", b"k").key == "k"


def test_our_own_formatters_are_taken_as_they_are(agent: FakeAgent, handler: SocketHandler, log: logging.Logger) -> None:
    with agent:
        for formatter in (JSONFormatter("otel"), LogstashFormatterV1()):
            handler.setFormatter(formatter)
            log.info("m", extra={"x": 1})
        handler.flush()
        assert strict(agent.records[0])["Attributes"]["x"] == strict(agent.records[1])["x"] == 1


# Processes


def run(
    script: str, *arguments: str, python: tuple[str, ...] = (sys.executable,), **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*python, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


THREE_LINES = (
    "import logging, forwarder\nlogging.basicConfig(level=20, handlers=[forwarder.SocketHandler()])\nlogging.info('hello')\n"
)


def test_the_record_of_a_three_line_script_arrives(agent: FakeAgent, path: Path) -> None:
    with agent:
        assert run(THREE_LINES, FORWARDER_SOCKET=str(path), FORWARDER_APP="script").stderr == ""
        assert agent.messages() == ["hello"]
        assert agent.greetings[0]["app"] == "script"


def test_a_script_that_ends_at_once_after_logging_has_sent_its_record(agent: FakeAgent, path: Path) -> None:
    with agent:
        run(THREE_LINES + "import os; os._exit(0)", FORWARDER_SOCKET=str(path))
        agent.until_records(1)


@pytest.mark.parametrize("state", ["away", "hung"])
def test_a_script_ends_in_time_without_a_working_agent(state: str, agent: FakeAgent, path: Path) -> None:
    agent.set(reads=False)
    if state == "hung":
        agent.start()
    script = f"""{THREE_LINES}
import atexit, time
for number in range(20000): logging.info("%d", number)
start = time.monotonic()
def at_exit():
    logging.shutdown()
    logging.shutdown()
    print(time.monotonic() - start)
atexit.register(at_exit)
"""
    done = run(script, FORWARDER_SOCKET=str(path))
    assert done.stderr == ""
    assert 1.9 <= float(done.stdout) < 3.5


def test_a_script_may_log_until_its_last_breath(agent: FakeAgent, path: Path) -> None:
    script = f"""
import atexit
atexit.register(lambda: logging.info("after shutdown"))  # before logging is imported, so that it runs after logging.shutdown
{THREE_LINES}
class Last:
    def __init__(self): self.info = logging.info
    def __del__(self): self.info("from a destructor")
last = Last()
import threading
threading.Thread(target=lambda: logging.info("from a thread")).start()
"""
    with agent:
        assert run(script, FORWARDER_SOCKET=str(path)).stderr == ""
        agent.until(lambda: {"hello", "from a thread", "after shutdown", "from a destructor"} <= set(agent.messages()))


FORKING = f"""{THREE_LINES}
import os, sys
logging.info("parent before")
pid = os.fork()
if not pid:
    logging.info("child")
    logging.shutdown()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
logging.info("parent after")
"""


def test_a_forked_child_has_a_session_of_its_own_and_sends_nothing_of_its_parents(agent: FakeAgent, path: Path) -> None:
    agent.set(acknowledges=False)
    with agent:
        child = threading.Thread(target=run, args=(FORKING,), kwargs={"FORWARDER_SOCKET": str(path)})
        child.start()
        agent.until(lambda: "parent after" in agent.messages())
        agent.set(acknowledges=True)
        child.join()
        assert sorted(agent.messages()) == sorted(["hello", "parent before", "child", "parent after"])
        assert agent.arrivals == 4
        assert len(agent.sessions) == 2
        assert sorted(agent.sessions.values()) == [1, 3]


def test_forks_in_the_middle_of_the_traffic_of_many_threads_lose_nothing(agent: FakeAgent, path: Path) -> None:
    script = f"""{THREE_LINES}
import os, threading, warnings
warnings.simplefilter("ignore")
go_on = True
sent = [0] * 4
def work(number):
    while go_on or sent[number] < 50:
        logging.info("thread")
        sent[number] += 1
        if not sent[number] % 100: logging.getLogger().handlers[0].flush()
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for number in range(30):
    pid = os.fork()
    if not pid:
        logging.info("child %d", number)
        logging.shutdown()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
go_on = False
for thread in threads: thread.join()
logging.shutdown()
assert logging.getLogger().handlers[0].dropped == 0
print(sum(sent))
"""
    with agent:
        done = run(script, FORWARDER_SOCKET=str(path))
        found = Counter(agent.messages())
    assert found["thread"] == int(done.stdout)
    assert [found[f"child {number}"] for number in range(30)] == [1] * 30
    assert agent.gaps == []


def test_handlers_may_be_made_while_the_process_forks(path: Path) -> None:
    script = """
import os, sys, threading, time, warnings, forwarder
warnings.simplefilter("ignore")
sys.setswitchinterval(1e-6)
go_on = True
def make():
    kept = []
    while go_on:
        kept.append(forwarder.SocketHandler("/nowhere"))
        if len(kept) > 10: kept.clear()
        time.sleep(0)
thread = threading.Thread(target=make)
thread.start()
for _ in range(100):
    if not os.fork(): os._exit(0)
    os.wait()
go_on = False
thread.join()
"""
    assert run(script).stderr == ""


@pytest.mark.parametrize("moment", ["SocketHandler.makeSocket", "Session.begin"])
def test_a_fork_in_the_middle_of_connecting_gives_the_child_nothing_of_its_parents(
    moment: str, agent: FakeAgent, path: Path
) -> None:
    script = """
import logging, os, sys, forwarder
from forwarder.handler import Session, SocketHandler
pid = None
def forking(method):  # as a signal handler might, at that moment
    def then_fork(*args):
        global pid
        result = method(*args)
        if pid is None: pid = os.fork()
        return result
    return then_fork
owner, name = sys.argv[2].split(".")
setattr(globals()[owner], name, forking(getattr(globals()[owner], name)))
descriptors = len(os.listdir("/proc/self/fd"))
handler = SocketHandler(sys.argv[1], close_timeout=20)
log = logging.getLogger()
log.addHandler(handler)
log.warning("parent")
log.warning("parent" if pid else "child")
logging.shutdown()
assert len(os.listdir("/proc/self/fd")) == descriptors
if pid: assert os.waitpid(pid, 0)[1] == 0
os._exit(0)
"""
    with agent:
        assert run(script, str(path), moment).stderr == ""
        assert Counter(agent.messages()) == {"parent": 2, "child": 1}
        assert agent.arrivals == 3
        assert agent.gaps == []


def test_what_was_not_acknowledged_at_a_fork_is_sent_again_without_another_record(agent: FakeAgent, path: Path) -> None:
    """From 3.13 on it waits for the next record: see `SocketHandler._in_parent`."""
    python = next(path for version, path in PYTHONS if version in {"3.8", "3.9", "3.10", "3.11", "3.12"})
    agent.set(acknowledges=False)
    agent.start()
    child = fork_and_wait(python, path)
    agent.until_records(6)
    agent.stop()
    agent.sessions.clear()
    agent.set(acknowledges=True)
    with agent:
        agent.until_records(12)
        assert child.communicate(b"")[1] == b""
    assert agent.messages()[:6] == agent.messages()[6:]


def test_a_signal_that_the_app_blocks_stays_blocked(path: Path) -> None:
    script = f"""{THREE_LINES}
import os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
def mask(task):
    blocked = next(line for line in open(f"/proc/self/task/{{task}}/status") if line.startswith("SigBlk"))
    return {{number for number in signal.valid_signals() if int(blocked.split()[1], 16) >> number - 1 & 1}}
helper, = set(os.listdir("/proc/self/task")) - {{str(os.getpid())}}
end = time.monotonic() + 10
while not (signal.SIGTERM in (blocked := mask(helper)) and signal.SIGSEGV not in blocked):
    assert time.monotonic() < end, blocked  # a thread that has not begun blocks all, then none, then all but faults
os.kill(os.getpid(), signal.SIGTERM)
assert signal.SIGTERM in signal.sigpending()
assert signal.sigwait([signal.SIGTERM]) == signal.SIGTERM
os._exit(0)
"""
    run(script, FORWARDER_SOCKET=str(path))


def fork_and_wait(python: str, path: Path) -> subprocess.Popen[bytes]:
    script = f"""{THREE_LINES}
import os, sys, time
for number in range(5):
    logging.info("more")
    time.sleep(0.02 * number)
    if not os.fork(): os._exit(0)
    os.wait()
print("waiting", flush=True)
sys.stdin.read()
os._exit(0)
"""
    child = subprocess.Popen(
        [python, "-W", "always", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FORWARDER_SOCKET": str(path)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"waiting\n"
    return child


def test_a_fork_is_not_warned_of_because_of_a_thread_of_ours(agent: FakeAgent, path: Path) -> None:
    newest = PYTHONS[-1][1]  # from 3.12 on a fork with more than one thread is warned of
    agent.set(acknowledges=False)
    with agent:
        assert fork_and_wait(newest, path).communicate(b"")[1] == b""


def test_what_waits_still_leaves_after_a_fork_without_another_record(agent: FakeAgent, path: Path) -> None:
    child = fork_and_wait(sys.executable, path)
    with agent:
        agent.until_records(6)
        assert child.communicate(b"")[1] == b""


def test_there_is_no_helper_in_the_master_of_uwsgi_and_one_in_its_workers(
    handler: SocketHandler, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = 0
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(worker_id=lambda: worker, mule_id=lambda: 0))
    log.info("in the master")
    assert handler._helper is None
    worker = 1
    log.info("in a worker")
    assert handler._helper is not None


# Every Python there is, with nothing installed


ESSENCE = """
import sys
sys.path.insert(0, sys.argv[1])
import logging, logging.config, os, threading
import forwarder
assert not {"msgspec", "confluent_kafka", "uvloop"} & set(sys.modules)
class Unprintable:
    def __str__(self): raise RuntimeError("no text")
    __repr__ = __str__
handler = forwarder.SocketHandler(sys.argv[2], "essence", backlog="64KiB")
log = logging.getLogger("essence")
log.setLevel("DEBUG")
log.addHandler(handler)
for number in range(1000): log.info("filler %d", number)
assert 500 < handler.dropped < 1000, handler.dropped
print("ready", flush=True)
sys.stdin.readline()
handler.flush()
logging.raiseExceptions = False
try: 1 / 0
except ZeroDivisionError: log.exception("failed")
log.info("%d", "wrong")
log.info("hard", extra={"a": float("nan"), "b": {1: Unprintable()}, "c": "\\ud800", "d": {2, 3}, "e": 10 ** 5000})
log.info("stack", stack_info=True)
threads = [threading.Thread(target=log.info, args=("thread %d", number)) for number in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
pid = os.fork()
if not pid:
    log.info("child")
    logging.shutdown()
    os._exit(0)
os.waitpid(pid, 0)
logging.config.dictConfig({"version": 1, "disable_existing_loggers": False,
    "formatters": {"v0": {"()": "forwarder.LogstashFormatter"}, "v1": {"class": "forwarder.LogstashFormatterV1"}},
    "handlers": {name: {"class": "forwarder.SocketHandler", "address": sys.argv[2], "formatter": name} for name in ("v0", "v1")},
    "root": {"level": "INFO", "handlers": ["v0", "v1"]}})
log.removeHandler(handler)
logging.getLogger("x").info("configured")
for schema in ("ecs", "otel"):
    handler = forwarder.SocketHandler(sys.argv[2], schema=schema)
    log.addHandler(handler)
    log.propagate = False
    log.info("schema")
print(handler.dropped)
"""


@pytest.mark.parametrize("python", [pytest.param(path, id=f"python{version}") for version, path in PYTHONS])
def test_an_app_needs_nothing_installed_and_no_newer_python_than_3_8(python: str, agent: FakeAgent, path: Path) -> None:
    child = subprocess.Popen(
        [python, "-S", "-I", "-W", "error", "-c", ESSENCE, str(ROOT), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    ready = child.stdout.readline()
    with agent:
        _, errors = child.communicate("go\n", timeout=60)
        assert (ready, errors, child.returncode) == ("ready\n", "", 0)
        records = [strict(line) for line in agent.records]
    messages = [record.get("message") for record in records]
    assert {"failed", "%d ('wrong',)", "hard", "stack", "child", "configured", *(f"thread {n}" for n in range(10))} <= set(
        messages
    )
    assert messages.count("child") == 1
    assert "filler 999" in messages
    assert agent.gaps == []
    assert [record["@message"] for record in records if "@message" in record] == ["configured"]
    assert [record["Body"] for record in records if "Body" in record] == ["schema"]
    assert max(greeting["dropped"] for greeting in agent.greetings) > 500


def test_at_least_one_python_was_found() -> None:
    assert PYTHONS
