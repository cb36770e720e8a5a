"""Finding files again: what lies beside a path, which of it is a file known before, and where to begin in it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import msgspec

from forwarder.tail.discovery import rotation_bases
from forwarder.tail.identity import SURE_BYTES, Identity, holds
from forwarder.tail.lines import Encoding

Key = tuple[int, int]
"""Device and inode."""

OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
STEP_BYTES = 64 * 1024


class Entry(msgspec.Struct, frozen=True):
    """A regular file in a directory."""

    name: str
    path: str
    key: Key
    size: int
    modified: int


def siblings(directory: str) -> list[Entry]:
    """The regular files in `directory`; none if it cannot be listed."""
    entries = []
    with contextlib.suppress(OSError), os.scandir(directory or "/") as found:
        for each in found:
            with contextlib.suppress(OSError):
                status = each.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    key = status.st_dev, status.st_ino
                    entries.append(Entry(each.name, each.path, key, status.st_size, status.st_mtime_ns))
    return entries


def find(identity: Identity, position: int, inodes: set[int]) -> tuple[str, int] | None:
    """Path and descriptor of the file that `identity` tells of, or of a copy whose inode is not among `inodes`; None if gone."""
    directory, _, base = identity.path.rpartition("/")
    beside = siblings(directory)
    sure = position >= SURE_BYTES
    paths = []
    with contextlib.suppress(OSError):
        if Path(identity.path).stat().st_ino == identity.inode:
            paths.append(identity.path)
    # Of a file hardly read at all the name must tell: its inode may be another file's by now.
    rotated = [entry for entry in beside if base in rotation_bases(entry.name)]
    paths += [entry.path for entry in (beside if sure else rotated) if entry.key[1] == identity.inode]
    if sure:
        paths += [entry.path for entry in rotated if entry.key[1] not in inodes]
    for path in paths:
        with contextlib.suppress(OSError):
            fd = os.open(path, OPEN)
            try:
                if holds(fd, identity, position):
                    return path, fd
            except OSError:
                os.close(fd)
                raise
            os.close(fd)
    return None


def behind_copied(fd: int, copied: Identity, position: int) -> int:
    """In a copy of a file that was read up to `position`: where what is new begins."""
    size = os.fstat(fd).st_size
    if size <= position:
        return size
    return position if holds(fd, copied, position) else 0


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
        status = Path(path).stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == key
