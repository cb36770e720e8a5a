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
import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from forwarder import config
from forwarder.positions import Saved
from forwarder.route import Route
from forwarder.source import Source, Wake
from forwarder.tail.archives import Archives, is_unpacked
from forwarder.tail.arrivals import Arrivals
from forwarder.tail.claims import Claims
from forwarder.tail.copies import Copies
from forwarder.tail.descriptors import Descriptors
from forwarder.tail.discovery import Found, may_be_renamed, walk
from forwarder.tail.file import Counts, Shared, TailedFile
from forwarder.tail.growth import Growth
from forwarder.tail.identity import SURE_BYTES, holds
from forwarder.tail.inotify import Inotify
from forwarder.tail.lines import Lines
from forwarder.tail.register import CLOCK_GRAIN, RETIRED_KEPT, Register
from forwarder.tail.resume import Resume

log = logging.getLogger("forwarder.tail")

WALK_SECONDS, WALK_SECONDS_IN_TROUBLE, WALK_SECONDS_POLLING, SHORTEST_WALK_GAP = 60.0, 2.0, 0.5, 0.02
GONE_SECONDS, DELETED_SECONDS = 3600.0, 5.0
"""How long a file that left its path is kept open after its last growth, renamed or deleted."""
LET_GO_SECONDS = 1.0
WALK_SHARE = 0.02
"""So much of the time is for walks at most, as long as nobody asks for one."""
LONGEST_WALK = 2.0
LINES_KEPT = 1000


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
        since: float | None,
        scratch: Path,
    ) -> None:
        """`saved` are the rows of the last run; `forget` gets the name of each that leads to nothing any more.

        `renew` saves a source's position again. `since`, in seconds since 1970, is until when the last run saw what there was;
        None if this is the first. `scratch` is a directory for what is unpacked.
        """
        self.counts = Counts()
        self._tails = tails
        self._saved = list(saved)
        self._host = host
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._astray: dict[TailedFile, float] = {}
        """Files that were let go of and cannot be found, and since when."""
        self._stamps: dict[str, int] = {}
        """When names in the directories of the paths last changed, in nanoseconds."""
        self._unheard = False
        """The kernel does not hear of everything that happens in the directories."""
        self._walk_due = asyncio.Event()
        self._walk_began: float | None = None
        self._inotify: Inotify[TailedFile | None] | None = None
        if tails:
            try:
                self._inotify = Inotify(self._walk_due.set, self._overflowed, self._modified)
            except OSError as error:
                log.warning("inotify cannot be had (%s), files are polled; raise fs.inotify.max_user_instances", error.strerror)
        self._growth = Growth(self._inotify, self._walk_due.set)
        self._lines: dict[tuple[int, str], tuple[config.Tail, Lines]] = {}
        shared = Shared(
            counts=self.counts,
            descriptors=Descriptors(),
            clock=clock,
            wake=wake,
            held=self._growth.hold,
            recover=self._recover,
            lines=self._lines_of,
            floors={},
            ended={},
        )
        self._register = Register(
            tails,
            routes=routes,
            names=[row.name for row in self._saved],
            shared=shared,
            growth=self._growth,
            added=added,
            removed=removed,
            renew=renew,
        )
        self._claims = Claims(forget)
        self._archives = Archives(self._register, self._claims, scratch, self._walk_due.set)
        self._copies = Copies(self._register, self._claims, self._archives)
        self._arrivals = Arrivals(
            self._register, self._claims, self._archives, walk_soon=self._walk_due.set, clock=clock, since=since
        )

    # The life of it

    def start(self) -> None:
        """Take up what the last run left, and what is there."""
        Resume(self._register, self._claims, self._archives, self._copies, self._arrivals).take_up(self._saved)
        self._saved.clear()
        self._register.beside_directory.cache_clear()  # that may have taken a while
        found = _walk_all(self._tails)
        self._take(found, [])
        for _, there in found:
            self._arrivals.look_at_vacant_paths(there.directories)
        self._register.beside_directory.cache_clear()
        self._claims.give_up_closed()
        self._arrivals.starting = False

    async def run(self) -> None:
        """Follow the files until cancelled."""
        if not self._tails:
            await asyncio.Event().wait()
        jobs = (self._growth.follow(), self._growth.sweep(), self._follow_directories(), self._let_go(), self._archives.run())
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def flush(self) -> None:
        """The agent stops: of deleted files even the unfinished last line is read, now or never."""
        for file in self._register.files.values():
            file.look()
            self._growth.end_record(file)
            if file.rewritten:
                file.release(())
            if file.deleted:
                file.last = True
                file.look()

    def rescue(self, keep: Callable[[config.Tail, list[bytes]], None]) -> None:
        """What is left of deleted files ends with the agent: hand undelivered records to `keep`, which may raise OSError."""
        for file in self._all():
            if not file.deleted or not file.undelivered or file.rewritten or is_unpacked(file):
                continue
            try:
                for records in file.remaining():
                    keep(file.settings, records)
            except OSError as error:
                log.error("%s is deleted, and what is left of it cannot be kept: %s", file.path, error)
            else:
                self._claims.forget(file.name)

    def close(self) -> None:
        self._archives.close()
        for file in self._all():
            if file.deleted and file.undelivered and not is_unpacked(file):
                self.counts.abandoned[file.app] += file.undelivered
                log.error("%s is deleted, and %d bytes of it are not in Kafka: they are lost", file.path, file.undelivered)
            file.close()
        if self._inotify is not None:
            self._inotify.close()

    def _all(self) -> set[TailedFile]:
        return {*self._register.files.values(), *self._register.ended}

    @property
    def sees_everything(self) -> bool:
        """Whether nothing can have come and gone of which a next start would not know."""
        walks = self._walk_began is None or self._loop.time() - self._walk_began < LONGEST_WALK
        return walks and not self._archives.any_awaited

    def statistics(self) -> dict[str, int]:
        """Numbers for the status."""
        return {
            "files": len(self._register.files),
            "hot": len(self._growth.hot),
            "rotated_or_deleted": len(self._register.gone),
            "held_deleted_bytes": sum(file.size for file in self._register.gone if file.deleted),
            "undecodable": self.counts.undecodable.total(),
            "abandoned_bytes": self.counts.abandoned.total(),
        }

    # Paths

    async def _follow_directories(self) -> None:
        cost = 0.0
        while True:
            pause = WALK_SECONDS
            if self._unheard or self._arrivals.undecided:
                pause = max(WALK_SECONDS_POLLING, cost / WALK_SHARE)
            elif self._register.troubled:
                pause = max(WALK_SECONDS_IN_TROUBLE, cost / WALK_SHARE)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._walk_due.wait(), pause)
            self._walk_due.clear()
            began = self._walk_began = self._loop.time()
            # Only what was truncated before the walk: of that a copy, if there is one, will be found.
            rewritten = [file for file in self._register.files.values() if file.rewritten]
            self._take(await self._loop.run_in_executor(None, _walk_all, self._tails), rewritten)
            self._register.beside_directory.cache_clear()
            self._walk_began = None
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
        register = self._register
        self._arrivals.begin_walk()
        register.troubled = False
        changed = self._changed_directories()
        directories: set[str] = set()
        seen: set[str] = set()
        for tail, there in found:
            directories |= there.directories
            for path, reason in there.unreadable.items():
                register.report(path, f"{path} cannot be listed: {reason}")
            for path in there.files:
                if path not in seen:
                    seen.add(path)
                    self._look_at(tail, path)
        for file in rewritten:
            self._arrivals.start_again(file)
        for path, file in list(register.at.items()):
            if path.rpartition("/")[0] in changed:
                self._arrivals.unseen(file.settings, path)
        self._note_gone(seen)
        self._arrivals.end_walk()
        self._watch(directories)

    def _changed_directories(self) -> set[str]:
        """Directories of the paths in which names have come or gone since the last call."""
        stamps = {}
        for directory in {path.rpartition("/")[0] for path in self._register.at}:
            with contextlib.suppress(OSError):
                stamps[directory] = os.stat(directory or "/").st_mtime_ns
        changed = {directory for directory, stamp in stamps.items() if self._stamps.get(directory) != stamp}
        changed |= self._register.unsettled
        self._register.unsettled = set()
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
                self._register.report(path, f"{path} cannot be looked at: {error.strerror}")
            return
        key = status.st_dev, status.st_ino
        before = self._register.at.get(path)
        now = self._register.files.get(key)
        if now is not None and now.finished and not now.rewritten:
            # It was given up a moment ago, and has come back.
            self._register.retire(now)
            now = None
        if now is not None and now.astray and not self._is_moved(now, path):
            self._register.end_lost(now)
            now = None
        if now is not None:
            if now is not before or now.astray:
                self._register.stands(now, path)
            if not now.is_open:
                self._growth.check(now)
        elif stat.S_ISREG(status.st_mode):
            if self._ignored(tail, status):
                self._await_growth(path)
            else:
                self._arrivals.open(tail, path, before)

    def _is_moved(self, file: TailedFile, path: str) -> bool:
        """Whether the file at `path` is the one that was let go of, and not another with its inode.

        Of one hardly read at all the name must tell.
        """
        name, before = path.rpartition("/")[2], file.origin.rpartition("/")[2]
        if file.position < SURE_BYTES and not may_be_renamed(before, name, file.position):
            return False
        fd = self._register.descriptor(path)
        if fd is None:
            return False
        try:
            return holds(fd, file.identity(file.position), file.position)
        except OSError:
            return False
        finally:
            os.close(fd)

    def _note_gone(self, seen: set[str]) -> None:
        """Note which files none of the paths `seen` leads to; what stood at a path last is remembered for its successor."""
        register = self._register
        standing = {register.at[path] for path in seen if path in register.at}
        for file in register.files.values():
            if file in standing:
                register.gone.pop(file, None)
                continue
            if file not in register.gone or file.astray:
                for entry in register.beside(file.path).by_inode.get(file.inode, ()):
                    if entry.key == file.key and (not file.astray or self._is_moved(file, entry.path)):
                        register.has_moved(file, entry.path)
            register.gone.setdefault(file, self._loop.time())
        over = [path for path, file in register.at.items() if path not in seen and file.finished]
        for path in over[: max(len(over) - RETIRED_KEPT, 0)]:
            del register.at[path]
            register.floors.pop(path, None)

    def _ignored(self, tail: config.Tail, status: os.stat_result) -> bool:
        return tail.ignore_older is not None and self._clock() - status.st_mtime > tail.ignore_older

    def _await_growth(self, path: str) -> None:
        """Walk again when the file, which is too old, is written to."""
        try:
            if self._inotify is not None:
                self._inotify.watch_once(path, None)
        except OSError:
            self._register.troubled = True

    # What is over

    async def _let_go(self) -> None:
        """Once in a while: close what is over, and what has long been gone."""
        register = self._register
        while True:
            await asyncio.sleep(LET_GO_SECONDS)
            now = self._loop.time()
            self._astray = {file: since for file, since in self._astray.items() if file.astray and not file.finished}
            for file, since in list(register.gone.items()):
                self._growth.see(file)  # nobody tells of its deletion
                if file.finished and not file.rewritten and not self._archives.are_awaited(file.origin):
                    register.retire(file)
                elif file.astray:
                    self._walk_due.set()
                    if now - self._astray.setdefault(file, now) > DELETED_SECONDS:
                        register.end_lost(file)
                elif file in self._growth.hot or not file.read_out():
                    register.gone[file] = now
                elif now - since > (DELETED_SECONDS if file.deleted else GONE_SECONDS):
                    file.last = True
                    file.look()
            self._copies.pay()
            for file in register.ended:
                if not file.finished:
                    register.shared.wake(file)  # a part that could not be read is tried again
            self.settle()

    def settle(self) -> None:
        """Leave the files that are over."""
        self._register.settle(self._copies.owes, self._archives.are_awaited)

    # What files ask for

    def _recover(self, file: TailedFile, position: int) -> bool:
        return self._copies.recover(file, position)

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

    # Watches

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
            self._register.report("watches", f"{error.strerror}: some directories are polled; raise fs.inotify.max_user_watches")


def _walk_all(tails: tuple[config.Tail, ...]) -> list[tuple[config.Tail, Found]]:
    return [(tail, walk(tail.paths, tail.exclude)) for tail in tails]
