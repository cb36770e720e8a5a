"""Positions on disk: kept over restarts, all or nothing, and never a reason not to start, but for a newer release's file."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from forwarder.positions import Positions, Saved, UnknownVersion


def path_in(directory: Path) -> Path:
    return directory / "positions.db"


def rows(path: Path) -> dict[str, int]:
    with closing(Positions(path)) as positions:
        return {row.name: row.position for row in positions.load()}


def test_what_was_saved_is_there_after_reopening(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        assert positions.fresh
        assert positions.load() == []
        positions.save([Saved("spool:a", 10), Saved("tail:b", 2**62, "detail")])
    with closing(Positions(path)) as positions:
        assert not positions.fresh
        assert not positions.lost
        assert sorted(positions.load(), key=lambda row: row.name) == [Saved("spool:a", 10), Saved("tail:b", 2**62, "detail")]


def test_a_later_position_takes_the_place_of_the_earlier_one_and_sources_that_are_gone_go(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        positions.save([Saved("a", 1), Saved("b", 1)])
        positions.save([Saved("a", 2)], gone=["b", "never known"])
    assert rows(path) == {"a": 2}


def test_a_source_saved_and_forgotten_in_one_go_is_there(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        positions.save([Saved("a", 1)], gone=["a"])
    assert rows(path) == {"a": 1}


def test_what_was_saved_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    child = os.fork()
    if child == 0:
        Positions(path).save([Saved("a", 5)])
        os._exit(0)  # as a kill: nothing is closed
    assert os.waitpid(child, 0)[1] == 0
    assert rows(path) == {"a": 5}


def test_a_save_that_fails_changes_nothing_and_says_so(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        positions.save([Saved("a", 1), Saved("b", 1)])
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TRIGGER no BEFORE UPDATE ON source WHEN new.name = 'b' BEGIN SELECT RAISE(FAIL, 'full'); END")
        with pytest.raises(OSError, match="cannot save positions"):
            positions.save([Saved("a", 2), Saved("b", 2)], gone=["a"])
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TRIGGER no")
        assert {row.name: row.position for row in positions.load()} == {"a": 1, "b": 1}
        positions.save([Saved("a", 3)])
    assert rows(path) == {"a": 3, "b": 1}


@pytest.mark.parametrize("damage", ["garbage", "header", "middle", "wrong table", "text for a number"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        positions.save([Saved(f"source {number}", number, "x" * 100) for number in range(500)])
    if damage == "garbage":
        path.write_bytes(b"this was never a database" * 100)
    elif damage == "header":
        path.write_bytes(b"\0" * 50 + path.read_bytes()[50:])
    elif damage == "middle":
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 40_000)
    else:
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE source")
            if damage == "wrong table":
                other.execute("CREATE TABLE source (something TEXT)")
            else:
                other.execute("CREATE TABLE source (name TEXT PRIMARY KEY, position, detail TEXT)")
                other.execute("INSERT INTO source VALUES ('a', 'ten', '')")
            other.commit()
    before = path.read_bytes()
    with caplog.at_level(logging.ERROR), closing(Positions(path)) as positions:
        assert positions.lost
        assert positions.load() == []
        positions.save([Saved("a", 1)])
    (aside,) = [found for found in tmp_path.glob("positions.db.bad-*") if not found.name.endswith(("-wal", "-shm"))]
    if damage in {"garbage", "header", "middle"}:
        assert aside.read_bytes() == before
    assert "damaged" in caplog.text
    assert str(aside) in caplog.text
    assert rows(path) == {"a": 1}


def test_an_empty_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    path.touch()
    with closing(Positions(path)) as positions:
        assert positions.load() == []
        positions.save([Saved("a", 1)])
    assert rows(path) == {"a": 1}


def test_a_newer_release_s_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        positions.save([Saved("a", 1)])
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version=99")
    with pytest.raises(UnknownVersion, match="version 99"):
        Positions(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (99,)
        assert other.execute("SELECT name, position FROM source").fetchall() == [("a", 1)]


def test_a_directory_that_cannot_be_used_is_an_os_error_that_names_the_file(tmp_path: Path) -> None:
    path = path_in(tmp_path / "missing")
    with pytest.raises(OSError, match=r"cannot open .*missing/positions\.db"):
        Positions(path)


def test_another_process_that_holds_the_file_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)) as positions:
        positions.save([Saved("a", 1)])
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{**options, "timeout": 0.1}))
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE source SET position = 2")
        with closing(Positions(path)) as positions:
            assert positions.load() == [Saved("a", 1)]
            with pytest.raises(OSError, match="cannot save"):
                positions.save([Saved("a", 3)])
        other.execute("COMMIT")
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match="cannot open"):
            Positions(path)
        other.execute("COMMIT")
    assert rows(path) == {"a": 2}
    assert not list(tmp_path.glob("*.bad-*"))


@pytest.mark.parametrize("ended", ["well", "killed"])
def test_positions_are_read_on_a_disk_without_any_room_and_saved_when_there_is_some(tmp_path: Path, ended: str) -> None:
    path = path_in(tmp_path)
    child = os.fork()
    if child == 0:
        positions = Positions(path)
        positions.save([Saved("a", 5)])
        if ended == "well":
            positions.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            positions = Positions(path)
            assert positions.load() == [Saved("a", 5)]
            with pytest.raises(OSError, match="cannot save"):
                positions.save([Saved("a", 6)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            positions.save([Saved("a", 7)])
            positions.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert rows(path) == {"a": 7}
    assert not list(tmp_path.glob("*.bad-*"))


def test_only_the_agent_may_read_it(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with closing(Positions(path)):
        assert path.stat().st_mode & 0o777 == 0o600
