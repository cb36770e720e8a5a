"""Judges what arrived: every record names its writer and its number within that writer, counted from 0.

A record is lost when it never arrived, duplicated when it arrived before, reordered when its first arrival came after that of a
larger number (which means something only where order is promised: one partition, or one key a writer), alien when it cannot be
read or was never sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

SHOWN = 20

_WRITER = re.compile(rb'"writer"\s*:\s*"([^"]*)"')
_NUMBER = re.compile(rb'"seq"\s*:\s*(\d+)')

Reader = Callable[[bytes], tuple[str, int]]


class Tally(NamedTuple):
    """How one writer fared, or all together. `received` counts duplicates too; `first_lost` holds some of the lost numbers."""

    sent: int
    received: int
    lost: int
    first_lost: tuple[int, ...]
    duplicated: int
    reordered: int

    def __str__(self) -> str:
        lost = str(self.lost)
        if self.first_lost:
            lost += f" ({', '.join(map(str, self.first_lost))}{', …' if self.lost > len(self.first_lost) else ''})"
        return (
            f"sent {self.sent}, received {self.received}, lost {lost}, duplicated {self.duplicated}, reordered {self.reordered}"
        )


class Verdict(NamedTuple):
    writers: dict[str, Tally]
    alien: int
    first_alien: tuple[bytes, ...]

    @property
    def sent(self) -> int:
        return sum(tally.sent for tally in self.writers.values())

    @property
    def received(self) -> int:
        return sum(tally.received for tally in self.writers.values())

    @property
    def lost(self) -> int:
        return sum(tally.lost for tally in self.writers.values())

    @property
    def duplicated(self) -> int:
        return sum(tally.duplicated for tally in self.writers.values())

    @property
    def reordered(self) -> int:
        return sum(tally.reordered for tally in self.writers.values())

    def __str__(self) -> str:
        lines = [f"{writer}: {tally}" for writer, tally in sorted(self.writers.items())]
        if len(lines) > 1:
            lines.append(f"all: {Tally(self.sent, self.received, self.lost, (), self.duplicated, self.reordered)}")
        if self.alien:
            lines.append(f"alien {self.alien}: {', '.join(repr(value[:200]) for value in self.first_alien)}")
        return "\n".join(lines)

    def assert_none_lost(self) -> None:
        assert not self.lost, f"records were lost\n{self}"

    def assert_exact(self) -> None:
        """What was sent has arrived, each record once, and nothing else; in any order."""
        assert not (self.lost or self.duplicated or self.alien), f"what arrived is not what was sent\n{self}"


def read_json(value: bytes) -> tuple[str, int]:
    """The JSON fields `writer` and `seq`, wherever they stand; raises ValueError."""
    writer, number = _WRITER.search(value), _NUMBER.search(value)
    if writer is None or number is None:
        raise ValueError("no writer and seq")
    return writer[1].decode(), int(number[1])


def judge(
    values: Iterable[bytes], expected: Mapping[str, int] | Mapping[str, Iterable[int]], read: Reader = read_json
) -> Verdict:
    """Compare what arrived, in the order in which it did, with what each writer sent: how many, or which numbers.

    `read` gives a record's writer and number; its ValueError or LookupError makes the record alien.
    """
    writers = {writer: _Writer(range(sent) if isinstance(sent, int) else frozenset(sent)) for writer, sent in expected.items()}
    alien = 0
    first_alien: list[bytes] = []
    for value in values:
        try:
            name, number = read(value)
            writer = writers[name]
            known = number in writer.sent
        except (ValueError, LookupError):
            known = False
        if not known:
            alien += 1
            if alien <= SHOWN:
                first_alien.append(value)
            continue
        seen = writer.seen
        writer.received += 1
        if number not in seen:
            seen.add(number)
            if number > writer.highest:
                writer.highest = number
            else:
                writer.reordered += 1
    return Verdict({name: writer.tally() for name, writer in writers.items()}, alien, tuple(first_alien))


class _Writer:
    def __init__(self, sent: range | frozenset[int]) -> None:
        self.sent = sent
        self.seen: set[int] = set()
        self.received = 0
        self.highest = -1
        self.reordered = 0

    def tally(self) -> Tally:
        lost = sorted(number for number in self.sent if number not in self.seen)
        duplicated = self.received - len(self.seen)
        return Tally(len(self.sent), self.received, len(lost), tuple(lost[:SHOWN]), duplicated, self.reordered)
