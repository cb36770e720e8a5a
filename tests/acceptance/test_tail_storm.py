"""Everything at random, with real files, a real agent and a real Kafka: writing, rotation, deletion, restarts and kills.

No line may be lost, and only kills may repeat any. FORWARDER_SEED plays a run again, as far as the machine allows.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually

pytestmark = pytest.mark.slow

STEPS = 500
NAMES = ("app", "web", "job")
PAUSE = 0.03
SETTLED = 3.0
"""Seconds after which the agent has seen that a file was truncated, and what is a copy of what."""
KILLS, RESTARTS = 5, 3
OPERATIONS = {"write": 10, "rotate": 4, "rotate_dated": 2, "write_to_old": 3, "copy_truncate": 1, "delete": 1, "pause": 4}


class Log:
    """One log and what befalls its files; its lines are numbered through all of them."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path = path
        self.chance = chance
        self.sent = 0
        self.file = path.open("ab", buffering=0)
        self.old = self.file
        self.day = 0
        self.truncated = -SETTLED
        self.unfinished = False

    def line(self) -> bytes:
        text = "x" * self.chance.choice((0, 30, 200, 2000))
        self.sent += 1
        return b'{"text":"%s","writer":"%s","seq":%d}\n' % (text.encode(), self.path.stem.encode(), self.sent - 1)

    def write(self) -> None:
        for _ in range(self.chance.randrange(1, 50)):
            line = self.line()
            # Now and then a line comes in two parts.
            cut = self.chance.randrange(len(line)) if self.chance.random() < 0.1 else len(line)
            self.file.write(line[:cut])
            if cut < len(line):
                time.sleep(0.001)
                self.file.write(line[cut:])

    def write_to_old(self) -> None:
        if not self.old.closed:
            self.old.write(self.line())

    def _reopen(self) -> None:
        if self.old is not self.file:
            self.old.close()
        self.old = self.file
        self.file = self.path.open("ab", buffering=0)

    def _shift(self) -> None:
        for number in range(99, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.rename(f"{self.path}.{number + 1}")

    def rotate(self) -> None:
        self._shift()
        self.path.rename(f"{self.path}.1")
        self._reopen()

    def rotate_dated(self) -> None:
        self.day += 1
        self.path.rename(f"{self.path}-2026{self.day:04d}")
        self._reopen()

    def copy_truncate(self) -> None:
        if time.monotonic() - self.truncated < SETTLED or not self.path.stat().st_size:
            return
        self._shift()
        Path(f"{self.path}.1").write_bytes(self.path.read_bytes())
        self.file.truncate(0)
        self.truncated = time.monotonic()

    def close(self) -> None:
        self.file.close()
        self.old.close()


def delivered(agent: Agent) -> bool:
    status = agent.status()
    return status["kafka"]["in_flight_bytes"] == 0 and all(source["lag_bytes"] == 0 for source in status["sources"])


def has_open(agent: Agent, path: Path) -> bool:
    wanted = path.stat()
    with contextlib.suppress(OSError):
        return any(os.path.samestat(each.stat(), wanted) for each in Path(f"/proc/{agent.pid}/fd").iterdir())
    return False


def test_a_storm_of_rotations_restarts_and_kills_costs_no_line(
    kafka: Kafka, topic: str, agent: AgentFactory, directory: Path
) -> None:
    seed = int(os.environ.get("FORWARDER_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    logs = directory / "logs"
    logs.mkdir()
    written = [Log(logs / f"{name}.log", chance) for name in NAMES]
    tails = [{"paths": [f"{logs}/app.log", f"{logs}/web.log*", f"{logs}/job.log"]}]
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "tail": tails})
    one.start()
    stops = dict.fromkeys(chance.sample(range(STEPS), KILLS), "kill")
    stops |= dict.fromkeys(chance.sample([step for step in range(STEPS) if step not in stops], RESTARTS), "restart")
    done: Counter[str] = Counter()
    for step in range(STEPS):
        log = chance.choice(written)
        (operation,) = chance.choices(list(OPERATIONS), list(OPERATIONS.values()))
        if step in stops:
            operation = stops[step]
        done[operation] += 1
        if operation == "kill":
            one.kill()
        elif operation == "restart":
            assert one.terminate() == 0
        elif operation == "pause":
            # Random moments are the point here: nothing is waited for.
            time.sleep(chance.uniform(0, 4 * PAUSE))
        elif operation == "delete":
            # What nobody has opened yet would be lost with it.
            eventually(lambda file=log.path: has_open(one, file) and delivered(one), what="the agent to have all that there is")  # type: ignore[misc]
            log.path.unlink()
            log._reopen()
            log.old.close()
        else:
            getattr(log, operation)()
        if operation in {"kill", "restart"}:
            for each in written:
                each.write()
                each.rotate()
            one.start()
        time.sleep(chance.uniform(0, PAUSE))
    for log in written:
        log.close()
    print(dict(done))
    expected = {log.path.stem: log.sent for log in written}
    kafka.values(topic, expected=sum(expected.values()))
    eventually(lambda: delivered(one), what="the drain")
    assert one.terminate() == 0
    verdict = judge(kafka.values(topic), expected)
    print(verdict)
    assert (verdict.lost, verdict.alien) == (0, 0), verdict
