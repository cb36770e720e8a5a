"""The brokers that these tests share and may ill-treat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.kafka import Kafka, free_ports, temporary_cluster
from tests.harness.relay import Relay


@pytest.fixture(scope="package")
def unsteady() -> Iterator[Kafka]:
    """A broker that tests may stop, kill and freeze, and leave running; it makes no topic by itself."""
    with temporary_cluster(extra="auto.create.topics.enable=false") as cluster:
        yield cluster


@pytest.fixture(scope="package")
def relayed() -> Iterator[tuple[Kafka, Relay]]:
    """A broker behind a relay, which tests leave whole."""
    port = free_ports(2)
    fronts = [(f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}")]
    with Relay((port + 1, port)) as relay, temporary_cluster(fronts=fronts) as cluster:
        yield cluster, relay
