"""`forwarder status`: what the running agent is doing, once or redrawn like `top`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from forwarder.cli.common import add_config_option, load_config

if TYPE_CHECKING:
    from rich.console import RenderableType


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "status",
        help="show what the running agent is doing",
        description="Asks the running agent, through the address in http.listen, what it is doing.",
        epilog="example: forwarder status --watch",
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", action="store_true", help="redraw every second until interrupted")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from forwarder import client

    listen = load_config(args).http.listen
    if not listen:
        print("forwarder: http.listen is empty, so the agent cannot be asked", file=sys.stderr)
        return 1
    try:
        if args.json:
            print(client.get(listen, "/status").decode())
        elif args.watch:
            _watch(listen)
        else:
            from rich.console import Console

            Console().print(_draw(client.status(listen)))
    except OSError as error:
        print(f"forwarder: no agent answers at {listen}: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(listen: str) -> None:
    """Redraw until interrupted, or print where there is no screen; an agent that is away for a while is waited for."""
    from rich.console import Console
    from rich.live import Live

    from forwarder import client

    console = Console()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False)) if console.is_terminal else None
        while True:
            try:
                picture = _draw(client.status(listen))
            except OSError as error:
                picture = f"no agent answers at {listen}: {error}"
            if live is None:
                console.print(picture)
            else:
                live.update(picture, refresh=True)
            time.sleep(1)


def _draw(status: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    agent, kafka, spool = status["agent"], status["kafka"], status["spool"]
    head = Table.grid(padding=(0, 2))
    head.add_row("agent", f"{agent['name']}, version {agent['version']}, up {agent['uptime_seconds']:.0f} s")
    state = Text("connected", "green") if kafka["connected"] else Text("not connected", "red")
    head.add_row("Kafka", Text.assemble(state, f", {kafka['bootstrap_servers']}"))
    head.add_row("in flight", f"{_size(kafka['in_flight_bytes'])} of a window of {_size(kafka['window_bytes'])}")
    head.add_row("oldest not in Kafka", f"{kafka['oldest_unacked_seconds']:.1f} s")
    head.add_row("spool", f"{_size(spool['bytes'])} of {_size(spool['max_bytes'])}")
    head.add_row("delivered", ", ".join(f"{topic}: {count}" for topic, count in kafka["delivered"].items()) or "nothing yet")
    drops = [f"{drop['app']}: {drop['records']} ({drop['reason']})" for drop in status["dropped"]]
    drops += [f"{app}: {count} (in the app)" for app, count in status["client_dropped"].items()]
    head.add_row("dropped", ", ".join(drops) or "none")

    sources = Table("source", "app", "position", "lag", "records/s", "", title="sources", title_justify="left")
    for column in sources.columns[2:5]:
        column.justify = "right"
    for source in sorted(status["sources"], key=lambda each: -each["lag_bytes"]):
        waits = f"waits for topic {source['waits_for_topic']}" if source["waits_for_topic"] else source["trouble"]
        sources.add_row(
            source.get("path") or source["name"],
            source["app"],
            str(source["position"]),
            _size(source["lag_bytes"]),
            f"{source['records_per_second']:.0f}",
            waits,
        )
    errors = Text("\n".join(["last errors", *status["errors"]]), "yellow") if status["errors"] else Text("")
    return Group(head, Text(""), sources, errors)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
