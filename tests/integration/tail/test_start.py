"""Where reading begins: `start = "end"`, and `ignore_older`."""

from __future__ import annotations

import os
import time

import pytest

from tests.harness.oracle import judge
from tests.integration.tail.story import Story, Writer

LONG_AGO = 1_000_000_000


def test_with_start_end_only_what_comes_after_the_first_start_is_sent(story: Story) -> None:
    story.writer.write(100)
    story.start("*.log", start="end")
    story.writer.write(50)
    later = Writer(story.logs / "new.log", first=150)
    later.write(50)
    judge(story.values(100), {"w": range(100, 200)}).assert_exact()


def test_a_file_skipped_at_the_first_start_is_not_sent_after_the_second(story: Story) -> None:
    story.writer.write(100)
    story.start(start="end")
    story.agent.kill()
    story.writer.write(10)
    story.agent.start()
    judge(story.values(10), {"w": range(100, 110)}).assert_exact()


def test_with_start_end_an_unfinished_last_line_is_sent_whole(story: Story) -> None:
    story.writer.write(100)
    line = story.writer.lines(1)
    story.writer.raw(line[:10])
    story.start(start="end")
    story.writer.raw(line[10:])
    story.writer.write(10)
    judge(story.values(11), {"w": range(100, 111)}).assert_exact()


def test_with_start_end_files_new_after_the_first_start_are_read_whole_even_if_they_came_while_it_was_down(story: Story) -> None:
    story.writer.write(10)
    story.start("*.log", start="end")
    story.stop()
    del story.writers["w"]
    story.open("while-down.log").write(10)
    story.agent.start()
    story.open("while-up.log").write(10)
    story.assert_exact()


def test_with_start_end_a_rotation_is_read_whole(story: Story) -> None:
    story.writer.write(100)
    story.start("app.log*", start="end")
    story.writer.write(10)
    story.await_delivered(10)
    story.writer.rotate()
    story.writer.write(10)
    story.await_delivered(20)
    story.stop()
    story.writer.rotate()
    story.writer.write(10)
    story.agent.start()
    judge(story.values(30), {"w": range(100, 130)}).assert_exact()


def test_with_start_end_a_truncated_file_is_read_from_its_start(story: Story) -> None:
    story.writer.write(100)
    story.start(start="end")
    story.writer.write(10)
    story.await_delivered(10)
    story.writer.file.truncate(0)
    story.writer.write(10)
    judge(story.values(20), {"w": range(100, 120)}).assert_exact()


@pytest.mark.slow  # a file that is left alone is looked at with the walks: every ten seconds
def test_files_older_than_ignore_older_are_left_alone_until_they_are_written_to(story: Story) -> None:
    story.writer.write(10)
    os.utime(story.writer.path, (LONG_AGO, LONG_AGO))
    story.start(ignore_older="1h")
    story.writer.write(10)
    story.assert_exact()


def test_an_old_file_that_is_touched_is_read(story: Story) -> None:
    story.writer.write(10)
    os.utime(story.writer.path, (LONG_AGO, LONG_AGO))
    story.start(ignore_older="1h")
    assert story.tail("files") == 0
    os.utime(story.writer.path)
    story.assert_exact()


def test_of_old_and_new_files_the_new_are_read(story: Story) -> None:
    for number in range(5):
        old = Writer(story.logs / f"old{number}.log")
        old.write(10)
        os.utime(old.path, (LONG_AGO, LONG_AGO))
        story.open(f"new{number}.log").write(10)
    (story.logs / "link.log").symlink_to("old0.log")
    story.start("*.log", ignore_older="1h")
    story.assert_exact()


def test_a_file_that_has_become_old_since_it_was_read_is_neither_sent_again_nor_given_up(story: Story) -> None:
    story.writer.write(10)
    story.start(ignore_older="1h")
    story.await_delivered()
    story.stop()
    old = time.time() - 7200
    os.utime(story.writer.path, (old, old))
    story.agent.start()
    story.writer.write(10)
    story.assert_exact()
