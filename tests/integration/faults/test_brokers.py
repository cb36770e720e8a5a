"""Brokers that are away, end, die, hang or move: nothing is lost, and waiting costs nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.kafka import LEADERS_MOVE_BACK, Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import (
    IMPATIENT,
    await_settled,
    delivered,
    lines,
    logged,
    new_topic,
    no_loss,
    send,
    source,
    up,
)

pytestmark = pytest.mark.slow


def test_what_came_while_kafka_was_not_there_yet_is_delivered_when_it_comes(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    unsteady.down()
    try:
        running.start()
        send(running, lines(5000))
        assert not running.status()["kafka"]["connected"]
        assert running.metric("forwarder_kafka_connected") == 0
        running.get("/readyz")
    finally:
        up(unsteady, topic)
    judge(unsteady.values(topic, expected=5000), {"w": 5000}).assert_exact()
    eventually(lambda: running.metric("forwarder_kafka_connected") == 1, what="Kafka to count as connected")


def test_while_kafka_is_away_memory_stays_flat_and_the_processor_idle_and_nothing_is_lost(
    unsteady: Kafka, agent: AgentFactory
) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(2000, fill=200))
    await_settled(running)
    before = running.rss()
    try:
        for turn in range(1, 10):
            if turn == 4:
                unsteady.down()
            send(running, lines(2000, first=turn * 2000, fill=200))
        # What is on its way when Kafka goes ends its first tries.
        eventually(lambda: not running.status()["kafka"]["connected"], what="the loss of Kafka to be seen")
        send(running, lines(40_000, first=20_000, fill=200))
        used, idle = running.cpu(), 12
        time.sleep(idle)
        used = running.cpu() - used
        grown = running.rss() - before
    finally:
        up(unsteady, topic)
    returned, already = time.monotonic(), delivered(running)
    eventually(lambda: delivered(running) > already or delivered(running) == 60_000, what="the first delivery")
    seen = time.monotonic() - returned
    verdict = judge(unsteady.values(topic, expected=60_000), {"w": 60_000})
    no_loss(verdict)
    print(f"{used / idle:.2%} of a core; Kafka's return was seen after {seen:.2f} s")
    assert used < 0.01 * idle, f"{used:.2f} s of processor time in {idle} s with nothing to do"
    assert grown < 16 << 20, f"{grown >> 20} MiB more memory"
    assert seen < 3, f"Kafka's return was seen after {seen:.1f} s"


def test_a_broker_killed_and_started_again_loses_nothing(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    try:
        for turn in range(10):
            if turn == 5:
                unsteady.kill()
            send(running, lines(2000, first=turn * 2000))
    finally:
        up(unsteady, topic)
    verdict = judge(unsteady.values(topic, expected=20_000), {"w": 20_000})
    # One broker alone may forget what it acknowledged only when the machine dies, not when the process does.
    no_loss(verdict)


def test_what_is_in_flight_when_first_kafka_and_then_the_agent_dies_is_sent_again(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(1000))
    await_settled(running)
    unsteady.kill()
    try:
        for turn in range(1, 5):
            send(running, lines(1000, first=turn * 1000))
        eventually(lambda: source(running, "shop")["lag_bytes"] == 0, what="all to be in flight")
        # Longer than it takes until positions are saved: they must not have moved.
        time.sleep(1)
        running.kill()
    finally:
        up(unsteady, topic)
    running.start()
    judge(unsteady.values(topic, expected=5000), {"w": 5000}).assert_exact()


def test_a_broker_that_hangs_until_requests_and_connections_time_out_costs_nothing_but_time(
    unsteady: Kafka, agent: AgentFactory
) -> None:
    """Frozen for 15 s. What two minutes would outlast is librdkafka's patience with requests, 60 s, with new connections, 10 s,
    and with connecting, 30 s: here all three are 3 s, so the same happens, more than once."""
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic, "properties": IMPATIENT}})
    running.start()
    send(running, lines(1000))
    unsteady.freeze()
    try:
        for turn in range(1, 16):
            send(running, lines(1000, first=1000 * turn))
            time.sleep(1)
        running.get("/healthz")
        assert logged(running, "Timed out"), "no request timed out"
    finally:
        unsteady.thaw()
    judge(unsteady.values(topic, expected=16_000), {"w": 16_000}).assert_exact()
    await_settled(running)


# Three brokers


@pytest.fixture(scope="module")
def three() -> Iterator[Kafka]:
    """Three brokers, which tests leave running."""
    with tempfile.TemporaryDirectory(prefix="fwd-kafka-") as directory:
        cluster = Kafka(Path(directory), nodes=3, extra=LEADERS_MOVE_BACK)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def safe_topic(cluster: Kafka) -> str:
    return new_topic(cluster, partitions=6, config={"min.insync.replicas": "2"})


def test_a_leader_that_is_killed_in_mid_stream_hands_over_and_nothing_is_lost(three: Kafka, agent: AgentFactory) -> None:
    topic = safe_topic(three)
    running = agent({"kafka": {"bootstrap_servers": three.bootstrap, "topic": topic}})
    running.start()
    for turn in range(40):
        if turn == 10:
            three.kill(2)
        if turn == 30:
            three.up(2)
        send(running, lines(2000, first=turn * 2000))
        time.sleep(0.1)
    no_loss(judge(three.values(topic, expected=80_000), {"w": 80_000}))
    await_settled(running)


def test_leaderships_that_move_to_other_brokers_and_back_lose_and_repeat_nothing(three: Kafka, agent: AgentFactory) -> None:
    topic = safe_topic(three)
    running = agent({"kafka": {"bootstrap_servers": three.bootstrap, "topic": topic}})
    running.start()
    sent = 0

    def send_until(condition: Callable[[], bool]) -> None:
        nonlocal sent
        while not condition():
            send(running, lines(1000, first=sent))
            sent += 1000
            time.sleep(0.05)

    send_until(lambda: sent >= 10_000)
    three.down(3)
    assert not three.leaders_preferred(topic), "no leadership has moved"
    send_until(lambda: sent >= 20_000)
    three.up(3)
    begun = time.monotonic()
    send_until(lambda: three.leaders_preferred(topic) or time.monotonic() - begun > 60)
    assert three.leaders_preferred(topic), "the leaderships did not move back"
    judge(three.values(topic, expected=sent), {"w": sent}).assert_exact()
    await_settled(running)
    assert running.status()["kafka"]["producers_replaced"] == 0


def test_while_two_of_three_brokers_are_gone_records_wait_and_none_is_lost(three: Kafka, agent: AgentFactory) -> None:
    """With min.insync.replicas=2 the one that is left takes nothing."""
    topic = safe_topic(three)
    running = agent({"kafka": {"bootstrap_servers": three.bootstrap, "topic": topic, "properties": IMPATIENT}})
    running.start()
    send(running, lines(10_000))
    await_settled(running)
    try:
        three.kill(2)
        three.kill(3)
        for turn in range(1, 9):
            send(running, lines(2000, first=8000 + turn * 2000))
            time.sleep(1)
        status = running.status()
        assert status["kafka"]["oldest_unacked_seconds"] > 5
        running.get("/readyz")
    finally:
        three.up(2)
        three.up(3)
    no_loss(judge(three.values(topic, expected=26_000), {"w": 26_000}))
    await_settled(running, 60)
