"""A real agent makes one record of several lines, wherever they are cut: by chunks, by time, by rotation, by its own end."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.conftest import AgentFactory
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.tail.story import Story

TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/shop/cart.py", line 12, in total
    return price["x"]["y"]
           ~~~~~~~~~~^^^^^
KeyError: 'y'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/shop/cart.py", line 14, in total
    raise CartError("no price\\n\\nfor y") from None
shop.CartError: no price

for y"""
HALF = TRACEBACK.index("    return")


def record(number: int) -> str:
    return f"2026-11-23 12:00:00,123 ERROR shop: number {number}\n{TRACEBACK}"


class Lines(Story):
    def write(self, text: str) -> None:
        self.writer.file.write(text.encode())

    def messages(self, count: int) -> list[str]:
        return sorted(json.loads(value)["message"] for value in self.values(count))


@pytest.fixture
def story(kafka: Kafka, topic: str, directory: Path, agent: AgentFactory) -> Lines:
    return Lines(kafka, topic, directory, agent)


def test_tracebacks_stay_with_their_records_across_the_borders_of_chunks(story: Lines) -> None:
    expected = [record(number) for number in range(2000)]
    story.write("\n".join(expected) + "\n")
    assert story.writer.path.stat().st_size > 3 * 256 * 1024
    story.start(multiline="python")
    assert story.messages(2000) == sorted(expected)


def test_a_record_written_line_by_line_is_one_and_comes_when_nothing_follows(story: Lines) -> None:
    story.start(multiline="python")
    for line in f"{record(1)}\n".splitlines(keepends=True):
        story.write(line)
        time.sleep(0.02)  # as a slow writer does, and not as slow as a record's end
    written = time.monotonic()
    story.await_delivered(1)
    assert time.monotonic() - written < 3
    assert story.messages(1) == [record(1)]


def test_the_record_before_does_not_wait_once_the_next_one_has_begun(story: Lines) -> None:
    story.start(multiline="python")
    eventually(lambda: story.agent.status()["tail"]["files"] == 1, what="the file to be known")
    story.write(f"{record(1)}\n{record(2)}\n")
    story.await_delivered(1)
    assert story.delivered() == 1
    assert story.messages(2) == [record(1), record(2)]


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_half_a_traceback_waits_for_the_other_half_while_the_agent_is_away(story: Lines, end: str) -> None:
    story.write(f"{record(1)}\n")
    story.start(multiline="python")
    story.await_delivered(1)
    before, after = record(2)[: -len(TRACEBACK) + HALF], record(2)[-len(TRACEBACK) + HALF :]
    story.write(before)
    getattr(story.agent, end)()
    story.write(f"{after}\n")
    story.agent.start()
    # After a kill the first record may come again.
    eventually(lambda: any(b"number 2" in value for value in story.kafka.values(story.topic)), what="the second record")
    assert set(story.messages(2)) == {record(1), record(2)}


def test_what_looks_whole_is_sent_when_the_agent_stops(story: Lines) -> None:
    story.start(multiline="python")
    story.write(f"{record(1)}\n{record(2)}\n")
    story.await_delivered(1)
    held = time.monotonic()
    eventually(lambda: time.monotonic() - held > 0.4, what="the writer to be quiet for a moment")
    assert story.agent.terminate() == 0
    assert sorted(json.loads(value)["message"] for value in story.kafka.values(story.topic)) == [record(1), record(2)]


def test_a_rotation_in_the_middle_of_a_traceback_does_not_tear_it(story: Lines) -> None:
    story.start(multiline="python")
    old = story.writer.file
    story.write(record(1)[:200])
    story.writer.path.rename(f"{story.writer.path}.1")
    with story.writer.path.open("ab", buffering=0) as new:
        new.write(f"{record(2)}\n".encode())
        old.write(f"{record(1)[200:]}\n".encode())
    assert story.messages(2) == [record(1), record(2)]


@pytest.mark.parametrize("copied", [True, False], ids=["copytruncate", "truncation"])
def test_a_record_that_is_held_while_its_file_is_truncated_is_sent_once(story: Lines, copied: bool) -> None:
    story.start(multiline="python")
    story.write(f"{record(1)}\n{record(2)}\n")
    story.await_delivered(1)
    if copied:
        shutil.copyfile(story.writer.path, f"{story.writer.path}.1")
    story.writer.file.truncate(0)
    story.write(f"{record(3)}\n")
    assert story.messages(3) == [record(1), record(2), record(3)]


def test_the_last_record_of_a_deleted_file_is_whole_with_its_unfinished_line(story: Lines) -> None:
    story.start(multiline="python")
    eventually(lambda: story.agent.status()["tail"]["files"] == 1, what="the file to be known")
    story.write(f"{record(1)}\n{record(2)}")
    story.writer.path.unlink()
    story.writer.file.close()
    assert story.messages(2) == [record(1), record(2)]


def test_a_pattern_may_say_where_records_begin(story: Lines) -> None:
    story.start(multiline={"start": r"^\[\d+\]"}, encoding="gb18030")
    story.writer.file.write("[1] 第一\n细节\n\n细节\n[2] 第二\n".encode("gb18030"))
    assert story.messages(2) == ["[1] 第一\n细节\n\n细节", "[2] 第二"]


def test_raw_records_of_several_lines_keep_their_bytes(story: Lines) -> None:
    story.start(multiline="python", format="raw")
    story.writer.file.write(b"ERROR \xff\r\n  more\nINFO x\n")
    assert sorted(story.values(2)) == [b"ERROR \xff\r\n  more", b"INFO x"]


def test_json_lines_between_tracebacks_are_records_as_they_are(story: Lines) -> None:
    story.writer.write(50)
    # Of what nobody logged the first line does not tell how the next record begins, so it ends with its exception.
    traceback = TRACEBACK.removesuffix("\n\nfor y")
    story.write(f"{traceback}\n")
    story.writer.write(50)
    story.start(multiline="python")
    values = story.values(101)
    judge((value for value in values if b"message" not in value), {"w": 100}).assert_exact()
    assert [json.loads(value)["message"] for value in values if b"message" in value] == [traceback]


def test_records_longer_than_may_be_lose_nothing(story: Lines) -> None:
    rest = "\n".join(f"  line {number:06d}" for number in range(40_000))
    story.start(multiline="python", max_record="300KiB")
    story.write(f"ERROR x\n{rest}\nINFO y\n")
    messages = [json.loads(value)["message"] for value in story.values(3)]
    assert sorted("\n".join(messages).split("\n")) == sorted(f"ERROR x\n{rest}\nINFO y".split("\n"))
    assert len(messages) == 3
