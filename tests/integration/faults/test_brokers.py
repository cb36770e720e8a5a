"""Brokers that are away, end, die, hang or move: nothing is lost, and waiting costs nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import (
    await_settled,
    lines,
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
        used = running.cpu()
        time.sleep(3)
        used = running.cpu() - used
        grown = running.rss() - before
    finally:
        up(unsteady, topic)
    verdict = judge(unsteady.values(topic, expected=60_000), {"w": 60_000})
    no_loss(verdict)
    assert used < 0.15, f"{used:.2f} s of processor time in 3 s with nothing to do"
    assert grown < 16 << 20, f"{grown >> 20} MiB more memory"


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


def test_a_broker_that_hangs_for_five_seconds_costs_nothing_but_time(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(1000))
    unsteady.freeze()
    try:
        send(running, lines(19_000, first=1000))
        time.sleep(5)
        running.get("/healthz")
    finally:
        unsteady.thaw()
    judge(unsteady.values(topic, expected=20_000), {"w": 20_000}).assert_exact()


def test_a_leader_that_is_killed_in_mid_stream_hands_over_and_nothing_is_lost(agent: AgentFactory, directory: Path) -> None:
    cluster = Kafka(directory / "kafka", nodes=3)
    cluster.start()
    try:
        cluster.create_topic("three", partitions=6, config={"min.insync.replicas": "2"})
        running = agent({"kafka": {"bootstrap_servers": cluster.bootstrap, "topic": "three"}})
        running.start()
        for turn in range(40):
            if turn == 10:
                cluster.kill(2)
            if turn == 30:
                cluster.up(2)
            send(running, lines(2000, first=turn * 2000))
            time.sleep(0.1)
        verdict = judge(cluster.values("three", expected=80_000), {"w": 80_000})
        no_loss(verdict)
        await_settled(running)
    finally:
        cluster.stop()
