"""Finding files again: what lies beside a path, which of it is a file known before, and where to begin in it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from forwarder.tail.discovery import may_be_renamed, rotation_bases
from forwarder.tail.identity import SURE_BYTES, Identity, holds
from forwarder.tail.lines import Encoding
from forwarder.tail.packed import Sought, name_before, unpack

log = logging.getLogger("forwarder.tail")

Key = tuple[int, int]
"""Device and inode."""

Known = tuple[Identity, int]
"""A file that was followed, and a position in it."""

OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
STEP_BYTES = 64 * 1024


class Entry(msgspec.Struct, frozen=True):
    """A regular file in a directory."""

    name: str
    path: str
    key: Key
    modified: int


class Beside:
    """The regular files in a directory, none if it cannot be listed: by inode, and by the name they were rotated from."""

    def __init__(self, directory: str) -> None:
        self.by_inode: dict[int, list[Entry]] = {}
        self._rotated: dict[str, list[Entry]] = {}
        self._packed: dict[str, list[Entry]] = {}
        self._packed_as: dict[str, list[Entry]] = {}
        self.directories: list[str] = []
        self._directory = directory
        entries = sorted(self._entries(directory), key=lambda entry: entry.modified)
        names = {entry.name for entry in entries}
        for entry in entries:
            self.by_inode.setdefault(entry.key[1], []).append(entry)
            before = name_before(entry.name)
            by_base = self._packed if before else self._rotated
            if before and before not in names:
                self._packed_as.setdefault(before, []).append(entry)
            for base in rotation_bases(before or entry.name):
                if before not in names:
                    by_base.setdefault(base, []).append(entry)

    def paths_before(self) -> list[str]:
        """Where the files in the directory may have been rotated from, by their names."""
        return [os.path.join(self._directory, base) for base in {**self._rotated, **self._packed}]

    def rotated_from(self, path: str) -> Sequence[Entry]:
        """What the path's file may have been renamed to, or copied to, by its name; oldest first."""
        return self._rotated.get(path.rpartition("/")[2], ())

    def packed_from(self, path: str) -> Sequence[Entry]:
        """What was compressed after its rotation, oldest first; none that is there uncompressed too."""
        return self._packed.get(path.rpartition("/")[2], ())

    def packed_as(self, path: str) -> Sequence[Entry]:
        """What was compressed where it stood, if nothing stands there uncompressed."""
        return self._packed_as.get(path.rpartition("/")[2], ())

    def _entries(self, directory: str) -> list[Entry]:
        entries = []
        with contextlib.suppress(OSError), os.scandir(directory or "/") as found:
            for each in found:
                with contextlib.suppress(OSError):
                    status = each.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        key = status.st_dev, status.st_ino
                        entries.append(Entry(each.name, each.path, key, status.st_mtime_ns))
                    elif stat.S_ISDIR(status.st_mode):
                        self.directories.append(each.path)
        return entries


def find(identity: Identity, position: int, inodes: dict[int, list[Known]], beside: Beside) -> tuple[str, int] | None:
    """Path and descriptor of the file that `identity` tells of, or of a copy that is none of those in `inodes`; None if gone.

    `beside` is the directory it was in. Raises OSError when it may be there, and cannot be looked at.
    """
    paths = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.stat(identity.path).st_ino == identity.inode:
            paths.append(identity.path)
    same = beside.by_inode.get(identity.inode, [])
    if position >= SURE_BYTES:
        paths += [entry.path for entry in same]
        paths += [entry.path for entry in beside.rotated_from(identity.path) if entry not in same]
    else:
        # Of a file hardly read at all the name must tell: its inode may be another file's by now.
        before = identity.path.rpartition("/")[2]
        paths += [entry.path for entry in same if may_be_renamed(before, entry.name, position)]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, OPEN)
            try:
                others = inodes.get(os.fstat(fd).st_ino, [])
                # By its inode it may be known, and the inode by one that is gone.
                taken = any(at >= SURE_BYTES and holds(fd, other, at) for other, at in others)
                if ((identity, position) in others or not taken) and holds(fd, identity, position):
                    return path, fd
            except OSError:
                os.close(fd)
                raise
            os.close(fd)
    return None


def find_packed(sought: Sought, beside: Beside, path: str, scratch: Path) -> tuple[str, int] | None:
    """Path and descriptor of what is sought among the compressed files that were rotated from `path`; None if it is not there."""
    for entry in beside.packed_from(path):
        try:
            found = unpack(entry.path, scratch, [sought])
        except OSError as error:
            log.error("%s may hold lines that were not read, and cannot be read: %s", entry.path, error)
            continue
        if found is not None:
            return entry.path, found[0]
    return None


def encoding_of(fd: int, name: str) -> Encoding:
    """How the open file is encoded, where its settings say `name`."""
    return _encoding(name, os.pread(fd, 4, 0) if name.lower().startswith("utf") else b"")


_encoding = functools.lru_cache(maxsize=64)(Encoding)


def start_of_last_line(fd: int, encoding: Encoding) -> int:
    """Where the line begins that is still being written at the end of a file."""
    size = os.fstat(fd).st_size
    start = size - size % STEP_BYTES
    while start >= 0:
        data = os.pread(fd, min(STEP_BYTES, size - start), start)
        end = encoding.last_end(data, 0)
        if end:
            return start + end
        start -= STEP_BYTES
    return 0


def key_of(fd: int) -> Key:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def leads_to(path: str, key: Key) -> bool:
    """Whether the path is one of the file with that device and inode."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == key
