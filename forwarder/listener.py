"""The Unix sockets: connections in, blocks in the spool, acknowledgements out.

Work is done per read, not per record: what one read brings is split at its last newline, counted, appended as one block and
acknowledged. Only pickled records of the standard library's handler are looked at one by one, because they have to be decoded.
A peer that sends nonsense loses its connection, with one line in the log and a count; nobody else notices. When a spool has
no room, its peers are no longer read and go on from there once it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from _blake2 import blake2b  # see tail/identity
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from forwarder import config, formatter, unix
from forwarder.pickles import Decoder, PickleError
from forwarder.protocol import FrameError, Frames, Greeting, GreetingError, Lines, Opening, encode_ack
from forwarder.route import describe
from forwarder.spool import Spool, blocks
from forwarder.spool.spools import SpoolFull, Spools

log = logging.getLogger("forwarder.listener")

RETRY_SECONDS = 0.1
SMALL_READ = 32 * 1024
REST_SECONDS = 0.002
"""After a small read a connection is left alone for so long: at 10,000 records a second it makes 20 records a read of one."""
SMALLEST_FRAME_LIMIT = 64 * 1024
FRAME_LIMIT_RECORDS = 4
"""A pickled frame may be this many times as long as a record may be; it is cut after it is decoded."""
QUIET_SECONDS = 0.05
LONGEST_FAREWELL = 1.0


class Batch(msgspec.Struct):
    """Records on their way into the spool of `app`; `first` is the number of the first within `session`."""

    app: str
    records: bytes
    count: int
    route: bytes
    session: bytes
    first: int


class Listener:
    """All sockets of the agent."""

    def __init__(self, spools: Spools, *, host: str, acknowledge_after_sync: bool, clock: Callable[[], float]) -> None:
        self.received: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.client_dropped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.topics_refused: Counter[str] = Counter()
        self.connections: set[Connection] = set()
        self.last_data = 0.0
        self.host = host
        self.clock = clock
        self.dropped_by_session: dict[bytes, int] = {}
        self._spools = spools
        self._acknowledge_after_sync = acknowledge_after_sync
        self._servers: list[asyncio.AbstractServer] = []
        self._bound: dict[Path, tuple[int, int]] = {}
        self._waiting: list[Connection] = []
        self._retry: asyncio.TimerHandle | None = None
        self._resting: list[Connection] = []
        self._deaf: dict[Connection, None] = {}
        self._to_acknowledge: set[Connection] = set()
        self._syncing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time

    async def start(self, sockets: tuple[config.Socket, ...], inherited: Mapping[str, socket.socket]) -> None:
        """Listen on `sockets`; those already bound by systemd come as `inherited`, by path. Raises OSError, SocketInUse."""
        for settings in sockets:
            sock = inherited.get(settings.path)
            if sock is None:
                path = Path(settings.path)
                sock = unix.bind(path, mode=settings.mode, group=settings.group)
                self._bound[path] = unix.identify(path)
            server = await self._loop.create_unix_server(partial(Connection, self, settings), sock=sock, backlog=unix.BACKLOG)
            self._servers.append(server)
            log.info("listening on %s%s", settings.path, "" if Path(settings.path) in self._bound else ", handed over by systemd")
        for name in inherited.keys() - {settings.path for settings in sockets}:
            log.warning("%s was handed over, but no [[socket]] has this path: nobody listens there", name)
            inherited[name].close()

    def spool(self, app: str) -> Spool:
        return self._spools.of(app)

    def store(self, connection: Connection, batch: Batch) -> bool:
        """Append, and acknowledge to the connection's session; False when the records have to wait."""
        try:
            spool = self._spools.of(batch.app)
        except OSError:
            return False
        known = spool.sessions.get(batch.session, 0) if batch.session != blocks.NO_SESSION else 0
        if batch.first < known:
            self._skip_known(batch, min(known - batch.first, batch.count))
        if batch.count:
            try:
                self._spools.append(
                    spool,
                    batch.records,
                    batch.count,
                    self.clock(),
                    route=batch.route,
                    session=batch.session,
                    first=batch.first,
                )
            except SpoolFull:
                return False
            self.received[batch.app] += batch.count
            self.received_bytes[batch.app] += len(batch.records)
        if connection.answers:
            # A resend of what is known ends below what was acknowledged at the start.
            connection.safe = max(connection.safe, batch.first + batch.count)
            if self._acknowledge_after_sync:
                self._to_acknowledge.add(connection)
                if self._syncing is None:
                    self._syncing = asyncio.ensure_future(self._sync_then_acknowledge())
            else:
                connection.acknowledge()
        return True

    def _skip_known(self, batch: Batch, known: int) -> None:
        """Take out the first `known` records, which an earlier connection of the session brought already."""
        end = 0
        for _ in range(known):
            end = batch.records.index(b"\n", end) + 1
        batch.records = batch.records[end:]
        batch.count -= known
        batch.first += known

    async def _sync_then_acknowledge(self) -> None:
        while self._to_acknowledge:
            connections, self._to_acknowledge = self._to_acknowledge, set()
            safe = [(connection, connection.safe) for connection in connections]
            await self._spools.sync()
            for connection, number in safe:
                connection.acknowledge(number)
        self._syncing = None

    def wait(self, connection: Connection) -> None:
        """The connection holds records that its spool has no room for: try again until it has."""
        self._waiting.append(connection)
        if self._retry is None:
            self._retry = self._loop.call_later(RETRY_SECONDS, self.retry)

    def rest(self, connection: Connection) -> None:
        """Read on from the connection in a moment: a peer that sends record by record is read for many at once."""
        self._resting.append(connection)
        if len(self._resting) == 1:
            self._loop.call_later(REST_SECONDS, self._rested)

    def _rested(self) -> None:
        resting, self._resting = self._resting, []
        for connection in resting:
            connection.read_on()

    def tell_later(self, connection: Connection) -> None:
        """The peer does not take acknowledgements now."""
        if not self._deaf:
            self._loop.call_later(RETRY_SECONDS, self._tell_again)
        self._deaf[connection] = None

    def _tell_again(self) -> None:
        deaf, self._deaf = self._deaf, {}
        for connection in deaf:
            connection.tell()

    def retry(self) -> None:
        """There may be room again."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.go_on()

    @property
    def held_up(self) -> bool:
        return bool(self._waiting)

    async def stop(self) -> None:
        """Refuse new peers, take what the present ones have already sent, and close."""
        for server in self._servers:
            server.close()
        end = self._loop.time() + LONGEST_FAREWELL
        self.last_data = self._loop.time()
        while self.connections and self._loop.time() < min(end, self.last_data + QUIET_SECONDS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.close()
        if self._syncing is not None:
            await self._syncing
        for path, identity in self._bound.items():
            unix.unlink_own(path, identity)
        if self._retry is not None:
            self._retry.cancel()


class Connection(asyncio.Protocol):
    """One peer. `answers` is whether it greeted and gets acknowledgements, `safe` the last one due."""

    def __init__(self, listener: Listener, settings: config.Socket) -> None:
        self.app = settings.app
        self.answers = False
        self.safe = 0
        self._listener = listener
        self._settings = settings
        self._take: Callable[[bytes], None] = self._open
        self._opening = Opening()
        self._route = describe(settings.topic, settings.key, settings.fields)
        self._session = blocks.NO_SESSION
        self._next = 0
        self._lines = Lines(settings.max_record)
        self._frames = Frames(max(FRAME_LIMIT_RECORDS * settings.max_record, SMALLEST_FRAME_LIMIT))
        self._decoder = Decoder()
        self._cut = 0
        self._pending: list[Batch] = []
        self._finished = False
        self._due = 0
        self._gone = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        self._fd = sock.fileno()
        self.peer = unix.peer_of(sock)
        if not self._allowed():
            self._reject("not_allowed", "is not among allow_uids and allow_groups")
            return
        self._listener.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._listener.last_data = self._listener.now()
        take = self._take
        take(data)
        if len(data) < SMALL_READ and take == self._take and take != self._open and not self._pending:
            self._transport.pause_reading()
            self._listener.rest(self)

    def eof_received(self) -> bool:
        self._finish()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._finish()
        self._listener.connections.discard(self)

    # Dialects

    def _open(self, data: bytes) -> None:
        opening = self._opening
        try:
            dialect = opening.feed(data)
        except GreetingError as error:
            self._reject("greeting", f"sent a greeting that cannot be used: {error}")
            return
        if dialect is None:
            return
        try:
            if opening.greeting is not None:
                self._greet(opening.greeting)
            else:
                self._start(dialect)
        except OSError as error:
            self._reject("spool", f"cannot be served: the spool of app {self.app} cannot be opened: {error}")
            return
        self._take = self._pickled if dialect == "pickled" else self._native
        self._opening = Opening()  # the old one would keep the first read for as long as the connection lasts
        if rest := opening.rest:
            self._take(rest)

    def _greet(self, greeting: Greeting) -> None:
        self.app = greeting.app or self._settings.app
        self._start("native")
        self._route = describe(self._topic_for(greeting.topic), greeting.key or self._settings.key, self._settings.fields)
        self.answers = True
        known = 0
        self._next = self.safe = greeting.first
        if greeting.session:
            self._session = blake2b(greeting.session.encode(), digest_size=16).digest()
            known = self._listener.spool(self.app).sessions.get(self._session, 0)
            self.safe = known
            before = self._listener.dropped_by_session.get(self._session, 0)
            if greeting.dropped > before:
                self._listener.dropped_by_session[self._session] = greeting.dropped
                self._listener.client_dropped[self.app] += greeting.dropped - before
                log.warning("app %s: %s dropped %d records, its ring was full", self.app, self.peer, greeting.dropped - before)
        self.acknowledge()

    def _topic_for(self, wanted: str | None) -> str | None:
        settings = self._settings
        if wanted is None or wanted == settings.topic:
            return settings.topic
        if any(fnmatchcase(wanted, pattern) for pattern in settings.allow_topics):
            return wanted
        listener = self._listener
        listener.topics_refused[self.app] += 1
        if listener.topics_refused[self.app] == 1:
            log.warning(
                "app %s: %s asks for topic %s, which allow_topics of %s does not allow; its records go to the socket's own topic",
                self.app,
                self.peer,
                wanted,
                settings.path,
            )
        return settings.topic

    def _start(self, dialect: str) -> None:
        self._listener.spool(self.app)  # one that cannot be opened is told now
        log.debug("%s: %s connected as app %s, %s", self._settings.path, self.peer, self.app, dialect)

    def _native(self, data: bytes) -> None:
        run = self._lines.feed(data)
        if run:
            self._store(run, self._lines.count)

    def _pickled(self, data: bytes) -> None:
        # What was wrong is kept as text: the error itself would hold on to all that was decoded until the next collection.
        refused: tuple[str, str] | None = None
        try:
            frames = self._frames.feed(data)
        except FrameError as error:
            frames, refused = error.frames, ("frame", str(error))
        encoded = []
        for frame in frames:
            try:
                encoded.append(self._encode(self._decoder.loads(frame)))
            except PickleError as error:
                refused = ("pickle", str(error))
                break
        if encoded:
            self._store(b"\n".join(encoded) + b"\n", len(encoded))
        if refused is not None:
            self._reject(refused[0], f"sent a {refused[0]} that is no log record: {refused[1]}")

    def _encode(self, attributes: dict[str, Any]) -> bytes:
        """One line of JSON, at most `max_record` bytes: of a larger record the message is cut, then all else left out."""
        schema, limit, host = self._settings.schema, self._settings.max_record, self._listener.host
        record = encode_json(formatter.layout(schema, attributes, host))
        if len(record) <= limit:
            return record
        self._listener.cut[self.app] += 1
        # A character takes at most 6 bytes in JSON, and there must be room for the rest.
        mark = {"msg": str(attributes.get("msg", ""))[: limit // 8], "truncated": True, "original_size": len(record)}
        record = encode_json(formatter.layout(schema, {**attributes, **mark}, host))
        if len(record) <= limit:
            return record
        kept: dict[str, Any] = {
            name: attributes[name] for name in ("name", "levelname", "levelno", "created") if name in attributes
        }
        return encode_json(formatter.layout(schema, {**kept, **mark}, host))

    # Into the spool

    def _store(self, records: bytes, count: int) -> None:
        batch = Batch(self.app, records, count, self._route, self._session, self._next)
        self._next += count
        if self._lines.cut > self._cut:
            self._listener.cut[self.app] += self._lines.cut - self._cut
            self._cut = self._lines.cut
        if self._pending or not self._listener.store(self, batch):
            self._pending.append(batch)
            if len(self._pending) == 1:
                self._transport.pause_reading()
                self._listener.wait(self)

    def read_on(self) -> None:
        """Read again after a rest, unless there is another reason not to."""
        if not self._pending and not self._transport.is_closing():
            self._transport.resume_reading()

    def go_on(self) -> None:
        """Try again to store what is pending; read on when all of it is."""
        while self._pending:
            if not self._listener.store(self, self._pending[0]):
                self._listener.wait(self)
                return
            self._pending.pop(0)
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _finish(self) -> None:
        """The peer sends no more. What a session left unfinished is not a record; a plain peer's last line is one."""
        if self._finished:
            return
        self._finished = True
        take, self._take = self._take, _ignore
        if self.answers:
            return
        if self._frames.pending:
            self._listener.rejected["cut"] += 1
            log.warning("%s: %s ended in the middle of a record, which is lost", self._settings.path, self.peer)
        if take == self._open and self._opening.rest[:1] == b"{":
            try:
                self._start("lines")
            except OSError as error:
                self._reject("spool", f"cannot be served: the spool of app {self.app} cannot be opened: {error}")
                return
            self._native(self._opening.rest)
        if rest := self._lines.finish():
            self._store(rest, 1)

    def acknowledge(self, number: int | None = None) -> None:
        """Tell the peer how many records of its session are safe; a peer that does not listen just now is told later.

        Not by the transport's own way of writing: that ends the connection when the peer is gone, and with it goes all that
        the peer has sent and nobody has read yet.
        """
        self._due = self.safe if number is None else number
        self.tell()

    def tell(self) -> None:
        """Send the acknowledgement that is due."""
        if not self.answers or self._finished or self._gone:
            return
        try:
            os.write(self._fd, encode_ack(self._due))
        except BlockingIOError:
            self._listener.tell_later(self)
        except OSError:
            self._gone = True

    def close(self) -> None:
        self._transport.close()

    def _allowed(self) -> bool:
        settings = self._settings
        if settings.allow_uids is None and settings.allow_groups is None:
            return True
        if settings.allow_uids is not None and self.peer.uid in settings.allow_uids:
            return True
        return settings.allow_groups is not None and unix.is_member(self.peer, settings.allow_groups)

    def _reject(self, reason: str, what: str) -> None:
        self._listener.rejected[reason] += 1
        log.warning("%s: %s %s; connection closed", self._settings.path, self.peer, what)
        self._take = _ignore
        self._finished = True
        self._transport.abort()


def _ignore(data: bytes) -> None:
    """What a connection that is over does with data. It then holds no method of its own, and its buffers are free at once."""


def encode_json(value: dict[str, Any]) -> bytes:
    """One line of JSON, whatever is in `value`."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return msgspec.json.encode(value)
    return formatter.dumps(value).encode()
