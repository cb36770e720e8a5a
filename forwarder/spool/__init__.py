"""The disk between the apps and Kafka: one append-only log for each app, `spool/<app>/<first>.seg`.

Guarantees
- What `append` took is read again after a kill at any instruction; after a power cut too once `sync` has run.
- A block is written by one system call and read whole or not at all (`spool.block` says how it looks on disk).
- Bytes have addresses that only grow: `<first>` is the address of a segment's first byte, a position is an address, and
  positions and segment names alone rebuild everything else. A segment goes when everything in it is committed.
- Damage never stops anything: a bad tail, found at start, is moved to `quarantine/` and the segment cut there; a bad
  stretch in the middle is copied there, skipped and counted.
- A full disk is the caller's to wait out: `append` raises OSError, leaves the log as it was and may be tried again, and
  so does whatever removes segments. What cannot be read now is `failing`, stays where it is and is read when it can be.

One thread uses a spool; only `Segment.sync` may run in another.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from forwarder.route import Route
from forwarder.source import Chunk, Source, Wake
from forwarder.spool import block as blocks

log = logging.getLogger("forwarder.spool")

SEGMENT_BYTES = 32 * 1024 * 1024
LARGEST_ADDRESS = 1 << 62
"""Positions are kept as 64-bit numbers."""
SESSIONS_KEPT = 10_000
SESSIONS_SHARE = 8
"""The sessions that open a segment take at most one part in SESSIONS_SHARE of it."""
RECENT_BYTES = 4 * 1024 * 1024

Routes = Callable[[str, bytes], Route]
"""From app and route description to the route of a block's records."""


def directory_name(app: str) -> str:
    """A directory name for `app` that no name, however wild, can leave the spool directory with."""
    name = quote(app, safe="")
    return "%2E" + name[1:] if name.startswith(".") else name


def app_name(directory: str) -> str:
    return unquote(directory)


class Segment:
    """One file of a spool: addresses `first` to `end`."""

    def __init__(self, path: Path, first: int, size: int) -> None:
        self.path = path
        self.first = first
        self.size = size

    @property
    def end(self) -> int:
        return self.first + self.size


def list_segments(directory: Path) -> list[Segment]:
    """The segments of one app in order of address, as they are on disk; links, directories and other names are none."""
    found = []
    for path in directory.glob("*.seg"):
        if re.fullmatch(r"[0-9]{20}", path.stem) and int(path.stem) < LARGEST_ADDRESS:
            with contextlib.suppress(FileNotFoundError):  # an agent may remove it just now
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found.append(Segment(path, int(path.stem), status.st_size))
    return sorted(found, key=lambda segment: segment.first)


def quarantine(directory: Path, segment: Segment, start: int, data: bytes) -> Path:
    """Keep a copy of damaged bytes, which began at offset `start` of `segment`, and make it last."""
    kept = directory / "quarantine"
    kept.mkdir(mode=0o700, exist_ok=True)
    target = kept / f"{segment.first + start:020d}.bad"
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return target


class Recent(msgspec.Struct, gc=False):
    """A block just appended, kept in memory so that a reader that keeps up need not read it back."""

    start: int
    end: int
    route: bytes
    received: float
    records: bytes


class Shared:
    """What all spools have together: bytes on disk, and room in memory for readers that keep up."""

    def __init__(self) -> None:
        self.disk_bytes = 0
        self.recent_free = RECENT_BYTES


