"""The records of one session that the agent has not acknowledged: bounded in bytes, numbered, each sent until it is safe.

- A record gets its number when it is first taken for sending, so that dropping one that waits never leaves a gap.
- A record that was taken is not dropped: most likely the agent has it. Half of the bound is what may be under way; in the other
  half wait those that were not sent yet, however long the agent is silent. Of them the oldest is dropped, or the newest, as the
  ring is told; a `Kept` one only when no other waits.
- `size` is never above `limit` after `make_room`. A record that is larger than all of the ring is dropped at once.
- An exception from outside (KeyboardInterrupt) may end any of these calls half done. It can leave a record in twice, and a
  count wrong until `recount`; it never loses a record and never gives one the number of another that came before it.

One thread at a time, but for `Losses.add`. No I/O; standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import os
from collections import deque
from itertools import count


class Kept(bytes):
    """A record to drop only when no other waits."""


class Losses:
    """Records that never got to the ring: any thread counts them, without a lock, and the one at work takes the count over."""

    def __init__(self) -> None:
        self.any = False
        self._count = count()  # of the calls of both methods: `next` is atomic
        self._taken = 0

    def add(self) -> None:
        next(self._count)
        self.any = True

    def take(self) -> int:
        """How many since the last call."""
        self.any = False
        number, before = next(self._count), self._taken
        self._taken = number + 1
        return number - before


class Ring:
    def __init__(self, limit: int, drop: str = "oldest") -> None:
        self.limit = limit
        self.session = os.urandom(16).hex()
        self.first = 0
        """The number of the first record that is not acknowledged."""
        self.size = 0
        self.under_way = 0
        """Bytes of what was taken since the last `rewind` and is not acknowledged."""
        self.dropped = 0
        self.held_back = False
        """Whether the last `take` left records behind because enough is under way."""
        self._drops_newest = drop == "newest"
        # A record goes from _fresh or _kept, in the order of their arrival, to _sent when it is taken, and leaves from there; a
        # `rewind` makes _again of _sent.
        self._arrivals = count()
        self._fresh: deque[tuple[int, bytes]] = deque()
        self._kept: deque[tuple[int, bytes]] = deque()
        self._again: deque[tuple[int, bytes]] = deque()
        self._sent: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._sent) + len(self._again) + len(self._fresh) + len(self._kept)

    @property
    def unacknowledged(self) -> int:
        """How many records were taken since the last `rewind` and are not acknowledged."""
        return len(self._sent)

    @property
    def unsent(self) -> bool:
        return bool(self._again or self._fresh or self._kept)

    def put(self, record: bytes) -> None:
        """Add a record. An empty one is dropped: it would get a number, and the agent count one less."""
        size = len(record)
        if 0 < size <= self.limit:
            self.size += size
            (self._kept if type(record) is Kept else self._fresh).append((next(self._arrivals), record))
        else:
            self.dropped += 1

    def take(self, size: int) -> bytes:
        """The next records to send in one piece, `size` bytes or a single record; empty if there are none for now."""
        self.held_back = False
        again, fresh, kept, sent = self._again, self._fresh, self._kept, self._sent
        resending = bool(again)
        batch: list[bytes] = []
        taken, room = 0, self.limit // 2 - self.under_way
        while queue := again if resending else kept if kept and (not fresh or kept[0] < fresh[0]) else fresh:
            length = len(queue[0][1])
            if batch and taken + length > size:
                break
            if sent and not resending and taken + length > room:
                self.held_back = True
                break
            taken += length
            batch.append(queue[0][1])
            sent.append(queue[0])
            queue.popleft()
        self.under_way += taken
        return b"".join(batch)

    def acknowledge(self, number: int) -> None:
        """Let go of the records numbered below `number`. Raises ValueError if some of those were never sent."""
        if number > self.first + len(self._sent) + len(self._again):
            raise ValueError(f"{number} records are acknowledged, of {self.first + len(self._sent) + len(self._again)} sent")
        sent = self._sent
        while self.first < number and sent:
            self.first += 1  # in this order: an interruption then repeats a record instead of losing one
            length = len(sent.popleft()[1])
            self.size -= length
            self.under_way -= length

    def rewind(self) -> None:
        """Start again from the first record that is not acknowledged, on a new connection."""
        if self._sent:
            self._again.extendleft(reversed(self._sent))
            self._sent.clear()
        self.under_way = 0

    def make_room(self) -> None:
        """Drop records that wait until the ring is within its limit."""
        while self.size > self.limit and (queue := self._fresh or self._kept):
            _, record = queue.pop() if self._drops_newest else queue.popleft()
            self.size -= len(record)
            self.dropped += 1

    def recount(self) -> None:
        """Set the sizes right after an exception from outside."""
        self.under_way = _bytes_in(self._sent)
        self.size = sum(map(_bytes_in, (self._sent, self._again, self._fresh, self._kept)))


def _bytes_in(queue: deque[tuple[int, bytes]]) -> int:
    return sum(len(record) for _, record in queue)
