"""The agent itself is killed, stopped, frozen or out of memory: what it acknowledged is sent, now or at the next start."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.conftest import AgentFactory
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import (
    NOBODY,
    await_settled,
    lines,
    no_loss,
    send,
)

pytestmark = pytest.mark.slow


def test_an_agent_killed_in_mid_delivery_loses_nothing_and_repeats_little(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    kills = 4
    for turn in range(kills):
        send(running, lines(20_000, first=turn * 20_000))
        running.kill()
        running.start()
    await_settled(running)
    verdict = judge(kafka.values(topic, expected=kills * 20_000), {"w": kills * 20_000})
    no_loss(verdict)
    # What was sent since positions were last saved: at most all of one turn.
    assert verdict.duplicated <= kills * 20_000, verdict


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
