"""What must not leave the machine: patterns taken out of every record, and ready-made ones by name. Bytes in, bytes out.

A pattern that needs more than linear time would let one record hold up everything, so each is tried before it is used. The
ready-made ones bound what they repeat; they know JSON's escapes, and leave JSON what it is.
"""

from __future__ import annotations

import contextlib
import re
import signal
import string
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import msgspec

from forwarder.route import Prepare

TINY, SMALL, LARGE = 32, 1024, 8192
"""Bytes of the records that a pattern is tried with."""
MOST_GROWTH = 24
"""How much longer LARGE may take than SMALL: eight times as much is linear, 64 times as much quadratic."""
NOTHING_SECONDS, HOPELESS_SECONDS = 0.002, 0.5
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


def _beginning(first: bytes, word: bytes) -> bytes:
    """`first`, one character wide, where a word begins: behind nothing of the set `word`, or behind an escape of JSON.

    That it stands before what looks back is for speed: the engine then looks for it fast.
    """
    behind_escape = rb"(?<=\\[bfnrt]" + first + rb")|(?<=\\u[0-9A-Fa-f]{4}" + first + rb")"
    return first + rb"(?:(?<!" + word + first + rb")|" + behind_escape + rb")"


_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LOCAL = rb"[A-Za-z0-9._%+\x80-\xff-]"

READYMADE = {
    "email": Readymade(
        rb"()(?<!\\)(?:(?<!" + _LOCAL + rb")|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4}))"
        rb"(?:" + _LOCAL + rb"|\\u[0-9A-Fa-f]{4}){1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?",
        rb"@(?<=" + _LOCAL + rb"@)[A-Za-z0-9]",
    ),
    "credit-card": Readymade(
        rb"()" + _beginning(rb"[2-6]", rb"[0-9A-Za-z.]") + rb"(?:[ -]?[0-9]){12,18}(?![0-9A-Za-z])", accept=luhn
    ),
    "ipv4": Readymade(
        rb"()" + _beginning(rb"[0-9]", rb"[0-9A-Za-z.]") + rb"(?<=(?=" + _OCTET + rb"\.).)[0-9]{0,2}"
        rb"(?:\." + _OCTET + rb"){3}(?![0-9A-Za-z]|\.[0-9])"
    ),
    "jwt": Readymade(
        rb"()"
        + _beginning(rb"e", rb"[A-Za-z0-9_-]")
        + rb"yJ[A-Za-z0-9_-]{5,4096}\.[A-Za-z0-9_-]{5,16384}\.[A-Za-z0-9_-]{0,4096}",
        rb"eyJ",
    ),
    "bearer-token": Readymade(rb"([Bb](?:earer|EARER) {1,4})[A-Za-z0-9._~+/-]{4,16384}={0,2}"),
    "aws-key": Readymade(rb"()" + _beginning(rb"A", rb"[A-Z0-9]") + rb"(?:KIA|SIA)[A-Z2-7]{16}(?![A-Z0-9])"),
    "url-password": Readymade(rb"(://[^\s:/@\"\\]{0,128}:)(?:[^\s/@\"\\]|\\[\"\\/]|\\u[0-9A-Fa-f]{4}){1,256}(?=@)"),
}


def redaction(rule: Rule) -> Prepare:
    """A function that takes out what the rule says."""
    replacement = rule.replace.encode()
    if rule.name is None:
        substitute = re.compile((rule.pattern or "").encode()).sub
        return lambda records: [substitute(replacement, record) for record in records]
    made = READYMADE[rule.name]
    pattern, accept = re.compile(made.pattern), made.accept

    def taken_out(match: re.Match[bytes]) -> bytes:
        return match[1] + replacement if accept(match[0]) else match[0]

    def quoted(match: re.Match[bytes]) -> bytes:
        """As `taken_out`, but as a string where a number of JSON seems to stand."""
        left = taken_out(match)
        before = match.string[max(match.start() - 8, 0) : match.start()].rstrip()
        bare = before.endswith((b'":', b"[", b",")) and not before.endswith(b'\\":')
        return b'"' + left + b'"' if bare and left != match[0] else left

    def one(record: bytes) -> bytes:
        left = pattern.sub(taken_out, record)
        if left == record or _is_json(left) or not _is_json(record):
            return left
        again = pattern.sub(quoted, record)
        return again if _is_json(again) else left

    first = re.compile(made.first or made.pattern).search
    return lambda records: [one(record) if first(record) else record for record in records]


def _is_json(record: bytes) -> bool:
    try:
        msgspec.json.decode(record)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


# Trying a pattern


class _Hopeless(Exception):
    pass


def slowness(pattern: str) -> str:
    """What makes the pattern slow, in words, or an empty text; for the main thread, since nothing else can stop the engine.

    Tried are records of one character, of two in turn, of each literal text in the pattern, again and again, and of that text
    with one character behind it again and again. That finds nested, adjoining and unbounded repetitions as they are usually
    written; a pattern can be made that it does not find.
    """
    take_out = re.compile(pattern.encode()).sub
    with _alarmed():
        for start, more in _probes(pattern):
            tiny, small, large = ((start + more * size)[: len(start) + size] + b"\0" for size in (TINY, SMALL, LARGE))
            try:
                _time(take_out, tiny, 1)
                if _time(take_out, large, 1) < NOTHING_SECONDS:
                    continue
                growth = _time(take_out, large, TIMES) / _time(take_out, small, TIMES)
            except _Hopeless:
                return f"a record of some kilobytes such as {shown(large)} takes it more than {HOPELESS_SECONDS * 1000:.0f} ms"
            if growth > MOST_GROWTH:
                return (
                    f"a record such as {shown(large)} that is {LARGE // SMALL} times as long takes it {growth:.0f} times as long"
                )
    return ""


def _time(take_out: Callable[[bytes, bytes], Any], record: bytes, times: int) -> float:
    """Processor seconds that it takes at least."""
    taken = []
    for _ in range(times):
        begun = time.thread_time()
        _within(HOPELESS_SECONDS, take_out, record)
        taken.append(time.thread_time() - begun)
    return min(taken)


def shown(record: bytes) -> str:
    """The beginning of it."""
    return ascii(record[:16].decode("latin-1") + "…").replace("\\u2026", "…")


def _probes(pattern: str) -> Iterator[tuple[bytes, bytes]]:
    """What a record begins with, and what follows again and again."""
    alphabet = "a0A .-/=:,_"
    for character in string.printable:
        yield b"", character.encode()
    for one, other in product(alphabet, repeat=2):
        if one != other:
            yield b"", (one + other).encode()
    literal = re.sub(r"\\[A-Za-z0-9]|\(\?[^)]*?[:=!>]|\[[^\]]*\]|\{[^}]*\}", "\0", pattern)
    for text in dict.fromkeys(re.findall(r"(?:\\.|[^\\()|*+?.^$\0])+", literal)):
        plain = text.replace("\\", "").encode()
        yield b"", plain
        for character in alphabet:
            yield plain, character.encode()


def _within(seconds: float, take_out: Callable[[bytes, bytes], Any], record: bytes) -> None:
    """The engine looks for signals as it goes back and forth."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        take_out(b"", record)
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
