"""Files that apps write, followed through whatever happens to them.

- Directories are watched, and walked again when something changes in them, and now and then in any case.
- A path that leads to another file than before was rotated: the old file is read to its end, then those that came and went
  unseen in between, then the new one. What was renamed is kept open until it has not grown for an hour.
- A truncated file is a new generation, read from its start. If a copy of the old one lies beside it (`copytruncate`), what
  had not been read is read there; a copy that the globs match themselves is not read twice.
- What was rotated while the agent was down is found again by identity, among the files beside it. Archives are unpacked in a
  thread, and until that is done what stood later at their path waits, and nothing else.
- When there are more files than the process may have open, they take turns; none is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import chain, count, pairwise
from pathlib import Path

import msgspec

from forwarder import config
from forwarder.positions import Saved
from forwarder.route import Route
from forwarder.source import TAIL_PREFIX, Source, Wake
from forwarder.tail import identity as identities
from forwarder.tail.descriptors import Descriptors
from forwarder.tail.discovery import Found, is_excluded, matches, rotation_bases, walk
from forwarder.tail.file import Counts, Shared, TailedFile
from forwarder.tail.growth import Growth
from forwarder.tail.identity import ENDED_KEPT, Ended, Identity, shown
from forwarder.tail.inotify import Inotify
from forwarder.tail.lines import Lines
from forwarder.tail.lookup import (
    OPEN,
    Beside,
    Entry,
    Key,
    Known,
    encoding_of,
    find,
    find_packed,
    key_of,
    leads_to,
    start_of_last_line,
)
from forwarder.tail.packed import Sought, unpack

log = logging.getLogger("forwarder.tail")

WALK_SECONDS, WALK_SECONDS_IN_TROUBLE, WALK_SECONDS_POLLING, SHORTEST_WALK_GAP = 60.0, 2.0, 0.5, 0.02
GONE_SECONDS, DELETED_SECONDS = 3600.0, 5.0
"""How long a file that left its path is kept open after its last growth, renamed or deleted."""
LET_GO_SECONDS = 1.0
WALK_SHARE = 0.02
"""So much of the time is for walks at most, as long as nobody asks for one."""
CLOCK_GRAIN = 50_000_000
"""File systems stamp with a coarser clock, in nanoseconds."""
COPY_SECONDS = 2.0
"""How long a file that looks like a copy of another must not have grown to be taken for one of its own."""
RETIRED_KEPT = 10_000
LOST_KEPT = 100
LINES_KEPT = 1000
MOST_LISTINGS = 5
"""While files rotate, directories are listed again until names stand still, so many times."""


class Moved(Enum):
    """Says that a name leads elsewhere by now."""

    MOVED = "moved"


MOVED = Moved.MOVED


class Unclaimed(msgspec.Struct, frozen=True):
    """A saved position whose file was not found where it should be; `open` says that it may still be found."""

    identity: Identity
    row: Saved
    open: bool = False


class Unpacking(msgspec.Struct):
    """Archives beside a path, oldest first, and the positions that may be of files in them.

    Those that were modified since `floor` may also be of files that nobody knows.
    """

    tail: config.Tail
    archives: list[Entry]
    rows: list[tuple[Identity, Saved]]
    floor: int
    waiting: TailedFile | None = None
    """It comes after what is in the archives."""


class Owed(msgspec.Struct, frozen=True):
    """What Kafka has not got of a file that was written anew, whose copy cannot be read now; `row` is its saved position."""

    tail: config.Tail
    identity: Identity
    row: Saved


class Suspect(msgspec.Struct):
    """A file that may be a copy of another; `since` is when its size last changed, by the loop's clock; `walk` met it last."""

    size: int
    since: float
    walk: int


