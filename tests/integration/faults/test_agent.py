"""The agent itself is killed, stopped, frozen or out of memory: what it acknowledged is sent, now or at the next start."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import Load
from tests.conftest import AgentFactory
from tests.harness.cgroup import may_limit_memory, memory_limited
from tests.harness.kafka import Kafka
from tests.harness.oracle import Verdict, judge, read_sealed
from tests.harness.relay import Relay
from tests.harness.wait import eventually
from tests.integration.shipping import (
    IMPATIENT,
    NOBODY,
    await_settled,
    delivered,
    lines,
    new_topic,
    send,
)

pytestmark = pytest.mark.slow


class Apps:
    """Load on an agent: sealed records over two sockets and into two files that rotate; and what became of all of them."""

    def __init__(self, agent: AgentFactory, kafka: Kafka, bootstrap: str, directory: Path, rate: float, **settings: Any) -> None:
        """`settings` are the agent's; `properties` go to librdkafka."""
        self.topic = new_topic(kafka)
        self.seed = random.randrange(1 << 32)
        print(f"seed {self.seed}")
        self._kafka = kafka
        logs = [directory / f"logs/{number}/app.log" for number in range(2)]
        self.agent = agent(
            {
                "kafka": {"bootstrap_servers": bootstrap, "topic": self.topic, "properties": settings.pop("properties", {})},
                "agent": settings,
                "socket": [{"path": str(directory / "s.sock")}],
                "tail": [{"paths": [str(path)], "app": path.parent.name, "format": "raw"} for path in logs],
            }
        )
        self._load = Load([self.agent.socket] * 2, logs, rate / 4, self.seed)

    def __enter__(self) -> Apps:
        self.agent.start()
        self._load.start()
        eventually(lambda: delivered(self.agent) > 1000, what="the load to flow")
        return self

    def __exit__(self, *_: object) -> None:
        self._load.kill()

    def verdict(self) -> Verdict:
        """End the load, wait until the agent has delivered everything, and judge."""
        written = self._load.end(60)
        await_settled(self.agent, 60)
        expected = {name: writer.acknowledged for name, writer in written.items()}
        verdict = judge(self._kafka.values(self.topic), expected, read_sealed)
        print(verdict)
        verdict.assert_no_harm()
        return verdict


def test_an_agent_killed_a_hundred_times_under_load_also_while_it_starts_loses_nothing(
    kafka: Kafka, agent: AgentFactory, directory: Path
) -> None:
    with Apps(agent, kafka, kafka.bootstrap, directory, rate=4_000) as apps:
        chance = random.Random(apps.seed)
        for kill in range(100):
            # Random moments are the point here: half of them while it starts, half when it is ready.
            if kill % 2:
                apps.agent.await_ready()
            time.sleep(chance.uniform(0, 0.4))
            apps.agent.kill()
            apps.agent.start(wait=False)
        apps.agent.await_ready()
        apps.verdict()
        assert 50 < apps.agent.log().count("ready:") < 102, "some kills must come before the agent is ready"
        assert "Traceback" not in apps.agent.log()


def test_a_stopped_agent_goes_on_where_it_was_when_all_its_requests_have_timed_out(
    kafka: Kafka, agent: AgentFactory, directory: Path
) -> None:
    """8 s of SIGSTOP. What a minute would outlast is librdkafka's patience, 60 s by default: here it is 3."""
    with Apps(agent, kafka, kafka.bootstrap, directory, rate=8_000, properties=IMPATIENT) as apps:
        apps.agent.freeze()
        time.sleep(8)
        apps.agent.thaw()
        verdict = apps.verdict()
    assert not verdict.duplicated, verdict


@pytest.mark.parametrize("slow", [False, True], ids=["Kafka up", "Kafka slow"])
def test_term_under_load_ends_within_the_shutdown_timeout_and_the_next_start_sends_the_rest(
    relayed: tuple[Kafka, Relay], agent: AgentFactory, directory: Path, slow: bool
) -> None:
    kafka, relay = relayed
    with Apps(agent, kafka, kafka.front, directory, rate=8_000, shutdown_timeout="2s") as apps:
        try:
            if slow:
                relay.delay, relay.rate = 0.1, 20_000
                eventually(lambda: apps.agent.metric("forwarder_oldest_unacked_seconds") > 2, what="a backlog")
            begun = time.monotonic()
            assert apps.agent.terminate() == 0
            took = time.monotonic() - begun
        finally:
            relay.heal()
        apps.agent.start()
        verdict = apps.verdict()
    # Of the load, what it sent in the last moment is taken first: that is given a second.
    assert took < 2 + 1.5, f"it took {took:.1f} s"
    assert ("are not in Kafka yet" in apps.agent.log()) == slow
    assert slow or not verdict.duplicated, "what is drained is not sent again"


@pytest.mark.skipif(not may_limit_memory(), reason="a limit on memory needs root and a cgroup of one's own")
def test_an_agent_that_the_kernel_kills_for_want_of_memory_loses_nothing(
    kafka: Kafka, agent: AgentFactory, directory: Path
) -> None:
    """A cgroup's limit, as in a container."""
    with Apps(agent, kafka, kafka.bootstrap, directory, rate=8_000) as apps:
        with memory_limited(apps.agent.pid, 256 * 1024):
            assert apps.agent.wait() == -signal.SIGKILL
        apps.agent.start()
        apps.verdict()


def test_term_drains_what_there_is_and_ends_with_0(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(50_000))
    begun = time.monotonic()
    assert running.terminate() == 0
    assert time.monotonic() - begun < 10
    judge(kafka.values(topic), {"w": 50_000}).assert_exact()
    assert "everything is in Kafka" in running.log()


def test_term_while_kafka_is_away_ends_soon_and_the_next_start_delivers(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    away = agent({"kafka": {"bootstrap_servers": NOBODY, "topic": topic}, "agent": {"shutdown_timeout": "3s"}})
    away.start()
    send(away, lines(5000))
    begun = time.monotonic()
    assert away.terminate() == 0
    assert time.monotonic() - begun < 5
    assert re.search(r"[1-9]\d* bytes are not in Kafka yet", away.log())

    back = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "agent": {"state_dir": str(away.state)}})
    back.start()
    judge(kafka.values(topic, expected=5000), {"w": 5000}).assert_exact()


def test_a_second_interrupt_ends_the_agent_at_once(agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": NOBODY}})
    running.start()
    send(running, lines(100))
    running.signal(signal.SIGINT)
    eventually(lambda: "stopping" in running.log(), what="the first interrupt to be taken")
    begun = time.monotonic()
    running.signal(signal.SIGINT)
    assert running.wait() == 130
    assert time.monotonic() - begun < 1
    assert "at once" in running.log()
