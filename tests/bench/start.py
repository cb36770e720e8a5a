"""What a start takes, and what an agent takes that has nothing to do: with Kafka there, with a file beside, with Kafka away.

The first start of each is not counted: it compiles, and finds nothing in the page cache. Afterwards all of them are left alone at
the same time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

from tests.bench.common import NOBODY, add_bootstrap, broker, new_topic, number, print_table, workplace
from tests.bench.data import write_lines
from tests.bench.idle import SETTLE_SECONDS, uses
from tests.harness.agent import Agent

MOST_READY, MOST_MEMORY, MOST_CPU = 0.5, 40.0, 0.1
"""Seconds from exec, megabytes, percent of a core with Kafka there."""


class Start(NamedTuple):
    """Wall and processor seconds from exec until ready."""

    ready: float
    cpu: float


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("start", help="what a start takes, and an agent that has nothing to do")
    parser.add_argument("--starts", type=number, default=9, help="starts of each (default: 9)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long nothing happens (default: 60)")
    add_bootstrap(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with workplace() as directory, broker(arguments.bootstrap, directory) as kafka, new_topic(kafka) as topic:
        path = directory / "app.log"
        write_lines(path, 100)
        tail = [{"paths": [str(path)]}]
        agents = {
            "a socket": Agent(directory / "a", tables(kafka.bootstrap, topic)),
            "a file": Agent(directory / "b", {**tables(kafka.bootstrap, topic), "tail": tail}),
            "Kafka away": Agent(directory / "c", tables(NOBODY, topic)),
        }
        try:
            starts = {
                who: [begin(agent, last) for last in (False,) * arguments.starts + (True,)] for who, agent in agents.items()
            }
            time.sleep(SETTLE_SECONDS)
            idle = uses(list(agents.values()), lambda: time.sleep(arguments.seconds))
            memory = [agent.rss() / 1e6 for agent in agents.values()]
        finally:
            for agent in agents.values():
                agent.stop()
    table = [["agent with", "", "ready s", "least to most", "CPU s", "idle: MB", "% of a core", "wake-ups/s"]]
    for (who, taken), use, megabytes in zip(starts.items(), idle, memory, strict=True):
        ready = [each.ready for each in taken[1:]]
        cells = [f"{statistics.median(ready):.2f}", f"{min(ready):.2f} to {max(ready):.2f}"]
        cells.append(f"{statistics.median(each.cpu for each in taken[1:]):.2f}")
        table.append([who, "", *cells, f"{megabytes:.1f}", f"{use.cpu:.2f}", f"{use.wakeups:.1f}"])
    print_table(table)
    print(f"\nat most: ready in {MOST_READY:g} s, idle {MOST_MEMORY:g} MB and {MOST_CPU:g} % of a core")
    return 0


def tables(bootstrap: str, topic: str) -> dict[str, Any]:
    return {"kafka": {"bootstrap_servers": bootstrap, "topic": topic}, "agent": {"shutdown_timeout": "1s"}}


def begin(agent: Agent, last: bool) -> Start:
    """Start the agent, and end it again unless this is the last start."""
    begun = time.monotonic()
    agent.start()
    taken = Start(time.monotonic() - begun, agent.cpu())
    if not last:
        agent.terminate()
    return taken