class Spool:
    """The spool of one app: append at one end, a `Source` at the other."""

    def __init__(
        self,
        directory: Path,
        app: str,
        position: int,
        *,
        routes: Routes,
        wake: Wake,
        shared: Shared,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Open, and recover what is there; `position` is where reading goes on."""
        self.app = app
        self.name = f"spool:{app}"
        self.sessions: dict[bytes, int] = {}
        self.damaged_bytes = 0
        self.missing_bytes = 0
        self.failing = False
        """Whether the last read failed: somebody has to wake the reader again."""
        self.unsynced: dict[int, int] = {}
        """Descriptors through which something was written, with the address that it ended at."""
        self._directory = directory
        self._routes = routes
        self._wake = wake
        self._shared = shared
        self._segment_bytes = segment_bytes
        self._sessions_kept = min(SESSIONS_KEPT, segment_bytes // SESSIONS_SHARE // blocks.SESSION_BYTES)
        self._recent: deque[Recent] = deque()
        self._read_fd = -1
        self._reading: Segment | None = None
        self._write_fd = -1
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._segments = deque(list_segments(directory))
        for path in set(directory.glob("*.seg")) - {segment.path for segment in self._segments}:
            log.warning("app %s: %s is no segment, left as it is", app, path)
        self._names_changed = False
        self._recover()
        self.bytes = 0
        """Bytes on disk."""
        self._use(sum(segment.size for segment in self._segments))
        # A repair that was killed may leave a segment inside another one.
        self.end = max((position, *(segment.end for segment in self._segments)))
        if self._segments and self._segments[-1].end < self.end:
            self._seal()
        self._read_at = max(position, self._segments[0].first if self._segments else self.end)
        self._committed = self._read_at
        with contextlib.suppress(OSError):  # what cannot be removed now is tried again
            self.commit(position)

    def _use(self, size: int) -> None:
        self.bytes += size
        self._shared.disk_bytes += size

    # Writing

    def append(
        self,
        records: bytes,
        count: int,
        received: float,
        *,
        route: bytes = b"",
        session: bytes = blocks.NO_SESSION,
        first: int = 0,
    ) -> None:
        """Add `count` newline-ended records as one block; raises OSError when the disk does not take them."""
        size = blocks.HEADER + len(route) + len(records)
        if self._write_fd < 0 or (self._segments[-1].size + size > self._segment_bytes and self._segments[-1].size > 0):
            self._roll()
        start = self.end
        self._write(blocks.header(blocks.RECORDS, route, records, count, received, session, first), route, records)
        if session != blocks.NO_SESSION:
            self._remember(session, first + count)
        self._keep(Recent(start, self.end, route, received, records))
        self._wake(self)

    def _write(self, *parts: bytes) -> None:
        segment = self._segments[-1]
        size = sum(map(len, parts))
        written = os.writev(self._write_fd, parts)
        if written != size:
            self._take_back(segment)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(segment.path))
        segment.size += size
        self.end += size
        self._use(size)
        self.unsynced[self._write_fd] = self.end

    def _take_back(self, segment: Segment) -> None:
        """Remove the part of a block that fitted on the disk; if that cannot be done the segment gets no more blocks."""
        try:
            os.ftruncate(self._write_fd, segment.size)
        except OSError:
            log.warning("cannot cut a half-written block off %s, going on in a new segment", segment.path)
            self._use(os.fstat(self._write_fd).st_size - segment.size)
            segment.size = os.fstat(self._write_fd).st_size
            self.end = segment.end
            self._seal()

    def _roll(self) -> None:
        self._seal()
        path = self._directory / f"{self.end:020d}.seg"
        # Whatever stands there is what a failed attempt could not remove.
        self._write_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._names_changed = True
        segment = Segment(path, self.end, 0)
        self._segments.append(segment)
        payload = blocks.sessions_payload(self.sessions)
        head = blocks.header(blocks.SESSIONS, b"", payload, 0, 0, blocks.NO_SESSION, 0)
        try:
            self._write(head, payload)
        except OSError:
            self._seal()
            self._segments.pop()
            self._use(-segment.size)
            self.end = segment.first
            path.unlink()
            raise

    def _seal(self) -> None:
        """No more blocks into the last segment. Its descriptor is closed once it is synced, or here if nobody must sync it."""
        if self._write_fd >= 0 and self._write_fd not in self.unsynced:
            os.close(self._write_fd)
        self._write_fd = -1

    def _remember(self, session: bytes, following: int) -> None:
        sessions = self.sessions
        sessions.pop(session, None)
        sessions[session] = following
        if len(sessions) > self._sessions_kept:
            del sessions[next(iter(sessions))]

    def _keep(self, recent: Recent) -> None:
        size = len(recent.records)
        if (self._recent or self._read_at == recent.start) and size <= self._shared.recent_free:
            self._recent.append(recent)
            self._shared.recent_free -= size
        else:
            self._forget_recent()

    def _forget_recent(self) -> None:
        self._shared.recent_free += sum(len(recent.records) for recent in self._recent)
        self._recent.clear()

    def sync(self, written: Iterable[int]) -> None:
        """Make what was written through these descriptors last. Blocks: for a thread of its own."""
        for fd in written:
            os.fdatasync(fd)
        if self._names_changed:
            self._names_changed = False
            sync_directory(self._directory)

    def synced(self, written: Mapping[int, int]) -> None:
        """Back in the loop's thread: what was `unsynced` before is forgotten, but for what has been written through since."""
        for fd, end in written.items():
            if self.unsynced.get(fd) != end:
                continue
            del self.unsynced[fd]
            if fd != self._write_fd:
                os.close(fd)

    # Reading

    @property
    def position(self) -> int:
        return self._read_at

    def read(self, max_bytes: int) -> Chunk | None:
        try:
            chunk = self._read(max_bytes)
        except OSError as error:
            if not self.failing:
                log.error("app %s: its spool cannot be read (%s); it is tried again", self.app, error)
            self.failing = True
            return None
        if self.failing:
            log.warning("app %s: its spool can be read again", self.app)
            self.failing = False
        return chunk

    def _read(self, max_bytes: int) -> Chunk | None:
        recent = self._recent
        if recent and recent[0].start == self._read_at:
            return self._read_recent(max_bytes)
        while self._read_at < self.end:
            chunk = self._read_disk(max_bytes)
            if chunk is not None:
                return chunk
        return None

    def _read_recent(self, max_bytes: int) -> Chunk:
        recent = self._recent
        first = last = recent.popleft()
        size = len(first.records)
        parts = [first.records]
        while recent and recent[0].route == first.route and size + len(recent[0].records) <= max_bytes:
            last = recent.popleft()
            size += len(last.records)
            parts.append(last.records)
        self._shared.recent_free += size
        self._read_at = last.end
        return self._chunk(first.route, parts, first.start, first.received)

    def _read_disk(self, max_bytes: int) -> Chunk | None:
        """The next records from disk; None when there was only something to step over."""
        segment = self._segment_to_read()
        if segment is None:
            return None
        start = self._read_at
        offset = start - segment.first
        data = os.pread(self._read_fd, min(max_bytes + blocks.HEADER, segment.size - offset), offset)
        needed = blocks.size_at(data, 0)
        if needed > len(data):
            data = os.pread(self._read_fd, needed, offset)
        parts: list[bytes] = []
        route, received, at = b"", 0.0, 0
        while at < len(data) and (block := blocks.read_at(data, at)) is not None:
            if block.kind == blocks.RECORDS:
                if parts and block.route != route:
                    break
                if not parts:
                    route, received = block.route, block.received
                parts.append(data[block.body : block.end])
            at = block.end
        if at == 0:
            self._step_over_damage(segment, offset)
            return None
        self._read_at = start + at
        return self._chunk(route, parts, start, received) if parts else None

    def _chunk(self, route: bytes, parts: list[bytes], start: int, received: float) -> Chunk:
        records = (parts[0] if len(parts) == 1 else b"".join(parts)).split(b"\n")
        records.pop()
        return Chunk(records, self._routes(self.app, route), start, self._read_at, received)

    def _segment_to_read(self) -> Segment | None:
        """The segment that holds the read position, open; None after a step over one that is gone."""
        reading = self._reading
        if reading is not None and reading.first <= self._read_at < reading.end:
            return reading
        self._close_reader()
        segment = next((segment for segment in self._segments if self._read_at < segment.end), None)
        following = self.end if segment is None else segment.first
        if self._read_at < following:
            self._step_over_missing(following)
        if segment is None:
            return None
        try:
            self._read_fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if segment is self._segments[-1]:
                self._seal()
            self._segments.remove(segment)
            self._use(-segment.size)
            self._step_over_missing(segment.end)
            return None
        self._reading = segment
        return segment

    def _step_over_missing(self, following: int) -> None:
        missing = following - self._read_at
        self.missing_bytes += missing
        self._read_at = following
        log.error("app %s: %d bytes of the spool before address %d are missing, going on there", self.app, missing, following)

    def _step_over_damage(self, segment: Segment, offset: int) -> None:
        self._close_reader()  # if the file is gone, opening it again will tell
        with blocks.mapped(segment.path) as data:
            following = blocks.next_good(data, offset + 1)
            # With nothing good behind, all the rest: somebody may even have cut the file.
            following = min(following, segment.size) if following < len(data) else segment.size
            kept = self._set_aside(segment, offset, data[offset:following])
        self.damaged_bytes += following - offset
        self._read_at = segment.first + following
        what = f"kept as {kept}" if kept else "not kept"
        log.error("app %s: %d damaged bytes in %s stepped over, %s", self.app, following - offset, segment.path, what)

    def _close_reader(self) -> None:
        if self._read_fd >= 0:
            os.close(self._read_fd)
        self._read_fd, self._reading = -1, None

    def seek(self, position: int) -> None:
        self._forget_recent()
        self._read_at = max(position, self._segments[0].first if self._segments else self.end)

    def skip(self, position: int, detail: str) -> None:
        self.seek(max(position, self._read_at))

    def commit(self, position: int) -> None:
        """Everything before `position` may go; whole segments do."""
        self._committed = max(self._committed, position)
        while self._segments and self._segments[0].end <= self._committed:
            last = len(self._segments) == 1
            if last and self._write_fd >= 0 and self._segments[0].size < self._segment_bytes // 4:
                break
            self._remove_first()

    def lag(self) -> int:
        return self.end - self._read_at

    def detail(self, position: int) -> str:
        return ""

    # Keeping in bounds

    def drop_oldest(self) -> int:
        """Give up the oldest segment, delivered or not; returns how many unread records went with it."""
        if not self._segments:
            return 0
        segment = self._segments[0]
        unread = max(self._read_at - segment.first, 0)
        lost = 0
        if unread < segment.size:
            with contextlib.suppress(FileNotFoundError), blocks.mapped(segment.path) as data:
                lost = sum(part.count for part in blocks.scan(data, unread) if isinstance(part, blocks.Block))
        self._remove_first()
        if unread < segment.size:
            self._forget_recent()
            self._read_at = segment.end
        return lost

    @property
    def delivered(self) -> bool:
        """Whether everything in it is in Kafka, and the position saved."""
        return self._committed >= self.end

    def release(self) -> None:
        """Room is short: give back a last segment too, which `commit` spares, if all of it is committed."""
        while self._segments and self.delivered:
            self._remove_first()

    def _remove_first(self) -> None:
        """Raises OSError when the disk does not allow it, and may be tried again."""
        if len(self._segments) == 1:
            self._seal()
        segment = self._segments[0]
        segment.path.unlink(missing_ok=True)
        self._segments.popleft()
        if self._reading is segment:
            self._close_reader()
        self._use(-segment.size)

    def close(self) -> None:
        self._seal()
        for fd in self.unsynced:
            os.fdatasync(fd)
            os.close(fd)
        self.unsynced.clear()
        self._close_reader()
        self._forget_recent()

    # Starting

    def _recover(self) -> None:
        """Cut a bad tail off the last segment, learn the sessions, and go on in that segment if it is sound."""
        for empty in [segment for segment in self._segments if not segment.size]:
            empty.path.unlink()
            self._segments.remove(empty)
        if not self._segments:
            return
        last = self._segments[-1]
        sound = True
        with blocks.mapped(last.path) as data:
            for part in blocks.scan(data):
                if isinstance(part, blocks.Damage):
                    sound = False
                    if part.tail:
                        self._cut_tail(last, part, data[part.start : part.end])
        self._learn_sessions()
        if last.size == 0:
            last.path.unlink()
            self._segments.pop()
        elif sound and last.size < self._segment_bytes:
            self._write_fd = os.open(last.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _cut_tail(self, segment: Segment, damage: blocks.Damage, data: bytes) -> None:
        kept = self._set_aside(segment, damage.start, data)
        if not kept:
            return  # it stays where it is, and is stepped over
        os.truncate(segment.path, damage.start)
        segment.size = damage.start
        self.damaged_bytes += len(data)
        log.error("app %s: %d bytes at the end of %s are no whole block, moved to %s", self.app, len(data), segment.path, kept)

    def _set_aside(self, segment: Segment, start: int, data: bytes) -> Path | None:
        """`quarantine`; None when the disk does not take it, which is no reason to stop."""
        try:
            return quarantine(self._directory, segment, start, data)
        except OSError as error:
            log.warning("app %s: %d damaged bytes of %s cannot be set aside: %s", self.app, len(data), segment.path, error)
            return None

    def _learn_sessions(self) -> None:
        """From the newest segment that opens with a list of sessions on."""
        newest = len(self._segments) - 1
        while newest > 0 and not _opens_with_sessions(self._segments[newest].path):
            newest -= 1
        for segment in list(self._segments)[newest:]:
            with blocks.mapped(segment.path) as data:
                for part in blocks.scan(data):
                    if not isinstance(part, blocks.Block):
                        continue
                    if part.kind == blocks.SESSIONS:
                        self.sessions.update(blocks.sessions_of(data[part.body : part.end]))
                    elif part.session != blocks.NO_SESSION:
                        self._remember(part.session, part.first + part.count)


def _opens_with_sessions(path: Path) -> bool:
    with blocks.mapped(path) as data:
        first = blocks.read_at(data, 0)
        return first is not None and first.kind == blocks.SESSIONS


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` last."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def app_directories(spool: Path) -> Iterator[tuple[str, Path]]:
    """App and directory of each spool below `spool`, by name."""
    if spool.is_dir():
        for directory in sorted(spool.iterdir()):
            if directory.is_dir():
                yield app_name(directory.name), directory


def as_source(spool: Spool) -> Source:
    """The view of a spool that the shipper has; here so that the type checker proves that a spool is a source."""
    return spool
