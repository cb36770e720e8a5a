"""logging handlers that hand records to the agent over its local socket: they never block the app, never raise into it, and
keep every record until the agent has acknowledged it.

A record is formatted, put into a ring that is bounded in bytes (`backlog`) and sent without blocking. What the agent has not
acknowledged stays in the ring; after a reconnect it is sent again under the same numbers, so that the agent knows what it has
already. A record gets its number when it is first sent, so the numbers never have a gap. When the ring is full the oldest
records not yet sent are dropped: those sent are most likely safe. Drops are counted in `dropped` and told to the agent.

Nobody waits for anybody: a thread that finds another one sending leaves its record to it. `emit` does all the work there is;
for what waits while the app is idle there is one helper thread, which ends by itself once nothing has waited for a while.
A forked child starts with an empty ring, a session and a connection of its own. Standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import _thread
import errno
import json
import logging
import logging.handlers
import os
import re
import select
import socket
import threading
import time
import weakref
from collections import deque
from typing import Any

from forwarder.formatter import JSONFormatter, LogstashFormatter, LogstashFormatterV1, dumps

DEFAULT_ADDRESS = "/run/forwarder/forwarder.sock"
SEND_BUFFER = 4 * 1024 * 1024
"""Asked for; the kernel gives what net.core.wmem_max allows."""
BATCH = 64 * 1024
READ_EVERY = 64
"""Acknowledgements are looked for when so many more records have been sent; in between, and when idle, the helper does it."""
RETRY_FULL_EVERY = 32
TICK = 0.05
LINGER = 5.0
REPORT_EVERY = 1.0
DEEPEST = 2
"""One record may be logged while another one is being logged in the same thread (a signal handler, a `__str__`), no more."""

_ONE_LINE = (JSONFormatter, LogstashFormatter, LogstashFormatterV1)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # an app may have set SIGPIPE to its default, which kills
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": 1 << 20, "gb": 10**9, "gib": 1 << 30}
_handlers: weakref.WeakSet[SocketHandler] = weakref.WeakSet()
_nesting = threading.local()


class SocketHandler(logging.handlers.SocketHandler):
    """Sends records to the agent listening on the Unix socket `address`, as JSON lines.

    `address` is by default that of the environment's FORWARDER_SOCKET, or /run/forwarder/forwarder.sock; `app` that of
    FORWARDER_APP, or the one the agent has for that socket. `topic` and `key` are asked of the agent. `schema` is the layout
    ("logstash", "ecs", "otel") unless a formatter is set; the text of a formatter that writes no JSON object becomes the
    message in that layout. `backlog` bounds the ring, in bytes or as "8MiB". `flush` waits until everything is acknowledged,
    `close` does and then ends the connection, each `close_timeout` seconds at most; a closed handler opens again when used.

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
    ) -> None:
        port = app if isinstance(app, int) else None
        address = os.fspath(address or os.environ.get("FORWARDER_SOCKET") or DEFAULT_ADDRESS)
        super().__init__(address, port)  # type: ignore[arg-type]  # as in the base class, no port means a Unix socket
        self.app = (app if isinstance(app, str) else None) or os.environ.get("FORWARDER_APP") or None
        self.topic = topic
        self.key = key
        self.backlog = parse_size(backlog)
        self.close_timeout = float(close_timeout)
        self.retryStart = 0.05
        self.retryMax = 2.0
        self.dropped = 0
        self._greeting_fields = {name: value for name in ("app", "topic", "key") if (value := getattr(self, name)) is not None}
        for name, value in self._greeting_fields.items():
            if not isinstance(value, str) or not value or not value.isprintable():
                raise ValueError(f"{name} is {value!r}; it must be a printable string, and not empty")
        self._layout = JSONFormatter(schema)
        self.formatter = self._layout
        self._retry_at: float | None = None
        self._start()
        _handlers.add(self)

    # The ring. Records go from _inbox to _fresh, from there to _sent when they get a number, and leave when acknowledged;
    # a lost connection makes _again of _sent. Only _inbox is touched by threads that do not own _busy.

    def _start(self) -> None:
        """Begin as a new process: nothing waits, nothing is connected."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._busy = False
        self._inbox: deque[bytes] = deque()
        self._fresh: deque[bytes] = deque()
        self._again: deque[bytes] = deque()
        self._sent: deque[bytes] = deque()
        self._size = 0  # of the three above
        self._helper: object | None = None
        self._given_up: tuple[int, int] | None = None
        self._closed = False
        self._drop_connection()
        self._retry_at = None
        self._pause = 0.0
        self._start_session(0)

    def _start_session(self, unreported: int) -> None:
        self._session = os.urandom(16).hex()
        self._acked = 0  # the number of the first record in _sent, or else _again
        self._dropped_before = self.dropped - unreported
        self._reported = 0

    def _drop_connection(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()
        self._rest = b""  # of what the socket did not take
        self._acks = b""
        self._full = False
        self._skipped = 0
        self._heard = False
        self._read_at = READ_EVERY
        self._told = 0
        self._again.extendleft(reversed(self._sent))
        self._sent.clear()

    @property
    def _waiting(self) -> bool:
        return bool(self._sent or self._fresh or self._again or self._inbox or self._rest or self._unreported)

    @property
    def _unreported(self) -> int:
        return self.dropped - self._dropped_before - self._reported

    # The app's side

    def handle(self, record: logging.LogRecord) -> Any:
        """As the base class, without its lock: what it protects is formatting, and a formatter may log."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        depth = getattr(_nesting, "depth", 0)
        if depth >= DEEPEST:
            with self._lock:
                self.dropped += 1
            return
        try:
            _nesting.depth = depth + 1
            self.send(self.makePickle(record))
        except Exception:
            self.handleError(record)
        finally:
            _nesting.depth = depth

    def makePickle(self, record: logging.LogRecord) -> bytes:
        """The record as it travels: one line."""
        text = self.format(record)
        if type(self.formatter) not in _ONE_LINE or "\n" in text:
            text = self._as_json(record, text)
        return f"{text}\n".encode("utf-8", "replace")

    def send(self, s: bytes) -> None:
        """Put one line into the ring and send what the socket takes at once."""
        if os.getpid() != self._pid:
            self._start()
        self._inbox.append(s)
        self._closed = False
        self._pump()

    def handleError(self, record: logging.LogRecord) -> None:
        if self.closeOnError and self.sock:
            with self._lock:
                if not self._busy:
                    self._drop_connection()
        else:
            logging.Handler.handleError(self, record)

    def flush(self) -> None:
        """Wait until everything is acknowledged, `close_timeout` seconds at most."""
        if self._closed or os.getpid() != self._pid:
            return
        end = time.monotonic() + self.close_timeout
        while self._waiting:
            self._pump(final=True)
            left = end - time.monotonic()
            if left <= 0:
                self._given_up = self._position()
                return
            if self._waiting:
                self._wait(min(left, self._until_retry()))

    def close(self) -> None:
        """`flush`, unless one has just been in vain, and end the connection."""
        if not self._closed and self._given_up != self._position():
            self.flush()
        with self._lock:
            if not self._busy:
                self._drop_connection()
            self._helper = None
            self._closed = True
        logging.Handler.close(self)

    def _position(self) -> tuple[int, int]:
        return self._acked, len(self._sent) + len(self._again) + len(self._fresh) + len(self._inbox)

    def _as_json(self, record: logging.LogRecord, text: str) -> str:
        """A JSON object as one line; any other text as the message of a record."""
        if text[:1] == "{":
            try:
                value = json.loads(text, parse_constant=_no_constant)
            except (ValueError, RecursionError):
                pass
            else:
                return dumps(value) if "\n" in text or "\r" in text else text
        return dumps(self._layout.fields(record, text))

    # Sending. Everything below runs in one thread at a time, the one that has set _busy; it never waits for anything.

    def _pump(self, final: bool = False) -> None:
        """Get as much of the ring to the agent as can be now; `final` also looks for all acknowledgements."""
        for _ in range(2):  # again for what another thread left meanwhile, and then leave it to the next one or the helper
            if self._busy:
                return
            with self._lock:
                if self._busy:  # this thread, interrupted by a signal handler or a destructor that logs
                    return
                try:
                    self._busy = True
                    self._turn(final)
                except BaseException:
                    # An exception from outside, in the middle: nobody knows what has been counted. New numbers, so that
                    # no record is taken for one that has arrived already.
                    self._drop_connection()
                    self._size = sum(map(len, self._again)) + sum(map(len, self._fresh))
                    self._start_session(self._unreported)
                    raise
                finally:
                    self._busy = False
            if not self._inbox:
                return

    def _turn(self, final: bool) -> None:
        inbox, fresh = self._inbox, self._fresh
        while inbox:
            self._size += len(inbox[0])
            fresh.append(inbox[0])
            inbox.popleft()
        if self._full and not final:
            self._skipped += 1
            if self._skipped % RETRY_FULL_EVERY:
                if self._size > self.backlog:
                    self._make_room()
                return
        for _ in range(2):  # once more when a connection that worked is gone
            if self.sock is None:
                self.createSocket()
                if self.sock is None:
                    break
            worked = self._heard
            try:
                if final or self._full or len(self._sent) >= self._read_at:
                    self._receive(self.sock)
                    worked = self._heard
                self._transmit(self.sock)
            except OSError:
                self._drop_connection()
                self._put_off()
                if worked:
                    self._retry_at = None
                    continue
            else:
                if self._unreported and self._may_report(final):
                    self._drop_connection()
                    continue
            break
        if self._size > self.backlog:
            self._make_room()
        if self._helper is None and self._waiting:
            self._start_helper()

    def _transmit(self, sock: socket.socket) -> None:
        """Send until nothing waits or the socket takes no more. Raises OSError when the connection is gone."""
        fresh, again, sent = self._fresh, self._again, self._sent
        data = self._rest
        try:
            while True:
                if not data:
                    if again:
                        data = self._take(again)
                    elif len(fresh) == 1:
                        data = fresh[0]
                        sent.append(data)
                        fresh.popleft()
                    elif fresh:
                        data = self._take(fresh)
                    else:
                        self._full = False
                        break
                data = data[sock.send(data, _NO_SIGNAL) :]
        except BlockingIOError:
            self._full = True
        self._rest = data

    def _take(self, queue: deque[bytes]) -> bytes:
        """The next records of `queue` in one piece; they count as sent, and have their numbers, from now on."""
        batch: list[bytes] = []
        size = 0
        while queue and (not batch or size + len(queue[0]) <= BATCH):
            size += len(queue[0])
            batch.append(queue[0])
            self._sent.append(queue[0])
            queue.popleft()
        return b"".join(batch)

    def _receive(self, sock: socket.socket) -> None:
        """Read the acknowledgements there are. Raises OSError when the connection is gone, or makes no sense."""
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            self._read_at = len(self._sent) + READ_EVERY
            return
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the agent has closed the connection")
        data = self._acks + data
        whole = len(data) & ~7
        self._acks = data[whole:]
        if whole:
            self._acknowledge(int.from_bytes(data[whole - 8 : whole], "big"))
        self._read_at = len(self._sent) + READ_EVERY

    def _acknowledge(self, number: int) -> None:
        sent = self._sent
        if number > self._acked + len(sent) + len(self._again):
            raise ConnectionAbortedError(errno.ECONNABORTED, "the agent acknowledges what was not sent")
        while self._acked < number and sent:
            self._acked += 1
            self._size -= len(sent.popleft())
        self._heard = True
        self._pause = 0.0
        self._reported = self._told

    def _make_room(self) -> None:
        """Drop the oldest records that have not been sent until the ring is within its bound."""
        fresh = self._fresh
        if fresh and len(fresh[-1]) > self.backlog:  # it would push out all others, and then itself
            self._size -= len(fresh.pop())
            self.dropped += 1
        while fresh and self._size > self.backlog:
            self._size -= len(fresh.popleft())
            self.dropped += 1

    def _may_report(self, final: bool) -> bool:
        """Whether to greet again for telling the agent of drops: nothing waits to be sent, and the last time was a while ago."""
        if self._told == self.dropped - self._dropped_before or self._full or not self._heard:
            return False
        return final or time.monotonic() >= self._report_at

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
        try:
            self.sock = self.makeSocket()
            self.sock.setblocking(False)
        except OSError:
            self._put_off()
            return
        self._retry_at = None
        self._report_at = now + REPORT_EVERY
        self._told = self.dropped - self._dropped_before
        greeting = {"forwarder": 1, **self._greeting_fields, "session": self._session, "first": self._acked, "dropped": self._told}
        self._rest = json.dumps(greeting).encode() + b"\n"

    def _put_off(self) -> None:
        """The next attempt is due later, each time by more; only an acknowledgement starts that over."""
        self._pause = min(self._pause * self.retryFactor, self.retryMax) if self._pause else self.retryStart
        self._retry_at = time.monotonic() + self._pause

    # While the app is idle

    def _start_helper(self) -> None:
        """As a bare thread: starting one of `threading` waits for it, and takes locks that a signal handler may not take."""
        self._helper = token = object()
        try:
            _thread.start_new_thread(self._help, (token,))
        except RuntimeError:  # none to be had here, or at interpreter exit: emit, flush and close do without
            self._helper = None

    def _help(self, token: object) -> None:
        """Read acknowledgements, connect and send for an app that does not log; asleep nearly always."""
        quiet = 0
        while quiet < LINGER / TICK:
            time.sleep(TICK)
            if self._helper is not token:
                return
            if not self._waiting:
                quiet += 1
                continue
            quiet = 0
            self._pump(final=True)
            if self._full:
                self._wait(0.5)
        with self._lock:
            if self._helper is token:
                self._helper = None
                if self._waiting:
                    self._start_helper()

    def _wait(self, seconds: float) -> None:
        """Until there may be something to read, or room to send, or `seconds` are over."""
        sock = self.sock
        try:
            if sock is None:
                time.sleep(max(seconds, 0.0))
                return
            poll = select.poll()
            poll.register(sock, select.POLLIN | (select.POLLOUT if self._full else 0))
            poll.poll(max(seconds, 0.001) * 1000)
        except (OSError, ValueError):  # closed by another thread
            time.sleep(0.001)

    def _until_retry(self) -> float:
        if self._retry_at is None:
            return TICK
        return min(max(self._retry_at - time.monotonic(), 0.001), TICK)


