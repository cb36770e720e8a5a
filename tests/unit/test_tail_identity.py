"""Telling files apart by what was read of them, and keeping no more open than may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.tail.descriptors import FEWEST, Descriptors
from forwarder.tail.identity import HEAD_BYTES, SURE_BYTES, Head


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity") / "file"


@given(content=st.binary(min_size=1, max_size=3 * HEAD_BYTES), cuts=st.lists(st.integers(0, 3 * HEAD_BYTES), max_size=5))
def test_a_condensed_head_says_what_a_whole_one_says(file: Path, content: bytes, cuts: list[int]) -> None:
    file.write_bytes(content)
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    fd = os.open(file, os.O_RDONLY)
    try:
        whole, condensed = Head(b""), Head(b"")
        at = 0
        for end in ends:
            whole.grow(at, content[at:end])
            condensed.grow(at, content[at:end])
            condensed.condense()
            at = end
            assert condensed.size == whole.size == min(end, HEAD_BYTES)
            assert condensed.before(end) == whole.before(end)
            assert condensed.is_of(fd) and whole.is_of(fd)
            assert condensed.is_like(fd) == whole.is_like(fd) == (whole.size >= SURE_BYTES)
    finally:
        os.close(fd)


@given(content=st.binary(min_size=SURE_BYTES, max_size=2 * HEAD_BYTES), at=st.integers(0, 2 * HEAD_BYTES))
def test_a_head_is_not_of_a_file_that_differs_in_one_byte_of_it(file: Path, content: bytes, at: int) -> None:
    at %= len(content)
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    head = Head(content[:HEAD_BYTES])
    head.condense()
    fd = os.open(file, os.O_RDONLY)
    try:
        assert head.is_of(fd) == head.is_like(fd) == (at >= HEAD_BYTES)
    finally:
        os.close(fd)


@given(content=st.binary(min_size=2 * SURE_BYTES, max_size=2 * HEAD_BYTES), at=st.integers(0, 2 * HEAD_BYTES), end=st.integers())
def test_a_shorter_file_is_not_like_a_head_that_differs_in_one_byte(file: Path, content: bytes, at: int, end: int) -> None:
    shorter = content[: SURE_BYTES + end % (min(len(content), HEAD_BYTES) - SURE_BYTES)]
    at %= len(shorter)
    head = Head(content[:HEAD_BYTES])
    head.condense()
    for found, like in ((shorter, True), (shorter[:at] + bytes([shorter[at] ^ 1]) + shorter[at + 1 :], False)):
        file.write_bytes(found)
        fd = os.open(file, os.O_RDONLY)
        try:
            assert head.is_like(fd) == like
        finally:
            os.close(fd)


class Holder:
    def __init__(self, willing: bool = True) -> None:
        self.willing = willing
        self.open = True

    def let_go(self) -> bool:
        self.open = not self.willing
        return self.willing


def test_the_one_that_was_opened_first_lets_go_first() -> None:
    descriptors = Descriptors(2)
    holders = [Holder() for _ in range(4)]
    for holder in holders:
        descriptors.add(holder)
    assert [holder.open for holder in holders] == [False, False, True, True]


def test_one_that_cannot_let_go_keeps_its_descriptor_and_others_go_instead() -> None:
    descriptors = Descriptors(2)
    stubborn, *others = Holder(willing=False), Holder(), Holder()
    for holder in (stubborn, *others):
        descriptors.add(holder)
    assert [stubborn.open, *(other.open for other in others)] == [True, False, True]


def test_where_nobody_lets_go_there_are_more_and_the_newest_is_never_asked() -> None:
    descriptors = Descriptors(1)
    holders = [Holder(willing=False) for _ in range(3)]
    last = Holder()
    for holder in (*holders, last):
        descriptors.add(holder)
    assert last.open


def test_sockets_and_segments_are_left_their_share() -> None:
    assert Descriptors().limit >= FEWEST
