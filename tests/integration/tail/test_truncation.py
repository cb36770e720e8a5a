"""Files that are truncated, copied and truncated, or written anew."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

import pytest

from tests.harness.agent import BOUND_BY_PERMISSIONS
from tests.harness.wait import eventually
from tests.integration.tail.story import Story

kills = pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_copytruncate_loses_and_repeats_nothing(story: Story, glob: str) -> None:
    story.start(glob)
    for _ in range(4):
        story.writer.write(100)
        story.await_delivered(story.writer.sent)
        story.writer.copy_truncate()
        # More than was there before, so that the size alone would not show it.
        story.writer.write(150)
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_lines_that_copytruncate_took_away_unread_are_read_from_the_copy(story: Story, glob: str) -> None:
    story.writer.write(100)
    story.start(glob)
    story.await_delivered(100)
    story.agent.freeze()
    story.writer.write(1000)
    story.writer.copy_truncate()
    story.writer.write(10)
    story.agent.thaw()
    story.assert_exact()


def test_a_truncated_file_is_read_from_its_start(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered(100)
    story.writer.file.truncate(0)
    story.writer.write(10)
    story.assert_exact()


def test_a_file_written_anew_with_the_size_it_had_is_noticed(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.await_delivered(10)
    size = story.writer.path.stat().st_size
    story.writer.file.truncate(0)
    story.writer.file.write(b'{"writer":"w","seq":10,"text":"%s"}\n')
    story.writer.file.write(b'{"writer":"w","seq":11,"text":"')
    filling = size - story.writer.path.stat().st_size - 3
    story.writer.file.write(b"x" * filling + b'"}\n')
    assert story.writer.path.stat().st_size == size
    story.writer.sent = 12
    story.assert_exact()


def test_the_hole_that_a_stale_writer_leaves_is_not_data(story: Story) -> None:
    story.start()
    with story.writer.path.open("wb", buffering=0) as stale:
        stale.write(b"".join(b'{"writer":"w","seq":%d}\n' % number for number in range(1000)))
        story.await_delivered(1000)
        story.writer.copy_truncate()
        stale.write(b'{"writer":"w","seq":1000}\n')
    story.writer.sent = 1001
    story.assert_exact()


def test_copytruncate_while_the_agent_was_down_is_found_in_the_copy(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    assert story.agent.terminate() == 0
    story.writer.write(50)
    story.writer.copy_truncate()
    story.writer.write(200)
    story.agent.start()
    story.assert_exact()


def test_a_file_that_was_truncated_before_anything_of_it_was_read_is_read_in_its_copy(story: Story) -> None:
    story.start()
    eventually(lambda: story.agent.status()["tail"]["files"] == 1, what="the empty file to be known")
    story.agent.freeze()
    story.writer.write(100)
    story.agent.kill()
    story.writer.copy_truncate()
    story.writer.write(10)
    story.agent.start()
    story.assert_exact()


def test_more_written_after_a_truncation_than_was_there_before_is_read_whole(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.writer.file.truncate(0)
    story.writer.write(500)
    story.assert_exact()


def test_several_truncations_under_load_lose_and_repeat_nothing(story: Story) -> None:
    story.in_order().start()
    for turn in range(10):
        story.writer.write(50 + 30 * (turn % 4))
        story.await_delivered()
        story.writer.file.truncate(0)
    story.writer.write(10)
    story.assert_exact()


def test_a_file_truncated_and_grown_beyond_its_old_size_behind_the_agents_back_is_read_from_its_start(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.agent.freeze()
    story.writer.file.truncate(0)
    story.writer.write(300)
    story.agent.thaw()
    story.assert_exact()


def test_several_truncations_behind_the_agents_back_leave_the_last_content(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.agent.freeze()
    for _ in range(3):
        story.writer.file.truncate(0)
        story.writer.write(20)
    story.agent.thaw()
    verdict = story.judge(story.values(120))
    # What was cut away unread, with no copy of it, is gone: nobody can have it.
    assert (verdict.lost, verdict.duplicated, verdict.alien) == (40, 0, 0)


def test_a_file_cut_back_to_the_middle_of_what_was_read_is_read_again_as_it_is_now(story: Story) -> None:
    story.start(format="raw")
    story.writer.raw(b"".join(b"line %03d\n" % number for number in range(100)))
    story.await_delivered(100)
    story.writer.file.truncate(9 * 50)
    eventually(lambda: story.delivered() >= 150, what="what is left to be read again")
    story.writer.raw(b"after\n")
    values = story.values(151)
    assert sorted(set(values)) == sorted([b"after", *(b"line %03d" % number for number in range(100))])
    assert len(values) == 151


def test_a_file_cut_back_to_where_reading_is_goes_on_as_if_nothing_had_been(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.writer.raw(b'{"writer":"w","seq":')
    story.await_delivered(10)
    story.writer.file.truncate(story.writer.path.stat().st_size - 20)
    story.writer.write(10)
    story.assert_exact()


@kills
@pytest.mark.parametrize("lines", [10, 100, 300], ids=["fewer", "as many", "more"])
def test_a_truncation_while_the_agent_was_down_is_noticed(story: Story, lines: int, kill: bool) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.stop(kill)
    story.writer.file.truncate(0)
    story.writer.write(lines)
    story.agent.start()
    story.assert_exact()


def test_a_file_emptied_while_the_agent_was_down_and_filled_later_is_read_from_its_start(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered()
    story.stop()
    story.writer.file.truncate(0)
    story.agent.start()
    story.writer.write(200)
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
@kills
def test_several_copytruncates_over_restarts_lose_and_repeat_nothing(story: Story, glob: str, kill: bool) -> None:
    story.writer.write(50)
    story.start(glob)
    story.await_delivered()
    for _ in range(3):
        story.stop(kill)
        story.writer.write(30)
        story.writer.copy_truncate()
        story.writer.write(60)
        story.agent.start()
        story.await_arrived()
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_many_copytruncates_each_seen_leave_no_doubt_about_copies(story: Story, glob: str) -> None:
    story.start(glob)
    for _ in range(8):
        story.writer.write(100)
        story.await_delivered()
        story.writer.copy_truncate(keep=3)
    story.writer.write(100)
    story.await_delivered()
    # By then a copy would have been taken for a file of its own.
    story.await_quiet()
    story.assert_exact()


def test_a_copy_that_grows_slowly_beside_its_original_is_not_sent(story: Story) -> None:
    story.writer.write(2000)
    story.start("app.log*")
    story.await_delivered()
    content = story.writer.path.read_bytes()
    with story.writer.old(1).open("wb", buffering=0) as copy:
        for start in range(0, len(content), 10_000):
            copy.write(content[start : start + 10_000])
            # As slow as the agent's next word.
            story.agent.status()
    story.writer.file.truncate(0)
    story.writer.write(10)
    story.await_delivered()
    story.await_quiet()
    story.assert_exact()


def test_dated_copies_of_copytruncate_are_not_sent_again(story: Story) -> None:
    story.start("app.log*")
    for day in range(1, 5):
        story.writer.write(100)
        story.await_delivered()
        shutil.copyfile(story.writer.path, f"{story.writer.path}-202611{day:02d}")
        story.writer.file.truncate(0)
    story.writer.write(100)
    story.await_delivered()
    story.await_quiet()
    story.assert_exact()


def test_two_copytruncates_behind_the_agents_back_are_both_found_in_their_copies(story: Story) -> None:
    story.writer.write(100)
    story.in_order().start()
    story.await_delivered()
    story.agent.freeze()
    for _ in range(2):
        story.writer.write(100)
        story.writer.copy_truncate()
    story.writer.write(50)
    story.agent.thaw()
    story.assert_exact()


def test_a_writer_that_writes_while_it_is_copied_loses_only_what_came_between_copy_and_truncation(story: Story) -> None:
    story.start()
    story.writer.write(1000)
    story.await_delivered()
    for _ in range(3):
        shutil.copyfile(story.writer.path, story.writer.old(1))
        story.writer.write(1)
        story.await_delivered()
        story.writer.file.truncate(0)
        story.writer.write(50)
        story.await_delivered()
    story.assert_exact()


def test_the_hole_of_a_stale_writer_is_left_out_after_a_restart_too(story: Story) -> None:
    story.start()
    with story.writer.path.open("wb", buffering=0) as stale:
        stale.write(story.writer.lines(1000))
        story.await_delivered()
        story.stop()
        story.writer.file.truncate(0)
        stale.write(story.writer.lines(10))
        story.agent.start()
        story.await_arrived()
        stale.write(story.writer.lines(10))
    story.assert_exact()


def test_holes_of_a_stale_writer_after_several_truncations_are_left_out(story: Story) -> None:
    story.start()
    with story.writer.path.open("wb", buffering=0) as stale:
        for _ in range(5):
            stale.write(story.writer.lines(200))
            story.await_delivered()
            story.writer.file.truncate(0)
    story.writer.write(1)
    story.assert_exact()


def test_a_hole_of_many_megabytes_costs_no_time(story: Story) -> None:
    story.start()
    with story.writer.path.open("wb", buffering=0) as stale:
        stale.write(story.writer.lines(10))
        story.await_delivered()
        stale.seek(3_000_000_000)
        stale.write(b"\n" + story.writer.lines(10))
        story.await_delivered()
        stale.write(story.writer.lines(10))
    story.assert_exact()


@kills
def test_a_file_beyond_two_gigabytes_is_read_on_from_where_it_was(story: Story, kill: bool) -> None:
    os.truncate(story.writer.path, 2**31 - 100)
    story.writer.raw(b"\n")
    story.writer.write(100)
    story.start()
    story.await_delivered()
    assert story.writer.path.stat().st_size > 2**31
    story.restart(kill)
    story.writer.write(100)
    story.assert_exact()


def test_a_file_beyond_four_gigabytes_is_read_on_over_rotation_and_restart(story: Story) -> None:
    os.truncate(story.writer.path, 2**32 - 100)
    story.writer.raw(b"\n")
    story.writer.write(100)
    story.start()
    story.await_delivered()
    story.stop()
    story.writer.write(10)
    story.writer.rotate()
    story.writer.write(10)
    story.agent.start()
    story.assert_exact()


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_truncation_from_beyond_two_gigabytes_is_noticed(story: Story, down: bool) -> None:
    os.truncate(story.writer.path, 2**31 + 1000)
    story.writer.raw(b"\n")
    story.writer.write(100)
    story.start()
    story.await_delivered()
    if down:
        story.stop()
    story.writer.file.truncate(0)
    story.writer.write(100)
    if down:
        story.agent.start()
    story.assert_exact()


def truncate_with_lines_in_flight(story: Story, glob: str, wrapper: Sequence[str]) -> None:
    """Of a file that is copied and truncated Kafka has got ten lines, and the agent is killed."""
    story.writer.write(10)
    story.start(glob, wrapper=wrapper)
    story.await_delivered()
    story.await_saved()
    story.kafka.kill()
    story.writer.write(100)
    eventually(lambda: story.agent.status()["kafka"]["in_flight_bytes"] > 0, what="lines to be on their way")
    story.writer.copy_truncate()
    eventually(lambda: len(story.saved()) > 1, what="the truncation to be written down")
    story.agent.kill()
    story.kafka.up()


def test_a_copy_that_cannot_be_opened_after_a_kill_is_tried_again(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka
    truncate_with_lines_in_flight(story, "app.log", BOUND_BY_PERMISSIONS)
    story.writer.old(1).chmod(0)
    story.agent.start()
    story.writer.write(10)
    story.await_delivered(10)
    assert f"a copy of {story.writer.path} cannot be read: Permission denied; it is tried again" in story.agent.log()
    story.writer.old(1).chmod(0o600)
    story.assert_exact()


READS_THAT_FAIL = """
import errno, os, runpy, sys

def pread(fd, size, offset, real=os.pread):
    if size > 4096 and os.readlink(f"/proc/self/fd/{fd}").endswith(".1") and os.path.exists(sys.argv[0]):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return real(fd, size, offset)

broken = sys.argv[1]
os.pread = pread
sys.argv[:] = [broken, *sys.argv[sys.argv.index("-m") + 2 :]]
runpy.run_module("forwarder", run_name="__main__")
"""
"""A disk that cannot read the copy as long as there is a file of that name."""


def test_a_copy_that_cannot_be_read_after_a_kill_is_tried_again(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka
    broken = story.logs.parent / "broken"
    truncate_with_lines_in_flight(story, "app.log*", (sys.executable, "-c", READS_THAT_FAIL, str(broken)))
    broken.touch()
    story.agent.start()
    story.writer.write(10)
    eventually(lambda: "app.log.1 cannot be read: Input/output error; it is tried again" in story.agent.log(), what="a failure")
    broken.unlink()
    story.assert_exact()
