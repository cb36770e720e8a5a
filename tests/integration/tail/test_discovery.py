"""Which files are found, when, and from where they are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story, Writer


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
    odd = story.open(os.fsdecode(b"caf\xe9.log"))
    odd.write(10)
    odd.raw(b"text\n")
    story.start("*.log")
    story.await_delivered(21)
    story.await_saved()
    story.agent.kill()
    story.agent.start()
    odd.write(10)
    values = story.values(31)
    story.judge([value for value in values if b"message" not in value]).assert_exact()
    assert {json.loads(value)["path"] for value in values if b"message" in value} == {f"{story.logs}/caf\ufffd.log"}


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


def test_names_of_all_kinds_are_found_and_known_again(story: Story) -> None:
    names = ["with space.log", "new\nline.log", "[brackets].log", "star*.log", "quote'\".log", "tab\t.log", "ünïcödé-日志.log"]
    odd = [story.open(name) for name in names]
    for writer in odd:
        writer.write(10)
        writer.raw(b"text\n")
    story.start("*.log")
    story.await_delivered(11 * len(odd))
    story.restart()
    for writer in odd:
        writer.write(10)
    values = story.values(21 * len(odd))
    story.judge([value for value in values if b"message" not in value]).assert_exact()
    paths = [json.loads(value)["path"] for value in values if b"message" in value]
    assert sorted(paths) == sorted(str(writer.path) for writer in odd)


def test_brackets_in_a_path_can_be_escaped(story: Story) -> None:
    story.open("[a].log").write(10)
    Writer(story.logs / "a.log").write(10)
    story.start("[[]a].log")
    story.assert_exact()
