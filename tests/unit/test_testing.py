"""`forwarder.testing`, as an app's own tests use it."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path

import pytest

import forwarder
import forwarder.testing


def test_an_app_can_assert_on_what_it_logs() -> None:
    log = logging.Logger("shop")
    with forwarder.testing.Agent() as agent:
        handler = forwarder.SocketHandler(agent.address, "shop", topic="orders", close_timeout=20)
        log.addHandler(handler)
        for number in range(500):
            log.warning("paid %d", number, extra={"order": number})
        handler.flush()
        assert [record["order"] for record in agent.records] == list(range(500))
        assert (agent.greetings[0]["app"], agent.greetings[0]["topic"]) == ("shop", "orders")
        handler.close()
    assert not Path(agent.address).parent.exists()


def test_what_is_logged_after_the_agent_has_gone_waits() -> None:
    with forwarder.testing.Agent() as agent:
        handler = forwarder.SocketHandler(agent.address, close_timeout=0.0)
    handler.emit(logging.makeLogRecord({"msg": "late"}))
    assert agent.records == []
    handler.close()


def test_an_app_that_is_connected_when_the_agent_goes_waits_too() -> None:
    threads = threading.active_count()
    with forwarder.testing.Agent() as agent:
        handler = forwarder.SocketHandler(agent.address, close_timeout=20)
        handler.emit(logging.makeLogRecord({"msg": "in time"}))
        handler.flush()
    assert threading.active_count() == threads
    handler.close_timeout = 0.0
    handler.emit(logging.makeLogRecord({"msg": "late"}))
    handler.close()
    assert [record["message"] for record in agent.records] == ["in time"]


def test_an_app_that_is_killed_while_it_sends_is_nothing_to_complain_of(capsys: pytest.CaptureFixture[str]) -> None:
    with forwarder.testing.Agent() as agent:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as app:
                app.connect(agent.address)
                app.sendall(b'{"forwarder": 1, "session": "s", "first": 0}\n{"message": "whole"}\n{"message": "cut')
                assert app.recv(8, socket.MSG_PEEK) == (1).to_bytes(8, "big")  # and is left there, which resets the connection
    assert [record["message"] for record in agent.records] == ["whole"] * 3
    assert capsys.readouterr().err == ""
