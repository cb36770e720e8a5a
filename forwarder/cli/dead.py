"""`forwarder dead`: records that Kafka refused for good, why, and sending them again.

`replay` sends them itself, with acks=all, since that works with and without an agent and asks nothing of a running one: it takes
the app's file away from the agent (see `forwarder.dead`) and goes through it a piece at a time. What is refused again, or
was not asked for, goes back to the end of the app's file before the piece counts as done. Killed at any moment it loses nothing,
and the next replay begins with the piece that was not done: some of it may then be sent, or set aside, twice.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from forwarder.cli.common import add_config_option, load_config

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

    from forwarder.config import Config
    from forwarder.dead import DeadLetter, File
    from forwarder.flight import Record, Refused
    from forwarder.kafka import Kafka, Topic

PIECE_LETTERS, PIECE_BYTES = 1000, 4 * 1024 * 1024
PATIENCE = 10.0
"""Seconds without an answer of Kafka, or of whoever has a file locked, after which a replay gives up."""
POLL = 0.005
SHOWN = 300
"""Characters of a value that `show` prints."""

T = TypeVar("T")


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "dead",
        help="list, show or replay records that Kafka refused for good",
        description="Looks at the records that Kafka refused for good, and sends them again. All of it may run beside the agent.",
        epilog='example: forwarder dead replay shop --reason "too large"',
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, function, text in (
        ("list", _list, "records and bytes of each app, when they were refused, and why"),
        ("show", _show, "print the records, oldest first, with topic, partition, reason and time"),
        ("replay", _replay, "send the records again and remove those that Kafka has taken; what is refused again stays"),
    ):
        action = actions.add_parser(
            name, help=text, description=f"{text.capitalize()}.", epilog=f"example: forwarder dead {name}"
        )
        add_config_option(action)
        action.set_defaults(run=partial(_run, function), app=None, reason=None, topic=None)
        if name != "list":
            action.add_argument("app", nargs="?", metavar="APP", help="only those of this app")
            action.add_argument("--topic", metavar="TOPIC", help="only those that were refused in this topic")
            action.add_argument("--reason", metavar="TEXT", help="only those whose reason has this in it")
        if name == "show":
            action.add_argument("--limit", type=int, metavar="N", help="no more than N records")
            action.add_argument("--json", action="store_true", help="one JSON object a record, with all of its value")
        if name == "replay":
            action.add_argument("--to", metavar="TOPIC", help="send them to this topic instead of the one they were refused in")


class NotNow(Exception):
    """A replay cannot begin, or not go on; what is not sent is still there."""


def _run(function: Callable[[Config, argparse.Namespace], int], args: argparse.Namespace) -> int:
    config = load_config(args)
    try:
        return function(config, args)
    except BrokenPipeError:
        raise
    except PermissionError as error:
        print(f"forwarder: {error}; run this as the agent's user, or as root", file=sys.stderr)
    except (NotNow, OSError) as error:
        print(f"forwarder: {error}", file=sys.stderr)
    return 1


def _directory(config: Config) -> Path:
    return Path(config.agent.state_dir) / "dead"


def _files(config: Config, args: argparse.Namespace) -> list[File]:
    """The files asked for. Raises NotNow when the app has none."""
    from forwarder import dead

    found = dead.files(_directory(config))
    if args.app is not None and args.app not in {file.app for file in found}:
        there = ", ".join(dict.fromkeys(file.app for file in found)) or "none"
        raise NotNow(f"there are no dead letters of app {args.app} in {_directory(config)}; there are: {there}")
    return [file for file in found if args.app in {None, file.app}]


def _wanted(letter: DeadLetter, args: argparse.Namespace) -> bool:
    return args.topic in {None, letter.topic} and (args.reason or "").casefold() in letter.reason.casefold()


def _list(config: Config, args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from forwarder import dead

    table = Table("app", "records", "bytes", "first", "last", "reasons")
    for column in table.columns[1:3]:
        column.justify = "right"
    damaged: Counter[Path] = Counter()
    size: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    times: dict[str, tuple[str, str]] = {}
    for file in _files(config, args):
        size[file.app] += file.size - file.start
        of_app = reasons.setdefault(file.app, Counter())
        for _, _, letter in dead.letters(file):
            if letter is None:
                damaged[file.path] += 1
                continue
            of_app[letter.reason] += 1
            first, last = times.get(file.app, (letter.time, letter.time))
            times[file.app] = min(first, letter.time), max(last, letter.time)
    for app, counts in reasons.items():
        if counts:
            why = "\n".join(f"{reason} ({count})" for reason, count in counts.most_common())
            table.add_row(app, str(counts.total()), str(size[app]), *times[app], why)
    for path, count in damaged.items():
        print(f"{path}: {count} lines are no dead letters, left as they are", file=sys.stderr)
    if table.row_count:
        Console().print(table)
    else:
        print(f"no dead letters in {_directory(config)}")
    return 0


def _show(config: Config, args: argparse.Namespace) -> int:
    from forwarder import dead

    shown = 0
    for file in _files(config, args):
        for _, line, letter in dead.letters(file):
            if args.limit is not None and shown >= args.limit:
                return 0
            if letter is None or not _wanted(letter, args):
                continue
            shown += 1
            if args.json:
                print(msgspec.json.encode({"app": file.app, **msgspec.json.decode(line)}).decode())
                continue
            place = letter.topic if letter.partition < 0 else f"{letter.topic}[{letter.partition}]"
            key = f", key {_printable(letter.key)}" if letter.key is not None else ""
            print(f"{letter.time} {file.app} {place}: {letter.reason}, {len(letter.value)} bytes{key}")
            print(f"  {_printable(letter.value)}")
    return 0


def _printable(content: bytes) -> str:
    """The beginning of what is in a record, without what a terminal would obey."""
    text = content[: 4 * SHOWN].decode(errors="backslashreplace")
    cut = text[:SHOWN]
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
    return shown if len(cut) == len(text) and len(content) <= 4 * SHOWN else f"{shown}…"


def _replay(config: Config, args: argparse.Namespace) -> int:
    from forwarder import dead

    directory = _directory(config)
    if not _files(config, args):
        print(f"no dead letters in {directory}")
        return 0
    with dead.replaying(directory):
        sender = _Sender(config, args.to)
        files = _files(config, args)
        try:
            sender.reach(args.to or _first_topic(files, args))
            counts = {file.app: Counter[str]() for file in files}
            for file in files:
                taken = file if file.taken else _patiently(partial(dead.take, file))
                _replay_file(directory, taken, args, sender, counts[file.app])
        finally:
            sender.close()
    for app, count in counts.items():
        print(f"{app}: {count['sent']} sent, {count['refused']} refused again, {count['left']} not asked for")
    return 1 if any(count["refused"] for count in counts.values()) else 0


def _first_topic(files: list[File], args: argparse.Namespace) -> str:
    from forwarder import dead

    for file in files:
        for _, _, letter in dead.letters(file):
            if letter is not None and _wanted(letter, args):
                return letter.topic
    raise NotNow("there are no dead letters like that; forwarder dead list tells what there is")


def _replay_file(directory: Path, file: File, args: argparse.Namespace, sender: _Sender, count: Counter[str]) -> None:
    from forwarder import dead

    for end, piece in _pieces(file):
        asked = [letter for _, letter in piece if letter is not None and _wanted(letter, args)]
        left = [line for line, letter in piece if letter is None or not _wanted(letter, args)]
        refused = [dead.DeadLetter(e.topic, e.partition, e.error.str(), e.key, e.value) for e in sender.send(asked)]
        if left:
            _patiently(partial(dead.append, directory, file.app, b"".join(left)))
        if refused:
            _patiently(partial(dead.write, directory, file.app, refused, time.time()))
        file = dead.advance(file, end)
        count.update(sent=len(asked) - len(refused), refused=len(refused), left=len(left))
    if file.start < file.size:
        dead.advance(file, file.size)


def _pieces(file: File) -> Iterator[tuple[int, list[tuple[bytes, DeadLetter | None]]]]:
    """Where each piece ends, and its letters with the lines that they were read from."""
    from forwarder import dead

    piece: list[tuple[bytes, DeadLetter | None]] = []
    size = end = 0
    for end, line, letter in dead.letters(file):
        piece.append((line, letter))
        size += len(line)
        if len(piece) == PIECE_LETTERS or size >= PIECE_BYTES:
            yield end, piece
            piece, size = [], 0
    if piece:
        yield end, piece


def _patiently(work: Callable[[], T]) -> T:
    """`work`, again while the agent has the file."""
    from forwarder.dead import InUse

    until = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except InUse:
            if time.monotonic() > until:
                raise
            time.sleep(POLL)


class _Sender:
    """Sends letters, to `to` if that is given. Two producers, as for the agent's own careful sending: see kafka.Way."""

    def __init__(self, config: Config, to: str | None) -> None:
        import logging
        import queue

        from forwarder.kafka import Kafka, Way

        logging.getLogger("forwarder").addHandler(logging.NullHandler())  # what librdkafka says, in place of standard error
        self._bootstrap = config.kafka.bootstrap_servers
        self._to = to
        self._answers: queue.SimpleQueue[Topic] = queue.SimpleQueue()
        self._batched, self._single = (
            Kafka(config, way=way, topic_changed=lambda _, topic: self._answers.put(topic)) for way in (Way.BATCHED, Way.SINGLE)
        )

    def reach(self, topic: str) -> None:
        """Raises NotNow when Kafka does not answer."""
        self._batched.ask(topic)
        answer = self._answers.get()
        if answer.problem and not answer.permanent:
            raise NotNow(f"{self._bootstrap}: {answer.problem}; nothing was sent, all is still there")

    def send(self, letters: list[DeadLetter]) -> list[Refused]:
        """Send and wait for the answers; returns what was refused. Raises NotNow when there are no answers any more."""
        from forwarder.halving import try_all
        from forwarder.kafka import FOR_GOOD

        found: list[Refused] = []

        def refused(part: list[Record], alone: bool) -> list[Record]:
            answers = self._send(self._single if alone else self._batched, part)
            found.extend(each for each in answers if alone or each.error.code() not in FOR_GOOD)
            return [each.record for each in answers if each.error.code() in FOR_GOOD]

        try_all([(self._to or letter.topic, letter.key, letter.value) for letter in letters], refused)
        return found

    def _send(self, kafka: Kafka, records: list[Record]) -> list[Refused]:
        from forwarder.flight import Refused

        left, refused = len(records), list[Refused]()

        def report(error: KafkaError | None, message: Message) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                partition = message.partition()
                place = message.topic() or "", -1 if partition is None else partition
                refused.append(Refused(error, *place, message.key(), message.value() or b""))

        for topic, key, value in records:
            for error, _, _ in kafka.send_each(topic, [(key, value)], report):
                left -= 1
                refused.append(Refused(error, topic, -1, key, value))
        heard, waiting = time.monotonic(), left
        while left:
            kafka.poll()
            if left < waiting:
                heard, waiting = time.monotonic(), left
            elif kafka.fatal or time.monotonic() - heard > PATIENCE:
                why = kafka.fatal or f"Kafka has not answered for {PATIENCE:g} s"
                raise NotNow(f"{self._bootstrap}: {why}; {left} records may be in Kafka or not, and are still there")
            else:
                time.sleep(POLL)
        return refused

    def close(self) -> None:
        self._batched.close()
        self._single.close()
