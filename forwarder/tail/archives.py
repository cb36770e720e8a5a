"""What was compressed while the agent was down: archives are unpacked after the start, in a thread, one after the other.

Until the archives beside a path are done with, what stood later at that path waits, and nothing else does. In them may be files
of saved positions that were not found elsewhere, and files that nobody knows, which came and went in the meantime.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from forwarder import config
from forwarder.positions import Saved
from forwarder.tail.claims import Claims
from forwarder.tail.file import TailedFile
from forwarder.tail.identity import SURE_BYTES, Identity
from forwarder.tail.lookup import Entry
from forwarder.tail.packed import Sought, name_before, unpack
from forwarder.tail.register import Register

log = logging.getLogger("forwarder.tail")

RETRY_SECONDS = 2.0


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
    last: TailedFile | None = None
    """What was unpacked last."""


class Archives:
    def __init__(self, register: Register, claims: Claims, scratch: Path, walk_soon: Callable[[], None]) -> None:
        """`scratch` is a directory for what is unpacked."""
        self.scratch = scratch
        self._walk_soon = walk_soon
        self._register = register
        self._claims = claims
        self._unpacking: dict[str, Unpacking] = {}
        """By path."""
        self._due = asyncio.Event()
        self._closed = False

    def may_hold(self, tail: config.Tail, identity: Identity, row: Saved) -> bool:
        """Have the file that was not found sought in the archives, if there are any."""
        if (identity.until or row.position) < SURE_BYTES:
            return False
        archives = self._all(identity.path)
        if not archives:
            return False
        self._await(tail, identity.path, archives).rows.append((identity, row))
        return True

    def look_for_unseen(self, tail: config.Tail, path: str) -> None:
        """Files that stood at `path` for a while unseen may have been compressed since."""
        if any(self._is_unseen(entry, self._register.floors[path]) for entry in self._beside(path)):
            self._await(tail, path, self._beside(path))

    def are_awaited(self, path: str) -> bool:
        return path in self._unpacking

    @property
    def any_awaited(self) -> bool:
        return bool(self._unpacking)

    def put_before(self, path: str, files: list[TailedFile]) -> list[TailedFile]:
        """Have the first of `files`, which stood at `path`, wait for what is in the archives, if any are awaited."""
        if files and path in self._unpacking:
            self._unpacking[path].waiting, files[0].held_back = files[0], True
        return files

    async def run(self) -> None:
        """Unpack what is awaited, until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            for path, unpacking in list(self._unpacking.items()):
                try:
                    await self._unpack_all(path, unpacking)
                except OSError as error:
                    what = unpacking.archives[0].path
                    self._register.report(what, f"{what} cannot be unpacked: {error.strerror}; it is tried again")
                else:
                    self._finish(path, unpacking)
            if self._unpacking:
                await asyncio.sleep(RETRY_SECONDS)
                self._due.set()

    async def _unpack_all(self, path: str, unpacking: Unpacking) -> None:
        """Raises OSError when that may succeed later; what is done is done then."""
        while unpacking.archives:
            file = await self._unpack(path, unpacking, unpacking.archives[0])
            del unpacking.archives[0]
            if file is not None:
                if unpacking.last is not None:
                    self._register.chain([unpacking.last, file])
                unpacking.last = file

    def _finish(self, path: str, unpacking: Unpacking) -> None:
        for identity, row in self._wanted(unpacking):
            self._claims.give_up(identity, row)
        del self._unpacking[path]
        later, last = unpacking.waiting, unpacking.last
        if last is not None:
            self._register.at.setdefault(path, last)
        if later is not None:
            later.held_back = False
            if last is not None:
                self._register.chain([last, later])
            self._register.shared.wake(later)

    def close(self) -> None:
        """Have the thread end soon."""
        self._closed = True

    def _beside(self, path: str) -> list[Entry]:
        return list(self._register.beside(path).packed_from(path))

    def _is_unseen(self, entry: Entry, floor: int) -> bool:
        # By default archives are excluded, so `exclude` says nothing of them.
        return entry.modified >= floor and self._register.tail_of(entry.path) is None

    def _all(self, path: str) -> list[Entry]:
        """Beside the path, and in directories below, where logrotate's `olddir` puts them."""
        beside = self._register.beside(path)
        places = [beside, *map(self._register.beside_directory, beside.directories)]
        return [entry for place in places for entry in (*place.packed_from(path), *place.packed_as(path))]

    def _await(self, tail: config.Tail, path: str, archives: list[Entry]) -> Unpacking:
        unpacking = self._unpacking.get(path)
        if unpacking is None:
            unpacking = self._unpacking[path] = Unpacking(tail, [], [], self._register.floors[path])
            self._due.set()
        known = {entry.path: entry for entry in (*unpacking.archives, *archives)}
        unpacking.archives = sorted(known.values(), key=lambda entry: entry.modified)
        return unpacking

    def _wanted(self, unpacking: Unpacking) -> list[tuple[Identity, Saved]]:
        return [pair for pair in unpacking.rows if self._claims.waits(pair[1])]

    async def _unpack(self, path: str, unpacking: Unpacking, entry: Entry) -> TailedFile | None:
        """What is wanted of an archive. Raises OSError when it cannot be unpacked now, and is not damaged."""
        rows = self._wanted(unpacking)
        # All others may be of another path, and are only looked into for what is known.
        unseen = self._is_unseen(entry, unpacking.floor) and entry in self._beside(path)
        if not rows and not unseen:
            return None
        sought = [Sought(identity, identity.until or row.position, row.position) for identity, row in rows]
        past = sorted(self._register.past.get(path, ()), key=lambda ended: -ended.end) if unseen else []
        sought += [Sought(ended, ended.end, ended.end) for ended in past]
        work = functools.partial(unpack, unknown=unseen, stopped=lambda: self._closed)
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, work, entry.path, self.scratch, sought)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno is not None:
                raise
            log.error("%s may hold lines that were not read, and cannot be read: %s", entry.path, error)
            return None
        if found is None:
            return None
        fd, which = found
        begin = sought[which].begin if which is not None else 0
        if which is not None and which < len(rows):
            wanted = self._claims.waits(rows[which][1])
            self._claims.claim(*rows[which])
        else:
            wanted = which is None or begin < os.fstat(fd).st_size
        if not wanted:
            os.close(fd)
            return None
        file = self._register.new(unpacking.tail, path, entry.path, fd, begin)
        self._register.begin(file)
        self._walk_soon()  # it stands nowhere, and the next walk notes that
        return file


def is_unpacked(file: TailedFile) -> bool:
    """Whether it has no name because it was made of an archive, where it can be found again."""
    return file.path != file.origin and bool(name_before(file.path)) and os.path.lexists(file.path)
