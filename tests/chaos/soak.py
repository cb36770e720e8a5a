"""One run: a Kafka behind a relay, an agent, the load, and the faults of the plan at their times; then the verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.load import Load, Written
from tests.chaos.plan import Fault, plan
from tests.harness.agent import Agent
from tests.harness.kafka import LEADERS_MOVE_BACK, Kafka, free_ports
from tests.harness.oracle import Judge, Verdict, read_sealed
from tests.harness.relay import Relay
from tests.harness.wait import eventually

TOPIC = "chaos"
PARTITIONS = 6
SOCKETS, FILES = 2, 2
SHUTDOWN_SECONDS = 10.0
SLOW = 0.1
DRAIN_SECONDS, READ_SECONDS = 300.0, 600.0
WATCH_SECONDS = 0.2


class Settings(NamedTuple):
    minutes: float
    seed: int
    rate: float
    delivery: str
    brokers: int


class Outcome(NamedTuple):
    verdict: Verdict
    troubles: list[str]
    """What went wrong beside the records: an agent that ended by itself or not in time, an exception in its log."""
    peak: int
    dead: float


def run(settings: Settings, directory: Path, say: Callable[[str], None]) -> Outcome:
    """Raises AssertionError when what was acknowledged does not arrive in time."""
    seconds = settings.minutes * 60
    ports = [free_ports(2) for _ in range(settings.brokers)]
    kafka = Kafka(
        directory / "kafka",
        settings.brokers,
        extra=LEADERS_MOVE_BACK,
        fronts=[(f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}") for port in ports],
    )
    agent = Agent(directory / "a", configuration(settings, kafka, directory))
    logs = [directory / f"logs/f{number}/app.log" for number in range(FILES)]
    load = Load([agent.socket] * SOCKETS, logs, settings.rate / (SOCKETS + FILES), settings.seed)
    with Relay(*((port + 1, port) for port in ports)) as relay:
        try:
            kafka.start()
            kafka.create_topic(TOPIC, PARTITIONS, {"min.insync.replicas": "2"} if settings.brokers == 3 else {})
            agent.start()
            load.start()
            stage = Stage(agent, kafka, relay, say)
            stage.play(plan(settings.seed, seconds, settings.brokers), seconds)
            say("the faults are over: the rest is sent")
            written = load.end(DRAIN_SECONDS)
            eventually(lambda: settled(agent, written), DRAIN_SECONDS, "everything to be delivered")
            stage.watch()
            dead = agent.metric("forwarder_records_dead_total")
            if (code := agent.terminate()) != 0:
                stage.troubles.append(f"the agent ended with {code} after TERM")
            if crashes := agent.log().count("Traceback"):
                stage.troubles.append(f"{crashes} tracebacks in the agent's log")
            judge = Judge(
                {name: writer.acknowledged for name, writer in written.items()},
                read_sealed,
                {name: writer.issued for name, writer in written.items()},
            )
            kafka.each(TOPIC, judge.take, READ_SECONDS)
            return Outcome(judge.verdict(), stage.troubles, stage.peak, dead)
        finally:
            load.kill()
            agent.stop()
            kafka.stop()


def configuration(settings: Settings, kafka: Kafka, directory: Path) -> dict[str, Any]:
    return {
        "kafka": {"bootstrap_servers": kafka.front, "topic": TOPIC, "delivery": settings.delivery},
        "agent": {"shutdown_timeout": f"{SHUTDOWN_SECONDS:g}s"},
        "socket": [{"path": str(directory / "a/s.sock")}],
        # As they are: the seal is of all of a line.
        "tail": [
            {"paths": [str(directory / f"logs/f{number}/app.log")], "app": f"f{number}", "format": "raw"}
            for number in range(FILES)
        ],
    }


def settled(agent: Agent, written: dict[str, Written]) -> bool:
    """Whether the agent has read everything and Kafka has it."""
    status = agent.status()
    return status["kafka"]["in_flight_bytes"] == 0 and not any(source["lag_bytes"] for source in status["sources"])


class Stage:
    """Plays faults, those of each subject in a thread of their own, and says each with its time."""

    def __init__(self, agent: Agent, kafka: Kafka, relay: Relay, say: Callable[[str], None]) -> None:
        self.troubles: list[str] = []
        self.peak = 0
        self._agent = agent
        self._kafka = kafka
        self._relay = relay
        self._say = say
        self._began = time.monotonic()

    def play(self, faults: list[Fault], seconds: float) -> None:
        """Until `seconds` have passed and every fault has ended."""
        works: dict[str, Callable[[Fault], None]] = {"agent": self._agent_fault, "broker": self._broker_fault}
        works["network"] = self._network_fault
        threads = [
            threading.Thread(target=self._play, args=([fault for fault in faults if fault.subject == subject], work))
            for subject, work in works.items()
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or time.monotonic() - self._began < seconds:
            self.watch()
            time.sleep(WATCH_SECONDS)

    def watch(self) -> None:
        """Take down the most memory the agent ever had."""
        try:
            self.peak = max(self.peak, self._agent.peak())
        except (OSError, AssertionError):
            return  # it is being started or has been killed

    def _play(self, faults: list[Fault], work: Callable[[Fault], None]) -> None:
        for fault in faults:
            time.sleep(max(self._began + fault.at - time.monotonic(), 0))
            what = fault.subject if fault.subject != "broker" else f"broker {fault.target}"
            self._say(f"{what} {fault.kind}, for {fault.seconds:.1f} s")
            try:
                work(fault)
            except Exception as error:  # other subjects go on, and the run has failed
                self.troubles.append(f"{what} {fault.kind}: {error}")

    def _agent_fault(self, fault: Fault) -> None:
        agent = self._agent
        assert agent.alive, f"the agent had ended by itself; its last words:\n{agent.log_tail(5)}"
        if fault.kind == "frozen":
            agent.freeze()
            time.sleep(fault.seconds)
            agent.thaw()
            return
        if fault.kind == "stopped by TERM":
            begun = time.monotonic()
            code = agent.terminate(SHUTDOWN_SECONDS + 20)
            took = time.monotonic() - begun
            self._say(f"agent ended {took:.1f} s after TERM")
            assert code == 0, f"it ended with {code}"
            assert took < SHUTDOWN_SECONDS + 5, f"it took {took:.1f} s to end"
        else:
            agent.kill()
        time.sleep(fault.seconds)
        agent.start(wait=False)
        if fault.kind == "killed while it starts":
            time.sleep(fault.strength)
            agent.kill()
            agent.start(wait=False)
        agent.await_ready(60)

    def _broker_fault(self, fault: Fault) -> None:
        kafka, target = self._kafka, fault.target
        if fault.kind == "frozen":
            kafka.freeze(target)
            time.sleep(fault.seconds)
            kafka.thaw(target)
            return
        gone = [target]
        if fault.kind == "killed with another one":
            gone.append(target % kafka.nodes + 1)
        for number in gone:
            (kafka.kill if fault.kind.startswith("killed") else kafka.down)(number)
        time.sleep(fault.seconds)
        for number in gone:
            kafka.up(number, timeout=120)

    def _network_fault(self, fault: Fault) -> None:
        relay = self._relay
        if fault.kind == "cut":
            relay.cut()
        elif fault.kind == "slowed to 100 ms":
            relay.delay = SLOW
        elif fault.kind == "throttled":
            relay.rate = fault.strength
        else:
            relay.tear(round(fault.strength))
        time.sleep(fault.seconds)
        relay.heal()
