"""Files and directories that may not be read, not yet or not any more."""

from __future__ import annotations

from tests.harness.agent import BOUND_BY_PERMISSIONS
from tests.harness.wait import eventually
from tests.integration.tail.story import Story


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
