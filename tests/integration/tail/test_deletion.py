"""Files that are deleted while they are read."""

from __future__ import annotations

import pytest

from tests.harness.wait import eventually
from tests.integration.tail.story import Story


def test_deletion_and_recreation_lose_nothing_that_was_written_to_either(story: Story) -> None:
    story.start()
    for _ in range(3):
        story.writer.write(200)
        story.await_delivered(story.writer.sent)
        story.writer.path.unlink()
        story.writer.write(20)
        story.writer.reopen()
        story.writer.write(20)
    story.assert_exact()


def test_the_unfinished_line_of_a_deleted_file_is_sent_as_it_is(story: Story) -> None:
    story.start(format="raw")
    story.writer.file.write(b"whole\nunfinished")
    story.await_delivered(1)
    story.writer.path.unlink()
    story.writer.file.close()
    assert sorted(story.values(2)) == [b"unfinished", b"whole"]


@pytest.mark.slow
def test_what_kafka_has_not_got_of_a_deleted_file_outlives_the_agent(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka.start(agent={"shutdown_timeout": "500ms"})
    story.writer.write(10)
    story.await_delivered()
    story.kafka.kill()
    story.writer.write(1000)
    story.writer.raw(story.writer.lines(1).rstrip(b"\n"))
    eventually(lambda: story.agent.status()["kafka"]["in_flight_bytes"] > 0, what="lines to be on their way")
    story.writer.delete()
    assert story.agent.terminate() == 0
    story.kafka.up()
    story.agent.start()
    story.assert_exact()


def test_a_deleted_file_is_read_to_its_end_and_let_go_of_and_its_inode_may_be_used_again(story: Story) -> None:
    story.start("*.log")
    story.writer.write(1000)
    story.writer.delete()
    story.writer.file.close()
    story.await_delivered()
    eventually(lambda: not story.open_files(), what="the deleted file to be closed")
    eventually(lambda: not story.saved(), what="its row to go")
    assert story.tail("files") == 0
    story.open("next.log").write(2000)
    story.await_delivered()
    assert story.agent.metric("forwarder_tail_abandoned_bytes_total") == 0
    story.assert_exact()


def test_a_deleted_file_is_heard_as_long_as_its_writer_writes(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.await_delivered()
    story.writer.delete()
    for _ in range(20):
        story.writer.write(10)
        story.await_delivered()
    story.assert_exact()


def test_an_unfinished_line_of_a_deleted_file_is_sent_when_the_agent_stops(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.writer.raw(story.writer.lines(1).rstrip(b"\n"))
    story.await_delivered(10)
    story.writer.delete()
    eventually(lambda: story.tail("rotated_or_deleted") == 1, what="the deletion to be seen")
    story.stop()
    story.judge(story.kafka.values(story.topic, expected=11)).assert_exact()


def test_a_file_deleted_behind_the_agents_back_is_read_to_its_end(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.await_delivered()
    story.agent.freeze()
    story.writer.write(5000)
    story.writer.delete()
    story.agent.thaw()
    story.assert_exact()


def test_a_file_deleted_and_written_anew_behind_the_agents_back_loses_nothing(story: Story) -> None:
    story.in_order().start()
    story.writer.write(10)
    story.await_delivered()
    story.agent.freeze()
    story.writer.write(1000)
    story.writer.delete()
    story.writer.reopen()
    story.writer.write(1000)
    story.agent.thaw()
    story.assert_exact()


def test_a_file_deleted_while_the_agent_was_down_leaves_no_row(story: Story) -> None:
    other = story.open("other.log")
    for writer in (story.writer, other):
        writer.write(10)
    story.start("*.log")
    story.await_delivered()
    story.stop()
    other.delete()
    story.agent.start()
    story.writer.write(10)
    eventually(lambda: len(story.saved()) == 1, what="the row to go")
    story.assert_exact()


def test_deletion_and_recreation_at_each_restart_lose_and_repeat_nothing(story: Story) -> None:
    story.writer.write(50)
    story.start()
    for _ in range(5):
        story.await_arrived()
        story.stop()
        story.writer.delete()
        story.writer.reopen()
        story.writer.write(50)
        story.agent.start()
    story.assert_exact()


def test_many_files_that_live_for_a_moment_are_each_read_once_they_were_seen(story: Story) -> None:
    story.start("*.log")
    for number in range(30):
        writer = story.open(f"short{number}.log")
        writer.write(5)
        eventually(lambda path=writer.path: str(path) in story.open_files(), what="the file to be found")  # type: ignore[misc]
        writer.write(5)
        writer.delete()
    story.assert_exact()


def test_a_directory_deleted_with_its_files_and_made_again_is_followed_again(story: Story) -> None:
    story.start("sub/*.log")
    for number in range(4):
        writer = story.open(f"sub/a{number}.log")
        writer.write(20)
        story.await_delivered()
        writer.delete()
        writer.file.close()
        writer.path.parent.rmdir()
    story.open("sub/last.log").write(20)
    story.assert_exact()


def test_what_is_written_under_a_name_used_again_is_found_after_a_kill_and_a_rotation(story: Story) -> None:
    story.writer.write(10)
    story.start()
    for _ in range(2):
        story.await_arrived()
        story.writer.delete()
        story.writer.file.close()
        eventually(lambda: not story.saved(), what="the row of the deleted file to go")
        story.writer.reopen()
        story.writer.write(10)
        story.await_arrived()
        story.agent.kill()
        story.writer.write(10)
        story.writer.rotate()
        story.writer.write(10)
        story.agent.start()
        for path in story.logs.glob("app.log.*"):
            story.await_saved(path)
            path.unlink()
    verdict = story.assert_none_lost()
    assert verdict.duplicated <= 2 * 10
