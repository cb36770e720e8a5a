"""A limit on the memory of a running process, as a container has one: the kernel kills what goes beyond."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")

_numbers = itertools.count(1)


def _parent() -> Path | None:
    """Where a group that limits memory can be made: of version 1 or 2, or nowhere."""
    for place in (ROOT / "memory", ROOT):
        control = place / ("memory.limit_in_bytes" if place.name == "memory" else "cgroup.subtree_control")
        with contextlib.suppress(OSError):
            if os.access(place, os.W_OK) and (place.name == "memory" or "memory" in control.read_text().split()):
                return place
    return None


def may_limit_memory() -> bool:
    return os.geteuid() == 0 and _parent() is not None


@contextlib.contextmanager
def memory_limited(pid: int, size: int) -> Iterator[None]:
    """Give the process `size` bytes of memory more to use than none: what it has already stays with the group it had."""
    parent = _parent()
    assert parent is not None, "no memory cgroup can be made here"
    group = parent / f"forwarder-test-{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if parent.name == "memory" else "memory.max")).write_text(str(size))
        with contextlib.suppress(OSError):  # where there is no swap there may be no such file
            (group / ("memory.memsw.limit_in_bytes" if parent.name == "memory" else "memory.swap.max")).write_text(
                str(size if parent.name == "memory" else 0)
            )
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.02)
        group.rmdir()
