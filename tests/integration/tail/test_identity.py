"""Which file is which: by inode and content, whatever the names, links and beginnings."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story, Writer


def test_a_hard_link_and_a_symbolic_link_to_a_file_are_the_same_file(story: Story) -> None:
    (story.logs / "hard.log").hardlink_to(story.writer.path)
    (story.logs / "soft.log").symlink_to(story.writer.path)
    story.start("*.log")
    story.writer.write(100)
    story.assert_exact()


def test_a_symbolic_link_that_is_set_to_another_file_is_followed(story: Story) -> None:
    first, second = Writer(story.logs / "first"), Writer(story.logs / "second", first=100)
    link = story.logs / "current.log"
    link.symlink_to("first")
    first.write(100)
    story.start("current.log")
    story.await_delivered(100)
    second.write(100)
    link.unlink()
    link.symlink_to("second")
    story.writer.sent = 200
    story.assert_exact()


def test_two_files_with_the_same_content_are_both_read(story: Story) -> None:
    story.writer.write(100)
    shutil.copyfile(story.writer.path, story.logs / "app.log.1")
    shutil.copyfile(story.writer.path, story.logs / "other.log")
    story.start("*.log*")
    verdict = judge(story.values(300), {"w": 100})
    assert (verdict.lost, verdict.duplicated) == (0, 200)


def test_rotated_files_with_equal_beginnings_are_not_taken_for_copies(story: Story) -> None:
    header = b"#" * 2000 + b"\n"
    story.writer.file.write(header)
    story.writer.write(100)
    story.start()
    story.await_delivered(101)
    story.agent.freeze()
    for _ in range(3):
        story.writer.rotate()
        story.writer.file.write(header)
        story.writer.write(100)
    story.agent.thaw()
    values = story.values(404)
    assert sum(b"####" in value for value in values) == 4
    judge((value for value in values if b"####" not in value), {"w": 400}).assert_exact()


def test_files_with_an_equal_header_longer_than_the_head_are_all_read(story: Story) -> None:
    header = b"#" * 2000 + b"\n"
    for number in range(10):
        writer = story.open(f"{number}.log")
        writer.raw(header)
        writer.write(10)
    story.start("?.log")
    values = story.values(110)
    assert sum(b"####" in value for value in values) == 10
    story.judge([value for value in values if b"####" not in value]).assert_exact()


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_files_that_differ_only_behind_the_head_are_told_apart_after_a_restart(story: Story, kill: bool) -> None:
    header = b"#" * 2000 + b"\n"
    one, two = story.open("one.log"), story.open("two.log")
    for writer in (one, two):
        writer.raw(header)
        writer.write(10)
    story.start("one.log", "two.log")
    story.await_delivered(22)
    story.stop(kill=kill)
    # Names change places while the agent is down.
    one.path.rename(story.logs / "three.log")
    two.path.rename(one.path)
    (story.logs / "three.log").rename(two.path)
    one.write(5)
    two.write(5)
    story.agent.start()
    values = story.values(32)
    assert sum(b"####" in value for value in values) == 2
    story.judge([value for value in values if b"####" not in value]).assert_exact()


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_file_smaller_than_the_head_is_known_again_as_it_grows_over_restarts(story: Story, kill: bool) -> None:
    story.start()
    for _ in range(6):
        story.writer.write(5)
        story.await_arrived()
        assert len(story.saved()) == 1
        story.restart(kill)
    story.writer.write(1)
    story.assert_exact()


def test_a_file_of_a_single_byte_and_a_newline_flows_at_once_and_is_known_again(story: Story) -> None:
    story.writer.raw(b"x\n")
    story.start(format="raw")
    story.await_delivered(1)
    story.restart()
    story.writer.raw(b"y\n")
    assert sorted(story.values(2)) == [b"x", b"y"]


def test_files_that_were_empty_when_found_are_told_apart(story: Story) -> None:
    writers = [story.open(f"{number}.log") for number in range(5)]
    story.start("?.log")
    eventually(lambda: story.tail("files") == 5, what="empty files to be known")
    for writer in writers:
        writer.write(10)
    story.assert_exact()


def recreate_at_same_inode(writer: Writer, spare: Path) -> bool:
    """Delete the file and create another; whether it has got the inode of the first, for which a few tries are made."""
    inode = writer.path.stat().st_ino
    writer.file.close()
    writer.path.unlink()
    for number in range(100):
        writer.reopen()
        if writer.path.stat().st_ino == inode:
            return True
        writer.path.rename(spare.with_name(f"{spare.name}{number}"))
    writer.reopen()
    return False


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
@pytest.mark.parametrize("lines", [20, 100, 300], ids=["smaller", "as large", "larger"])
def test_another_file_at_the_inode_of_a_deleted_one_is_read_from_its_start(story: Story, lines: int, kill: bool) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered()
    story.stop(kill)
    (story.logs / "spare").mkdir()
    # Nothing else is open, so that ext4 and most others give the inode out again at once; if not, the promise holds all the same.
    recreate_at_same_inode(story.writer, story.logs / "spare" / "s")
    story.writer.write(lines)
    story.agent.start()
    story.assert_exact()


def test_an_inode_that_is_used_again_under_another_name_is_a_file_of_its_own(story: Story) -> None:
    story.start("*.log")
    for number in range(10):
        writer = story.open(f"{number}.log")
        writer.write(20)
        story.await_arrived()
        writer.file.close()
        writer.path.unlink()
        # The agent holds what it reads; what it has let go of is free for the next file.
    story.assert_exact()


def test_inodes_that_are_used_again_while_the_agent_is_down_mix_no_files_up(story: Story) -> None:
    story.start("*.log")
    for number in range(5):
        one, two = story.open(f"{number}a.log"), story.open(f"{number}b.log")
        one.write(20)
        two.write(30)
        story.await_arrived()
        story.stop()
        for writer in (one, two):
            writer.file.close()
            writer.path.unlink()
        story.open(f"{number}c.log").write(25)
        story.agent.start()
    story.assert_exact()


def test_a_chain_of_symbolic_links_is_followed_to_one_file(story: Story) -> None:
    (story.logs / "tree" / "deep").mkdir(parents=True)
    (story.logs / "tree" / "deep" / "link.log").symlink_to("../../app.log")
    (story.logs / "middle.log").symlink_to("tree/deep/link.log")
    (story.logs / "last.log").symlink_to("middle.log")
    story.writer.write(20)
    story.start("**/*.log")
    story.writer.write(20)
    story.assert_exact()


def test_a_symbolic_link_to_a_directory_is_followed_where_the_glob_says_so(story: Story, directory: Path) -> None:
    elsewhere = directory / "elsewhere"
    elsewhere.mkdir()
    (story.logs / "linked").symlink_to(elsewhere)
    story.start("linked/*.log")
    story.open("../elsewhere/a.log").write(20)
    story.assert_exact()


def test_a_link_that_is_set_to_thirty_files_in_turn_brings_all_of_them(story: Story) -> None:
    link = story.logs / "current.log"
    story.open("target0", "t0").write(100)
    link.symlink_to("target0")
    story.start("current.log")
    for number in range(1, 30):
        # What was never seen behind the link is nobody's promise: so it is left until its lines have come.
        story.await_delivered()
        story.open(f"target{number}", f"t{number}").write(100)
        replacement = story.logs / "next"
        replacement.symlink_to(f"target{number}")
        replacement.rename(link)
    story.assert_exact()


def test_a_link_set_back_to_an_earlier_file_sends_only_what_is_new_in_it(story: Story) -> None:
    one, two = story.open("one"), story.open("two")
    link = story.logs / "current.log"
    story.start("current.log")
    for writer in (one, two, one, two):
        link.unlink(missing_ok=True)
        link.symlink_to(writer.path.name)
        writer.write(20)
        story.await_delivered()
    story.assert_exact()


@pytest.mark.slow
def test_the_target_of_a_link_that_rotates_is_read_on(story: Story, directory: Path) -> None:
    target = story.open("../elsewhere/real.log")
    (story.logs / "linked.log").symlink_to(target.path)
    story.start("linked.log")
    for _ in range(3):
        target.write(50)
        story.await_delivered()
        target.rotate()
    target.write(50)
    story.assert_exact()


def test_a_hard_link_made_later_to_a_file_that_is_read_is_not_read_again(story: Story) -> None:
    story.writer.write(50)
    story.start("*.log")
    story.await_delivered()
    (story.logs / "later.log").hardlink_to(story.writer.path)
    story.writer.write(10)
    story.await_delivered()
    story.writer.path.unlink()
    story.writer.write(10)
    story.restart()
    story.writer.write(10)
    story.assert_exact()


def test_a_file_renamed_into_another_name_of_the_glob_is_read_on_and_not_again(story: Story) -> None:
    one = story.open("one.log")
    one.write(50)
    story.start("*.log")
    story.await_delivered()
    one.path.rename(story.logs / "two.log")
    one.write(50)
    story.await_delivered()
    story.open("one.log").write(50)
    story.assert_exact()


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_file_renamed_from_one_table_into_another_is_not_sent_twice(story: Story, down: bool) -> None:
    moved = story.open("one/a.log")
    moved.write(50)
    (story.logs / "two").mkdir()
    story.start_tables(
        {"paths": [f"{story.logs}/one/*.log"], "app": "one"},
        {"paths": [f"{story.logs}/two/*.log"], "app": "two"},
    )
    story.await_delivered()
    if down:
        story.stop()
    moved.path.rename(story.logs / "two" / "a.log")
    moved.write(50)
    if down:
        story.agent.start()
    story.assert_exact()


def test_a_file_that_two_tables_match_belongs_to_the_first(story: Story) -> None:
    story.writer.raw(b"text\n")
    path = str(story.writer.path)
    story.start_tables({"paths": [path], "app": "first"}, {"paths": [f"{story.logs}/*"], "app": "second"})
    story.writer.raw(b"more text\n")
    assert [json.loads(value)["app"] for value in story.values(2)] == ["first", "first"]


def test_a_path_that_two_globs_of_a_table_match_is_read_once(story: Story) -> None:
    story.writer.write(20)
    story.start("app.log", "*.log", "app.log", "**/*.log")
    story.writer.write(20)
    story.assert_exact()


def test_a_file_copied_over_another_is_read_as_what_it_is_now(story: Story) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    source = Writer(story.logs / "source", first=50)
    source.write(100)
    shutil.copyfile(source.path, story.writer.path)
    story.writer.sent = 150
    story.assert_exact()


def test_a_file_replaced_in_one_step_is_read_from_its_start(story: Story) -> None:
    story.writer.write(50)
    story.start()
    for turn in range(1, 4):
        story.await_delivered()
        replacement = Writer(story.logs / "replacement", first=50 * turn)
        replacement.write(50)
        replacement.path.replace(story.writer.path)
        story.writer.sent += 50
    story.assert_exact()


def test_of_two_positions_with_one_inode_the_right_one_is_resumed_wherever_the_file_was_moved(story: Story) -> None:
    story.writer.write(100)
    story.start("**/*.log")
    story.await_delivered(100)
    story.stop()
    # As a kill leaves it that came between a deletion and the next use of the inode.
    with contextlib.closing(sqlite3.connect(story.agent.state / "positions.db", isolation_level=None)) as database:
        name, position, detail = database.execute("SELECT name, position, detail FROM source").fetchone()
        other = {**json.loads(detail), "path": str(story.logs / "other.log"), "head": "0" * 32}
        database.execute("INSERT INTO source VALUES (?, ?, ?)", (name.replace("app", "other"), position, json.dumps(other)))
    story.writer.write(100)
    moved = story.logs / "some" / "where" / "else.log"
    moved.parent.mkdir(parents=True)
    story.writer.path.rename(moved)
    story.agent.start()
    story.await_arrived(200)
    eventually(lambda: len(story.saved()) == 1, what="one row")
    story.assert_exact()
