"""What files cost in which nothing happens: an agent that tails thousands beside one that tails a single file, in one run.

Both start from nothing and deliver what is there. Then they are left alone, at the same time: processor time of a quiet
minute, and memory. At the end some of the files are busy for a while.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.common import (
    add_bootstrap,
    arrived,
    broker,
    check_arrival,
    new_topic,
    number,
    print_table,
    workplace,
)
from tests.bench.data import make_lines
from tests.harness import process
from tests.harness.agent import Agent
from tests.harness.kafka import Topics
from tests.harness.wait import eventually

FILES_A_DIRECTORY = 50
LINES_A_FILE = 2
SETTLE_SECONDS = 10.0
"""Until files are quiet, positions saved and what the start took is given back."""
MOST_CPU_PERCENT, MOST_MEMORY = 1.0, 16 << 20
"""What the idle files may cost: of one core, and more memory than a single file."""


class Use(NamedTuple):
    """What an agent used over a while: percent of one core, and how often it was woken a second."""

    cpu: float
    wakeups: float


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("idle", help="what thousands of quiet files cost, beside a single one")
    parser.add_argument("--files", type=number, default=5000, help="tailed files (default: 5000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long nothing happens (default: 60)")
    parser.add_argument("--busy", type=int, default=200, help="files that are busy afterwards (default: 200, 0: none)")
    parser.add_argument("--rate", type=float, default=3.0, help="lines a second in each of those (default: 3)")
    parser.add_argument("--busy-seconds", type=float, default=20.0, help="and how long (default: 20)")
    add_bootstrap(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with (
        workplace() as directory,
        broker(arguments.bootstrap, directory) as kafka,
        new_topic(kafka) as one_topic,
        new_topic(kafka) as many_topic,
    ):
        one, [_] = tailing(directory / "one", kafka, one_topic, 1)
        many, paths = tailing(directory / "many", kafka, many_topic, arguments.files)
        agents = [one, many]
        try:
            started = [start(one, kafka, one_topic, 1), start(many, kafka, many_topic, arguments.files)]
            time.sleep(SETTLE_SECONDS)
            idle = uses(agents, lambda: time.sleep(arguments.seconds))
            memory = [agent.rss() for agent in agents]
            peaks = [agent.peak() for agent in agents]
            sent = 0
            busy: list[Use] = []
            if arguments.busy:
                busy_paths = paths[:: max(len(paths) // arguments.busy, 1)][: arguments.busy]

                def write() -> None:
                    nonlocal sent
                    sent = write_everywhere(busy_paths, arguments.rate, arguments.busy_seconds)

                busy = uses(agents, write)
            expected = arguments.files * LINES_A_FILE + sent
            eventually(lambda: arrived(kafka, many_topic) >= expected, 30, "all lines to arrive")
            whole = check_arrival("agent", arrived(kafka, many_topic), expected)
        finally:
            for agent in agents:
                agent.stop()
    table = [["files", "", "% of a core", "wake-ups/s", "memory MiB", "peak MiB", "ready s", "delivered s"]]
    for count, use, now, peak, (ready, done) in zip((1, arguments.files), idle, memory, peaks, started, strict=True):
        cells = [f"{use.cpu:.2f}", f"{use.wakeups:.0f}", f"{now / (1 << 20):.1f}", f"{peak / (1 << 20):.1f}"]
        table.append([str(count), "idle", *cells, f"{ready:.2f}", f"{done:.2f}"])
    if busy:
        use = busy[1]
        table.append([str(arguments.files), f"{len(busy_paths)} busy", f"{use.cpu:.2f}", f"{use.wakeups:.0f}", "", "", "", ""])
    print_table(table)
    more = memory[1] - memory[0]
    print(
        f"\n{arguments.files} idle files: {idle[1].cpu:.2f} % of a core (at most {MOST_CPU_PERCENT:g}), "
        f"{more / (1 << 20):.1f} MiB more than one file (at most {MOST_MEMORY >> 20}), {more / arguments.files:.0f} bytes a file"
    )
    return 0 if whole else 1


def tailing(directory: Path, kafka: Topics, topic: str, files: int) -> tuple[Agent, list[Path]]:
    """An agent, not yet started, and its files."""
    paths = []
    for each in range(files):
        path = directory / f"logs/{each // FILES_A_DIRECTORY}/{each % FILES_A_DIRECTORY}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(make_lines(LINES_A_FILE)))
        paths.append(path)
    tail = {"paths": [f"{directory}/logs/*/*.log"]}
    return Agent(directory, {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "tail": [tail]}), paths


def start(agent: Agent, kafka: Topics, topic: str, files: int) -> tuple[float, float]:
    """Seconds until the agent is ready, and until everything is delivered."""
    begun = time.monotonic()
    agent.start()
    ready = time.monotonic() - begun
    eventually(lambda: arrived(kafka, topic) >= files * LINES_A_FILE, 120, "everything to be delivered")
    return ready, time.monotonic() - begun


def uses(agents: Sequence[Agent], meanwhile: Callable[[], None]) -> list[Use]:
    begun = time.monotonic()
    before = [(agent.cpu(), process.wakeups(agent.pid)) for agent in agents]
    meanwhile()
    seconds = time.monotonic() - begun
    return [
        Use((agent.cpu() - cpu) / seconds * 100, (process.wakeups(agent.pid) - wakeups) / seconds)
        for agent, (cpu, wakeups) in zip(agents, before, strict=True)
    ]


def write_everywhere(paths: Sequence[Path], rate: float, seconds: float) -> int:
    """Write `rate` lines a second into each file, evenly in turn; returns how many in all."""
    (line,) = make_lines(1)
    files = [path.open("ab", buffering=0) for path in paths]
    begun = time.monotonic()
    lines = int(rate * len(files) * seconds)
    for written in range(lines):
        files[written % len(files)].write(line)
        time.sleep(max(begun + (written + 1) / (rate * len(files)) - time.monotonic(), 0))
    for file in files:
        file.close()
    return lines
