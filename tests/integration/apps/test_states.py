"""Whatever state the agent is in, an app that logs is not held up, sees no error, and loses nothing once the agent is back."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import AppFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually

RECORDS = 4000
LONGEST = 0.5
"""Seconds: less than anything that waits for an agent takes, more than a busy machine takes away from an app."""

APP = """
import logging, os, sys, time
import forwarder

if os.geteuid() == 0:
    os.setuid(65534)
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(forwarder.SocketHandler(sys.argv[1], app="shop", backlog="32MiB"))
longest = 0.0
for seq in range(int(sys.argv[2])):
    begun = time.perf_counter()
    log.info("record", extra={"writer": "w", "seq": seq, "pad": "x" * 200})
    longest = max(longest, time.perf_counter() - begun)
print(longest, flush=True)
time.sleep(120)  # what waits leaves without another record
"""


def small_files(agent: Agent) -> None:
    """Like a full disk, and needs no file system of its own: what is appended beyond the limit is refused."""
    hard = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (100_000, hard))


def files_of_any_size(agent: Agent) -> None:
    eventually(lambda: agent.status()["spool"]["disk_errors"] > 0, what="the disk to have refused records")
    hard = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (hard, hard))


def nothing(agent: Agent) -> None: ...


def forbid(agent: Agent) -> None:
    agent.socket.chmod(0)


def allow(agent: Agent) -> None:
    agent.socket.chmod(0o666)


def hide(agent: Agent) -> None:
    agent.socket.parent.rename(agent.socket.parent.with_name("away"))


def show(agent: Agent) -> None:
    agent.socket.parent.with_name("away").rename(agent.socket.parent)


STATES: dict[str, tuple[bool, Callable[[Agent], None], Callable[[Agent], None]]] = {
    "up": (True, nothing, nothing),
    "not started yet": (False, nothing, Agent.start),
    "starting": (False, lambda agent: agent.start(wait=False), Agent.await_ready),
    "stopped by SIGSTOP": (True, Agent.freeze, Agent.thaw),
    "killed": (True, Agent.kill, Agent.start),
    "its disk is full": (True, small_files, files_of_any_size),
    "a socket without permission": (True, forbid, allow),
    "a missing directory": (True, hide, show),
}
"""Whether it runs at first, what happens before the app logs, and what puts it right afterwards."""


@pytest.mark.parametrize("state", STATES)
def test_an_app_is_not_held_up_and_loses_nothing(
    state: str, kafka: Kafka, topic: str, agent: Callable[..., Agent], app: AppFactory, directory: Path
) -> None:
    directory.chmod(0o755)
    (directory / "run").mkdir()
    socket = {"path": str(directory / "run" / "s.sock"), "mode": "0666"}
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "socket": [socket]})
    runs, spoil, mend = STATES[state]
    if runs:
        one.start()
    spoil(one)
    running = app(APP, one.socket, RECORDS)
    assert running.stdout is not None
    longest = running.stdout.readline()
    mend(one)
    values = kafka.values(topic, expected=RECORDS)
    assert float(longest) < LONGEST
    verdict = judge(values, {"w": RECORDS})
    verdict.assert_none_lost()
    assert not verdict.alien
    assert os.waitpid(running.pid, os.WNOHANG)[0] == 0
