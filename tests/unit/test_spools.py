"""The spools of all apps: how many there may be, and that giving one up costs nothing that it takes later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from forwarder import config, dead
from forwarder.route import make_route
from forwarder.spool import Spool, spools
from forwarder.spool.spools import Spools

ROUTE = make_route("logs", None, app="shop", host="web-1")


class Life:
    """One life of an agent over the spools in `directory`; `positions` is what it found saved."""

    def __init__(self, directory: Path, positions: dict[str, int] | None = None) -> None:
        self.removed: list[str] = []
        self.spools = Spools(
            directory,
            config.Spool(),
            routes=lambda app, route: ROUTE,
            wake=lambda source: None,
            added=lambda spool: None,
            removed=lambda spool: self.removed.append(spool.app),
        )
        self.spools.open_all(positions or {})

    def take(self, app: str, *records: bytes) -> Spool:
        spool = self.spools.of(app)
        self.spools.append(spool, b"".join(record + b"\n" for record in records), len(records), 1.0)
        self.spools.forget_unsynced()
        return spool

    def deliver(self, app: str) -> list[bytes]:
        spool = self.spools.of(app)
        records = []
        while (chunk := spool.read(1000)) is not None:
            records += chunk.records
        spool.commit(spool.end)
        return records


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Locks of asyncio want one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "MOST_APPS", 3)
    monkeypatch.setattr(spools, "IDLE_SECONDS", 0.0)


def test_an_app_too_many_takes_the_place_of_the_one_that_was_quiet_the_longest(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for app in "abc":
        life.take(app, b"1")
    for app in "cab":
        assert life.deliver(app) == [b"1"]
    life.take("d", b"1")
    assert life.removed == ["a"]
    assert not (tmp_path / "a").exists()
    life.take("b", b"2")
    life.take("a", b"2")
    assert life.removed == ["a", "c"]
    assert [life.deliver(app) for app in "abd"] == [[b"2"], [b"2"], [b"1"]]


def test_none_gives_way_that_has_something_to_deliver(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for app in "abc":
        life.take(app, b"1")
    with pytest.raises(OSError, match="there are 3 apps already"):
        life.take("d", b"1")
    assert not (tmp_path / "d").exists()
    assert [life.deliver(app) for app in "abc"] == [[b"1"]] * 3


def test_none_gives_way_that_was_heard_of_lately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "IDLE_SECONDS", 60.0)
    life = Life(tmp_path)
    for app in "abc":
        life.take(app, b"1")
        life.deliver(app)
    with pytest.raises(OSError, match="there are 3 apps already"):
        life.take("d", b"1")


@pytest.mark.parametrize("saved", [True, False], ids=["its position was dropped", "killed before its position was dropped"])
def test_what_an_app_sends_after_it_was_given_up_is_there_after_a_kill(tmp_path: Path, saved: bool) -> None:
    life = Life(tmp_path)
    for app in "abc":
        life.take(app, b"1", b"2", b"3")
    end = life.spools.of("a").end
    life.deliver("a")
    life.take("d", b"1")
    assert life.removed == ["a"]
    life.deliver("b")
    life.take("a", b"4")
    again = Life(tmp_path, {} if saved else {"spool:a": end})
    assert again.deliver("a") == [b"4"]


def test_a_name_of_which_no_file_of_dead_letters_could_be_made_is_refused_before_anything_is_taken(tmp_path: Path) -> None:
    life = Life(tmp_path)
    with pytest.raises(OSError, match="File name too long"):
        life.spools.of("日" * 25)
    life.take("日" * 24, b"1")
    assert dead.write(tmp_path / "dead", "日" * 24, [dead.DeadLetter("logs", 0, "", None, b"1")], 1.0) == 1
    (file,) = dead.files(tmp_path / "dead")
    dead.advance(dead.take(file), file.size - 1)
