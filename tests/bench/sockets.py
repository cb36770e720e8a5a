"""JSON lines from several connections to the agent's socket, through the spool, to Kafka.

The peers speak the native dialect and write large batches, as handlers do when there is much to send; they are processes of
their own and not counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

from tests.bench.common import (
    Cost,
    add_options,
    broker,
    check_arrival,
    finish_agent,
    make_lines,
    new_topic,
    print_costs,
    workplace,
)
from tests.harness.agent import Agent
from tests.harness.native import connect

BATCH_BYTES = 64 * 1024
DIFFERENT_LINES = 20_000


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("socket", help="apps' sockets, through the spool, to Kafka")
    add_options(parser, records=1_000_000, rounds=5)
    parser.add_argument("--peers", type=int, default=4, help="connections, each of its own app (default: 4)")
    parser.add_argument("--delivery", action="append", help="kafka.delivery, several for one after the other in each round")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    each = arguments.records // arguments.peers
    records = each * arguments.peers
    print(f"{records} lines over {arguments.peers} connections; {arguments.rounds} rounds\n", flush=True)
    rows: list[tuple[str, str, Cost]] = []
    whole = True
    processes = multiprocessing.get_context("spawn")
    with workplace() as directory, broker(arguments.bootstrap, directory) as kafka:
        for turn in range(1, arguments.rounds + 1):
            for delivery in arguments.delivery or ["at-least-once"]:
                with new_topic(kafka) as topic:
                    settings = {"bootstrap_servers": kafka.bootstrap, "topic": topic, "delivery": delivery}
                    agent = Agent(directory / topic, {"agent": {"name": topic}, "kafka": settings})
                    ready = processes.Barrier(arguments.peers + 1)
                    peers = [
                        processes.Process(target=peer, args=(str(agent.socket), f"app{number}", each, ready))
                        for number in range(arguments.peers)
                    ]
                    agent.start()
                    try:
                        for process in peers:
                            process.start()
                        ready.wait(60)
                        cost = finish_agent(agent, topic, records, time.monotonic())
                    finally:
                        agent.stop()
                        for process in peers:
                            process.terminate()
                            process.join()
                    rows.append((str(turn), delivery, cost))
                    # Offsets would count what transactions leave beside records.
                    whole &= check_arrival(delivery, len(kafka.values(topic, expected=records)), records)
    print_costs(rows, records)
    return 0 if whole else 1


def peer(path: str, app: str, count: int, ready: Any) -> None:
    """Send `count` records, when all are ready, and wait until they are acknowledged."""
    lines = make_lines(min(count, DIFFERENT_LINES))
    size = max(BATCH_BYTES * len(lines) // sum(map(len, lines)), 1)
    with connect(path, timeout=600) as connection:
        connection.greet(app=app, session=app)
        ready.wait(60)
        sent = 0
        while sent < count:
            start = sent % len(lines)
            batch = lines[start : start + min(size, count - sent)]
            connection.send_bytes(b"".join(batch))
            sent += len(batch)
        connection.await_ack(count)
