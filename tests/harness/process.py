"""What a process has used, as the kernel counts it."""

from __future__ import annotations

import os
import re
from pathlib import Path


def memory(pid: int, name: str) -> int:
    """Bytes: `VmRSS`, what it has now, or `VmHWM`, what it had at most. Raises ProcessLookupError when it has ended."""
    return _value(Path(f"/proc/{pid}/status"), name) * 1024


def cpu(pid: int) -> float:
    """Seconds of processor time, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakeups(pid: int) -> int:
    """How often its threads went to sleep, which is how often they were woken."""
    return sum(_value(path, "voluntary_ctxt_switches") for path in Path(f"/proc/{pid}/task").glob("*/status"))


def file_calls(pid: int) -> int:
    """Its system calls that read or write, files and pipes; sockets and all others are not among them."""
    path = Path(f"/proc/{pid}/io")
    return _value(path, "syscr") + _value(path, "syscw")


def _value(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"no {name} in {path}: the process has ended")
    return int(found[1])
