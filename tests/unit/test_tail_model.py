"""Files are written, rotated, copied, truncated, deleted and created again in every order that hypothesis comes upon, while the
agent looks, does not look, is stopped, killed, and Kafka is away or refuses.

- No line is ever lost, but for what stood only in a deleted file when the agent was killed.
- A line arrives twice only if it had arrived, and its position was not on disk, when the agent was killed: once more for each
  such kill.
- Every line arrives as it was written, and those of one file in the order in which they were written; but what Kafka refuses of
  a file that is truncated meanwhile may come from its copy when more of the copy has arrived.

Agent, files, inotify and positions are real; Kafka is `tests.harness.broker` and time `tests.harness.virtual`. FORWARDER_SEED
or --hypothesis-seed plays another run than the suite's, FORWARDER_MODEL_STEPS says how long it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from forwarder import config
from forwarder.agent import Agent
from forwarder.source import TAIL_PREFIX
from forwarder.systemd import Notifier
from forwarder.tail import inotify
from forwarder.tail.descriptors import Descriptors
from forwarder.tail.file import TailedFile
from forwarder.tail.identity import SURE_BYTES
from tests.harness.broker import Broker
from tests.harness.virtual import VirtualLoop

STEPS = int(os.environ.get("FORWARDER_MODEL_STEPS", "10000"))
STEPS_EACH = 50
SEED = 1
"""The suite's; others are for whoever looks for more."""

NAMES = ("app.log", "web.log", "job.log")
GLOBS = (NAMES, tuple(f"{name}*" for name in NAMES), ("*.log",), ("*.log", "*.log*"))
MANY = 1000
"""Of descriptors, more than there are files."""
QUANTUM = 400
"""Bytes of a chunk, so that a few lines are several; lines may be longer."""
IN_FLIGHT = 8 * 1024
LOOKED = 0.5
"""Within so many seconds the agent has opened whatever appeared."""
SETTLED = 4.0
"""Longer than the agent waits to see whether a file is the copy of another."""
DELETED_KEPT = 5.0
GONE, QUIET, HELD = 20.0, 0.3, 0.2
"""How long a renamed file is kept open, one that does not grow is looked at all the time, a record may go on: shortened."""
LONG = 45.0
"""Longer than that, and than any wait for Kafka."""
GRAIN = 4_000_000
"""Of the clock that files are stamped with, in nanoseconds."""
BEGAN = 1_800_000_000
"""What the wall clock shows when the loop's shows 0."""

counted: Counter[str] = Counter()
"""Steps, and how often what is rare really happened."""


names = st.sampled_from(NAMES)
styles = st.sampled_from(["numbered", "suffix", "infix"])
looks = [0.0005, 0.002, 0.005, 0.02, 0.1, 0.3, 1.0, SETTLED]
choices = st.integers(0, 7)
sizes = st.sampled_from([0, 10, 100, 700, 1500])
"""Of what a line holds beside its own number: nothing, less than a mark, more, nearly a head, more."""

several = st.lists(sizes, min_size=1, max_size=6)


class Body:
    """What was written to one file, whatever becomes of its name: whole lines, and one that is not finished yet."""

    def __init__(self, name: str, number: int, path: Path, file: FileIO) -> None:
        self.name = name
        self.number = number
        self.path: Path | None = path
        """Where it is; None once it is deleted, or truncated and another one's."""
        self.file: FileIO | None = file
        """What its writer has open."""
        self.lines: list[bytes] = []
        self.partial = b""
        self.touched = 0.0
        """When it was last written to, or lost its name, by the loop's clock."""
        self.whole = sys.maxsize
        """So many lines were there when it was rotated."""
        self.rescued = False
        """It was deleted, and the agent has been stopped since: what it had of it is elsewhere."""
        self.truncated = False
        """All of it has arrived, or is in a copy."""

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    @property
    def deleted(self) -> bool:
        return self.path is None and not self.truncated

    @property
    def expected(self) -> list[bytes]:
        return [*self.lines, self.partial] if self.partial else self.lines


class Copy(NamedTuple):
    """What copytruncate left."""

    body: Body


