"""Lines longer than a record may be, and longer than what is read at once."""

from __future__ import annotations

import json

import pytest

from tests.harness.wait import eventually
from tests.integration.tail.story import Story

CHUNK = 256 * 1024


def test_a_line_that_is_too_long_is_cut_and_marked_and_its_neighbours_are_not(story: Story) -> None:
    story.start(max_record="4KiB")
    story.writer.file.write(b"before\n" + b"x" * 1_000_000 + b"\nafter\n" + b"y" * 5000 + b"\nlast\n")
    records = {record["message"][:10]: record for record in map(json.loads, story.values(5))}
    assert records.keys() == {"before", "x" * 10, "after", "y" * 10, "last"}
    assert records["x" * 10]["truncated"] is True
    assert records["x" * 10]["original_size"] == 1_000_000
    assert len(records["x" * 10]["message"]) == 4096
    assert records["y" * 10]["original_size"] == 5000


def test_a_line_of_exactly_the_limit_is_whole_and_of_one_more_is_cut(story: Story) -> None:
    story.start(max_record="4KiB")
    for size in (4095, 4096, 4097):
        story.writer.raw(b"before\n" + b"x" * size + b"\nafter\n")
    records = [json.loads(value) for value in story.values(9)]
    long = sorted((record for record in records if "x" in record["message"]), key=lambda record: record.get("original_size", 0))
    assert sorted(len(record["message"]) for record in long) == [4095, 4096, 4096]
    assert [record.get("original_size") for record in long] == [None, None, 4097]
    assert sorted(record["message"] for record in records if record not in long) == ["after"] * 3 + ["before"] * 3


def test_a_raw_line_of_one_more_than_the_limit_is_cut_and_no_more(story: Story) -> None:
    story.start(max_record="4KiB", format="raw")
    story.writer.raw(b"".join(b"x" * size + b"\n" for size in (4095, 4096, 4097)) + b"after\n")
    assert sorted(map(len, story.values(4))) == [5, 4095, 4096, 4096]


def test_lines_around_the_border_of_a_read_are_whole(story: Story) -> None:
    offsets = range(-2, 3)
    for offset in offsets:
        writer = story.open(f"{offset}.log")
        writer.raw(b"x" * (CHUNK + offset) + b"\n")
        writer.write(2000)
        writer.raw(b"x" * CHUNK + b"\n")
        writer.write(10)
    story.start("*.log", format="raw")
    values = story.values(2012 * len(offsets))
    long = sorted(len(value) for value in values if value.startswith(b"x"))
    assert long == sorted([*(CHUNK + offset for offset in offsets), *[CHUNK] * len(offsets)])
    story.judge([value for value in values if not value.startswith(b"x")]).assert_exact()


def test_a_cut_line_leaves_its_neighbours_alone_wherever_it_ends(story: Story) -> None:
    sizes = [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 4 * CHUNK]
    for size in sizes:
        writer = story.open(f"{size}.log")
        for _ in range(2):
            writer.write(10)
            writer.raw(b"x" * size + b"\n")
    story.start("*.log", max_record="64KiB")
    values = story.values(22 * len(sizes))
    cut = [json.loads(value) for value in values if b"truncated" in value]
    assert sorted(record["original_size"] for record in cut) == sorted([*sizes, *sizes])
    assert {len(record["message"]) for record in cut} == {65536}
    story.judge([value for value in values if b"truncated" not in value]).assert_exact()


def test_a_json_line_longer_than_a_read_is_a_record_as_it_is(story: Story) -> None:
    story.writer.write(3, "x" * 700_000)
    story.start()
    story.writer.write(3, "y" * 900_000)
    story.assert_exact()


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_long_line_without_an_end_is_finished_after_a_restart(story: Story, kill: bool) -> None:
    story.writer.write(10)
    line = story.writer.lines(1, "z" * 900_000)
    story.writer.raw(line[:600_000])
    story.start()
    story.await_delivered(10)
    if kill:
        eventually(lambda: next(iter(story.saved().values()))[1] > 0, what="the position behind the short lines")
    story.agent.kill() if kill else story.stop()
    story.writer.raw(line[600_000:])
    story.writer.write(10)
    story.agent.start()
    story.assert_exact()


def test_a_long_line_that_grows_in_many_pieces_is_one_record(story: Story) -> None:
    story.start(max_record="16KiB")
    story.writer.write(1)
    for _ in range(60):
        story.writer.raw(b"x" * 50_000)
    story.writer.raw(b"\n")
    story.writer.write(1)
    values = story.values(3)
    cut = [json.loads(value) for value in values if b"truncated" in value]
    assert [record["original_size"] for record in cut] == [3_000_000]
    story.judge([value for value in values if b"truncated" not in value]).assert_exact()


def test_a_file_of_one_huge_line_is_one_cut_record_once_it_ends(story: Story) -> None:
    for _ in range(50):
        story.writer.raw(b"x" * 1_000_000)
    story.start()
    story.writer.raw(b"\n")
    story.writer.write(5)
    values = story.values(6)
    cut = [json.loads(value) for value in values if b"truncated" in value]
    assert [(record["original_size"], len(record["message"])) for record in cut] == [(50_000_000, 2**20)]
    story.judge([value for value in values if b"truncated" not in value]).assert_exact()


def test_a_huge_line_does_not_keep_other_files_waiting_nor_fill_the_memory(story: Story) -> None:
    endless = story.open("endless.log")
    story.start("*.log")
    story.writer.write(1)
    story.await_delivered(1)
    before = story.agent.rss()
    for _ in range(40):
        endless.raw(b"x" * 2_000_000)
        story.writer.write(1)
    story.await_delivered(41)
    assert story.agent.peak() - before < 60 << 20
    story.assert_exact()


def test_a_long_line_of_a_deleted_file_is_cut_and_sent_at_the_stop(story: Story) -> None:
    story.start(max_record="4KiB")
    story.writer.write(1)
    story.await_delivered()
    story.writer.raw(b"x" * 1_000_000)
    story.writer.delete()
    eventually(lambda: story.tail("rotated_or_deleted") == 1, what="the deletion to be seen")
    story.stop()
    values = story.kafka.values(story.topic, expected=2)
    assert [json.loads(value)["original_size"] for value in values if b"truncated" in value] == [1_000_000]


def test_cut_lines_are_counted_once_each(story: Story) -> None:
    story.start(max_record="4KiB")
    for size in (5000, 100_000, 1_000_000):
        story.writer.raw(b"x" * size + b"\n")
    story.await_delivered(3)
    cut = {name: value for (name, labels), value in story.agent.metrics().items() if "cut" in name or "truncated" in name}
    assert sum(cut.values()) == 3


def test_a_character_at_the_cut_is_left_out_whole(story: Story) -> None:
    story.start(max_record="4KiB")
    story.writer.raw("你".encode() * 2000 + b"\n")
    story.writer.raw("你".encode() * 300_000 + b"\n")
    records = [json.loads(value) for value in story.values(2)]
    assert [set(record["message"]) for record in records] == [{"你"}, {"你"}]
    assert [len(record["message"]) for record in records] == [4096 // 3] * 2
