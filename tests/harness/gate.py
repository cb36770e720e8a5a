"""A gate before a Kafka: apps of it find nobody there as long as it is closed."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from tests.harness.kafka import Kafka, free_ports


class Gate:
    """An address at which Kafka is found while the gate is open, and nobody while it is closed."""

    def __init__(self, kafka: Kafka) -> None:
        host, _, port = kafka.bootstrap.partition(":")
        self._kafka = (host, int(port))
        self._here = ("127.0.0.1", free_ports(1))
        self._server: socket.socket | None = None
        self.settings = {
            "bootstrap_servers": f"127.0.0.1:{self._here[1]}",
            "properties": {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 200},
        }

    def open(self) -> None:
        self._server = socket.create_server(self._here)
        threading.Thread(target=self._serve, args=(self._server,), daemon=True).start()

    def close(self) -> None:
        """Let nobody through any more; who is through stays."""
        server, self._server = self._server, None
        if server is not None:
            # Closing alone would not end an accept() that waits.
            server.shutdown(socket.SHUT_RDWR)
            server.close()

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._kafka) as broker:
            other = {client: broker, broker: client}
            while True:
                for ready in select.select([client, broker], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    other[ready].sendall(data)
