"""Files that are rotated by renaming while the agent runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story, Writer


def test_rename_rotation_under_load_loses_and_repeats_nothing(story: Story) -> None:
    story.start()
    for _ in range(10):
        story.writer.write(300)
        story.writer.rotate()
        story.writer.write(300)
    story.assert_exact()


def test_rotated_files_that_match_the_glob_too_are_not_read_twice(story: Story) -> None:
    story.start("app.log*")
    for _ in range(5):
        story.writer.write(100)
        delivered = story.writer.sent
        story.await_delivered(delivered)
        story.writer.rotate()
    story.writer.write(100)
    story.assert_exact()


def test_files_that_came_and_went_between_two_looks_are_read_too(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.agent.freeze()
    for _ in range(4):
        story.writer.write(50)
        story.writer.rotate()
    story.writer.write(10)
    story.agent.thaw()
    story.assert_exact()


def test_dated_rotation_is_followed(story: Story) -> None:
    story.start()
    for day in range(1, 4):
        story.writer.write(100)
        story.writer.rotate_dated(f"202611{day:02d}")
    story.writer.write(100)
    story.assert_exact()


def test_a_writer_that_keeps_the_rotated_file_open_is_heard(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.path.rename(f"{story.writer.path}.1")
    story.writer.write(100)
    story.await_delivered(200)
    new = Writer(story.writer.path, first=200)
    new.write(100)
    story.await_delivered(300)
    story.writer.sent = 300
    story.writer.write(1)
    story.assert_exact()


def test_files_that_come_and_go_while_the_path_is_empty_for_a_moment_are_read_too(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.path.rename(f"{story.writer.path}.1")
    eventually(lambda: story.agent.status()["tail"]["rotated_or_deleted"] == 1, what="the agent to see that the path is empty")
    story.agent.freeze()
    for _ in range(3):
        story.writer.reopen()
        story.writer.write(100)
        story.writer.rotate()
    story.agent.thaw()
    story.assert_exact()


def test_a_hundred_rotated_files_wait_for_each_other_and_arrive_in_order(story: Story) -> None:
    story.writer.write(1)
    story.start()
    story.await_delivered(1)
    story.agent.freeze()
    for number in range(100):
        story.writer.write(1)
        story.writer.path.rename(f"{story.writer.path}-2026{number:04d}")
        story.writer.reopen()
    story.writer.write(1)
    story.agent.thaw()
    values = story.values(102)
    judge(values, {"w": 102}).assert_exact()


def test_rotations_arrive_in_the_order_in_which_they_were_written(story: Story) -> None:
    story.in_order().start()
    for _ in range(8):
        story.writer.write(200)
        story.writer.rotate()
    story.writer.write(200)
    story.assert_exact()


def test_files_that_came_and_went_between_two_looks_arrive_in_order(story: Story) -> None:
    story.writer.write(50)
    story.in_order().start()
    story.await_delivered()
    story.agent.freeze()
    for _ in range(6):
        story.writer.write(50)
        story.writer.rotate()
    story.writer.write(50)
    story.agent.thaw()
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_a_numbered_chain_whose_oldest_is_deleted_loses_and_repeats_nothing(story: Story, glob: str) -> None:
    story.start(glob)
    for _ in range(8):
        story.writer.write(100)
        story.await_delivered()
        story.writer.rotate(keep=2)
    story.writer.write(100)
    story.assert_exact()


def test_a_rotated_file_deleted_before_it_was_read_to_its_end_is_read_to_its_end(story: Story) -> None:
    story.writer.write(1)
    story.start()
    story.await_delivered()
    story.agent.freeze()
    story.writer.write(20_000)
    story.writer.rotate()
    story.writer.old(1).unlink()
    story.writer.write(10)
    story.agent.thaw()
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*", "*"])
def test_dated_files_seen_and_unseen_by_the_glob_are_sent_once(story: Story, glob: str) -> None:
    story.start(glob)
    for day in range(1, 6):
        story.writer.write(100)
        story.writer.rotate_dated(f"202611{day:02d}")
    story.writer.write(100)
    story.await_arrived()
    story.restart()
    story.writer.write(100)
    story.assert_exact()


@pytest.mark.parametrize("suffix", [".2026-11-23_10-15-0", "-20261123-10150", "_2026112", ".1"])
def test_names_of_the_usual_rotations_are_recognised(story: Story, suffix: str) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    story.agent.freeze()
    for number in range(2):
        story.writer.write(50)
        story.writer.path.rename(f"{story.writer.path}{suffix}{number}")
        story.writer.reopen()
    story.writer.write(50)
    story.agent.thaw()
    story.assert_exact()


def test_the_date_may_stand_in_front_of_the_extension(story: Story) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    story.agent.freeze()
    for day in ("20261121", "20261122"):
        story.writer.write(50)
        story.writer.path.rename(story.logs / f"app-{day}.log")
        story.writer.reopen()
    story.writer.write(50)
    story.agent.thaw()
    story.assert_exact()


def test_a_stale_writer_and_the_new_one_are_both_heard(story: Story) -> None:
    new = Writer(story.logs / "elsewhere", name="new")
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.writer.path.rename(story.writer.old(1))
    new = story.open("app.log", "new")
    for _ in range(20):
        story.writer.write(20)
        new.write(20)
    story.assert_exact()


def test_a_stale_writer_that_goes_on_after_two_rotations_is_heard(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.writer.path.rename(story.writer.old(1))
    second = story.open("app.log", "second")
    second.write(50)
    story.await_delivered()
    story.writer.old(1).rename(story.writer.old(2))
    second.path.rename(story.writer.old(1))
    third = story.open("app.log", "third")
    for _ in range(5):
        for writer in (third, second, story.writer):
            writer.write(10)
        story.await_delivered()
    story.assert_exact()


def test_several_files_rotated_at_once_keep_their_lines(story: Story) -> None:
    writers = [story.open(f"{number}.log") for number in range(10)]
    story.start("?.log")
    for _ in range(4):
        for writer in writers:
            writer.write(50)
        for writer in writers:
            writer.rotate()
    for writer in writers:
        writer.write(50)
    story.assert_exact()


def test_several_files_rotated_at_once_behind_the_agents_back_keep_their_lines(story: Story) -> None:
    writers = [story.open(f"{number}.log") for number in range(5)]
    for writer in writers:
        writer.write(10)
    story.start("?.log")
    story.await_delivered()
    story.agent.freeze()
    for _ in range(3):
        for writer in writers:
            writer.write(50)
            writer.rotate()
    story.agent.thaw()
    story.assert_exact()


def test_a_name_swapped_with_its_backup_and_back_is_read_once(story: Story) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    story.writer.path.rename(story.writer.old(1))
    eventually(lambda: story.tail("rotated_or_deleted") == 1, what="the agent to see that the path is empty")
    story.writer.write(10)
    story.writer.old(1).rename(story.writer.path)
    story.writer.write(10)
    story.await_delivered()
    eventually(lambda: story.tail("rotated_or_deleted") == 0, what="the agent to see that the file is back")
    story.writer.write(10)
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_a_rotation_by_hard_link_loses_and_repeats_nothing(story: Story, glob: str) -> None:
    story.start(glob)
    for number in range(4):
        story.writer.write(50)
        Path(f"{story.writer.path}-2026112{number}").hardlink_to(story.writer.path)
        story.writer.write(10)
        story.writer.delete()
        story.writer.reopen()
    story.writer.write(50)
    story.assert_exact()


def test_an_unfinished_line_at_a_rotation_is_finished_in_the_old_file(story: Story) -> None:
    story.start()
    story.writer.write(10)
    line = story.writer.lines(1)
    story.writer.raw(line[:20])
    story.await_delivered(10)
    story.writer.path.rename(story.writer.old(1))
    new = story.open("app.log", "new")
    story.writer.raw(line[20:])
    new.write(10)
    story.assert_exact()


def test_an_empty_file_rotated_again_and_again_is_no_trouble(story: Story) -> None:
    story.start("app.log*")
    for _ in range(5):
        story.writer.rotate()
    story.writer.write(10)
    story.await_delivered()
    for _ in range(5):
        story.writer.rotate()
    story.writer.write(10)
    story.assert_exact()


def test_two_hundred_rotations_of_a_few_lines_lose_and_repeat_nothing(story: Story) -> None:
    story.start("app.log*")
    for number in range(200):
        story.writer.write(3)
        story.writer.rotate_dated(f"20260101{number:03d}")
    story.writer.write(3)
    story.assert_exact()


def test_files_that_rotate_as_soon_as_their_path_is_there_are_all_read(story: Story) -> None:
    story.start("*.log").await_quiet()
    others = [story.open(f"new{number}.log") for number in range(5)]
    for _ in range(10):
        for other in others:
            other.write(5)
            other.rotate()
    story.await_delivered()
    story.assert_exact()
