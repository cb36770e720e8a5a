"""What one logging call costs an app: `SocketHandler.emit` beside other handlers, in every state of the agent and of Kafka.

All format the same JSON, but for the standard library's `SocketHandler`, which pickles. Each handler has a process of its own, so
that its threads count: CPU is that of the process, from the first record until it is quiet again. Records come in bursts with
pauses between. A handler that blocks is stopped after `--seconds`, and what it did until then counts. Handlers take turns; times
of all rounds are put together.

On a machine that others use, the kernel takes the processor away in the middle of calls that wait for nothing, and then the
slowest of a thousand tell of the machine: "formatting alone" shows how much. The column "undisturbed" is the 99.9th percentile
without those calls. A call that waits for anything gives the processor away by itself, and stays in.
"""

from __future__ import annotations

import argparse
import gc
import logging
import logging.handlers
import multiprocessing
import os
import queue
import resource
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Producer

from forwarder import JSONFormatter, SocketHandler
from tests.bench.common import NOBODY, add_bootstrap, broker, new_topic, number, print_table, workplace
from tests.harness.agent import Agent
from tests.harness.wait import eventually

MOST_P999 = 1000.0
"""Microseconds that 999 of 1000 of our calls may take, in any state."""
OURS, FILE = "forwarder.SocketHandler", "WatchedFileHandler"
WARM_UP = 500
QUIET_SECONDS, LONGEST_UNREST = 0.2, 10.0


class Place(NamedTuple):
    """Where the handlers of one process write to."""

    socket: str
    file: str
    bootstrap: str
    topic: str


class Taken(NamedTuple):
    """Nanoseconds of each call, again of those in which the processor was taken away, and processor seconds of the process."""

    times: list[int]
    disturbed: list[int]
    cpu: float

    @property
    def undisturbed(self) -> list[int]:
        return list((Counter(self.times) - Counter(self.disturbed)).elements())


class ProducerHandler(logging.Handler):
    """As such handlers are written: what the producer has no room for is an error."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        super().__init__()
        self.topic = topic
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "log_level": 0})

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.producer.produce(self.topic, self.format(record))
            self.producer.poll(0)
        except Exception:
            self.handleError(record)


class FormattingHandler(logging.Handler):
    """What formatting alone takes, and the machine takes away."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


def queued(place: Place) -> logging.Handler:
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.handlers.QueueListener(records, logging.handlers.SocketHandler(place.socket, None)).start()
    return logging.handlers.QueueHandler(records)


