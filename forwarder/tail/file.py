"""One file, read from a position: the tail's kind of source.

- A position is the start of a line, so a line is sent whole or not at all, and again whole after a kill.
- A line without its end is not a record yet, however long it takes; only of a file that is gone the rest is sent as it is.
- Where several lines are one record the last one may still go on: it is held until nothing has been written for a while.
- Every read takes along the last bytes of the one before (the mark), and after a pause the first bytes of the file too. If they
  have changed, the file was truncated or written anew under our hands, and this source ends: what is in the file now is another
  one's, from its start.
- A file that came after another one at the same path waits until that one is read to its end.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from forwarder import config
from forwarder.route import Route
from forwarder.source import Chunk, Wake
from forwarder.tail.descriptors import Descriptors
from forwarder.tail.identity import (
    HEAD_BYTES,
    MARK_BYTES,
    SURE_BYTES,
    Ended,
    Head,
    Identity,
    decode,
    digest,
    encode,
    holds,
    mark_before,
)
from forwarder.tail.lines import Held, Lines
from forwarder.tail.lookup import OPEN, Key, encoding_of, key_of, leads_to

log = logging.getLogger("forwarder.tail")

SCAN_BYTES = 256 * 1024
PAUSE = 0.25
"""Seconds in which, unread, a file may have been truncated and have grown again to where it was."""
BEYOND_BYTES = 4096
"""So much more than is known to be there is asked for."""


class Counts:
    """What befell records and files, by app; a record counts once, however often it is read."""

    def __init__(self) -> None:
        self.cut: Counter[str] = Counter()
        self.undecodable: Counter[str] = Counter()
        self.abandoned: Counter[str] = Counter()
        """Bytes that were there and could not be read, or not again when Kafka needed them again."""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What all files have in common."""

    counts: Counts
    descriptors: Descriptors
    clock: Callable[[], float]
    """Seconds since 1970."""
    wake: Wake
    held: Callable[[TailedFile], None]
    """Told that the last lines may go on."""
    recover: Callable[[TailedFile, int], bool]
    """Whether what Kafka has not taken, of a file that was written anew, will be read elsewhere from a position on."""
    lines: Callable[[config.Tail, str], Lines]
    """What makes records of the lines of a table's files, for the path a file was found at."""
    floors: dict[str, int]
    """For each path, the modification time from which on files beside it may be unknown, in nanoseconds."""
    ended: dict[str, tuple[Ended, ...]]
    """For each path, the last files that stood there and were read to their end."""


