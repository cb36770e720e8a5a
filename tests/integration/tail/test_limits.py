"""A real agent with less than it would like: too few descriptors, too few watches, no inotify at all."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story, Writer

FILES = 200
DESCRIPTORS = 100
FEW_DESCRIPTORS = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")


class Many:
    """As many writers, each of files of its own."""

    def __init__(self, story: Story, count: int) -> None:
        self.names = [f"w{number}" for number in range(count)]
        self.written = dict.fromkeys(self.names, 0)
        self._logs = story.logs

    def path(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def write(self, lines: int) -> None:
        for name in self.names:
            with self.path(name).open("ab") as file:
                numbers = range(self.written[name], self.written[name] + lines)
                file.writelines(b'{"writer":"%s","seq":%d}\n' % (name.encode(), number) for number in numbers)
            self.written[name] += lines

    @property
    def total(self) -> int:
        return sum(self.written.values())


def open_files(story: Story) -> int:
    found = 0
    for link in Path(f"/proc/{story.agent.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(link.readlink()).startswith(str(story.logs))
    return found


def test_more_files_than_descriptors_are_read_in_turns_and_none_is_forgotten(story: Story) -> None:
    files = Many(story, FILES)
    files.write(20)
    story.start("w*.log", wrapper=FEW_DESCRIPTORS)
    story.await_delivered(files.total)
    assert 0 < open_files(story) < DESCRIPTORS
    for _ in range(5):
        files.write(5)
        story.await_delivered(files.total)
    assert story.agent.metric("forwarder_tail_abandoned_bytes_total") == 0
    judge(story.values(files.total), files.written).assert_exact()


def test_files_in_turns_survive_rotation_truncation_and_a_kill(story: Story) -> None:
    files = Many(story, FILES)
    files.write(20)
    story.start("w*.log", wrapper=FEW_DESCRIPTORS)
    story.await_delivered(files.total)
    for number, name in enumerate(files.names):
        path = files.path(name)
        if number % 4 == 0:
            path.rename(f"{path}.1")
        elif number % 4 == 1:
            os.truncate(path, 0)
        elif number % 4 == 2:
            path.unlink()
    files.write(30)
    story.await_delivered(files.total)
    story.agent.kill()
    files.write(10)
    for name in files.names[::2]:
        files.path(name).rename(f"{files.path(name)}.2")
    files.write(10)
    story.agent.start()
    verdict = judge(story.values(files.total), files.written)
    verdict.assert_none_lost()
    assert verdict.alien == 0


def test_what_a_writer_adds_to_a_renamed_file_that_was_let_go_of_is_read(story: Story) -> None:
    story.writer.write(10)
    files = Many(story, FILES)
    story.start("*.log", wrapper=FEW_DESCRIPTORS)
    story.await_delivered(10)
    files.write(5)
    story.await_delivered(files.total + 10)
    story.writer.path.rename(f"{story.writer.path}.1")
    files.write(5)
    story.writer.write(10)
    story.await_delivered(files.total + 20)
    judge(story.values(files.total + 20), {"w": 20, **files.written}).assert_exact()


def test_a_file_with_the_inode_of_one_that_was_let_go_of_empty_goes_by_its_own_name(story: Story) -> None:
    empty = [story.logs / f"{number}.log" for number in range(FILES)]
    for path in empty:
        path.touch()
    story.start("*.log", wrapper=FEW_DESCRIPTORS)
    eventually(lambda: story.tail("files") == FILES + 1, what="all files to be known")
    followed = eventually(story.open_files)
    gone = next(path for path in empty if str(path) not in followed)
    inode = gone.stat().st_ino
    gone.unlink()
    other = story.logs / "other.tmp"

    def has_its_inode() -> bool:
        other.unlink(missing_ok=True)
        other.write_bytes(b"a line of text\n")
        return other.stat().st_ino == inode

    try:
        eventually(has_its_inode, timeout=3)
    except AssertionError:
        pytest.skip("this file system does not use an inode again soon")
    other = other.rename(story.logs / "other.log")
    (value,) = story.values(1)
    assert json.loads(value)["path"] == str(other)


FEW_WATCHES = """
import ctypes, errno, runpy, sys
from forwarder.tail import inotify

