"""A real agent under what looks to it like systemd: a socket handed over, and somebody to tell how it is."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.wait import eventually

# What systemd does for a socket unit. The process id stays the same over exec.
ACTIVATE = f"""#!{sys.executable}
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
if not os.path.exists(os.environ["BIND"]):
    sock.bind(os.environ["BIND"])
    sock.listen(16)
    os.dup2(sock.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid() + int(os.environ.get("OTHER_PID", "0"))))
os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""


@pytest.fixture
def activator(directory: Path) -> str:
    """A Python that runs what it is given with a listening socket as descriptor 3, bound to the path in BIND."""
    path = directory / "activator"
    path.write_text(ACTIVATE)
    path.chmod(0o755)
    return str(path)


def activated(agent: AgentFactory, kafka: Kafka, topic: str, activator: str, bind: Path, **env: str) -> Agent:
    config = {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "socket": [{"path": str(bind), "app": "web"}]}
    return agent(config, python=activator, env={"BIND": str(bind), **env})


def test_a_socket_handed_over_is_listened_on_and_left_where_it_is_at_the_end(
    kafka: Kafka, topic: str, agent: AgentFactory, activator: str, directory: Path
) -> None:
    path = directory / "handed.sock"
    running = activated(agent, kafka, topic, activator, path)
    running.start()
    inode = path.stat().st_ino
    assert f"listening on {path}, handed over by systemd" in running.log()
    with connect(path) as peer:
        peer.greet(app="shop", session="one")
        peer.send([b"record"])
        assert peer.await_ack(1) == 1
    assert kafka.values(topic, expected=1) == [b"record"]
    assert running.terminate() == 0
    assert path.stat().st_ino == inode


def test_the_variables_of_another_process_are_left_alone(
    kafka: Kafka, topic: str, agent: AgentFactory, activator: str, directory: Path
) -> None:
    path = directory / "handed.sock"
    running = activated(agent, kafka, topic, activator, path, OTHER_PID="1")
    running.start(wait=False)
    # Descriptor 3 holds the path without anybody who accepts: to an agent that takes it for its own it would be free.
    assert running.wait() == 1
    assert "another process answers there" in running.log()


def test_a_socket_handed_over_that_no_table_names_is_told(
    kafka: Kafka, topic: str, agent: AgentFactory, activator: str, directory: Path
) -> None:
    config = {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}}
    running = agent(config, python=activator, env={"BIND": str(directory / "other.sock")})
    running.start()
    assert f"{directory / 'other.sock'} was handed over, but no [[socket]] has this path" in running.log()
    with connect(running.socket) as peer:
        assert peer.greet(app="shop") == 0


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self._heard: list[str] = []

    def heard(self) -> list[str]:
        """All that was said so far, line by line."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard += self.socket.recv(4096).decode().splitlines()
        return self._heard


@pytest.fixture(params=["path", "abstract"])
def notify(directory: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Manager]]:
    address = str(directory / "notify") if request.param == "path" else f"@forwarder-test-{os.getpid()}-{directory.name}"
    manager = Manager("\0" + address[1:] if address.startswith("@") else address)
    yield address, manager
    manager.socket.close()


def test_systemd_is_told_when_the_agent_is_ready_alive_and_stopping(agent: AgentFactory, notify: tuple[str, Manager]) -> None:
    address, manager = notify
    running = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}}, env={"NOTIFY_SOCKET": address})
    running.start()
    eventually(lambda: "WATCHDOG=1" in manager.heard(), what="a sign of life")
    assert "READY=1" in manager.heard()
    assert "STOPPING=1" not in manager.heard()
    assert running.terminate() == 0
    heard = manager.heard()
    assert heard.index("READY=1") < heard.index("WATCHDOG=1") < heard.index("STOPPING=1")


def test_nobody_at_the_other_end_of_the_notifications_is_no_reason_to_fail(agent: AgentFactory, directory: Path) -> None:
    running = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}}, env={"NOTIFY_SOCKET": str(directory / "nobody")})
    running.start()
    assert running.terminate() == 0


def test_lines_of_the_log_have_priorities_when_they_go_to_the_journal(agent: AgentFactory, directory: Path) -> None:
    log = directory / "agent.log"
    log.touch()
    status = log.stat()
    running = agent({"kafka": {"bootstrap_servers": "127.0.0.1:1"}}, env={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    running.start()
    with connect(running.socket) as peer:
        peer.send_bytes(b'{"forwarder":9}\n')
        peer.socket.recv(1)
    running.terminate()
    found = running.log().splitlines()
    assert all(line[0] == "<" and line[2] == ">" for line in found), found
    assert any(line.startswith("<4>") and "this agent speaks version 1" in line for line in found)
    assert any(line.startswith("<6>ready: ") for line in found)
