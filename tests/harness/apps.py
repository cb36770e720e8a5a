"""Apps as processes of their own, with any Python: what they promise when they are killed is tried by killing them."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

_numbers = itertools.count(1)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of our own processes: this checkout's package, and none of the user's configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORWARDER")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def run_app(
    code: str,
    *args: object,
    python: str = sys.executable,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[str]:
    """Start `code` as a script with `args`, in `directory`; `flags` are the interpreter's. Output and errors come as one text.

    An app that writes more than a pipe holds (64 KiB) waits until somebody reads: `finish` does.
    """
    script = _scripts() / f"app{next(_numbers)}.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    return subprocess.Popen(
        [python, *flags, str(script), *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(env),
        cwd=directory,
    )


def finish(app: subprocess.Popen[str], timeout: float = 60) -> str:
    """Wait for the app and return what it said; raises AssertionError when it fails or takes longer than `timeout` seconds."""
    try:
        said, _ = app.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        app.kill()
        said, _ = app.communicate()
        raise AssertionError(f"the app did not end within {timeout:g} s; it said:\n{said}") from None
    assert app.returncode == 0, f"the app ended with {app.returncode}; it said:\n{said}"
    return said


def end(app: subprocess.Popen[str]) -> None:
    """Kill the app if it runs, and let go of its pipe."""
    app.kill()
    app.wait()
    if app.stdout is not None:
        app.stdout.close()


@functools.cache
def _scripts() -> Path:
    directory = tempfile.mkdtemp(prefix="fwd-apps-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)
