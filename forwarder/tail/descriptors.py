"""Open files, no more of them than the process may have: beyond that they take turns.

A file keeps its descriptor until another needs one and there are too many. Then the one that was opened longest ago lets go of
its own, if a path still leads to it, and opens it again when there is something to read. A file that has no name any more keeps
its descriptor, which is all that is left of it.
"""

from __future__ import annotations

import resource
from typing import Protocol

FEWEST = 16
MOST = 1 << 20


class Holder(Protocol):
    """What holds a descriptor."""

    def let_go(self) -> bool:
        """Close it, if it can be opened again; False if it cannot."""


class Descriptors:
    """Who holds descriptors, `limit` of them at most if possible."""

    def __init__(self, limit: int | None = None) -> None:
        """By default three quarters of the descriptors that the process may have: sockets, segments and Kafka want some too."""
        self.limit = limit or max(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MOST) * 3 // 4 - 2 * FEWEST, FEWEST)
        self._holders: dict[Holder, None] = {}
        """In the order in which they opened their files."""

    def add(self, holder: Holder) -> None:
        """It has opened its file; others may have to let go of theirs."""
        self._holders[holder] = None
        for _ in range(len(self._holders) - 1):
            if len(self._holders) <= self.limit:
                return
            oldest = next(iter(self._holders))
            del self._holders[oldest]
            if not oldest.let_go():
                self._holders[oldest] = None

    def remove(self, holder: Holder) -> None:
        """It has closed its file for good."""
        self._holders.pop(holder, None)
