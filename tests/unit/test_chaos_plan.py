"""The plan of a chaos run: a seed plays the same faults again, and each ends before the run does."""

from __future__ import annotations

import itertools

import pytest

from tests.chaos.plan import plan


@pytest.mark.parametrize("brokers", [1, 3])
def test_a_seed_gives_the_same_faults_again_and_another_seed_others(brokers: int) -> None:
    assert plan(1, 600, brokers) == plan(1, 600, brokers)
    assert plan(1, 600, brokers) != plan(2, 600, brokers)


def test_the_faults_of_a_longer_run_begin_with_those_of_a_shorter_one() -> None:
    short = plan(1, 300, 1)
    assert set(short) <= set(plan(1, 600, 1))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_befalls_one_is_over_before_the_next_begins_and_before_the_end(seed: int) -> None:
    faults = plan(seed, 600, 3)
    assert {fault.subject for fault in faults} == {"agent", "broker", "network"}
    assert faults == sorted(faults)
    for subject in ("agent", "broker", "network"):
        own = [fault for fault in faults if fault.subject == subject]
        assert all(before.at + before.seconds < after.at for before, after in itertools.pairwise(own))
        assert own[-1].at + own[-1].seconds <= 600
