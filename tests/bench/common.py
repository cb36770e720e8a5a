"""What the benches share: a Kafka, the costs of a process from its start to its end, and tables."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness import process
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka, Topics

NOBODY = "127.0.0.1:9"
"""Where no Kafka is."""
ASK_SECONDS = 0.1
"""How often an agent is asked for its progress: a request costs it half a millisecond."""
WATCH_SECONDS = 0.02
PARTITIONS = 4
LONGEST_ROUND = 600.0


class Cost(NamedTuple):
    """What a process cost: processor seconds of all its threads, user and system; wall seconds; most bytes of memory."""

    cpu: float
    wall: float
    memory: int


def add_options(parser: argparse.ArgumentParser, *, records: int, rounds: int) -> None:
    parser.add_argument("--records", type=number, default=records, help=f"records a round (default: {records})")
    parser.add_argument("--rounds", type=number, default=rounds, help=f"rounds (default: {rounds})")
    add_bootstrap(parser)


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use; by default one is started for the bench")


def number(text: str) -> int:
    value = int(text.replace("_", ""))
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory that is gone afterwards, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="fwd-bench-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def broker(bootstrap: str | None, directory: Path) -> Iterator[Topics]:
    """The Kafka at `bootstrap`, or one of our own in `directory`."""
    if bootstrap:
        yield Topics(bootstrap)
        return
    cluster = Kafka(directory / "kafka")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def new_topic(kafka: Topics, partitions: int = PARTITIONS) -> Iterator[str]:
    """A topic of one's own in a Kafka that may be anybody's, deleted afterwards."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    kafka.create_topic(name, partitions)
    try:
        yield name
    finally:
        kafka.delete_topic(name)


def arrived(kafka: Topics, topic: str) -> int:
    """How many records are in the topic."""
    return sum(kafka.end_offsets(topic).values())


def reap(pid: int, begun: float) -> Cost:
    """Wait until the process ends, which must be well, and say what it cost since `begun` on the monotonic clock.

    What wait4 says of memory may be that of the process which started it.
    """
    memory = 0
    while True:
        with contextlib.suppress(ProcessLookupError):
            memory = max(memory, process.memory(pid, "VmHWM"))
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(WATCH_SECONDS)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise SystemExit(f"the process under test ended with {code}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - begun, memory)


def finish_agent(agent: Agent, topic: str, records: int, begun: float) -> Cost:
    """As `finish`; the agent itself says how many records it has delivered."""
    return finish(agent.pid, lambda: int(agent.status()["kafka"]["delivered"].get(topic, 0)), records, begun)


def finish(pid: int, delivered: Callable[[], int], records: int, begun: float) -> Cost:
    """Wait until a process has delivered `records`, end it, and say what it cost from its start to its end.

    The wall time is that of the delivery.
    """
    while (count := delivered()) < records:
        if time.monotonic() - begun > LONGEST_ROUND:
            raise SystemExit(f"after {LONGEST_ROUND:g} s {count} of {records} records were delivered")
        time.sleep(ASK_SECONDS)
    wall = time.monotonic() - begun
    os.kill(pid, signal.SIGTERM)
    return reap(pid, begun)._replace(wall=wall)


def check_arrival(who: str, arrived: int, sent: int) -> bool:
    """Say so if what arrived is not what was sent."""
    if arrived != sent:
        print(f"{who}: {sent} records were sent and {arrived} arrived")
    return arrived == sent


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Columns, those after the second aligned to the right."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            str(cell).ljust(width) if column < 2 else str(cell).rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def spread(values: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
