"""A source in memory, for the real shipper."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from forwarder.route import Route
from forwarder.source import Chunk


class Log:
    """A source in memory: chunks of records, each with its route; a position is a number of chunks."""

    app = "shop"

    def __init__(self, name: str, *chunks: tuple[Route, list[bytes]]) -> None:
        self.name = name
        self.position = 0
        self.received = 0.0
        self.keeps = False
        """Whether what is committed cannot be let go of."""
        self.looked_at: Callable[[], None] = lambda: None
        self._chunks = chunks

    def read(self, max_bytes: int) -> Chunk | None:
        if self.position == len(self._chunks):
            return None
        route, records = self._chunks[self.position]
        self.position += 1
        return Chunk(records, route, self.position - 1, self.position, self.received)

    def seek(self, position: int) -> None:
        self.position = position

    def skip(self, position: int, detail: str) -> None:
        self.position = position

    def commit(self, position: int) -> None:
        if self.keeps:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def lag(self) -> int:
        return len(self._chunks) - self.position

    def detail(self, position: int) -> str:
        self.looked_at()
        return ""