class Files(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="fwd-model-"))
        self.logs = self.root / "logs"
        self.logs.mkdir()
        self.loop = VirtualLoop()
        self.broker = Broker(self.loop)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("forwarder.shipper.Kafka", self.broker.connect)
        self.patch.setattr("time.time", lambda: self.now() / 1e9)
        self.patch.setattr("forwarder.tail.inotify._DEAF", set())
        # Stamps are set below, which the agent would hear of.
        self.patch.setattr("forwarder.tail.inotify._DIRECTORY", inotify._DIRECTORY & ~inotify._ATTRIB)
        self.patch.setattr("forwarder.shipper.QUANTUM", QUANTUM)
        self.patch.setattr("forwarder.tail.GONE_SECONDS", GONE)
        self.patch.setattr("forwarder.tail.growth.QUIET_AFTER", QUIET)
        self.patch.setattr("forwarder.tail.growth.HELD_SECONDS", HELD)
        self.ticks = 0
        """So often the wall clock went on while that of the loop stood still."""
        self.globs: tuple[str, ...] = ()
        self.multiline: config.Multiline | None = None
        self.few = False
        """There are fewer descriptors than files: what is deleted may not be open."""
        self.agent: Agent | None = None
        self.task: asyncio.Task[int]
        self.run_began = 0
        """How much had been taken when the agent started."""
        self.bodies: list[Body] = []
        self.current: dict[str, Body | None] = {}
        self.at: dict[Path, Body | Copy] = {}
        """Every file there is."""
        self.truncated: set[str] = set()
        """Names of which the agent may not have seen yet that they were truncated."""
        self.inodes: set[int] = set()
        self.day = 0
        self.allowed: Counter[bytes] = Counter()
        """How often a line may come again."""
        self.excused: set[bytes] = set()
        self.refused = False
        """Kafka has, at least once."""
        self.smooth = True
        """Nothing was refused, deleted, copied or killed: the files of a name come one after the other."""

    # The agent

    @property
    def up(self) -> bool:
        return self.agent is not None

    def launch(self) -> None:
        paths = tuple(f"{self.logs}/{glob}" for glob in self.globs)
        settings = config.Config(
            agent=config.Agent(state_dir=str(self.root / "state")),
            kafka=config.Kafka(bootstrap_servers="nowhere:1", in_flight=IN_FLIGHT),
            tails=(config.Tail(paths=paths, format="raw", multiline=self.multiline),),
            http=config.Http(listen=""),
        )
        self.agent = Agent(settings, Notifier({}), lambda agent: {})
        self.task = self.loop.create_task(self.agent.run())
        self.run_began = len(self.broker.taken)
        while not self.agent.ready:
            self.let_pass(0.001)

    def let_pass(self, seconds: float) -> None:
        self.loop.pass_time(seconds)
        if self.up:
            assert not self.task.done(), self.task.result()
            if seconds >= SETTLED:
                self.truncated.clear()

    def terminate(self) -> None:
        assert self.agent is not None
        self.loop.signal_handlers[signal.SIGTERM]()
        assert self.loop.run_until_complete(self.task) == 0
        self.agent = None
        for body in self.bodies:
            if body.deleted:
                body.close()
                body.rescued = True

    def crash(self, stored: int) -> None:
        """SIGKILL: nothing more is done, and nothing is there afterwards but files."""
        self.smooth = False
        assert self.agent is not None
        self.broker.crash(stored)
        window = self.unsaved()
        self.allowed.update(window)
        counted["lines in the window of a kill"] += len(window)
        arrived = self.arrived()
        for body in self.bodies:
            if body.deleted and not body.rescued:
                body.close()
                lost = set(body.expected) - arrived
                self.excused |= lost
                counted["lines lost with a deleted file"] += len(lost)
        self.loop.end_all()
        self.agent.shipper.close()
        self.agent.spools.close()
        self.agent.tails.close()
        self.agent = None

    def unsaved(self) -> set[bytes]:
        """What has arrived of this run's, with no position on disk behind it."""
        assert self.agent is not None
        with contextlib.closing(sqlite3.connect(self.root / "state" / "positions.db")) as database:
            saved = dict(database.execute("SELECT name, position FROM source"))
        lanes = {id(lane) for lane in self.agent.shipper.lanes()}
        # A source that is no lane any more was left because all of it is in Kafka, and its position gone for that reason.
        return {
            taken.value
            for taken in self.broker.taken[self.run_began :]
            if id(taken.lane) in lanes and taken.end > saved.get(taken.lane.source.name, 0)
        }

    def arrived(self) -> set[bytes]:
        return {taken.value for taken in self.broker.taken}

    def has_arrived(self, bodies: Iterable[Body]) -> bool:
        arrived = self.arrived() | self.excused
        return all(arrived.issuperset(body.expected) for body in bodies)

    def of(self, name: str) -> list[Body]:
        return [body for body in self.bodies if body.name == name]

    # Files

    def create(self, name: str) -> Body:
        path = self.logs / name
        self.let_clock_tick()
        file = path.open("ab", buffering=0)
        self.stamp(file, self.logs)
        inode = os.fstat(file.fileno()).st_ino
        counted["inodes used again"] += inode in self.inodes
        counted["files"] += 1
        self.inodes.add(inode)
        return self.new_body(name, path, file)

    def new_body(self, name: str, path: Path, file: FileIO) -> Body:
        body = Body(name, len(self.bodies), path, file)
        body.touched = self.loop.time()
        self.bodies.append(body)
        self.current[name] = self.at[path] = body
        return body

    def now(self) -> int:
        """Wall clock time in nanoseconds."""
        return int((BEGAN + self.loop.time()) * 1e9) + self.ticks * GRAIN

    def stamp(self, *paths: Path | FileIO) -> None:
        """What has been changed just now says so, by the clock of the agent."""
        now = self.now() // GRAIN * GRAIN
        for path in paths:
            os.utime(path.fileno() if isinstance(path, FileIO) else path, ns=(now, now))

    def let_clock_tick(self) -> None:
        """Files are told apart and put in order by times that file systems take from a clock of some milliseconds' grain."""
        latest = max((path.stat().st_mtime_ns for path in self.at), default=0)
        while self.now() // GRAIN * GRAIN <= latest:
            self.ticks += 1

    def append(self, body: Body, data: bytes) -> None:
        assert body.file is not None
        body.file.write(data)
        self.stamp(body.file)
        body.touched = self.loop.time()

    def line(self, body: Body, size: int) -> bytes:
        """A line like no other, though many begin alike."""
        return b"%s%s/%d/%d" % (b"x" * size, body.name.encode(), body.number, len(body.lines))

    def write_line(self, body: Body, size: int) -> None:
        self.finish(body)
        line = self.line(body, size)
        self.append(body, line + b"\n")
        body.lines.append(line)

    def finish(self, body: Body) -> None:
        if body.partial:
            line = body.partial + b"/finished"
            self.append(body, b"/finished\n")
            body.lines.append(line)
            body.partial = b""

    def move(self, source: Path, target: Path) -> None:
        source.rename(target)
        self.stamp(self.logs)
        body = self.at[target] = self.at.pop(source)
        if isinstance(body, Body):
            body.path = target

    def unlink(self, path: Path) -> None:
        self.smooth = False
        path.unlink()
        self.stamp(self.logs)
        del self.at[path]

    def rotated_path(self, name: str, style: str) -> Path:
        """Where a rotation puts the file, or the copy; makes room there."""
        self.day += 1
        if style == "suffix":
            return self.logs / f"{name}-2026{self.day:04d}"
        if style == "infix":
            return self.logs / name.replace(".log", f"-2026{self.day:04d}.log")
        for path, number in reversed(self.numbered(name)):
            self.move(path, self.logs / f"{name}.{number + 1}")
        return self.logs / f"{name}.1"

    def numbered(self, name: str) -> list[tuple[Path, int]]:
        found = ((path, path.name.removeprefix(f"{name}.")) for path in self.at)
        return sorted(((path, int(number)) for path, number in found if number.isdigit()), key=lambda pair: pair[1])

    def followed(self, path: Path) -> bool:
        return any(fnmatchcase(path.name, glob) for glob in self.globs)

    def still_heard(self, body: Body) -> bool:
        """Whether the agent still listens to what is written to a file that has lost its name."""
        if body.file is None or body.path is None:
            return not self.few and body.file is not None and self.up and self.loop.time() - body.touched < DELETED_KEPT / 2
        return self.followed(body.path) or self.loop.time() - body.touched < GONE / 2

    # Rules

    @initialize(globs=st.sampled_from(GLOBS), descriptors=st.sampled_from([MANY, 2]), held=st.booleans())
    def begin(self, globs: tuple[str, ...], descriptors: int = MANY, held: bool = False) -> None:
        """With `held`, a line is held back until the next one begins, or nothing has been written for a while."""
        counted["steps"] -= 1
        self.globs = globs
        self.multiline = config.Multiline(start="^") if held else None
        self.few = descriptors != MANY
        self.patch.setattr("forwarder.tail.Descriptors", partial(Descriptors, descriptors))
        for name in NAMES:
            self.create(name)
        self.launch()
        self.let_pass(LOOKED)

    @invariant()
    def count(self) -> None:
        counted["steps"] += 1

    @rule(name=names, sizes=several)
    def write(self, name: str, sizes: list[int]) -> None:
        body = self.current[name] or self.create(name)
        for size in sizes:
            self.write_line(body, size)

    @rule(name=names, size=sizes)
    def write_part_of_a_line(self, name: str, size: int) -> None:
        body = self.current[name] or self.create(name)
        part = b"/part" if body.partial else self.line(body, size)
        self.append(body, part)
        body.partial += part

    @rule(name=names)
    def finish_the_line(self, name: str) -> None:
        body = self.current[name]
        if body is not None:
            self.finish(body)

    @rule(which=choices, size=sizes)
    def write_to_an_old_file(self, which: int, size: int) -> None:
        old = [body for body in self.bodies if body not in self.current.values() and self.still_heard(body)]
        if old:
            self.write_line(old[which % len(old)], size)
            counted["writes to old files"] += 1

    @rule(name=names, style=styles, recreate=st.booleans())
    def rotate(self, name: str, style: str, recreate: bool) -> None:
        body = self.current[name]
        if body is None or body.path is None:
            return
        self.let_clock_tick()
        self.move(body.path, self.rotated_path(name, style))
        body.whole = len(body.lines)
        body.touched = self.loop.time()
        self.current[name] = None
        if recreate:
            self.create(name)

    @rule(name=names, style=styles)
    def copytruncate(self, name: str, style: str) -> None:
        body = self.current[name]
        if body is None or body.path is None:
            return
        if name in self.truncated:
            # Of several within a moment lines can come twice.
            if not self.up:
                return
            self.let_pass(SETTLED)
        self.finish(body)
        if body.path.stat().st_size < SURE_BYTES:
            # So little is never taken for a copy.
            self.write_line(body, SURE_BYTES)
        if len(body.lines[0]) + 1 < SURE_BYTES:
            # No more may have been read.
            self.allowed.update(body.lines[:1])
        self.copy(body, self.rotated_path(name, style))
        self.truncate_file(body)

    def copy(self, body: Body, path: Path) -> None:
        self.smooth = False
        assert body.path is not None
        shutil.copyfile(body.path, path)
        self.stamp(path, self.logs)
        self.at[path] = Copy(body)

    @precondition(lambda self: self.up and not self.broker.away)
    @rule(name=names)
    def truncate(self, name: str) -> None:
        body = self.current[name]
        if body is None:
            return
        self.finish(body)
        self.let_pass(SETTLED)
        if self.has_arrived([body]):
            self.truncate_file(body)

    def truncate_file(self, body: Body) -> None:
        self.smooth = False
        assert body.file is not None
        assert body.path is not None
        self.let_clock_tick()
        body.file.truncate(0)
        self.stamp(body.file)
        self.new_body(body.name, body.path, body.file)
        body.path = body.file = None
        body.truncated = True
        self.truncated.add(body.name)

    @rule(name=names, recreate=st.booleans(), stays_open=st.booleans())
    def delete(self, name: str, recreate: bool, stays_open: bool) -> None:
        body = self.current[name]
        if body is None or body.path is None:
            return
        if self.up:
            self.let_pass(LOOKED)
        if (self.few or not self.up) and not self.has_arrived([body]):
            return
        self.unlink(body.path)
        body.path = self.current[name] = None
        body.touched = self.loop.time()
        if not stays_open or not self.up:
            # To what was deleted while the agent was away nobody can listen.
            body.close()
        if recreate:
            self.create(name)

    @rule(which=choices, name=names)
    def delete_a_rotated_file(self, which: int, name: str) -> None:
        rotated = sorted(path for path in self.at if path.name not in NAMES and path.name.startswith(name[:3]))
        if not rotated:
            return
        path = rotated[which % len(rotated)]
        if self.up:
            self.let_pass(SETTLED)
        body = self.at[path]
        if not self.has_arrived(self.of(name)) and (isinstance(body, Copy) or self.few or not self.up):
            return
        self.unlink(path)
        if isinstance(body, Body):
            body.path = None
            body.close()

    @precondition(lambda self: self.up)
    @rule(seconds=st.sampled_from(looks))
    def look(self, seconds: float) -> None:
        self.let_pass(seconds)

    @precondition(lambda self: self.up)
    @rule()
    def wait_long(self) -> None:
        self.let_pass(LONG)

    @rule(away=st.booleans())
    def kafka_goes_away_or_comes_back(self, away: bool) -> None:
        self.broker.away = away

    @rule(latency=st.sampled_from([0.002, 0.1, 1.0]))
    def kafka_takes_its_time(self, latency: float) -> None:
        self.broker.latency = latency

    @rule(count=st.integers(1, 3))
    def kafka_takes_no_more(self, count: int) -> None:
        self.smooth = False
        self.broker.full = count

    @rule()
    def kafka_refuses(self) -> None:
        self.refused = True
        self.smooth = False
        self.broker.refuse()

    @rule()
    def the_producer_fails(self) -> None:
        self.smooth = False
        self.broker.make_fatal()

    @precondition(lambda self: self.up)
    @rule(start=st.booleans())
    def stop(self, start: bool) -> None:
        self.terminate()
        if start:
            self.launch()

    @precondition(lambda self: self.up)
    @rule(stored=st.integers(0, 5), start=st.booleans(), name=names, sizes=several, after=st.sampled_from(looks))
    def kill(self, stored: int, start: bool, name: str, sizes: list[int], after: float) -> None:
        self.write(name, sizes)
        self.let_pass(after)
        self.crash(stored)
        if start:
            self.launch()

    @precondition(lambda self: self.up)
    @rule(
        order=st.permutations(NAMES),
        stored=st.integers(0, 5),
        before=st.sampled_from(looks),
        after=st.sampled_from(looks),
        style=styles,
    )
    def kill_when_inodes_have_changed_owners(
        self, order: list[str], stored: int, before: float, after: float, style: str
    ) -> None:
        """Files are deleted and others created, and once the agent is gone these are rotated."""
        self.let_pass(LOOKED)
        for name, body in self.current.items():
            if body is not None and body.path is not None and self.has_arrived([body]):
                self.unlink(body.path)
                body.path = self.current[name] = None
                body.touched = self.loop.time()
                body.close()
        self.let_pass(before)
        for name in order:
            self.write(name, [10, 100])
        self.let_pass(after)
        self.crash(stored)
        for name in order:
            self.write(name, [100])
            self.rotate(name, style, recreate=True)
            self.write(name, [10])

    @precondition(lambda self: not self.up)
    @rule()
    def start(self) -> None:
        self.launch()

    # The end

    def teardown(self) -> None:
        try:
            # Only what ran to its end can be judged.
            if sys.exc_info()[0] is None:
                self.come_to_rest()
                self.judge()
        finally:
            if self.up and not self.task.done():
                self.crash(0)
            for body in self.bodies:
                body.close()
            self.loop.close()
            self.patch.undo()
            gc.unfreeze()
            shutil.rmtree(self.root)

    def come_to_rest(self) -> None:
        self.broker.away, self.broker.full, self.broker.latency = False, 0, 0.002
        if not self.up:
            self.launch()
        for body in self.bodies:
            if body.file is not None and body.path is not None and self.followed(body.path):
                self.finish(body)
        self.let_pass(LONG)
        assert not self.broker.in_flight
        self.terminate()
        # A restart sends nothing again, and what was rescued from deleted files.
        self.launch()
        self.let_pass(SETTLED)
        self.terminate()

    def judge(self) -> None:
        expected = {line: body for body in self.bodies for line in body.expected}
        values = [taken.value for taken in self.broker.taken]
        arrived = Counter(values)
        counted["lines"] += len(expected)
        counted["duplicates"] += len(values) - len(arrived)
        alien = arrived.keys() - expected.keys()
        lost = expected.keys() - arrived.keys() - self.excused
        twice = {line: count for line, count in arrived.items() if count > 1 + self.allowed[line]}
        assert not (lost or alien or twice), {"lost": sorted(lost), "alien": sorted(alien), "too often": twice}
        last: dict[Body, int] = {}
        for value in dict.fromkeys(taken.value for taken in self.broker.taken if taken.lane.source.name.startswith(TAIL_PREFIX)):
            body = expected[value]
            index = body.expected.index(value)
            if body.truncated and self.refused:
                continue
            assert index >= last.get(body, 0), f"{value!r} came after what was written behind it"
            last[body] = index
        if self.smooth:
            self.judge_order_of_files(values)

    def judge_order_of_files(self, values: list[bytes]) -> None:
        """What was in a file when it was rotated comes before what is in the next one."""
        place = {value: number for number, value in reversed(list(enumerate(values)))}
        for name in NAMES:
            latest = -1
            for body in self.of(name):
                own = [place[line] for line in body.lines[: body.whole]]
                assert not own or min(own) > latest, f"{body.lines[0]!r} came before what is in the file before"
                latest = max([latest, *own])


