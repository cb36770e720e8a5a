"""Every path to Kafka beside kcat, rsyslog and syslog-ng: what a record costs, how fast it goes, what memory it takes.

All subjects take turns on one broker and the same data, each round into a new topic, forwards and backwards. Processor time is
that of the whole process from its start to its end, so the agent's includes the interpreter's start. kcat, which reads a file
once and keeps nothing, is the measure: the ratio is that to kcat on the same file in the same round. The backlog is what an agent
without a Kafka took in before; the one that sends it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka

from forwarder.redact import READYMADE
from tests.bench import peers
from tests.bench.common import (
    NOBODY,
    Cost,
    add_options,
    arrived,
    broker,
    check_arrival,
    finish_agent,
    new_topic,
    print_table,
    spread,
    workplace,
)
from tests.bench.data import USUAL_BYTES, write_lines, write_text
from tests.bench.peers import KCAT, PACKAGES, RSYSLOG, SYSLOG_NG
from tests.bench.senders import Dialect, sending
from tests.harness.agent import Agent
from tests.harness.kafka import Topics

LEAST_SPEED = 0.8
"""Of kcat's records a second: what a tailed file should reach."""
MOST_OF_PEERS = 0.5
"""Of the processor time of rsyslog or syslog-ng: what the agent may take on the same path."""
MOST_MEMORY = 80_000_000
ROOM = {"max_bytes": "64GiB", "max_bytes_per_app": "64GiB"}
CUSTOMER = {"pattern": r"customer \d+", "replace": "customer *"}
EXACTLY_ONCE = {"delivery": "exactly-once"}


class Input(NamedTuple):
    """A file; `records` are what an agent that joins lines makes of it."""

    path: Path
    lines: int
    records: int
    size: int


class Round(NamedTuple):
    """One run of a subject: where it finds and puts things."""

    kafka: Topics
    topic: str
    input: Input
    directory: Path


class Subject(NamedTuple):
    """`data` names the input, `most` is the ratio to kcat that is aimed at, `run` sends all of the input to the topic."""

    group: str
    what: str
    who: str
    data: str
    run: Callable[[Round], Cost]
    measure: str = "lz4"
    """Which of kcat's runs on the same data it is compared with: the codec's."""
    most: float = 0.0
    joined: bool = False
    """Whether lines are joined to records."""


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("paths", help="every path beside kcat, rsyslog and syslog-ng (what runs when no bench is named)")
    add_options(parser, records=2_000_000, rounds=5)
    everybody = ",".join(PACKAGES)
    parser.add_argument("--peers", default=everybody, help=f"whom to measure beside the agent (default: {everybody}; none)")
    parser.add_argument("--only", metavar="REGEX", type=re.compile, help="of the paths, named GROUP/PATH")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write all figures")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    wanted = [each for each in arguments.peers.split(",") if each != "none"]
    if unknown := set(wanted) - PACKAGES.keys():
        print(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(PACKAGES)}")
        return 2
    for missing in (each for each in wanted if peers.find(each) is None):
        print(f"{missing} is MISSING and not measured; on Debian: apt-get install {PACKAGES[missing]}")
    present = {"agent", *(each for each in wanted if peers.find(each))}
    chosen = [
        each
        for each in SUBJECTS
        if each.who in present
        and (arguments.only is None or each.who == KCAT or arguments.only.search(f"{each.group}/{each.what}"))
    ]
    # kcat is the measure of others, and of no use alone.
    needed = {(each.data, each.measure) for each in chosen if each.who != KCAT}
    chosen = [each for each in chosen if (each.data, each.measure) in needed]
    costs: dict[Subject, list[Cost]] = {each: [] for each in chosen}
    whole = True
    with workplace() as directory, broker(arguments.bootstrap, directory) as kafka:
        inputs = write_inputs(directory, arguments.records, {each.data for each in chosen})
        warm_up(chosen, kafka, inputs, directory)
        for turn in range(1, arguments.rounds + 1):
            for subject in chosen if turn % 2 else reversed(chosen):
                with new_topic(kafka) as topic, workplace() as place:
                    cost = subject.run(Round(kafka, topic, inputs[subject.data], place))
                    whole &= check(subject, kafka, topic, inputs[subject.data])
                costs[subject].append(cost)
                print(f"round {turn}: {subject.group}/{subject.what}, {subject.who}: {cost.cpu:.2f} s CPU", flush=True)
    print(f"\n{about(present)}\n")
    print_table(table(costs, inputs))
    print()
    print_verdicts(costs)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_tree(costs, inputs, present), indent=1) + "\n")
    return 0 if whole else 1


