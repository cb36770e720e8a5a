"""The command `forwarder`: one file a sub-command, heavy imports only where they are used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from forwarder.cli import check, dead, demo, run, schema, spool, status
from forwarder.version import __version__

FAILED = 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="forwarder", description="Ships the log records of local apps to Apache Kafka, with the disk in between."
    )
    top.add_argument("--version", action="version", version=f"forwarder {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, check, demo, status, spool, dead, schema):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, and ends with 2 on wrong usage."""
    parsed = parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