@pytest.mark.parametrize("milliseconds", range(1, 24))
def test_what_kafka_refuses_in_the_moment_of_a_truncation_is_read_once_in_the_copy(milliseconds: int) -> None:
    files = Files()
    files.begin(GLOBS[0])
    files.write("app.log", [100])
    files.look(SETTLED)
    files.kafka_takes_its_time(milliseconds / 1000)
    files.write("app.log", [100] * 6)
    body = files.current["app.log"]
    assert body is not None
    files.copy(body, files.logs / "app.log.1")
    files.look(0.005)
    files.truncate_file(body)
    files.kafka_refuses()
    files.write("app.log", [10])
    files.teardown()


def test_a_file_that_is_truncated_in_the_moment_in_which_it_is_compared_with_its_copy_is_sent_once() -> None:
    files = Files()
    files.begin(GLOBS[0])
    files.write("app.log", [100] * 3)
    files.look(SETTLED)
    body = files.current["app.log"]
    assert body is not None
    compare = TailedFile.agrees_with

    def truncate_and_compare(file: TailedFile, fd: int) -> bool:
        if not body.truncated:
            files.truncate_file(body)
            files.write("app.log", [700])
        return compare(file, fd)

    files.patch.setattr(TailedFile, "agrees_with", truncate_and_compare)
    files.copy(body, files.logs / "app.log.1")
    files.look(SETTLED)
    assert body.truncated
    files.teardown()


