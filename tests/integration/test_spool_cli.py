"""`forwarder spool` over the directory of a real agent: what it says, finds, mends and brings out."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from forwarder.spool import block
from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.apps import environment
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.oracle import judge
from tests.harness.wait import eventually

BATCHES, BATCH = 10, 30


def spool(agent: Agent, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `forwarder spool` with the agent's configuration."""
    return subprocess.run(
        [sys.executable, "-m", "forwarder", "spool", *args, "-c", str(agent.file)],
        capture_output=True,
        text=True,
        check=False,
        env=environment({"COLUMNS": "120"}),
        cwd=agent.directory,
    )


def done(agent: Agent, *args: str) -> str:
    """What the command prints, when it succeeds without a word of complaint."""
    process = spool(agent, *args)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def lines(writer: str, numbers: range) -> list[bytes]:
    return [b'{"writer":"%s","seq":%d}' % (writer.encode(), number) for number in numbers]


def row(listing: str, app: str) -> list[int]:
    """The figures of an app: segments, bytes, records, records not in Kafka yet."""
    (line,) = (line for line in listing.splitlines() if re.search(rf"\b{app}\b", line))
    return [int(figure) for figure in re.findall(r"\b\d+\b", line.partition(app)[2])]


def segment(agent: Agent, app: str) -> Path:
    (path,) = (agent.state / "spool" / app).glob("*.seg")
    return path


@pytest.fixture
def filled(agent: AgentFactory) -> Agent:
    """An agent, not running, with 300 records of the app shop and 10 of the app bank in its spool, none of them in Kafka."""
    made = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1", "topic": "nowhere"}, "agent": {"shutdown_timeout": "0s"}})
    made.start()
    with connect(made.socket) as shop, connect(made.socket) as bank:
        shop.greet(app="shop", session="one")
        for first in range(0, BATCHES * BATCH, BATCH):
            shop.send(lines("shop", range(first, first + BATCH)))
            shop.await_ack(first + BATCH)
        bank.greet(app="bank", session="one")
        bank.send(lines("bank", range(10)))
        bank.await_ack(10)
    assert made.terminate() == 0
    return made


def flip(path: Path, text: bytes) -> None:
    """Change one byte of the file, in the first place where `text` stands."""
    data = bytearray(path.read_bytes())
    data[data.index(text)] ^= 1
    path.write_bytes(data)


def test_list_counts_what_is_there(filled: Agent) -> None:
    listing = done(filled, "list")
    assert row(listing, "shop") == [1, segment(filled, "shop").stat().st_size, 300, 300]
    assert row(listing, "bank") == [1, segment(filled, "bank").stat().st_size, 10, 10]
    assert "shop" not in done(filled, "list", "--app", "bank")


