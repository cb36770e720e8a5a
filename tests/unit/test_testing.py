"""`forwarder.testing`, as an app's own tests use it."""

from __future__ import annotations

import logging
from pathlib import Path

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
