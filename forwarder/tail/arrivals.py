"""Files that appear, at a path, beside it, or anew in an inode: what of them is known already, and what is to be read.

- What lies beside a path with a number or a date in its name may have stood there unseen, and is then read before what
  stands there now. It may also be a copy (`copytruncate`) of what is followed: of that only what was not read is read.
- A file that may still become a copy, being too short to tell or growing, is left alone for a moment. Its directory is then
  `unsettled`, or it is a suspect, and there is another walk soon.
- A truncated file is another generation, read after what its copies have of the old one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from enum import Enum

import msgspec

from forwarder import config
from forwarder.tail.archives import Archives
from forwarder.tail.claims import Claims
from forwarder.tail.discovery import is_excluded, rotation_bases
from forwarder.tail.file import TailedFile
from forwarder.tail.identity import SURE_BYTES
from forwarder.tail.lookup import Entry, Key, encoding_of, key_of, start_of_last_line
from forwarder.tail.register import CLOCK_GRAIN, Register

log = logging.getLogger("forwarder.tail")

COPY_SECONDS = 2.0
"""How long a file that looks like a copy of another must not have grown to be taken for one of its own."""
MOST_LISTINGS = 5
"""While files rotate, directories are listed again until names stand still, so many times."""


class Moved(Enum):
    """Says that a name leads elsewhere by now."""

    MOVED = "moved"


MOVED = Moved.MOVED


class Suspect(msgspec.Struct):
    """A file that may be a copy of another; `since` is when its size last changed, by the loop's clock; `walk` met it last."""

    size: int
    since: float
    walk: int


