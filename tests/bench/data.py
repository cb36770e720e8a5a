"""What the benches send: JSON lines of a given size, and an app's text with tracebacks in it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

USUAL_BYTES = 220
"""About the size of a record where nothing else is said."""
BLOCK_LINES = 20_000
TRACEBACK_EVERY = 50
"""One record of so many has a traceback."""
WORDS = (
    *("the", "order", "of", "customer", "was", "accepted", "by", "payment", "service", "after", "retry", "and", "will", "be"),
    *("shipped", "from", "store", "in", "time", "while", "cache", "missed", "twice", "for", "session", "token", "user"),
    *("basket", "price", "update", "queue", "worker", "finished", "request", "response", "status", "timeout"),
)

_LINE = (
    b'{"@timestamp":"2026-01-01T12:%02d:%02d.%06dZ","level":"%s","logger":"shop.checkout.payment","message":"order %08d of '
    b'customer %06d took %4d ms%s","host":"web-17","process":4711,"request_id":"%016x"}\n'
)
_SHORT_LINE = b'{"@timestamp":"2026-01-01T12:%02d:%02d.%06dZ","level":"%s","message":"order %08d took %4d ms"}\n'
_TRACEBACK = b"""Traceback (most recent call last):
  File "/srv/shop/checkout/payment.py", line %d, in charge
    answer = self._gateway.charge(order, timeout=self._timeout)
  File "/srv/shop/gateway/client.py", line %d, in charge
    raise GatewayTimeout(order.number, attempts)
shop.gateway.errors.GatewayTimeout: order %08d after %d attempts
"""


def make_lines(count: int, size: int = USUAL_BYTES, first: int = 0) -> list[bytes]:
    """JSON lines of about `size` bytes (100 or more) as an app writes them; what differs between them is what differs in life."""
    chance = random.Random(first + count)
    levels = [b"INFO"] * 8 + [b"WARNING", b"ERROR"]
    lines = []
    for number in range(first, first + count):
        when = number // 60_000 % 60, number // 1000 % 60, number % 1_000_000
        level, took = chance.choice(levels), chance.randrange(5000)
        if size < USUAL_BYTES:
            lines.append(_SHORT_LINE % (*when, level, number, took))
            continue
        more = b"".join(b" %s" % word.encode() for word in chance.choices(WORDS, k=(size - USUAL_BYTES) // 7))
        lines.append(_LINE % (*when, level, number, chance.randrange(1_000_000), took, more, chance.getrandbits(64)))
    return lines


def write_lines(path: Path, count: int, size: int = USUAL_BYTES) -> int:
    """A file of `count` lines; returns its size."""
    with path.open("wb") as file:
        for start in range(0, count, BLOCK_LINES):
            file.writelines(make_lines(min(BLOCK_LINES, count - start), size, start))
        return file.tell()


def write_text(path: Path, lines: int) -> tuple[int, int]:
    """A file of at least `lines` lines of text, some of them tracebacks; returns how many lines and records it holds."""
    records = written = 0
    with path.open("wb") as file:
        for record in _text():
            file.write(record)
            records += 1
            written += record.count(b"\n")
            if written >= lines:
                return written, records
    raise AssertionError("text never ends")


def _text() -> Iterator[bytes]:
    chance = random.Random(1)
    number = 0
    while True:
        number += 1
        head = b"2026-01-01 12:%02d:%02d,%03d %s shop.checkout.payment: order %08d of customer %06d took %4d ms, %s\n"
        when = number // 60_000 % 60, number // 1000 % 60, number % 1000
        words = b" ".join(word.encode() for word in chance.choices(WORDS, k=14))
        failed = number % TRACEBACK_EVERY == 0
        level = b"ERROR" if failed else b"INFO"
        line = head % (*when, level, number, chance.randrange(1_000_000), chance.randrange(5000), words)
        yield line + _TRACEBACK % (chance.randrange(900), chance.randrange(900), number, 3) if failed else line


def batches(lines: Sequence[bytes], count: int, size: int) -> Iterator[bytes]:
    """`count` lines, the same ones again and again, joined to about `size` bytes each time."""
    each = max(size * len(lines) // sum(map(len, lines)), 1)
    sent = 0
    while sent < count:
        start = sent % len(lines)
        batch = lines[start : start + min(each, count - sent)]
        yield b"".join(batch)
        sent += len(batch)
