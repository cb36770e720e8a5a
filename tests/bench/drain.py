"""What an outage leaves behind: how fast a backlog goes out when Kafka is back, while new records keep coming.

First as many records flow steadily through an agent, with a broker that was just started. Then the
broker is stopped, another agent takes the backlog, and the broker is started again. Counted is the time from the first delivery
until nothing of the backlog is left; what came in meanwhile was delivered too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tests.bench.common import arrived, check_arrival, number, print_table, workplace
from tests.bench.senders import MOST_PROCESSES, Dialect, sending
from tests.chaos.load import Load
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.wait import eventually

LEAST_SHARE = 0.7
"""Of the steady speed: what the drain should do."""
MORE_MEMORY = 64 << 20
"""What the agent may take beside `kafka.in_flight`."""
IN_FLIGHT = 32 << 20
ASK_SECONDS = 0.1
LONGEST = 900.0


def add(benches: argparse._SubParsersAction[Any]) -> None:
    parser = benches.add_parser("drain", help="a backlog after an outage, beside a steady flow")
    parser.add_argument("--records", type=number, default=5_000_000, help="records of the backlog (default: 5000000)")
    parser.add_argument("--connections", type=number, default=4, help="connections (default: 4)")
    parser.add_argument("--rate", type=number, default=20_000, help="new records a second meanwhile (default: 20000)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    records, connections = arguments.records, arguments.connections
    print(f"{records} lines over {connections} connections\n", flush=True)
    with workplace() as directory:
        kafka = Kafka(directory / "kafka")
        try:
            kafka.start()
            kafka.create_topic("steady")
            agent = make_agent(directory / "steady", kafka, "steady")
            with sending(Dialect.NATIVE, agent.socket, connections, records):
                steady, steady_peak = timed(agent, "steady", records), agent.peak()
            agent.stop()
            whole = check_arrival("steady", arrived(kafka, "steady"), records)
            kafka.delete_topic("steady")
            kafka.create_topic("drain")
            kafka.stop()

            agent = make_agent(directory / "drain", kafka, "drain")
            with sending(Dialect.NATIVE, agent.socket, connections, records) as senders:
                for sender in senders:
                    sender.join(LONGEST)
            load = Load([agent.socket], [], arguments.rate, 0)
            load.start()
            try:
                kafka.start()
                begun, delivered = first_delivery(agent)
                eventually(lambda: not backlog(agent, connections), LONGEST, "the backlog to be sent")
                seconds = time.monotonic() - begun
                drained = (count(agent, "drain") - delivered) / seconds
                peak = agent.peak()
                (new,) = load.end(60).values()
                eventually(lambda: count(agent, "drain") >= records + new.acknowledged, 60, "all to be delivered")
            finally:
                load.kill()
                agent.stop()
            whole &= check_arrival("drain", arrived(kafka, "drain"), records + new.acknowledged)
        finally:
            kafka.stop()
    rows = [["", "", "records/s", "memory MiB"]]
    for who, rate, memory in (("steady", steady, steady_peak), ("drain", drained, peak)):
        rows.append([who, "", f"{rate:,.0f}", f"{memory / (1 << 20):.0f}"])
    print_table(rows)
    print(
        f"\nThe backlog went out in {seconds:.1f} s, at {drained / steady:.0%} of the steady speed (at least {LEAST_SHARE:.0%}), "
        f"with {new.acknowledged} new records; memory at most {(IN_FLIGHT + MORE_MEMORY) >> 20} MiB"
    )
    return 0 if whole else 1


def make_agent(directory: Path, kafka: Kafka, topic: str) -> Agent:
    """A running one."""
    agent = Agent(
        directory,
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic, "in_flight": IN_FLIGHT},
            "spool": {"max_bytes": "16GiB", "max_bytes_per_app": "8GiB"},
        },
    )
    agent.start()
    return agent


def timed(agent: Agent, topic: str, records: int) -> float:
    """Records a second until `records` are delivered."""
    begun, delivered = first_delivery(agent)
    while count(agent, topic) < records:
        if time.monotonic() - begun > LONGEST:
            raise SystemExit(f"after {LONGEST:g} s the agent had delivered {count(agent, topic)} of {records} records")
        time.sleep(ASK_SECONDS)
    return (records - delivered) / (time.monotonic() - begun)


def first_delivery(agent: Agent) -> tuple[float, int]:
    """When the first records were delivered, and how many."""
    delivered = eventually(lambda: sum(agent.status()["kafka"]["delivered"].values()), 120, "the first delivery")
    return time.monotonic(), delivered


def count(agent: Agent, topic: str) -> int:
    return int(agent.status()["kafka"]["delivered"].get(topic, 0))


def backlog(agent: Agent, connections: int) -> int:
    """Bytes of the senders' records that are not in flight yet."""
    apps = {f"app{number}" for number in range(min(connections, MOST_PROCESSES))}
    time.sleep(ASK_SECONDS)
    return sum(source["lag_bytes"] for source in agent.status()["sources"] if source["app"] in apps)
