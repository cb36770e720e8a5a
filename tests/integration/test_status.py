"""`forwarder status` beside a running agent, and what it says when there is none."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.apps import environment
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.wait import eventually


def status(agent: Agent, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forwarder", "status", "-c", str(agent.file), *args],
        env=environment({"COLUMNS": "160"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_shows_sources_positions_and_kafka(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    one.start()
    with connect(one.socket) as peer:
        peer.greet(app="shop", session="s")
        peer.send([b"record"] * 100)
        peer.await_ack(100)
    eventually(lambda: one.metric("forwarder_records_delivered_total") == 100, what="the records to be delivered")
    shown = status(one)
    assert shown.returncode == 0, shown.stderr
    for expected in ("connected", kafka.bootstrap, "spool:shop", f"{topic}: 100"):
        assert expected in shown.stdout
    as_json = json.loads(status(one, "--json").stdout)
    assert [source["app"] for source in as_json["sources"]] == ["shop"]
    assert as_json["kafka"]["delivered"] == {topic: 100}


def test_watch_redraws_until_it_is_interrupted(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    one.start()
    command = [sys.executable, "-m", "forwarder", "status", "--watch", "-c", str(one.file)]
    with subprocess.Popen(
        command, env=environment({"PYTHONUNBUFFERED": "1"}), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        seen = b""
        while seen.count(b"oldest not in Kafka") < 2:
            assert select.select([watching.stdout], [], [], 10)[0], seen
            seen += os.read(watching.stdout.fileno(), 65536)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
        assert watching.stderr.read() == b""


def test_without_an_agent_it_says_where_it_looked(agent: AgentFactory) -> None:
    one = agent({"kafka": {"bootstrap_servers": "127.0.0.1:9"}})
    shown = status(one)
    assert shown.returncode == 1
    assert shown.stderr.startswith(f"forwarder: no agent answers at {one.listen}: ")
