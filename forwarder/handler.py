"""logging handlers that hand records to the agent over its local socket: they never block the app, never raise into it, and
keep every record until the agent has acknowledged it.

A record is formatted, put into a ring that is bounded in bytes (`backlog`, see `ring`) and sent without blocking. What the
agent has not acknowledged stays in the ring; after a reconnect it is sent again under the same numbers, so that the agent
knows what it has already. Drops are counted in `dropped` and told to the agent in the greeting.

Nobody waits for anybody: a thread that finds another one sending leaves its record to it, and sends no more than `TURN` for
the others. For what waits while the app is idle there is one helper thread, which ends by itself once nothing has waited for
a while. A forked child starts with an empty ring, a session and a connection of its own. Standard library only, Python 3.8
and later.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import json
import logging
import logging.handlers
import os
import re
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

from forwarder.formatter import JSONFormatter, LogstashFormatter, LogstashFormatterV1, dumps, repr_of, text_of
from forwarder.ring import Ring

DEFAULT_ADDRESS = "/run/forwarder/forwarder.sock"
SEND_BUFFER = 4 * 1024 * 1024
"""Asked for; the kernel gives what net.core.wmem_max allows."""
BATCH = 64 * 1024
TURN = 256 * 1024
"""At most so much, and a batch, one `emit` sends of what others have left in the ring; the next one, or the helper, goes on."""
READ_EVERY = 64
"""Acknowledgements are looked for when so many more records have been sent; in between, and when idle, the helper does it."""
RETRY_FULL_EVERY = 32
TICK = 0.05
TICK_WHEN_FULL = 0.01
LINGER = 5.0
REPORT_EVERY = 1.0
DEEPEST = 2
"""One record may be logged while another one is being logged in the same thread (a signal handler, a `__str__`), no more."""
LONGEST = {"app": 200, "topic": 249, "key": 1024}
"""Characters, as the agent has it."""

_ONE_LINE = (JSONFormatter, LogstashFormatter, LogstashFormatterV1)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # an app may have set SIGPIPE to its default, which kills
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": 1 << 20}
_UNITS.update({"g": 10**9, "gb": 10**9, "gib": 1 << 30})
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
        super().__init__(address, port)  # as in the base class, no port means a Unix socket
        self.app = (app if isinstance(app, str) else None) or os.environ.get("FORWARDER_APP") or None
        self.topic = topic
        self.key = key
        self.backlog = parse_size(backlog)
        self.close_timeout = float(close_timeout)
        self.retryStart = 0.05
        self.retryMax = 0.25  # to ask costs 20 microseconds, and records wait in the ring meanwhile
        self._greeting_fields = {name: value for name in LONGEST if (value := getattr(self, name)) is not None}
        for name, value in self._greeting_fields.items():
            if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST[name]:
                raise ValueError(f"{name} is {value!r}; it must be a printable string of 1 to {LONGEST[name]} characters")
        self._layout = JSONFormatter(schema)
        self.formatter = self._layout
        self._retry_full_every = max(1, min(RETRY_FULL_EVERY, self.backlog // BATCH))
        self._retry_at: float | None = None
        self._start()
        _handlers.add(self)

    def _start(self) -> None:
        """Begin as a new process: nothing waits, nothing is connected."""
        self._pid = os.getpid()
        self._at_work: dict[None, tuple[int, object]] = {}
        self._inbox: deque[bytes] = deque()  # appended to by any thread; all else is touched by the one that is at work
        self._ring = Ring(self.backlog)
        self._helper: _Helper | None = None
        self._forking = False
        self._given_up: tuple[int, int] | None = None
        self._closed = False
        self._reported = 0  # drops the agent knows of
        self._drop_connection()
        self._retry_at = None
        self._pause = 0.0

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
        self._ring.rewind()

    @property
    def dropped(self) -> int:
        """Records lost in this process: the ring was full, or they could not even be formatted as an error."""
        return self._ring.dropped

    @property
    def _waiting(self) -> bool:
        return bool(self._inbox or self._rest or self._ring or self._ring.dropped > self._reported)

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
            depth = _count_calls(SocketHandler.emit, sys._getframe(1))  # an interrupt may have left it wrong
            if depth >= DEEPEST:
                self._inbox.append(b"")
                return
        try:
            _nesting.depth = depth + 1
            try:
                line = self.makePickle(record)
            except Exception as error:
                self.send(self._in_spite_of(error, record))
                raise
            self.send(line)
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

    def send(self, s: bytes) -> None:  # type: ignore[override]  # the base class's Buffer has no name before Python 3.12
        """Put one line into the ring and send what the socket takes at once."""
        if os.getpid() != self._pid:
            self._start()
        self._inbox.append(s)
        self._closed = False
        self._pump()

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.closeOnError or self.sock is None:
            with contextlib.suppress(RecursionError):  # the only one the base class lets through
                logging.Handler.handleError(self, record)
        else:
            self._alone(self._drop_connection)

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
                self._wait(left)

    def close(self) -> None:
        """`flush`, unless one has just been in vain, and end the connection."""
        if not self._closed and self._given_up != self._position():
            self.flush()
        self._closed = True
        self._stop_helper()
        self._alone(self._drop_connection)
        logging.Handler.close(self)

    def _position(self) -> tuple[int, int]:
        return self._ring.first, len(self._ring) + len(self._inbox)

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

    def _in_spite_of(self, error: Exception, record: logging.LogRecord) -> bytes:
        """A line for a record that could not be formatted, with what went wrong in `logging_error`; empty if there is no way."""
        try:
            text = text_of(record.msg)
            if record.args:
                text = f"{text} {repr_of(record.args)}"
            noted = logging.makeLogRecord({**record.__dict__, "logging_error": f"{type(error).__name__}: {text_of(error)}"})
            return f"{dumps(self._layout.fields(noted, text))}\n".encode("utf-8", "replace")
        except Exception:
            return b""

    # Sending. It never waits for anything, and runs in one thread at a time.

    def _pump(self, final: bool = False) -> None:
        """Get as much of the ring to the agent as can be now; `final` for all of it, looking for all acknowledgements."""
        for _ in range(2):  # again for what another thread left meanwhile, and then leave it to the next one or the helper
            if not self._alone(self._turn, final) or not self._inbox:
                break
        self._see_to_helper()

    def _alone(self, work: Callable[..., None], *args: Any) -> bool:
        """Do `work`, unless a thread is at work already; whether it was done.

        Who is at work stands in a dict, since `setdefault` is atomic, waits for nobody, and can be put right: an interrupt at
        the wrong moment, after which a lock would stay taken for ever, is found out by the stack.
        """
        mine = (_thread.get_ident(), object())
        before = self._at_work.setdefault(None, mine)
        if before is not mine:
            if before[0] != mine[0] or self._is_at_work(sys._getframe(1)):
                return False  # another thread; or this one, interrupted by a signal handler or a destructor that logs
            self._recover()
        try:
            work(*args)
        except BaseException:
            self._recover()
            raise
        finally:
            self._at_work.clear()
        return True

    def _is_at_work(self, frame: FrameType | None) -> bool:
        return _count_calls(SocketHandler._alone, frame, self) > 0

    def _recover(self) -> None:
        """After an exception from outside, in the middle: nobody knows what has been sent."""
        self._drop_connection()
        self._ring.recount()

    def _relieve(self) -> None:
        """Forget the thread that is at work, if an interrupt has made it stop without a word."""
        there = self._at_work.get(None)
        if there is not None:
            frame = sys._current_frames().get(there[0])
            if not self._is_at_work(frame) and self._at_work.get(None) is there:
                self._recover()
                self._at_work.clear()

    def _turn(self, final: bool) -> None:
        inbox, ring = self._inbox, self._ring
        while inbox:
            ring.put(inbox[0])
            inbox.popleft()
        if self._full and not final:
            self._skipped += 1
            if self._skipped % self._retry_full_every:
                ring.make_room()
                return
        for _ in range(2):  # once more when a connection that worked is gone
            if self.sock is None:
                self.createSocket()
                if self.sock is None:
                    break
            worked = self._heard
            try:
                if final or self._full or ring.unacknowledged >= self._read_at:
                    self._receive(self.sock)
                    worked = self._heard
                self._transmit(self.sock, ring.limit + BATCH if final else TURN)
            except OSError:
                self._drop_connection()
                self._put_off()
                if not worked:
                    break
                self._retry_at = None
            else:
                if not self._should_report(final):
                    break
                self._drop_connection()
        ring.make_room()

    def _transmit(self, sock: socket.socket, most: int) -> None:
        """Send until nothing waits, the socket takes no more or `most` bytes are sent. Raises OSError when it is gone."""
        take, data = self._ring.take, self._rest
        try:
            while most > 0 and (data or (data := take(BATCH))):
                sent = sock.send(data, _NO_SIGNAL)
                most -= sent
                data = data[sent:]
            self._full = self._ring.held_back
        except BlockingIOError:
            self._full = True
        self._rest = data

    def _receive(self, sock: socket.socket) -> None:
        """Read the acknowledgements there are. Raises OSError when the connection is gone, or makes no sense."""
        with contextlib.suppress(BlockingIOError):
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the agent has closed the connection")
            data = self._acks + data
            whole = len(data) & ~7
            self._acks = data[whole:]
            if whole:
                try:
                    self._ring.acknowledge(int.from_bytes(data[whole - 8 : whole], "big"))
                except ValueError as error:
                    raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
                self._heard = True
                self._pause = 0.0
                self._reported = self._told
        self._read_at = self._ring.unacknowledged + READ_EVERY

    def _should_report(self, final: bool) -> bool:
        """Whether to greet again for telling the agent of drops: nothing waits to be sent, and the last time was a while ago."""
        if self._told == self._ring.dropped or self._full or self._rest or not self._heard:
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
            sock = self.makeSocket()
            sock.setblocking(False)
        except OSError:
            self._put_off()
            return
        ring = self._ring
        ring.rewind()
        self._retry_at = None
        self._report_at = now + REPORT_EVERY
        self._told = ring.dropped
        greeting = {"forwarder": 1, **self._greeting_fields, "session": ring.session, "first": ring.first, "dropped": self._told}
        self._rest = json.dumps(greeting).encode() + b"\n"
        self.sock = sock

    def _put_off(self) -> None:
        """The next attempt is due later, each time by more; only an acknowledgement starts that over."""
        self._pause = min(self._pause * self.retryFactor, self.retryMax) if self._pause else self.retryStart
        self._retry_at = time.monotonic() + self._pause

    def _wait(self, seconds: float) -> None:
        """Until there may be something to read, or room to send, or an attempt to connect is due, or `seconds` are over."""
        sock = self.sock
        if sock is None:
            due = TICK if self._retry_at is None else self._retry_at - time.monotonic()
            time.sleep(max(0.001, min(seconds, due, TICK)))
            return
        try:
            poll = select.poll()
            poll.register(sock, select.POLLIN | (select.POLLOUT if self._rest else 0))
            poll.poll(max(0.001, min(seconds, TICK)) * 1000)
        except (OSError, ValueError):  # closed by another thread
            time.sleep(0.001)

    # While the app is idle

    def _see_to_helper(self) -> None:
        if self._helper is None and self._waiting and not self._closed and not self._forking:
            self._helper = helper = _Helper()
            try:
                helper.start(self)
            except RuntimeError:  # none to be had here, or at interpreter exit: emit, flush and close do without
                self._helper = None

    def _stop_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.stop()


class _Helper:
    """Reads acknowledgements, connects and sends for a handler whose app does not log; asleep nearly always.

    A bare thread: starting one of `threading` waits for it, and takes locks that a signal handler may not take.
    """

    def __init__(self) -> None:
        self._stopped = _thread.allocate_lock()
        self._stopped.acquire()
        self._ended = _thread.allocate_lock()
        self._ended.acquire()

    def start(self, handler: SocketHandler) -> None:
        _thread.start_new_thread(self._run, (handler,))

    def stop(self) -> None:
        """Returns when the thread is about to end, which is at once unless it is just sending."""
        with contextlib.suppress(RuntimeError):  # two threads at once have stopped it
            self._stopped.release()
        self._ended.acquire(timeout=10 * TICK)

    def _run(self, handler: SocketHandler) -> None:
        try:
            self._help(handler)
        finally:
            if handler._helper is self:
                handler._helper = None
                handler._see_to_helper()
            self._ended.release()

    def _help(self, handler: SocketHandler) -> None:
        quiet = 0.0
        while quiet < LINGER and not self._stopped.acquire(timeout=TICK_WHEN_FULL if handler._full else TICK):
            if handler._helper is not self:
                return
            quiet = 0.0 if handler._waiting else quiet + TICK
            if not quiet:
                handler._relieve()
                handler._pump(final=True)


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


def _count_calls(function: Callable[..., Any], frame: FrameType | None, handler: SocketHandler | None = None) -> int:
    """How many calls of `function`, a method of `handler` if given, there are from `frame` on down."""
    count = 0
    while frame is not None:
        if frame.f_code is function.__code__ and (handler is None or frame.f_locals.get("self") is handler):
            count += 1
        frame = frame.f_back
    return count


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _before_fork() -> None:
    """No thread of ours at a fork: Python 3.12 and later warn of it."""
    for handler in list(_handlers):
        handler._forking = True
        if handler._helper is not None:
            handler._stop_helper()
            time.sleep(0.001)  # it has said goodbye, and now the system may take it off its list


def _in_parent() -> None:
    for handler in list(_handlers):
        handler._forking = False
        if handler._ring.unsent:  # what has only to be acknowledged has time, and from 3.13 on the warning comes after this
            handler._see_to_helper()


def _in_child() -> None:
    for handler in list(_handlers):
        handler._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
