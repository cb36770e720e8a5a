"""Which of some records does Kafka refuse? A batch is refused whole, so those of it are sent again by halves.

One to blame among n costs about twice log2(n) requests. Halves go one after the other, the first one first, and none before it
is known what became of the one before: records that are sent in order stay in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

FEW = 16


def halves(records: list[T], few: int = FEW) -> Generator[tuple[list[T], bool], list[T], None]:
    """Yields what is to be sent next, and whether each of it alone, which it is when only a `few` are left; is sent those that
    were refused. Those that were refused alone are to blame themselves."""
    parts = [records]
    while parts:
        part = parts.pop()
        alone = len(part) <= few
        refused = yield part, alone
        if refused and not alone:
            half = (len(refused) + 1) // 2
            parts += [refused[half:], refused[:half]]


def try_all(records: list[T], refused: Callable[[list[T], bool], list[T]], few: int = FEW) -> None:
    """Go through the parts of `records`, where a call that waits says which are refused."""
    parts = halves(records, few)
    with contextlib.suppress(StopIteration):
        part, alone = next(parts)
        while True:
            part, alone = parts.send(refused(part, alone))
