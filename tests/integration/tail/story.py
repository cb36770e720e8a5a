"""What the scenarios are told with: writers of numbered lines, and a story of an agent that follows them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.oracle import Verdict, judge
from tests.harness.wait import eventually

COPIES_KEPT = 99


class Writer:
    """Writes lines to `path`, numbered from `first` under its `name`, and rotates it in the ways of the world."""

    def __init__(self, path: Path, first: int = 0, name: str = "w") -> None:
        self.path = path
        self.name = name
        self.sent = first
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab", buffering=0)

    def __del__(self) -> None:
        self.file.close()

    def lines(self, count: int, filling: str = "a line of some length") -> bytes:
        """The next lines, which somebody else will write."""
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        opening = b'{"writer":"%s","seq":' % self.name.encode()
        ending = b',"text":"%s"}\n' % filling.encode()
        return b"".join(b"%s%d%s" % (opening, number, ending) for number in numbers)

    def write(self, count: int, filling: str = "a line of some length") -> None:
        self.file.write(self.lines(count, filling))

    def raw(self, data: bytes) -> None:
        """Write bytes that count as no line."""
        self.file.write(data)

    def reopen(self) -> None:
        self.file.close()
        self.file = self.path.open("ab", buffering=0)

    def old(self, number: int) -> Path:
        """Where a rotated file lies."""
        return self.path.with_name(f"{self.path.name}.{number}")

    def _shift(self, keep: int) -> None:
        self.old(keep).unlink(missing_ok=True)
        for number in range(keep - 1, 0, -1):
            if self.old(number).exists():
                self.old(number).rename(self.old(number + 1))

    def rotate(self, keep: int = COPIES_KEPT) -> None:
        """As logrotate's `create` and Python's RotatingFileHandler do."""
        self._shift(keep)
        self.path.rename(self.old(1))
        self.reopen()

    def rotate_dated(self, date: str) -> None:
        self.path.rename(f"{self.path}-{date}")
        self.reopen()

    def copy_truncate(self, keep: int = COPIES_KEPT) -> None:
        """As logrotate's `copytruncate` does."""
        self._shift(keep)
        shutil.copyfile(self.path, self.old(1))
        self.file.truncate(0)

    def delete(self) -> None:
        """Delete the file; it stays open here."""
        self.path.unlink()