def test_what_is_in_kafka_already_is_not_counted_as_left_and_not_exported(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        peer.send(lines("shop", range(50)))
        peer.await_ack(50)
    kafka.values(topic, expected=50)
    assert running.terminate() == 0
    assert row(done(running, "list"), "shop")[2:] == [50, 0]
    assert done(running, "export") == ""
    assert done(running, "export", "--all").encode().splitlines() == lines("shop", range(50))


def test_check_finds_nothing_in_a_sound_spool(filled: Agent) -> None:
    said = done(filled, "check").splitlines()
    # Each segment opens with a block that names the sessions.
    assert said == ["bank: 2 good blocks, 10 records, 0 damaged bytes", "shop: 11 good blocks, 300 records, 0 damaged bytes"]


def test_check_finds_a_flipped_byte_says_where_and_ends_with_1(filled: Agent) -> None:
    path = segment(filled, "shop")
    flip(path, b'"seq":95}')
    checked = spool(filled, "check")
    assert checked.returncode == 1
    assert "bank: 2 good blocks, 10 records, 0 damaged bytes" in checked.stdout
    assert "shop: 10 good blocks, 270 records" in checked.stdout
    (place,) = re.findall(rf"shop: {path}: bytes (\d+) to (\d+) are damaged", checked.stdout)
    start, end = map(int, place)
    assert b'"seq":90}' in path.read_bytes()[start:end]
    assert spool(filled, "check", "--app", "bank").returncode == 0


def test_repair_keeps_every_good_block_and_what_was_bad(filled: Agent, kafka: Kafka, topic: str) -> None:
    path = segment(filled, "shop")
    flip(path, b'"seq":95}')
    damaged = path.read_bytes()
    said = done(filled, "repair")
    (moved,) = re.findall(r"shop: (\d+) damaged bytes moved to quarantine", said)
    (kept,) = (filled.state / "spool" / "shop" / "quarantine").iterdir()
    assert len(kept.read_bytes()) == int(moved) > 0
    assert kept.read_bytes() in damaged
    assert "shop: 10 good blocks, 270 records, 0 damaged bytes" in done(filled, "check")
    assert done(filled, "repair").count(" 0 damaged bytes") == 2

    good = [*range(90), *range(120, 300)]
    judge(done(filled, "export", "--app", "shop").encode().splitlines(), {"shop": good}).assert_exact()
    filled.file.write_text(filled.file.read_text().replace("127.0.0.1:1", kafka.bootstrap).replace("nowhere", topic))
    filled.start()
    judge(kafka.values(topic, expected=280), {"shop": good, "bank": range(10)}).assert_exact()
    assert filled.metric("forwarder_spool_damaged_bytes_total") == 0


def test_an_agent_that_meets_the_damage_itself_delivers_the_same_records(filled: Agent, kafka: Kafka, topic: str) -> None:
    flip(segment(filled, "shop"), b'"seq":95}')
    filled.file.write_text(filled.file.read_text().replace("127.0.0.1:1", kafka.bootstrap).replace("nowhere", topic))
    filled.start()
    good = [*range(90), *range(120, 300)]
    judge(kafka.values(topic, expected=280), {"shop": good, "bank": range(10)}).assert_exact()
    assert filled.metric("forwarder_spool_damaged_bytes_total") > 0


def test_export_writes_records_one_a_line_and_says_what_it_leaves_out(filled: Agent) -> None:
    assert done(filled, "export", "--app", "shop").encode().splitlines() == lines("shop", range(300))
    assert len(done(filled, "export").splitlines()) == 310
    flip(segment(filled, "shop"), b'"seq":95}')
    exported = spool(filled, "export")
    assert exported.returncode == 0
    assert len(exported.stdout.splitlines()) == 280
    assert "are damaged, left out" in exported.stderr


def test_beside_a_running_agent_repair_refuses_and_the_others_work(filled: Agent) -> None:
    filled.start()
    refused = spool(filled, "repair")
    assert refused.returncode == 1
    assert f"another agent (pid {filled.pid}) works in this state directory" in refused.stderr
    assert row(done(filled, "list"), "shop")[2:] == [300, 300]
    assert "shop: 11 good blocks, 300 records, 0 damaged bytes" in done(filled, "check")
    assert len(done(filled, "export").splitlines()) == 310
    with connect(filled.socket) as peer:
        assert peer.greet(app="shop", session="one", first=300) == 300


def test_the_agent_may_remove_segments_while_they_are_looked_at(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic},
            "spool": {"max_bytes": "1MiB", "max_bytes_per_app": "1MiB"},
        }
    )
    running.start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        looked = 0
        while looked < 6:
            looking = subprocess.Popen(
                [sys.executable, "-m", "forwarder", "spool", "list", "-c", str(running.file)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            while looking.poll() is None:
                peer.send([b"x" * 1000] * 60)
                peer.await_ack(peer.acknowledged + 60)
            _, said = looking.communicate()
            assert (looking.returncode, said) == (0, "")
            looked += 1


def test_an_app_that_is_not_there_is_told(filled: Agent) -> None:
    for action in ("list", "check", "repair", "export"):
        process = spool(filled, action, "--app", "shpo")
        assert process.returncode == 1, action
        assert process.stderr == f"forwarder: there is no spool of app shpo in {filled.state}; there are: bank, shop\n"
        assert process.stdout == ""


def test_an_empty_state_directory_is_no_error_and_is_not_made(agent: AgentFactory) -> None:
    never = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
    for action in ("list", "check", "repair", "export"):
        assert spool(never, action).returncode == 0, action
    assert not never.state.exists()


def test_a_spool_of_a_newer_format_is_refused_with_what_to_do(filled: Agent) -> None:
    path = segment(filled, "shop")
    data = bytearray(path.read_bytes())
    data[4] = 9
    checked, payload = data[: block.HEADER - 4], data[block.HEADER : block.size_at(bytes(data), 0)]
    data[block.HEADER - 4 : block.HEADER] = zlib.crc32(payload, zlib.crc32(checked)).to_bytes(4, "big")
    path.write_bytes(data)
    for action in ("list", "check", "repair", "export"):
        process = spool(filled, action)
        assert process.returncode == 1, action
        assert re.fullmatch(r"forwarder: .*version 9.*\n", process.stderr), process.stderr


def test_a_reader_that_goes_away_ends_the_export_without_a_traceback(filled: Agent) -> None:
    command = [sys.executable, "-m", "forwarder", "spool", "export", "-c", str(filled.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    eventually(lambda: process.poll() is not None)
    assert "Traceback" not in said
