"""How a record's cost, and memory, depend on how much there is of everything: connections, apps, files, backlog.

At each point the same number of records, over several rounds in turn, each with a fresh agent and topic. What a start costs is
taken out and printed beside: processor time is counted from the agent at rest, everything connected and known to it, until it is
at rest again and all is in Kafka. Peers are not counted. The most that a point may cost is MOST_TIMES what the first one does.

- connections: all of one app, each as fast as the agent takes it, in writes of a batch
- paced: the same, but PACE records a second over all of them for PACED_SECONDS, one in a write, as apps with little to say do:
  the more connections, the fewer records come with a read
- apps: one connection each, so as many spools
- files: each gets its share at once, in writes of a batch
- backlog: an agent is started with so many bytes in its spool and delivers the first of them. The spool's segments, of which
  names alone say where they belong, are links to one: 20 GB of names take 64 MiB of disk. So the disk is read from memory.
- beside: the records of one connection, while another app has such a backlog, which waits for a topic that is not there
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from forwarder.route import describe
from forwarder.spool import SEGMENT_BYTES, directory_name
from forwarder.spool import block as blocks
from tests.bench import idle
from tests.bench.common import arrived, check_arrival, new_topic, number, print_table, workplace
from tests.bench.crowd import BATCH_RECORDS, Crowd, Place, crowd, flood, make_batches, trickle
from tests.harness.agent import Agent
from tests.harness.kafka import Topics, temporary_cluster
from tests.harness.wait import eventually

MOST_TIMES = 1.3
PACE, PACED_SECONDS = 10_000, 15.0
REST_SECONDS, ASK_SECONDS = 0.5, 0.1
LONGEST = 600.0
GB = 10**9
SPOOL = {"max_bytes": "64GiB", "max_bytes_per_app": "64GiB"}


class Work(NamedTuple):
    """What a measurement needs: a directory of its own, a topic of its own, and how many records."""

    directory: Path
    kafka: Topics
    topic: str
    records: int

    def agent(self) -> Agent:
        kafka = {"bootstrap_servers": self.kafka.bootstrap, "topic": self.topic}
        return Agent(self.directory, {"kafka": kafka, "spool": SPOOL})


class Cost(NamedTuple):
    """Microseconds a record, records a second, bytes of memory before and at most; seconds until ready, processor time before."""

    cpu: float
    rate: float
    idle: float
    peak: float
    ready: float
    before: float


class Curve(NamedTuple):
    title: str
    points: tuple[float, ...]
    measure: Callable[[Work, float], Cost]


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("curves", help="a record's cost against connections, apps, files, backlog; with plots")
    parser.add_argument("--records", type=number, default=500_000, help="records at each point (default: 500000)")
    parser.add_argument("--rounds", type=number, default=3, help="rounds (default: 3)")
    parser.add_argument("--only", action="append", choices=CURVES, help="one curve, may be given several times")
    parser.add_argument("--points", metavar="N,N,…", help="other points than the curve's own")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where the plots go (default: here)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        import pygal  # noqa: F401
    except ImportError:
        print("the plots need the library pygal, which is not installed: pip install '.[bench]'")
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{arguments.records} records at each point; {arguments.rounds} rounds")
    with workplace() as directory, temporary_cluster(extra="auto.create.topics.enable=false") as kafka:
        for name in arguments.only or CURVES:
            curve = CURVES[name]
            points = tuple(map(float, arguments.points.split(","))) if arguments.points else curve.points
            costs: dict[float, list[Cost]] = {point: [] for point in points}
            for turn in range(arguments.rounds):
                for point in points if turn % 2 == 0 else points[::-1]:
                    with new_topic(kafka) as topic, emptied(directory / f"{name}{turn}") as place:
                        costs[point].append(curve.measure(Work(place, kafka, topic, arguments.records), point))
            medians = {point: Cost(*map(statistics.median, zip(*of, strict=True))) for point, of in costs.items()}
            show(curve, costs, medians)
            draw(arguments.output / f"curve-{name}.svg", curve, medians)
    return 0


def show(curve: Curve, costs: Mapping[float, list[Cost]], medians: Mapping[float, Cost]) -> None:
    first = next(iter(medians.values()))
    header = ["µs CPU/record", "least to most", "of the first", "records/s", "memory MiB", "peak MiB", "ready s", "CPU s before"]
    table = [[curve.title, "", *header]]
    for point, cost in medians.items():
        each = [one.cpu for one in costs[point]]
        cells = [f"{cost.cpu:.2f}", f"{min(each):.2f} to {max(each):.2f}", f"{cost.cpu / first.cpu:.2f}", f"{cost.rate:,.0f}"]
        cells += [f"{cost.idle / (1 << 20):.1f}", f"{cost.peak / (1 << 20):.1f}", f"{cost.ready:.2f}", f"{cost.before:.2f}"]
        table.append([f"{point:g}", "", *cells])
    print()
    print_table(table)
    point, worst = max(((point, cost.cpu / first.cpu) for point, cost in medians.items()), key=lambda each: each[1])
    verdict = "within" if worst <= MOST_TIMES else "beyond"
    print(f"at {point:g} it is {worst:.2f} times the first, the most of all: {verdict} {MOST_TIMES:g}", flush=True)


def draw(path: Path, curve: Curve, medians: Mapping[float, Cost]) -> None:
    import pygal

    chart = pygal.Line(title=curve.title, range=(0, 1.2 * max(cost.cpu for cost in medians.values())), x_title=curve.title)
    chart.y_title, chart.legend_at_bottom = "µs of processor time a record", True
    chart.x_labels = [f"{point:g}" for point in medians]
    chart.add("µs CPU a record", [round(cost.cpu, 3) for cost in medians.values()])
    chart.add("memory at most, MiB", [round(cost.peak / (1 << 20), 1) for cost in medians.values()], secondary=True)
    chart.render_to_file(str(path))
    print(f"plot: {path}")


# The points


def connections(work: Work, count: float) -> Cost:
    return sockets(work, ["app"] * int(count))


def apps(work: Work, count: float) -> Cost:
    return sockets(work, [f"app{place}" for place in range(int(count))])


def sockets(work: Work, names: list[str]) -> Cost:
    each, more = divmod(work.records, len(names))
    assert not more, f"{work.records} records cannot be shared by {len(names)}"
    with running(work.agent()) as (agent, ready), crowd(flood, [Place(str(agent.socket), name) for name in names], each) as peers:
        return measured(work, agent, ready, lambda: all_of(peers))


def paced(work: Work, count: float) -> Cost:
    agent = work.agent()
    with running(agent) as (_, ready), crowd(trickle, [Place(str(agent.socket), "app")] * int(count), PACE) as peers:

        def send() -> int:
            peers.go()
            time.sleep(PACED_SECONDS)
            return peers.stop()

        return measured(work, agent, ready, send)


def files(work: Work, count: float) -> Cost:
    each, more = divmod(work.records, int(count))
    assert not more, f"{work.records} records cannot be shared by {count:g}"
    agent, paths = idle.tailing(work.directory, work.kafka, work.topic, int(count))
    known = int(count) * idle.LINES_A_FILE
    batches = make_batches(each)

    def write() -> int:
        for batch in batches:
            for path in paths:
                with path.open("ab", buffering=0) as file:
                    file.write(batch)
        return work.records

    with running(agent) as (_, ready):
        eventually(lambda: arrived(work.kafka, work.topic) >= known, LONGEST, "all files to be known")
        return measured(work, agent, ready, write, known)


def backlog(work: Work, size: float) -> Cost:
    """Counted from the first delivery on: there is no rest before."""
    agent = work.agent()
    lay_backlog(agent.state, "app", b"", int(size * GB))
    with running(agent) as (_, ready):
        first, cpu = eventually(lambda: delivered(agent, work.topic), LONGEST, "the first delivery"), agent.cpu()
        before, begun = cpu, time.monotonic()
        while (now := delivered(agent, work.topic)) < first + work.records:
            time.sleep(ASK_SECONDS)
        cpu, seconds = agent.cpu() - cpu, time.monotonic() - begun
        return Cost(cpu / (now - first) * 1e6, (now - first) / seconds, agent.rss(), agent.peak(), ready, before)


def beside(work: Work, size: float) -> Cost:
    agent = work.agent()
    if size:
        lay_backlog(agent.state, "other", describe("nowhere", None, {}), int(size * GB))
    with running(agent) as (_, ready), crowd(flood, [Place(str(agent.socket), "app")], work.records) as peers:
        return measured(work, agent, ready, lambda: all_of(peers))


CURVES = {
    "connections": Curve("connections", (1, 10, 100, 500, 1000, 2000), connections),
    "paced": Curve("connections, paced", (1, 10, 100, 1000, 2000), paced),
    "apps": Curve("apps", (1, 10, 100, 500), apps),
    "files": Curve("files", (1, 10, 100, 1000, 5000), files),
    "backlog": Curve("GB of backlog, delivered", (0.25, 1, 5, 20), backlog),
    "beside": Curve("GB of another app's backlog", (0, 1, 5, 20), beside),
}


# What they share


@contextmanager
def emptied(directory: Path) -> Iterator[Path]:
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(agent: Agent) -> Iterator[tuple[Agent, float]]:
    """A started agent, and how many seconds that took."""
    begun = time.monotonic()
    agent.start()
    try:
        yield agent, time.monotonic() - begun
    finally:
        agent.stop()


def all_of(peers: Crowd) -> int:
    peers.go()
    return peers.join()


def measured(work: Work, agent: Agent, ready: float, send: Callable[[], int], known: int = 0) -> Cost:
    """From rest to rest, what `send` sends and the delivery of it; `known` records were delivered before.

    Raises SystemExit when what arrived is not what was sent.
    """
    rest(agent)
    idle_memory, before = agent.rss(), agent.cpu()
    begun = time.monotonic()
    sent = send()
    expected = known + sent
    eventually(lambda: arrived(work.kafka, work.topic) >= expected, LONGEST, "everything to be delivered")
    seconds = time.monotonic() - begun
    rest(agent)
    cpu = agent.cpu() - before
    if not check_arrival(str(work.directory), arrived(work.kafka, work.topic), expected):
        raise SystemExit(1)
    eventually(lambda: delivered(agent, work.topic) == expected, 30, "the last acknowledgements")
    return Cost(cpu / sent * 1e6, sent / seconds, idle_memory, agent.peak(), ready, before)


def rest(agent: Agent) -> None:
    """Wait until it has done nothing for a while. It is not asked: with thousands of sources an answer costs it something."""
    last, since = agent.cpu(), time.monotonic()
    while time.monotonic() - since < REST_SECONDS:
        time.sleep(ASK_SECONDS)
        if (now := agent.cpu()) != last:
            last, since = now, time.monotonic()


def delivered(agent: Agent, topic: str) -> int:
    return int(agent.status()["kafka"]["delivered"].get(topic, 0))


def lay_backlog(state: Path, app: str, route: bytes, size: int) -> None:
    """A spool of whole segments, `size` bytes of them or a little more, without the disk that they would take.

    All but the last are links to one; to the last the agent may add.
    """
    directory = state / "spool" / directory_name(app)
    directory.mkdir(parents=True, mode=0o700)
    batches = make_batches(80 * BATCH_RECORDS)
    seed = state.with_name("seed")
    with seed.open("wb") as file:
        file.write(blocks.header(blocks.SESSIONS, b"", b"", 0, 0, blocks.NO_SESSION, 0))
        for batch in itertools.cycle(batches):
            block = blocks.header(blocks.RECORDS, route, batch, BATCH_RECORDS, time.time(), blocks.NO_SESSION, 0) + route + batch
            if file.tell() + len(block) > SEGMENT_BYTES:
                break
            file.write(block)
    step = seed.stat().st_size
    last = (size - 1) // step * step
    for first in range(0, last, step):
        os.link(seed, directory / f"{first:020d}.seg")
    shutil.copyfile(seed, directory / f"{last:020d}.seg")
