"""A clock of an agent's own, which can be set while it runs; see `tests/tools/clock.c`."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "tools" / "clock.c"


class Clock:
    """At first it tells the true time. What runs with `env` goes by it; clocks that only count on are not touched."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler is not None, "a clock that jumps needs a C compiler: run tests/run, which installs it"
        library = directory / "clock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
        self._file = (directory / "clock").open("w+b", buffering=0)
        self.set(0)
        self.env = {"LD_PRELOAD": str(library), "FORWARDER_TEST_CLOCK": self._file.name}

    def __del__(self) -> None:
        self._file.close()

    def set(self, seconds: int) -> None:
        """Be so far ahead of the true time, or behind it."""
        os.pwrite(self._file.fileno(), struct.pack("=q", seconds * 1_000_000_000), 0)
