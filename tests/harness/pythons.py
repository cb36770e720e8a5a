"""The Pythons on this machine that an app may run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def pythons() -> list[tuple[str, str]]:
    """Version and path of the Pythons from 3.8 on that can be found on this machine."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = []
    for minor in range(8, 16):
        name = f"python3.{minor}"
        candidates = [os.environ.get(f"PYTHON3_{minor}"), shutil.which(name)]
        candidates += [str(path) for root in roots for path in sorted(root.glob(f"3.{minor}.*/bin/{name}"))]
        for candidate in filter(None, candidates):
            check = [candidate, "-S", "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            answer = subprocess.run(check, capture_output=True, text=True, check=False)
            if answer.stdout.strip() == f"3.{minor}":
                found.append((f"3.{minor}", candidate))
                break
    return found


PYTHONS = pythons()
