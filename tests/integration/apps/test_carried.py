"""The app's side, carried into an image without the agent's dependencies: by `pip install --no-deps`, or as one file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.harness.apps import ROOT
from tests.harness.pythons import PYTHONS
from tests.unit.fake_agent import FakeAgent

MODULES = ("__init__", "handler", "session", "ring", "turns", "settings", "formatter", "shims", "testing", "version")

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import logging, forwarder, forwarder.testing
assert forwarder.__file__.startswith(sys.argv[1]), forwarder.__file__
log = logging.getLogger()
log.addHandler(forwarder.SocketHandler(sys.argv[2], close_timeout=20))
log.addHandler(forwarder.KafkaLoggingHandler("h:9092", "orders", address=sys.argv[2], close_timeout=20))
log.warning("hello")
"""


def log_from(place: Path, python: str, tmp_path: Path) -> list[str]:
    with FakeAgent(tmp_path / "a.sock") as agent:
        command = [python, "-S", "-I", "-c", SCRIPT, str(place), str(agent.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return agent.messages()


def test_pip_installs_it_without_dependencies(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "src", ignore=shutil.ignore_patterns(".git", "tests", "*.egg-info", "build", "__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path / "app"),
        str(tmp_path / "src"),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert log_from(tmp_path / "app", sys.executable, tmp_path) == ["hello"] * 2


def test_one_zip_file_of_its_modules_is_enough_for_the_oldest_python_there_is(tmp_path: Path) -> None:
    carried = tmp_path / "forwarder.zip"
    with zipfile.ZipFile(carried, "w") as archive:
        for name in MODULES:
            archive.write(ROOT / "forwarder" / f"{name}.py", f"forwarder/{name}.py")
    assert log_from(carried, PYTHONS[0][1], tmp_path) == ["hello"] * 2
