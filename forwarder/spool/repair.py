"""Mending one app's spool while no agent uses it: every good block is kept, at the address it had."""

from __future__ import annotations

import os
from pathlib import Path

from forwarder.spool import Segment, list_segments, quarantine, sync_directory
from forwarder.spool.block import Damage, mapped, scan


def repair(directory: Path) -> int:
    """Split damaged segments around the damage, which goes to `quarantine/`; returns how many bytes that was."""
    return sum(_repair_segment(directory, segment) for segment in list_segments(directory))


def _repair_segment(directory: Path, segment: Segment) -> int:
    good: list[tuple[int, int]] = []
    bad = 0
    with mapped(segment.path) as data:
        for part in scan(data):
            if isinstance(part, Damage):
                quarantine(directory, segment, part.start, data[part.start : part.end])
                bad += part.end - part.start
            elif good and good[-1][1] == part.start:
                good[-1] = (good[-1][0], part.end)
            else:
                good.append((part.start, part.end))
        if not bad:
            return 0
        # The original goes last: killed in between, its blocks are there twice and none is gone.
        for start, end in reversed(good):
            _write(directory / f"{segment.first + start:020d}.seg", data[start:end])
    if not good or good[0][0] > 0:
        segment.path.unlink()
    sync_directory(directory)
    return bad


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o600)
    temporary.rename(path)
