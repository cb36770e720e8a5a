"""Files that were rotated and compressed while a real agent was away: what it had not read is read in the archive."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from tests.harness.oracle import judge
from tests.integration.tail.story import Story


def compress(path: Path, suffix: str = ".gz") -> Path:
    """As gzip and its like do: the archive gets the file's times, then the file goes."""
    pack: Any = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    status = path.stat()
    archive = path.with_name(path.name + suffix)
    archive.write_bytes(pack(path.read_bytes()))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    return archive


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_what_was_rotated_and_compressed_while_the_agent_was_down_is_read_in_the_archive(story: Story, suffix: str) -> None:
    story.writer.write(30_000)
    story.start()
    story.await_delivered(30_000)
    assert story.agent.terminate() == 0
    story.writer.write(10_000)
    story.writer.rotate()
    compress(Path(f"{story.writer.path}.1"), suffix)
    story.writer.write(100)
    story.agent.start()
    story.assert_exact()


def test_files_that_came_went_and_were_compressed_while_the_agent_was_down_are_read_too(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    assert story.agent.terminate() == 0
    for day in range(1, 5):
        story.writer.write(50)
        story.writer.rotate_dated(f"202611{day:02d}")
        compress(Path(f"{story.writer.path}-202611{day:02d}"))
    story.writer.write(10)
    story.agent.start()
    story.assert_exact()


def test_what_was_moved_to_a_directory_below_while_the_agent_was_down_is_found(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    assert story.agent.terminate() == 0
    story.writer.write(50)
    old = story.logs / "old"
    old.mkdir()
    story.writer.path.rename(old / "app.log-20261123")
    story.writer.reopen()
    story.writer.write(10)
    story.agent.start()
    story.assert_exact()


def test_archives_of_what_was_delivered_are_left_alone(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.rotate()
    story.writer.write(100)
    story.await_delivered(200)
    assert story.agent.terminate() == 0
    compress(Path(f"{story.writer.path}.1"))
    story.writer.write(100)
    story.agent.start()
    story.assert_exact()


def test_a_kill_while_an_archive_is_read_loses_nothing(story: Story) -> None:
    story.writer.write(1000)
    story.start()
    story.await_delivered(1000)
    assert story.agent.terminate() == 0
    story.writer.write(300_000)
    story.writer.rotate()
    compress(Path(f"{story.writer.path}.1"))
    story.writer.write(10)
    story.agent.start()
    story.await_delivered(1)
    story.agent.kill()
    story.agent.start()
    verdict = judge(story.values(story.writer.sent), {"w": story.writer.sent})
    verdict.assert_none_lost()


def test_a_damaged_archive_is_said_to_be_one_and_the_rest_goes_on(story: Story) -> None:
    story.writer.write(1000)
    story.start()
    story.await_delivered(1000)
    assert story.agent.terminate() == 0
    story.writer.write(1000)
    story.writer.rotate()
    archive = compress(Path(f"{story.writer.path}.1"))
    os.truncate(archive, archive.stat().st_size // 2)
    story.writer.write(10)
    story.agent.start()
    values = story.values(1010)
    assert f"{archive} may hold lines that were not read, and cannot be read: it cannot be unpacked" in story.agent.log()
    judge(values, {"w": [*range(1000), *range(2000, 2010)]}).assert_exact()