class Story:
    """An agent that follows globs in the directory `logs`, and writers there: the first, `writer`, writes `app.log`."""

    def __init__(self, kafka: Kafka, topic: str, directory: Path, make: AgentFactory) -> None:
        self.kafka = kafka
        self.topic = topic
        self.logs = directory / "logs"
        self.writers: dict[str, Writer] = {}
        self.writer = self.open("app.log", "w")
        self._make = make
        self._ordered = False
        self.agent: Agent

    # The files

    def open(self, path: str, name: str | None = None) -> Writer:
        """Another writer, whose lines are expected too."""
        name = name or f"w{len(self.writers)}"
        self.writers[name] = Writer(self.logs / path, name=name)
        return self.writers[name]

    @property
    def sent(self) -> int:
        return sum(writer.sent for writer in self.writers.values())

    # The agent

    def in_order(self) -> Story:
        """Have the order of arrival mean something: send to a topic of one partition, and let `assert_exact` judge it."""
        self.topic += "-1"
        self.kafka.create_topic(self.topic, partitions=1)
        self._ordered = True
        return self

    def start(self, *globs: str, agent: Mapping[str, Any] | None = None, wrapper: Sequence[str] = (), **options: Any) -> Story:
        """Start the agent on `globs`, by default `app.log`, with the `options` of a tail and those of the `agent`."""
        paths = [str(self.logs / glob) for glob in globs or ("app.log",)]
        return self.start_tables({"paths": paths, "app": "web", **options}, agent=agent, wrapper=wrapper)

    def start_tables(
        self, *tables: Mapping[str, Any], agent: Mapping[str, Any] | None = None, wrapper: Sequence[str] = ()
    ) -> Story:
        kafka = {"bootstrap_servers": self.kafka.bootstrap, "topic": self.topic}
        self.agent = self._make({"agent": agent or {}, "kafka": kafka, "tail": list(tables)}, wrapper=wrapper)
        self.agent.start()
        return self

    def stop(self, kill: bool = False) -> None:
        """End the agent: with TERM, or with KILL when nothing is left for it to save."""
        if kill:
            self.await_saved()
            self.agent.kill()
        else:
            assert self.agent.terminate() == 0

    def restart(self, kill: bool = False) -> None:
        self.stop(kill)
        self.agent.start()

    def delivered(self) -> int:
        return int(self.agent.metric("forwarder_records_delivered_total"))

    def await_delivered(self, count: int | None = None) -> None:
        """Wait until this run of the agent has delivered `count` records, by default as many as were written."""
        wanted = self.sent if count is None else count
        eventually(lambda: self.delivered() >= wanted, what=f"{wanted} records delivered")

    def await_arrived(self, count: int | None = None) -> None:
        """Wait until so many records are in the topic, by default as many as were written, whichever run sent them."""
        wanted = self.sent if count is None else count
        eventually(lambda: sum(self.kafka.end_offsets(self.topic).values()) >= wanted, what=f"{wanted} records in Kafka")

    def tail(self, name: str) -> int:
        """A number from the status."""
        return int(self.agent.status()["tail"][name])

    def await_quiet(self) -> None:
        """Wait until no file has grown for three seconds: by then it is settled, too, what is a copy and what is not."""
        eventually(lambda: not self.tail("hot"), what="all files to be quiet")

    def saved(self) -> dict[str, tuple[int, int]]:
        """Inode and position in every row of positions.db, by its name."""
        with contextlib.closing(sqlite3.connect(self.agent.state / "positions.db", timeout=10)) as database:
            rows = database.execute("SELECT name, position, detail FROM source WHERE name LIKE 'tail:%'").fetchall()
        return {name: (msgspec.json.decode(detail)["inode"], position) for name, position, detail in rows}

    def await_saved(self, *paths: Path) -> None:
        """Wait until positions at the end of the files at `paths`, by default all that were written, are saved."""
        written = [writer.path for writer in self.writers.values() if writer.sent]
        wanted = {(status.st_ino, status.st_size) for status in map(Path.stat, paths or written)}
        eventually(lambda: wanted <= set(self.saved().values()), what=f"positions {wanted} to be saved")

    def open_files(self) -> list[str]:
        """Paths of the log files that the agent has open; a deleted one's ends in "(deleted)"."""
        links = [link for link in Path(f"/proc/{self.agent.pid}/fd").iterdir() if link.is_symlink()]
        return [path for path in map(os.readlink, links) if path.startswith(f"{self.logs}")]

    # The end

    def values(self, count: int) -> list[bytes]:
        """Everything in the topic when at least `count` records are; the agent is stopped for this."""
        self.await_arrived(count)
        # What is sent twice would come at once, or as the stop drains.
        self.stop()
        return self.kafka.values(self.topic)

    def assert_exact(self) -> None:
        """Everything written has arrived once, in order where that is asked for; the agent is stopped for this."""
        verdict = self.judge(self.values(self.sent))
        verdict.assert_exact()
        assert not (self._ordered and verdict.reordered), f"records came out of order\n{verdict}"
        assert self.abandoned() == 0

    def assert_none_lost(self) -> Verdict:
        """Everything written has arrived, some of it perhaps again, as after a kill; the agent is stopped for this."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.judge(self.kafka.values(self.topic)).lost)
        self.stop()
        verdict = self.judge(self.kafka.values(self.topic))
        verdict.assert_none_lost()
        assert not verdict.alien, f"something else has arrived too\n{verdict}"
        return verdict

    def judge(self, values: Sequence[bytes]) -> Verdict:
        return judge(values, {name: writer.sent for name, writer in self.writers.items()})

    def abandoned(self) -> int:
        return self.agent.log().count("they are lost") + self.agent.log().count("are gone from the file")
