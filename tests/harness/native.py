"""A peer that speaks the socket protocol's own dialect, one step at a time."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path

ACK_BYTES = 8


class Native:
    """One connection; for use with `with`. Every wait ends after `timeout` seconds with TimeoutError."""

    def __init__(self, path: Path | str, timeout: float = 10.0) -> None:
        self.acknowledged = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._timeout = timeout
        self._held = b""
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def greet(
        self,
        *,
        app: str | None = None,
        session: str | None = None,
        first: int = 0,
        topic: str | None = None,
        key: str | None = None,
        dropped: int = 0,
    ) -> int:
        """Greet, and return the agent's first acknowledgement: how many of the session's records it has already."""
        greeting = {
            "forwarder": 1,
            "app": app,
            "session": session,
            "first": first,
            "topic": topic,
            "key": key,
            "dropped": dropped,
        }
        self.send_bytes(json.dumps({name: value for name, value in greeting.items() if value is not None}).encode() + b"\n")
        return self.read_ack()

    def send(self, lines: Iterable[bytes]) -> None:
        """Send records, each without its newline. Blocks when the agent does not read."""
        self.send_bytes(b"".join(line + b"\n" for line in lines))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes just as they are."""
        self.socket.sendall(data)

    def read_ack(self, timeout: float | None = None) -> int:
        """The next acknowledgement. Raises ConnectionError when the agent has closed the connection, TimeoutError."""
        self.socket.settimeout(self._timeout if timeout is None else timeout)
        try:
            while len(self._held) < ACK_BYTES:
                data = self.socket.recv(65536)
                if not data:
                    raise ConnectionError(f"the agent closed the connection after acknowledging {self.acknowledged}")
                self._held += data
        finally:
            self.socket.settimeout(self._timeout)
        ack, self._held = self._held[:ACK_BYTES], self._held[ACK_BYTES:]
        self.acknowledged = int.from_bytes(ack, "big")
        return self.acknowledged

    def read_acks(self) -> int:
        """The last of the acknowledgements that have come; waits for one. Raises as `read_ack` does."""
        self.read_ack()
        while len(self._held) >= ACK_BYTES:
            self.read_ack()
        return self.acknowledged

    def await_ack(self, number: int, timeout: float | None = None) -> int:
        """Read acknowledgements until one is `number` or more."""
        while self.acknowledged < number:
            self.read_ack(timeout)
        return self.acknowledged

    def close(self) -> None:
        self.socket.close()


def connect(path: Path | str, timeout: float = 10.0) -> Native:
    return Native(path, timeout)
