"""What the tests of shipping share: records of a writer, sent and waited for, and what the agent says of them."""

from __future__ import annotations

import json
import os
import re
import uuid
from typing import Any

from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.oracle import Verdict
from tests.harness.wait import eventually

NOBODY = "127.0.0.1:9"
"""An address at which no Kafka is."""
CHUNK_RECORDS = 5000
IMPATIENT = {"socket.timeout.ms": 3000, "api.version.request.timeout.ms": 3000, "socket.connection.setup.timeout.ms": 3000}
"""librdkafka's patience with requests, new connections and connecting, which by default are 60, 10 and 30 seconds."""


def new_topic(kafka: Kafka, name: str = "", **options: Any) -> str:
    """A topic of its own for one test; `name` is how its name ends."""
    topic = f"t-{uuid.uuid4().hex[:12]}{name}"
    kafka.create_topic(topic, **options)
    return topic


def up(kafka: Kafka, topic: str) -> None:
    """Start the broker again and wait until it serves the topic."""
    kafka.up()
    eventually(lambda: sum(kafka.end_offsets(topic).values()) >= 0, what="the broker to serve the topic")


def lines(count: int, writer: str = "w", first: int = 0, fill: int = 0) -> list[bytes]:
    text = b"x" * fill
    name = writer.encode()
    return [b'{"writer":"%s","seq":%d,"text":"%s"}' % (name, number, text) for number in range(first, first + count)]


def poison(size: int, number: int = 0, writer: str = "p") -> bytes:
    """A record that compression does not make small."""
    return b'{"writer":"%s","seq":%d,"text":"%s"}' % (writer.encode(), number, os.urandom(size // 2).hex().encode())


def send(agent: Agent, records: list[bytes], app: str = "shop", path: str = "") -> None:
    """Send records, to the first socket or that at `path`, and wait until all are acknowledged: the agent has them on disk."""
    with connect(path or agent.socket) as peer:
        peer.greet(app=app, session=uuid.uuid4().hex)
        for start in range(0, len(records), CHUNK_RECORDS):
            peer.send(records[start : start + CHUNK_RECORDS])
        peer.await_ack(len(records))


def source(agent: Agent, app: str) -> dict[str, Any]:
    sources: list[dict[str, Any]] = agent.status()["sources"]
    (found,) = [each for each in sources if each["app"] == app]
    return found


def delivered(agent: Agent, topic: str = "") -> int:
    counts: dict[str, int] = agent.status()["kafka"]["delivered"]
    return counts.get(topic, 0) if topic else sum(counts.values())


def await_settled(agent: Agent, timeout: float = 30) -> None:
    """Wait until everything that the agent has is in Kafka or set aside."""

    def settled() -> bool:
        status = agent.status()
        kafka = status["kafka"]
        return (kafka["in_flight_bytes"], kafka["oldest_unacked_seconds"]) == (0, 0) and not any(
            each["lag_bytes"] for each in status["sources"]
        )

    eventually(settled, timeout, "everything to be settled")


def no_loss(verdict: Verdict) -> None:
    """Everything arrived and nothing else; repetition is allowed."""
    assert (verdict.lost, verdict.alien) == (0, 0), verdict


def dead_letters(agent: Agent, app: str = "shop") -> list[dict[str, Any]]:
    file = agent.state / "dead" / f"{app}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def logged(agent: Agent, pattern: str) -> list[str]:
    return [line for line in agent.log().splitlines() if re.search(pattern, line)]
