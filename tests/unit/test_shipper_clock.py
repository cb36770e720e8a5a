"""A clock that is set back: librdkafka's timed waits would last as much longer, so the producer is replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from forwarder import config
from forwarder.positions import Positions
from forwarder.route import Route
from forwarder.shipper import Shipper
from tests.harness.broker import Broker
from tests.harness.log import Log
from tests.harness.virtual import VirtualLoop

Clock = dict[str, float]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with contextlib.closing(VirtualLoop()) as loop:
        yield loop


@pytest.fixture
def broker(loop: VirtualLoop) -> Broker:
    return Broker(loop)


@pytest.fixture
def shipping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: VirtualLoop, broker: Broker
) -> Iterator[tuple[VirtualLoop, Shipper, Clock]]:
    """A shipper, and a clock that is so far ahead of its loop's."""
    clock = {"ahead": 1e9}
    monkeypatch.setattr("forwarder.shipper.Kafka", broker.connect)
    settings = config.Config(kafka=config.Kafka(bootstrap_servers="broker:9092"))

    async def make(positions: Positions) -> Shipper:
        return Shipper(settings, positions, tmp_path / "dead", clock=lambda: loop.time() + clock["ahead"])

    with contextlib.closing(Positions(tmp_path / "positions.db")) as positions:
        yield loop, loop.run_until_complete(make(positions)), clock


def test_a_clock_that_is_set_back_has_the_producer_replaced_once(shipping: tuple[VirtualLoop, Shipper, Clock]) -> None:
    loop, shipper, clock = shipping
    shipper.tick()
    clock["ahead"] -= 3600
    for _ in range(20):
        shipper.tick()
        loop.pass_time(1)
    assert shipper.replaced == 1
    assert any("set back by 3600 s" in error for error in shipper.errors)


@pytest.mark.parametrize("known", [True, False], ids=["in flight", "on disk"])
def test_what_waits_grows_old_also_after_the_clock_was_set_back(
    shipping: tuple[VirtualLoop, Shipper, Clock], broker: Broker, known: bool
) -> None:
    loop, shipper, clock = shipping
    for name in ("tail:1", "tail:2") if known else ("tail:2",):
        broker.away = name == "tail:2"
        log = Log(name, (Route("logs"), [b"record"]))
        log.received = loop.time() + clock["ahead"]
        shipper.add(log)
        loop.run_until_complete(shipper.save())
        loop.pass_time(1)
    assert bool(shipper.in_flight) is known
    clock["ahead"] -= 3600
    loop.pass_time(60)
    assert 60 <= shipper.oldest_unacked() < 63


@pytest.mark.parametrize("step", [3600, -1], ids=["an hour ahead", "a second back"])
def test_a_clock_that_is_set_ahead_or_by_little_changes_nothing(
    shipping: tuple[VirtualLoop, Shipper, Clock], step: float
) -> None:
    loop, shipper, clock = shipping
    clock["ahead"] += step
    for _ in range(20):
        shipper.tick()
        loop.pass_time(1)
    assert shipper.replaced == 0
