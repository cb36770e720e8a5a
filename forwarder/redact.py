"""What must not leave the machine: patterns taken out of every record, and ready-made ones by name. Bytes in, bytes out.

A pattern that needs more than linear time would let one record hold up everything, so each is tried before it is used. The
ready-made ones begin with a character or a set of them, which the engine looks for fast, and bound what they repeat.
"""

from __future__ import annotations

import contextlib
import re
import signal
import string
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

from forwarder.route import Prepare

REDACTED = "[redacted]"
TINY, SMALL, LARGE = 32, 1024, 8192
"""Bytes of the records that a pattern is tried with."""
MOST_GROWTH = 24
"""How much longer LARGE may take than SMALL: eight times as much is linear, 64 times as much quadratic."""
NOTHING_SECONDS, HOPELESS_SECONDS = 0.002, 0.05
TIMES = 3


class Rule(NamedTuple):
    """Either a ready-made `name` or a `pattern`; of a pattern the replacement may refer to groups."""

    name: str | None
    pattern: str | None
    replace: str


class Readymade(NamedTuple):
    """What is in group 1 stays; `accept` has the last word. Where `first` is not found, the pattern need not be tried."""

    pattern: bytes
    first: bytes = b""
    accept: Callable[[bytes], bool] = lambda found: True


def luhn(found: bytes) -> bool:
    """Whether the last of the digits in `found` is the check digit of those before (ISO/IEC 7812-1)."""
    digits = [int(chr(byte)) for byte in reversed(found) if 48 <= byte <= 57]
    return sum(digits[0::2] + [digit * 2 // 10 + digit * 2 % 10 for digit in digits[1::2]]) % 10 == 0


_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

READYMADE = {
    "email": Readymade(
        rb"()[A-Za-z0-9._%+-](?<![A-Za-z0-9._%+-]{2})[A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?",
        rb"@(?<=[A-Za-z0-9._%+-]@)[A-Za-z0-9]",
    ),
    "credit-card": Readymade(rb"()[2-6](?<![0-9A-Za-z.][2-6])(?:[ -]?[0-9]){12,18}(?![0-9A-Za-z])", accept=luhn),
    "ipv4": Readymade(
        rb"()[0-9](?<![0-9A-Za-z.][0-9])(?<=(?=" + _OCTET + rb"\.).)[0-9]{0,2}(?:\." + _OCTET + rb"){3}(?![0-9A-Za-z]|\.[0-9])"
    ),
    "jwt": Readymade(rb"()eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{5,4096}\.[A-Za-z0-9_-]{5,16384}\.[A-Za-z0-9_-]{0,4096}"),
    "bearer-token": Readymade(rb"([Bb](?:earer|EARER) {1,4})[A-Za-z0-9._~+/-]{4,16384}={0,2}"),
    "aws-key": Readymade(rb"()A(?<![A-Z0-9]A)(?:KIA|SIA)[A-Z2-7]{16}(?![A-Z0-9])"),
    "url-password": Readymade(rb"(://[^\s:/@\"\\]{0,128}:)[^\s/@\"\\]{1,256}(?=@)"),
}


def redaction(rules: Iterable[Rule]) -> Prepare:
    """A function that takes out what the rules say, in their order."""
    steps = [_step(rule) for rule in rules]

    def run(records: list[bytes]) -> list[bytes]:
        for step in steps:
            records = step(records)
        return records

    return run


def _step(rule: Rule) -> Prepare:
    replacement = rule.replace.encode()
    if rule.name is None:
        substitute = re.compile((rule.pattern or "").encode()).sub
        return lambda records: [substitute(replacement, record) for record in records]
    made = READYMADE[rule.name]
    pattern, accept = re.compile(made.pattern), made.accept

    def taken_out(match: re.Match[bytes]) -> bytes:
        return match[1] + replacement if accept(match[0]) else match[0]

    if not made.first:
        return lambda records: [pattern.sub(taken_out, record) for record in records]
    first = re.compile(made.first).search
    return lambda records: [pattern.sub(taken_out, record) if first(record) else record for record in records]


# Trying a pattern


class _Hopeless(Exception):
    pass


def slowness(pattern: str) -> str:
    """What makes the pattern slow, in words, or an empty text; for the main thread, since nothing else can stop the engine.

    Tried are records of one character, of two in turn, and of each word in the pattern, again and again. That finds nested
    and adjoining repetitions; a pattern can be made that it does not find.
    """
    search = re.compile(pattern.encode()).search
    with _alarmed():
        for probe in _probes(pattern):
            tiny, small, large = ((probe * size)[:size] + b"\0" for size in (TINY, SMALL, LARGE))
            try:
                _time(search, tiny, 1)
                once = _time(search, large, 1)
                if once < NOTHING_SECONDS:
                    continue
                growth = _time(search, large, TIMES) / _time(search, small, TIMES)
            except _Hopeless:
                return f"a record of some kilobytes such as {shown(large)} takes it more than {HOPELESS_SECONDS * 1000:.0f} ms"
            if growth > MOST_GROWTH:
                return (
                    f"a record such as {shown(large)} that is {LARGE // SMALL} times as long takes it {growth:.0f} times as long"
                )
    return ""


def _time(search: Callable[[bytes], Any], record: bytes, times: int) -> float:
    """Processor seconds that it takes at least."""
    taken = []
    for _ in range(times):
        begun = time.thread_time()
        _within(HOPELESS_SECONDS, search, record)
        taken.append(time.thread_time() - begun)
    return min(taken)


def shown(record: bytes) -> str:
    return ascii(record[:8].decode("latin-1") + "…").replace("\\u2026", "…")


def _probes(pattern: str) -> Iterator[bytes]:
    for character in string.printable:
        yield character.encode()
    for word in dict.fromkeys(re.findall(r"\w{2,}", pattern)):
        yield word.encode()
    for pair in product("a0 .-/=:,", repeat=2):
        if pair[0] != pair[1]:
            yield "".join(pair).encode()


def _within(seconds: float, work: Callable[[bytes], Any], record: bytes) -> None:
    """The engine looks for signals as it goes back and forth."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        work(record)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@contextlib.contextmanager
def _alarmed() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise _Hopeless

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGVTALRM, give_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)
