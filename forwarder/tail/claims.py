"""Saved positions whose files were not found where they should be: each waits for its file to turn up, or is given up."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from forwarder.positions import Saved
from forwarder.tail.identity import SURE_BYTES, Identity, holds
from forwarder.tail.lookup import key_of

log = logging.getLogger("forwarder.tail")


class Unclaimed(msgspec.Struct, frozen=True):
    """`open` says that its file may be found later than in the first walk."""

    identity: Identity
    row: Saved
    open: bool


class Claims:
    """`forget` gets the name of each row that leads to nothing any more."""

    def __init__(self, forget: Callable[[str], None]) -> None:
        self.forget = forget
        self._rows: dict[str, Unclaimed] = {}
        self._by_inode: dict[int, list[Unclaimed]] = {}
        """An inode may have been that of several files, one after the other."""

    def add(self, identity: Identity, row: Saved, *, open: bool) -> None:
        unclaimed = Unclaimed(identity, row, open)
        self._rows[row.name] = unclaimed
        if not identity.until:  # written anew, it is in copies only
            self._by_inode.setdefault(identity.inode, []).append(unclaimed)

    def waits(self, row: Saved) -> bool:
        """Whether the file of this row has not been found yet."""
        return row.name in self._rows

    def claim(self, identity: Identity, row: Saved) -> None:
        """Nobody looks for the file of this row any more."""
        self.forget(row.name)
        unclaimed = self._rows.pop(row.name, None)
        if unclaimed is not None and not identity.until:
            self._by_inode[identity.inode].remove(unclaimed)

    def give_up(self, identity: Identity, row: Saved) -> None:
        log.info("%s: inode %d is not there any more, or was truncated", identity.path, identity.inode)
        self.claim(identity, row)

    def give_up_closed(self) -> None:
        for each in [each for each in self._rows.values() if not each.open]:
            self.give_up(each.identity, each.row)

    def read_to(self, fd: int) -> int | None:
        """How far the last run read the open file, whose row is claimed by this; None if no row is its."""
        unclaimed = self._by_inode.get(key_of(fd)[1], [])
        for each in sorted(unclaimed, key=lambda each: -each.row.position):
            position = each.row.position
            if position >= SURE_BYTES and holds(fd, each.identity, position):
                self.claim(each.identity, each.row)
                return position
        return None
