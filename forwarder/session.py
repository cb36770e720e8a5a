"""One session with the agent as bytes: the greeting, the records of the ring, the acknowledgements that come back.

- Sockets come and go, the session stays. What one of them was given and the agent has not acknowledged goes to the next one
  again, under the same numbers and after a greeting that says where they begin, so that the agent knows what it has already.
- How many records the ring has dropped is told in every greeting; `should_report` says when one more is worth a reconnect.
- Sockets do not block: what one does not take stays in `rest`.
- An app may close descriptors that it has not opened, as daemons do, and their numbers come back as other files: nothing is
  written to those, and they are not closed.

One thread at a time; standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from typing import Any

from forwarder.ring import Ring

BATCH = 64 * 1024
READ_EVERY = 64
"""Acknowledgements are looked for when so many more records have been sent; in between, and when idle, the helper does it."""
REPORT_EVERY = 1.0
TRUSTED = 0.0001
"""Seconds for which a descriptor is taken for what it was, since to ask costs a tenth of an `emit`."""
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # an app may have set SIGPIPE to its default, which kills


class Session:
    def __init__(self, ring: Ring, greeting: dict[str, Any]) -> None:
        self.ring = ring
        self.reported = 0
        """Drops the agent knows of."""
        self._greeting = greeting
        self._identity: tuple[int, int] | None = None
        self._looked_at = 0.0
        self.end()

    def end(self) -> None:
        """The connection is gone."""
        self.rest = b""
        self.full = False
        """Whether the socket takes no more, or enough is under way."""
        self.heard = False
        """Whether the agent has acknowledged anything on this connection."""
        self._acks = b""
        self._read_at = READ_EVERY
        self.told = 0
        """Drops that this connection's greeting has told of."""
        self._report_at = 0.0
        self.ring.rewind()

    def begin(self, sock: socket.socket) -> None:
        """There is a new connection: the greeting is what it gets first."""
        ring = self.ring
        self._identity = _identity(sock)
        self._looked_at = time.monotonic()
        ring.rewind()
        self.told = ring.dropped
        self._report_at = time.monotonic() + REPORT_EVERY
        greeting = {"forwarder": 1, **self._greeting, "session": ring.session, "first": ring.first, "dropped": self.told}
        self.rest = json.dumps(greeting).encode() + b"\n"

    @property
    def waiting(self) -> bool:
        return bool(self.rest or self.ring or self.ring.dropped > self.reported)

    def exchange(self, sock: socket.socket, most: int, final: bool) -> None:
        """Read if it is time to, or `final`; send until nothing waits, the socket takes no more or `most` bytes are sent.

        Raises OSError when the connection is gone, or makes no sense.
        """
        if time.monotonic() - self._looked_at > TRUSTED:
            if _identity(sock) != self._identity:
                raise OSError(errno.EBADF, "the app has closed the descriptor")
            self._looked_at = time.monotonic()
        if final or self.full or self.ring.unacknowledged >= self._read_at:
            self._receive(sock)
        ring, data = self.ring, self.rest
        try:
            while most > 0 and (data or (ring.unsent and (data := ring.take(BATCH)))):
                sent = sock.send(data, _NO_SIGNAL)
                most -= sent
                data = data[sent:]
            self.full = ring.held_back
        except BlockingIOError:
            self.full = True
        self.rest = data

    def let_go(self, sock: socket.socket) -> None:
        """Close the socket, unless its descriptor has become something else."""
        with contextlib.suppress(OSError):
            sock.close() if _identity(sock) == self._identity else sock.detach()

    def _receive(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the agent has closed the connection")
            data = self._acks + data
            whole = len(data) & ~7
            self._acks = data[whole:]
            if whole:
                try:
                    self.ring.acknowledge(int.from_bytes(data[whole - 8 : whole], "big"))
                except ValueError as error:
                    raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
                self.heard = True
                self.reported = self.told
        self._read_at = self.ring.unacknowledged + READ_EVERY

    def should_report(self, final: bool) -> bool:
        """Whether to greet again for telling the agent of drops: nothing waits to be sent, and the last time was a while ago."""
        if self.told == self.ring.dropped or self.full or self.rest or not self.heard:
            return False
        return final or time.monotonic() >= self._report_at


def _identity(sock: socket.socket) -> tuple[int, int] | None:
    try:
        status = os.fstat(sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino
