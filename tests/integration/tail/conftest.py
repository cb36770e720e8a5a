"""A story for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.kafka import Kafka
from tests.integration.tail.story import Story


@pytest.fixture
def story(kafka: Kafka, topic: str, directory: Path, agent: AgentFactory) -> Story:
    return Story(kafka, topic, directory, agent)


@pytest.fixture
def story_with_own_kafka(own_kafka: Kafka, directory: Path, agent: AgentFactory) -> Story:
    """Its Kafka may be stopped."""
    own_kafka.create_topic("logs")
    return Story(own_kafka, "logs", directory, agent)
