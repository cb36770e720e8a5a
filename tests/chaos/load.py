"""The apps: processes that write sealed records at an even rate, over sockets with acknowledgements and into rotated files.

A record is made from its number alone, so a writer that has to send again keeps nothing. What is written to a file counts as
acknowledged: the file is its own spool.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness.native import Native
from tests.harness.oracle import sealed

TICK = 0.05
PATIENCE = 2.0
"""Seconds that a peer waits for an agent that does not read or answer, before it connects anew."""
ROTATE_SECONDS = (1.0, 15.0)
MOST_AT_ONCE = 2000
TORN_LINES = 0.1
"""The share of writes whose last line comes in two parts."""
CHAIN = 5


class Written(NamedTuple):
    issued: int
    acknowledged: int


class Load:
    """Writers on `sockets` and `files`, each at `rate` records a second, named `s0`, `s1`, … and `f0`, `f1`, …

    Made before the agent starts: a file that is rotated before the agent ever saw one at its path is nobody's.
    """

    def __init__(self, sockets: list[Path], files: list[Path], rate: float, seed: int) -> None:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        context = multiprocessing.get_context("spawn")
        self._ending = context.Event()
        self._results: Any = context.Queue()
        jobs: list[tuple[Callable[..., None], str, Path]] = [
            *((send, f"s{number}", path) for number, path in enumerate(sockets)),
            *((write, f"f{number}", path) for number, path in enumerate(files)),
        ]
        self.writers = {
            name: context.Process(target=work, args=(name, str(path), rate, seed, self._ending, self._results))
            for work, name, path in jobs
        }

    def start(self) -> None:
        for process in self.writers.values():
            process.start()

    def end(self, timeout: float) -> dict[str, Written]:
        """Issue no more, wait for acknowledgements, and say for each writer what became of it."""
        self._ending.set()
        results = dict(self._results.get(timeout=timeout) for _ in self.writers)
        for process in self.writers.values():
            process.join(timeout)
        return {name: Written(*result) for name, result in results.items()}

    def kill(self) -> None:
        for process in self.writers.values():
            if process.is_alive():
                process.kill()
                process.join()


def record(writer: str, number: int) -> bytes:
    return sealed(writer, number, f"order {number * 7919 % 100_003:08d} took {number % 997} ms " + "x" * (number % 61))


class Pace:
    """How many records are due by now."""

    def __init__(self, rate: float) -> None:
        self.issued = 0
        self._rate = rate
        self._began = time.monotonic()

    def due(self) -> range:
        """The numbers that are due and not issued yet; they count as issued then."""
        first, self.issued = self.issued, max(int((time.monotonic() - self._began) * self._rate), self.issued)
        return range(first, self.issued)


def send(name: str, path: str, rate: float, seed: int, ending: Any, results: Any) -> None:
    """Over a socket, until told to end and everything issued is acknowledged."""
    pace = Pace(rate)
    acknowledged = 0
    while not (ending.is_set() and acknowledged == pace.issued):
        # The agent is away, frozen or killed, often: what is not acknowledged is sent again.
        with contextlib.suppress(OSError), Native(path, timeout=PATIENCE) as peer:
            sent = acknowledged
            acknowledged = max(acknowledged, peer.greet(app=name, session=name, first=sent))
            while not (ending.is_set() and acknowledged == pace.issued):
                if not ending.is_set():
                    pace.due()
                until = min(pace.issued, sent + MOST_AT_ONCE)
                peer.send(record(name, number) for number in range(sent, until))
                behind, sent = until < pace.issued, until
                if sent <= acknowledged or not select.select([peer.socket], [], [], 0 if behind else TICK)[0]:
                    time.sleep(TICK if sent <= acknowledged else 0)
                    continue
                acknowledged = max(acknowledged, peer.read_acks())
        if not ending.is_set():
            pace.due()
        time.sleep(TICK)
    results.put((name, (pace.issued, acknowledged)))


def write(name: str, path: str, rate: float, seed: int, ending: Any, results: Any) -> None:
    """Into a file that is renamed now and then, by turns to a dated name and along a chain of numbers; nothing is deleted."""
    chance = random.Random(f"{seed} {name}")
    pace = Pace(rate)
    log = Path(path)
    file = log.open("ab", buffering=0)
    rotations = 0
    rotate_at = time.monotonic() + chance.uniform(*ROTATE_SECONDS)
    while not ending.is_set():
        time.sleep(TICK)
        data = b"".join(record(name, number) + b"\n" for number in pace.due())
        cut = chance.randrange(len(data)) if data and chance.random() < TORN_LINES else len(data)
        file.write(data[:cut])
        if cut < len(data):
            time.sleep(chance.uniform(0, TICK))
            file.write(data[cut:])
        if time.monotonic() > rotate_at:
            rotations += 1
            rotate(log, rotations)
            file.close()
            file = log.open("ab", buffering=0)
            rotate_at = time.monotonic() + chance.uniform(*ROTATE_SECONDS)
    file.close()
    results.put((name, (pace.issued, pace.issued)))


def rotate(log: Path, rotations: int) -> None:
    if rotations % 2:
        log.rename(f"{log}-{20260101 + rotations}")
        return
    for number in range(CHAIN, 0, -1):
        older = Path(f"{log}.{number}")
        if older.exists():
            older.rename(f"{log}.{number + 1}" if number < CHAIN else f"{log}-{20260101 + rotations}")
    log.rename(f"{log}.1")
