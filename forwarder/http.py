"""A small HTTP/1.1 server for the agent's own pages, in the agent's loop. Only GET and HEAD, no bodies, slow clients cut off.

The protocol is h11's; aiohttp in its place costs 12 MB and 180 ms at import.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import h11
import msgspec

from forwarder import unix

log = logging.getLogger("forwarder.http")

TIMEOUT = 10.0
MOST_CONNECTIONS = 64
LONGEST_HEADERS = 16 * 1024


class Page(msgspec.Struct):
    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]


class Server:
    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._server: asyncio.AbstractServer | None = None
        self._path: Path | None = None
        self._identity = (0, 0)
        self.connections: set[_Connection] = set()

    async def start(self, listen: str) -> None:
        """Listen on `HOST:PORT` or `unix:PATH`; not at all if it is empty. Raises OSError, unix.SocketInUse."""
        if not listen:
            return
        loop = asyncio.get_running_loop()
        factory = partial(_Connection, self, self._pages)
        if listen.startswith("unix:"):
            self._path = Path(listen.removeprefix("unix:"))
            sock = unix.bind(self._path, mode=0o660, group=None)
            self._identity = unix.identify(self._path)
            self._server = await loop.create_unix_server(factory, sock=sock)
        else:
            host, _, port = listen.rpartition(":")
            self._server = await loop.create_server(factory, host.strip("[]") or None, int(port))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()
        if self._path is not None:
            unix.unlink_own(self._path, self._identity)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server, pages: Pages) -> None:
        self._server = server
        self._pages = pages
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEADERS)
        self._request: h11.Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(TIMEOUT, self.close)
        if len(self._server.connections) > MOST_CONNECTIONS:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._deadline.cancel()
        self._server.connections.discard(self)

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.Data):
                    self._answer(Page(413, "text/plain", b"no request bodies here\n"), last=True)
                    return
                elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                    self._answer(self._page(self._request))
                elif isinstance(event, h11.ConnectionClosed):
                    self._transport.close()
                    return
        except h11.RemoteProtocolError as error:
            if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                self._answer(Page(error.error_status_hint, "text/plain", b"bad request\n"), last=True)
            else:
                self.close()

    def _page(self, request: h11.Request) -> Page:
        path = request.target.decode("ascii", "replace").partition("?")[0]
        if request.method not in {b"GET", b"HEAD"}:
            return Page(405, "text/plain", b"only GET and HEAD\n")
        make = self._pages.get(path)
        if make is None:
            return Page(404, "text/plain", ("there is: " + " ".join(sorted(self._pages)) + "\n").encode())
        try:
            return make()
        except Exception:
            log.exception("the page %s failed", path)
            return Page(500, "text/plain", b"this page failed, the agent's log says why\n")

    def _answer(self, page: Page, *, last: bool = False) -> None:
        headers = [("content-type", page.content_type), ("content-length", str(len(page.body)))]
        if last:
            headers.append(("connection", "close"))
        out = [self._http.send(h11.Response(status_code=page.status, headers=headers))]
        if self._request is None or self._request.method != b"HEAD":
            out.append(self._http.send(h11.Data(data=page.body)))
        out.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(part for part in out if part))
        if last or self._http.our_state is h11.MUST_CLOSE:
            self._transport.close()
        else:
            self._http.start_next_cycle()
            self._request = None
