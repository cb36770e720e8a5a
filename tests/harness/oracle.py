"""Judges what arrived: every record names its writer and its number within that writer, counted from 0.

A record is lost when it was acknowledged and never arrived, duplicated when it arrived before, reordered when its first arrival
came after that of a larger number of its writer in the same partition (which means something only where order is promised: one
partition, or one key a writer), altered when it is not what its writer sealed, alien when it cannot be read or was never issued.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

SHOWN = 20

_WRITER = re.compile(rb'"writer"\s*:\s*"([^"]*)"')
_NUMBER = re.compile(rb'"seq"\s*:\s*(\d+)')
_SEALED = re.compile(rb'("writer":"([^"]*)","seq":(\d+),.*),"seal":"([0-9a-f]{8})"')

Reader = Callable[[bytes], tuple[str, int]]


class Tally(NamedTuple):
    """How one writer fared, or all together. `sent` are those acknowledged, `issued` those that were not as well; `received`
    counts duplicates too; `first_lost` holds some of the lost numbers."""

    sent: int
    received: int
    lost: int
    first_lost: tuple[int, ...]
    duplicated: int
    reordered: int
    altered: int
    issued: int

    def __str__(self) -> str:
        lost = str(self.lost)
        if self.first_lost:
            lost += f" ({', '.join(map(str, self.first_lost))}{', …' if self.lost > len(self.first_lost) else ''})"
        return (
            f"{f'issued {self.issued}, ' if self.issued > self.sent else ''}sent {self.sent}, received {self.received}, "
            f"lost {lost}, duplicated {self.duplicated}, reordered {self.reordered}, altered {self.altered}"
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

    @property
    def altered(self) -> int:
        return sum(tally.altered for tally in self.writers.values())

    @property
    def issued(self) -> int:
        return sum(tally.issued for tally in self.writers.values())

    def __str__(self) -> str:
        lines = [f"{writer}: {tally}" for writer, tally in sorted(self.writers.items())]
        if len(lines) > 1:
            everything = Tally(
                self.sent, self.received, self.lost, (), self.duplicated, self.reordered, self.altered, self.issued
            )
            lines.append(f"all: {everything}")
        if self.alien:
            lines.append(f"alien {self.alien}: {', '.join(repr(value[:200]) for value in self.first_alien)}")
        return "\n".join(lines)

    def assert_none_lost(self) -> None:
        assert not self.lost, f"records were lost\n{self}"

    def assert_no_harm(self) -> None:
        """Everything arrived as it was sent, and nothing else; repetition is allowed."""
        assert not (self.lost or self.altered or self.alien), f"what arrived is not what was sent\n{self}"

    def assert_exact(self) -> None:
        """What was sent has arrived, each record once, and nothing else; in any order."""
        self.assert_no_harm()
        assert not self.duplicated, f"what arrived is not what was sent\n{self}"


class Altered(ValueError):
    """A record that is not what its writer sealed."""

    def __init__(self, writer: str, number: int) -> None:
        super().__init__(f"record {number} of {writer} was altered")
        self.writer = writer
        self.number = number


def read_json(value: bytes) -> tuple[str, int]:
    """The JSON fields `writer` and `seq`, wherever they stand; raises ValueError."""
    writer, number = _WRITER.search(value), _NUMBER.search(value)
    if writer is None or number is None:
        raise ValueError("no writer and seq")
    return writer[1].decode(), int(number[1])


def sealed(writer: str, number: int, text: str) -> bytes:
    """A record that says by a checksum whether it is whole; fields may be put in before and behind."""
    inside = f'"writer":"{writer}","seq":{number},"text":"{text}"'.encode()
    return b'{%s,"seal":"%08x"}' % (inside, zlib.crc32(inside))


def read_sealed(value: bytes) -> tuple[str, int]:
    """Writer and number of a sealed record; raises Altered, and ValueError when it is none."""
    found = _SEALED.search(value)
    if found is None:
        raise Altered(*read_json(value))
    inside, writer, number, seal = found.groups()
    if zlib.crc32(inside) != int(seal, 16):
        raise Altered(writer.decode(), int(number))
    return writer.decode(), int(number)


def judge(
    values: Iterable[bytes],
    expected: Mapping[str, int] | Mapping[str, Iterable[int]],
    read: Reader = read_json,
    issued: Mapping[str, int] | None = None,
) -> Verdict:
    """Compare what arrived, in the order in which it did, with what each writer sent: how many, or which numbers.

    See `Judge`; all is taken for one partition.
    """
    one = Judge(expected, read, issued)
    for value in values:
        one.take(value)
    return one.verdict()


class Judge:
    """Takes what arrived one by one, in the order in which it did within each partition.

    `expected` is what must be there: how many each writer sent, or which numbers. A writer may have `issued` more, whose
    acknowledgement never came: they may be there. `read` gives a record's writer and number; its ValueError or LookupError
    makes the record alien, Altered an altered one. A number that was counted, not named, costs a byte.
    """

    def __init__(
        self,
        expected: Mapping[str, int] | Mapping[str, Iterable[int]],
        read: Reader = read_json,
        issued: Mapping[str, int] | None = None,
    ) -> None:
        self._writers = {writer: _Writer(sent, (issued or {}).get(writer, 0)) for writer, sent in expected.items()}
        self._read = read
        self._alien = 0
        self._first_alien: list[bytes] = []

    def take(self, value: bytes, partition: int = 0) -> None:
        try:
            name, number = self._read(value)
            self._writers[name].take(number, partition)
        except Altered as error:
            try:
                self._writers[error.writer].alter(error.number)
            except LookupError:
                self._note_alien(value)
        except (ValueError, LookupError):
            self._note_alien(value)

    def _note_alien(self, value: bytes) -> None:
        self._alien += 1
        if self._alien <= SHOWN:
            self._first_alien.append(value)

    def verdict(self) -> Verdict:
        return Verdict({name: writer.tally() for name, writer in self._writers.items()}, self._alien, tuple(self._first_alien))


class _Writer:
    def __init__(self, sent: int | Iterable[int], issued: int) -> None:
        self.sent = range(sent) if isinstance(sent, int) else frozenset(sent)
        self.issued = max(issued, len(self.sent))
        last = max(self.sent, default=-1) if isinstance(self.sent, frozenset) else self.issued - 1
        self.seen = bytearray(last + 1)
        self.received = 0
        self.arrived = 0
        self.reordered = 0
        self.altered = 0
        self.highest: dict[int, int] = {}

    def _check(self, number: int) -> None:
        if number >= self.issued if isinstance(self.sent, range) else number not in self.sent:
            raise LookupError(number)

    def take(self, number: int, partition: int) -> None:
        """Raises LookupError for a number that was never issued."""
        self._check(number)
        self.received += 1
        if not self.seen[number]:
            self.seen[number] = 1
            self.arrived += 1
            if number > self.highest.get(partition, -1):
                self.highest[partition] = number
            else:
                self.reordered += 1

    def alter(self, number: int) -> None:
        """Raises LookupError as `take` does."""
        self._check(number)
        self.altered += 1

    def tally(self) -> Tally:
        lost = sorted(number for number in self.sent if not self.seen[number])
        duplicated = self.received - self.arrived
        return Tally(
            len(self.sent), self.received, len(lost), tuple(lost[:SHOWN]), duplicated, self.reordered, self.altered, self.issued
        )
