"""An agent with a topic, and what its apps need in their environment."""

from __future__ import annotations

import pytest

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka


@pytest.fixture
def running(kafka: Kafka, topic: str, agent: AgentFactory) -> Agent:
    """An agent that ships to `topic`."""
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    one.start()
    return one


@pytest.fixture
def env(running: Agent) -> dict[str, str]:
    """Where apps find the agent."""
    return {"FORWARDER_SOCKET": str(running.socket), "FORWARDER_APP": "shop"}
