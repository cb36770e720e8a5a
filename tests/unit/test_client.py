"""Asking an agent over HTTP, and what answers in its place."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from forwarder import client


class Another(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None: ...


def test_another_server_at_the_agents_address_is_told_from_an_agent() -> None:
    with HTTPServer(("127.0.0.1", 0), Another) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(OSError, match="no answer of an agent"):
            client.status(f"127.0.0.1:{server.server_port}")
        thread.join()