HANDLERS: dict[str, Callable[[Place], logging.Handler]] = {
    "formatting alone": lambda _: FormattingHandler(),
    "stdlib SocketHandler": lambda place: logging.handlers.SocketHandler(place.socket, None),
    "QueueHandler, SocketHandler": queued,
    FILE: lambda place: logging.handlers.WatchedFileHandler(place.file),
    "confluent-kafka": lambda place: ProducerHandler(place.bootstrap, place.topic),
    OURS: lambda place: SocketHandler(place.socket, "bench"),
}
IN_JSON = ("formatting alone", FILE, "confluent-kafka")


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("emit", help="what logging costs an app, beside other handlers, in every state of the agent")
    parser.add_argument("--records", type=number, default=20_000, help="records for each handler and round (default: 20000)")
    parser.add_argument("--rounds", type=number, default=3, help="rounds (default: 3)")
    parser.add_argument("--burst", type=number, default=50, help="records between two pauses (default: 50)")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds of a pause (default: 0.005)")
    parser.add_argument("--seconds", type=float, default=10.0, help="most that one handler may take for a round (default: 10)")
    parser.add_argument("--state", default="", help="only the states that have this in their names, such as killed")
    add_bootstrap(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    print(f"{arguments.rounds} rounds of {arguments.records} records, bursts of {arguments.burst}", flush=True)
    promises = []
    with workplace() as directory, broker(arguments.bootstrap, directory) as kafka, new_topic(kafka) as topic:
        states = {
            "the agent is up": (kafka.bootstrap, None),
            "the agent is stopped by SIGSTOP": (kafka.bootstrap, Agent.freeze),
            "the agent is killed": (kafka.bootstrap, Agent.kill),
            "Kafka is away": (NOBODY, None),
        }
        for place, (state, (bootstrap, spoil)) in enumerate(states.items()):
            if arguments.state not in state:
                continue
            with in_state(directory / str(place), bootstrap, topic, spoil) as agent:
                where = Place(str(agent.socket), str(agent.directory / "app.log"), bootstrap, topic)
                taken = measure_in_turn(where, arguments)
            show(state, taken)
            promises += judge(state, taken)
    print("\n" + "\n".join(f"{'kept' if kept else 'NOT KEPT'}: {promise}" for promise, kept in promises))
    return 0 if all(kept for _, kept in promises) else 1


@contextmanager
def in_state(directory: Path, bootstrap: str, topic: str, spoil: Callable[[Agent], None] | None) -> Iterator[Agent]:
    agent = Agent(directory, {"kafka": {"bootstrap_servers": bootstrap, "topic": topic}})
    agent.start()
    try:
        if spoil is not None:
            spoil(agent)
        yield agent
    finally:
        agent.stop()


def measure_in_turn(place: Place, arguments: argparse.Namespace) -> dict[str, Taken]:
    rounds: dict[str, list[Taken]] = defaultdict(list)
    context = multiprocessing.get_context("spawn")
    for _ in range(arguments.rounds):
        for name in HANDLERS:
            ours, theirs = context.Pipe(duplex=False)
            app = context.Process(target=work, args=(theirs, name, place, arguments))
            app.start()
            theirs.close()
            rounds[name].append(ours.recv())
            app.join()
    return {name: together(taken) for name, taken in rounds.items()}


def together(rounds: list[Taken]) -> Taken:
    times = [time for taken in rounds for time in taken.times]
    disturbed = [time for taken in rounds for time in taken.disturbed]
    return Taken(times, disturbed, sum(taken.cpu for taken in rounds))


def work(connection: Connection, name: str, place: Place, arguments: argparse.Namespace) -> None:
    """One app: logs through the handler and tells what it took."""
    logging.raiseExceptions = False
    handler = HANDLERS[name](place)
    if name in IN_JSON:
        handler.setFormatter(JSONFormatter())
    emit_all(handler, WARM_UP, arguments.burst, arguments.pause, arguments.seconds)
    await_quiet()
    gc.collect()
    before = time.process_time()
    times, disturbed = emit_all(handler, arguments.records, arguments.burst, arguments.pause, arguments.seconds)
    await_quiet()
    connection.send(Taken(times, disturbed, time.process_time() - before))
    connection.close()
    os._exit(0)  # handlers that block would do so once more


def emit_all(handler: logging.Handler, records: int, burst: int, pause: float, seconds: float) -> tuple[list[int], list[int]]:
    times: list[int] = []
    disturbed: list[int] = []
    clock = time.perf_counter_ns
    end = time.monotonic() + seconds
    while len(times) < records and time.monotonic() < end:
        for seq in range(len(times), len(times) + burst):
            record = logging.LogRecord(
                "shop.checkout", logging.INFO, __file__, 1, "order %d of customer %s took %.1f ms", (seq, "ann", 1.5), None
            )
            interruptions = taken_away()
            begun = clock()
            handler.emit(record)
            taken = clock() - begun
            times.append(taken)
            if taken_away() != interruptions:
                disturbed.append(taken)
            if taken > 10**8 and time.monotonic() > end:
                break
        time.sleep(pause)
    return times, disturbed


def taken_away() -> int:
    """How many times this thread has lost the processor without having asked for it."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def await_quiet() -> None:
    def is_quiet() -> bool:
        before = time.process_time()
        time.sleep(QUIET_SECONDS)
        return time.process_time() - before < QUIET_SECONDS / 20

    try:
        eventually(is_quiet, LONGEST_UNREST)
    except AssertionError:
        return  # it never is, and that counts


def show(state: str, taken: dict[str, Taken]) -> None:
    table = [[state, "", "records", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "undisturbed", "CPU µs/record"]]
    for name, of in taken.items():
        figures = [share_of(of.times, share) for share in (0.5, 0.99, 0.999, 1.0)]
        figures += [share_of(of.undisturbed, 0.999), of.cpu / len(of.times) * 1e6]
        table.append([name, "", str(len(of.times)), *(f"{figure:,.1f}" for figure in figures)])
    print()
    print_table(table)


def share_of(times: list[int], share: float) -> float:
    """Microseconds that `share` of the calls take at most."""
    ordered = sorted(times)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1000


def judge(state: str, taken: dict[str, Taken]) -> list[tuple[str, bool]]:
    medians = [statistics.median(taken[name].times) / 1000 for name in (OURS, FILE)]
    slowest = share_of(taken[OURS].undisturbed, 0.999)
    return [
        (f"{state}: p50 {medians[0]:.1f} µs, no slower than {FILE} with {medians[1]:.1f} µs", medians[0] <= medians[1]),
        (f"{state}: p99.9 undisturbed {slowest:.0f} µs, under {MOST_P999:.0f} µs", slowest < MOST_P999),
    ]
