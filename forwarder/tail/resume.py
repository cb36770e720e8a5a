"""What the last run left: the files of its saved positions are found again by identity, wherever they have been rotated to.

They lie beside the path at which they stood, or in a directory below, or are in archives there. What came and went at that path
in the meantime is read between those that are known and the one that stands there now.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from itertools import chain

from forwarder import config
from forwarder.positions import Saved
from forwarder.tail import identity as identities
from forwarder.tail.archives import Archives
from forwarder.tail.arrivals import Arrivals
from forwarder.tail.claims import Claims
from forwarder.tail.copies import Copies
from forwarder.tail.file import TailedFile
from forwarder.tail.identity import ENDED_KEPT, Identity
from forwarder.tail.lookup import Known, find, key_of
from forwarder.tail.register import Register

log = logging.getLogger("forwarder.tail")

Row = tuple[Identity, Saved]


class Resume:
    """Of use once, before the first walk."""

    def __init__(self, register: Register, claims: Claims, archives: Archives, copies: Copies, arrivals: Arrivals) -> None:
        self._register = register
        self._claims = claims
        self._archives = archives
        self._copies = copies
        self._arrivals = arrivals
        self._inodes: dict[int, list[Known]] = {}
        """All rows, by inode."""

    def take_up(self, saved: Iterable[Saved]) -> None:
        """Begin the files of all rows that can be found; the others are claims, or forgotten."""
        rows = self._by_path(saved)
        resumed: list[tuple[config.Tail, str, list[TailedFile]]] = []
        for path, of_path in rows.items():
            tail = self._register.tail_of(path)
            if tail is not None:
                of_path.sort(key=lambda pair: (pair[0].modified, pair[1].position))
                self._register.floors[path] = max(identity.since or of_path[0][0].modified for identity, _ in of_path)
                ended = dict.fromkeys(chain(*(identity.ended for identity, _ in of_path)))
                self._register.past[path] = tuple(ended)[-ENDED_KEPT:]
                resumed.append((tail, path, self._find_all(tail, path, [pair for pair in of_path if not pair[0].until])))
            elif not os.path.lexists(path):
                for _, row in of_path:
                    self._claims.forget(row.name)
        # Only now is it known which of the files beside them are known.
        for tail, path, files in resumed:
            rewritten = [self._copies.resume(tail, *pair) for pair in rows[path] if pair[0].until]
            files[:0] = filter(None, rewritten)
        for tail, path, files in resumed:
            self._line_up(tail, path, files)

    def _by_path(self, saved: Iterable[Saved]) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for row in saved:
            identity = identities.decode(row.detail)
            if identity is None:
                log.warning("%s: its position cannot be understood, the file is read from its start", row.name)
                self._claims.forget(row.name)
            else:
                rows.setdefault(identity.path, []).append((identity, row))
                if not identity.until:
                    self._inodes.setdefault(identity.inode, []).append((identity, row.position))
        return rows

    def _find_all(self, tail: config.Tail, path: str, rows: list[Row]) -> list[TailedFile]:
        """Find the files that stood at `path`, oldest first."""
        register = self._register
        files: list[TailedFile] = []
        for identity, row in rows:
            try:
                found = self._find(identity, row.position)
            except OSError as error:
                register.report(path, f"{path} cannot be looked at: {error.strerror}; it is tried again")
                self._claims.add(identity, row, open=True)
                continue
            if found is None:
                self._claims.add(identity, row, open=self._archives.may_hold(tail, identity, row))
                continue
            there, fd = found
            key = key_of(fd)
            is_copy = key[1] != identity.inode
            if is_copy or key in register.files:
                self._claims.forget(row.name)
            if key in register.files:
                os.close(fd)
                continue
            try:
                file = register.new(tail, path, there, fd, row.position, "" if is_copy else row.name)
            except OSError as error:
                register.report(there, f"{there} cannot be read: {error.strerror}")
                os.close(fd)
                continue
            register.begin(file)
            files.append(file)
        return files

    def _find(self, identity: Identity, position: int) -> tuple[str, int] | None:
        """Path and descriptor of what a row tells of: beside where it was, or in a directory below."""
        beside = self._register.beside(identity.path)
        found = find(identity, position, self._inodes, beside)
        for below in beside.directories if found is None else ():
            found = found or find(identity, position, self._inodes, self._register.beside_directory(below))
        return found

    def _line_up(self, tail: config.Tail, path: str, files: list[TailedFile]) -> None:
        """What is at the path comes after all that stood there; of that some may never have been seen."""
        standing = [file for file in files if file.path == path]
        rotated = [file for file in files if file.path != path]
        self._archives.look_for_unseen(tail, path)
        files = [*rotated, *self._arrivals.unseen(tail, path), *standing]
        self._register.chain(self._archives.put_before(path, files))
        if files:
            self._register.at[path] = files[-1]
