"""All spools of the agent: opened by name, held within their quotas, synced to the platter in the background.

The quotas are in bytes on disk. What happens at a full spool is the configuration's choice: `block` refuses with SpoolFull,
and whoever holds the records waits for room; `drop-newest` and `drop-oldest` give records up and count them. One app over
its own share never costs another app anything; when all together are over theirs, the largest spool gives way.

There are at most MOST_APPS. A new one takes the place of the one that was quiet the longest, if that is IDLE_SECONDS at least and
all that it sent is in Kafka, or is refused: no peer can take directories and memory without end by inventing names.

The last bytes of the disk are never taken: without room for positions nothing that Kafka has could be given up, and a disk
that the spool has filled would stay full for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from forwarder import config
from forwarder.source import Wake
from forwarder.spool import SEGMENT_BYTES, Routes, Shared, Spool, app_directories, directory_name
from forwarder.spool.block import NO_SESSION

log = logging.getLogger("forwarder.spool")

SMALLEST_SEGMENT = 64 * 1024
OVER_SECONDS = 5.0
MOST_APPS = 1000
LONGEST_NAME = 220
"""Of a directory; names of files that are made of it (see `dead`) have to fit too."""
IDLE_SECONDS = 600.0
RELEASE_SECONDS = 0.1
KEPT_FREE = 16 * 1024 * 1024
KEPT_FREE_SHARE = 16
"""What is left of the disk: KEPT_FREE, or one part in KEPT_FREE_SHARE of a small one."""
CHECK_BYTES = 256 * 1024
"""The room on the disk is looked at each time that so much was written."""


class SpoolFull(Exception):
    """No room in the spool now: quota reached with `when_full = "block"`, or the disk is full. Try again later."""


class Spools:
    def __init__(
        self,
        directory: Path,
        settings: config.Spool,
        *,
        routes: Routes,
        wake: Wake,
        added: Callable[[Spool], None],
        removed: Callable[[Spool], None],
    ) -> None:
        self.dropped: Counter[tuple[str, str]] = Counter()
        """Records given up, by app and reason."""
        self.disk_errors = 0
        self._directory = directory
        self._settings = settings
        self._routes = routes
        self._wake = wake
        self._added = added
        self._removed = removed
        self._used: dict[str, float] = {}
        self._closed: dict[str, int] = {}
        """The positions of those that could not be opened."""
        self._floor = 0
        """Where a new spool begins: behind any that was given up, whose saved position may still be there after a kill."""
        self._shared = Shared()
        self._spools: dict[str, Spool] = {}
        self._reported: dict[str, tuple[str, float]] = {}
        """What apps have been told to suffer from, and when it happened last."""
        self._released = -RELEASE_SECONDS
        self._unchecked = CHECK_BYTES
        self._syncing = asyncio.Lock()

    def open_all(self, positions: Mapping[str, int]) -> None:
        """Open what is on disk; `positions` are those saved, by source name. A spool that is gone starts where it ended."""
        for app, directory in app_directories(self._directory):
            position = positions.get(f"spool:{app}", 0)
            try:
                self._open(app, position)
            except OSError as error:
                self._closed[app] = position
                log.error("app %s: %s cannot be opened (%s); it is tried again when the app sends", app, directory, error)
        for name, position in positions.items():
            if name.startswith("spool:") and not (self._directory / directory_name(name[6:])).exists():
                self._open(name[6:], position)

    def of(self, app: str) -> Spool:
        """The spool of the app, opened if need be. Raises OSError, also when there are too many or its name is too long."""
        spool = self._spools.get(app)
        if spool is None:
            if len(directory_name(app)) > LONGEST_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), app)
            if len(self._spools) >= MOST_APPS and not self._give_one_up():
                raise OSError(
                    f"there are {MOST_APPS} apps already, with records that are not in Kafka or not {IDLE_SECONDS:g} s old"
                )
            spool = self._open(app, self._closed.get(app, self._floor))
            self._closed.pop(app, None)
        return spool

    def _give_one_up(self) -> bool:
        """Forget the app that was heard of the longest ago, if that is long and all it sent is in Kafka."""
        before = time.monotonic() - IDLE_SECONDS
        idle = [
            spool for spool in self._spools.values() if spool.delivered and not spool.unsynced and self._used[spool.app] <= before
        ]
        if not idle:
            return False
        spool = min(idle, key=lambda each: self._used[each.app])
        spool.release()
        spool.close()
        self._floor = max(self._floor, spool.end)
        del self._spools[spool.app], self._used[spool.app]
        self._removed(spool)
        with contextlib.suppress(OSError):  # what is in quarantine stays
            (self._directory / directory_name(spool.app)).rmdir()
        return True

    def __iter__(self) -> Iterator[Spool]:
        return iter(self._spools.values())

    def _open(self, app: str, position: int) -> Spool:
        segment = min(max(self._settings.max_bytes_per_app // 8, SMALLEST_SEGMENT), SEGMENT_BYTES)
        spool = self._spools[app] = Spool(
            self._directory / directory_name(app),
            app,
            position,
            routes=self._routes,
            wake=self._wake,
            shared=self._shared,
            segment_bytes=segment,
        )
        self._used[app] = time.monotonic()
        self._added(spool)
        return spool

    @property
    def disk_bytes(self) -> int:
        return self._shared.disk_bytes

    def append(
        self,
        spool: Spool,
        records: bytes,
        count: int,
        received: float,
        *,
        route: bytes = b"",
        session: bytes = NO_SESSION,
        first: int = 0,
    ) -> None:
        """Append to `spool` within the quotas; raises SpoolFull when the records must wait."""
        self._used[spool.app] = time.monotonic()
        try:
            if not self._has_room(spool, len(records)) and not self._make_room(spool, len(records), count):
                if session != NO_SESSION:
                    spool.sessions[session] = first + count
                return
            self._check_disk(len(records))
            spool.append(records, count, received, route=route, session=session, first=first)
        except OSError as error:
            self.disk_errors += 1
            self._report(spool.app, "the disk does not take records; apps wait, shipping goes on", f" ({error})")
            self._release()
            raise SpoolFull(str(error)) from error
        if spool.app in self._reported:
            self._report_end(spool.app)

    def tick(self) -> None:
        """Once a second: have those read again that could not be."""
        for spool in self._spools.values():
            if spool.failing:
                self._wake(spool)

    def _check_disk(self, size: int) -> None:
        """Raises OSError when the rest of the disk is to be left free."""
        self._unchecked += size
        if self._unchecked < CHECK_BYTES:
            return
        room = os.statvfs(self._directory)
        if room.f_bavail * room.f_frsize - size < min(KEPT_FREE, room.f_blocks * room.f_frsize // KEPT_FREE_SHARE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        self._unchecked = 0

    def _has_room(self, spool: Spool, size: int) -> bool:
        """Whether `size` bytes fit; those too large for any quota do when nothing else is there."""
        total = self._shared.disk_bytes
        return (not spool.bytes or spool.bytes + size <= self._settings.max_bytes_per_app) and (
            not total or total + size <= self._settings.max_bytes
        )

    def _release(self) -> None:
        """Let every spool give back what it holds of what is in Kafka already; it is many times as much as one tries again."""
        now = time.monotonic()
        if now - self._released >= RELEASE_SECONDS:
            self._released = now
            for spool in self._spools.values():
                with contextlib.suppress(OSError):  # a disk that takes nothing may not even let go
                    spool.release()

    def _make_room(self, spool: Spool, size: int, count: int) -> bool:
        """Whether the records may be appended; False when they are dropped instead."""
        spool.release()
        if not self._has_room(spool, size):
            self._release()
        if self._has_room(spool, size):
            return True
        policy = self._settings.when_full
        if policy == "drop-newest":
            self._report(spool.app, "the spool is full: new records are dropped")
            self.dropped[spool.app, "spool_full"] += count
            return False
        if policy == "drop-oldest":
            self._report(spool.app, "the spool is full: the oldest records are dropped")
            while spool.bytes and spool.bytes + size > self._settings.max_bytes_per_app:
                self.dropped[spool.app, "spool_full"] += spool.drop_oldest()
            while self._shared.disk_bytes and self._shared.disk_bytes + size > self._settings.max_bytes:
                largest = max(self._spools.values(), key=lambda each: each.bytes)
                self.dropped[largest.app, "spool_full"] += largest.drop_oldest()
            return True
        self._report(spool.app, "the spool is full: apps wait until Kafka has taken some of it")
        raise SpoolFull("quota reached")

    def _report(self, app: str, what: str, why: str = "") -> None:
        """Once, until it is over."""
        said, _ = self._reported.get(app, ("", 0.0))
        self._reported[app] = what, time.monotonic()
        if what != said:
            log.warning("app %s: %s%s", app, what, why)

    def _report_end(self, app: str) -> None:
        """Over is what has not happened for a while: at a full spool there is room and none in turn."""
        _, last = self._reported[app]
        if time.monotonic() - last >= OVER_SECONDS:
            del self._reported[app]
            log.warning("app %s: the spool takes its records again", app)

    async def sync(self) -> None:
        """Everything appended before this call is on the platter when it returns."""
        async with self._syncing:
            dirty = [(spool, dict(spool.unsynced)) for spool in self._spools.values() if spool.unsynced]
            if not dirty:
                return
            try:
                await asyncio.get_running_loop().run_in_executor(None, _sync_all, dirty)
            except OSError as error:
                self.disk_errors += 1
                log.error("fsync of the spool failed: %s; records since the last good one may not survive a power cut", error)
            for spool, written in dirty:
                spool.synced(written)

    def forget_unsynced(self) -> None:
        """For `fsync = "never"`: let go of descriptors without syncing."""
        for spool in self._spools.values():
            if spool.unsynced:
                spool.synced(dict(spool.unsynced))

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()


def _sync_all(dirty: list[tuple[Spool, dict[int, int]]]) -> None:
    for spool, written in dirty:
        spool.sync(written)
