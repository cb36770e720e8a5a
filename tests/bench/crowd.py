"""Many peers of agents in one process, which is not counted: connections by the thousand, driven by a selector.

`flood` has each connection send its records as fast as the agent takes them, `trickle` record by record at a given pace until
it is stopped. Both wait until everything is acknowledged.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import selectors
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier, Event
from typing import Any, NamedTuple

from tests.bench.data import make_lines
from tests.harness.native import ACK_BYTES, Native, connect

BATCH_RECORDS = 250
"""A write has at most so many, about 56 KB: the last one of a connection may have fewer."""
DIFFERENT_LINES = 80 * BATCH_RECORDS
TIMEOUT = 600.0
READ_BYTES = 64 * 1024
TICK = 0.005


class Place(NamedTuple):
    """Where a connection goes, and as which app."""

    path: str
    app: str


class Crowd(NamedTuple):
    """Connected peers, which send once `go` is called."""

    process: Any
    barrier: Barrier
    stopping: Event
    result: Any

    def go(self) -> None:
        self.barrier.wait(TIMEOUT)

    def stop(self) -> int:
        """End a trickle; returns as `join`."""
        self.stopping.set()
        return self.join()

    def join(self) -> int:
        """Wait until they have sent everything; returns how many records that was, all of them acknowledged."""
        if not self.result.poll(TIMEOUT):
            raise SystemExit(f"the peers have not ended within {TIMEOUT:g} s")
        sent = int(self.result.recv())
        self.process.join()
        return sent


@contextmanager
def crowd(work: Any, places: Sequence[Place], *args: float) -> Iterator[Crowd]:
    """A process with a connection to each of `places`, all of them greeted, that does `work`: `flood` or `trickle`."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    stopping = context.Event()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, places, args, barrier, stopping, there))
    process.start()
    try:
        barrier.wait(TIMEOUT)
        yield Crowd(process, barrier, stopping, here)
    finally:
        process.terminate()
        process.join()


def _run(work: Any, places: Sequence[Place], args: Sequence[float], barrier: Barrier, stopping: Event, result: Any) -> None:
    peers = []
    for place in places:
        peer = connect(place.path, TIMEOUT)
        peer.greet(app=place.app, session=uuid.uuid4().hex)
        peer.socket.setblocking(False)
        peers.append(peer)
    barrier.wait(TIMEOUT)
    barrier.wait(TIMEOUT)
    result.send(work(peers, stopping, *args))


def flood(peers: Sequence[Native], _: Event, each: int) -> int:
    """Every peer sends `each` records as fast as it can."""
    batches = make_batches(each)
    selector = selectors.DefaultSelector()
    for peer in peers:
        selector.register(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, [iter(batches), b"", peer])
    waiting = len(peers)
    while waiting:
        for key, events in selector.select(TIMEOUT):
            state = key.data
            if events & selectors.EVENT_WRITE:
                rest = state[1] or next(state[0], b"")
                if rest:
                    state[1] = rest[_write(state[2], rest) :]
                else:
                    selector.modify(key.fileobj, selectors.EVENT_READ, state)
            if events & selectors.EVENT_READ and _acknowledged(state[2]) >= each:
                selector.unregister(key.fileobj)
                waiting -= 1
    return each * len(peers)


def trickle(peers: Sequence[Native], stopping: Event, rate: float) -> int:
    """All together send `rate` records a second, in turn and one in a write; what is due is sent every TICK."""
    lines = make_lines(1000)
    sent, safe = [0] * len(peers), [0] * len(peers)
    unsent = [b""] * len(peers)
    total, begun = 0, time.monotonic()
    while not stopping.is_set():
        while total < (time.monotonic() - begun) * rate:
            place = total % len(peers)
            data = unsent[place] + lines[total % len(lines)]
            unsent[place] = data[_write(peers[place], data) :]
            sent[place] += 1
            total += 1
            with contextlib.suppress(BlockingIOError):
                safe[place] = _acknowledged(peers[place])
        time.sleep(TICK)
    for place, peer in enumerate(peers):
        peer.socket.settimeout(TIMEOUT)
        peer.send_bytes(unsent[place])
        while safe[place] < sent[place]:
            safe[place] = _acknowledged(peer)
    return total


def make_batches(count: int) -> list[bytes]:
    """What one connection writes, `count` records; the same memory for all that is alike."""
    lines = make_lines(min(count, DIFFERENT_LINES))
    pieces = [b"".join(lines[start : start + BATCH_RECORDS]) for start in range(0, len(lines), BATCH_RECORDS)]
    whole, rest = divmod(count, BATCH_RECORDS)
    return [pieces[number % len(pieces)] for number in range(whole)] + ([b"".join(lines[:rest])] if rest else [])


def _write(peer: Native, data: bytes) -> int:
    try:
        return peer.socket.send(data)
    except BlockingIOError:
        return 0


def _acknowledged(peer: Native) -> int:
    """The last acknowledgement that has come whole; the next read waits for the rest of one that has not."""
    data = peer.socket.recv(READ_BYTES)
    if not data:
        raise ConnectionError("the agent closed a connection")
    whole = len(data) - len(data) % ACK_BYTES
    return int.from_bytes(data[whole - ACK_BYTES : whole], "big")
