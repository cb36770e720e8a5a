"""What the agent says of the files: numbers, descriptors and warnings."""

from __future__ import annotations

from tests.harness.agent import BOUND_BY_PERMISSIONS
from tests.harness.wait import eventually
from tests.integration.tail.story import Story


def test_nothing_is_abandoned_through_rotations_truncations_and_deletions(story: Story) -> None:
    story.start("app.log*")
    for _ in range(3):
        story.writer.write(100)
        story.writer.rotate(keep=2)
        story.writer.write(100)
        story.await_delivered()
        story.writer.copy_truncate(keep=2)
        story.writer.write(100)
        story.await_delivered()
        story.writer.delete()
        story.writer.reopen()
    story.writer.write(10)
    story.await_delivered()
    assert story.agent.metric("forwarder_tail_abandoned_bytes_total") == 0
    assert story.tail("abandoned_bytes") == 0
    story.await_quiet()
    assert story.agent.metric("forwarder_tail_abandoned_bytes_total") == 0
    story.assert_exact()


def test_the_status_counts_files_and_those_that_have_gone(story: Story) -> None:
    story.start("*.log")
    eventually(lambda: story.tail("files") == 1, what="one file")
    for number in range(4):
        story.open(f"{number}.log").write(5)
    eventually(lambda: story.tail("files") == 5, what="five files")
    story.writer.path.rename(story.writer.old(1))
    eventually(lambda: story.tail("rotated_or_deleted") == 1, what="the rotated file")
    assert story.tail("files") == 5
    story.writer.old(1).unlink()
    story.writer.write(10)
    eventually(lambda: story.tail("held_deleted_bytes") == story.writer.file.tell(), what="the bytes of a deleted file")
    story.assert_exact()


def test_descriptors_of_deleted_and_rotated_away_files_are_given_back(story: Story) -> None:
    story.start("app.log*")
    for _ in range(5):
        story.writer.write(50)
        story.await_delivered()
        story.writer.rotate(keep=2)
    story.writer.write(50)
    story.await_delivered()
    assert len(story.open_files()) >= 3
    eventually(lambda: len(story.open_files()) == 3, what="three descriptors")
    assert sorted(story.open_files()) == sorted(str(path) for path in story.logs.iterdir())
    assert story.tail("rotated_or_deleted") == 0
    story.assert_exact()


def test_each_file_is_open_once_however_many_names_it_has(story: Story) -> None:
    (story.logs / "hard.log").hardlink_to(story.writer.path)
    (story.logs / "soft.log").symlink_to(story.writer.path)
    story.writer.write(10)
    story.start("*.log")
    story.await_delivered()
    assert len(story.open_files()) == 1
    assert story.tail("files") == 1
    story.assert_exact()


def test_truncations_leave_no_descriptors_behind(story: Story) -> None:
    story.start()
    for _ in range(10):
        story.writer.write(20)
        story.await_delivered()
        story.writer.file.truncate(0)
    story.writer.write(1)
    story.await_delivered()
    eventually(lambda: len(story.open_files()) == 1, what="one descriptor")
    eventually(lambda: len(story.saved()) == 1, what="one row")
    story.assert_exact()


def test_a_file_that_is_not_there_is_no_cause_for_a_warning(story: Story) -> None:
    story.start("missing.log", "nowhere/*.log", "app.log")
    story.writer.write(10)
    story.await_delivered()
    assert "WARNING" not in story.agent.log()
    assert "missing.log" not in story.agent.log()
    story.assert_exact()


def test_an_unreadable_file_and_directory_are_warned_of_once_however_often_they_are_met(story: Story) -> None:
    closed = story.open("closed.log")
    closed.path.chmod(0)
    directory = story.logs / "shut"
    directory.mkdir(mode=0)
    story.start("*.log", "*/*.log", wrapper=BOUND_BY_PERMISSIONS)
    for number in range(10):
        # Each new file is a walk.
        story.open(f"{number}.log").write(1)
        story.await_delivered()
    log = story.agent.log()
    assert log.count(f"{closed.path} cannot be opened") == 1
    assert log.count(f"{directory} cannot be listed") == 1
    directory.chmod(0o700)
    story.assert_exact()


def test_undecodable_lines_are_counted_once_even_when_they_are_read_again(story: Story) -> None:
    story.start()
    for _ in range(5):
        story.writer.raw(b"bad \xff\n")
    story.await_delivered(5)
    assert story.agent.metric("forwarder_tail_undecodable_total", app="web") == 5
    assert story.tail("undecodable") == 5
