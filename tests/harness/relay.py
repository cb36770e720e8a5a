"""A relay between clients and one address, which does to their connections what networks do: cut, delay, throttle, reset.

Nothing is ever lost or altered in a connection that lives: what a cut holds up goes on when it heals, as with TCP itself. The
relay runs in a thread of its own; what it is told holds at once, for the connections that there are and for new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

BLOCK = 64 * 1024
HELD_BLOCKS = 64
"""What one direction holds while it is late: beyond that the sender notices."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST."""


class Relay:
    """Relays from each of `ways`, pairs of port to listen on and port to reach, on the loopback; for use with `with`."""

    def __init__(self, *ways: tuple[int, int]) -> None:
        self.delay = 0.0
        """Seconds by which everything is late, in either direction."""
        self.rate = 0.0
        """Bytes a second to the brokers, of each connection; 0: as many as come."""
        self.torn = 0
        """How many connections were reset in the middle of what a client sent."""
        self._ways = ways
        self._tear = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole = asyncio.Event()
        self._whole.set()

    def __enter__(self) -> Relay:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Let nothing through: connections stay open and nothing arrives, as when packets are dropped."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def heal(self) -> None:
        """Let everything through again, at once."""
        self.delay = self.rate = 0.0
        self._tear = 0
        self._loop.call_soon_threadsafe(self._whole.set)

    def tear(self, times: int) -> None:
        """Of the next `times` blocks of a kilobyte or more that clients send, pass on half, then reset their connections."""
        self._tear = times

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open(self) -> None:
        for listens, reaches in self._ways:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = reaches) -> None:
                await self._serve(reader, writer, port)

            self._servers.append(await asyncio.start_server(serve, "127.0.0.1", listens))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            await self._whole.wait()
            other_reader, other = await asyncio.open_connection("127.0.0.1", port)
            writers.append(other)
            there, back = asyncio.Queue[tuple[float, bytes]](HELD_BLOCKS), asyncio.Queue[tuple[float, bytes]](HELD_BLOCKS)
            pipes = (
                self._take(reader, there),
                self._pass(there, other, writers, up=True),
                self._take(other_reader, back),
                self._pass(back, writer, writers, up=False),
            )
            running = [asyncio.ensure_future(pipe) for pipe in pipes]
            try:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in running:
                    one.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in writers:
                with contextlib.suppress(OSError):
                    each.close()

    async def _take(self, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]) -> None:
        while data := await reader.read(BLOCK):
            await held.put((self._loop.time(), data))
        await held.put((self._loop.time(), b""))
        await asyncio.Event().wait()  # the other half says when all has been passed on

    async def _pass(
        self,
        held: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        pair: Sequence[asyncio.StreamWriter],
        up: bool,
    ) -> None:
        while True:
            came, data = await held.get()
            if (early := came + self.delay - self._loop.time()) > 0:
                await asyncio.sleep(early)
            await self._whole.wait()
            if not data:
                return
            if up and self._tear and len(data) >= 1024:
                self._tear -= 1
                self.torn += 1
                writer.write(data[: len(data) // 2])
                await writer.drain()
                for each in pair:
                    each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    each.transport.abort()
                return
            writer.write(data)
            await writer.drain()
            if up and self.rate:
                await asyncio.sleep(len(data) / self.rate)
