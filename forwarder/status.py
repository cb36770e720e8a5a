"""What the agent serves over HTTP: its status, read from the rooms' own counters when asked for, whether it is well, and metrics.

Nothing is counted twice and nothing on the way of a record knows of it. Metrics are loaded when somebody asks for them: the
library takes two megabytes, and the loop some hundredths of a second once.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from forwarder.agent import Agent
from forwarder.http import Page, Pages
from forwarder.version import __version__

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def pages(agent: Agent) -> Pages:
    """The agent's HTTP pages."""

    @functools.cache
    def metrics() -> Callable[[], bytes]:
        from forwarder.metrics import of

        return of(agent)

    return {
        "/metrics": lambda: Page(200, METRICS_TYPE, metrics()()),
        "/status": lambda: Page(200, "application/json", msgspec.json.encode(status(agent))),
        # Answering at all shows that the loop turns.
        "/healthz": lambda: Page(200, "text/plain", b"ok\n"),
        "/readyz": lambda: _ready(agent),
    }


def _ready(agent: Agent) -> Page:
    if not agent.ready:
        return Page(503, "text/plain", b"starting\n")
    if not agent.state_writable:
        return Page(503, "text/plain", b"the state directory is not writable\n")
    return Page(200, "text/plain", b"ok\n")


def status(agent: Agent) -> dict[str, Any]:
    """What `/status` and `forwarder status --json` print."""
    shipper = agent.shipper
    return {
        "agent": {
            "name": agent.config.agent.name,
            "version": __version__,
            "uptime_seconds": round(time.time() - agent.started, 1),
            "ready": agent.ready,
            "state_writable": agent.state_writable,
        },
        "kafka": {
            "bootstrap_servers": agent.bootstrap,
            "connected": shipper.connected,
            "in_flight_bytes": shipper.in_flight,
            "window_bytes": shipper.window,
            "oldest_unacked_seconds": round(shipper.oldest_unacked(), 3),
            "delivered": dict(shipper.delivered),
            "dead": dict(shipper.dead),
            "producers_replaced": shipper.replaced,
            "exactly_once_broken": dict(shipper.broken),
        },
        "sources": [
            {
                "name": lane.source.name,
                "app": lane.source.app,
                "position": lane.position,
                "lag_bytes": lane.lag(),
                "records": lane.records,
                "records_per_second": round(lane.rate, 1),
                "waits": lane.waiting is not None,
                "waits_for_topic": lane.waits_for,
                "trouble": lane.trouble,
            }
            for lane in shipper.lanes()
        ],
        "spool": {
            "bytes": agent.spools.disk_bytes,
            "max_bytes": agent.config.spool.max_bytes,
            "apps": {spool.app: spool.bytes for spool in agent.spools},
            "damaged_bytes": sum(spool.damaged_bytes for spool in agent.spools),
            "missing_bytes": sum(spool.missing_bytes for spool in agent.spools),
            "disk_errors": agent.spools.disk_errors,
        },
        "dropped": [{"app": app, "reason": reason, "records": count} for (app, reason), count in dropped(agent).items()],
        "client_dropped": dict(agent.listener.client_dropped),
        "rejected": dict(agent.listener.rejected),
        "cut": dict(agent.listener.cut + agent.tails.counts.cut),
        "connections": dict(connections(agent)),
        "tail": agent.tails.statistics(),
        "errors": list(shipper.errors),
    }


def dropped(agent: Agent) -> Counter[tuple[str, str]]:
    """Records given up, by app and reason."""
    return agent.spools.dropped + agent.shipper.dropped


def connections(agent: Agent) -> Counter[str]:
    """Those that are open, by app."""
    return Counter(connection.app for connection in agent.listener.connections)