class Limited:
    def __init__(self, libc, left):
        self.__dict__.update(inotify_init1=libc.inotify_init1, inotify_rm_watch=libc.inotify_rm_watch, statfs=libc.statfs)
        self.libc, self.left = libc, left

    def inotify_add_watch(self, *args):
        self.left -= 1
        if self.left >= 0:
            return self.libc.inotify_add_watch(*args)
        ctypes.set_errno(errno.ENOSPC)
        return -1

inotify._libc = Limited(inotify._libc, int(sys.argv[1]))
sys.argv[:] = sys.argv[sys.argv.index("-m") + 1 :]
runpy.run_module("forwarder", run_name="__main__", alter_sys=True)
"""
"""The kernel's refusal, for want of a way to lower fs.inotify.max_user_watches for one process."""


@pytest.mark.parametrize("left", [0, 3], ids=["none", "three"])
def test_where_watches_run_out_files_and_directories_are_polled_with_one_warning(story: Story, left: int) -> None:
    files = Many(story, 10)
    files.write(5)
    story.start("**/*.log", wrapper=(sys.executable, "-c", FEW_WATCHES, str(left)))
    story.await_delivered(files.total)
    for _ in range(3):
        files.write(5)
        story.await_delivered(files.total)
    later = Writer(story.logs / "a" / "b" / "later.log")
    later.write(10)
    story.await_delivered(files.total + 10)
    assert story.agent.log().count("some files are polled; raise fs.inotify.max_user_watches") == 1
    assert story.agent.log().count("some directories are polled; raise fs.inotify.max_user_watches") == 1
    judge(story.values(files.total + 10), {"w": 10, **files.written}).assert_exact()


def test_writes_that_an_overlay_does_not_tell_of_are_seen(story: Story, directory: Path) -> None:
    lower, upper, work = (directory / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    space = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f'mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {story.logs} && exec "$@"'
    wrapper = (*space, "sh", "-c", mount, "sh")
    if subprocess.run([*wrapper, "true"], check=False).returncode:
        pytest.skip("this machine does not let the tests mount an overlay")
    below = Writer(upper / "below.log")
    below.write(10)
    story.start("*.log", wrapper=wrapper)
    story.await_delivered(10)
    eventually(lambda: not story.tail("hot"), what="the file to be quiet, so that only the kernel or a poll can tell")
    # Written from outside the agent's namespace, as another container's layer or machine does: no watch of the overlay fires.
    below.write(10)
    written = time.monotonic()
    story.await_delivered(20)
    assert time.monotonic() - written < 3
    other = Writer(upper / "other.log", first=20)
    other.write(10)
    judge(story.values(30), {"w": 30}).assert_exact()


@contextlib.contextmanager
def no_inotify_instance_left() -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    taken: list[int] = []
    try:
        while (fd := libc.inotify_init1(os.O_CLOEXEC)) >= 0:
            taken.append(fd)
        yield
    finally:
        for fd in taken:
            os.close(fd)


@pytest.mark.alone
def test_without_inotify_everything_is_polled_with_one_warning(story: Story) -> None:
    with no_inotify_instance_left():
        story.start("**/*.log")
    story.writer.write(10)
    story.await_delivered(10)
    story.writer.rotate()
    story.writer.write(10)
    story.await_delivered(20)
    later = Writer(story.logs / "a" / "later.log", first=20)
    later.write(10)
    story.await_delivered(30)
    later.file.truncate(0)
    eventually(lambda: later.path.stat().st_size == 0, what="the truncation")
    later.write(10)
    story.writer.sent = 40
    assert story.agent.log().count("inotify cannot be had") == 1
    story.assert_exact()
