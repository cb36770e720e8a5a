"""Where every source stands: one SQLite file, one row a source, written in one transaction.

A position that is lost costs duplicates, never records: spools are then read from their first segment and files from their
start. So a file that cannot be read is moved aside, said loudly, and the agent goes on with an empty one.

With exactly-once a second table holds where a transaction ends that is about to be committed, from before its commit until it
is known to be settled. What is written must then survive a power cut too: `durable` syncs each write, which costs one fsync a
transaction.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

log = logging.getLogger("forwarder.positions")

_VERSION = 2
_DISK_FULL = ("is full", "disk I/O error")
_NO_DAMAGE = ("unable to open", "locked", "readonly", *_DISK_FULL)
"""In SQLite's message: the file may be well, and is not to be given up."""


class UnknownVersion(Exception):
    """The file was written by a newer release; the message says so and what to do."""


class Saved(msgspec.Struct, frozen=True):
    """A row: `position` is a byte offset, `detail` whatever the source needs to be found again."""

    name: str
    position: int
    detail: str = ""


class Mark(msgspec.Struct, frozen=True):
    """What a transaction is known by: its number, and the run of an agent that made it."""

    number: int
    writer: str


class Marks(msgspec.Struct, frozen=True):
    """The last transaction that is known to be settled, and one of which the outcome is not known."""

    settled: Mark | None = None
    prepared: Mark | None = None


class Positions:
    """Safe to use from any thread; calls wait for each other."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        """Open or create the file; raises OSError when the directory does not allow it."""
        self.path = path
        self._durable = durable
        self._lock = threading.Lock()
        self.lost = False
        """Whether an unreadable file was moved aside at start."""
        self.fresh = not path.exists()
        """Whether there was no file: the agent's first start with this state directory."""
        try:
            self._connection = self._open_even_on_full_disk()
        except sqlite3.DatabaseError as error:
            if not path.exists() or any(reason in str(error) for reason in _NO_DAMAGE):
                raise OSError(f"cannot open {path}: {error}") from error
            aside = path.with_name(f"{path.name}.bad-{int(time.time())}")
            for suffix in ("", "-wal", "-shm"):
                part = path.with_name(path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
            log.error("%s is damaged (%s), moved to %s: what was delivered before may be sent again", path, error, aside)
            self.lost = True
            self._connection = self._open()

    def _open_even_on_full_disk(self) -> sqlite3.Connection:
        """An agent that did not start for want of room would not ship either, which is what makes room."""
        try:
            return self._open()
        except sqlite3.OperationalError as error:
            if not any(reason in str(error) for reason in _DISK_FULL):
                raise
            return self._open(alone=True)

    def _open(self, *, alone: bool = False) -> sqlite3.Connection:
        """Open the file; `alone` needs no room for an index that other processes share, and keeps them out."""
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            if alone:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            # Losing the last transactions in a power cut costs duplicates only: where those may be, SQLite need not sync at each.
            connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
            connection.execute("PRAGMA cache_size=-256")  # KiB; the default is eight times that, and pages are hardly read again
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise UnknownVersion(
                    f"{self.path} has format version {version}, this release knows {_VERSION}: start the release that wrote it"
                )
            for table in ("source", "prepared"):
                columns = "name TEXT PRIMARY KEY, position INTEGER NOT NULL, detail TEXT NOT NULL"
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS mark (kind TEXT PRIMARY KEY, number INTEGER NOT NULL, writer TEXT NOT NULL)"
            )
            if version < _VERSION:
                connection.execute(f"PRAGMA user_version={_VERSION}")
            wrong = "typeof(name) != 'text' OR typeof(position) != 'integer' OR typeof(detail) != 'text'"
            if connection.execute(f"SELECT count(*) FROM source WHERE {wrong}").fetchone() != (0,):  # noqa: S608
                raise sqlite3.DatabaseError("rows are not what they should be")
        except BaseException:
            connection.close()
            raise
        self.path.chmod(0o600)
        return connection

    def load(self) -> list[Saved]:
        with self._lock:
            return [Saved(*row) for row in self._connection.execute("SELECT name, position, detail FROM source")]

    def save(self, rows: Iterable[Saved], gone: Iterable[str] = (), settled: Mark | None = None) -> None:
        """Write `rows` and remove the sources `gone`, all or nothing; raises OSError when the disk refuses.

        `settled` says that this transaction is, and no other is prepared.
        """
        with self._writing() as connection:
            _save(connection, rows, gone)
            if settled is not None:
                _set_marks(connection, Marks(settled))

    # Exactly once

    def marks(self) -> Marks:
        with self._lock:
            found = self._connection.execute("SELECT kind, number, writer FROM mark")
            return Marks(**{kind: Mark(number, writer) for kind, number, writer in found})

    def prepare(self, marks: Marks, ends: Iterable[Saved], gone: Iterable[str], rows: Iterable[Saved]) -> None:
        """As `save`, and beside it the `ends` of a transaction that is about to be committed. Raises OSError."""
        with self._writing() as connection:
            _save(connection, rows, gone)
            _set_marks(connection, marks)
            _upsert(connection, "prepared", ends)

    def resolve(self, settled: Mark | None, adopt: bool) -> list[Saved]:
        """What became of the transaction that was prepared: `adopt` its ends, returned, or drop them; raises OSError."""
        ends = self.prepared() if adopt else []
        with self._writing() as connection:
            _save(connection, ends, ())
            _set_marks(connection, Marks(settled))
        return ends

    def drop_prepared(self) -> None:
        """Positions go on without transactions; the marks stay for when these come back. Raises OSError."""
        if self.prepared():
            with self._writing() as connection:
                connection.execute("DELETE FROM prepared")

    def prepared(self) -> list[Saved]:
        """Where the transaction ends that is prepared."""
        with self._lock:
            return [Saved(*row) for row in self._connection.execute("SELECT name, position, detail FROM prepared")]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction of SQLite, alone; raises OSError when the disk refuses."""
        with self._lock:
            connection = self._connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise OSError(f"cannot save positions in {self.path}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _save(connection: sqlite3.Connection, rows: Iterable[Saved], gone: Iterable[str]) -> None:
    for table in ("source", "prepared"):
        connection.executemany(f"DELETE FROM {table} WHERE name = ?", [(name,) for name in gone])  # noqa: S608
    _upsert(connection, "source", rows)


def _upsert(connection: sqlite3.Connection, table: str, rows: Iterable[Saved]) -> None:
    connection.executemany(
        f"INSERT INTO {table} (name, position, detail) VALUES (?, ?, ?) "  # noqa: S608
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position, detail = excluded.detail",
        [(row.name, row.position, row.detail) for row in rows],
    )


def _set_marks(connection: sqlite3.Connection, marks: Marks) -> None:
    """Replace the marks, and with them what was prepared."""
    connection.execute("DELETE FROM prepared")
    connection.execute("DELETE FROM mark")
    known = {"settled": marks.settled, "prepared": marks.prepared}
    connection.executemany(
        "INSERT INTO mark (kind, number, writer) VALUES (?, ?, ?)",
        [(kind, mark.number, mark.writer) for kind, mark in known.items() if mark is not None],
    )
