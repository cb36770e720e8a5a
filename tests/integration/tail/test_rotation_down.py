"""What befell files while the agent, or Kafka, was away."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.wait import eventually
from tests.integration.tail.story import Story

kills = pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
globs = pytest.mark.parametrize("glob", ["app.log", "app.log*"])
LONG = "x" * 1000


def test_what_was_rotated_while_the_agent_was_down_is_found_again(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    assert story.agent.terminate() == 0
    for _ in range(3):
        story.writer.write(50)
        story.writer.rotate()
    story.writer.write(50)
    story.agent.start()
    story.assert_exact()


def test_a_file_replaced_while_the_agent_was_down_is_read_from_its_start(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    assert story.agent.terminate() == 0
    story.writer.path.unlink()
    story.writer.reopen()
    story.writer.write(200)
    story.agent.start()
    story.assert_exact()


@globs
@kills
def test_one_rotation_while_the_agent_was_down_is_caught_up_with(story: Story, glob: str, kill: bool) -> None:
    story.writer.write(100)
    story.start(glob)
    story.await_delivered()
    story.stop(kill)
    story.writer.write(50)
    story.writer.rotate()
    story.writer.write(50)
    story.agent.start()
    story.assert_exact()


@globs
@kills
def test_many_rotations_while_the_agent_was_down_are_caught_up_with_in_order(story: Story, glob: str, kill: bool) -> None:
    story.writer.write(100)
    story.in_order().start(glob)
    story.await_delivered()
    story.stop(kill)
    for _ in range(7):
        story.writer.write(50)
        story.writer.rotate()
    story.writer.write(50)
    story.agent.start()
    story.assert_exact()


def test_dated_rotations_while_the_agent_was_down_are_caught_up_with_in_order(story: Story) -> None:
    story.writer.write(100)
    story.in_order().start()
    story.await_delivered()
    story.stop()
    for day in range(1, 5):
        story.writer.write(50)
        story.writer.rotate_dated(f"202611{day:02d}")
    story.writer.write(50)
    story.agent.start()
    story.assert_exact()


def test_rotations_with_nothing_new_while_the_agent_was_down_send_nothing(story: Story) -> None:
    story.writer.write(100)
    story.start("app.log*")
    story.await_delivered()
    for _ in range(3):
        story.stop()
        story.writer.rotate()
        story.agent.start()
    story.writer.write(10)
    story.assert_exact()


def test_a_rotation_at_every_restart_is_caught_up_with(story: Story) -> None:
    story.writer.write(20)
    story.start()
    story.await_delivered()
    for _ in range(8):
        story.stop()
        story.writer.write(20)
        story.writer.rotate()
        story.writer.write(20)
        story.agent.start()
    story.assert_exact()


def test_a_file_of_some_megabytes_moved_while_the_agent_was_down_is_read_on_and_not_again(story: Story) -> None:
    story.writer.write(5000, LONG)
    story.start("app.log*")
    story.await_delivered()
    story.stop()
    story.writer.write(2000, LONG)
    story.writer.rotate()
    story.writer.write(100)
    story.agent.start()
    story.assert_exact()


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_big_file_rotated_and_left_half_read_by_the_last_run_is_read_on(story: Story, kill: bool) -> None:
    story.start()
    story.writer.write(20_000, LONG)
    eventually(lambda: story.delivered() > 0, what="the first lines")
    story.writer.rotate()
    if kill:
        story.agent.kill()
    else:
        assert story.agent.terminate() == 0
    story.writer.write(100)
    story.agent.start()
    verdict = story.assert_none_lost()
    # A kill repeats no more than was sent since positions were saved last.
    assert kill or not verdict.duplicated


def test_files_that_wait_for_each_other_at_a_stop_arrive_in_order_after_it(story: Story) -> None:
    story.writer.write(10)
    story.in_order().start(agent={"shutdown_timeout": "1ms"})
    story.await_delivered()
    story.agent.freeze()
    for _ in range(4):
        story.writer.write(10_000, LONG)
        story.writer.rotate()
    story.writer.write(10)
    story.agent.thaw()
    eventually(lambda: story.tail("rotated_or_deleted") == 4, what="the rotated files to be found")
    story.stop()
    story.agent.start()
    # What was on its way at a stop that was cut short may come again.
    assert not story.assert_none_lost().reordered


def test_rotated_files_that_were_found_by_their_own_names_are_not_sent_again_after_a_restart(story: Story) -> None:
    story.writer.write(50)
    for number in (1, 2, 3):
        story.open(f"app.log.{number}").write(50)
    story.start("app.log*")
    story.await_delivered()
    story.restart()
    story.writer.write(10)
    story.await_arrived()
    story.restart()
    story.writer.write(10)
    story.assert_exact()


def test_the_oldest_deleted_while_the_agent_was_down_is_no_trouble(story: Story) -> None:
    story.writer.write(50)
    story.start()
    story.await_delivered()
    story.stop()
    for _ in range(4):
        story.writer.write(50)
        story.writer.rotate(keep=4)
    # Of the file that was read nothing is left to read: its last 50 lines are in the oldest, which goes.
    story.writer.old(4).unlink()
    story.agent.start()
    values = story.values(200)
    verdict = story.judge(values)
    assert (verdict.duplicated, verdict.alien) == (0, 0)
    assert verdict.writers["w"].first_lost == tuple(range(50, 70))
    assert verdict.lost == 50


def test_a_file_rotated_and_compressed_while_the_agent_was_down_does_not_disturb_the_next(story: Story) -> None:
    story.writer.write(100)
    story.start("app.log*")
    story.await_delivered()
    story.stop()
    story.writer.rotate()
    subprocess.run(["gzip", str(story.writer.old(1))], check=True)
    story.writer.write(100)
    story.agent.start()
    story.assert_exact()


def test_a_file_moved_away_while_the_agent_was_down_and_moved_back_is_not_sent_again(story: Story, directory: Path) -> None:
    story.writer.write(100)
    story.start("*.log")
    story.await_delivered()
    story.stop()
    story.writer.path.rename(directory / "away.log")
    story.writer.write(10)
    story.agent.start()
    story.open("other.log").write(10)
    story.await_arrived(110)
    (directory / "away.log").rename(story.writer.path)
    # A row is dropped with its file: what comes back later may be sent again.
    story.assert_none_lost()


def test_a_writer_of_the_rotated_file_is_heard_after_a_restart(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered()
    story.writer.path.rename(story.writer.old(1))
    new = story.open("app.log", "new")
    new.write(10)
    story.await_delivered()
    story.stop()
    story.writer.write(10)
    new.write(10)
    story.agent.start()
    story.writer.write(10)
    new.write(10)
    story.assert_exact()


@pytest.mark.slow
def test_rotation_while_kafka_is_away_is_caught_up_with(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka.start()
    story.writer.write(100)
    story.await_delivered()
    story.kafka.kill()
    for _ in range(3):
        story.writer.write(100)
        story.writer.rotate()
    story.writer.old(3).unlink()
    story.writer.write(100)
    eventually(lambda: story.tail("rotated_or_deleted") == 3, what="three rotated files held open")
    story.kafka.up()
    story.assert_exact()


@pytest.mark.slow
def test_what_was_rotated_while_kafka_was_away_is_found_after_a_restart(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka.start(agent={"shutdown_timeout": "200ms"})
    story.writer.write(100)
    story.await_delivered()
    story.await_saved()
    story.kafka.kill()
    for _ in range(4):
        story.writer.write(100)
        story.writer.rotate()
    story.agent.kill()
    story.writer.write(100)
    story.kafka.up()
    story.agent.start()
    story.assert_exact()


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("stands", [True, False], ids=["stands", "vacant"])
def test_what_came_and_went_while_the_agent_was_down_is_read_at_a_path_that_it_never_saw(
    story: Story, kill: bool, packed: bool, stands: bool
) -> None:
    story.start("*.log")
    story.writer.write(10)
    story.await_delivered()
    story.stop(kill)
    other = story.open("new.log")
    for _ in range(2):
        other.write(10)
        other.rotate()
    if packed:
        subprocess.run(["gzip", other.old(2)], check=True)
    if stands:
        other.write(10)
    else:
        other.path.unlink()
    story.agent.start()
    story.await_arrived()
    story.assert_none_lost() if kill else story.assert_exact()


def test_what_was_rotated_before_the_first_start_is_left_alone(story: Story) -> None:
    story.writer.raw(b"an old line that nobody asked for\n")
    story.writer.rotate()
    story.writer.write(10)
    story.start("*.log")
    story.await_delivered()
    story.restart()
    story.writer.write(10)
    story.await_arrived()
    story.assert_exact()
