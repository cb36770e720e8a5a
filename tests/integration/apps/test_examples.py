"""Every example that the README points at is run as it stands, and its records looked up in Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.agent import Agent
from tests.harness.apps import ROOT, environment
from tests.harness.kafka import Kafka

EXAMPLES = Path(__file__).parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
BESIDES = {"memory_handler": ["asked the bank"], "with_django": ["Internal Server Error: /pay"]}
"""Messages that are expected besides "paid 7"."""

Records = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def records(kafka: Kafka) -> Iterator[Records]:
    """What each example has left in Kafka; they run at the same time."""
    topic = "t-examples"
    kafka.create_topic(topic)
    expected = len(NAMES) + sum(map(len, BESIDES.values()))
    with tempfile.TemporaryDirectory(prefix="fwd-", dir="/tmp") as directory:
        config = {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic, "key": "{app}"}}
        sockets = [{"path": f"{directory}/{name}.sock", "app": name} for name in NAMES]
        agent = Agent(Path(directory), {**config, "socket": sockets})
        agent.start()
        try:
            running = {
                name: subprocess.Popen(
                    [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
                    env=environment({"FORWARDER_SOCKET": f"{directory}/{name}.sock"}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                for name in NAMES
            }
            for name, example in running.items():
                said, _ = example.communicate(timeout=60)
                assert (example.returncode, said) == (0, b""), f"{name}: {said.decode()}"
            found: Records = {name: [] for name in NAMES}
            for record in kafka.records(topic, expected=expected):
                assert record.key is not None
                found[record.key.decode()].append(json.loads(record.value))
            yield found
        finally:
            agent.stop()
            kafka.delete_topic(topic)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_it_shows(name: str, records: Records) -> None:
    by_message = {record["message"]: record for record in records[name]}
    assert sorted(by_message) == sorted(["paid 7", *BESIDES.get(name, [])])
    paid = by_message["paid 7"]
    order = paid["extra"]["order"] if name == "with_loguru" else paid["order"]
    assert order == 7
    if name == "adapter_and_filter":
        assert paid["region"] == "eu"
    elif name == "with_structlog":
        assert paid["request"] == "r-1"
    elif name == "dict_config":
        assert paid["service"] == {"name": "shop", "environment": "test"}
    elif name == "with_django":
        assert by_message["Internal Server Error: /pay"]["status_code"] == 500


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_points_at_an_example(name: str) -> None:
    assert f"tests/integration/apps/examples/{name}.py" in (ROOT / "README.md").read_text(encoding="utf-8")