class Arrivals:
    def __init__(
        self,
        register: Register,
        claims: Claims,
        archives: Archives,
        *,
        walk_soon: Callable[[], None],
        clock: Callable[[], float],
        since: float | None,
    ) -> None:
        """`since`, in seconds since 1970, is until when the last run saw what there was; None if this is the first."""
        self.starting = True
        self._first = since is None
        self._since = int(min(clock(), clock() if since is None else since) * 1e9) - CLOCK_GRAIN
        """Of a path that is not known: since when what stood there is ours, in nanoseconds."""
        self._register = register
        self._claims = claims
        self._archives = archives
        self._walk_soon = walk_soon
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._suspects: dict[Key, Suspect] = {}
        self._walks = 0

    def begin_walk(self) -> None:
        self._walks += 1

    def end_walk(self) -> None:
        self._suspects = {key: suspect for key, suspect in self._suspects.items() if suspect.walk == self._walks}

    @property
    def undecided(self) -> bool:
        """Whether there are files of which it cannot be told yet what they are."""
        return bool(self._suspects or self._register.unsettled)

    # At a path

    def open(self, tail: config.Tail, path: str, before: TailedFile | None) -> None:
        """Take up the file at `path`, to be read after the one that was there `before`, unless it may be a copy."""
        register = self._register
        fd = register.descriptor(path)
        if fd is None:
            return
        try:
            if self._is_too_short(fd) and self._originals_of(path):
                self._unsettle(path)
                os.close(fd)
                return
            copied = self._copied_from(path, fd)
            if key_of(fd) in register.files or (copied is not None and not copied.rewritten):
                # Not the file of a moment ago but one that has moved here, or to be left alone: the next walk sees to it.
                os.close(fd)
                return
            file = register.new(tail, path, path, fd, self._beginning(tail, fd, copied))
        except OSError as error:
            register.report(path, f"{path} cannot be read: {error.strerror}; it is tried again")
            os.close(fd)
            return
        register.files[file.key] = file  # known before others are looked for: it may just have been renamed
        if before is None:
            self._begin_path(tail, path)
            register.chain(self._archives.put_before(path, [*self.unseen(tail, path), file]))
        else:
            register.chain([before, *self.unseen(tail, path), file])
        self._note_copy(copied, file)
        register.stands(file, path)
        self._begin(file)

    def look_at_vacant_paths(self, directories: Iterable[str]) -> None:
        """At a start: what stood for a while, since the last run, at paths of which nobody knows and where nothing stands now."""
        register = self._register
        for directory in directories if not self._first else ():
            for path in register.beside_directory(directory).paths_before():
                tail = register.tail_of(path) if path not in register.at else None
                if tail is None:
                    continue
                self._begin_path(tail, path)
                files = self._archives.put_before(path, self.unseen(tail, path))
                register.chain(files)
                if files:
                    register.at[path] = files[-1]

    def _begin_path(self, tail: config.Tail, path: str) -> None:
        """Nothing is known of the path: what has stood there since the last run, unseen and also compressed by now, is ours."""
        self._register.floors.setdefault(path, self._since)
        if self.starting and not self._first:
            self._archives.look_for_unseen(tail, path)

    def _beginning(self, tail: config.Tail, fd: int, copied: TailedFile | None) -> int:
        """Where to begin in a file that is not known."""
        read_to = self._read_to(fd)
        if read_to is not None:
            return read_to
        if copied is not None:
            return copied.behind_copy(fd)
        if self.starting and self._first and tail.start == "end":
            return start_of_last_line(fd, encoding_of(fd, tail.encoding))
        return 0

    def _copied_from(self, path: str, fd: int) -> TailedFile | None:
        """The file that the one at `path`, by name and content, is a copy of.

        It is one when the other has been truncated. Until that is seen it may also be a file of its own: it is then left
        alone until it has not grown for COPY_SECONDS.
        """
        status = os.fstat(fd)
        key = key_of(fd)
        for original in self._originals_of(path):
            if not original.is_like(fd):
                continue
            self._register.growth.verify(original)
            suspect = self._suspects.setdefault(key, Suspect(-1, 0.0, 0))
            suspect.walk = self._walks
            if status.st_size != suspect.size:
                suspect.size, suspect.since = status.st_size, self._loop.time()
            if original.rewritten or self._loop.time() - suspect.since < COPY_SECONDS:
                return original
        return None

    def _originals_of(self, path: str) -> list[TailedFile]:
        """What is followed where the file at `path`, by its name, was rotated from."""
        directory, _, name = path.rpartition("/")
        paths = [f"{directory}/{base}" for base in rotation_bases(name)]
        return [self._register.at[before] for before in paths if before in self._register.at]

    # Anew in an inode

    def start_again(self, old: TailedFile) -> None:
        """A file was truncated or written anew: another generation, at the same inode."""
        register = self._register
        paths = [path for path, file in register.at.items() if file is old]
        copies = old.successors
        tail = old.settings
        fd = -1
        try:
            fd = os.dup(old.fd)
            file = register.new(tail, old.origin, old.path, fd, 0)
        except OSError as error:
            register.report(old.path, f"{old.path} cannot be read: {error.strerror}; it is tried again")
            if fd >= 0:
                os.close(fd)
            return
        register.end(old)
        register.remember(old)
        register.renew(old)  # that it was written anew is to be known after a kill
        if not paths or any(self._originals_of(path) for path in paths):
            # A copy, written over by the next one: what is new in it is found as it was in the first.
            for path in paths:
                del register.at[path]
            register.drop(file)
            old.release((*self.unseen(tail, old.origin), *copies))
            self._walk_soon()
            return
        register.files[file.key] = file
        if old.held_back:
            self._archives.put_before(old.origin, [file])
        parts = [part for part in register.ended if part.is_part_of(old)]
        copies = (*self.unseen(tail, old.origin), *copies)
        old.release(copies)
        register.chain([old, *parts, *copies, file])
        for path in paths:
            register.at[path] = file
        self._begin(file)

    # Beside a path

    def unseen(self, tail: config.Tail, path: str) -> list[TailedFile]:
        """Files beside `path` that stood there for a while and were not seen, oldest first.

        Among them may be a copy of a file that has been truncated: it is read from where that one was when it ended.
        """
        register = self._register
        files: list[TailedFile] = []
        for _ in range(MOST_LISTINGS):
            entries = self._unknown(tail, path)
            if not entries:
                break
            known = {*register.files.values(), *register.ended}
            generations = [file for file in known if file.origin == path and not file.is_part]
            stood = [self._take_unseen(tail, path, entry, generations) for entry in entries]
            files += [file for file in stood if isinstance(file, TailedFile)]
            if MOVED not in stood:
                break
            register.beside_directory.cache_clear()
        for file in files:
            log.info("%s stood at %s for a while and is read now", file.path, path)
        return sorted(files, key=lambda file: file.modified)

    def _unknown(self, tail: config.Tail, path: str) -> list[Entry]:
        """What lies beside `path`, may have stood there since it is ours, and is not followed."""
        register = self._register
        oldest = 0 if tail.ignore_older is None else int((self._clock() - tail.ignore_older) * 1e9)
        return [
            entry
            for entry in register.beside(path).rotated_from(path)
            if entry.modified >= max(register.floors.get(path, 0), oldest)
            and entry.key not in register.files
            and not is_excluded(entry.path, tail.exclude)
            and register.tail_of(entry.path) in (None, tail)
        ]

    def _take_unseen(
        self, tail: config.Tail, path: str, entry: Entry, generations: list[TailedFile]
    ) -> TailedFile | Moved | None:
        """Take up what is new in it; MOVED if another file has that name by now."""
        register = self._register
        fd = register.descriptor(entry.path)
        if fd is None and os.path.lexists(entry.path):
            self._unsettle(path)
            return None
        if fd is None:
            return MOVED
        try:
            if key_of(fd) != entry.key:
                os.close(fd)
                return MOVED
            begin, copied = self._behind_known(fd, generations)
            if begin == 0 and self._is_too_short(fd):
                self._unsettle(path)
                begin = None
            if begin is None:
                os.close(fd)
                return None
            file = register.new(tail, path, entry.path, fd, begin)
        except OSError as error:
            register.report(entry.path, f"{entry.path} cannot be read: {error.strerror}")
            self._unsettle(path)
            os.close(fd)
            return None
        self._note_copy(copied, file)
        if register.tail_of(entry.path) is not None:
            register.stands(file, entry.path)
        self._begin(file)
        return file

    def _behind_known(self, fd: int, generations: list[TailedFile]) -> tuple[int | None, TailedFile | None]:
        """Where in a file what is not known begins, and of which truncated one it is the copy.

        None if it begins nowhere, as in a copy of what is being read.
        """
        read_to = self._read_to(fd)
        if read_to is None:
            read_to = self._register.lost_at(fd)
        if read_to is not None:
            return (read_to if read_to < os.fstat(fd).st_size else None), None
        for file in generations:
            if file.is_like(fd):
                self._register.growth.verify(file)
                if not file.rewritten and file.agrees_with(fd):
                    return None, None
                self._register.growth.verify(file)  # it may have been truncated in that moment
            if file.rewritten and (begin := file.behind_copy(fd)):
                return begin, file
        return 0, None

    # Both

    def _read_to(self, fd: int) -> int | None:
        """How far a file was read that was let go of, or that the last run left elsewhere; None for any other."""
        claimed = self._claims.read_to(fd)
        return claimed if claimed is not None else self._register.retired_at(fd)

    def _is_too_short(self, fd: int) -> bool:
        """Whether it cannot be told yet if the open file is going to be a copy."""
        status = os.fstat(fd)
        return status.st_size < SURE_BYTES and self._clock() - status.st_mtime < COPY_SECONDS

    def _unsettle(self, path: str) -> None:
        self._register.unsettled.add(path.rpartition("/")[0])

    def _note_copy(self, copied: TailedFile | None, copy: TailedFile) -> None:
        if copied is not None:
            copied.successors += (copy,)
            self._register.renew(copied)  # before the copy is known, it has to be known of what

    def _begin(self, file: TailedFile) -> None:
        self._suspects.pop(file.key, None)
        self._register.begin(file)
