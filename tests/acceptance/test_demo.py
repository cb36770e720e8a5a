"""What a newcomer sees first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.apps import ROOT, environment
from tests.harness.kafka import Kafka


def demo(*args: str, command: tuple[str, ...] = (sys.executable, "-m", "forwarder")) -> tuple[int, dict[str, str]]:
    """Run the demo: its exit code, and its closing table."""
    done = subprocess.run(
        [*command, "demo", *args], env=environment({"COLUMNS": "100"}), capture_output=True, text=True, timeout=120, check=False
    )
    print(done.stdout, done.stderr)
    return done.returncode, dict(re.findall(r"│ ([^│]+?) +│ ([^│]+?) +│", done.stdout))


def test_the_demo_with_its_embedded_broker_loses_nothing() -> None:
    code, table = demo("--records", "100000")
    assert (code, table["sent"], table["lost"]) == (0, "100000", "0")
    assert int(table["received"]) == 100_000 + int(table["duplicated"])


def test_the_demo_with_a_real_broker_loses_nothing(kafka: Kafka) -> None:
    code, table = demo("--records", "100000", "--bootstrap", kafka.bootstrap)
    assert (code, table["sent"], table["lost"]) == (0, "100000", "0")


def test_the_demo_says_when_there_is_no_broker_where_it_is_told_to_look() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forwarder", "demo", "--records", "100", "--bootstrap", "127.0.0.1:9"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "forwarder: no Kafka answers at 127.0.0.1:9; check --bootstrap, or leave it out for an embedded one"
    )


@pytest.mark.slow
def test_a_plain_install_without_java_can_run_the_demo(directory: Path) -> None:
    source, venv = directory / "src", directory / "venv"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([venv / "bin" / "pip", "install", "-q", str(source)], check=True)
    bare = environment({"PATH": str(venv / "bin")})
    del bare["PYTHONPATH"]
    done = subprocess.run(
        [venv / "bin" / "forwarder", "demo"], env=bare, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"lost +│ 0 ", done.stdout)


def test_a_suite_that_cannot_start_kafka_fails_and_says_what_to_install(directory: Path) -> None:
    tools = directory / "bin"
    tools.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):
        for tool in Path(place).iterdir():
            link = tools / tool.name
            if tool.name not in {"java", "mvn", "apt-get"} and not link.is_symlink():
                link.symlink_to(tool)
    cache = {"PATH": str(tools), "HOME": str(directory), "FORWARDER_TEST_CACHE": str(directory / "cache")}
    kept = {name: value for name, value in os.environ.items() if name not in {"JAVA_HOME", *cache}}
    done = subprocess.run([ROOT / "tests" / "run"], env={**kept, **cache}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "need Java 17 or later" in done.stderr
    assert "openjdk-17-jre-headless maven" in done.stderr