class TailedFile:
    """A Source. `path` is where the file is now, `origin` where it was found, `settings` the table that matched it there."""

    __slots__ = (
        "_committed",
        "_counted",
        "_encoding",
        "_failing",
        "_fd",
        "_held",
        "_left",
        "_lost",
        "_marks",
        "_over",
        "_part_of",
        "_position",
        "_read_at",
        "_route",
        "_searched",
        "_shared",
        "_text",
        "_until",
        "app",
        "deleted",
        "device",
        "finished",
        "head",
        "held_back",
        "inode",
        "last",
        "modified",
        "name",
        "origin",
        "path",
        "predecessor",
        "rewritten",
        "settings",
        "size",
        "successors",
    )  # thousands of them are kept

    def __init__(
        self,
        name: str,
        path: str,
        fd: int,
        position: int,
        *,
        origin: str,
        settings: config.Tail,
        route: Route,
        shared: Shared,
        part_of: Identity | None = None,
    ) -> None:
        """Takes over `fd`; nothing before `position` is read, but for what tells the file from others.

        `part_of` tells of a file that was written anew, and this is a copy of: nothing is read that was not read there.
        Raises OSError.
        """
        self.name = name
        self.app = settings.app
        self.settings = settings
        self.path = path
        self.origin = origin
        status = os.fstat(fd)
        self.device, self.inode, self.size = status.st_dev, status.st_ino, status.st_size
        self.modified = status.st_mtime_ns
        self.deleted = status.st_nlink == 0
        self.predecessor: TailedFile | None = None
        self.successors: tuple[TailedFile, ...] = ()
        self.held_back = False
        """It is not known yet what comes before it."""
        self.finished = False
        """Nothing more will be read from it."""
        self.rewritten = False
        """It was truncated, or written anew; `finished` is set then too."""
        self.last = False
        """The file is gone or given up: what is left of a line is one."""
        self._shared = shared
        self._route = route
        self._encoding = encoding_of(fd, settings.encoding)
        self._part_of = part_of
        self._until = part_of.until if part_of is not None else sys.maxsize
        self._held: Held | None = None
        """What was read behind the position: of several lines that are a record, one that may go on."""
        self._over = False
        """It does not."""
        self._position = position
        self._committed = self._counted = position
        self._searched = position
        """No line ends between the position and here."""
        self._text = position
        """Between the position and here are only NULs."""
        self.head = Head(os.pread(fd, min(HEAD_BYTES, position), 0))
        self._marks = [(position, mark_before(fd, position))]
        self._failing = ""
        self._lost = False
        self._left = False
        """What Kafka wants again is read elsewhere, or gone."""
        self._read_at = shared.clock()
        self._fd = fd
        shared.descriptors.add(self)

    @property
    def _lines(self) -> Lines:
        return self._shared.lines(self.settings, self.origin)

    # Its descriptor

    @property
    def fd(self) -> int:
        """Opens the file if it is not open. Raises OSError, FileNotFoundError when the path leads to another one by now."""
        if self._fd < 0:
            fd = os.open(self.path, OPEN)
            if key_of(fd) != self.key:
                os.close(fd)
                raise FileNotFoundError(errno.ENOENT, "it has been moved", self.path)
            self._fd = fd
            self._read_at = -PAUSE  # it may have been written anew
            self._shared.descriptors.add(self)
        return self._fd

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def let_go(self) -> bool:
        # Of what is finished nobody keeps the path up to date, and Kafka may want it again; nor of a part.
        if self.deleted or self.finished or self._part_of is not None or not leads_to(self.path, self.key):
            return False
        os.close(self._fd)
        self._fd = -1
        return True

    def _status(self) -> os.stat_result:
        if self._fd >= 0:
            return os.fstat(self._fd)
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) != self.key:
            raise FileNotFoundError(errno.ENOENT, "it has been moved", self.path)
        return status

    @property
    def astray(self) -> bool:
        """Whether it was let go of, and its path does not lead to it any more."""
        return self._fd < 0 and not leads_to(self.path, self.key)

    def close(self) -> None:
        self._shared.descriptors.remove(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Source

    @property
    def position(self) -> int:
        return self._position

    @property
    def key(self) -> Key:
        """Device and inode."""
        return self.device, self.inode

    def read(self, max_bytes: int) -> Chunk | None:
        if self.finished or self.held_back or self._waits():
            return None
        try:
            chunk = self._read(max_bytes) if not self.rewritten else self._released()
        except FileNotFoundError:
            return None  # the tail looks for it
        except OSError as error:
            if str(error) != self._failing:
                log.error("%s cannot be read: %s; it is tried again", self.path, error.strerror)
                self._failing = str(error)
            return None
        if chunk is None:
            self._wake_successors()
        return chunk

    def _read(self, max_bytes: int) -> Chunk | None:
        # Hot path: one read and what Lines does.
        now = self._shared.clock()
        if abs(now - self._read_at) > PAUSE and not self._unchanged():
            self.end_rewritten()
            return None
        self._read_at = now
        if not self.read_to:
            self._encoding = encoding_of(self.fd, self.settings.encoding)  # its mark may not have been there before
        start, mark = self.read_to, self._last_mark()
        kept = len(mark)
        # No more than there is: a read into fresh memory costs by what is asked for.
        max_bytes = min(max_bytes, max(self.size - start, 0) + BEYOND_BYTES, self._until - start)
        data = os.pread(self.fd, max_bytes + kept, start - kept)
        if data[:kept] != mark:
            self.end_rewritten()
            return None
        more = len(data) - kept == max_bytes
        if (self.last and not more) or start + len(data) - kept == self._until:
            return self._remainder(data[kept:])
        end = self._encoding.last_end(data, kept)
        if self._lines.multiline:
            return self._hold(data[kept:end], start + len(data) - kept, more)
        if end > kept:
            return self._chunk(data[kept:end], start + end - kept, data[max(end - MARK_BYTES, 0) : end])
        if more:
            return self._long_line()
        self._searched = start + len(data) - kept
        return None

    @property
    def read_to(self) -> int:
        """Where the next read begins: behind the position and what is held."""
        return self._position + len(self._held.body) if self._held is not None else self._position

    def _last_mark(self) -> bytes:
        """The last bytes before there."""
        mark = self._marks[-1][1]
        return mark if self._held is None else (mark + self._held.body[-MARK_BYTES:])[-MARK_BYTES:]

    def _hold(self, lines: bytes, seen: int, more: bool) -> Chunk | None:
        """Whole `lines` were read behind what is held, up to `seen` if the last of them has no end yet.

        All records but the last are over. That one is over when nothing has been written behind it for a while, or a line follows
        that is longer than any record; `more` says that there is more to be read.
        """
        if not lines and more:
            size = min(self._lines.max_record + SCAN_BYTES, self._until - self.read_to)
            data = os.pread(self.fd, size, self.read_to)
            lines = data[: self._encoding.last_end(data, 0)]
            seen, more = self.read_to + len(data), len(data) == size
            if not lines and (more or self._held is None):
                return self._released() if self._held is not None else self._long_line()
        if lines:
            if self._held is None:
                self._held = self._lines.held()
            starts = self._held.add(lines, self._encoding)
            self._over = False
            self._searched = seen
            self._shared.held(self)
            if starts:
                return self._joined(starts)
            return self._read(SCAN_BYTES) if more else None
        if self._held is not None and (self._over or self.last):
            return self._released()
        self._searched = seen
        return None

    def _released(self) -> Chunk:
        """What is held is a record, as it is."""
        assert self._held is not None
        chunk = self._joined([len(self._held.body)])
        if self.rewritten:
            self.finished = True
            self._wake_successors()
        return chunk

    def _joined(self, ends: list[int], added: int = 0) -> Chunk:
        """The records of what is held that end at `ends`; the last `added` bytes are not in the file."""
        assert self._held is not None
        now, held = self._shared.clock(), self._held
        lines = held.take(ends[-1])
        if not held.body:
            self._held = None
        records = self._lines.joined(lines, [0, *ends], self._encoding, now)
        body = lines[: len(lines) - added]
        return self._advance(records, body, self._position + len(body), self._mark_behind(body), now)

    def _mark_behind(self, data: bytes) -> bytes:
        return (self._marks[-1][1] + data[-MARK_BYTES:])[-MARK_BYTES:]

    def _chunk(self, body: bytes, end: int, mark: bytes) -> Chunk:
        now = self._shared.clock()
        return self._advance(self._lines.records(body, self._encoding, now), body, end, mark, now)

    def _advance(self, records: list[bytes], body: bytes, end: int, mark: bytes, now: float) -> Chunk:
        start, lines = self._position, self._lines
        self.head.grow(start, body)
        if start >= self._counted:
            self._counted = end
            self._shared.counts.cut[self.app] += lines.cut_records
            self._shared.counts.undecodable[self.app] += lines.undecodable
        lines.cut_records = lines.undecodable = 0
        self._over = False
        self._marks.append((end, mark))
        self._position = self._text = end
        self._searched = max(self._searched, end) if self._held is not None else end
        self.size = max(self.size, end)
        if end == self.size:
            self._wake_successors()
        return Chunk(records, self._route, start, end, now)

    def _long_line(self) -> Chunk | None:
        """The line at the position is longer than what is read at once: look on for its end, from where the last look ended."""
        width = self._encoding.width
        searched = self._searched - self._position
        at = self._position + (searched - searched % width if searched >= SCAN_BYTES else 0)
        while block := os.pread(self.fd, SCAN_BYTES, at):
            if self._text == at:
                nulls = len(block) - len(block.lstrip(b"\0"))
                self._text += nulls - nulls % width
                if nulls == len(block):
                    at = self._text = self._behind_hole(at + nulls)
                    continue
            end = self._encoding.first_end(block, 0)
            if end:
                return self._line_up_to(at + end)
            at += len(block)
        self._searched = at
        return self._line_up_to(at) if self.last and at > self._position else None

    def _behind_hole(self, at: int) -> int:
        """Where data begins again, if `at` is inside a hole of a sparse file."""
        try:
            return os.lseek(self.fd, at, os.SEEK_DATA)
        except OSError:
            return at

    def _line_up_to(self, end: int) -> Chunk:
        """The long line from the position to `end`, whole or cut."""
        beginning, now = self._text, self._shared.clock()
        limit, width, newline = self._lines.max_record, self._encoding.width, self._encoding.newline
        mark = mark_before(self.fd, end)
        # Of a file that is gone the line may lack its end.
        size = end - beginning - (width if mark.endswith(newline) else 0)
        line = os.pread(self.fd, min(size, limit + width), beginning)
        if size <= limit:
            records = self._lines.records(line + newline, self._encoding, now)
        else:
            records = [self._lines.cut(line, size, self._encoding, now)]
        return self._advance(records, os.pread(self.fd, HEAD_BYTES, self._position), end, mark, now)

    def _remainder(self, data: bytes) -> Chunk | None:
        """All that is left of a file that is gone, with what is held; what the last line has of itself is a line."""
        if not data and self._held is None:
            self.finished = True
            return None
        ending = b"" if self._encoding.last_end(data, 0) == len(data) else self._encoding.newline
        if self._lines.multiline:
            if self._held is None:
                self._held = self._lines.held()
            starts = self._held.add(data + ending, self._encoding)
            return self._joined([*starts, len(self._held.body)], added=len(ending))
        now = self._shared.clock()
        records = self._lines.records(data + ending, self._encoding, now)
        return self._advance(records, data, self._position + len(data), self._mark_behind(data), now)

    def seek(self, position: int) -> None:
        if self.rewritten or self._lost:
            if not (self.rewritten and self._shared.recover(self, position)):
                self.give_up(position, self._position)
            self._left = True
            return
        marks = self._marks
        while marks[-1][0] > position:
            marks.pop()
        self._position = self._searched = self._text = position
        self.finished = self._over = False
        self._held = None

    def give_up(self, start: int, end: int) -> None:
        """What is between there cannot be had again."""
        self._shared.counts.abandoned[self.app] += end - start
        log.error("%s: %d bytes that Kafka did not take are gone from the file", self.path, end - start)

    def skip(self, position: int, detail: str) -> None:
        with contextlib.suppress(OSError):
            known = decode(detail)
            if self._position < position and known is not None and holds(self.fd, known, position):
                self.head = Head(os.pread(self.fd, min(HEAD_BYTES, position), 0))
                self._marks = [(position, mark_before(self.fd, position))]
                self._position = self._searched = self._text = self._committed = self._counted = position

    def commit(self, position: int) -> None:
        self._committed = position
        self._forget_marks(position)

    def _forget_marks(self, position: int) -> None:
        """Nobody goes back behind `position`."""
        self.head.condense()
        passed = 0
        while passed + 1 < len(self._marks) and self._marks[passed + 1][0] <= position:
            passed += 1
        del self._marks[:passed]

    def lag(self) -> int:
        return 0 if self.finished else max(self.size - max(self._searched, self._position), 0)

    def detail(self, position: int) -> str:
        return encode(self.identity(position))

    # For the tail

    def identity(self, position: int) -> Identity:
        """What tells the file from others, for who comes back to `position`."""
        if self._part_of is not None:
            return self._part_of
        # Written anew, it is sought in copies, which have all that was read.
        known = self._position if self.rewritten else position
        mark = next((mark for end, mark in self._marks if end == known), b"")
        head_size, head = self.head.before(known)
        return Identity(
            path=self.origin,
            device=self.device,
            inode=self.inode,
            head_size=head_size,
            head=head,
            mark_size=len(mark),
            mark=digest(mark),
            modified=self.modified,
            since=self._shared.floors.get(self.origin, 0),
            until=known if self.rewritten else 0,
            ended=self._shared.ended.get(self.origin, ()),
        )

    def look(self) -> bool:
        """See how the file stands: True when it has grown since the last look, wakes whoever reads it when there is more."""
        try:
            return not self.finished and self._look()
        except FileNotFoundError:
            return False  # the tail looks for it
        except OSError as error:
            log.error("%s cannot be looked at: %s", self.path, error.strerror)
            return False

    def _look(self) -> bool:
        status = self._status()
        grown = status.st_size != self.size or status.st_mtime_ns != self.modified
        shrunk = status.st_size < self.size
        self.size, self.modified, self.deleted = status.st_size, status.st_mtime_ns, status.st_nlink == 0
        if grown:
            self._over = False
        suspect = shrunk or (grown and self.size == self.read_to)
        if self.size < self.read_to or (shrunk and not self.read_to) or (suspect and not self._unchanged()):
            self.end_rewritten()
        elif self.size > self._searched or self.last:
            self._shared.wake(self)
        return grown

    @property
    def holds(self) -> bool:
        """Whether the last lines that were read are not sent, as a record that may go on; `end_record` says that it does not."""
        return self._held is not None

    @property
    def may_go_on(self) -> bool:
        """Whether they are, and `end_record` has not said so."""
        return self._held is not None and not self._over

    @property
    def record_is_whole(self) -> bool:
        """Whether that record might be over, as far as its form tells."""
        return self._held is not None and self._held.record_is_whole

    def end_record(self) -> None:
        """Nothing has been written for a while: the last lines are a record, as they are."""
        self._over = True
        self._shared.wake(self)

    def release(self, copies: tuple[TailedFile, ...]) -> None:
        """What was held of a file that has been written anew is the last record of it, unless one of `copies` goes on with it."""
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            if any(os.pread(copy.fd, len(self._held.body), self._position) == self._held.body for copy in copies):
                return
        self.finished = self._left = False
        self._shared.wake(self)

    def verify(self) -> None:
        """End, if what was read last is not there any more."""
        with contextlib.suppress(OSError):
            if not self.finished and not self._unchanged():
                self.end_rewritten()

    def _unchanged(self) -> bool:
        """Whether what was read first and last is still there."""
        position, mark = self._marks[-1]
        return os.pread(self.fd, len(mark), position - len(mark)) == mark and self.head.is_of(self.fd)

    def _waits(self) -> bool:
        """Whether one of the files that were here before is still being read."""
        while self.predecessor is not None:
            later, earliest = self, self.predecessor
            while earliest.predecessor is not None:
                later, earliest = earliest, earliest.predecessor
            if not earliest.read_out() or (earliest.holds and not earliest.finished):
                return True
            earliest.successors = tuple(other for other in earliest.successors if other is not later)
            later.predecessor = None
        return False

    @property
    def is_part(self) -> bool:
        """Whether it is only read for what another one, written anew, cannot give any more."""
        return self._part_of is not None

    def is_part_of(self, other: TailedFile) -> bool:
        part_of = self._part_of
        return part_of is not None and (part_of.path, part_of.device, part_of.inode) == (other.origin, *other.key)

    def is_like(self, fd: int) -> bool:
        """Whether the open file begins like this one; False when that is too little to tell. Raises OSError."""
        if self.rewritten or self.head.size >= SURE_BYTES:
            return self.head.is_like(fd)
        # What was not read yet must tell: it may be written anew in this moment, but then nothing of it is known.
        with contextlib.suppress(FileNotFoundError):
            return Head(os.pread(self.fd, HEAD_BYTES, 0)).is_like(fd)
        return False

    def agrees_with(self, fd: int) -> bool:
        """Whether the open file ends as this one does at the same place: it is a copy of it, whole or in the making."""
        end = min(os.fstat(fd).st_size, os.fstat(self.fd).st_size)
        return mark_before(fd, end) == mark_before(self.fd, end)

    def behind_copy(self, fd: int) -> int:
        """Where in a copy of it, the open file, what was not read begins; 0 if it is no copy."""
        size = os.fstat(fd).st_size
        if size < self._position:
            return size if self.head.is_like(fd) else 0
        return self._position if holds(fd, self.identity(self._position), self._position) else 0

    def remaining(self) -> Iterator[list[bytes]]:
        """The records that are not known to be in Kafka, to the very end; for a file that nobody will read again."""
        self.seek(self._committed)
        self.predecessor, self.held_back, self.last = None, False, True
        self.settings = msgspec.structs.replace(self.settings, multiline=None)  # the spool has no place for several lines
        while chunk := self.read(SCAN_BYTES):
            yield chunk.records
        self._committed = self._position

    def follow(self, predecessor: TailedFile) -> None:
        """Be read after `predecessor`."""
        self.predecessor = predecessor
        predecessor.successors += (self,)

    def read_out(self) -> bool:
        """Whether all there is of it has been read."""
        if self.finished:
            return True
        if self.held_back:
            return False
        with contextlib.suppress(OSError):
            self.size = self._status().st_size
        return self.size <= self._searched

    @property
    def undelivered(self) -> int:
        """Bytes that are there and not known to be in Kafka."""
        return max(self.size - self._committed, 0)

    @property
    def settled(self) -> bool:
        """Whether it is finished and all of it is in Kafka, and saved so."""
        return self.finished and (self._left or self._committed >= self._position)

    @property
    def read_whole(self) -> bool:
        """Whether it was read to its end, and not found to be written anew or lost before."""
        return self.finished and not (self.rewritten or self._lost or self.is_part)

    def end_lost(self) -> None:
        """It cannot be found again."""
        self.finished = self._lost = True
        unread = self.size - self._position
        if unread > 0:
            self._shared.counts.abandoned[self.app] += unread
            log.error("%s was removed while it was not open, and %d bytes of it were not read: they are lost", self.path, unread)
        self._wake_successors()

    def end_rewritten(self) -> None:
        """What was read is all there will be of this generation of the file."""
        self.finished = self.rewritten = True
        self._wake_successors()

    def _wake_successors(self) -> None:
        for successor in self.successors:
            self._shared.wake(successor)
