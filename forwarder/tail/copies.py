"""What Kafka wants again of a file that was written anew is read in its copy: while the agent runs, and after a kill.

A copy that cannot be read now is owed and tried again. What no copy holds is gone, and said and counted.
"""

from __future__ import annotations

import logging
import os

import msgspec

from forwarder import config
from forwarder.positions import Saved
from forwarder.tail.archives import Archives
from forwarder.tail.claims import Claims
from forwarder.tail.file import TailedFile
from forwarder.tail.identity import Identity, holds
from forwarder.tail.lookup import OPEN, Beside, find_packed, key_of
from forwarder.tail.packed import Sought
from forwarder.tail.register import Register

log = logging.getLogger("forwarder.tail")


class Owed(msgspec.Struct, frozen=True):
    """What Kafka has not got of a file that was written anew, whose copy cannot be read now; `row` is its saved position."""

    tail: config.Tail
    identity: Identity
    row: Saved


class Copies:
    def __init__(self, register: Register, claims: Claims, archives: Archives) -> None:
        self._register = register
        self._claims = claims
        self._archives = archives
        self._owed: dict[str, Owed] = {}
        """By the name of the row."""

    def recover(self, file: TailedFile, position: int) -> bool:
        """Kafka wants again what is behind `position` of a file that was written anew: read it in a copy, if there is one."""
        identity = file.identity(position)
        try:
            copy = _copy_of(identity) or self._packed_copy_of(identity, position)
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

    def resume(self, tail: config.Tail, identity: Identity, row: Saved) -> TailedFile | None:
        """Read in its copy what Kafka had not got of a file that was written anew; if nobody reads the copy, all the rest too."""
        try:
            copy = _copy_of(identity)
        except OSError as error:
            self._owe(Owed(tail, identity, row), error)
            return None
        if copy is None:
            if self._archives.may_hold(tail, identity, row):
                self._claims.add(identity, row, open=True)
            else:
                self._claims.give_up(identity, row)
            return None
        path, fd = copy
        try:
            if key_of(fd) in self._register.files:
                return self._read_part(tail, path, fd, row.position, identity, row.name)
            file = self._register.new(tail, identity.path, path, fd, row.position, row.name)
        except OSError as error:
            self._owe(Owed(tail, identity, row), error)
            os.close(fd)
            return None
        self._register.begin(file)
        return file

    def owes(self, name: str) -> bool:
        """Whether something of the source of that name is owed."""
        return name in self._owed

    def pay(self) -> None:
        """Try again to read what is owed."""
        there = (*self._register.ended, *self._register.files.values())
        ended = {file.name: file for file in there if file.name in self._owed} if self._owed else {}
        for name in list(self._owed):
            owed = self._owed.pop(name)
            file = ended.get(name)
            if file is None:
                self.resume(owed.tail, owed.identity, owed.row)
            elif not self.recover(file, owed.row.position):
                file.give_up(owed.row.position, owed.identity.until)
        self._register.beside_directory.cache_clear()

    def _owe(self, owed: Owed, error: OSError) -> None:
        text = f"a copy of {owed.identity.path} cannot be read: {error.strerror}; it is tried again"
        self._register.report(owed.row.name, text)
        self._owed[owed.row.name] = owed

    def _read_part(self, tail: config.Tail, path: str, fd: int, position: int, identity: Identity, name: str = "") -> TailedFile:
        """Read in the open file, a copy of what `identity` tells of, what that one had from `position` on."""
        part = self._register.new(tail, identity.path, path, fd, position, name, identity)
        self._register.begin_part(part)
        return part

    def _packed_copy_of(self, identity: Identity, position: int) -> tuple[str, int] | None:
        sought = Sought(identity, identity.until, position)
        return find_packed(sought, _now_beside(identity.path), identity.path, self._archives.scratch)


def _copy_of(identity: Identity) -> tuple[str, int] | None:
    """Path and descriptor of a copy of a file that was written anew. Raises OSError when what may be one cannot be read."""
    failed: OSError | None = None
    for entry in _now_beside(identity.path).rotated_from(identity.path):
        try:
            fd = os.open(entry.path, OPEN)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed = error
            continue
        try:
            if holds(fd, identity, identity.until):
                return entry.path, fd
        except OSError as error:
            failed = error
        os.close(fd)
    if failed is not None:
        raise failed
    return None


def _now_beside(path: str) -> Beside:
    """Not as it was at the last walk."""
    return Beside(path.rpartition("/")[0])
