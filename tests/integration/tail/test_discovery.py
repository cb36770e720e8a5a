"""Which files are found, when, and from where they are read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.harness.agent import BOUND_BY_PERMISSIONS
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story, Writer

LONG_AGO = 1_000_000_000


def test_a_file_created_later_is_read_from_its_start(story: Story) -> None:
    story.start("*.log")
    other = Writer(story.logs / "other.log")
    other.write(50)
    judge(story.values(50), {"w": 50}).assert_exact()


def test_directories_that_appear_later_are_searched(story: Story) -> None:
    story.start("**/*.log")
    deep = Writer(story.logs / "a" / "b" / "deep.log")
    deep.write(50)
    judge(story.values(50), {"w": 50}).assert_exact()


def test_a_path_whose_directory_does_not_exist_yet_is_waited_for(story: Story) -> None:
    story.start("later/app.log")
    late = Writer(story.logs / "later" / "app.log")
    late.write(50)
    judge(story.values(50), {"w": 50}).assert_exact()


def test_excluded_and_compressed_files_are_left_alone(story: Story) -> None:
    for name in ("app.log.gz", "debug.log"):
        Writer(story.logs / name).write(10)
    story.start("*", exclude=["*.gz", "debug*"])
    story.writer.write(20)
    story.assert_exact()


def test_names_that_are_not_utf_8_are_names_all_the_same(story: Story) -> None:
    story.writer.write(10)
    odd = Writer(Path(os.fsdecode(os.fsencode(story.logs) + b"/caf\xe9.log")), first=10)
    odd.write(10)
    odd.file.write(b"text\n")
    story.start("*.log")
    story.await_delivered(21)
    story.agent.kill()
    story.agent.start()
    odd.write(10)
    values = story.values(31)
    verdict = judge((value for value in values if b"message" not in value), {"w": 30})
    assert (verdict.lost, verdict.alien) == (0, 0)
    paths = {json.loads(value)["path"] for value in values if b"message" in value}
    assert paths == {f"{story.logs}/caf\ufffd.log"}


def test_links_in_circles_and_odd_files_beside_the_logs_do_no_harm(story: Story) -> None:
    (story.logs / "circle").symlink_to("circle")
    (story.logs / "nowhere.log").symlink_to("/nonexistent/file")
    (story.logs / "directory.log").mkdir()
    os.mkfifo(story.logs / "fifo.log")
    (story.logs / "memory.log").symlink_to("/proc/self/mem")
    story.start("*.log", "*/*.log")
    story.writer.write(10)
    story.assert_exact()


def test_a_directory_that_is_replaced_is_watched_again(story: Story) -> None:
    story.writer.write(10)
    story.start("*.log")
    story.await_delivered(10)
    old = story.logs.rename(story.logs.with_name("old"))
    story.logs.mkdir()
    story.writer.reopen()
    story.writer.write(10)
    story.await_delivered(20)
    # Walks come every ten seconds without a word from the kernel: within two, a new file was seen by a watch.
    for number in range(20, 25):
        Writer(story.logs / f"{number}.log", first=number).write(1)
        eventually(lambda count=number: story.delivered() > count, 2, "the new file")  # type: ignore[misc]
    story.writer.sent = 25
    assert old.is_dir()
    story.assert_exact()


def test_a_new_file_and_a_new_directory_are_found_within_a_second(story: Story) -> None:
    story.start("**/*.log")
    for number in range(5):
        for path in (f"new{number}.log", f"dir{number}/new.log", f"dir{number}/deep/deeper/new.log"):
            story.open(path).write(1)
            eventually(lambda: story.delivered() >= story.sent, 1, f"{path} within a second")
    story.assert_exact()


def test_a_tree_renamed_into_place_is_searched_at_once(story: Story, directory: Path) -> None:
    story.start("**/*.log")
    for number in range(4):
        Writer(directory / "made" / "a" / f"{number}.log", first=10 * number).write(10)
        Writer(directory / "made" / "b" / "c" / f"{number}.log", first=100 + 10 * number).write(10)
    (directory / "made").rename(story.logs / "here")
    story.writer.sent = 0
    judge(story.values(80), {"w": [*range(40), *range(100, 140)]}).assert_exact()


def test_a_directory_moved_away_and_back_is_followed_in_both_places_of_the_glob(story: Story) -> None:
    moved = story.open("one/a.log")
    story.start("*/*.log")
    for name in ("two", "three", "one"):
        moved.write(20)
        story.await_delivered()
        moved.path = moved.path.parent.rename(story.logs / name) / "a.log"
    moved.write(20)
    story.open("two/b.log").write(20)
    story.assert_exact()


def test_a_glob_over_directories_finds_each_that_appears(story: Story) -> None:
    story.start("*/current/*.log")
    for number in range(5):
        story.open(f"app{number}/current/x.log").write(10)
        story.open(f"app{number}/archive/x.log", "none").write(10)
        del story.writers["none"]
    story.assert_exact()


def test_many_files_that_are_there_at_the_start_are_all_read(story: Story) -> None:
    for number in range(10):
        story.open(f"{number}.log").write(100)
    story.start("*.log")
    story.assert_exact()


def test_many_files_written_by_turns_are_all_read(story: Story) -> None:
    writers = [story.open(f"{number}.log") for number in range(10)]
    story.start("*.log")
    for _ in range(100):
        for writer in writers:
            writer.write(1)
    story.assert_exact()


def test_two_hundred_files_busy_at_once_are_all_read(story: Story) -> None:
    writers = [story.open(f"{number}.log") for number in range(200)]
    story.start("*.log")
    for _ in range(10):
        for writer in writers:
            writer.write(5)
    story.assert_exact()


def test_files_of_very_different_sizes_do_not_starve_each_other(story: Story) -> None:
    story.writer.write(100_000)
    story.start("*.log")
    small = story.open("small.log")
    small.write(5)
    story.assert_exact()


def test_hidden_files_and_directories_are_found_only_by_who_asks_for_them(story: Story) -> None:
    for path in (".hidden.log", ".git/x.log", "sub/.hidden.log"):
        Writer(story.logs / path).write(10)
    story.open(".asked/y.log").write(10)
    story.writer.write(10)
    story.start("*.log", "**/*.log", ".asked/*.log")
    story.assert_exact()


def test_excludes_hold_for_files_that_come_later_and_for_whole_paths(story: Story) -> None:
    story.start("**/*.log", exclude=["debug*", f"{story.logs}/old/*"])
    for path in ("debug.log", "sub/debug-1.log", "old/app.log"):
        Writer(story.logs / path).write(10)
    story.open("sub/app.log").write(10)
    story.open("sub/old/app.log").write(10)
    story.writer.write(10)
    story.assert_exact()


def test_a_file_renamed_out_of_the_exclusion_is_read(story: Story) -> None:
    story.start("*", exclude=["*.tmp"])
    hidden = story.open("part.tmp")
    hidden.write(50)
    story.writer.write(1)
    story.await_delivered(1)
    hidden.path.rename(story.logs / "part.done")
    story.assert_exact()


@pytest.mark.parametrize(
    "name", ["with space.log", "new\nline.log", "[brackets].log", "star*.log", "quote'\".log", "tab\t.log", "ünïcödé-日志.log"]
)
def test_names_of_all_kinds_are_found_and_known_again(story: Story, name: str) -> None:
    odd = story.open(name)
    odd.write(10)
    odd.raw(b"text\n")
    story.start("*.log")
    story.await_delivered(11)
    story.restart()
    odd.write(10)
    values = story.values(21)
    story.judge([value for value in values if b"message" not in value]).assert_exact()
    assert [json.loads(value)["path"] for value in values if b"message" in value] == [str(odd.path)]


def test_brackets_in_a_path_can_be_escaped(story: Story) -> None:
    story.open("[a].log").write(10)
    Writer(story.logs / "a.log").write(10)
    story.start("[[]a].log")
    story.assert_exact()


# Where to begin


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


# What may not be read


def test_a_file_that_becomes_readable_later_is_read(story: Story) -> None:
    # Root may read anything: a directory in place of the file is the refusal that it meets too.
    story.writer.path.unlink()
    story.writer.path.mkdir()
    story.start()
    story.writer.path.rmdir()
    story.writer.reopen()
    story.writer.write(10)
    story.assert_exact()


def test_a_file_without_permission_is_read_once_it_is_given(story: Story) -> None:
    story.writer.write(10)
    story.writer.path.chmod(0)
    story.start(wrapper=BOUND_BY_PERMISSIONS)
    eventually(lambda: "cannot be opened: Permission denied" in story.agent.log(), what="a warning")
    story.writer.path.chmod(0o600)
    story.assert_exact()


def test_a_directory_without_permission_is_searched_once_it_is_given(story: Story) -> None:
    writer = story.open("closed/deep/a.log")
    writer.write(10)
    closed = story.logs / "closed"
    closed.chmod(0)
    try:
        story.start("*/*/*.log", wrapper=BOUND_BY_PERMISSIONS)
        eventually(lambda: f"{closed} cannot be listed: Permission denied" in story.agent.log(), what="a warning")
    finally:
        closed.chmod(0o700)
    story.assert_exact()


def test_a_file_whose_permission_is_taken_away_is_read_on(story: Story) -> None:
    story.writer.write(10)
    story.start(wrapper=BOUND_BY_PERMISSIONS)
    story.await_delivered()
    story.writer.path.chmod(0)
    story.writer.write(10)
    story.await_delivered()
    story.restart()
    story.writer.path.chmod(0o600)
    story.writer.write(10)
    story.assert_exact()
