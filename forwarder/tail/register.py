"""Which files are followed, what stands where, and what is remembered of those that are over.

A file is here from when it was found until all of it is in Kafka: by device and inode as long as it is read, then among the
`ended`. Of files that are over so much is kept that a copy, an archive or a late walk is not taken for something new.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import chain, count, pairwise

from forwarder import config
from forwarder.route import Route
from forwarder.source import TAIL_PREFIX, Source
from forwarder.tail.discovery import is_excluded, matches
from forwarder.tail.file import Shared, TailedFile
from forwarder.tail.growth import Growth
from forwarder.tail.identity import ENDED_KEPT, SURE_BYTES, Ended, Identity, holds, shown
from forwarder.tail.lookup import OPEN, Beside, Key, Known, key_of, leads_to

log = logging.getLogger("forwarder.tail")

CLOCK_GRAIN = 50_000_000
"""File systems stamp with a coarser clock, in nanoseconds."""
RETIRED_KEPT = 10_000
LOST_KEPT = 100


class Register:
    """`troubled` says that something could not be looked at; whoever walks over the files takes it back."""

    def __init__(
        self,
        tails: tuple[config.Tail, ...],
        *,
        routes: Callable[[config.Tail], Route],
        names: Iterable[str],
        shared: Shared,
        growth: Growth,
        added: Callable[[Source], None],
        removed: Callable[[Source], None],
        renew: Callable[[Source], None],
    ) -> None:
        """`names` are those of saved positions; `renew` saves the position of a source again."""
        self.files: dict[Key, TailedFile] = {}
        """The present generation of every inode."""
        self.at: dict[str, TailedFile] = {}
        """What stands, or stood last, at every path that the globs match."""
        self.gone: dict[TailedFile, float] = {}
        """Files at no such path any more, and since when they have not grown."""
        self.ended: list[TailedFile] = []
        """Finished, and not all of it in Kafka yet."""
        self.floors = shared.floors
        self.past = shared.ended
        self.unsettled: set[str] = set()
        """Directories with files in them of which it cannot be told yet what they are."""
        self.beside_directory = functools.cache(Beside)
        """Directories as they are in this walk: each is listed once, however many of its files have rotated."""
        self.troubled = False
        self.shared = shared
        self.growth = growth
        self.renew = renew
        self._tails = tails
        self._routes = {id(tail): routes(tail) for tail in tails}
        self._names = dict.fromkeys(names)
        self._added = added
        self._removed = removed
        self._retired: OrderedDict[Key, Known] = OrderedDict()
        """Files that were read to their end and let go of, with how far that was."""
        self._lost: deque[Known] = deque(maxlen=LOST_KEPT)
        """What those were that could not be found in the end."""
        self._reported: set[str] = set()

    # One file

    def new(
        self, tail: config.Tail, origin: str, path: str, fd: int, position: int, name: str = "", part_of: Identity | None = None
    ) -> TailedFile:
        """A source, not yet begun; `name` is that of its saved position, if it has one. Raises OSError."""
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
            shared=self.shared,
            part_of=part_of,
        )
        self._names[name] = None
        return file

    def drop(self, file: TailedFile) -> None:
        """It has not begun, and shall not."""
        file.close()
        self._names.pop(file.name, None)

    def begin(self, file: TailedFile) -> None:
        self.files[file.key] = file
        self._added(file)
        self.growth.add(file)

    def begin_part(self, part: TailedFile) -> None:
        """It is read beside the rest of its file, and first."""
        rest = self.files.get(part.key)
        if rest is not None:
            self.chain([part, rest])
        self.ended.append(part)
        self._added(part)

    def chain(self, files: list[TailedFile]) -> None:
        """Have each read after the one before it."""
        for earlier, later in pairwise(files):
            if later.predecessor is None and not earlier.finished:
                later.follow(earlier)

    def stands(self, file: TailedFile, path: str) -> None:
        self.at[path] = file
        file.last = False
        if not leads_to(file.path, file.key):
            self.has_moved(file, path)

    def has_moved(self, file: TailedFile, path: str) -> None:
        file.path = path
        self.growth.see(file)

    # Its end

    def end(self, file: TailedFile) -> None:
        """The file is finished; what of it is on its way to Kafka is waited for."""
        self.gone.pop(file, None)
        self.growth.remove(file)
        if self.files.get(file.key) is file:
            del self.files[file.key]
        self.ended.append(file)

    def end_lost(self, file: TailedFile) -> None:
        """It was let go of and cannot be found; a copy of it may still turn up."""
        file.end_lost()
        if file.position >= SURE_BYTES:
            self._lost.append((file.identity(file.position), file.position))
        self.end(file)

    def retire(self, file: TailedFile) -> None:
        """End a file that was read to its end, and remember how far that was."""
        if file.position >= SURE_BYTES:
            self._retired[file.key] = file.identity(file.position), file.position
            if len(self._retired) > RETIRED_KEPT:
                self._retired.popitem(last=False)
        self.end(file)

    def remember(self, file: TailedFile) -> None:
        """An archive of this file, whenever it is made, holds nothing new."""
        if file.position < SURE_BYTES:
            return
        identity = file.identity(file.position)
        ended = Ended(file.position, identity.head_size, identity.head, identity.mark_size, identity.mark)
        others = [other for other in self.past.pop(file.origin, ()) if other != ended]
        self.past[file.origin] = (*others, ended)[-ENDED_KEPT:]
        if len(self.past) > RETIRED_KEPT:
            del self.past[next(iter(self.past))]

    def retired_at(self, fd: int) -> int | None:
        """How far the open file was read when it was let go of; None if it is another one."""
        key = key_of(fd)
        retired = self._retired.get(key)
        if retired is None:
            return None
        if holds(fd, *retired):
            return retired[1]
        del self._retired[key]  # its inode is another file's now
        return None

    def lost_at(self, fd: int) -> int | None:
        """How far a file was read that could not be found again, if the open one is it or a copy of it."""
        return next((position for identity, position in self._lost if holds(fd, identity, position)), None)

    def settle(self, owed: Callable[[str], bool], awaited: Callable[[str], bool]) -> None:
        """Leave the files that are over and delivered, but for those of a name of which something is `owed`.

        What lies beside their path and is no younger is then known, unless archives are `awaited` there.
        """
        raised = set()
        for file in [file for file in self.ended if file.settled and not owed(file.name)]:
            self.ended.remove(file)
            self._names.pop(file.name, None)
            self._removed(file)
            file.close()
            if file.read_whole:
                self.remember(file)
                if not awaited(file.origin):
                    self.floors[file.origin] = max(self.floors.get(file.origin, 0), file.modified + 1)
                    raised.add(file.origin)
        # Those of the same origin that are left keep its floor, wherever they stand.
        for file in self.files.values() if raised else ():
            if file.origin in raised:
                self.renew(file)

    # Places

    def beside(self, path: str) -> Beside:
        return self.beside_directory(path.rpartition("/")[0])

    def tail_of(self, path: str) -> config.Tail | None:
        """The table that a path belongs to: the first whose globs match it."""
        for tail in self._tails:
            if any(matches(path, pattern) for pattern in tail.paths) and not is_excluded(path, tail.exclude):
                return tail
        return None

    def descriptor(self, path: str) -> int | None:
        """None if nothing is there, or it cannot be opened, which is reported."""
        try:
            return os.open(path, OPEN)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.report(path, f"{path} cannot be opened: {error.strerror}; it is tried again")
            return None

    def report(self, what: str, text: str) -> None:
        """A warning, given once; what it is about is tried again."""
        self.troubled = True
        if what not in self._reported:
            self._reported.add(what)
            log.warning("%s", text)
