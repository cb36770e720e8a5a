"""`forwarder spool`: what is on disk for each app, looked at, mended and taken out without an agent."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forwarder.cli.common import add_config_option, load_config

if TYPE_CHECKING:
    from forwarder.spool import Segment
    from forwarder.spool.block import Block, Damage


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "spool",
        help="list, check, repair or export what is on disk",
        description="Looks at the spool on disk. list, check and export may run beside the agent; repair needs it stopped.",
        epilog="example: forwarder spool export --app shop > shop.log",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, function, text in (
        ("list", _list, "bytes, segments and records of each app, and how much of them is not in Kafka yet"),
        ("check", _check, "verify every checksum; exit 1 if there is damage"),
        ("repair", _repair, "rewrite damaged segments with every good block; what was bad is kept in quarantine"),
        ("export", _export, "write records to standard output, one a line"),
    ):
        example = f"example: forwarder spool {name}"
        action = actions.add_parser(name, help=text, description=f"{text.capitalize()}.", epilog=example)
        add_config_option(action)
        action.add_argument("--app", help="only this app")
        action.set_defaults(run=partial(_run, function))
        if name == "export":
            action.add_argument("--all", action="store_true", help="also records that are in Kafka already but still on disk")


class NoSuchApp(Exception):
    """No spool has the name that was asked for."""


def _run(function: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from forwarder.spool.block import UnknownVersion

    try:
        return function(args)
    except BrokenPipeError:
        raise
    except (NoSuchApp, UnknownVersion, OSError) as error:
        print(f"forwarder: {error}", file=sys.stderr)
        return 1


def _apps(args: argparse.Namespace) -> Iterator[tuple[str, Path, int]]:
    """App, directory and saved position of each spool asked for."""
    import sqlite3

    from forwarder.spool import app_directories

    state = Path(load_config(args).agent.state_dir)
    positions: dict[str, int] = {}
    database = state / "positions.db"
    if database.exists():
        try:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
                positions = dict(connection.execute("SELECT name, position FROM source"))
        except sqlite3.Error as error:
            print(f"{database}: {error}; taking everything on disk as not delivered", file=sys.stderr)
    found = dict(app_directories(state / "spool"))
    if args.app is not None and args.app not in found:
        raise NoSuchApp(f"there is no spool of app {args.app} in {state}; there are: {', '.join(found) or 'none'}")
    for app, directory in found.items():
        if args.app in {None, app}:
            yield app, directory, positions.get(f"spool:{app}", 0)


def _parts(directory: Path) -> Iterator[tuple[Segment, Any, Block | Damage]]:
    """What the segments of one app consist of, each with its segment and the bytes that it is a part of."""
    from forwarder.spool import block, list_segments

    for segment in list_segments(directory):
        try:
            with block.mapped(segment.path) as data:
                for part in block.scan(data):
                    yield segment, data, part
        except FileNotFoundError:
            continue  # an agent has just removed it: all of it is in Kafka


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from forwarder.spool import block, list_segments

    table = Table("app", "segments", "bytes", "records", "not in Kafka yet")
    for column in table.columns[1:]:
        column.justify = "right"
    for app, directory, position in _apps(args):
        segments = list_segments(directory)
        records = left = 0
        for segment, _, part in _parts(directory):
            if isinstance(part, block.Block):
                records += part.count
                left += part.count if segment.first + part.end > position else 0
        table.add_row(app, str(len(segments)), str(sum(segment.size for segment in segments)), str(records), str(left))
    Console().print(table)
    return 0


def _check(args: argparse.Namespace) -> int:
    from forwarder.spool import block

    damaged = False
    for app, directory, _ in _apps(args):
        blocks = records = bad = 0
        for segment, _, part in _parts(directory):
            if isinstance(part, block.Damage):
                bad += part.end - part.start
                print(f"{app}: {segment.path}: bytes {part.start} to {part.end} are damaged")
            else:
                blocks += 1
                records += part.count
        damaged = damaged or bad > 0
        print(f"{app}: {blocks} good blocks, {records} records, {bad} damaged bytes")
    return 1 if damaged else 0


def _repair(args: argparse.Namespace) -> int:
    from forwarder.agent import StateInUse, own_state_directory
    from forwarder.spool.repair import repair

    state = Path(load_config(args).agent.state_dir)
    if not state.exists():
        return 0
    try:
        with own_state_directory(state):
            for app, directory, _ in _apps(args):
                print(f"{app}: {repair(directory)} damaged bytes moved to quarantine")
    except StateInUse as error:
        print(f"forwarder: {error}", file=sys.stderr)
        return 1
    return 0


def _export(args: argparse.Namespace) -> int:
    from forwarder.spool import block

    out = sys.stdout.buffer
    for _, directory, position in _apps(args):
        for segment, data, part in _parts(directory):
            if isinstance(part, block.Damage):
                print(f"{segment.path}: bytes {part.start} to {part.end} are damaged, left out", file=sys.stderr)
            elif part.kind == block.RECORDS and (args.all or segment.first + part.end > position):
                out.write(data[part.body : part.end])
    out.flush()
    return 0
