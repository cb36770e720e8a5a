"""Clocks: a broker that stamps by its own or takes none that is far from it, and an agent whose clock jumps by an hour."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.clock import Clock
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import await_settled, dead_letters, delivered, lines, logged, new_topic, send, up

pytestmark = pytest.mark.slow

HOUR = 3600


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
    topics = {"strict": strict, "other": other}
    sockets = [{"path": str(directory / app), "app": app, "topic": topic} for app, topic in topics.items()]
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap}, "socket": sockets}, env=clock.env)
    running.start()
    clock.set(ahead)
    for number in range(3):
        for app in topics:
            send(running, lines(50, first=50 * number), app, path=str(directory / app))
    eventually(lambda: delivered(running, other) >= 150, what="the app whose topic takes any time")
    eventually(lambda: logged(running, f"{strict}.*nvalid timestamp.*wait"), what="a warning that names topic and reason")
    clock.set(0)
    await_settled(running, 60)
    for topic in topics.values():
        judge(kafka.values(topic, expected=150), {"w": 150}).assert_no_harm()
    assert not dead_letters(running, "strict")
    assert running.metric("forwarder_records_dead_total") == 0
    assert running.metric("forwarder_producers_replaced_total") >= 1


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
        clock.set(ahead)
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
    assert running.terminate() == 0
    assert "Traceback" not in running.log()


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_a_clock_set_back_while_kafka_is_away_does_not_put_off_its_return(
    unsteady: Kafka, agent: AgentFactory, directory: Path, delivery: str
) -> None:
    """librdkafka waits by the time of day between its tries to connect: they would come an hour later."""
    topic = new_topic(unsteady)
    clock = Clock(directory)
    kafka = {"bootstrap_servers": unsteady.bootstrap, "topic": topic, "delivery": delivery}
    running = agent({"kafka": kafka}, env=clock.env)
    running.start()
    send(running, lines(1000))
    await_settled(running)
    unsteady.down()
    try:
        send(running, lines(1000, first=1000))
        eventually(lambda: not running.status()["kafka"]["connected"], what="the loss of Kafka to be seen")
        clock.set(-HOUR)
    finally:
        up(unsteady, topic)
    eventually(lambda: delivered(running) >= 2000, 10, "the rest to be delivered")
    judge(unsteady.values(topic), {"w": 2000}).assert_no_harm()
    assert logged(running, "the clock, which its waits go by, was set back by 3600 s")
