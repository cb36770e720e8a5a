"""What is refused is found by halves, in few requests, and nothing is sent before what stands in front of it is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from forwarder.halving import FEW, try_all


def found(records: list[int], bad: set[int], few: int = FEW) -> tuple[list[list[int]], list[int], list[int]]:
    """The parts that were sent, what was found to be bad, and what was taken, in this order."""
    parts: list[list[int]] = []
    guilty: list[int] = []
    taken: list[int] = []

    def refused(part: list[int], alone: bool) -> list[int]:
        parts.append(part)
        worst = [record for record in part if record in bad]
        if alone:
            guilty.extend(worst)
            taken.extend(record for record in part if record not in bad)
            return worst
        if not worst:
            taken.extend(part)
        return part if worst else []

    try_all(records, refused, few)
    return parts, guilty, taken


@given(some.integers(0, 300), some.sets(some.integers(0, 299), max_size=8), some.sampled_from([1, 2, FEW]))
def test_those_to_blame_are_found_and_all_others_are_taken_in_order(count: int, bad: set[int], few: int) -> None:
    records = list(range(count))
    _, guilty, taken = found(records, bad, few)
    assert guilty == sorted(bad & set(records))
    assert taken == [record for record in records if record not in bad]


@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 9_999])
def test_one_among_many_costs_twice_their_logarithm(place: int) -> None:
    parts, guilty, _ = found(list(range(10_000)), {place}, few=1)
    assert guilty == [place]
    assert len(parts) <= 1 + 2 * math.ceil(math.log2(10_000))


def test_of_few_each_is_sent_alone_at_once() -> None:
    parts, guilty, _ = found(list(range(FEW)), {3})
    assert (parts, guilty) == ([list(range(FEW))], [3])
