"""What a fleet does to its brokers: connections, requests by kind, bytes; and how it comes back after an outage.

Real agents, three real brokers, and before these a relay that counts (`tests.harness.counting`). Each agent has one app that
logs record by record. At the end what that means for fleets of other sizes, on paper, from the figures just measured; what is
assumed beside them is printed with where it comes from.

- idle, new: started, nothing sent yet
- 10/s: every agent gets ten records a second
- busy: as many agents as `--total` allows get a thousand a second
- idle: after that
- one broker restarted, then all three; meanwhile every agent gets ten records a second
"""

from __future__ import annotations

import argparse
import functools
import operator
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.common import arrived, number, print_table, workplace
from tests.bench.crowd import Place, crowd, trickle
from tests.harness import process
from tests.harness.agent import Agent
from tests.harness.counting import CountingRelay, Sample
from tests.harness.kafka import LEADERS_MOVE_BACK, Kafka, free_ports
from tests.harness.wait import eventually

BROKERS = 3
PARTITIONS = 12
TOPIC = "logs"
AT_ONCE = 5
"""Agents that are started together."""
SLOW, BUSY = 10, 1000
"""Records a second of one agent."""
SETTLE_SECONDS = 5.0
BEHIND_SECONDS = 1.0
LONGEST = 300.0

MOST_CONNECTIONS = 4000
MOST_CONNECTIONS_SOURCE = "https://support.huaweicloud.com/eu/kafka_faq/kafka-faq-0033.html, per broker of 4 to 16 cores"
CORES = 8
CORES_SHARE = 0.5
FLEETS = (1_000, 100_000)


class Phase(NamedTuple):
    """What came to each broker within `seconds`, from `agents` that got `rate` records a second each."""

    name: str
    agents: int
    rate: float
    seconds: float
    requests: list[Counter[str]]
    present: list[int]
    made: int
    bytes_in: int
    bytes_out: int
    cpu: float

    @property
    def kinds(self) -> Counter[str]:
        return functools.reduce(operator.add, self.requests)


