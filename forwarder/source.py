"""What the shipper reads: the one shape that a spool and a tailed file have in common.

Everything is a log read from a position, and a position moves only when Kafka has acknowledged what was read. A position
is a byte offset: of a spool, counted from the first byte ever appended to it; of a file, from its start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from forwarder.route import Route


TAIL_PREFIX = "tail:"
"""How the names of tailed files begin."""


class Chunk(msgspec.Struct, gc=False):
    """Whole records read in one go, all with the same route.

    `records` are as they go to Kafka but for the route's own changes, without line ends; it may be empty when what was
    read holds nothing to send (blank lines), and is then settled at once. `start` and `end` are positions; `received` is
    the wall clock, in seconds, when the first of them reached the agent.
    """

    records: list[bytes]
    route: Route
    start: int
    end: int
    received: float

    @property
    def size(self) -> int:
        """Bytes of the source."""
        return self.end - self.start


class Source(Protocol):
    """A log with one reader.

    The source calls `wake(source)`, given to it by whoever made it, when there may be something to read after a `read`
    that returned None. All calls come from the event loop's thread and none may block for longer than a disk read.
    """

    name: str
    """Unique and stable across restarts: the key under which the position is kept."""

    app: str

    @property
    def position(self) -> int:
        """Where the next `read` starts."""

    def read(self, max_bytes: int) -> Chunk | None:
        """The next records, about `max_bytes` of them but at least one; None when there is nothing to read now."""

    def seek(self, position: int) -> None:
        """Make the next `read` start at `position`, the `start` of a chunk read before and not yet committed."""

    def skip(self, position: int, detail: str) -> None:
        """What lies before `position` is in Kafka, it was found out; `detail` was kept beside that. Nothing was read yet."""

    def commit(self, position: int) -> None:
        """Everything before `position` is in Kafka and the position is saved: the source may forget it."""

    def lag(self) -> int:
        """Bytes that are there and not yet read."""

    def detail(self, position: int) -> str:
        """What else to keep beside `position` in order to find this source again; may be empty.

        Of a position that is to be committed: the source may still be asked to go back behind it.
        """


Wake = Callable[[Source], None]
