"""A file of JSON lines to Kafka: the agent that tails it, and kcat that reads it once, in turn, on one broker.

Processor time is that of the whole process from start to end, so the agent's includes the interpreter's start. Both send
idempotently with acks=all and lz4, each round into a new topic.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.bench.common import (
    Cost,
    add_options,
    arrived,
    broker,
    check_arrival,
    finish_agent,
    new_topic,
    print_costs,
    reap,
    spread,
    workplace,
    write_lines,
)
from tests.harness.agent import Agent
from tests.harness.kafka import Topics


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("file", help="a tailed file to Kafka, beside kcat")
    add_options(parser, records=1_000_000, rounds=5)
    parser.add_argument("--format", choices=["auto", "raw"], default="auto", help="the tail's format (default: auto)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    kcat = shutil.which("kcat")
    if kcat is None:
        print("kcat is not installed, the agent is measured alone; on Debian: apt-get install kcat\n")
    records: int = arguments.records
    rows: list[tuple[str, str, Cost]] = []
    whole = True
    with workplace() as directory, broker(arguments.bootstrap, directory) as kafka:
        path = directory / "app.log"
        size = write_lines(path, records)
        print(f"{records} lines, {size / records:.0f} bytes each; {arguments.rounds} rounds\n", flush=True)
        for turn in range(1, arguments.rounds + 1):
            for who in ("agent", "kcat") if turn % 2 else ("kcat", "agent"):
                if who == "kcat" and kcat is None:
                    continue
                with new_topic(kafka) as topic:
                    if who == "kcat":
                        cost = kcat_round(kcat or "", kafka, topic, path)
                    else:
                        cost = agent_round(directory / f"a{turn}", kafka, topic, path, arguments)
                    rows.append((str(turn), who, cost))
                    whole &= check_arrival(who, arrived(kafka, topic), records)
    print_costs(rows, records)
    if kcat is not None:
        ours, theirs = ([cost.cpu for _, who, cost in rows if who == name] for name in ("agent", "kcat"))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"\nagent/kcat, processor time: {spread(ratios)}")
    return 0 if whole else 1


def agent_round(directory: Path, kafka: Topics, topic: str, path: Path, arguments: argparse.Namespace) -> Cost:
    agent = Agent(
        directory,
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic},
            "tail": [{"paths": [str(path)], "format": arguments.format}],
        },
    )
    begun = time.monotonic()
    agent.start()
    try:
        return finish_agent(agent, topic, arguments.records, begun)
    finally:
        agent.stop()


def kcat_round(kcat: str, kafka: Topics, topic: str, path: Path) -> Cost:
    command = [kcat, "-P", "-b", kafka.bootstrap, "-t", topic, "-z", "lz4", "-X", "acks=all", "-X", "enable.idempotence=true"]
    begun = time.monotonic()
    process = subprocess.Popen([*command, "-l", str(path)], stdin=subprocess.DEVNULL)
    return reap(process.pid, begun)
