"""Asks a running agent over its HTTP address, `HOST:PORT` or `unix:PATH`."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import msgspec

TIMEOUT = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def get(listen: str, path: str) -> bytes:
    """The body of a page; raises OSError when there is no agent or it does not answer well."""
    connection = _UnixConnection(listen.removeprefix("unix:")) if listen.startswith("unix:") else _tcp(listen)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"no proper answer: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{path} answers {response.status}: {body.decode(errors='replace').strip()}")
    return body


def _tcp(listen: str) -> http.client.HTTPConnection:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    return http.client.HTTPConnection("127.0.0.1" if host in {"", "0.0.0.0"} else host, int(port), timeout=TIMEOUT)  # noqa: S104


def status(listen: str) -> dict[str, Any]:
    """What the agent says of itself; raises OSError as `get` does, also when somebody else answers there."""
    try:
        return msgspec.json.decode(get(listen, "/status"), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise OSError(f"/status is no answer of an agent: {error}") from error