class Tails:
    """All tailed files of the agent."""

    def __init__(
        self,
        tails: tuple[config.Tail, ...],
        *,
        routes: Callable[[config.Tail], Route],
        saved: Iterable[Saved],
        host: str,
        wake: Wake,
        added: Callable[[Source], None],
        removed: Callable[[Source], None],
        forget: Callable[[str], None],
        renew: Callable[[Source], None],
        clock: Callable[[], float],
        first_start: bool,
        scratch: Path,
    ) -> None:
        """`saved` are the rows of the last run; `forget` gets the name of each that leads to nothing any more.

        `renew` saves a source's position again. `scratch` is a directory for what is unpacked.
        """
        self.counts = Counts()
        self._tails = tails
        self._routes = {id(tail): routes(tail) for tail in tails}
        self._saved = list(saved)
        self._host = host
        self._added = added
        self._removed = removed
        self._forget = forget
        self._renew = renew
        self._clock = clock
        self._to_end = first_start
        self._scratch = scratch
        self._loop = asyncio.get_running_loop()
        self._files: dict[Key, TailedFile] = {}
        """The present generation of every inode."""
        self._at: dict[str, TailedFile] = {}
        """What stands, or stood last, at every path that the globs match."""
        self._gone: dict[TailedFile, float] = {}
        """Files at no such path any more, and since when they have not grown."""
        self._astray: dict[TailedFile, float] = {}
        """Files that were let go of and cannot be found, and since when."""
        self._lost: deque[Known] = deque(maxlen=LOST_KEPT)
        """What those were that could not be found in the end."""
        self._ended: list[TailedFile] = []
        """Finished, and not all of it in Kafka yet."""
        self._owed: dict[str, Owed] = {}
        """By the name of the row."""
        self._retired: OrderedDict[Key, tuple[Identity, int]] = OrderedDict()
        """Files that were read to their end and let go of, with how far that was."""
        self._unclaimed: dict[int, list[Unclaimed]] = {}
        """By inode, which may have been those of several files, one after the other."""
        self._unpacking: dict[str, Unpacking] = {}
        """By path."""
        self._packed_due = asyncio.Event()
        self._closed = False
        self._suspects: dict[Key, Suspect] = {}
        self._walks = 0
        self._floors: dict[str, int] = {}
        """For each path, since when what stood there is ours and may be unknown, in nanoseconds."""
        self._past: dict[str, tuple[Ended, ...]] = {}
        """For each path, the last files that stood there and were read to their end."""
        self._stamps: dict[str, int] = {}
        """When names in the directories of the paths last changed, in nanoseconds."""
        self._unsettled: set[str] = set()
        """Directories with files in them of which it cannot be told yet what they are."""
        self._listed = functools.cache(Beside)
        """Directories as they are in this walk: each is listed once, however many of its files have rotated."""
        self._names = dict.fromkeys(row.name for row in self._saved)
        self._reported: set[str] = set()
        self._troubled = False
        """Something could not be looked at in this walk."""
        self._unheard = False
        """The kernel does not hear of everything that happens in the directories."""
        self._walk_due = asyncio.Event()
        self._inotify: Inotify[TailedFile | None] | None = None
        if tails:
            try:
                self._inotify = Inotify(self._walk_due.set, self._overflowed, self._modified)
            except OSError as error:
                log.warning("inotify cannot be had (%s), files are polled; raise fs.inotify.max_user_instances", error.strerror)
        self._growth = Growth(self._inotify, self._walk_due.set)
        self._lines: dict[tuple[int, str], tuple[config.Tail, Lines]] = {}
        self._shared = Shared(
            counts=self.counts,
            descriptors=Descriptors(),
            clock=clock,
            wake=wake,
            held=self._growth.hold,
            recover=self._recover,
            lines=self._lines_of,
            floors=self._floors,
            ended=self._past,
        )

    # The life of it

    def start(self) -> None:
        """Take up what the last run left, and what is there."""
        self._resume()
        self._take(_walk_all(self._tails), [])
        for each in [each for unclaimed in self._unclaimed.values() for each in unclaimed if not each.open]:
            self._give_up(each.identity, each.row)
        self._to_end = False

    async def run(self) -> None:
        """Follow the files until cancelled."""
        if not self._tails:
            await asyncio.Event().wait()
        jobs = (self._growth.follow(), self._growth.sweep(), self._follow_directories(), self._let_go(), self._unpack_all())
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def flush(self) -> None:
        """The agent stops: of deleted files even the unfinished last line is read, now or never."""
        for file in self._files.values():
            file.look()
            self._growth.end_record(file)
            if file.rewritten:
                file.release(())
            if file.deleted:
                file.last = True
                file.look()

    def rescue(self, keep: Callable[[config.Tail, list[bytes]], None]) -> None:
        """What is left of deleted files ends with the agent: hand undelivered records to `keep`, which may raise OSError."""
        for file in {*self._files.values(), *self._ended}:
            if not file.deleted or not file.undelivered or file.rewritten:
                continue
            try:
                for records in file.remaining():
                    keep(file.settings, records)
            except OSError as error:
                log.error("%s is deleted, and what is left of it cannot be kept: %s", file.path, error)
            else:
                self._forget(file.name)

    def close(self) -> None:
        self._closed = True
        for file in {*self._files.values(), *self._ended}:
            if file.deleted and file.undelivered:
                self.counts.abandoned[file.app] += file.undelivered
                log.error("%s is deleted, and %d bytes of it are not in Kafka: they are lost", file.path, file.undelivered)
            file.close()
        if self._inotify is not None:
            self._inotify.close()

    def statistics(self) -> dict[str, int]:
        """Numbers for the status."""
        return {
            "files": len(self._files),
            "hot": len(self._growth.hot),
            "rotated_or_deleted": len(self._gone),
            "held_deleted_bytes": sum(file.size for file in self._gone if file.deleted),
            "undecodable": self.counts.undecodable.total(),
            "abandoned_bytes": self.counts.abandoned.total(),
        }

    # Paths

    async def _follow_directories(self) -> None:
        cost = 0.0
        while True:
            pause = WALK_SECONDS
            if self._unheard or self._suspects or self._unsettled:
                pause = max(WALK_SECONDS_POLLING, cost / WALK_SHARE)
            elif self._troubled:
                pause = max(WALK_SECONDS_IN_TROUBLE, cost / WALK_SHARE)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._walk_due.wait(), pause)
            self._walk_due.clear()
            began = self._loop.time()
            # Only what was truncated before the walk: of that a copy, if there is one, will be found.
            rewritten = [file for file in self._files.values() if file.rewritten]
            self._take(await self._loop.run_in_executor(None, _walk_all, self._tails), rewritten)
            cost = self._loop.time() - began
            # However often something changes, nine tenths of the time are for other things.
            await asyncio.sleep(max(SHORTEST_WALK_GAP, 9 * cost))

    def _modified(self, file: TailedFile | None) -> None:
        """A file was written to: one that is followed, or one that was too old."""
        if file is None:
            self._walk_due.set()
        else:
            self._growth.modified(file)

    def _overflowed(self) -> None:
        """The kernel lost events."""
        self._walk_due.set()
        self._growth.see_all()

    def _take(self, found: list[tuple[config.Tail, Found]], rewritten: list[TailedFile]) -> None:
        """Bring what is known in line with what a walk has found; begin the `rewritten` files again."""
        self._walks += 1
        self._troubled = False
        changed = self._changed_directories()
        directories: set[str] = set()
        seen: set[str] = set()
        for tail, there in found:
            directories |= there.directories
            for path, reason in there.unreadable.items():
                self._report(path, f"{path} cannot be listed: {reason}")
            for path in there.files:
                if path not in seen:
                    seen.add(path)
                    self._look_at(tail, path)
        for file in rewritten:
            self._start_again(file)
        for path, file in list(self._at.items()):
            if path.rpartition("/")[0] in changed:
                self._unseen(file.settings, path)
        self._note_gone(seen)
        self._suspects = {key: suspect for key, suspect in self._suspects.items() if suspect.walk == self._walks}
        self._watch(directories)
        self._listed.cache_clear()

    def _changed_directories(self) -> set[str]:
        """Directories of the paths in which names have come or gone since the last call."""
        stamps = {}
        for directory in {path.rpartition("/")[0] for path in self._at}:
            with contextlib.suppress(OSError):
                stamps[directory] = os.stat(directory or "/").st_mtime_ns
        changed = {directory for directory, stamp in stamps.items() if self._stamps.get(directory) != stamp} | self._unsettled
        self._unsettled = set()
        now = int(self._clock() * 1e9)
        fresh = {directory for directory, stamp in stamps.items() if abs(now - stamp) < CLOCK_GRAIN}
        if fresh:
            # What comes in the same tick of the file system's clock does not show: look again.
            self._walk_due.set()
        self._stamps = {directory: stamp for directory, stamp in stamps.items() if directory not in fresh}
        return changed

    def _look_at(self, tail: config.Tail, path: str) -> None:
        """See which file stands at a path."""
        try:
            status = os.stat(path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._report(path, f"{path} cannot be looked at: {error.strerror}")
            return
        key = status.st_dev, status.st_ino
        before = self._at.get(path)
        now = self._files.get(key)
        if now is not None and now.finished and not now.rewritten:
            # It was given up a moment ago, and has come back.
            self._retire(now)
            now = None
        if now is not None and now.astray and not self._is_moved(now, path):
            self._end_lost(now)
            now = None
        if now is not None:
            if now is not before or now.astray:
                self._stands(now, path)
            if not now.is_open:
                self._growth.check(now)
        elif stat.S_ISREG(status.st_mode):
            if self._ignored(tail, status):
                self._await_growth(path)
            else:
                self._open(tail, path, before)

    def _is_moved(self, file: TailedFile, path: str) -> bool:
        """Whether the file at `path` is the one that was let go of, and not another with its inode.

        Of one hardly read at all the name must tell.
        """
        name, before = path.rpartition("/")[2], file.origin.rpartition("/")[2]
        if file.position < identities.SURE_BYTES and before not in (name, *rotation_bases(name)):
            return False
        fd = self._descriptor(path)
        if fd is None:
            return False
        try:
            return identities.holds(fd, file.identity(file.position), file.position)
        except OSError:
            return False
        finally:
            os.close(fd)

    def _stands(self, file: TailedFile, path: str) -> None:
        self._at[path] = file
        file.last = False
        if not leads_to(file.path, file.key):
            self._has_moved(file, path)

    def _has_moved(self, file: TailedFile, path: str) -> None:
        file.path = path
        self._growth.see(file)

    def _note_gone(self, seen: set[str]) -> None:
        """Note which files none of the paths `seen` leads to; what stood at a path last is remembered for its successor."""
        standing = {self._at[path] for path in seen if path in self._at}
        for file in self._files.values():
            if file in standing:
                self._gone.pop(file, None)
                continue
            if file not in self._gone or file.astray:
                for entry in self._beside(file.path).by_inode.get(file.inode, ()):
                    if entry.key == file.key and (not file.astray or self._is_moved(file, entry.path)):
                        self._has_moved(file, entry.path)
            self._gone.setdefault(file, self._loop.time())
        over = [path for path, file in self._at.items() if path not in seen and file.finished]
        for path in over[: max(len(over) - RETIRED_KEPT, 0)]:
            del self._at[path]

    def _ignored(self, tail: config.Tail, status: os.stat_result) -> bool:
        return tail.ignore_older is not None and self._clock() - status.st_mtime > tail.ignore_older

    def _await_growth(self, path: str) -> None:
        """Walk again when the file, which is too old, is written to."""
        try:
            if self._inotify is not None:
                self._inotify.watch_once(path, None)
        except OSError:
            self._troubled = True

    def _open(self, tail: config.Tail, path: str, before: TailedFile | None) -> None:
        """Take up the file at `path`, to be read after the one that was there `before`, unless it may be a copy."""
        fd = self._descriptor(path)
        if fd is None:
            return
        try:
            if self._is_too_short(fd) and self._originals_of(path):
                self._unsettled.add(path.rpartition("/")[0])
                os.close(fd)
                return
            copied = self._copied_from(path, fd)
            if key_of(fd) in self._files or (copied is not None and not copied.rewritten):
                # Not the file of a moment ago but one that has moved here, or to be left alone: the next walk sees to it.
                os.close(fd)
                return
            file = self._new(tail, path, path, fd, self._beginning(tail, fd, copied))
        except OSError as error:
            self._report(path, f"{path} cannot be read: {error.strerror}; it is tried again")
            os.close(fd)
            return
        self._files[file.key] = file  # known before others are looked for: it may just have been renamed
        unpacking = self._unpacking.get(path)
        if before is not None:
            self._chain([before, *self._unseen(tail, path), file])
        elif unpacking is not None:
            unpacking.waiting, file.held_back = file, True
        if copied is not None:
            copied.successors += (file,)
            self._renew(copied)  # before the copy is known, it has to be known of what
        self._floors.setdefault(path, int(self._clock() * 1e9) - CLOCK_GRAIN)
        self._stands(file, path)
        self._begin(file)

    def _is_too_short(self, fd: int) -> bool:
        """Whether it cannot be told yet if the open file is going to be a copy."""
        status = os.fstat(fd)
        return status.st_size < identities.SURE_BYTES and self._clock() - status.st_mtime < COPY_SECONDS

    def _beginning(self, tail: config.Tail, fd: int, copied: TailedFile | None) -> int:
        """Where to begin in a file that is not known."""
        read_to = self._read_to(fd)
        if read_to is not None:
            return read_to
        if copied is not None:
            return copied.behind_copy(fd)
        if self._to_end and tail.start == "end":
            return start_of_last_line(fd, encoding_of(fd, tail.encoding))
        return 0

    def _read_to(self, fd: int) -> int | None:
        """How far a file was read that was let go of, or that the last run left elsewhere; None for any other."""
        unclaimed = self._unclaimed.get(key_of(fd)[1], [])
        for each in sorted(unclaimed, key=lambda each: -each.row.position):
            position = each.row.position
            if position >= identities.SURE_BYTES and identities.holds(fd, each.identity, position):
                self._claim(each.identity, each.row)
                return position
        retired = self._retired.get(key_of(fd))
        if retired is None or identities.holds(fd, *retired):
            return None if retired is None else retired[1]
        del self._retired[key_of(fd)]  # its inode is another file's now
        return None

    def _copied_from(self, path: str, fd: int) -> TailedFile | None:
        """The file that the one at `path`, by name and content, is a copy of.

        It is one when the other has been truncated. Until that is seen it may also be a file of its own: it is then left
        alone until it has not grown for COPY_SECONDS.
        """
        status = os.fstat(fd)
        key = key_of(fd)
        for original in self._originals_of(path):
            if not original.head.is_like(fd):
                continue
            self._growth.verify(original)
            suspect = self._suspects.setdefault(key, Suspect(-1, 0.0, 0))
            suspect.walk = self._walks
            if status.st_size != suspect.size:
                suspect.size, suspect.since = status.st_size, self._loop.time()
            if original.rewritten or self._loop.time() - suspect.since < COPY_SECONDS:
                return original
        return None

    def _originals_of(self, path: str) -> list[TailedFile]:
        """What is followed where the file at `path`, by its name, was rotated from."""
        return [self._at[before] for before in _paths_before(path) if before in self._at]

    def _start_again(self, old: TailedFile) -> None:
        """A file was truncated or written anew: another generation, at the same inode."""
        paths = [path for path, file in self._at.items() if file is old]
        copies = old.successors
        tail = old.settings
        fd = -1
        try:
            fd = os.dup(old.fd)
            file = self._new(tail, old.origin, old.path, fd, 0)
        except OSError as error:
            self._report(old.path, f"{old.path} cannot be read: {error.strerror}; it is tried again")
            if fd >= 0:
                os.close(fd)
            return
        self._end(old)
        self._remember(old)
        self._renew(old)  # that it was written anew is to be known after a kill
        if not paths or any(self._originals_of(path) for path in paths):
            # A copy, written over by the next one: what is new in it is found as it was in the first.
            for path in paths:
                del self._at[path]
            file.close()
            self._names.pop(file.name, None)
            old.release((*self._unseen(tail, old.origin), *copies))
            self._walk_due.set()
            return
        self._files[file.key] = file
        parts = [file for file in self._ended if file.is_part_of(old)]
        copies = (*self._unseen(tail, old.origin), *copies)
        old.release(copies)
        self._chain([old, *parts, *copies, file])
        for path in paths:
            self._at[path] = file
        self._begin(file)

    def _beside(self, path: str) -> Beside:
        return self._listed(path.rpartition("/")[0])

    def _unseen(self, tail: config.Tail, path: str) -> list[TailedFile]:
        """Files beside `path` that stood there for a while and were not seen, oldest first.

        Among them may be a copy of a file that has been truncated: it is read from where that one was when it ended.
        """
        files: list[TailedFile] = []
        for _ in range(MOST_LISTINGS):
            entries = self._unknown(tail, path)
            if not entries:
                break
            known = {*self._files.values(), *self._ended}
            generations = [file for file in known if file.origin == path and not file.is_part]
            stood = [self._take_unseen(tail, path, entry, generations) for entry in entries]
            files += [file for file in stood if isinstance(file, TailedFile)]
            if MOVED not in stood:
                break
            self._listed.cache_clear()
        for file in files:
            log.info("%s stood at %s for a while and is read now", file.path, path)
        return sorted(files, key=lambda file: file.modified)

    def _unknown(self, tail: config.Tail, path: str) -> list[Entry]:
        """What lies beside `path`, may have stood there since it is ours, and is not followed."""
        return [
            entry
            for entry in self._beside(path).rotated_from(path)
            if entry.modified >= self._floors.get(path, 0)
            and entry.key not in self._files
            and not is_excluded(entry.path, tail.exclude)
            and self._tail_of(entry.path) in (None, tail)
        ]

    def _take_unseen(
        self, tail: config.Tail, path: str, entry: Entry, generations: list[TailedFile]
    ) -> TailedFile | Moved | None:
        """Take up what is new in it; MOVED if another file has that name by now."""
        fd = self._descriptor(entry.path)
        if fd is None and os.path.lexists(entry.path):
            self._unsettled.add(path.rpartition("/")[0])
            return None
        if fd is None:
            return MOVED
        try:
            if key_of(fd) != entry.key:
                os.close(fd)
                return MOVED
            begin, copied = self._behind_known(fd, generations)
            if begin == 0 and self._is_too_short(fd):
                self._unsettled.add(path.rpartition("/")[0])
                begin = None
            if begin is None:
                os.close(fd)
                return None
            file = self._new(tail, path, entry.path, fd, begin)
        except OSError as error:
            self._report(entry.path, f"{entry.path} cannot be read: {error.strerror}")
            self._unsettled.add(path.rpartition("/")[0])
            os.close(fd)
            return None
        if copied is not None:
            copied.successors += (file,)
            self._renew(copied)  # before the copy is known, it has to be known of what
        if self._tail_of(entry.path) is not None:
            self._stands(file, entry.path)
        self._begin(file)
        return file

    def _behind_known(self, fd: int, generations: list[TailedFile]) -> tuple[int | None, TailedFile | None]:
        """Where in a file what is not known begins, and of which truncated one it is the copy.

        None if it begins nowhere, as in a copy of what is being read.
        """
        read_to = self._read_to(fd)
        if read_to is None:
            read_to = next((position for identity, position in self._lost if identities.holds(fd, identity, position)), None)
        if read_to is not None:
            return (read_to if read_to < os.fstat(fd).st_size else None), None
        for file in generations:
            like = file.head.is_like(fd)
            if like:
                self._growth.verify(file)
            if file.rewritten:
                if begin := file.behind_copy(fd):
                    return begin, file
            elif like and file.agrees_with(fd):
                return None, None
        return 0, None

    # What the last run left

    def _resume(self) -> None:
        inodes: dict[int, list[Known]] = {}
        rows: dict[str, list[tuple[Identity, Saved]]] = {}
        for row in self._saved:
            identity = identities.decode(row.detail)
            if identity is None:
                log.warning("%s: its position cannot be understood, the file is read from its start", row.name)
                self._forget(row.name)
            else:
                rows.setdefault(identity.path, []).append((identity, row))
                if not identity.until:
                    inodes.setdefault(identity.inode, []).append((identity, row.position))
        resumed: list[tuple[config.Tail, str, list[TailedFile]]] = []
        for path, of_path in rows.items():
            tail = self._tail_of(path)
            if tail is not None:
                of_path.sort(key=lambda pair: (pair[0].modified, pair[1].position))
                self._floors[path] = max(identity.since or of_path[0][0].modified for identity, _ in of_path)
                self._past[path] = tuple(dict.fromkeys(chain(*(identity.ended for identity, _ in of_path))))[-ENDED_KEPT:]
                files = self._resume_path(tail, path, [pair for pair in of_path if not pair[0].until], inodes)
                resumed.append((tail, path, files))
            elif not os.path.lexists(path):
                for _, row in of_path:
                    self._forget(row.name)
        # Only now is it known which of the files beside them are known.
        for tail, path, files in resumed:
            rewritten = [self._resume_rewritten(tail, *pair) for pair in rows[path] if pair[0].until]
            files[:0] = filter(None, rewritten)
        for tail, path, files in resumed:
            self._line_up(tail, path, files)

    def _resume_path(
        self, tail: config.Tail, path: str, rows: list[tuple[Identity, Saved]], inodes: dict[int, list[Known]]
    ) -> list[TailedFile]:
        """Find the files that stood at `path`, oldest first; `inodes` has all rows."""
        files: list[TailedFile] = []
        for identity, row in rows:
            try:
                found = self._find(identity, row.position, inodes)
            except OSError as error:
                self._report(path, f"{path} cannot be looked at: {error.strerror}; it is tried again")
                self._unclaimed.setdefault(identity.inode, []).append(Unclaimed(identity, row, open=True))
                continue
            if found is None:
                packed = self._may_be_packed(tail, identity, row)
                self._unclaimed.setdefault(identity.inode, []).append(Unclaimed(identity, row, open=packed))
                continue
            there, fd = found
            key = key_of(fd)
            is_copy = key[1] != identity.inode
            if is_copy or key in self._files:
                self._forget(row.name)
            if key in self._files:
                os.close(fd)
                continue
            try:
                file = self._new(tail, path, there, fd, row.position, "" if is_copy else row.name)
            except OSError as error:
                self._report(there, f"{there} cannot be read: {error.strerror}")
                os.close(fd)
                continue
            self._begin(file)
            files.append(file)
        return files

    def _resume_rewritten(self, tail: config.Tail, identity: Identity, row: Saved) -> TailedFile | None:
        """Read in its copy what Kafka had not got of a file that was written anew; if nobody reads the copy, all the rest too."""
        try:
            copy = self._copy_of(identity)
        except OSError as error:
            self._owe(Owed(tail, identity, row), error)
            return None
        if copy is None:
            if not self._may_be_packed(tail, identity, row):
                self._give_up(identity, row)
            return None
        path, fd = copy
        try:
            if key_of(fd) in self._files:
                return self._read_part(tail, path, fd, row.position, identity, row.name)
            file = self._new(tail, identity.path, path, fd, row.position, row.name)
        except OSError as error:
            self._owe(Owed(tail, identity, row), error)
            os.close(fd)
            return None
        self._begin(file)
        return file

    def _owe(self, owed: Owed, error: OSError) -> None:
        self._report(owed.row.name, f"a copy of {owed.identity.path} cannot be read: {error.strerror}; it is tried again")
        self._owed[owed.row.name] = owed

    def _pay(self) -> None:
        """Try again to read what is owed."""
        ended = {file.name: file for file in self._ended if file.name in self._owed}
        for name in list(self._owed):
            owed = self._owed.pop(name)
            file = ended.get(name)
            if file is None:
                self._resume_rewritten(owed.tail, owed.identity, owed.row)
            elif not self._recover(file, owed.row.position):
                file.give_up(owed.row.position, owed.identity.until)
        self._listed.cache_clear()

    def _line_up(self, tail: config.Tail, path: str, files: list[TailedFile]) -> None:
        """What is at the path comes after all that stood there; of that some may never have been seen."""
        standing = [file for file in files if file.path == path]
        rotated = [file for file in files if file.path != path]
        if self._unseen_packed(path):
            self._await_archives(tail, path)
        files = [*rotated, *self._unseen(tail, path), *standing]
        self._chain(files)
        if files and path in self._unpacking:
            self._unpacking[path].waiting, files[0].held_back = files[0], True
        if files:
            self._at[path] = files[-1]

    def _find(self, identity: Identity, position: int, inodes: dict[int, list[Known]]) -> tuple[str, int] | None:
        """Path and descriptor of what a row tells of: beside where it was, or in a directory below."""
        beside = self._beside(identity.path)
        found = find(identity, position, inodes, beside)
        for below in beside.directories if found is None else ():
            found = found or find(identity, position, inodes, self._listed(below))
        return found

    def _claim(self, identity: Identity, row: Saved) -> None:
        """Nobody looks for the file of this row any more."""
        self._forget(row.name)
        unclaimed = self._unclaimed.get(identity.inode, [])
        unclaimed[:] = [each for each in unclaimed if each.row is not row]
        if identity.path in self._unpacking:
            rows = self._unpacking[identity.path].rows
            rows[:] = [each for each in rows if each[1] is not row]

    def _give_up(self, identity: Identity, row: Saved) -> None:
        log.info("%s: inode %d is not there any more, or was truncated", identity.path, identity.inode)
        self._claim(identity, row)

    # Archives

    def _unseen_packed(self, path: str) -> bool:
        """Whether files that stood at `path` for a while unseen may have been compressed since."""
        return any(self._is_unseen(entry, self._floors[path]) for entry in self._packed(path))

    def _is_unseen(self, entry: Entry, floor: int) -> bool:
        # By default archives are excluded, so `exclude` says nothing of them.
        return entry.modified >= floor and self._tail_of(entry.path) is None

    def _packed(self, path: str) -> list[Entry]:
        return list(self._beside(path).packed_from(path))

    def _may_be_packed(self, tail: config.Tail, identity: Identity, row: Saved) -> bool:
        """Have the file that was not found sought in the archives, if there are any."""
        if (identity.until or row.position) < identities.SURE_BYTES or not self._packed(identity.path):
            return False
        self._await_archives(tail, identity.path).rows.append((identity, row))
        return True

    def _await_archives(self, tail: config.Tail, path: str) -> Unpacking:
        unpacking = self._unpacking.get(path)
        if unpacking is None:
            unpacking = self._unpacking[path] = Unpacking(tail, self._packed(path), [], self._floors[path])
            self._packed_due.set()
        return unpacking

    async def _unpack_all(self) -> None:
        while True:
            await self._packed_due.wait()
            self._packed_due.clear()
            for path, unpacking in list(self._unpacking.items()):
                files: list[TailedFile] = []
                for entry in unpacking.archives:
                    file = await self._unpack(path, unpacking, entry)
                    if file is not None:
                        files.append(file)
                        self._chain(files[-2:])
                for identity, row in list(unpacking.rows):
                    self._give_up(identity, row)
                del self._unpacking[path]
                later = unpacking.waiting
                if later is not None:
                    later.held_back = False
                    self._chain([*files[-1:], later])
                    self._shared.wake(later)

    async def _unpack(self, path: str, unpacking: Unpacking, entry: Entry) -> TailedFile | None:
        """What is wanted of an archive."""
        rows = list(unpacking.rows)
        unseen = self._is_unseen(entry, unpacking.floor)
        if not rows and not unseen:
            return None
        sought = [Sought(identity, identity.until or row.position, row.position) for identity, row in rows]
        past = sorted(self._past.get(path, ()), key=lambda ended: -ended.end) if unseen else []
        sought += [Sought(ended, ended.end, ended.end) for ended in past]
        work = functools.partial(unpack, unknown=unseen, stopped=lambda: self._closed)
        try:
            found = await self._loop.run_in_executor(None, work, entry.path, self._scratch, sought)
        except OSError as error:
            log.error("%s may hold lines that were not read, and cannot be read: %s", entry.path, error)
            return None
        if found is None:
            return None
        fd, which = found
        begin = sought[which].begin if which is not None else 0
        if which is not None and which < len(rows):
            wanted = rows[which] in unpacking.rows
            self._claim(*rows[which])
        else:
            wanted = which is None or begin < os.fstat(fd).st_size
        if not wanted:
            os.close(fd)
            return None
        file = self._new(unpacking.tail, path, entry.path, fd, begin)
        self._begin(file)
        return file

    # One file

    def _new(
        self, tail: config.Tail, origin: str, path: str, fd: int, position: int, name: str = "", part_of: Identity | None = None
    ) -> TailedFile:
        """A source, not yet begun; `name` is that of its saved position, if it has one."""
        if not name:
            first = f"{TAIL_PREFIX}{shown(origin)}:{os.fstat(fd).st_ino}"
            name = next(name for name in chain([first], (f"{first}.{number}" for number in count(1))) if name not in self._names)
        file = TailedFile(
            name,
            path,
            fd,
            position,
            origin=origin,
            settings=tail,
            route=self._routes[id(tail)],
            shared=self._shared,
            part_of=part_of,
        )
        self._names[name] = None
        return file

    def _lines_of(self, tail: config.Tail, path: str) -> Lines:
        """Of the files that are read these days; thousands of quiet ones need none."""
        key = id(tail), path
        known = self._lines.get(key)
        if known is not None and known[0] is tail:
            return known[1]
        if len(self._lines) >= LINES_KEPT:
            self._lines.clear()
        lines = Lines(tail, path, self._host)
        self._lines[key] = tail, lines
        return lines

    def _begin(self, file: TailedFile) -> None:
        self._files[file.key] = file
        self._suspects.pop(file.key, None)
        self._added(file)
        self._growth.add(file)

    def _chain(self, files: list[TailedFile]) -> None:
        """Have each read after the one before it."""
        for earlier, later in pairwise(files):
            if later.predecessor is None and not earlier.finished:
                later.follow(earlier)

    def _descriptor(self, path: str) -> int | None:
        try:
            return os.open(path, OPEN)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, f"{path} cannot be opened: {error.strerror}; it is tried again")
            return None

    def _tail_of(self, path: str) -> config.Tail | None:
        """The table that a path belongs to: the first whose globs match it."""
        for tail in self._tails:
            if any(matches(path, pattern) for pattern in tail.paths) and not is_excluded(path, tail.exclude):
                return tail
        return None

    async def _let_go(self) -> None:
        """Once in a while: close what is over, and what has long been gone."""
        while True:
            await asyncio.sleep(LET_GO_SECONDS)
            now = self._loop.time()
            retired: set[str] = set()
            self._astray = {file: since for file, since in self._astray.items() if file.astray and not file.finished}
            for file, since in list(self._gone.items()):
                self._growth.see(file)  # nobody tells of its deletion
                if file.finished and not file.rewritten and file.origin not in self._unpacking:
                    self._retire(file)
                    retired.add(file.origin)
                elif file.astray:
                    self._walk_due.set()
                    if now - self._astray.setdefault(file, now) > DELETED_SECONDS:
                        self._end_lost(file)
                elif file in self._growth.hot or not file.read_out():
                    self._gone[file] = now
                elif now - since > (DELETED_SECONDS if file.deleted else GONE_SECONDS):
                    file.last = True
                    file.look()
            self._pay()
            for file in self._ended:
                if not file.finished:
                    self._shared.wake(file)  # a part that could not be read is tried again
            while len(self._retired) > RETIRED_KEPT:
                self._retired.popitem(last=False)
            if retired:
                # Those of the same origin that are left keep its floor, wherever they stand.
                for file in [file for file in self._files.values() if file.origin in retired]:
                    self._renew(file)
            self.settle()

    def settle(self) -> None:
        """Leave the files that are over."""
        for file in [file for file in self._ended if file.settled and file.name not in self._owed]:
            self._ended.remove(file)
            self._names.pop(file.name, None)
            self._removed(file)
            file.close()

    def _retire(self, file: TailedFile) -> None:
        """End a file that was read to its end, and remember how far that was."""
        if file.position >= identities.SURE_BYTES:
            self._retired[file.key] = file.identity(file.position), file.position
        if file.origin not in self._unpacking:
            self._floors[file.origin] = max(self._floors.get(file.origin, 0), file.modified + 1)
        self._remember(file)
        self._end(file)

    def _remember(self, file: TailedFile) -> None:
        """An archive of this file, whenever it is made, holds nothing new."""
        if file.position < identities.SURE_BYTES:
            return
        identity = file.identity(file.position)
        ended = Ended(file.position, identity.head_size, identity.head, identity.mark_size, identity.mark)
        others = [other for other in self._past.pop(file.origin, ()) if other != ended]
        self._past[file.origin] = (*others, ended)[-ENDED_KEPT:]
        if len(self._past) > RETIRED_KEPT:
            del self._past[next(iter(self._past))]

    def _recover(self, file: TailedFile, position: int) -> bool:
        """Kafka wants again what is behind `position` of a file that was written anew: read it in a copy, if there is one."""
        identity = file.identity(position)
        try:
            copy = self._copy_of(identity) or self._packed_copy_of(identity, position)
            if copy is not None:
                try:
                    self._read_part(file.settings, *copy, position, identity)
                except OSError:
                    os.close(copy[1])
                    raise
        except OSError as error:
            self._owe(Owed(file.settings, identity, Saved(file.name, position)), error)
            return True
        return copy is not None

    def _copy_of(self, identity: Identity) -> tuple[str, int] | None:
        """Path and descriptor of a copy of a file that was written anew. Raises OSError when what may be one cannot be read."""
        beside = Beside(identity.path.rpartition("/")[0])
        failed: OSError | None = None
        for entry in beside.rotated_from(identity.path):
            try:
                fd = os.open(entry.path, OPEN)
            except FileNotFoundError:
                continue
            except OSError as error:
                failed = error
                continue
            try:
                if identities.holds(fd, identity, identity.until):
                    return entry.path, fd
            except OSError as error:
                failed = error
            os.close(fd)
        if failed is not None:
            raise failed
        return None

    def _packed_copy_of(self, identity: Identity, position: int) -> tuple[str, int] | None:
        beside = Beside(identity.path.rpartition("/")[0])
        return find_packed(Sought(identity, identity.until, position), beside, identity.path, self._scratch)

    def _read_part(self, tail: config.Tail, path: str, fd: int, position: int, identity: Identity, name: str = "") -> TailedFile:
        """Read in the open file, a copy of what `identity` tells of, what that one had from `position` on."""
        part = self._new(tail, identity.path, path, fd, position, name, identity)
        rest = self._files.get(part.key)
        if rest is not None:
            self._chain([part, rest])
        self._ended.append(part)
        self._added(part)
        return part

    def _end_lost(self, file: TailedFile) -> None:
        """It was let go of and cannot be found; a copy of it may still turn up."""
        file.end_lost()
        if file.position >= identities.SURE_BYTES:
            self._lost.append((file.identity(file.position), file.position))
        self._end(file)

    def _end(self, file: TailedFile) -> None:
        """The file is finished; what of it is on its way to Kafka is waited for."""
        self._gone.pop(file, None)
        self._growth.remove(file)
        if self._files.get(file.key) is file:
            del self._files[file.key]
        self._ended.append(file)

    def _watch(self, directories: set[str]) -> None:
        self._unheard = self._inotify is None
        if self._inotify is None:
            return
        with contextlib.suppress(OSError):
            self._unheard = not all(self._inotify.hears_all(directory) for directory in directories if os.path.isdir(directory))
        try:
            if self._inotify.watch_directories(directories):
                self._walk_due.set()  # what came between the walk and the watch made no event
        except OSError as error:
            self._unheard = True
            self._report("watches", f"{error.strerror}: some directories are polled; raise fs.inotify.max_user_watches")

    def _report(self, what: str, text: str) -> None:
        """A warning, given once; what it is about is tried again."""
        self._troubled = True
        if what not in self._reported:
            self._reported.add(what)
            log.warning("%s", text)


def _paths_before(path: str) -> list[str]:
    """Where the file at `path`, by its name, may have been rotated from."""
    directory, _, name = path.rpartition("/")
    return [f"{directory}/{base}" for base in rotation_bases(name)]


def _walk_all(tails: tuple[config.Tail, ...]) -> list[tuple[config.Tail, Found]]:
    return [(tail, walk(tail.paths, tail.exclude)) for tail in tails]
