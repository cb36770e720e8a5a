"""A relay before brokers, in a process of its own, that counts what clients ask: connections, and requests by kind.

A request opens with its length, 4 bytes, and its kind, 2 bytes; see https://kafka.apache.org/protocol. Nothing is held up or
altered. A front can be closed while its broker is away, so that clients are refused as by the broker itself.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import struct
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import msgspec
import uvloop

HEAD = struct.Struct(">IH")
KINDS = {0: "Produce", 3: "Metadata", 10: "FindCoordinator", 17: "SaslHandshake", 18: "ApiVersions", 22: "InitProducerId"}
SAMPLE_SECONDS = 0.25


class Front(msgspec.Struct):
    """What has come to one broker so far: requests by kind, connections made and present, bytes to it and from it."""

    requests: Counter[str]
    made: int = 0
    present: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Sample(msgspec.Struct):
    """What all fronts together have had at a time on the monotonic clock."""

    at: float
    requests: int
    made: int
    present: int


class Requests:
    """Finds the requests in a stream of bytes, whatever pieces it comes in."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._held = b""
        self._skip = 0

    def feed(self, data: bytes) -> None:
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        data = self._held + data[self._skip :]
        at = 0
        while at + HEAD.size <= len(data):
            length, kind = HEAD.unpack_from(data, at)
            self._counts[KINDS.get(kind, f"kind {kind}")] += 1
            at += 4 + length
        self._skip = max(at - len(data), 0)
        self._held = data[at:]


class CountingRelay:
    """Relays from each of `ways`, pairs of port to listen on and port to reach, on the loopback; for use with `with`."""

    def __init__(self, *ways: tuple[int, int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_run, args=(ways, there), daemon=True)

    def __enter__(self) -> CountingRelay:
        self._process.start()
        self._ask("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def fronts(self) -> list[Front]:
        return cast(list[Front], self._ask("fronts"))

    def samples(self) -> list[Sample]:
        """Those since the last call, each SAMPLE_SECONDS."""
        return cast(list[Sample], self._ask("samples"))

    def close(self, place: int) -> None:
        """Refuse connections to one broker; those there are end with the broker's own."""
        self._ask("close", place)

    def open(self, place: int) -> None:
        self._ask("open", place)

    def _ask(self, *question: object) -> object:
        self._pipe.send(question)
        return self._pipe.recv()


class _Half(asyncio.Protocol):
    """One end of a relayed connection: the client's, or the broker's."""

    def __init__(self, front: Front, reaches: int | None) -> None:
        self.transport: asyncio.Transport
        self._front = front
        self._reaches = reaches
        self._requests = Requests(front.requests)
        self._other: _Half | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._reaches is not None:
            self._front.made += 1
            self._front.present += 1
            self._reaching = asyncio.ensure_future(self._reach(self._reaches))

    async def _reach(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, other = await loop.create_connection(partial(_Half, self._front, None), "127.0.0.1", port)
        except OSError:
            self.transport.abort()
            return
        other._other, self._other = self, other
        if self.transport.is_closing():
            other.transport.abort()
        for data in self._early:
            other.transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._reaches is None:
            self._front.bytes_out += len(data)
        else:
            self._front.bytes_in += len(data)
            self._requests.feed(data)
        if self._other is None:
            self._early.append(data)
        else:
            self._other.transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._reaches is not None:
            self._front.present -= 1
        if self._other is not None:
            self._other.transport.close()


class _Counting:
    """The process of the relay."""

    def __init__(self, ways: Sequence[tuple[int, int]], pipe: Any) -> None:
        self._ways = ways
        self._pipe = pipe
        self._fronts = [Front(Counter()) for _ in ways]
        self._servers: list[asyncio.AbstractServer | None] = [None for _ in ways]
        self._samples: list[Sample] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        for place in range(len(self._ways)):
            await self._open(place)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._asked)
        while True:
            fronts = self._fronts
            requests = sum(front.requests.total() for front in fronts)
            made, present = (sum(getattr(front, name) for front in fronts) for name in ("made", "present"))
            self._samples.append(Sample(time.monotonic(), requests, made, present))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _open(self, place: int) -> None:
        listens, reaches = self._ways[place]
        make = partial(_Half, self._fronts[place], reaches)
        self._servers[place] = await asyncio.get_running_loop().create_server(make, "127.0.0.1", listens, backlog=1024)

    def _asked(self) -> None:
        try:
            question = self._pipe.recv()
        except EOFError:  # whoever started it is gone
            asyncio.get_running_loop().stop()
            return
        task = asyncio.ensure_future(self._answer(*question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, what: str, place: int = 0) -> None:
        answer: object = None
        if what == "fronts":
            answer = self._fronts
        elif what == "samples":
            answer, self._samples = self._samples, []
        elif what == "close":
            server, self._servers[place] = self._servers[place], None
            if server is not None:
                server.close()
        elif what == "open":
            await self._open(place)
        self._pipe.send(answer)


def _run(ways: Sequence[tuple[int, int]], pipe: Any) -> None:
    uvloop.run(_Counting(ways, pipe).run())
