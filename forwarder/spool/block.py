"""The one place that knows what a segment looks like on disk: version 1.

A segment is a run of blocks and nothing else. A block is a header, a route description and newline-ended records:

    magic    4  "FWSB"
    version  1  1
    kind     1  0 records, 1 sessions
    route    2  length of the route description, which opens the payload
    length   4  length of the payload
    count    4  records in the payload
    received 8  wall clock of the receipt, milliseconds since 1970
    session 16  which session of a handler sent the records; zeros: none
    first    8  number of the first record within that session
    crc      4  CRC-32 of everything above and the payload

All integers are big-endian. A block of kind `sessions` opens every segment; its payload holds 24 bytes a session, name and
number of the next record expected, so that older segments can go and a handler's resend is still recognised.

A reader that meets bytes that are no block, or one whose CRC does not fit, goes on at the next place where a good block
starts. What lies between is damage: reported with its extent, never guessed at.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

MAGIC = b"FWSB"
VERSION = 1
RECORDS, SESSIONS = 0, 1
NO_SESSION = bytes(16)

_FIELDS = struct.Struct(">4sBBHIIQ16sQ")
_CRC = struct.Struct(">I")
_SESSION = struct.Struct(">16sQ")
HEADER = _FIELDS.size + _CRC.size
SESSION_BYTES = _SESSION.size
MAX_PAYLOAD = 64 * 1024 * 1024
"""Larger lengths are taken for damage."""
CHECKED_AT_ONCE = 256 * 1024


class UnknownVersion(Exception):
    """The spool was written in a format that this release does not read; the message names it and what to do."""


class Block(msgspec.Struct, frozen=True, gc=False):
    """A good block: from `start` to `end` in what was scanned, its records from `body` on."""

    start: int
    body: int
    end: int
    kind: int
    route: bytes
    count: int
    received: float
    session: bytes
    first: int


class Damage(msgspec.Struct, frozen=True, gc=False):
    """Bytes from `start` to `end` that are no good block; `tail` when nothing good follows."""

    start: int
    end: int
    tail: bool


def header(kind: int, route: bytes, records: bytes, count: int, received: float, session: bytes, first: int) -> bytes:
    """What stands before `route` and `records` on disk."""
    fields = _FIELDS.pack(
        MAGIC, VERSION, kind, len(route), len(route) + len(records), count, int(received * 1000), session, first
    )
    crc = zlib.crc32(fields)
    if route:
        crc = zlib.crc32(route, crc)
    return fields + _CRC.pack(zlib.crc32(records, crc))


def sessions_payload(sessions: Mapping[bytes, int]) -> bytes:
    return b"".join(_SESSION.pack(name, following) for name, following in sessions.items())


def sessions_of(payload: bytes) -> dict[bytes, int]:
    return dict(_SESSION.iter_unpack(payload))


def size_at(data: bytes, offset: int) -> int:
    """Length of the block whose header starts at `offset`, going by the header alone; 0 when there is no header."""
    if len(data) - offset < HEADER:
        return 0
    magic, _, _, route, length, *_ = _FIELDS.unpack_from(data, offset)
    if magic != MAGIC or route > length or length > MAX_PAYLOAD:
        return 0
    return HEADER + int(length)


def read_at(data: bytes | mmap.mmap, offset: int) -> Block | None:
    """The good block that starts at `offset`, or None; raises UnknownVersion."""
    if len(data) - offset < HEADER:
        return None
    magic, version, kind, route, length, count, received, session, first = _FIELDS.unpack_from(data, offset)
    if magic != MAGIC or route > length or length > MAX_PAYLOAD:
        return None
    payload = offset + HEADER
    end = payload + length
    if end > len(data):
        return None
    (crc,) = _CRC.unpack_from(data, offset + _FIELDS.size)
    with memoryview(data) as view, view[offset : offset + _FIELDS.size] as fields, view[payload:end] as rest:
        if zlib.crc32(rest, zlib.crc32(fields)) != crc:
            return None
    if version != VERSION:
        raise UnknownVersion(
            f"the spool holds blocks of format version {version}, this release reads version {VERSION}: "
            "start the release that wrote it and let it drain, or move the spool away"
        )
    body = payload + route
    return Block(offset, body, end, kind, data[payload:body], count, received / 1000, session, first)


def next_good(data: bytes | mmap.mmap, offset: int) -> int:
    """Where the next good block starts at or after `offset`; the length of `data` when there is none."""
    while (offset := data.find(MAGIC, offset)) >= 0:
        if read_at(data, offset) is not None:
            return offset
        offset += 1
    return len(data)


def scan(data: bytes | mmap.mmap, offset: int = 0) -> Iterator[Block | Damage]:
    """Everything in a segment from `offset` on, in order and without gaps."""
    while offset < len(data):
        block = read_at(data, offset)
        if block is None:
            following = next_good(data, offset + 1)
            yield Damage(offset, following, tail=following == len(data))
            offset = following
        else:
            yield block
            offset = block.end


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of the file at `path`, without reading them all into memory. Raises OSError."""
    with path.open("rb") as file:
        # A map of what cannot be read would not raise an error but kill the process.
        while file.read(CHECKED_AT_ONCE):
            pass
        if file.tell() == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
