"""A logging handler that hands records to the agent over its local socket: it never blocks the app, never raises into it, and
keeps every record until the agent has acknowledged it.

A record is formatted, put into a ring that is bounded in bytes (`backlog`, see `ring`) and sent without blocking. What the
agent has not acknowledged stays in the ring; after a reconnect it is sent again under the same numbers, so that the agent
knows what it has already. Drops are counted in `dropped` and told to the agent in the greeting.

Nobody waits for anybody (see `turns`): a thread that finds another one sending leaves its record to it, and sends no more than
`TURN` for the others. What they have left is bounded by `backlog` too, and by twice as much for records to keep; beyond that the
newest are dropped. For what waits while the app is idle there is one helper thread, which ends by itself once nothing has waited
for a while. A forked child starts with an empty ring, a session and a connection of its own. Standard library only, Python 3.8
and later.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import logging.handlers
import os
import socket
import sys
import threading
import time
from collections import deque
from typing import Any

from forwarder.formatter import JSONFormatter, one_line, rescue
from forwarder.ring import Kept, Losses, Ring
from forwarder.session import BATCH, Session
from forwarder.settings import greeting_of, parse_level, parse_size
from forwarder.turns import Helper, Turns, count_calls, watch_forks

DEFAULT_ADDRESS = "/run/forwarder/forwarder.sock"
SEND_BUFFER = 4 * 1024 * 1024
"""Asked for; the kernel gives what net.core.wmem_max allows."""
TURN = 256 * 1024
"""At most so much, and a batch, one `emit` sends of what others have left in the ring; the next one, or the helper, goes on."""
RETRY_FULL_EVERY = 32
TICK = 0.05
TICK_WHEN_FULL = 0.01
LINGER = 5.0
DEEPEST = 2
"""One record may be logged while another one is being logged in the same thread (a signal handler, a `__str__`), no more."""
CROWD = 100
"""Records that other threads have left behind from which on a thread lets them go first."""


class _Nesting(threading.local):
    depth = 0


_nesting = _Nesting()


class SocketHandler(logging.handlers.SocketHandler):
    """Sends records to the agent listening on the Unix socket `address`, as JSON lines.

    `address` is by default that of the environment's FORWARDER_SOCKET, or /run/forwarder/forwarder.sock; `app` that of
    FORWARDER_APP, or the one the agent has for that socket. `topic` and `key` are asked of the agent. `schema` is the layout
    ("logstash", "ecs", "otel") unless a formatter is set; the text of a formatter that writes no JSON object becomes the
    message in that layout. `backlog` bounds the ring, in bytes or as "8MiB"; what it has no room for is the `drop`, "oldest" or
    "newest", of what waits, records of `keep_level` and above last. `flush` waits until everything is acknowledged, `close` does
    and then ends the connection, each `close_timeout` seconds at most; a closed handler opens again when used.

    As in the base class: `retryTime` is when the next attempt to connect is due (None: at once), `retryStart`, `retryMax` and
    `retryFactor` its pauses in seconds; with `closeOnError` an error reconnects instead of being shown. A number as second
    argument is a TCP port. Raises ValueError for settings the agent would refuse.
    """

    def __init__(
        self,
        address: str | None = None,
        app: str | int | None = None,
        *,
        topic: str | None = None,
        key: str | None = None,
        schema: str = "logstash",
        backlog: str | int = "8MiB",
        close_timeout: float = 2.0,
        drop: str = "oldest",
        keep_level: str | int = "WARNING",
    ) -> None:
        port = app if isinstance(app, int) else None
        address = os.fspath(address or os.environ.get("FORWARDER_SOCKET") or DEFAULT_ADDRESS)
        super().__init__(address, port)  # as in the base class, no port means a Unix socket
        self.app = (app if isinstance(app, str) else None) or os.environ.get("FORWARDER_APP") or None
        self.topic = topic
        self.key = key
        self.backlog = parse_size(backlog)
        self.close_timeout = float(close_timeout)
        if drop not in ("oldest", "newest"):
            raise ValueError(f"drop is {drop!r}; allowed are oldest and newest")
        self.drop = drop
        self.keep_level = parse_level(keep_level)
        self.retryStart = 0.05
        self.retryMax = 0.25  # to ask costs 20 microseconds, and records wait in the ring meanwhile
        self._greeting = greeting_of(app=self.app, topic=topic, key=key)
        self._layout = JSONFormatter(schema)
        self.formatter = self._layout
        self._retry_full_every = max(1, min(RETRY_FULL_EVERY, self.backlog // BATCH))
        self._retry_at: float | None = None
        self._starting = threading.RLock()
        self._start()
        watch_forks(self)

    _session: Session

    def _start(self) -> None:
        """Begin as a new process: nothing waits, nothing is connected."""
        self._turns = Turns(self._recover)
        # Any thread appends to the inbox and adds to _arrived, in bytes; all else is touched by the one that is at work. A record
        # carries what _arrived was with it, and that becomes _taken: if two threads at once, or an interrupt, have left _arrived
        # wrong, their difference is right again once a later record has been taken.
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._arrived = self._taken = 0
        self._losses = Losses()
        if self.sock is not None:
            self._session.let_go(self.sock)
            self.sock = None
        self._session = Session(Ring(self.backlog, self.drop), self._greeting)
        self._helper: Helper | None = None
        self._quiet = 0.0
        self._forking = False
        self._given_up: tuple[int, int] | None = None
        self._ending = False
        self._closed = False
        self._skipped = 0
        self._pause = 0.0
        self._retry_at = None
        self._pid = os.getpid()

    def _drop_connection(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            self._session.let_go(sock)
        self._skipped = 0
        if self._session.heard:
            self._pause = 0.0
        self._session.end()

    @property
    def dropped(self) -> int:
        """Records lost in this process: the ring was full, or they could not even be formatted as an error."""
        return self._session.ring.dropped

    @property
    def _waiting(self) -> bool:
        return bool(self._inbox or self._losses.any or self._session.waiting)

    # The app's side

    def handle(self, record: logging.LogRecord) -> Any:
        """As the base class, without its lock: what it protects is formatting, and a formatter may log."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        depth = _nesting.depth
        if depth >= DEEPEST:
            depth = count_calls(SocketHandler.emit, sys._getframe(1))  # an interrupt may have left it wrong
            if depth >= DEEPEST:
                self._losses.add()
                return
        try:
            _nesting.depth = depth + 1
            keep = isinstance(record.levelno, int) and record.levelno >= self.keep_level
            try:
                line = self.makePickle(record)
            except Exception as error:
                line = rescue(self._layout, record, error)
                self.send(Kept(line) if keep else line)
                raise
            self.send(Kept(line) if keep else line)
        except Exception:
            self.handleError(record)
        finally:
            _nesting.depth = depth

    def makePickle(self, record: logging.LogRecord) -> bytes:
        """The record as it travels: one line."""
        return one_line(self._layout, record, self.format(record), self.formatter)

    def send(self, s: bytes) -> None:  # type: ignore[override]  # the base class's Buffer has no name before Python 3.12
        """Put one line into the ring and send what the socket takes at once."""
        if os.getpid() != self._pid:
            with self._starting:  # forked without telling Python, and with threads of its own by now
                if os.getpid() != self._pid:
                    self._start()
        size = len(s)
        if size <= self.backlog and (not self._inbox or self._is_room_for(s)):
            self._arrived = end = self._arrived + size
            self._inbox.append((end, s))
        else:
            self._losses.add()
        self._closed = False
        self._pump()

    def _is_room_for(self, s: bytes) -> bool:
        most = 2 * self.backlog - len(s) if type(s) is Kept else self.backlog - len(s)
        if len(self._inbox) >= CROWD or self._arrived - self._taken > most:
            time.sleep(0)  # the thread at work takes records faster than others bring them, if it gets to run
        return self._arrived - self._taken <= most

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.closeOnError or self.sock is None:
            with contextlib.suppress(Exception):  # the base class lets through what a broken sys.stderr raises
                logging.Handler.handleError(self, record)
        else:
            self._turns.take(self._drop_connection)

    def flush(self) -> None:
        """Wait until everything is acknowledged, `close_timeout` seconds at most."""
        if self._closed or os.getpid() != self._pid or (self._ending and self._given_up == self._position()):
            return
        end = time.monotonic() + self.close_timeout
        while self._waiting:
            self._pump(final=True)
            left = end - time.monotonic()
            if left <= 0:
                self._given_up = self._position()
                return
            if self._waiting:
                self._wait(left)

    def close(self) -> None:
        """`flush`, unless one has just been in vain, and end the connection."""
        if not self._closed and self._given_up != self._position():
            self.flush()
        self._closed = True
        self._stop_helper()
        self._turns.take(self._drop_connection)
        logging.Handler.close(self)

    def _position(self) -> tuple[int, int]:
        ring = self._session.ring
        return ring.first, len(ring) + len(self._inbox)

    # Sending. It never waits for anything, and runs in one thread at a time.

    def _pump(self, final: bool = False) -> None:
        """Get as much of the ring to the agent as can be now; `final` for all of it, looking for all acknowledgements."""
        if self._turns.take(self._turn, final) and self._inbox:
            self._turns.take(self._turn, final)  # what another thread left meanwhile; then it is for the next one, or the helper
        if self._helper is None:
            self._see_to_helper()

    def _recover(self) -> None:
        """After an exception from outside, in the middle: nobody knows what has been sent."""
        self._drop_connection()
        self._session.ring.recount()

    def _turn(self, final: bool) -> None:
        inbox, session = self._inbox, self._session
        ring = session.ring
        for _ in range(len(inbox)):  # not until it is empty: other threads may be filling it as fast
            end, record = inbox[0]
            ring.put(record)
            inbox.popleft()
            self._taken = end
        if self._losses.any:
            ring.dropped += self._losses.take()
        if session.full and not final:
            self._skipped += 1
            if self._skipped % self._retry_full_every:
                ring.make_room()
                return
        for _ in (1, 2):  # once more when a connection that worked is gone, or to tell of drops
            if self.sock is None:
                self.createSocket()
                if self.sock is None or self._session is not session:  # a signal handler may have forked
                    break
            try:
                session.exchange(self.sock, ring.limit + BATCH if final else TURN, final)
            except OSError:
                worked = session.heard
                self._drop_connection()
                self._put_off()
                if not worked:
                    break
                self._retry_at = None
            else:
                if session.told == ring.dropped or not session.should_report(final):
                    break
                self._drop_connection()
        if ring.size > ring.limit:
            ring.make_room()

    # Connecting

    @property
    def retryTime(self) -> float | None:
        """When the next attempt to connect is due, as time.time() has it; None if at once."""
        return None if self._retry_at is None else time.time() + self._retry_at - time.monotonic()

    @retryTime.setter
    def retryTime(self, value: float | None) -> None:
        self._retry_at = None if value is None else time.monotonic() + value - time.time()

    def makeSocket(self, timeout: float = 1) -> socket.socket:
        """A connected socket; a Unix socket connects at once or not at all. Raises OSError."""
        family = socket.AF_UNIX if self.port is None else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            result = sock.connect_ex(self.address)
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, os.strerror(result))
        except BaseException:
            sock.close()
            raise
        return sock

    def createSocket(self) -> None:
        """Connect and prepare the greeting, unless the last failure was too short ago."""
        now = time.monotonic()
        if self._retry_at is not None and now < self._retry_at:
            return
        session = self._session
        try:
            sock = self.makeSocket()
            sock.setblocking(False)
        except OSError:
            self._put_off()
            return
        session.begin(sock)
        if self._session is not session:  # a signal handler has forked: it is the parent's
            session.let_go(sock)
            return
        self._retry_at = None
        self.sock = sock

    def _put_off(self) -> None:
        """The next attempt is due later, each time by more; only an acknowledgement starts that over."""
        self._pause = min(self._pause * self.retryFactor, self.retryMax) if self._pause else self.retryStart
        self._retry_at = time.monotonic() + self._pause

    def _wait(self, seconds: float) -> None:
        """A moment, or until the next attempt to connect is due. Not with `select.poll`, which eventlet takes away."""
        due = 0.0 if self._retry_at is None else self._retry_at - time.monotonic()
        time.sleep(min(seconds, max(0.001, min(due, TICK))))

    # While the app is idle, and around forks

    def _see_to_helper(self) -> None:
        if self._helper is None and self._waiting and not self._closed and not self._forking:
            self._helper = helper = Helper(self._help_along, self._helper_ended)
            self._quiet = 0.0
            try:
                helper.start(self._tick)
            except RuntimeError:  # none to be had here, or at interpreter exit: emit, flush and close do without
                self._helper = None

    def _stop_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.stop()

    @property
    def _tick(self) -> float:
        return TICK_WHEN_FULL if self._session.full else TICK

    def _help_along(self, helper: Helper) -> float | None:
        """Read acknowledgements, connect and send; the seconds until the next time, None once nothing has waited for a while."""
        if self._helper is not helper:
            return None
        self._quiet = 0.0 if self._waiting else self._quiet + TICK
        if not self._quiet:
            self._turns.relieve()
            self._pump(final=True)
        return self._tick if self._quiet < LINGER else None

    def _helper_ended(self, helper: Helper) -> None:
        if self._helper is helper:
            self._helper = None
            self._see_to_helper()

    def _before_fork(self) -> bool:
        self._forking = True
        had_one = self._helper is not None
        self._stop_helper()
        return had_one

    def _in_parent(self) -> None:
        self._forking = False
        # From 3.13 on the warning of threads comes after this: what lacks its acknowledgement alone waits for the next record.
        if self._session.ring.unsent or sys.version_info < (3, 13):
            self._see_to_helper()

    def _in_child(self) -> None:
        self._start()

    def _at_end(self) -> None:
        self.flush()
        self._ending = True  # the same will not be waited for twice
