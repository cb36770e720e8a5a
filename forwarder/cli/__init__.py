"""The command `forwarder`: one file a sub-command, of which only the one that is named is loaded."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from forwarder.version import __version__

FAILED = 1
COMMANDS = ("run", "check", "demo", "status", "spool", "dead", "schema")


def parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Of the commands named."""
    top = argparse.ArgumentParser(
        prog="forwarder", description="Ships the log records of local apps to Apache Kafka, with the disk in between."
    )
    top.add_argument("--version", action="version", version=f"forwarder {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(f"forwarder.cli.{name}").add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, and ends with 2 on wrong usage."""
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parser(given[:1] if given and given[0] in COMMANDS else COMMANDS).parse_args(given)
    try:
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
