"""A spool that somebody has laid hands on: the agent sends what is good, says what is not, and never ends or stands still."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from forwarder.spool import blocks
from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.gate import Gate
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.oracle import judge

NOWHERE = "127.0.0.1:1"
RECORDS = 1000


def lines(numbers: range) -> list[bytes]:
    return [b'{"writer":"w","seq":%d,"text":"%s"}' % (number, b"x" * 600) for number in numbers]


def send(agent: Agent, numbers: range, app: str = "shop") -> None:
    with connect(agent.socket) as peer:
        peer.greet(app=app, session=f"from {numbers.start}")
        for first in range(0, len(numbers), 50):
            peer.send(lines(numbers[first : first + 50]))
            peer.await_ack(first + 50)


def segments(agent: Agent) -> list[Path]:
    return sorted((agent.state / "spool" / "shop").glob("*.seg"))


def numbers_in(path: Path) -> set[int]:
    data = path.read_bytes()
    return {number for number in range(RECORDS) if b'"seq":%d,' % number in data}


def reach(agent: Agent, kafka: Kafka) -> None:
    """From its next start on the agent has a Kafka."""
    agent.file.write_text(agent.file.read_text().replace(NOWHERE, kafka.bootstrap))


@pytest.fixture
def filled(agent: AgentFactory, topic: str) -> Agent:
    """An agent, not running, with records in several segments, none of them in Kafka."""
    made = agent(
        {
            "kafka": {"bootstrap_servers": NOWHERE, "topic": topic},
            "agent": {"shutdown_timeout": "0s"},
            "spool": {"max_bytes_per_app": "1MiB"},
        }
    )
    made.start()
    send(made, range(RECORDS))
    assert made.terminate() == 0
    assert len(segments(made)) > 4
    return made


def test_a_segment_missing_in_the_middle_costs_its_own_records_alone(filled: Agent, kafka: Kafka, topic: str) -> None:
    gone = segments(filled)[2]
    size, lost = gone.stat().st_size, numbers_in(gone)
    gone.unlink()
    reach(filled, kafka)
    filled.start()
    send(filled, range(RECORDS, RECORDS + 50))
    left = [number for number in range(RECORDS + 50) if number not in lost]
    judge(kafka.values(topic, expected=len(left)), {"w": left}).assert_exact()
    assert filled.metric("forwarder_spool_missing_bytes_total") == size
    assert filled.log().count(f"{size} bytes of the spool before address") == 1


def test_segments_removed_under_a_running_agent_cost_their_own_records_alone(
    agent: AgentFactory, kafka: Kafka, topic: str, gate: Gate
) -> None:
    running = agent({"kafka": {**gate.settings, "topic": topic}, "spool": {"max_bytes_per_app": "1MiB"}})
    running.start()
    send(running, range(RECORDS))
    # A reader that does not keep up reads from disk; the first segment is open.
    running.kill()
    running.start()
    gone = [segments(running)[number] for number in (2, -1)]
    lost = set[int]().union(*map(numbers_in, gone))
    for path in gone:
        path.unlink()
    send(running, range(RECORDS, RECORDS + 50))
    gate.open()
    left = [number for number in range(RECORDS) if number not in lost]
    found = kafka.values(topic, expected=len(left))
    send(running, range(RECORDS + 50, RECORDS + 100))
    found = kafka.values(topic, expected=len(found) + 50)
    # What was appended to a file that is gone is lost with it, if it was not kept in memory.
    sent = {"w": [*left, *range(RECORDS, RECORDS + 100)]}
    verdict = judge(found, sent)
    assert (verdict.duplicated, verdict.alien) == (0, 0), verdict
    assert verdict.writers["w"].first_lost in {(), tuple(range(RECORDS, RECORDS + 20))}
    assert len(running.log().split(" are missing, going on there")) == 3


def test_what_is_no_segment_is_told_and_left_and_all_records_arrive(filled: Agent, kafka: Kafka, topic: str) -> None:
    directory = filled.state / "spool" / "shop"
    end = int(segments(filled)[-1].stem) + segments(filled)[-1].stat().st_size
    (directory / f"{end + 10:020d}.seg").mkdir()
    (directory / f"{end + 20:020d}.seg").symlink_to("/etc/passwd")
    (directory / f"{end + 30:020d}.seg").symlink_to("nowhere")
    (directory / f"{end:020d}.seg").touch()
    (directory / "garbage.seg").write_bytes(b"\0" * 100)
    (directory / "README").write_text("what is this?")
    (filled.state / "spool" / "no directory").write_text("x")
    (filled.state / "spool" / "empty").mkdir()
    reach(filled, kafka)
    filled.start()
    send(filled, range(RECORDS, RECORDS + 50))
    judge(kafka.values(topic, expected=RECORDS + 50), {"w": RECORDS + 50}).assert_exact()
    assert filled.log().count("is no segment, left as it is") == 4
    assert filled.terminate() == 0


@pytest.mark.parametrize("version", [0, 2])
def test_a_spool_of_an_older_or_newer_format_ends_the_agent_with_what_to_do(filled: Agent, version: int) -> None:
    path = segments(filled)[-1]
    data = bytearray(path.read_bytes())
    data[4] = version
    checked, payload = data[: blocks.HEADER - 4], data[blocks.HEADER : blocks.size_at(bytes(data), 0)]
    data[blocks.HEADER - 4 : blocks.HEADER] = zlib.crc32(payload, zlib.crc32(checked)).to_bytes(4, "big")
    path.write_bytes(data)
    filled.start(wait=False)
    assert filled.wait() == 1
    assert (
        filled.log()
        .splitlines()[-1]
        .startswith(f"forwarder: cannot run: the spool holds blocks of format version {version}, this release reads version 1: ")
    )
    assert path.read_bytes() == bytes(data)
