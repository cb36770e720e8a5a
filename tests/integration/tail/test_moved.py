"""Files that are moved elsewhere, or compressed once they are rotated."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

from tests.integration.tail.story import Story


def test_a_file_moved_to_another_directory_is_read_to_its_end(story: Story, directory: Path) -> None:
    story.writer.write(10)
    story.start()
    story.await_delivered()
    (directory / "archive").mkdir()
    story.agent.freeze()
    story.writer.write(500)
    story.writer.path.rename(directory / "archive" / "app.log.1")
    story.writer.write(500)
    story.agent.thaw()
    story.await_delivered()
    story.writer.reopen()
    story.writer.write(10)
    story.assert_exact()


def test_a_file_moved_within_a_tree_of_globs_is_not_sent_again(story: Story) -> None:
    moved = story.open("a/x.log")
    moved.write(100)
    (story.logs / "b" / "c").mkdir(parents=True)
    story.start("**/*.log")
    story.await_delivered()
    for place in ("b/y.log", "b/c/z.log", "a/x.log"):
        (story.logs / "b").mkdir(exist_ok=True)
        target = story.logs / place
        moved.path.rename(target)
        moved.path = target
        moved.write(10)
        story.await_delivered()
    story.assert_exact()


def test_a_rotated_file_that_is_compressed_while_it_is_still_read_is_read_to_its_end(story: Story) -> None:
    story.start("*")
    story.writer.write(30_000)
    story.writer.rotate()
    subprocess.run(["gzip", str(story.writer.old(1))], check=True)
    story.writer.write(10)
    assert sorted(path.name for path in story.logs.iterdir()) == ["app.log", "app.log.1.gz"]
    story.assert_exact()


def test_a_rotated_file_that_is_compressed_behind_the_agents_back_is_read_to_its_end(story: Story) -> None:
    story.writer.write(10)
    story.start("*")
    story.await_delivered()
    story.agent.freeze()
    story.writer.write(1000)
    story.writer.rotate()
    subprocess.run(["gzip", str(story.writer.old(1))], check=True)
    story.writer.write(10)
    story.agent.thaw()
    story.assert_exact()


def test_compressed_files_of_many_rotations_are_left_alone(story: Story) -> None:
    story.start("app.log*")
    for number in range(5):
        story.writer.write(100)
        story.await_delivered()
        story.writer.path.rename(story.writer.old(1))
        with story.writer.old(1).open("rb") as plain, gzip.open(f"{story.writer.old(1)}-{number}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        story.writer.old(1).unlink()
        story.writer.reopen()
    story.writer.write(10)
    story.assert_exact()
