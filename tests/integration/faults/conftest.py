"""The broker that these tests share and may ill-treat."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.kafka import Kafka


@pytest.fixture(scope="package")
def unsteady() -> Iterator[Kafka]:
    """A broker that tests may stop, kill and freeze, and leave running; it makes no topic by itself."""
    with tempfile.TemporaryDirectory(prefix="fwd-kafka-") as directory:
        cluster = Kafka(Path(directory), extra="auto.create.topics.enable=false")
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