def test_the_copy_of_a_file_that_was_not_open_and_is_renamed_at_once_is_not_sent_again() -> None:
    files = Files()
    files.begin(GLOBS[0], descriptors=2)
    files.write("app.log", [0] * 6)
    files.write("web.log", [100])
    files.look(SETTLED)
    files.write("job.log", [100])
    files.rotate("web.log", "suffix", recreate=True)
    files.look(SETTLED)
    files.copytruncate("app.log", "suffix")
    files.rotate("app.log", "numbered", recreate=True)
    files.wait_long()
    files.teardown()


def test_a_record_that_may_go_on_arrives_though_its_file_is_truncated_as_the_agent_stops() -> None:
    files = Files()
    files.begin(GLOBS[0], held=True)
    files.write("app.log", [100, 10])
    files.look(0.05)
    body = files.current["app.log"]
    assert body is not None
    files.truncate_file(body)
    files.terminate()
    files.teardown()


@pytest.mark.slow
def test_nothing_is_lost_whatever_happens_to_files_agent_and_kafka(request: pytest.FixtureRequest) -> None:
    given = request.config.getoption("--hypothesis-seed") or os.environ.get("FORWARDER_SEED")
    chosen = int(given or SEED)
    print(f"seed {chosen}")
    counted.clear()
    while counted["steps"] < STEPS:
        run_state_machine_as_test(
            seed(chosen)(Files),
            settings=settings(
                max_examples=math.ceil((STEPS - counted["steps"]) / STEPS_EACH),
                stateful_step_count=STEPS_EACH,
                suppress_health_check=list(HealthCheck),
            ),
        )
        chosen += 1
    print(dict(counted))
