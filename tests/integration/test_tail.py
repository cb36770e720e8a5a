"""A real agent follows real files to a real Kafka, whatever happens to the files: each line exactly once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually


class Writer:
    """Writes numbered lines to `path`, the first as number `first`, and rotates it in the ways of the world."""

    def __init__(self, path: Path, first: int = 0) -> None:
        self.path = path
        self.sent = first
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab", buffering=0)

    def __del__(self) -> None:
        self.file.close()

    def write(self, lines: int) -> None:
        numbers = range(self.sent, self.sent + lines)
        self.file.write(b"".join(b'{"writer":"w","seq":%d,"text":"a line of some length"}\n' % number for number in numbers))
        self.sent += lines

    def reopen(self) -> None:
        self.file.close()
        self.file = self.path.open("ab", buffering=0)

    def _shift(self) -> None:
        for number in range(9, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.rename(self.path.with_name(f"{self.path.name}.{number + 1}"))

    def rotate(self) -> None:
        """As logrotate's `create` and Python's RotatingFileHandler do."""
        self._shift()
        self.path.rename(f"{self.path}.1")
        self.reopen()

    def rotate_dated(self, date: str) -> None:
        self.path.rename(f"{self.path}-{date}")
        self.reopen()

    def copy_truncate(self) -> None:
        """As logrotate's `copytruncate` does."""
        self._shift()
        shutil.copyfile(self.path, f"{self.path}.1")
        self.file.truncate(0)


class Story:
    """An agent that follows `globs` in a directory, and a writer of `app.log` in it."""

    def __init__(self, kafka: Kafka, topic: str, directory: Path, make: AgentFactory) -> None:
        self.kafka = kafka
        self.topic = topic
        self.logs = directory / "logs"
        self.writer = Writer(self.logs / "app.log")
        self._make = make
        self.agent: Agent

    def start(self, *globs: str, prefix: tuple[str, ...] = (), **options: Any) -> Story:
        paths = [str(self.logs / glob) for glob in globs or ("app.log",)]
        self.agent = self._make(
            {
                "kafka": {"bootstrap_servers": self.kafka.bootstrap, "topic": self.topic},
                "tail": [{"paths": paths, "app": "web", **options}],
            },
            prefix=prefix,
        )
        self.agent.start()
        return self

    def delivered(self) -> int:
        return int(self.agent.metric("forwarder_records_delivered_total"))

    def await_delivered(self, count: int) -> None:
        """Wait until this run of the agent has delivered `count` records."""
        eventually(lambda: self.delivered() >= count, what=f"{count} records delivered")

    def values(self, count: int) -> list[bytes]:
        """Everything in the topic when at least `count` records are."""
        self.kafka.values(self.topic, expected=count)
        # What is delivered twice would come at once, or as the stop drains.
        self.agent.terminate()
        return self.kafka.values(self.topic)

    def assert_exact(self) -> None:
        """Everything written has arrived once; the agent is stopped for this."""
        judge(self.values(self.writer.sent), {"w": self.writer.sent}).assert_exact()


@pytest.fixture
def story(kafka: Kafka, topic: str, directory: Path, agent: AgentFactory) -> Story:
    return Story(kafka, topic, directory, agent)


