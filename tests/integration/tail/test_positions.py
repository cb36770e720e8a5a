"""Where reading is, on disk: kept over restarts, lost, damaged, and of files that are gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness.agent import BOUND_BY_PERMISSIONS
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story


def test_lines_written_before_and_after_the_start_arrive_once_each(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.write(100)
    story.assert_exact()


def test_a_restart_sends_nothing_again(story: Story) -> None:
    story.writer.write(1000)
    story.start()
    story.await_delivered(1000)
    assert story.agent.terminate() == 0
    story.agent.start()
    story.writer.write(1)
    story.assert_exact()


def database(story: Story) -> Path:
    return story.agent.state / "positions.db"


def execute(story: Story, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(database(story), isolation_level=None)) as connection:
        connection.execute(statement, values)


def test_twenty_kills_in_a_row_with_writes_in_between_lose_nothing(story: Story) -> None:
    story.start()
    for _ in range(20):
        story.writer.write(100)
        story.agent.kill()
        story.writer.write(100)
        story.agent.start()
    story.assert_none_lost()


def test_kills_after_positions_are_saved_repeat_nothing(story: Story) -> None:
    story.start()
    for _ in range(5):
        story.writer.write(50)
        story.await_arrived()
        story.restart(kill=True)
    story.assert_exact()


def test_many_clean_restarts_under_load_lose_and_repeat_nothing(story: Story) -> None:
    story.start()
    for _ in range(8):
        story.writer.write(2000)
        story.stop()
        story.writer.write(10)
        story.agent.start()
    story.assert_exact()


def test_kills_while_files_rotate_lose_nothing(story: Story) -> None:
    story.start("app.log*")
    for _ in range(8):
        story.writer.write(100)
        story.writer.rotate(keep=20)
        story.writer.write(50)
        story.agent.kill()
        story.writer.write(10)
        story.writer.rotate(keep=20)
        story.agent.start()
    story.assert_none_lost()


# Damage


def lost(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"this was never a database" * 1000)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def nuls(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [lost, empty, garbage, truncated, nuls])
def test_with_its_positions_lost_the_agent_starts_and_sends_what_is_there_again(
    story: Story, damage: Callable[[Path], None]
) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered()
    story.stop()
    damage(database(story))
    story.agent.start()
    story.writer.write(10)
    verdict = story.judge(story.values(210))
    assert (verdict.lost, verdict.duplicated, verdict.alien) == (0, 100, 0)
    # And from then on all is well again.
    story.agent.start()
    story.writer.write(10)
    assert story.judge(story.values(220)).duplicated == 100


def test_positions_lost_with_start_end_skip_nothing(story: Story) -> None:
    story.writer.write(100)
    story.start(start="end")
    story.writer.write(10)
    story.await_delivered(10)
    story.stop()
    garbage(database(story))
    story.writer.write(10)
    story.agent.start()
    values = story.values(130)
    verdict = judge(values, {"w": 120})
    assert (verdict.lost, verdict.duplicated) == (0, 10)


@pytest.mark.parametrize("detail", ["", '{"path": 1}'])
def test_a_row_that_cannot_be_understood_costs_duplicates_of_its_file_alone(story: Story, detail: str) -> None:
    other = story.open("other.log")
    for writer in (story.writer, other):
        writer.write(50)
    story.start("*.log")
    story.await_delivered()
    story.stop()
    execute(story, "UPDATE source SET detail = ? WHERE name LIKE '%app.log%'", detail)
    story.agent.start()
    story.writer.write(10)
    other.write(10)
    verdict = story.assert_none_lost()
    assert verdict.writers["w"].duplicated == 50
    assert verdict.writers["w1"].duplicated == 0
    assert len(story.saved()) == 2


def test_a_position_beyond_the_end_of_its_file_is_not_believed(story: Story) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    story.stop()
    execute(story, "UPDATE source SET position = 1000000000")
    story.agent.start()
    story.writer.write(10)
    verdict = story.judge(story.values(110))
    assert (verdict.lost, verdict.duplicated) == (0, 50)


def test_positions_of_a_newer_release_are_left_alone_and_said_so(story: Story) -> None:
    story.writer.write(10)
    story.start()
    story.await_delivered()
    story.stop()
    execute(story, "PRAGMA user_version = 99")
    before = database(story).read_bytes()
    story.agent.start(wait=False)
    assert story.agent.wait() != 0
    assert "format version 99" in story.agent.log()
    assert database(story).read_bytes() == before


def test_positions_of_an_older_release_are_taken_up(story: Story) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    story.stop()
    execute(story, "PRAGMA user_version = 0")
    story.agent.start()
    story.writer.write(10)
    story.assert_exact()


def test_a_state_directory_that_may_not_be_written_prevents_the_start_and_harms_nothing(story: Story) -> None:
    story.writer.write(50)
    story.start(wrapper=BOUND_BY_PERMISSIONS)
    story.await_delivered()
    story.stop()
    story.agent.state.chmod(0o500)
    story.agent.start(wait=False)
    assert story.agent.wait() != 0
    assert str(story.agent.state) in story.agent.log_tail(3)
    story.agent.state.chmod(0o700)
    story.agent.start()
    story.writer.write(10)
    story.assert_exact()


# Rows


def test_rows_are_exactly_those_of_present_files_after_rounds_of_rotation(story: Story) -> None:
    story.start("app.log*")
    for _ in range(6):
        story.writer.write(20)
        story.await_delivered()
        story.writer.rotate(keep=2)
    story.writer.write(20)
    story.await_delivered()
    present = {path.stat().st_ino for path in story.logs.iterdir()}
    assert len(present) == 3
    eventually(lambda: sorted(inode for inode, _ in story.saved().values()) == sorted(present), what="rows of present files only")
    story.assert_exact()


def test_rows_of_files_long_gone_are_collected_at_the_start(story: Story) -> None:
    writers = [story.open(f"{number}.log") for number in range(20)]
    for writer in writers:
        writer.write(5)
    story.start("*.log")
    story.await_delivered()
    story.stop()
    assert len(story.saved()) >= 20
    for writer in writers[1:]:
        writer.delete()
    story.agent.start()
    story.writer.write(1)
    eventually(lambda: len(story.saved()) == 2, what="the rows of present files only")
    story.assert_exact()


def test_rows_do_not_pile_up_over_restarts_with_rotation(story: Story) -> None:
    story.start("app.log*")
    for _ in range(6):
        story.writer.write(20)
        story.await_arrived()
        story.stop()
        story.writer.rotate(keep=2)
        story.agent.start()
    story.writer.write(1)
    story.await_arrived()
    story.await_saved()
    assert len(story.saved()) == 3
    story.assert_exact()


def test_rows_of_files_that_no_glob_matches_any_more_stay_while_the_files_do(story: Story) -> None:
    story.writer.write(50)
    story.start("*.log")
    story.await_delivered()
    story.stop()
    first = story.agent
    changed = first.file.read_text()
    first.file.write_text(changed.replace("*.log", "*.txt"))
    first.start()
    story.stop()
    first.file.write_text(changed)
    first.start()
    story.writer.write(10)
    story.assert_exact()


def test_when_positions_cannot_be_saved_shipping_goes_on_and_that_is_said_once(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.await_delivered()
    story.await_saved()
    execute(story, "CREATE TRIGGER full BEFORE UPDATE ON source BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END")
    for _ in range(5):
        story.writer.write(10)
        story.await_delivered()
        eventually(lambda: story.agent.log().count("shipping goes on") == 1, what="one word about it")
    execute(story, "DROP TRIGGER full")
    eventually(lambda: "can be saved again" in story.agent.log(), what="positions to be saved again")
    story.restart(kill=True)
    story.writer.write(10)
    story.assert_exact()