class KafkaLoggingHandler(SocketHandler):
    """Stands in for the class of this name in taykey/python-kafka-logging: records travel through the agent.

    `topic` and `key` are asked of the agent, which allows what its socket's `allow_topics` has. `hosts_list` and other options
    of a Kafka client are accepted and have no effect: the agent knows the brokers. Records of the logger `kafka` and those
    below it are left out, as there. The options of `SocketHandler` may be given by name.
    """

    def __init__(self, hosts_list: Any, topic: str, key: Any = None, timeout_secs: Any = None, **options: Any) -> None:
        self.hosts_list = hosts_list
        self.timeout_secs = timeout_secs
        if isinstance(key, (int, float)):  # the older signature: (hosts_list, topic, timeout_secs)
            key, self.timeout_secs = None, key
        if isinstance(key, bytes):
            key = key.decode("utf-8", "replace")
        ours = {name: options[name] for name in ("address", "app", "schema", "backlog", "close_timeout") if name in options}
        super().__init__(ours.pop("address", None), ours.pop("app", None), topic=topic, key=key or None, **ours)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "kafka" and not record.name.startswith("kafka."):
            super().emit(record)


def parse_size(value: str | int) -> int:
    """Bytes of 8388608, "8388608" or "8MiB". Raises ValueError."""
    found = re.match(r"\s*(\d+)\s*([a-z]*)\s*\Z", str(value).lower())
    if not found or found[2] not in _UNITS or not int(found[1]):
        raise ValueError(f"{value!r} is no size; write bytes as a number, or like 8MiB")
    return int(found[1]) * _UNITS[found[2]]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _start_in_child() -> None:
    for handler in list(_handlers):
        handler._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_in_child)
