"""Records that Kafka refused for good: one file an app, `dead/<app>.jsonl`, one JSON object a line.

A line holds time, topic, partition, reason, key and value; bytes that are not UTF-8 stand as base64 under `key_base64` and
`value_base64` instead. Written and made last before the position moves on, so that nothing refused is ever lost sight of.
"""

from __future__ import annotations

import base64
import os
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from forwarder.spool import directory_name


class DeadLetter(msgspec.Struct, frozen=True):
    """`partition` is -1 when none was chosen yet."""

    topic: str
    partition: int
    reason: str
    key: bytes | None
    value: bytes


def write(directory: Path, app: str, letters: list[DeadLetter], now: float) -> None:
    """Append `letters` to the app's file and sync it; raises OSError when the disk does not take them."""
    directory.mkdir(mode=0o700, exist_ok=True)
    lines = b"".join(msgspec.json.encode(_line(letter, now)) + b"\n" for letter in letters)
    fd = os.open(directory / f"{directory_name(app)}.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = _cut_torn_line(fd)
        if os.write(fd, lines) != len(lines):
            os.ftruncate(fd, size)
            raise OSError(f"no room for the dead letters of {app}")
        os.fsync(fd)
    finally:
        os.close(fd)


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


def _line(letter: DeadLetter, now: float) -> dict[str, object]:
    line: dict[str, object] = {
        "time": datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "topic": letter.topic,
        "partition": letter.partition,
        "reason": letter.reason,
    }
    for name, content in (("key", letter.key), ("value", letter.value)):
        try:
            line[name] = None if content is None else content.decode()
        except UnicodeDecodeError:
            line[f"{name}_base64"] = base64.b64encode(content or b"").decode()
    return line
