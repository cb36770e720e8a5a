"""Files that were rotated and compressed while a real agent was away: what it had not read is read in the archive."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.oracle import judge
from tests.harness.wait import eventually
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


def test_what_is_left_of_an_archive_when_the_agent_stops_stays_there(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka
    story.writer.write(100)
    story.start()
    story.await_delivered()
    story.stop()
    story.kafka.kill()
    story.writer.write(1000)
    story.writer.rotate()
    compress(story.writer.old(1))
    story.agent.start()
    eventually(lambda: story.tail("rotated_or_deleted") == 1, what="the archive to be read")
    story.stop()
    assert not list(story.agent.state.glob("spool/*/*.seg"))
    assert story.abandoned() == 0
    story.kafka.up()
    story.agent.start()
    story.assert_exact()


def rotate_as_python_does(story: Story) -> None:
    """As a RotatingFileHandler with the usual `rotator` does: the archive is as old as its making."""
    for number in range(8, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{story.writer.path}.{number}.gz").rename(f"{story.writer.path}.{number + 1}.gz")
    with story.writer.path.open("rb") as source, gzip.open(f"{story.writer.path}.1.gz", "wb") as archive:
        shutil.copyfileobj(source, archive)
    story.writer.path.unlink()
    story.writer.reopen()


def test_what_python_compressed_when_all_of_it_was_delivered_is_not_sent_again_after_a_restart(story: Story) -> None:
    story.writer.write(100)
    story.start()
    for _ in range(2):
        story.await_delivered()
        rotate_as_python_does(story)
        story.writer.write(100)
    story.await_delivered()
    eventually(lambda: len(story.saved()) == 1, what="the rows of the deleted files to go")
    for _ in range(2):
        story.restart()
        story.writer.write(10)
        story.await_delivered(10)
    story.assert_exact()


def test_what_was_copied_into_an_archive_and_truncated_is_not_sent_again_after_a_restart(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered()
    Path(f"{story.writer.path}.1.gz").write_bytes(gzip.compress(story.writer.path.read_bytes()))
    story.writer.file.truncate(0)
    story.writer.write(50)
    story.await_delivered()
    story.restart()
    story.writer.write(10)
    story.assert_exact()


def test_archives_that_begin_like_one_that_was_delivered_are_read(story: Story) -> None:
    header = b"#" * 2000 + b"\n"
    story.writer.raw(header)
    story.writer.write(100)
    story.start()
    story.await_delivered(101)
    rotate_as_python_does(story)
    story.writer.raw(header)
    story.writer.write(50)
    story.await_delivered(152)
    eventually(lambda: len(story.saved()) == 1, what="the row of the deleted file to go")
    story.stop()
    for _ in range(2):
        story.writer.write(10)
        rotate_as_python_does(story)
        story.writer.raw(header)
        story.writer.write(100)
    story.agent.start()
    values = story.values(374)
    assert sum(b"####" in value for value in values) == 4
    judge([value for value in values if b"####" not in value], {"w": 370}).assert_exact()


ARCHIVES_THAT_TAKE_THEIR_TIME = """
import gzip, os, runpy, sys, time

def slow(path, real=gzip.open):
    while os.path.exists(held):
        time.sleep(0.01)
    return real(path)

held = sys.argv[1]
gzip.open = slow
sys.argv[:] = sys.argv[sys.argv.index("-m") + 1 :]
runpy.run_module("forwarder", run_name="__main__", alter_sys=True)
"""
"""They cannot be read as long as there is a file of that name."""


@pytest.mark.parametrize("kill", [False, True], ids=["waiting", "killed"])
def test_an_archive_that_takes_its_time_keeps_nobody_waiting_but_what_stood_later_at_its_path(story: Story, kill: bool) -> None:
    held = story.logs.parent / "held"
    other = story.open("other.log")
    story.writer.write(100)
    story.in_order().start("*.log", wrapper=(sys.executable, "-c", ARCHIVES_THAT_TAKE_THEIR_TIME, str(held)))
    story.await_delivered()
    story.stop()
    story.writer.write(100)
    for _ in range(2):
        story.writer.rotate()
        story.writer.write(50)
    for number in (1, 2):
        compress(story.writer.old(number))
    held.touch()
    story.agent.start()
    other.write(10)
    story.await_delivered(10)
    if kill:
        story.await_saved(other.path)
        story.agent.kill()
        held.unlink()
        story.agent.start()
    else:
        story.writer.write(10)
        held.unlink()
    story.assert_exact()


@pytest.mark.parametrize("below", [False, True], ids=["where it stood", "in a directory below"])
def test_a_file_of_a_dated_name_is_found_in_its_archive(story: Story, below: bool) -> None:
    dated = story.open("app-20261124.log")
    dated.write(1000)
    story.start("app-*.log")
    story.await_delivered(1000)
    story.stop()
    dated.write(500)
    archive = compress(dated.path)
    if below:
        (story.logs / "old").mkdir()
        archive.rename(story.logs / "old" / archive.name)
    story.agent.start()
    story.assert_exact()


@pytest.mark.slow
def test_what_was_unpacked_and_not_delivered_is_found_again_after_a_restart(story_with_own_kafka: Story) -> None:
    story = story_with_own_kafka
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.stop()
    for _ in range(2):
        story.writer.write(50)
        story.writer.rotate()
    compress(story.writer.old(1))
    compress(story.writer.old(2))
    story.writer.write(10)
    story.kafka.stop()
    story.agent.start()
    eventually(lambda: story.tail("files") > 1, what="the archives to be unpacked")
    story.stop()
    story.kafka.start()
    story.agent.start()
    story.assert_exact()
