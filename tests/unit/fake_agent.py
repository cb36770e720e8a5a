"""The agent's side of a session on a real Unix socket, in a thread, without a spool: for tests of the handlers.

It keeps records as the agent does, numbered within their session and each only once, and can be told to misbehave: to be away,
not to read, not to acknowledge, to hang up in the middle of a record, to answer nonsense. Tests wait with `until`, never by
the clock.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 20.0
"""How many seconds a test waits for what has to come."""


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.held = b""
        self.session: str | None = None
        self.next = 0


class FakeAgent:
    """Use as a context manager, which is `start` and `stop`; both can be called any number of times in between.

    `reads` and `acknowledges` say what it does; with `hang_up_at` = N it ends a connection when the first bytes of the Nth
    record have arrived, once; `answer` are bytes sent in place of every acknowledgement. `records` are those kept, in order
    of arrival; `arrivals` counts those that were sent, repeated ones too; `greetings` are as they came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads = True
        self.acknowledges = True
        self.hang_up_at: int | None = None
        self.answer: bytes | None = None
        self.greetings: list[dict[str, Any]] = []
        self.records: list[bytes] = []
        self.sessions: dict[str, int] = {}
        self.gaps: list[tuple[int, int]] = []
        self.arrivals = 0
        self.accepted = 0
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FakeAgent:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.path))
        listening.listen(16)
        self._ours, theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(listening, theirs), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Go away, as after `kill -9`: what was not read is lost, the socket's file is gone."""
        if self._thread is not None:
            self._ours.close()
            self._thread.join()
            self._thread = None

    def set(self, **behaviour: Any) -> None:
        with self._changed:
            for name, value in behaviour.items():
                setattr(self, name, value)
        if self._thread is not None:
            self._ours.send(b".")

    def messages(self) -> list[Any]:
        with self._changed:
            return [json.loads(line).get("message") for line in self.records]

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until `condition` holds, looked at whenever something happens here, and every few milliseconds."""
        end = time.monotonic() + seconds
        with self._changed:
            while not condition():
                self._changed.wait(0.005)
                if time.monotonic() < end:
                    continue
                raise AssertionError(
                    f"still not after {seconds} s: {len(self.records)} records of {self.arrivals}, "
                    f"{self.accepted} connections, greetings {self.greetings[-3:]}, last records {self.records[-3:]}"
                )

    def until_records(self, number: int) -> None:
        self.until(lambda: len(self.records) >= number)

    # The thread

    def _run(self, listening: socket.socket, wake: socket.socket) -> None:
        connections: dict[int, Connection] = {}
        try:
            while True:
                poll = select.poll()
                for sock in (wake, listening):
                    poll.register(sock, select.POLLIN)
                for number in connections if self.reads else ():
                    poll.register(number, select.POLLIN)
                for number, _ in poll.poll():
                    with self._changed:
                        if number == wake.fileno():
                            if not wake.recv(4096):
                                return
                            self._acknowledge_all(connections)
                        elif number == listening.fileno():
                            sock = listening.accept()[0]
                            connections[sock.fileno()] = Connection(sock)
                            self.accepted += 1
                        elif not self._read(connections[number]):
                            connections.pop(number).sock.close()
                        self._changed.notify_all()
        finally:
            self.path.unlink()
            for sock in (listening, wake, *(connection.sock for connection in connections.values())):
                sock.close()

    def _read(self, connection: Connection) -> bool:
        try:
            data = connection.sock.recv(65536)
        except ConnectionError:
            return False
        if not data:
            return False
        *lines, connection.held = (connection.held + data).split(b"\n")
        for line in lines:
            if connection.session is None:
                self._greet(connection, json.loads(line))
            elif not self._keep(connection, line):
                return False
        if self.hang_up_at == self.arrivals and connection.held:
            self.hang_up_at = None
            return False
        return self._acknowledge(connection)

    def _greet(self, connection: Connection, greeting: dict[str, Any]) -> None:
        self.greetings.append(greeting)
        connection.session = greeting["session"]
        connection.next = greeting["first"]
        self.sessions.setdefault(greeting["session"], greeting["first"])

    def _keep(self, connection: Connection, line: bytes) -> bool:
        if self.hang_up_at == self.arrivals:
            self.hang_up_at = None
            return False
        assert connection.session is not None
        self.arrivals += 1
        known = self.sessions[connection.session]
        if connection.next > known:
            self.gaps.append((known, connection.next))
        if connection.next >= known:
            self.records.append(line)
            self.sessions[connection.session] = connection.next + 1
        connection.next += 1
        return True

    def _acknowledge_all(self, connections: dict[int, Connection]) -> None:
        for connection in connections.values():
            self._acknowledge(connection)

    def _acknowledge(self, connection: Connection) -> bool:
        if not self.acknowledges or connection.session is None:
            return True
        answer = self.answer or self.sessions[connection.session].to_bytes(8, "big")
        with contextlib.suppress(ConnectionError):
            connection.sock.sendall(answer)
        return True
