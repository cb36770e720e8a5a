"""Clocks: a broker that stamps by its own or takes none that is far from it, and an agent whose clock jumps by an hour."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import await_settled, dead_letters, delivered, lines, logged, new_topic, send

pytestmark = pytest.mark.slow

HOUR = 3600


class Clock:
    """A clock that an agent goes by, some seconds away from the true one; only what tells the time of day is."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.jump(0)
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_WAIT_MS": "100",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, seconds: int) -> None:
        """Be so far ahead of the true time, or behind it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


def test_a_broker_that_stamps_records_itself_gets_them_like_any_other(kafka: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(kafka, config={"message.timestamp.type": "LogAppendTime"})
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(10_000))
    records = kafka.records(topic, expected=10_000)
    judge((record.value for record in records), {"w": 10_000}).assert_exact()
    assert all(abs(record.timestamp / 1000 - time.time()) < 60 for record in records)


@pytest.mark.parametrize(
    ("limit", "ahead"), [("message.timestamp.after.max.ms", HOUR), ("message.timestamp.before.max.ms", -HOUR)]
)
def test_records_that_a_topic_finds_too_far_from_its_time_wait_until_the_clock_is_right(
    kafka: Kafka, agent: AgentFactory, directory: Path, limit: str, ahead: int
) -> None:
    """A wrong clock is no fault of the records: they must not be set aside as refused for good. Each is refused alone, which
    takes librdkafka some 20 ms."""
    strict, other = new_topic(kafka, "-strict", config={limit: "600000"}), new_topic(kafka, "-other")
    clock = Clock(directory)
    sockets = [{"path": str(directory / name[-6:]), "app": name[-5:], "topic": name} for name in (strict, other)]
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap}, "socket": sockets}, env=clock.env)
    running.start()
    clock.jump(ahead)
    for number in range(3):
        send_to(running, 0, lines(50, first=50 * number))
        send_to(running, 1, lines(50, first=50 * number))
    eventually(lambda: delivered(running, other) >= 150, what="the app whose topic takes any time")
    eventually(lambda: logged(running, f"{strict}.*nvalid timestamp.*wait"), what="a warning that names topic and reason")
    clock.jump(0)
    await_settled(running, 60)
    for topic in (strict, other):
        verdict = judge(kafka.values(topic, expected=150), {"w": 150})
        verdict.assert_no_harm()
    assert not dead_letters(running, "trict")
    assert running.metric("forwarder_records_dead_total") == 0


def send_to(agent: Agent, socket: int, records: list[bytes]) -> None:
    table = agent.config["socket"][socket]
    send(agent, records, table["app"], path=table["path"])


def test_a_clock_that_jumps_by_an_hour_back_and_forth_costs_no_record_and_no_time(
    kafka: Kafka, agent: AgentFactory, directory: Path
) -> None:
    topic = new_topic(kafka, config={"message.timestamp.after.max.ms": str(24 * HOUR * 1000)})
    clock = Clock(directory)
    log = directory / "logs/app.log"
    log.parent.mkdir()
    running = agent(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic},
            "socket": [{"path": str(directory / "s.sock")}],
            "tail": [{"paths": [str(log)], "format": "raw"}],
        },
        env=clock.env,
    )
    running.start()
    jumps = [0, HOUR, 0, -HOUR, HOUR, -HOUR, 0]
    for number, ahead in enumerate(jumps):
        clock.jump(ahead)
        begun = time.monotonic()
        with log.open("ab") as file:
            file.writelines(line + b"\n" for line in lines(1000, "f", 1000 * number))
        send(running, lines(1000, first=1000 * number))
        eventually(lambda count=number: delivered(running) >= 2000 * (count + 1), 10, "both to be delivered")  # type: ignore[misc]
        assert time.monotonic() - begun < 5, "it took longer than it does without a jump"
        log.rename(f"{log}.{number}")
        assert running.metric("forwarder_oldest_unacked_seconds") < HOUR
    sent = 1000 * len(jumps)
    judge(kafka.values(topic, expected=2 * sent), {"w": sent, "f": sent}).assert_no_harm()
    assert len(logged(running, "the clock, which its waits go by, was set back by (3600|7200) s")) == 3
    assert running.terminate() == 0
    assert "Traceback" not in running.log()