def write_inputs(directory: Path, records: int, wanted: set[str]) -> dict[str, Input]:
    """Files of about the same number of bytes, but for larger records, of which there are fewer."""
    inputs = {}
    for name in wanted:
        path = directory / f"{name.replace(' ', '')}.log"
        if name == TEXT:
            inputs[name] = Input(path, *write_text(path, records), path.stat().st_size)
        else:
            lines = max(records * USUAL_BYTES // max(SIZES[name], USUAL_BYTES), 1)
            inputs[name] = Input(path, lines, lines, write_lines(path, lines, SIZES[name]))
    return inputs


def warm_up(chosen: Sequence[Subject], kafka: Topics, inputs: Mapping[str, Input], directory: Path) -> None:
    """A broker that has just started is slow for a while: a run of each group's first, which does not count."""
    for subject in {each.data: each for each in reversed(chosen) if each.who in {KCAT, "agent"}}.values():
        with new_topic(kafka) as topic:
            subject.run(Round(kafka, topic, inputs[subject.data], directory / f"warm-up{subject.data.replace(' ', '')}"))


def check(subject: Subject, kafka: Topics, topic: str, data: Input) -> bool:
    expected = data.records if subject.joined else data.lines
    there = arrived(kafka, topic)
    if "exactly-once" in subject.what:  # offsets count what transactions leave beside records
        seen = [0]

        def count(_: bytes, __: int) -> None:
            seen[0] += 1

        kafka.each(topic, count)
        there = seen[0]
    return check_arrival(f"{subject.group}/{subject.what}, {subject.who}", there, expected)


# What is measured


def tailed(
    kafka: Mapping[str, Any] | None = None, joined: bool = False, redact: Sequence[Mapping[str, str]] = (), **tail: Any
) -> Callable[[Round], Cost]:
    """An agent that tails the file."""

    def measure(one: Round) -> Cost:
        settings = {"bootstrap_servers": one.kafka.bootstrap, "topic": one.topic, **(kafka or {})}
        tables = {"agent": {"name": one.topic}, "kafka": settings, "tail": [{"paths": [str(one.input.path)], **tail}]}
        agent = Agent(one.directory, {**tables, "redact": redact} if redact else tables)
        begun = time.monotonic()
        agent.start()
        try:
            return finish_agent(agent, one.topic, one.input.records if joined else one.input.lines, begun)
        finally:
            agent.stop()

    return measure


def received(dialect: Dialect, connections: int, kafka: Mapping[str, Any] | None = None) -> Callable[[Round], Cost]:
    """An agent that apps' connections write to."""

    def measure(one: Round) -> Cost:
        agent = listening(one, one.kafka.bootstrap, kafka or {})
        agent.start()
        try:
            with sending(dialect, agent.socket, connections, one.input.lines):
                return finish_agent(agent, one.topic, one.input.lines, time.monotonic())
        finally:
            agent.stop()

    return measure


def backlog(one: Round) -> Cost:
    """An agent that finds all on disk when it starts."""
    agent = listening(one, NOBODY, {})
    agent.start()
    try:
        with sending(Dialect.NATIVE, agent.socket, 8, one.input.lines) as senders:
            for sender in senders:
                sender.join()
        agent.signal(signal.SIGTERM)
        agent.wait()
    finally:
        agent.stop()
    agent = listening(one, one.kafka.bootstrap, {})
    begun = time.monotonic()
    agent.start()
    try:
        return finish_agent(agent, one.topic, one.input.lines, begun)
    finally:
        agent.stop()


def listening(one: Round, bootstrap: str, kafka: Mapping[str, Any]) -> Agent:
    settings = {"bootstrap_servers": bootstrap, "topic": one.topic, **kafka}
    about = {"name": one.topic, "shutdown_timeout": "1s"}
    return Agent(one.directory, {"agent": about, "kafka": settings, "spool": ROOM})


def kcat(compression: str = "lz4") -> Callable[[Round], Cost]:
    return lambda one: peers.kcat_file(one.kafka, one.topic, one.input.path, compression)


def daemon(peer: str, connections: int = 0) -> Callable[[Round], Cost]:
    """Without connections it follows the file."""

    def measure(one: Round) -> Cost:
        if connections:
            return peers.daemon_socket(peer, one.kafka, one.topic, connections, one.input.lines, one.directory)
        return peers.daemon_file(peer, one.kafka, one.topic, one.input.path, one.input.lines, one.directory)

    return measure


USUAL, TEXT = "220 B", "text"
SIZES = {USUAL: USUAL_BYTES, "100 B": 100, "1 KiB": 1024, "10 KiB": 10 * 1024}

SUBJECTS = (
    Subject("file", "as it is", KCAT, USUAL, kcat()),
    Subject("file", "as it is", "agent", USUAL, tailed(format="raw"), most=1.2),
    Subject("file", "as it is", RSYSLOG, USUAL, daemon(RSYSLOG)),
    Subject("file", "as it is", SYSLOG_NG, USUAL, daemon(SYSLOG_NG)),
    Subject("file", "JSON checked", "agent", USUAL, tailed()),
    Subject("file", "fields spliced", "agent", USUAL, tailed(fields={"env": "prod", "team": "checkout"}), most=1.35),
    Subject("file", "key from a field", "agent", USUAL, tailed(key="{field:request_id}")),
    Subject("file", "exactly-once", "agent", USUAL, tailed(EXACTLY_ONCE, format="raw")),
    Subject("socket", "1 connection", "agent", USUAL, received(Dialect.NATIVE, 1), most=1.45),
    Subject("socket", "8 connections", "agent", USUAL, received(Dialect.NATIVE, 8), most=1.45),
    Subject("socket", "8 connections", RSYSLOG, USUAL, daemon(RSYSLOG, 8)),
    Subject("socket", "8 connections", SYSLOG_NG, USUAL, daemon(SYSLOG_NG, 8)),
    Subject("socket", "200 connections", "agent", USUAL, received(Dialect.NATIVE, 200)),
    Subject("socket", "8, exactly-once", "agent", USUAL, received(Dialect.NATIVE, 8, EXACTLY_ONCE), most=1.7),
    Subject("socket", "8, pickled", "agent", USUAL, received(Dialect.PICKLED, 8), most=9.0),
    Subject("backlog", "8 apps", "agent", USUAL, backlog, most=1.2),
    Subject("redact", "a pattern", "agent", USUAL, tailed(redact=[CUSTOMER])),
    *(Subject("redact", name, "agent", USUAL, tailed(redact=[{"name": name}])) for name in READYMADE),
    *(
        subject
        for codec in ("none", "zstd")
        for subject in (
            Subject("codec", codec, KCAT, USUAL, kcat(codec), codec),
            Subject("codec", codec, "agent", USUAL, tailed({"compression": codec}, format="raw"), codec),
        )
    ),
    *(
        subject
        for size in list(SIZES)[1:]
        for subject in (
            Subject("size", size, KCAT, size, kcat()),
            Subject("size", size, "agent", size, tailed(format="raw")),
            Subject("size", f"{size}, socket", "agent", size, received(Dialect.NATIVE, 8)),
        )
    ),
    Subject("text", "as it is", KCAT, TEXT, kcat()),
    Subject("text", "as it is", "agent", TEXT, tailed(format="raw")),
    Subject("text", "made JSON", "agent", TEXT, tailed()),
    Subject("text", "tracebacks joined", "agent", TEXT, tailed(joined=True, multiline="python"), joined=True),
)


# What is said of it


def about(present: set[str]) -> str:
    versions = [f"{each} {peers.version(each)}" for each in PACKAGES if each in present]
    ours = f"Python {platform.python_version()}, librdkafka {confluent_kafka.libversion()[0]}"
    return "; ".join([f"{os.cpu_count()} processors", ours, *versions])


def ratios(costs: Mapping[Subject, Sequence[Cost]], subject: Subject, of: Subject | None) -> list[float]:
    """Of processor time per line, in each round."""
    return [ours.cpu / theirs.cpu for ours, theirs in zip(costs[subject], costs[of], strict=True)] if of is not None else []


def measure_of(costs: Mapping[Subject, Sequence[Cost]], subject: Subject) -> Subject | None:
    """kcat on the same data with the same codec."""
    alike = (each for each in costs if each.who == KCAT and (each.data, each.measure) == (subject.data, subject.measure))
    return next(alike, None)


def table(costs: Mapping[Subject, Sequence[Cost]], inputs: Mapping[str, Input]) -> list[list[str]]:
    """Medians; lines are counted as they are in the input, joined or not."""
    rows = [["path", "", "µs CPU/line", "least to most", "of kcat's", "at most", "lines/s", "MiB/s", "peak MB"]]
    for subject, taken in costs.items():
        data = inputs[subject.data]
        each = [cost.cpu / data.lines * 1e6 for cost in taken]
        wall = statistics.median(cost.wall for cost in taken)
        compared = ratios(costs, subject, measure_of(costs, subject))
        rows.append(
            [
                f"{subject.group}/{subject.what}",
                subject.who,
                f"{statistics.median(each):.2f}",
                f"{min(each):.2f} to {max(each):.2f}",
                f"{statistics.median(compared):.2f}" if compared else "",
                f"{subject.most:g}" if subject.most else "",
                f"{data.lines / wall:,.0f}",
                f"{data.size / wall / (1 << 20):.0f}",
                f"{statistics.median(cost.memory for cost in taken) / 1e6:.0f}",
            ]
        )
    return rows


def print_verdicts(costs: Mapping[Subject, Sequence[Cost]]) -> None:
    """What was aimed at, beside what was reached."""
    named = {(each.group, each.what, each.who): each for each in costs}
    for subject, taken in costs.items():
        path = f"{subject.group}/{subject.what}"
        of = measure_of(costs, subject)
        if subject.most and of is not None:
            compared = ratios(costs, subject, of)
            say(path, f"of kcat's processor time: {spread(compared)}", statistics.median(compared) <= subject.most, subject.most)
        if path == "file/as it is" and subject.who == "agent" and of is not None:
            speeds = [theirs.wall / ours.wall for ours, theirs in zip(taken, costs[of], strict=True)]
            say(path, f"of kcat's speed: {spread(speeds)}", statistics.median(speeds) >= LEAST_SPEED, LEAST_SPEED, "least")
        if subject.group == "socket" and subject.what.endswith(("1 connection", "8 connections")) and subject.who == "agent":
            peak = statistics.median(cost.memory for cost in taken) / 1e6
            say(path, f"MB at the peak: {peak:.0f}", peak <= MOST_MEMORY / 1e6, MOST_MEMORY / 1e6)
        if subject.who == "agent":
            for peer in (RSYSLOG, SYSLOG_NG):
                with contextlib.suppress(KeyError):
                    shares = ratios(costs, subject, named[subject.group, subject.what, peer])
                    well = statistics.median(shares) <= MOST_OF_PEERS
                    say(path, f"of {peer}'s processor time: {spread(shares)}", well, MOST_OF_PEERS)


def say(path: str, figure: str, well: bool, aim: float, which: str = "most") -> None:
    print(f"{path}: {figure}; at {which} {aim:g}: {'reached' if well else 'MISSED'}")


def as_tree(costs: Mapping[Subject, Sequence[Cost]], inputs: Mapping[str, Input], present: set[str]) -> dict[str, Any]:
    """Processor and wall time in seconds, memory in bytes, of each round."""
    paths = [
        {
            "path": f"{subject.group}/{subject.what}",
            "who": subject.who,
            "lines": inputs[subject.data].lines,
            "bytes": inputs[subject.data].size,
            "rounds": [cost._asdict() for cost in taken],
            "ratio_to_kcat": ratios(costs, subject, measure_of(costs, subject)),
            "ratio_aimed_at": subject.most or None,
        }
        for subject, taken in costs.items()
    ]
    return {"about": about(present), "paths": paths}
