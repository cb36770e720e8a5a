"""The disk below the state directory fails in every way: the agent stays, says so once, costs next to nothing, loses nothing
that it acknowledged, and goes on by itself when the disk does."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forwarder import config
from forwarder.route import Route
from forwarder.spool.spools import Spools
from tests.conftest import AgentFactory
from tests.harness import disk as disks
from tests.harness.agent import Agent
from tests.harness.disk import FaultyDisk
from tests.harness.gate import Gate
from tests.harness.kafka import Kafka
from tests.harness.native import Native, connect
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import new_topic

pytestmark = pytest.mark.skipif(not disks.available(), reason="a disk that fails needs root and /dev/fuse")

WATCHED = 2.0
"""Seconds over which the cost of waiting is measured."""


@pytest.fixture
def disk(directory: Path) -> Iterator[FaultyDisk]:
    with FaultyDisk(directory / "disk", directory / "backing") as faulty:
        yield faulty


def lines(writer: str, numbers: range, size: int = 500) -> list[bytes]:
    return [b'{"writer":"%s","seq":%d,"text":"%s"}' % (writer.encode(), number, b"x" * size) for number in numbers]


def make(agent: AgentFactory, disk: FaultyDisk, kafka: dict[str, Any], **tables: Any) -> Agent:
    return agent({"kafka": kafka, "agent": {"state_dir": str(disk.path / "state"), "shutdown_timeout": "0s"}, **tables})


def send(peer: Native, writer: str, numbers: range) -> None:
    for first in range(numbers.start, numbers.stop, 50):
        peer.send(lines(writer, range(first, min(first + 50, numbers.stop))))
        peer.await_ack(min(first + 50, numbers.stop))


def share_of_cpu(agent: Agent) -> float:
    """What the agent uses of a processor. The passing of time is the point here."""
    before, since = agent.cpu(), time.monotonic()
    time.sleep(WATCHED)
    return (agent.cpu() - before) / (time.monotonic() - since)


def open_in(directory: Path) -> int:
    """How many descriptors of this process are of something in `directory`."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself is gone
            count += entry.readlink().is_relative_to(directory)
    return count


def told(agent: Agent, text: str) -> int:
    return sum(text in line for line in agent.log().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (errno.ENOSPC, (disks.ROOM,)),
        (errno.EDQUOT, (disks.ROOM,)),
        (errno.EROFS, (disks.CHANGE,)),
        (errno.EIO, (disks.CHANGE, disks.SYNC, disks.READ)),
    ],
    ids=["full", "quota", "read-only", "broken"],
)
def test_a_disk_that_takes_nothing_is_waited_out(
    disk: FaultyDisk, agent: AgentFactory, kafka: Kafka, topic: str, error: int, kinds: tuple[str, ...]
) -> None:
    running = make(agent, disk, {"bootstrap_servers": kafka.bootstrap, "topic": topic})
    running.start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        send(peer, "w", range(500))
        disk.fail(error, *kinds)
        peer.send(lines("w", range(500, 600)))
        with pytest.raises(TimeoutError):
            peer.await_ack(600, 0.5)
        assert 500 <= peer.acknowledged < 600
        share = share_of_cpu(running)
        print(f"{share:.3f} of a processor, {disk.refused} calls refused")
        assert share < 0.05
        assert running.status()["spool"]["disk_errors"] > 0
        # Over is what has not happened for a while.
        disk.mend()
        peer.await_ack(600)
        eventually(lambda: running.status()["agent"]["state_writable"], what="positions to be saved")
        number = 600

        def over() -> bool:
            nonlocal number
            send(peer, "w", range(number, number + 10))
            number += 10
            return told(running, "the spool takes its records again") > 0

        eventually(over, what="the end of it in the log")
    judge(kafka.values(topic, expected=number), {"w": number}).assert_exact()
    assert told(running, "the disk does not take records") == 1
    assert told(running, "the spool takes its records again") == 1
    assert told(running, "cannot save positions") == told(running, "positions can be saved again") <= 1
    assert running.terminate() == 0


