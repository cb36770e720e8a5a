"""What the sub-commands share: the option `-c`, and loading the configuration or ending with its errors."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from forwarder.config import DEFAULT_FILE, Config, ConfigError

if TYPE_CHECKING:
    from forwarder.configload import Loaded

WRONG_CONFIGURATION = 78
OUSTED = 69
"""Another agent of the same name ships: to start this one again would only go on with the quarrel."""


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Give a sub-command the option `-c FILE`."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"configuration file (default: {DEFAULT_FILE}, if it is there); conf.d/*.toml beside it is merged in",
    )


def load_config(args: argparse.Namespace) -> Config:
    """The configuration that `args` and the environment ask for; with a wrong one, prints its errors and ends with 78."""
    return load_with_origin(args).config


def load_with_origin(args: argparse.Namespace) -> Loaded:
    """As `load_config`, with what is known of where the configuration came from."""
    from forwarder import configload

    try:
        return configload.load(args.config, os.environ)
    except ConfigError as error:
        for line in error.errors:
            print(line, file=sys.stderr)
        raise SystemExit(WRONG_CONFIGURATION) from None
