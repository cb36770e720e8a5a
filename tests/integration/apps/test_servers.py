"""Servers with several workers, the app loaded before or after they are forked: each record of each request is in Kafka once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.apps import environment
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually

SHOP = """
import itertools, json, logging, os
import forwarder

handler = forwarder.SocketHandler(close_timeout=20)
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(handler)
log.info("loaded", extra={"writer": "loaded", "seq": os.getpid()})
numbers = itertools.count()

def serve():
    writer, seqs = f"worker-{os.getpid()}", [next(numbers) for _ in range(20)]
    for seq in seqs:
        log.info("served", extra={"writer": writer, "seq": seq})
    return json.dumps({"writer": writer, "seqs": seqs}).encode()

def wsgi(environ, start_response):
    body = serve()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": serve()})
"""

REQUESTS = 200
CLIENTS = 8

Serve = Callable[..., "dict[str, list[int]]"]


@pytest.fixture
def serve(directory: Path, env: dict[str, str]) -> Iterator[Serve]:
    """Runs a server, asks it `REQUESTS` things, ends it with TERM, and says what its workers say they have logged."""
    (directory / "shop.py").write_text(SHOP)
    address = str(directory / "web.sock")
    servers: list[subprocess.Popen[bytes]] = []

    def run(*command: str, stop: int = signal.SIGTERM) -> dict[str, list[int]]:
        with (directory / "server.log").open("wb") as log:
            server = subprocess.Popen(
                [part.format(socket=address) for part in command],
                cwd=directory,
                env=environment({**env, "PYTHONPATH": os.pathsep.join([str(directory), environment()["PYTHONPATH"]])}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        servers.append(server)
        logged: dict[str, list[int]] = defaultdict(list)
        eventually(lambda: logged_by(address, logged) > 1, 60, "more than one worker to answer")
        clients = [threading.Thread(target=ask, args=(address, logged)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        server.send_signal(stop)
        assert server.wait(30) == 0, (directory / "server.log").read_text()
        return logged

    yield run
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # its workers too
        server.wait()


def logged_by(address: str, logged: dict[str, list[int]]) -> int:
    """Ask once, and note what the worker says; how many workers have said something."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(30)
        connection.sock.connect(address)
        connection.request("GET", "/")
        answer = json.loads(connection.getresponse().read())
        logged[answer["writer"]] += answer["seqs"]
    finally:
        connection.close()
    return len(logged)


def ask(address: str, logged: dict[str, list[int]]) -> None:
    for _ in range(REQUESTS // CLIENTS):
        logged_by(address, logged)


def assert_all_there(kafka: Kafka, topic: str, logged: dict[str, list[int]], loaded: int) -> None:
    """`loaded` is how many processes have loaded the app."""
    sent = sum(map(len, logged.values()))
    values = kafka.values(topic, expected=sent + loaded)
    of_requests = [value for value in values if b'"served"' in value]
    judge(of_requests, logged).assert_exact()
    assert len(values) - len(of_requests) == loaded
    assert len(logged) > 1


BIN = Path(sys.executable).parent


@pytest.mark.parametrize("worker", [["sync"], ["gthread", "--threads", "4"], ["gevent"]], ids=lambda worker: worker[0])
@pytest.mark.parametrize("preload", [["--preload"], []], ids=["preload", "each"])
def test_gunicorn(worker: list[str], preload: list[str], kafka: Kafka, topic: str, serve: Serve) -> None:
    command = [str(BIN / "gunicorn"), "-w", "2", "-b", "unix:{socket}", "-k", *worker, *preload, "shop:wsgi"]
    assert_all_there(kafka, topic, serve(*command), 1 if preload else 2)


def test_uvicorn(kafka: Kafka, topic: str, serve: Serve) -> None:
    command = [sys.executable, "-m", "uvicorn", "--workers", "2", "--uds", "{socket}", "--lifespan", "off", "shop:asgi"]
    assert_all_there(kafka, topic, serve(*command), 2)


@pytest.mark.parametrize("threads", [["--threads", "2"], []], ids=["threads", "no threads"])
@pytest.mark.parametrize("lazy", [[], ["--lazy-apps"]], ids=["forked", "lazy"])
def test_uwsgi(lazy: list[str], threads: list[str], kafka: Kafka, topic: str, serve: Serve) -> None:
    command = [str(BIN / "uwsgi"), "--http-socket", "{socket}", "--master", "--processes", "2", "--need-app", *threads]
    command += ["--home", str(BIN.parent), "--die-on-term", "--module", "shop:wsgi", *lazy]
    assert_all_there(kafka, topic, serve(*command), 2 if lazy else 1)