class Return(NamedTuple):
    """How the fleet came back.

    Seconds without all brokers; from when they answer until the topic is served, and until all agents deliver again; the most
    in any second.
    """

    name: str
    away: float
    served: float
    delivered: float
    connections: int
    requests: int
    connected: int


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("fleet", help="what many agents do to three brokers")
    parser.add_argument("--agents", type=number, default=50, help="agents (default: 50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each phase is watched (default: 60)")
    parser.add_argument("--total", type=number, default=10_000, help="most records a second of all busy agents (default: 10000)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a property of librdkafka, for all agents")
    parser.add_argument("--no-restarts", action="store_true", help="only the steady phases")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    properties = dict(text.split("=", 1) for text in arguments.set or ())
    first = free_ports(2 * BROKERS)
    ways = [(first + 2 * place + 1, first + 2 * place) for place in range(BROKERS)]
    fronts = [(f"127.0.0.1:{own}", f"127.0.0.1:{relayed}") for relayed, own in ways]
    print(f"{arguments.agents} agents, {BROKERS} brokers, {PARTITIONS} partitions; {properties or 'the defaults'}\n", flush=True)
    with workplace() as directory, CountingRelay(*ways) as relay:
        kafka = Kafka(directory / "kafka", nodes=BROKERS, fronts=fronts, extra=LEADERS_MOVE_BACK)
        agents: list[Agent] = []
        try:
            kafka.start()
            kafka.create_topic(TOPIC, PARTITIONS)
            agents = [make_agent(directory / str(place), kafka, properties) for place in range(arguments.agents)]
            start(agents)
            fleet = Fleet(agents, kafka, relay, arguments.seconds)
            phases = [fleet.watch("idle, new")]
            phases.append(fleet.load("10/s", agents, SLOW))
            phases.append(fleet.load("busy", agents[: max(arguments.total // BUSY, 1)], BUSY))
            phases.append(fleet.watch("idle"))
            show(phases)
            returns = [] if arguments.no_restarts else [fleet.restart_one(), fleet.restart_all()]
            whole = fleet.check()
        finally:
            for agent in agents:
                agent.stop()
            kafka.stop()
    if returns:
        show_returns(returns)
        extrapolate(phases, returns)
    return 0 if whole else 1


def make_agent(directory: Path, kafka: Kafka, properties: dict[str, str]) -> Agent:
    return Agent(directory, {"kafka": {"bootstrap_servers": kafka.front, "topic": TOPIC, "properties": properties}})


def start(agents: Sequence[Agent]) -> None:
    for begin in range(0, len(agents), AT_ONCE):
        for agent in agents[begin : begin + AT_ONCE]:
            agent.start(wait=False)
        for agent in agents[begin : begin + AT_ONCE]:
            agent.await_ready(60)


class Fleet:
    """The agents, and what they have been sent."""

    def __init__(self, agents: Sequence[Agent], kafka: Kafka, relay: CountingRelay, seconds: float) -> None:
        self._agents = agents
        self._kafka = kafka
        self._relay = relay
        self._seconds = seconds
        self._sent = 0

    def watch(self, name: str, agents: int = 0, rate: float = 0) -> Phase:
        time.sleep(SETTLE_SECONDS)
        before, begun, cpu = self._relay.fronts(), time.monotonic(), self._brokers_cpu()
        time.sleep(self._seconds)
        after, seconds, cpu = self._relay.fronts(), time.monotonic() - begun, self._brokers_cpu() - cpu
        pairs = list(zip(before, after, strict=True))
        return Phase(
            name,
            agents or len(self._agents),
            rate,
            seconds,
            [new.requests - old.requests for old, new in pairs],
            [front.present for front in after],
            sum(new.made - old.made for old, new in pairs),
            sum(new.bytes_in - old.bytes_in for old, new in pairs),
            sum(new.bytes_out - old.bytes_out for old, new in pairs),
            cpu,
        )

    def load(self, name: str, agents: Sequence[Agent], rate: float) -> Phase:
        """Watch while each of `agents` gets `rate` records a second."""
        with crowd(trickle, places(agents), rate * len(agents)) as peers:
            peers.go()
            phase = self.watch(name, len(agents), rate)
            self._sent += peers.stop()
        self._await_all()
        return phase

    def restart_one(self) -> Return:
        def restart() -> None:
            self._kafka.down(1)
            self._relay.close(0)
            self._kafka.up(1)
            self._relay.open(0)

        return self._restart("one broker", restart)

    def restart_all(self) -> Return:
        def restart() -> None:
            self._kafka.stop()
            for place in range(BROKERS):
                self._relay.close(place)
            self._kafka.start()
            for place in range(BROKERS):
                self._relay.open(place)

        return self._restart("all brokers", restart)

    def _restart(self, name: str, restart: Any) -> Return:
        with crowd(trickle, places(self._agents), SLOW * len(self._agents)) as peers:
            peers.go()
            time.sleep(SETTLE_SECONDS)
            begun = time.monotonic()
            restart()
            back = time.monotonic()
            self._relay.samples()
            self._kafka.end_offsets(TOPIC)
            served = time.monotonic() - back
            self._await_all()
            delivered = time.monotonic() - back
            time.sleep(SETTLE_SECONDS)
            samples = self._relay.samples()
            self._sent += peers.stop()
        self._await_all()
        connections, requests = (most_a_second(samples, operator.attrgetter(of)) for of in ("made", "requests"))
        most = max(sample.present for sample in samples)
        return Return(name, back - begun, served, delivered, connections, requests, most)

    def _await_all(self) -> None:
        """Until no agent has a record that is not in Kafka and older than BEHIND_SECONDS."""
        for agent in self._agents:
            eventually(
                lambda agent=agent: agent.status()["kafka"]["oldest_unacked_seconds"] < BEHIND_SECONDS,  # type: ignore[misc]
                LONGEST,
                "all to deliver",
            )

    def _brokers_cpu(self) -> float:
        return sum(process.cpu(self._kafka.pid(place + 1)) for place in range(BROKERS))

    def check(self) -> bool:
        """Whether all that was sent has arrived. What was in flight of a producer that had to be replaced is there twice."""
        eventually(lambda: arrived(self._kafka, TOPIC) >= self._sent, 60, "everything to arrive")
        there = arrived(self._kafka, TOPIC)
        replaced = sum(agent.status()["kafka"]["producers_replaced"] for agent in self._agents)
        print(f"\n{self._sent} records were sent and {there} arrived; {replaced} producers were replaced")
        return there == self._sent or (there > self._sent and replaced > 0)


def places(agents: Sequence[Agent]) -> list[Place]:
    return [Place(str(agent.socket), "shop") for agent in agents]


def most_a_second(samples: Sequence[Sample], value: Any) -> int:
    """The most that a counter grew within any second."""
    most, begin = 0, 0
    for sample in samples:
        while sample.at - samples[begin].at > 1:
            begin += 1
        most = max(most, value(sample) - value(samples[begin]))
    return most


def show(phases: Sequence[Phase]) -> None:
    kinds = [kind for kind, _ in functools.reduce(operator.add, (phase.kinds for phase in phases)).most_common()]
    header = [
        "agents",
        "connections",
        "made",
        *(f"{kind}/s" for kind in kinds),
        "Produce by broker",
        "KB/s in",
        "out",
        "brokers' CPU",
    ]
    table = [["", "", *header]]
    for phase in phases:
        rates = [f"{phase.kinds[kind] / phase.seconds:.2f}" for kind in kinds]
        by_broker = "/".join(f"{of['Produce'] / max(phase.kinds['Produce'], 1):.0%}" for of in phase.requests)
        sizes = [f"{size / phase.seconds / 1000:,.1f}" for size in (phase.bytes_in, phase.bytes_out)]
        cells = [str(phase.agents), "/".join(map(str, phase.present)), str(phase.made), *rates, by_broker, *sizes]
        table.append([phase.name, "", *cells, f"{phase.cpu / phase.seconds:.1%}"])
    print_table(table)


def show_returns(returns: Sequence[Return]) -> None:
    header = ["away s", "topic served after s", "all deliver after s", "connections/s", "requests/s", "connected at most"]
    table = [["restarted", "", *header]]
    for of in returns:
        figures = [str(figure) for figure in (of.connections, of.requests, of.connected)]
        table.append([of.name, "", f"{of.away:.1f}", f"{of.served:.1f}", f"{of.delivered:.1f}", *figures])
    print()
    print_table(table)
    print("Seconds after the brokers answer; the rates are the most in any second since then.")


def extrapolate(phases: Sequence[Phase], returns: Sequence[Return]) -> None:
    """The arithmetic for larger fleets."""
    fresh, slow, _, idle = phases
    connections = max(max(phase.present) for phase in phases) / idle.agents
    quiet, each = (phase.kinds.total() / phase.seconds / phase.agents for phase in (idle, slow))
    cost = max(slow.cpu / slow.seconds - fresh.cpu / fresh.seconds, 1e-9) * slow.seconds / slow.kinds.total()
    able = CORES * CORES_SHARE / cost
    storm = returns[-1].connections / idle.agents
    print(f"""
On paper. Measured above:
  connections of an agent to one broker           {connections:.2f}
  requests/s of an agent, idle                    {quiet:.3f}
  requests/s of an agent at {SLOW} records/s         {each:.2f}
  connections/s of an agent after all restarted   {storm:.2f}
  brokers' processor time a request               {cost * 1e6:.0f} µs: copies to two others, and how little it had to do, in it
Assumed:
  connections of a broker    {MOST_CONNECTIONS} ({MOST_CONNECTIONS_SOURCE})
  requests/s of a broker     {CORES} cores, {CORES_SHARE:.0%} of them for requests:
    {CORES} x {CORES_SHARE:g} / {cost * 1e6:.0f} µs = {able:,.0f}""")
    for fleet in FLEETS:
        there, needed = fleet * connections, fleet * each
        print(f"""
{fleet:,} agents:
  connections of each broker that leads a partition of their topic: {fleet:,} x {connections:.2f} = {there:,.0f}
    more brokers do not lessen that, each agent comes to all of them; groups of brokers, each with a topic of its own, do:
    {there:,.0f} / {MOST_CONNECTIONS} = {there / MOST_CONNECTIONS:.2f} groups
  requests/s idle: {fleet:,} x {quiet:.3f} = {fleet * quiet:,.0f}
  requests/s at {SLOW} records/s: {fleet:,} x {each:.2f} = {needed:,.0f}, which {needed / able:.2f} brokers take
  when all brokers return: {fleet:,} x {storm:.2f} = {fleet * storm:,.0f} connections in the busiest second""")
