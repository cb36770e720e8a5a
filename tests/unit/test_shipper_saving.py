"""Positions and what they rest on: nothing is skipped or held up when something of it cannot be written, removed or proved."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from forwarder import config
from forwarder.exactly_once import ExactlyOnceShipper
from forwarder.flight import Flight
from forwarder.positions import Mark, Marks, Positions
from forwarder.route import Route
from forwarder.saving import SAVED_AT_ONCE
from forwarder.shipper import Shipper
from forwarder.source import Chunk
from tests.harness.broker import Broker
from tests.harness.log import Log
from tests.harness.virtual import VirtualLoop

PLAIN, KEYED = Route("logs"), Route("logs", b"key")
MANY = 2 * SAVED_AT_ONCE + 200


def single(number: int) -> Log:
    return Log(f"tail:{number:05d}", (PLAIN, [b"record %d" % number]))


@pytest.fixture
def positions(tmp_path: Path) -> Iterator[Positions]:
    with contextlib.closing(Positions(tmp_path / "positions.db")) as opened:
        yield opened


@pytest.fixture
def shipping(
    tmp_path: Path, positions: Positions, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[VirtualLoop, Broker, Shipper]]:
    loop = VirtualLoop()
    broker = Broker(loop)
    monkeypatch.setattr("forwarder.shipper.Kafka", broker.connect)
    settings = config.Config(kafka=config.Kafka(bootstrap_servers="broker:9092"))

    async def make() -> Shipper:
        return Shipper(settings, positions, tmp_path / "dead", clock=loop.time)

    with contextlib.closing(loop):
        yield loop, broker, loop.run_until_complete(make())


def values(broker: Broker) -> list[bytes]:
    return sorted(taken.value for taken in broker.taken)


def saved(positions: Positions) -> dict[str, int]:
    return {row.name: row.position for row in positions.load()}


@contextlib.contextmanager
def refusing(positions: Positions) -> Iterator[None]:
    """Nothing can be saved meanwhile."""
    with contextlib.closing(sqlite3.connect(positions.path, isolation_level=None)) as database:
        database.execute("CREATE TRIGGER no BEFORE INSERT ON source BEGIN SELECT RAISE(FAIL, 'no'); END")
        yield
        database.execute("DROP TRIGGER no")


def test_however_many_sources_are_new_all_are_read_when_positions_cannot_be_saved(
    shipping: tuple[VirtualLoop, Broker, Shipper], positions: Positions
) -> None:
    loop, broker, shipper = shipping
    for number in range(MANY):
        shipper.add(single(number))
    with refusing(positions):
        with pytest.raises(OSError, match="cannot save"):
            loop.run_until_complete(shipper.save())
        loop.pass_time(5)
        assert values(broker) == sorted(b"record %d" % number for number in range(MANY))
        with pytest.raises(OSError, match="cannot save"):
            loop.run_until_complete(shipper.save())
        assert saved(positions) == {}
    loop.run_until_complete(shipper.save())
    assert saved(positions) == {f"tail:{number:05d}": 1 for number in range(MANY)}


def test_a_source_that_cannot_let_go_of_what_is_committed_keeps_no_other_from_being_read(
    shipping: tuple[VirtualLoop, Broker, Shipper], positions: Positions
) -> None:
    loop, broker, shipper = shipping
    stuck = single(1)
    shipper.add(stuck)
    loop.run_until_complete(shipper.save())
    loop.pass_time(1)
    stuck.keeps = True
    shipper.add(single(2))
    for _ in range(2):
        loop.run_until_complete(shipper.save())
        loop.pass_time(1)
    assert values(broker) == [b"record 1", b"record 2"]
    assert saved(positions) == {"tail:00001": 1, "tail:00002": 1}


def test_nothing_is_settled_behind_a_batch_of_which_a_fatal_producer_proves_nothing(
    shipping: tuple[VirtualLoop, Broker, Shipper], positions: Positions
) -> None:
    loop, broker, shipper = shipping
    shipper.add(Log("spool:shop", (PLAIN, [b"refused", b"stored"]), (KEYED, [b"behind"])))
    broker.make_fatal(told=True)
    loop.run_until_complete(shipper.save())
    loop.pass_time(0.1)
    assert shipper.replaced == 1
    loop.run_until_complete(shipper.save())
    loop.pass_time(60)
    assert set(values(broker)) == {b"refused", b"stored", b"behind"}
    loop.run_until_complete(shipper.save())
    assert saved(positions) == {"spool:shop": 2}


# Exactly once


def test_a_transaction_settled_while_positions_are_saved_is_not_marked_so_before_they_are(
    tmp_path: Path, positions: Positions
) -> None:
    """Marked too early, what it holds of sources whose rows are older would be sent again after a kill."""
    settings = config.Config(kafka=config.Kafka(bootstrap_servers="127.0.0.1:9", delivery="exactly-once"))

    async def play() -> None:
        shipper = ExactlyOnceShipper(settings, positions, tmp_path / "dead")
        logs = [single(number) for number in range(MANY)]
        for log in logs:
            shipper.add(log)
        await shipper.save()
        transactions = shipper.transactions
        flights = [Flight(lane, Chunk([b"x"], PLAIN, 0, 1, 0.0), 1, lambda flight: None) for lane in shipper.lanes()]
        transactions._marks = Marks(Mark(4, "us"), Mark(5, "us"))
        transactions.flights = flights
        for flight in flights:
            flight.lane.flights.append(flight)
        await shipper.prepare(transactions._marks, flights)
        for log in logs:
            shipper.renew(log)
        # Kafka's answer comes while the first of several batches of rows is being made.
        logs[SAVED_AT_ONCE - 1].looked_at = lambda: _conclude(shipper)
        await shipper.save()
        shipper.close()
        await shipper.transactions.stop()

    asyncio.run(play())
    # What a start after a kill goes by, as Kafka knows of transaction 5.
    if positions.marks().prepared == Mark(5, "us"):
        positions.resolve(Mark(5, "us"), True)
    assert saved(positions) == {f"tail:{number:05d}": 1 for number in range(MANY)}


def _conclude(shipper: ExactlyOnceShipper) -> None:
    if shipper.transactions.flights:
        shipper.transactions._conclude(Mark(5, "us"), None)
