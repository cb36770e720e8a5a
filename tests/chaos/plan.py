"""What befalls whom, and when: drawn from a seed alone, so that the same seed always gives the same faults."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

FIRST = 3.0
"""Seconds that nothing happens in."""


class Fault(NamedTuple):
    """`at` seconds after the start, for `seconds`; `target` is a broker, `strength` what the kind makes of it."""

    at: float
    seconds: float
    subject: str
    kind: str
    target: int
    strength: float


class Kind(NamedTuple):
    weight: int
    shortest: float
    longest: float
    strength: tuple[float, float] = (0, 0)


AGENT = {
    "killed": Kind(6, 0, 3),
    "killed while it starts": Kind(3, 0, 1, (0.05, 0.6)),
    "stopped by TERM": Kind(3, 0, 3),
    "frozen": Kind(2, 1, 15),
}
BROKER = {
    "killed": Kind(4, 1, 20),
    # Of three, it hands its leaderships over first; once it is back they move back too.
    "stopped by TERM": Kind(4, 1, 15),
    "frozen": Kind(3, 1, 25),
}
THREE_BROKERS = {
    **BROKER,
    "killed with another one": Kind(2, 2, 15),
}
NETWORK = {
    "cut": Kind(3, 1, 20),
    "slowed to 100 ms": Kind(3, 3, 20),
    "throttled": Kind(2, 3, 15, (200_000, 1_000_000)),
    "reset in the middle of requests": Kind(4, 1, 5, (1, 8)),
}
PAUSES = {"agent": (4, 25), "broker": (15, 60), "network": (8, 40)}
"""Seconds between the end of one fault and the next, by subject: least and most."""


def plan(seed: int, seconds: float, brokers: int) -> list[Fault]:
    """All faults of a run of `seconds`, by time; each has ended before the run does."""
    faults = []
    subjects: dict[str, Mapping[str, Kind]] = {
        "agent": AGENT,
        "broker": BROKER if brokers == 1 else THREE_BROKERS,
        "network": NETWORK,
    }
    for subject, kinds in subjects.items():
        chance = random.Random(f"{seed} {subject}")
        at = FIRST + chance.uniform(0, PAUSES[subject][0])
        while True:
            (name,) = chance.choices(list(kinds), [kind.weight for kind in kinds.values()])
            kind = kinds[name]
            lasts, target = chance.uniform(kind.shortest, kind.longest), chance.randint(1, brokers)
            fault = Fault(at, lasts, subject, name, target, chance.uniform(*kind.strength))
            if at + lasts > seconds:
                break
            faults.append(fault)
            at += lasts + chance.uniform(*PAUSES[subject])
    return sorted(faults)
