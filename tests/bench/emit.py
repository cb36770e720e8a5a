"""What one logging call costs an app: `SocketHandler.emit` with the agent there and with it away, beside a file handler.

All three format the same JSON. Records come in bursts with pauses between, the handlers in turn, in one process. The agent has
no Kafka unless one is given: what it takes stays in its spool.
"""

from __future__ import annotations

import argparse
import gc
import logging
import logging.handlers
import statistics
import time
from typing import Any

from forwarder import JSONFormatter, SocketHandler
from tests.bench.common import check_arrival, print_table, workplace
from tests.harness.agent import Agent
from tests.harness.wait import eventually

NOBODY = "127.0.0.1:9"


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("emit", help="what logging costs an app, beside a file handler")
    parser.add_argument("--records", type=int, default=100_000, help="records for each handler (default: 100000)")
    parser.add_argument("--burst", type=int, default=100, help="records between two pauses (default: 100)")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds of a pause (default: 0.005)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", default=NOBODY, help="a Kafka for the agent (default: none)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    records: int = arguments.records
    with workplace() as directory:
        agent = Agent(directory, {"kafka": {"bootstrap_servers": arguments.bootstrap, "topic": "bench-emit"}})
        agent.start()
        handlers: dict[str, logging.Handler] = {
            "SocketHandler, agent there": SocketHandler(str(agent.socket), "there"),
            "SocketHandler, agent away": SocketHandler(str(directory / "nobody.sock"), "away"),
            "WatchedFileHandler": logging.handlers.WatchedFileHandler(directory / "app.log"),
        }
        handlers["WatchedFileHandler"].setFormatter(JSONFormatter())
        try:
            taken = measure(list(handlers.values()), records, arguments.burst, arguments.pause)
            handlers["SocketHandler, agent there"].flush()
            eventually(lambda: received(agent) >= records, 10, "the agent to have all records")
            whole = check_arrival("agent", received(agent), records)
        finally:
            for handler in handlers.values():
                handler.close()
            agent.stop()
    print(f"{records} records for each handler, bursts of {arguments.burst}, {arguments.pause * 1000:g} ms between\n")
    table = [["", "", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "mean µs"]]
    table += [[name, "", *figures(times)] for name, times in zip(handlers, taken, strict=True)]
    print_table(table)
    return 0 if whole else 1


def measure(handlers: list[logging.Handler], records: int, burst: int, pause: float) -> list[list[int]]:
    """Nanoseconds of each call, for each handler."""
    taken: list[list[int]] = [[] for _ in handlers]
    clock = time.perf_counter_ns
    gc.collect()
    for start in range(0, records, burst):
        for handler, times in zip(handlers, taken, strict=True):
            for number in range(start, min(start + burst, records)):
                record = logging.LogRecord(
                    "shop.checkout", logging.INFO, __file__, 1, "order %d of customer %s took %.1f ms", (number, "ann", 1.5), None
                )
                begun = clock()
                handler.emit(record)
                times.append(clock() - begun)
        time.sleep(pause)
    return taken


def received(agent: Agent) -> int:
    return int(agent.metric("forwarder_records_received_total", app="there"))


def figures(times: list[int]) -> list[str]:
    ordered = sorted(times)
    places = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.99, 0.999)]
    return [f"{value / 1000:.1f}" for value in (*places, ordered[-1], statistics.fmean(ordered))]
