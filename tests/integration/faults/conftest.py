"""The brokers that these tests share and may ill-treat."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.kafka import Kafka, free_ports
from tests.harness.relay import Relay


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


@pytest.fixture(scope="package")
def relayed() -> Iterator[tuple[Kafka, Relay]]:
    """A broker behind a relay, which tests leave whole."""
    port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="fwd-kafka-") as directory, Relay((port + 1, port)) as relay:
        cluster = Kafka(Path(directory), fronts=[(f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}")])
        cluster.start()
        try:
            yield cluster, relay
        finally:
            cluster.stop()