def test_lines_written_before_and_after_the_start_arrive_once_each(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.write(100)
    story.assert_exact()


def test_a_file_created_later_is_read_from_its_start(story: Story) -> None:
    story.start("*.log")
    other = Writer(story.logs / "other.log")
    other.write(50)
    judge(story.values(50), {"w": 50}).assert_exact()


def test_directories_that_appear_later_are_searched(story: Story) -> None:
    story.start("**/*.log")
    deep = Writer(story.logs / "a" / "b" / "deep.log")
    deep.write(50)
    judge(story.values(50), {"w": 50}).assert_exact()


def test_a_path_whose_directory_does_not_exist_yet_is_waited_for(story: Story) -> None:
    story.start("later/app.log")
    late = Writer(story.logs / "later" / "app.log")
    late.write(50)
    judge(story.values(50), {"w": 50}).assert_exact()


def test_excluded_and_compressed_files_are_left_alone(story: Story) -> None:
    for name in ("app.log.gz", "debug.log"):
        Writer(story.logs / name).write(10)
    story.start("*", exclude=["*.gz", "debug*"])
    story.writer.write(20)
    story.assert_exact()


def test_with_start_end_only_what_comes_after_the_first_start_is_sent(story: Story) -> None:
    story.writer.write(100)
    story.start("*.log", start="end")
    story.writer.write(50)
    later = Writer(story.logs / "new.log", first=150)
    later.write(50)
    judge(story.values(100), {"w": range(100, 200)}).assert_exact()


def test_a_file_skipped_at_the_first_start_is_not_sent_after_the_second(story: Story) -> None:
    story.writer.write(100)
    story.start(start="end")
    story.agent.kill()
    story.writer.write(10)
    story.agent.start()
    judge(story.values(10), {"w": range(100, 110)}).assert_exact()


def test_files_older_than_ignore_older_are_left_alone_until_they_are_written_to(story: Story) -> None:
    story.writer.write(10)
    os.utime(story.writer.path, (1_000_000_000, 1_000_000_000))
    story.start(ignore_older="1h")
    story.writer.write(10)
    story.assert_exact()


def test_rename_rotation_under_load_loses_and_repeats_nothing(story: Story) -> None:
    story.start()
    for _ in range(10):
        story.writer.write(300)
        story.writer.rotate()
        story.writer.write(300)
    story.assert_exact()


def test_rotated_files_that_match_the_glob_too_are_not_read_twice(story: Story) -> None:
    story.start("app.log*")
    for _ in range(5):
        story.writer.write(100)
        delivered = story.writer.sent
        story.await_delivered(delivered)
        story.writer.rotate()
    story.writer.write(100)
    story.assert_exact()


def test_files_that_came_and_went_between_two_looks_are_read_too(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.agent.freeze()
    for _ in range(4):
        story.writer.write(50)
        story.writer.rotate()
    story.writer.write(10)
    story.agent.thaw()
    story.assert_exact()


def test_dated_rotation_is_followed(story: Story) -> None:
    story.start()
    for day in range(1, 4):
        story.writer.write(100)
        story.writer.rotate_dated(f"202611{day:02d}")
    story.writer.write(100)
    story.assert_exact()


def test_a_writer_that_keeps_the_rotated_file_open_is_heard(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.path.rename(f"{story.writer.path}.1")
    story.writer.write(100)
    story.await_delivered(200)
    new = Writer(story.writer.path, first=200)
    new.write(100)
    story.await_delivered(300)
    story.writer.sent = 300
    story.writer.write(1)
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_copytruncate_loses_and_repeats_nothing(story: Story, glob: str) -> None:
    story.start(glob)
    for _ in range(4):
        story.writer.write(100)
        story.await_delivered(story.writer.sent)
        story.writer.copy_truncate()
        # More than was there before, so that the size alone would not show it.
        story.writer.write(150)
    story.assert_exact()


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_lines_that_copytruncate_took_away_unread_are_read_from_the_copy(story: Story, glob: str) -> None:
    story.writer.write(100)
    story.start(glob)
    story.await_delivered(100)
    story.agent.freeze()
    story.writer.write(1000)
    story.writer.copy_truncate()
    story.writer.write(10)
    story.agent.thaw()
    story.assert_exact()


def test_a_truncated_file_is_read_from_its_start(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered(100)
    story.writer.file.truncate(0)
    story.writer.write(10)
    story.assert_exact()


def test_a_file_written_anew_with_the_size_it_had_is_noticed(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.await_delivered(10)
    size = story.writer.path.stat().st_size
    story.writer.file.truncate(0)
    story.writer.file.write(b'{"writer":"w","seq":10,"text":"%s"}\n')
    story.writer.file.write(b'{"writer":"w","seq":11,"text":"')
    filling = size - story.writer.path.stat().st_size - 3
    story.writer.file.write(b"x" * filling + b'"}\n')
    assert story.writer.path.stat().st_size == size
    story.writer.sent = 12
    story.assert_exact()


def test_the_hole_that_a_stale_writer_leaves_is_not_data(story: Story) -> None:
    story.start()
    with story.writer.path.open("wb", buffering=0) as stale:
        stale.write(b"".join(b'{"writer":"w","seq":%d}\n' % number for number in range(1000)))
        story.await_delivered(1000)
        story.writer.copy_truncate()
        stale.write(b'{"writer":"w","seq":1000}\n')
    story.writer.sent = 1001
    story.assert_exact()


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


def test_an_unfinished_line_is_not_sent_early_and_survives_a_kill(story: Story) -> None:
    story.writer.write(1)
    story.writer.file.write(b'{"writer":"w",')
    story.start()
    story.await_delivered(1)
    story.agent.kill()
    story.agent.start()
    story.writer.file.write(b'"seq":1}\n')
    verdict = judge(story.values(2), {"w": 2})
    # After a kill the line before may come again, if its position was not saved yet.
    assert (verdict.lost, verdict.alien) == (0, 0)


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


def test_copytruncate_while_the_agent_was_down_is_found_in_the_copy(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    assert story.agent.terminate() == 0
    story.writer.write(50)
    story.writer.copy_truncate()
    story.writer.write(200)
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


def test_a_restart_sends_nothing_again(story: Story) -> None:
    story.writer.write(1000)
    story.start()
    story.await_delivered(1000)
    assert story.agent.terminate() == 0
    story.agent.start()
    story.writer.write(1)
    story.assert_exact()


def test_rotation_while_kafka_is_away_is_caught_up_with(story: Story, directory: Path) -> None:
    other = Kafka(directory / "kafka")
    story.kafka = other
    other.start()
    try:
        other.create_topic(story.topic)
        story.start()
        story.writer.write(100)
        story.await_delivered(100)
        other.stop()
        for _ in range(3):
            story.writer.write(100)
            story.writer.rotate()
        story.writer.path.with_name("app.log.3").unlink()
        story.writer.write(100)
        eventually(lambda: story.agent.status()["tail"]["rotated_or_deleted"] == 3, what="three rotated files held open")
        other.start()
        story.assert_exact()
    finally:
        other.stop()


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


def test_a_file_that_becomes_readable_later_is_read(story: Story) -> None:
    # Root may read anything: a directory in place of the file is the refusal that it meets too.
    story.writer.path.unlink()
    story.writer.path.mkdir()
    story.start()
    story.writer.path.rmdir()
    story.writer.reopen()
    story.writer.write(10)
    story.assert_exact()


TEXTS: list[tuple[str, str, Callable[[str], bytes]]] = [
    ("utf-8", "grüße 你好", lambda text: text.encode()),
    ("gb18030", "你好 grüße", lambda text: text.encode("gb18030")),
    ("utf-16-le", "你好 ਊ grüße", lambda text: text.encode("utf-16-le")),
    ("utf-16", "你好 ਊ grüße", lambda text: b"\xfe\xff" + text.encode("utf-16-be")),
    ("latin-1", "grüße", lambda text: text.encode("latin-1")),
]


@pytest.mark.parametrize(("encoding", "text", "encode"), TEXTS, ids=[row[0] for row in TEXTS])
def test_text_becomes_json_with_what_was_written_as_its_message(
    story: Story, encoding: str, text: str, encode: Callable[[str], bytes]
) -> None:
    story.writer.file.write(encode(f"{text}\r\n\nsecond\n"))
    story.start(encoding=encoding, fields={"env": "test"})
    records = [json.loads(value) for value in story.values(2)]
    assert sorted(record["message"] for record in records) == sorted([text, "second"])
    assert all(record["app"] == "web" and record["path"] == str(story.writer.path) for record in records)
    assert all(record["env"] == "test" and record["@timestamp"].endswith("Z") and record["host"] for record in records)


def test_a_line_that_is_too_long_is_cut_and_marked_and_its_neighbours_are_not(story: Story) -> None:
    story.start(max_record="4KiB")
    story.writer.file.write(b"before\n" + b"x" * 1_000_000 + b"\nafter\n" + b"y" * 5000 + b"\nlast\n")
    records = {record["message"][:10]: record for record in map(json.loads, story.values(5))}
    assert records.keys() == {"before", "x" * 10, "after", "y" * 10, "last"}
    assert records["x" * 10]["truncated"] is True
    assert records["x" * 10]["original_size"] == 1_000_000
    assert len(records["x" * 10]["message"]) == 4096
    assert records["y" * 10]["original_size"] == 5000


def test_bytes_that_are_no_utf_8_are_replaced_and_counted(story: Story) -> None:
    story.start()
    story.writer.file.write(b"bad \xff byte\ngood\n")
    story.await_delivered(2)
    assert story.agent.metric("forwarder_tail_undecodable_total", app="web") == 1
    assert sorted(json.loads(value)["message"] for value in story.values(2)) == ["bad \ufffd byte", "good"]


def test_raw_lines_are_sent_as_they_are(story: Story) -> None:
    lines = [b"plain", b'{"a": 1}', b"nul \x00 inside", b"\xff\xfe", b"trailing \r"]
    story.writer.file.write(b"\n".join(lines) + b"\n")
    story.start(format="raw")
    assert sorted(story.values(len(lines))) == sorted(lines)


def test_files_that_come_and_go_while_the_path_is_empty_for_a_moment_are_read_too(story: Story) -> None:
    story.writer.write(100)
    story.start()
    story.await_delivered(100)
    story.writer.path.rename(f"{story.writer.path}.1")
    eventually(lambda: story.agent.status()["tail"]["rotated_or_deleted"] == 1, what="the agent to see that the path is empty")
    story.agent.freeze()
    for _ in range(3):
        story.writer.reopen()
        story.writer.write(100)
        story.writer.rotate()
    story.agent.thaw()
    story.assert_exact()


def test_names_that_are_not_utf_8_are_names_all_the_same(story: Story) -> None:
    story.writer.write(10)
    odd = Writer(Path(os.fsdecode(os.fsencode(story.logs) + b"/caf\xe9.log")), first=10)
    odd.write(10)
    odd.file.write(b"text\n")
    story.start("*.log")
    story.await_delivered(21)
    story.agent.kill()
    story.agent.start()
    odd.write(10)
    values = story.values(31)
    verdict = judge((value for value in values if b"message" not in value), {"w": 30})
    assert (verdict.lost, verdict.alien) == (0, 0)
    paths = {json.loads(value)["path"] for value in values if b"message" in value}
    assert paths == {f"{story.logs}/caf\ufffd.log"}


def test_links_in_circles_and_odd_files_beside_the_logs_do_no_harm(story: Story) -> None:
    (story.logs / "circle").symlink_to("circle")
    (story.logs / "nowhere.log").symlink_to("/nonexistent/file")
    (story.logs / "directory.log").mkdir()
    os.mkfifo(story.logs / "fifo.log")
    (story.logs / "memory.log").symlink_to("/proc/self/mem")
    story.start("*.log", "*/*.log")
    story.writer.write(10)
    story.assert_exact()


def test_a_directory_that_is_replaced_is_watched_again(story: Story) -> None:
    story.writer.write(10)
    story.start("*.log")
    story.await_delivered(10)
    old = story.logs.rename(story.logs.with_name("old"))
    story.logs.mkdir()
    story.writer.reopen()
    story.writer.write(10)
    story.await_delivered(20)
    # Walks come every ten seconds without a word from the kernel: within two, a new file was seen by a watch.
    for number in range(20, 25):
        Writer(story.logs / f"{number}.log", first=number).write(1)
        eventually(lambda count=number: story.delivered() > count, 2, "the new file")  # type: ignore[misc]
    story.writer.sent = 25
    assert old.is_dir()
    story.assert_exact()


def test_what_kafka_has_not_got_of_a_deleted_file_outlives_the_agent(story: Story, directory: Path) -> None:
    other = Kafka(directory / "kafka")
    story.kafka = other
    other.start()
    try:
        other.create_topic(story.topic)
        story.start()
        story.writer.write(10)
        story.await_delivered(10)
        other.stop()
        story.writer.write(1000)
        story.writer.file.write(b'{"writer":"w","seq":1010}')
        story.writer.sent += 1
        eventually(lambda: story.agent.status()["kafka"]["in_flight_bytes"] > 0, what="lines to be on their way")
        story.writer.path.unlink()
        assert story.agent.terminate() == 0
        other.start()
        story.agent.start()
        story.assert_exact()
    finally:
        other.stop()


def test_utf_8_with_a_byte_order_mark_may_be_asked_for(story: Story) -> None:
    story.writer.file.write(b"\xef\xbb\xbf")
    story.writer.write(10)
    story.start(encoding="utf-8-sig")
    story.assert_exact()


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


def test_a_hundred_rotated_files_wait_for_each_other_and_arrive_in_order(story: Story) -> None:
    story.writer.write(1)
    story.start()
    story.await_delivered(1)
    story.agent.freeze()
    for number in range(100):
        story.writer.write(1)
        story.writer.path.rename(f"{story.writer.path}-2026{number:04d}")
        story.writer.reopen()
    story.writer.write(1)
    story.agent.thaw()
    values = story.values(102)
    judge(values, {"w": 102}).assert_exact()


def test_a_file_that_was_truncated_before_anything_of_it_was_read_is_read_in_its_copy(story: Story) -> None:
    story.start()
    eventually(lambda: story.agent.status()["tail"]["files"] == 1, what="the empty file to be known")
    story.agent.freeze()
    story.writer.write(100)
    story.agent.kill()
    story.writer.copy_truncate()
    story.writer.write(10)
    story.agent.start()
    story.assert_exact()