def test_a_disk_that_fails_and_an_agent_that_is_killed_cost_nothing_acknowledged(
    disk: FaultyDisk, agent: AgentFactory, gate: Gate, kafka: Kafka, topic: str
) -> None:
    running = make(agent, disk, {**gate.settings, "topic": topic})
    sent = 0
    for error in (errno.ENOSPC, errno.EIO, errno.EROFS):
        running.start()
        with connect(running.socket) as peer:
            sent = peer.greet(app="shop", session="one", first=sent)
            send(peer, "w", range(sent, sent + 200))
            sent += 200
            disk.fail(error, disks.CHANGE)
            peer.send(lines("w", range(sent, sent + 50)))
            with pytest.raises(TimeoutError):
                peer.await_ack(sent + 50, 0.3)
            sent = peer.acknowledged
            running.kill()
        disk.mend()
    gate.open()
    running.start()
    with connect(running.socket) as peer:
        known = peer.greet(app="shop", session="one", first=sent)
        assert known >= sent >= 600
    judge(kafka.values(topic, expected=known), {"w": known}).assert_exact()


def test_an_app_whose_spool_cannot_be_read_waits_and_no_other_does(
    disk: FaultyDisk, agent: AgentFactory, gate: Gate, kafka: Kafka, topic: str
) -> None:
    running = make(agent, disk, {**gate.settings, "topic": topic}, spool={"max_bytes_per_app": "1MiB"})
    running.start()
    with connect(running.socket) as shop:
        shop.greet(app="shop", session="one")
        send(shop, "shop", range(1000))
    running.kill()
    running.start()
    disk.fail(errno.EIO, disks.READ, under="/spool/shop")
    gate.open()
    with connect(running.socket) as bank:
        bank.greet(app="bank", session="one")
        send(bank, "bank", range(100))
    eventually(lambda: told(running, "app shop: its spool cannot be read"), what="a line in the log")
    eventually(lambda: running.metric("forwarder_records_delivered_total") >= 100, what="the other app's records")
    assert share_of_cpu(running) < 0.05
    assert running.status()["kafka"]["oldest_unacked_seconds"] > 0
    disk.mend()
    judge(kafka.values(topic, expected=1100), {"shop": 1000, "bank": 100}).assert_exact()
    assert told(running, "its spool cannot be read") == told(running, "its spool can be read again") == 1


def test_an_app_whose_spool_cannot_be_read_at_the_start_is_told_and_the_others_are_served(
    disk: FaultyDisk, agent: AgentFactory, gate: Gate, kafka: Kafka, topic: str
) -> None:
    running = make(agent, disk, {**gate.settings, "topic": topic})
    gate.open()
    for first in (0, 50):
        running.start()
        for app in ("shop", "bank"):
            with connect(running.socket) as peer:
                peer.greet(app=app, session="one", first=first)
                send(peer, app, range(first, first + 50))
        if first == 0:
            kafka.values(topic, expected=100)
            eventually(lambda: running.status()["kafka"]["oldest_unacked_seconds"] == 0, what="the agent to know of it")
        assert running.terminate() == 0
        gate.close()
    disk.fail(errno.EIO, disks.READ, under="/spool/shop")
    gate.open()
    running.start()
    judge(kafka.values(topic, expected=150), {"bank": 100, "shop": 50}).assert_exact()
    assert told(running, "app shop: ") == 1
    disk.mend()
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one", first=100) == 100
    judge(kafka.values(topic, expected=200), {"shop": 100, "bank": 100}).assert_exact()


def test_a_disk_that_lets_go_of_nothing_costs_no_record_and_is_tidied_later(
    disk: FaultyDisk, agent: AgentFactory, kafka: Kafka, topic: str
) -> None:
    running = make(agent, disk, {"bootstrap_servers": kafka.bootstrap, "topic": topic}, spool={"max_bytes_per_app": "1MiB"})
    running.start()
    disk.fail(errno.EROFS, disks.REMOVE)
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        send(peer, "w", range(1500))
    judge(kafka.values(topic, expected=1500), {"w": 1500}).assert_exact()
    directory = disk.backing / "state" / "spool" / "shop"
    assert len(list(directory.glob("*.seg"))) > 3
    assert running.status()["spool"]["bytes"] == sum(path.stat().st_size for path in directory.glob("*.seg"))
    disk.mend()
    eventually(lambda: len(list(directory.glob("*.seg"))) <= 1, what="the segments to go")
    assert running.terminate() == 0


