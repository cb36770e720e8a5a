"""The records of one session that the agent has not acknowledged: bounded in bytes, numbered, each sent until it is safe.

- A record gets its number when it is first taken for sending, so that dropping one that waits never leaves a gap.
- A record that was taken is not dropped: most likely the agent has it. Half of the bound is what may be under way; the other
  half always holds the newest records, however long the agent is silent. Only the oldest of those that wait are dropped.
- `size` is never above `limit` after `make_room`. A record that is larger than all of the ring is dropped at once.
- An exception from outside (KeyboardInterrupt) may end any of these calls half done. It can leave a record in twice, and a
  count wrong until `recount`; it never loses a record and never gives one the number of another that came before it.

One thread at a time. No I/O; standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import os
from collections import deque


class Ring:
    def __init__(self, limit: int) -> None:
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
        # A record goes from _fresh to _sent when it is taken, and leaves from there; a `rewind` makes _again of _sent.
        self._fresh: deque[bytes] = deque()
        self._again: deque[bytes] = deque()
        self._sent: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._sent) + len(self._again) + len(self._fresh)

    @property
    def unacknowledged(self) -> int:
        """How many records were taken since the last `rewind` and are not acknowledged."""
        return len(self._sent)

    @property
    def unsent(self) -> bool:
        return bool(self._again or self._fresh)

    def put(self, record: bytes) -> None:
        """Add a record; an empty one stands for one that was lost before it got here."""
        if record and len(record) <= self.limit:
            self.size += len(record)
            self._fresh.append(record)
        else:
            self.dropped += 1

    def take(self, size: int) -> bytes:
        """The next records to send in one piece, `size` bytes or a single record; empty if there are none for now."""
        self.held_back = False
        queue, sent = self._again or self._fresh, self._sent
        batch: list[bytes] = []
        taken = 0
        while queue:
            length = len(queue[0])
            if batch and taken + length > size:
                break
            if sent and queue is self._fresh and self.under_way + length > self.limit // 2:
                self.held_back = True
                break
            taken += length
            self.under_way += length
            batch.append(queue[0])
            sent.append(queue[0])
            queue.popleft()
        return b"".join(batch)

    def acknowledge(self, number: int) -> None:
        """Let go of the records numbered below `number`. Raises ValueError if some of those were never sent."""
        if number > self.first + len(self._sent) + len(self._again):
            raise ValueError(f"{number} records are acknowledged, of {self.first + len(self._sent) + len(self._again)} sent")
        sent = self._sent
        while self.first < number and sent:
            self.first += 1  # in this order: an interruption then repeats a record instead of losing one
            length = len(sent.popleft())
            self.size -= length
            self.under_way -= length

    def rewind(self) -> None:
        """Start again from the first record that is not acknowledged, on a new connection."""
        if self._sent:
            self._again.extendleft(reversed(self._sent))
            self._sent.clear()
        self.under_way = 0

    def make_room(self) -> None:
        """Drop the oldest records that wait until the ring is within its limit."""
        while self.size > self.limit and self._fresh:
            self.size -= len(self._fresh.popleft())
            self.dropped += 1

    def recount(self) -> None:
        """Set the sizes right after an exception from outside."""
        self.under_way = sum(map(len, self._sent))
        self.size = self.under_way + sum(map(len, self._again)) + sum(map(len, self._fresh))
