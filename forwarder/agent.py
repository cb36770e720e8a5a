"""The life of the agent, top to bottom: take the state directory, open what is on disk, listen, ship, and stop in good order.

Stopping is a ladder. TERM or INT: no new peers, what the present ones sent is taken, the backlog is sent for at most
`agent.shutdown_timeout`; what is left stays on disk. A second INT ends the agent at once, which is as safe as a kill: nothing
that counts exists in memory alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forwarder import config, enrich, http, systemd
from forwarder.exactly_once import ExactlyOnceShipper
from forwarder.listener import Listener
from forwarder.positions import Positions
from forwarder.redact import Rule
from forwarder.route import Prepare, Route, describe, described, make_route
from forwarder.shipper import Shipper
from forwarder.source import TAIL_PREFIX
from forwarder.spool.spools import SpoolFull, Spools
from forwarder.tail import Tails

log = logging.getLogger("forwarder.agent")

TICK = 1.0
SAVE_SECONDS = 0.25
"""How often positions go to disk if they have moved: what is sent again after a kill is what was sent since."""
ALIVE_TICKS = 5
ALIVE_GRACE = 5.0
"""Seconds before the last sign of life in which something may have happened that was not seen."""
OUTCOME_PATIENCE = 10.0
BUSY_TICKS = 5
STOPPED_AT_ONCE = 130


class StateInUse(Exception):
    """Another agent works in the state directory."""


class Agent:
    """`pages` makes of an agent what it serves over HTTP."""

    def __init__(self, settings: config.Config, notifier: systemd.Notifier, pages: Callable[[Agent], http.Pages]) -> None:
        self.config = settings
        self.started = time.time()
        self.ready = False
        self.state_writable = True
        self.shipper: Shipper
        self.spools: Spools
        self.listener: Listener
        self.tails: Tails
        self.host = socket.gethostname()
        self._notifier = notifier
        self._pages = pages(self)
        self._stopping = asyncio.Event()
        self._routes: dict[tuple[str, bytes], Route] = {}
        self._state = Path(settings.agent.state_dir)

    async def run(self) -> int:
        """Until a signal asks to stop; returns the exit code. Raises what prevents a start, each with a message for the user."""
        with own_state_directory(self._state), contextlib.closing(self._positions()) as positions:
            self._catch_signals()
            saved = positions.load()
            self.shipper = self._shipper(positions)
            self.spools = Spools(
                self._state / "spool",
                self.config.spool,
                routes=self._spool_route,
                wake=self.shipper.wake,
                added=self.shipper.add,
                removed=self.shipper.remove,
            )
            self.spools.open_all({row.name: row.position for row in saved})
            self.listener = Listener(
                self.spools,
                host=self.host,
                acknowledge_after_sync=self.config.spool.fsync == "always",
                clock=time.time,
            )
            await self.listener.start(self.config.sockets, systemd.inherited_sockets(os.environ))
            if await self._learn_outcome(positions):
                saved = positions.load()
            self.tails = Tails(
                self.config.tails,
                routes=self._tail_route,
                saved=[row for row in saved if row.name.startswith(TAIL_PREFIX)],
                host=self.host,
                wake=self.shipper.wake,
                added=self.shipper.add,
                removed=self.shipper.remove,
                forget=self.shipper.forget,
                renew=self.shipper.renew,
                clock=time.time,
                since=None if positions.fresh and not (self._state / "alive").exists() else self._last_alive(),
                scratch=self._state,
            )
            server = http.Server(self._pages)
            self.tails.start()
            await self._save()
            await server.start(self.config.http.listen)
            tasks: list[asyncio.Future[None]] = [
                self.shipper.failed,
                asyncio.create_task(self.tails.run()),
                asyncio.create_task(self._tick()),
                asyncio.create_task(self._save_positions()),
                asyncio.create_task(self._save_added()),
            ]
            if isinstance(self.config.spool.fsync, float) and self.config.spool.fsync > 0:
                tasks.append(asyncio.create_task(self._sync(self.config.spool.fsync)))
            gc.freeze()
            self.ready = True
            self._notifier.send(READY=1, STATUS="shipping")
            log.info("ready: %d sockets, %d tails, Kafka at %s", len(self.config.sockets), len(self.config.tails), self.bootstrap)
            await self._until_stopped(tasks)
            await self._shut_down(tasks)
            await server.stop()
        return 0

    def _positions(self) -> Positions:
        return Positions(self._state / "positions.db", durable=self.config.kafka.delivery == "exactly-once")

    def _shipper(self, positions: Positions) -> Shipper:
        if self.config.kafka.delivery == "exactly-once":
            return ExactlyOnceShipper(self.config, positions, self._state / "dead")
        # What a killed run with exactly-once had prepared may be in Kafka or not: it is sent, and may be there twice.
        try:
            positions.drop_prepared()
        except OSError as error:
            log.warning("%s; it is left for a later start", error)
        return Shipper(self.config, positions, self._state / "dead")

    async def _learn_outcome(self, positions: Positions) -> bool:
        """Files are best found by where they stand in Kafka, if Kafka tells soon; True when positions may have changed."""
        if not isinstance(self.shipper, ExactlyOnceShipper) or positions.marks().prepared is None:
            return False
        waited = [asyncio.create_task(event.wait()) for event in (self.shipper.transactions.resolved, self._stopping)]
        ends: list[asyncio.Future[Any]] = [*waited, self.shipper.failed]
        await asyncio.wait(ends, timeout=OUTCOME_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        for task in waited:
            task.cancel()
        return True

    @property
    def bootstrap(self) -> str:
        return self.config.kafka.bootstrap_servers

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        loop.add_signal_handler(signal.SIGUSR1, self._dump_status)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def _interrupted(self) -> None:
        if self._stopping.is_set():
            log.warning("stopped at once by a second interrupt; what is not delivered is on disk")
            logging.shutdown()
            os._exit(STOPPED_AT_ONCE)
        self._stopping.set()

    def _hung_up(self) -> None:
        log.warning("HUP: this release reads its configuration at the start only; restart it for a new one, nothing is lost")

    def _dump_status(self) -> None:
        log.info("status: %s", self._pages["/status"]().body.decode())

    # Routes

    def _spool_route(self, app: str, description: bytes) -> Route:
        route = self._routes.get((app, description))
        if route is None:
            route = self._routes[app, description] = self._route(app, *described(description))
        return route

    def _tail_route(self, tail: config.Tail) -> Route:
        return self._route(tail.app, tail.topic, tail.key, tail.fields)

    def _route(self, app: str, topic: str | None, key: str | None, fields: dict[str, object]) -> Route:
        kafka = self.config.kafka
        prepare: Prepare | None = enrich.pipeline(
            {**self.config.fields, **fields}, [Rule(rule.name, rule.pattern, rule.replace) for rule in self.config.redact]
        )
        return make_route(topic or kafka.topic, key or kafka.key, app=app, host=self.host, prepare=prepare)

    # Running

    async def _until_stopped(self, tasks: list[asyncio.Future[None]]) -> None:
        """Until a signal; a task that ends by itself has failed, and that ends the agent."""
        stopping = asyncio.create_task(self._stopping.wait())
        waited: list[asyncio.Future[Any]] = [stopping, *tasks]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in tasks:
            if task.done():
                task.result()

    async def _tick(self) -> None:
        """Once a second: housekeeping, and a sign of life."""
        busy = BUSY_TICKS
        for tick in itertools.count():
            if tick % ALIVE_TICKS == 0:
                self._note_alive()
            await asyncio.sleep(TICK)
            self.shipper.tick()
            self.spools.tick()
            if self.config.spool.fsync == "never":
                self.spools.forget_unsynced()
            if self.listener.held_up:
                self.listener.retry()
            busy = self._give_back(busy)
            self._notifier.send(WATCHDOG=1)

    def _note_alive(self) -> None:
        """Until now whatever appeared was seen, and is on disk: the next start looks for what came and went since."""
        if not (self.state_writable and self.tails.sees_everything):
            return
        now = int(time.time() * 1e9)
        with contextlib.suppress(OSError):
            (self._state / "alive").touch(mode=0o600)
            os.utime(self._state / "alive", ns=(now, now))

    def _last_alive(self) -> float:
        """Until when, in seconds since 1970, the last run saw all there was; until now if that is not known."""
        try:
            return (self._state / "alive").stat().st_mtime - ALIVE_GRACE
        except OSError:
            return time.time()

    def _give_back(self, busy: int) -> int:
        """Once after a busy time, the start too, let the C library return memory; gives the number of ticks until then."""
        if self.shipper.in_flight:
            return BUSY_TICKS
        if busy == 1:
            with contextlib.suppress(AttributeError):  # only glibc has it
                ctypes.CDLL(None).malloc_trim(0)
        return max(busy - 1, 0)

    async def _save_positions(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await self._save()

    async def _save_added(self) -> None:
        while True:
            await self.shipper.unsaved.wait()
            await self._save()

    async def _save(self) -> None:
        try:
            await self.shipper.save()
        except OSError as error:
            if self.state_writable:
                log.error("%s; shipping goes on, after a restart some records will be sent twice", error)
            self.state_writable = False
        else:
            if not self.state_writable:
                log.warning("positions can be saved again")
            self.state_writable = True

    async def _sync(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.spools.sync()

    async def _shut_down(self, tasks: list[asyncio.Future[None]]) -> None:
        self._notifier.send(STOPPING=1, STATUS="draining")
        log.info("stopping: sending what is left for at most %g seconds", self.config.agent.shutdown_timeout)
        self._note_alive()
        await self.listener.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.tails.flush()
        await self._save()  # what was added last is not shipped before
        drained = await self.shipper.drain(self.config.agent.shutdown_timeout)
        await self._save()  # so that the tails know what is delivered
        self.tails.settle()
        self.tails.rescue(self._keep)
        await self._save()
        left = sum(lane.source.position - lane.position + lane.source.lag() for lane in self.shipper.lanes())
        self.shipper.close()
        self.spools.close()
        self.tails.close()
        if drained:
            log.info("stopped: everything is in Kafka")
        else:
            log.warning("stopped: %d bytes are not in Kafka yet; they are on disk and sent at the next start", left)

    def _keep(self, tail: config.Tail, records: list[bytes]) -> None:
        """Put what is left of a deleted file into its app's spool. Raises OSError."""
        if not records:
            return
        if any(b"\n" in record for record in records):
            raise OSError("a record that holds a line end cannot be spooled")
        route = describe(tail.topic, tail.key, tail.fields)
        try:
            self.spools.append(self.spools.of(tail.app), b"\n".join(records) + b"\n", len(records), time.time(), route=route)
        except SpoolFull:
            raise OSError("the spool is full") from None


@contextlib.contextmanager
def own_state_directory(state: Path) -> Iterator[None]:
    """Hold the lock of the state directory; the kernel lets go of it when the process ends, however it ends."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        raise StateInUse(
            f"{state}: another agent (pid {owner or 'unknown'}) works in this state directory; "
            "stop it, or give this one its own agent.state_dir"
        ) from None
    finally:
        os.close(fd)


def run(settings: config.Config, new_loop: Callable[[], asyncio.AbstractEventLoop], pages: Callable[[Agent], http.Pages]) -> int:
    """Run an agent until it is told to stop; returns the exit code."""
    loop = new_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_run(settings, pages))
    finally:
        loop.close()


async def _run(settings: config.Config, pages: Callable[[Agent], http.Pages]) -> int:
    return await Agent(settings, systemd.Notifier(os.environ), pages).run()