def test_a_spool_that_fails_to_open_leaves_nothing_open_and_is_opened_when_the_disk_lets_it(disk: FaultyDisk) -> None:
    def open_all() -> Spools:
        return Spools(
            disk.path / "spool",
            config.Spool(max_bytes_per_app=8 * 64 * 1024),
            routes=lambda app, route: Route("logs"),
            wake=lambda spool: None,
            added=lambda spool: None,
            removed=lambda spool: None,
        )

    (disk.path / "spool").mkdir()
    first = open_all()
    spool = first.of("shop")
    for _ in range(6):
        first.append(spool, b"x" * 30_000 + b"\n", 1, 0.0)
    end = spool.end
    first.close()
    for kind in (disks.REMOVE, disks.READ):
        again = open_all()
        on_disk = sum(path.stat().st_size for path in (disk.path / "spool" / "shop").glob("*.seg"))
        disk.fail(errno.EIO, kind)
        again.open_all({"spool:shop": end - 40_000})
        for _ in range(50):
            with contextlib.suppress(OSError):
                again.of("shop")
        # One that could be opened holds the descriptor that it appends to.
        assert open_in(disk.path) <= 1, kind
        assert again.disk_bytes in {0, on_disk}, kind
        disk.mend()
        assert again.of("shop").end == end
        again.close()
        assert open_in(disk.path) == 0, kind


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    path = directory / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_an_agent_starts_on_a_disk_without_any_room_and_ships_what_is_there(
    small_disk: Path, agent: AgentFactory, gate: Gate, kafka: Kafka, delivery: str
) -> None:
    topic = new_topic(kafka, partitions=1)
    state = {"state_dir": str(small_disk / "state"), "shutdown_timeout": "0s", "name": topic}
    running = agent({"agent": state, "kafka": {**gate.settings, "topic": topic, "delivery": delivery}})
    gate.open()
    running.start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one")
        send(peer, "w", range(100))
        kafka.values(topic, expected=100)
        gate.close()
        assert running.terminate() == 0
    running.start()
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one", first=100)
        send(peer, "w", range(100, 300))
        assert running.terminate() == 0
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(512))
    running.start(wait=False)
    eventually(lambda: running.get("/healthz"), what="the agent to be there")
    with connect(running.socket) as peer:
        peer.greet(app="shop", session="one", first=300)
        peer.send(lines("w", range(300, 400)))
        gate.open()
        judge(kafka.values(topic, expected=300), {"w": 300}).assert_none_lost()
        with pytest.raises(TimeoutError):
            peer.await_ack(400, 0.5)
        filler.unlink()
        peer.await_ack(400)
    verdict = judge(kafka.values(topic, expected=400), {"w": 400})
    verdict.assert_none_lost()
    if delivery == "exactly-once":
        verdict.assert_exact()
    eventually(lambda: running.status()["agent"]["state_writable"], what="positions to be saved")
    assert "Traceback" not in running.log()


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_at_the_quota_of_all_apps_what_was_acknowledged_is_what_arrives_and_what_is_counted_as_dropped(
    disk: FaultyDisk, agent: AgentFactory, gate: Gate, kafka: Kafka, topic: str, policy: str
) -> None:
    """With the disk failing now and then as well."""
    quota = {"max_bytes": "2MiB", "max_bytes_per_app": "1536KiB", "when_full": policy}
    running = make(agent, disk, {**gate.settings, "topic": topic}, spool=quota)
    running.start()
    accepted = dict.fromkeys(("shop", "bank", "cron"), 0)
    for turn in range(4):
        for app in accepted:
            with connect(running.socket) as peer:
                peer.greet(app=app, session="one", first=accepted[app])
                peer.send(lines(app, range(accepted[app], accepted[app] + 400)))
                if turn % 2:
                    disk.fail(errno.ENOSPC, disks.ROOM)
                    time.sleep(0.15)
                    disk.mend()
                accepted[app] = peer.await_ack(accepted[app] + 400)
    dropped = {app: int(running.metric("forwarder_records_dropped_total", app=app, reason="spool_full")) for app in accepted}
    print(accepted, dropped)
    assert sum(dropped.values()) > 0
    gate.open()
    left = sum(accepted.values()) - sum(dropped.values())
    verdict = judge(kafka.values(topic, expected=left), accepted)
    assert (verdict.duplicated, verdict.alien) == (0, 0), verdict
    assert {app: tally.lost for app, tally in verdict.writers.items()} == dropped
