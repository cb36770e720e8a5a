"""Which file is it? Names move on when files rotate and inodes are used again, so content has the last word.

A file is recognised by device and inode and by two pieces of what was read of it: its head, the first bytes up to 1 KiB (as
many as there are, so that small files are known at once), and its mark, the last bytes before the position. A position is
only resumed in a file that still holds both.
"""

from __future__ import annotations

import os
import zlib
from _blake2 import blake2b  # hashlib has it from there, and loads half a megabyte of OpenSSL beside it

import msgspec

HEAD_BYTES = 1024
MARK_BYTES = 64
SURE_BYTES = 16
"""Fewer bytes in common than this say nothing about two files with different inodes."""
CONDENSED_BYTES = 128


ENDED_KEPT = 8


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a file that was read to its end, so that its archive is known whenever it is made."""

    end: int
    head_size: int
    head: str
    mark_size: int
    mark: str


class Identity(msgspec.Struct, frozen=True):
    """What is kept beside a position. `path` is where the file was when it was found, before any rotation.

    `modified`, in nanoseconds, is the file's modification time when it was last looked at; sizes are in bytes, `head` and
    `mark` are hexadecimal digests. Files beside it that were modified before `since`, in nanoseconds, are known.
    A file that was written anew had been read to `until`, with head and mark before there; otherwise it is 0. `ended` are the
    last ENDED_KEPT files that stood at `path` before, oldest first.
    """

    path: str
    device: int
    inode: int
    head_size: int
    head: str
    mark_size: int
    mark: str
    modified: int
    since: int = 0
    until: int = 0
    ended: tuple[Ended, ...] = ()


def digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def encode(identity: Identity) -> str:
    """As JSON, with each byte of the path as a character: a name on disk need not be UTF-8."""
    path = os.fsencode(identity.path).decode("latin-1")
    return msgspec.json.encode(msgspec.structs.replace(identity, path=path)).decode()


def decode(detail: str) -> Identity | None:
    """None for what this release cannot read."""
    try:
        identity = msgspec.json.decode(detail, type=Identity)
        return msgspec.structs.replace(identity, path=os.fsdecode(identity.path.encode("latin-1")))
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None


def shown(path: str) -> str:
    """The path as text that may go anywhere, for a name that is not UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def mark_before(fd: int, end: int) -> bytes:
    """The last bytes of the open file before `end`, MARK_BYTES of them or all there are."""
    size = min(end, MARK_BYTES)
    return os.pread(fd, size, end - size)


def holds(fd: int, identity: Identity | Ended, position: int) -> bool:
    """Whether the open file has everything before `position` that was read of the one that `identity` tells of."""
    if os.fstat(fd).st_size < position:
        return False
    head = os.pread(fd, identity.head_size, 0)
    mark = os.pread(fd, identity.mark_size, position - identity.mark_size)
    return digest(head) == identity.head and digest(mark) == identity.mark


class Head:
    """The first bytes of a file, as many as were read, HEAD_BYTES at most; of thousands of quiet files they are condensed."""

    __slots__ = ("_content", "_packed", "size")

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content
        self._packed = False

    @property
    def _start(self) -> bytes:
        return zlib.decompress(self._content) if self._packed else self._content

    def grow(self, at: int, content: bytes) -> None:
        """`content` was read from the file at the offset `at`."""
        if at == self.size < HEAD_BYTES:
            self._content = self._start + content[: HEAD_BYTES - at]
            self._packed = False
            self.size = len(self._content)

    def condense(self) -> None:
        if not self._packed and self.size > CONDENSED_BYTES:
            packed = zlib.compress(self._content)
            if len(packed) < self.size:
                self._content, self._packed = packed, True

    def before(self, position: int) -> tuple[int, str]:
        """How many of its bytes lie before `position`, and their digest."""
        head = self._start[:position]
        return len(head), digest(head)

    def is_of(self, fd: int) -> bool:
        """Whether the open file has it."""
        return os.pread(fd, self.size, 0) == self._start

    def is_like(self, fd: int) -> bool:
        """Whether the open file begins like it, as far as it goes; False when that is too little to tell."""
        found = os.pread(fd, self.size, 0)
        return len(found) >= SURE_BYTES and self._start.startswith(found)
