"""From a line's write into a tailed file, or to the socket, until a consumer has it from Kafka, beside a plain producer.

The producer is the floor: it has the agent's settings but no linger, gets each line at once, one message a line, on the same
broker, and one consumer, which asks without batching, reads all. Time stamps are in the lines, of the clock that all
processes of a machine share. Measured are:

- steady writers, one write a line, the producer, the file and the socket in turn;
- the first line after a quiet while, all each time;
- the agent's work as lines come faster and faster, without a consumer: a line has to become less of it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.bench.common import (
    PARTITIONS,
    add_bootstrap,
    arrived,
    broker,
    check_arrival,
    new_topic,
    number,
    print_table,
    workplace,
)
from tests.harness import process
from tests.harness.agent import Agent
from tests.harness.kafka import Topics
from tests.harness.native import connect
from tests.harness.wait import eventually

MOST_MEDIAN, MOST_P99, MOST_FIRST = 4.5, 9.0, 20.0
"""Milliseconds that the agent may need: at a steady thousand lines a second, and for the first line after a quiet while."""
STEADY = (10, 1000, 20_000)
AIMED_AT = 1000
"""Lines a second: the steady rate that the aims are for."""
RATES = (1000, 20_000, 200_000)
BLOCK_SECONDS = 0.001
"""Between two sleeps a writer writes what is due in this time, line by line."""
WARM_UP_SECONDS = 5.0
"""A broker that has just started is slow for a while."""
LONGEST_LAG = 30.0
MINUTE = 60.0
TEXT = "order 00004711 of customer 000815 took 1234 ms, and so on until the line is as long as lines are in life: " + "." * 60

Write = Callable[[bytes], object]


class Line(msgspec.Struct):
    """`sent` is the monotonic clock in nanoseconds when the line was written."""

    of: str
    sent: int
    message: str = TEXT


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("latency", help="from a line's write to its consumer, beside a plain producer")
    parser.add_argument("--steady", type=number, nargs="*", default=STEADY, help="lines a second of the steady writers")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each writes, in all rounds (default: 20)")
    parser.add_argument("--rounds", type=number, default=2, help="rounds of the steady writers (default: 2)")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds of quiet before a first line (default: 5)")
    parser.add_argument("--firsts", type=int, default=5, help="first lines (default: 5)")
    parser.add_argument("--minute", action="store_true", help="one more after a whole minute of quiet")
    parser.add_argument("--rates", type=number, nargs="*", default=RATES, help="lines a second for the agent's work")
    parser.add_argument("--rate-seconds", type=float, default=5.0, help="how long each of those (default: 5)")
    parser.add_argument("--partitions", type=number, default=PARTITIONS, help=f"of the topics (default: {PARTITIONS})")
    add_bootstrap(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with workplace() as directory, broker(arguments.bootstrap, directory) as kafka:
        with (
            new_topic(kafka, arguments.partitions) as topic,
            Reader(kafka.bootstrap, topic, arguments.partitions) as reader,
            producing(kafka, topic) as produce,
            tailing(directory / "a", kafka, topic) as (agent, write),
            connect(agent.socket) as connection,
        ):
            connection.greet(app="bench", session="bench")
            writers = {"producer": produce, "file": write, "socket": connection.send_bytes}
            for each in writers.values():
                reader.take("warm-up", write_lines(each, "warm-up", AIMED_AT, WARM_UP_SECONDS))
            for rate in arguments.steady:
                compare_steady(writers, reader, rate, arguments.seconds, arguments.rounds)
            compare_first(writers, reader, [arguments.quiet] * arguments.firsts + [MINUTE] * arguments.minute)
        with new_topic(kafka, arguments.partitions) as topic, tailing(directory / "b", kafka, topic) as (agent, write):
            sent = measure_work(agent, write, arguments.rates, arguments.rate_seconds)
            with contextlib.suppress(AssertionError):
                eventually(lambda: arrived(kafka, topic) >= sent, LONGEST_LAG)
            return 0 if check_arrival("agent", arrived(kafka, topic), sent) else 1


# What is measured


def compare_steady(writers: Mapping[str, Write], reader: Reader, rate: int, seconds: float, rounds: int) -> None:
    print(f"{rate} lines/s, {rounds} rounds of {seconds / rounds:g} s\n", flush=True)
    table = [["round", "", "median ms", "p90 ms", "p99 ms", "max ms"]]
    taken: dict[str, list[float]] = defaultdict(list)
    for turn in range(1, rounds + 1):
        for who, write in writers.items():
            of = f"{who} {rate} {turn}"
            times = reader.take(of, write_lines(write, of, rate, seconds / rounds))
            taken[who] += times
            table.append([str(turn), who, *shares(times)])
    table += [["all", who, *shares(times)] for who, times in taken.items()]
    print_table(table)
    floor = statistics.median(taken["producer"])
    over = ", ".join(f"{who} {statistics.median(times) - floor:.2f}" for who, times in taken.items() if who != "producer")
    aims = f"; at most: median {MOST_MEDIAN:g} ms, p99 {MOST_P99:g} ms" if rate == AIMED_AT else ""
    print(f"\nmedian over the producer's, ms: {over}{aims}\n", flush=True)


def compare_first(writers: Mapping[str, Write], reader: Reader, pauses: Sequence[float]) -> None:
    table = [["quiet", "", *(f"{who} ms" for who in writers)]]
    worst = dict.fromkeys(writers, 0.0)
    for turn, pause in enumerate(pauses):
        time.sleep(pause)
        row = [f"{pause:g} s", ""]
        for who, write in writers.items():
            of = f"first {who} {turn}"
            (taken,) = reader.take(of, write_lines(write, of, 1, 1.0))
            worst[who] = max(worst[who], taken)
            row.append(f"{taken:.2f}")
        table.append(row)
    table.append(["worst", "", *(f"{taken:.2f}" for taken in worst.values())])
    print_table(table)
    print(f"\nfirst line after a quiet while, at most: {MOST_FIRST:g} ms\n", flush=True)


def measure_work(agent: Agent, write: Write, rates: Sequence[int], seconds: float) -> int:
    """Returns how many lines were written."""
    sent = 0
    table = [["lines/s", "", "µs CPU/record", "% of a core", "wake-ups/s", "file reads and writes/s"]]
    for rate in rates:
        cpu, wakeups, calls, begun = agent.cpu(), process.wakeups(agent.pid), process.file_calls(agent.pid), time.monotonic()
        lines = write_lines(write, "work", rate, seconds)
        took = time.monotonic() - begun
        cpu, wakeups, calls = agent.cpu() - cpu, process.wakeups(agent.pid) - wakeups, process.file_calls(agent.pid) - calls
        figures = [f"{cpu / lines * 1e6:.2f}", f"{cpu / took * 100:.1f}", f"{wakeups / took:.0f}", f"{calls / took:.0f}"]
        table.append([f"{lines / took:,.0f}", "", *figures])
        sent += lines
    print_table(table)
    return sent


def shares(times: Sequence[float]) -> list[str]:
    ordered = sorted(times)
    places = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.9, 0.99)]
    return [f"{each:.2f}" for each in (*places, ordered[-1])]


# Who writes and who reads


def write_lines(write: Write, of: str, rate: int, seconds: float) -> int:
    """Write for so long, evenly; returns how many lines."""
    lines = max(int(rate * seconds), 1)
    block = max(int(rate * BLOCK_SECONDS), 1)
    encode, clock = msgspec.json.encode, time.monotonic_ns
    begun = time.monotonic()
    for start in range(0, lines, block):
        for _ in range(min(block, lines - start)):
            write(encode(Line(of, clock())) + b"\n")
        time.sleep(max(begun + (start + block) / rate - time.monotonic(), 0))
    return lines


@contextlib.contextmanager
def tailing(directory: Path, kafka: Topics, topic: str) -> Iterator[tuple[Agent, Write]]:
    """A running agent, and what writes to its file."""
    directory.mkdir()
    path = directory / "app.log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    kafka_table = {"bootstrap_servers": kafka.bootstrap, "topic": topic}
    tables = {"kafka": kafka_table, "tail": [{"paths": [str(path)]}], "socket": [{"path": str(directory / "s")}]}
    agent = Agent(directory, tables)
    agent.start()
    try:
        yield agent, lambda line: os.write(fd, line)
    finally:
        agent.stop()
        os.close(fd)


@contextlib.contextmanager
def producing(kafka: Topics, topic: str) -> Iterator[Write]:
    """What sends to the topic at once."""
    settings = {"bootstrap.servers": kafka.bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0}
    producer = Producer({**settings, "compression.type": "lz4", "log_level": 0})

    def write(line: bytes) -> None:
        producer.produce(topic, line[:-1])
        producer.poll(0)

    try:
        yield write
    finally:
        producer.flush(30)


class Reader:
    """A consumer in a process of its own, which notes how long each line took; for use with `with`."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        processes = multiprocessing.get_context("spawn")
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=_read, args=(bootstrap, topic, partitions, theirs), daemon=True)

    def __enter__(self) -> Reader:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def take(self, of: str, count: int) -> list[float]:
        """Milliseconds of each of `count` lines, once all have arrived. Raises AssertionError after LONGEST_LAG."""
        return eventually(lambda: self._ask(of, count), LONGEST_LAG, f"{count} lines of {of}")

    def _ask(self, of: str, count: int) -> list[float]:
        self._connection.send((of, count))
        times: list[float] = self._connection.recv()
        return times


def _read(bootstrap: str, topic: str, partitions: int, connection: Connection) -> None:
    """Consume, and answer when there is nothing to consume: the times of the lines asked for, nothing before all are there."""
    settings = {"fetch.min.bytes": 1, "fetch.wait.max.ms": 100, "enable.auto.commit": False}
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "log_level": 0, **settings})
    consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in range(partitions)])
    decode = msgspec.json.Decoder(Line).decode
    taken: defaultdict[str, list[float]] = defaultdict(list)
    while True:
        message = consumer.poll(0.02)
        now = time.monotonic_ns()
        if message is not None and message.error() is None:
            line = decode(message.value() or b"")
            taken[line.of].append((now - line.sent) / 1e6)
        elif connection.poll():
            of, count = connection.recv()
            connection.send(taken.pop(of) if len(taken[of]) >= count else [])
