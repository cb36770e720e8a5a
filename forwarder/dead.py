"""Records that Kafka refused for good: one file an app, `dead/<app>.jsonl`, one JSON object a line.

A line holds time, topic, partition, reason, key and value; bytes that are not UTF-8 stand as base64 under `key_base64` and
`value_base64` instead. Written and made last before the position moves on, so that nothing refused is ever lost sight of.

What is sent again is first taken: the file becomes `<app>.replay-<start>`, which no agent writes to, and `start`, the offset of
the first letter that is still to be sent, moves on by renaming. A kill at any moment leaves either name, and no letter unnamed.
Who writes to a file or takes it holds its lock, so that nothing is appended to a file that has just been taken.

All files together are at most `spool.max_bytes_dead` long; an app is given half of what the others leave, so that a storm of one
leaves room for the next.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from forwarder.spool import app_name, directory_name, sync_directory

SUFFIX = ".jsonl"
NO_LIMIT = 1 << 62
_TAKEN = re.compile(r"(.+)\.replay-(\d+)", re.DOTALL)


class DeadLetter(msgspec.Struct, frozen=True):
    """`partition` is -1 when none was chosen yet; `time`, of one that was read, is when it was written."""

    topic: str
    partition: int
    reason: str
    key: bytes | None
    value: bytes
    time: str = ""


class File(msgspec.Struct, frozen=True):
    """Dead letters of an app, from offset `start` on; `taken` when somebody began to send them again."""

    app: str
    path: Path
    start: int
    size: int
    taken: bool


class InUse(OSError):
    """Somebody else holds the lock."""


def write(directory: Path, app: str, letters: list[DeadLetter], now: float, max_bytes: int = NO_LIMIT) -> int:
    """Append `letters` to the app's file and sync it; returns how many of them, from the first on, there is room for.

    Raises OSError when the disk does not take them, InUse when they are being taken just now: try again.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    room = _room(directory, app, max_bytes)
    lines = []
    for letter in letters:
        line = _line(letter, now)
        room -= len(line)
        if room < 0:
            break
        lines.append(line)
    if lines:
        append(directory, app, b"".join(lines))
    return len(lines)


def _room(directory: Path, app: str, max_bytes: int) -> int:
    own = others = 0
    for file in files(directory):
        if file.app == app:
            own += file.size
        else:
            others += file.size
    return (max_bytes - others) // 2 - own


def append(directory: Path, app: str, lines: bytes) -> None:
    """Append whole lines and make them last; all or nothing. Raises as `write` does."""
    with _locked(directory / f"{directory_name(app)}{SUFFIX}", os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
        size = _cut_torn_line(fd)
        if os.write(fd, lines) != len(lines):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, f"no room for the dead letters of {app}")
        os.fsync(fd)
    if not size:
        # Its name is to last too, and that of the directory, which may be as new. What is written is not to be written again.
        with contextlib.suppress(OSError):
            sync_directory(directory)
            sync_directory(directory.parent)


def files(directory: Path) -> list[File]:
    """What is there, by app, those taken first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            taken = _TAKEN.fullmatch(entry.name)
            if not taken and not entry.name.endswith(SUFFIX):
                continue
            name, start = taken.groups() if taken else (entry.name.removesuffix(SUFFIX), "0")
            with contextlib.suppress(FileNotFoundError):  # it may be taken just now, or be done with
                size = entry.stat(follow_symlinks=False).st_size
                found.append(File(app_name(name), Path(entry.path), int(start), size, taken is not None))
    return sorted(found, key=lambda file: (file.app, not file.taken))


def letters(file: File) -> Iterator[tuple[int, bytes, DeadLetter | None]]:
    """The letters of a file: where each ends, its line and what it holds; None for what is no letter.

    A last line without an end is left out: its record is refused again, see `append`.
    """
    try:
        stream = file.path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(file.start)
        end = file.start
        for line in stream:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield end, line, _read(line)


@contextlib.contextmanager
def replaying(directory: Path) -> Iterator[None]:
    """Nobody else takes letters meanwhile. Raises InUse, and OSError when there is no such directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, f"{directory}: another replay is at work; wait until it is done")
        yield
    finally:
        os.close(fd)


def take(file: File) -> File:
    """Take an app's file away from the agent, which begins another one. Raises InUse when the agent writes to it just now."""
    taken = file.path.with_name(f"{directory_name(file.app)}.replay-0")
    with _locked(file.path, os.O_RDWR):
        file.path.rename(taken)
    return msgspec.structs.replace(file, path=taken, size=taken.stat().st_size, taken=True)


def advance(file: File, start: int) -> File:
    """What stands before `start` in a taken file is settled; the file goes when all of it is."""
    if start >= file.size:
        file.path.unlink()
        return msgspec.structs.replace(file, start=start)
    path = file.path.with_name(f"{directory_name(file.app)}.replay-{start}")
    file.path.rename(path)
    return msgspec.structs.replace(file, path=path, start=start)


@contextlib.contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """The file at `path`, open, locked, and not taken away between the two."""
    while True:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, f"{path}: another process has it just now")
            if _is_at(fd, path):
                _give_to_owner(fd, path.parent)
                yield fd
                return
        finally:
            os.close(fd)


def _lock(fd: int, otherwise: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(errno.EAGAIN, otherwise) from None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _give_to_owner(fd: int, directory: Path) -> None:
    """What root makes while sending again is the agent's to append to."""
    owner = directory.stat()
    if os.geteuid() == 0 and os.fstat(fd).st_uid != owner.st_uid:
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _cut_torn_line(fd: int) -> int:
    """Cut off a last line that a crash left unfinished: its record's position did not move, so it is refused again."""
    size = os.fstat(fd).st_size
    end = size
    while end and os.pread(fd, 1, end - 1) != b"\n":
        start = max(end - 65536, 0)
        end = start + os.pread(fd, end - start, start).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(fd, end)
    return end


class _Line(msgspec.Struct, omit_defaults=True):
    time: str
    topic: str
    partition: int
    reason: str
    key: str | msgspec.UnsetType | None = msgspec.UNSET
    key_base64: str | msgspec.UnsetType = msgspec.UNSET
    value: str | msgspec.UnsetType = msgspec.UNSET
    value_base64: str | msgspec.UnsetType = msgspec.UNSET


def _line(letter: DeadLetter, now: float) -> bytes:
    time = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = _Line(time, letter.topic, letter.partition, letter.reason)
    try:
        line.key = None if letter.key is None else letter.key.decode()
    except UnicodeDecodeError:
        line.key_base64 = base64.b64encode(letter.key or b"").decode()
    try:
        line.value = letter.value.decode()
    except UnicodeDecodeError:
        line.value_base64 = base64.b64encode(letter.value).decode()
    return msgspec.json.encode(line) + b"\n"


def _read(text: bytes) -> DeadLetter | None:
    try:
        line = msgspec.json.decode(text, type=_Line)
        key = _content(line.key, line.key_base64)
        value = _content(line.value, line.value_base64)
    except (msgspec.MsgspecError, binascii.Error):
        return None
    return None if value is None else DeadLetter(line.topic, line.partition, line.reason, key, value, line.time)


def _content(text: str | msgspec.UnsetType | None, base: str | msgspec.UnsetType) -> bytes | None:
    if base is not msgspec.UNSET:
        return base64.b64decode(base, validate=True)
    return text.encode() if isinstance(text, str) else None
