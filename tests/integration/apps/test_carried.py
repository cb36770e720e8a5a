"""The app's side, carried into an image without the agent's dependencies: by `pip install --no-deps`, or as one file."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def has_pip(python: str) -> bool:
    return not subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("which", ["the oldest Python there is", "ours"])
def test_pip_installs_it_without_dependencies(which: str, tmp_path: Path) -> None:
    python = sys.executable if which == "ours" else next(path for _, path in PYTHONS if has_pip(path))
    shutil.copytree(ROOT, tmp_path / "src", ignore=shutil.ignore_patterns(".git", "tests", "*.egg-info", "build", "__pycache__"))
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--ignore-requires-python"]
    command += ["--target", str(tmp_path / "app"), str(tmp_path / "src")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert log_from(tmp_path / "app", python, tmp_path) == ["hello"] * 2


def test_the_readme_says_how_to_install_it_without_dependencies() -> None:
    assert "pip install --no-deps --ignore-requires-python" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_its_modules_have_nothing_that_python_3_14_warns_of(name: str) -> None:
    """By reading: what leaves a `finally`. What older ones warn of, `-W error` shows, with which the handlers' tests run them."""
    tree = ast.parse((ROOT / "forwarder" / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    cleaning = [node for one in ast.walk(tree) if isinstance(one, ast.Try) for part in one.finalbody for node in ast.walk(part)]
    assert not [node for node in cleaning if isinstance(node, (ast.Return, ast.Break, ast.Continue))]


def test_one_zip_file_of_its_modules_is_enough_for_the_oldest_python_there_is(tmp_path: Path) -> None:
    carried = tmp_path / "forwarder.zip"
    with zipfile.ZipFile(carried, "w") as archive:
        for name in MODULES:
            archive.write(ROOT / "forwarder" / f"{name}.py", f"forwarder/{name}.py")
    assert log_from(carried, PYTHONS[0][1], tmp_path) == ["hello"] * 2
