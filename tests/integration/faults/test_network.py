"""The network between agent and broker is cut, slow, throttled or resets connections, or names cannot be looked up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka, free_ports, temporary_cluster
from tests.harness.netns import Network, may_make_networks
from tests.harness.oracle import judge
from tests.harness.relay import Relay
from tests.harness.wait import eventually
from tests.integration.shipping import IMPATIENT, await_settled, delivered, lines, new_topic, poison, send

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(not may_make_networks(), reason="a network of one's own needs root, ip and iptables")


def behind(agent: AgentFactory, kafka: Kafka, topic: str) -> Agent:
    running = agent({"kafka": {"bootstrap_servers": kafka.front, "topic": topic, "properties": IMPATIENT}})
    running.start()
    return running


def test_a_network_that_takes_100_ms_each_way_delays_records_and_no_more(
    relayed: tuple[Kafka, Relay], agent: AgentFactory
) -> None:
    kafka, relay = relayed
    topic = new_topic(kafka)
    running = behind(agent, kafka, topic)
    relay.delay = 0.1
    try:
        begun = time.monotonic()
        send(running, lines(1, fill=200))
        eventually(lambda: delivered(running) == 1, what="a single record")
        assert time.monotonic() - begun > 0.2, "the relay does not delay"
        begun = time.monotonic()
        send(running, lines(100_000, first=1, fill=200))
        await_settled(running)
        took = time.monotonic() - begun
    finally:
        relay.heal()
    judge(kafka.values(topic, expected=100_001), {"w": 100_001}).assert_exact()
    assert took < 10, f"100,000 records took {took:.1f} s: they do not share the way"


def test_a_throttled_network_fills_no_memory_and_repeats_nothing(relayed: tuple[Kafka, Relay], agent: AgentFactory) -> None:
    """A request takes longer than a connection's patience of 3 s here, so requests time out and are sent again."""
    kafka, relay = relayed
    topic = new_topic(kafka)
    running = behind(agent, kafka, topic)
    send(running, lines(1))
    await_settled(running)
    relay.rate = 1_000_000
    try:
        send(running, [poison(5_000, number, "w") for number in range(1, 2_000)])
        begun = time.monotonic()
        await_settled(running)
        assert time.monotonic() - begun > 2, "the relay does not throttle"
    finally:
        relay.heal()
    judge(kafka.values(topic, expected=2_000), {"w": 2_000}).assert_exact()
    assert running.peak() < 96 << 20


def test_connections_reset_in_the_middle_of_requests_lose_and_repeat_nothing(
    relayed: tuple[Kafka, Relay], agent: AgentFactory
) -> None:
    kafka, relay = relayed
    topic = new_topic(kafka)
    running = behind(agent, kafka, topic)
    torn = relay.torn
    for turn in range(10):
        relay.tear(1)
        send(running, lines(5_000, first=5_000 * turn, fill=200))
        eventually(lambda count=turn: relay.torn > torn + count, what="a connection to be reset")  # type: ignore[misc]
    await_settled(running)
    judge(kafka.values(topic, expected=50_000), {"w": 50_000}).assert_exact()
    assert running.status()["kafka"]["producers_replaced"] == 0


@pytest.fixture(scope="module")
def apart() -> Iterator[tuple[Kafka, Network]]:
    """A broker that goes by a name, and a network whose only way to it leads over a cable; nobody knows the name yet."""
    with Network() as network:
        port = free_ports(1)
        with temporary_cluster(fronts=[(f"{network.here}:{port}", f"kafka-1.forwarder.test:{port}")]) as kafka:
            yield kafka, network


@needs_root
def test_an_agent_that_cannot_look_up_its_broker_at_the_start_waits_until_it_can(
    apart: tuple[Kafka, Network], agent: AgentFactory
) -> None:
    kafka, network = apart
    network.forget_names()
    topic = new_topic(kafka)
    running = agent({"kafka": {"bootstrap_servers": kafka.front, "topic": topic}}, wrapper=network.wrapper)
    running.start()
    send(running, lines(1_000))
    eventually(lambda: "Failed to resolve" in running.log(), what="a line that says why nothing is delivered")
    running.get("/readyz")
    assert not running.status()["kafka"]["connected"]
    network.serve_names()
    begun = time.monotonic()
    judge(kafka.values(topic, expected=1_000), {"w": 1_000}).assert_exact()
    assert time.monotonic() - begun < 10, "it took long to look the name up again"


@needs_root
def test_a_network_that_is_cut_costs_nothing_but_time_and_recovery_takes_seconds(
    apart: tuple[Kafka, Network], agent: AgentFactory
) -> None:
    """Cut for 8 s with a patience of 3: requests time out, and so do new connections; then all are reset."""
    kafka, network = apart
    network.serve_names()
    topic = new_topic(kafka)
    running = agent(
        {"kafka": {"bootstrap_servers": kafka.front, "topic": topic, "properties": IMPATIENT}}, wrapper=network.wrapper
    )
    running.start()
    send(running, lines(1_000))
    eventually(lambda: delivered(running) == 1_000, what="the first records")
    network.cut()
    for turn in range(1, 9):
        send(running, lines(1_000, first=1_000 * turn))
        time.sleep(1)
    assert delivered(running) == 1_000, "the network is not cut"
    network.heal()
    network.refuse()
    send(running, lines(1_000, first=9_000))
    eventually(lambda: not running.status()["kafka"]["connected"], what="the loss of Kafka to be seen")
    network.heal()
    begun = time.monotonic()
    eventually(lambda: delivered(running) > 1_000, what="the first delivery")
    took = time.monotonic() - begun
    judge(kafka.values(topic, expected=10_000), {"w": 10_000}).assert_exact()
    assert took < 5, f"the first delivery came {took:.1f} s after the network"


def test_brokers_that_come_back_at_other_addresses_are_found_by_those_of_the_configuration(
    directory: Path, agent: AgentFactory
) -> None:
    """librdkafka keeps to what the last metadata said, and that is gone."""
    port = free_ports(4)
    configured, before, after = range(port + 1, port + 4)
    kafka = Kafka(directory / "kafka", fronts=[(f"127.0.0.1:{port}", f"127.0.0.1:{before}")])
    moved = Kafka(directory / "kafka", port=kafka.port, fronts=[(f"127.0.0.1:{port}", f"127.0.0.1:{after}")])
    try:
        with Relay((configured, port), (after, port)):
            with Relay((before, port)):
                kafka.start()
                topic = new_topic(kafka)
                running = agent({"kafka": {"bootstrap_servers": f"127.0.0.1:{configured}", "topic": topic}})
                running.start()
                send(running, lines(100))
                await_settled(running)
                kafka.stop()
            send(running, lines(100, first=100))
            moved.start()
            judge(moved.values(topic, expected=200, timeout=120), {"w": 200}).assert_exact()
            assert running.status()["kafka"]["producers_replaced"] == 1
    finally:
        kafka.stop()
