"""For tests of apps: an agent that keeps what it is sent, so that a test can assert on what would be in Kafka.

    with forwarder.testing.Agent() as agent:
        handler = forwarder.SocketHandler(agent.address)
        ...
        handler.flush()
        assert agent.records[0]["order"] == 7

It listens on a Unix socket in a directory of its own and acknowledges each record once it is in `records`: after `flush` all are
there, in the order of their arrival. It knows no sessions: a record that is sent again after a reconnect is there twice. When
the `with` is over it has gone for those too that are connected: what they log waits.
Standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import socketserver
import tempfile
import threading
from pathlib import Path
from typing import Any


class Agent:
    """A context manager. `records` are those that came, as dicts; `greetings` what sessions have said of themselves."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.greetings: list[dict[str, Any]] = []
        self._directory = tempfile.mkdtemp(prefix="forwarder-")
        self.address = str(Path(self._directory) / "agent.sock")
        self._connections: list[socket.socket] = []
        agent = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the app has gone, without waiting for an answer
                    agent._serve(self.rfile, self.connection)

        class Server(socketserver.ThreadingUnixStreamServer):
            def verify_request(self, request: Any, client_address: Any) -> bool:
                agent._connections.append(request)
                return True

        self._server = Server(self.address, Connection)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Agent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has been closed
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()  # when its threads have ended
        self._thread.join()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _serve(self, lines: Any, connection: socket.socket) -> None:
        greeting = json.loads(lines.readline() or b"{}")
        self.greetings.append(greeting)
        for number, line in enumerate(lines, greeting.get("first", 0) + 1):
            if line.endswith(b"\n"):  # what was cut off is sent again
                self.records.append(json.loads(line))
                connection.sendall(number.to_bytes(8, "big"))
