"""`forwarder run`: the agent in the foreground."""

from __future__ import annotations

import argparse
import resource
import sys
from typing import Any

from forwarder.cli.common import OUSTED, add_config_option, load_config


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "run",
        help="run the agent in the foreground",
        description="Runs the agent until TERM or INT; logs to standard error.",
        epilog="example: forwarder run -c /etc/forwarder/forwarder.toml",
    )
    add_config_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings = load_config(args)

    import uvloop

    from forwarder import agent, logs, positions, status, transactions, unix
    from forwarder.spool import block

    logs.set_up()
    _raise_descriptor_limit()
    try:
        return agent.run(settings, uvloop.new_event_loop, status.pages)
    except (agent.StateInUse, unix.SocketInUse, positions.UnknownVersion, block.UnknownVersion, OSError) as error:
        print(f"forwarder: cannot run: {error}", file=sys.stderr)
        return 1
    except transactions.Ousted as error:
        print(f"forwarder: stopped: {error}", file=sys.stderr)
        return OUSTED


def _raise_descriptor_limit() -> None:
    """Each connection takes a descriptor; the soft limit is low for the sake of programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
