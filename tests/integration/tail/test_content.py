"""What is in a line: encodings, ends, pieces, and bytes that nobody expects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.tail.story import Story

kills = pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])


def messages(story: Story, count: int) -> list[str]:
    return sorted(json.loads(value)["message"] for value in story.values(count))


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


def test_utf_8_with_a_byte_order_mark_may_be_asked_for(story: Story) -> None:
    story.writer.file.write(b"\xef\xbb\xbf")
    story.writer.write(10)
    story.start(encoding="utf-8-sig")
    story.assert_exact()


# Pieces


def test_an_unfinished_line_is_not_sent_early_and_survives_a_kill(story: Story) -> None:
    story.writer.write(1)
    line = story.writer.lines(1)
    story.writer.raw(line[:15])
    story.start()
    story.await_delivered(1)
    story.agent.kill()
    story.agent.start()
    story.writer.raw(line[15:])
    # After a kill the line before may come again, if its position was not saved yet.
    story.assert_none_lost()


@kills
def test_an_unfinished_line_is_finished_after_any_number_of_restarts(story: Story, kill: bool) -> None:
    story.start()
    story.writer.write(10)
    line = story.writer.lines(1)
    story.await_delivered(10)
    if kill:
        story.await_saved()
    for start in range(0, len(line), 20):
        story.agent.kill() if kill else story.stop()
        story.writer.raw(line[start : start + 20])
        story.agent.start()
    story.assert_exact()


def test_a_line_written_byte_by_byte_is_one_record(story: Story) -> None:
    story.start()
    for byte in story.writer.lines(30):
        story.writer.raw(bytes([byte]))
    story.assert_exact()


def test_a_line_written_in_many_pieces_with_a_look_after_each_is_one_record(story: Story) -> None:
    story.start()
    story.writer.write(1)
    line = story.writer.lines(1)
    for start in range(0, len(line), 7):
        story.writer.raw(line[start : start + 7])
        story.agent.status()
    assert story.delivered() <= 2
    story.assert_exact()


def test_lines_split_at_odd_places_in_many_writes_are_whole(story: Story) -> None:
    story.start()
    data = story.writer.lines(2000)
    for start in range(0, len(data), 997):
        story.writer.raw(data[start : start + 997])
    story.assert_exact()


def test_a_last_line_without_its_end_waits_for_it(story: Story) -> None:
    story.writer.write(10)
    story.writer.raw(b"no end")
    story.start()
    story.await_delivered(10)
    story.restart()
    story.await_quiet()
    assert story.delivered() == 0
    story.assert_exact()


def test_appends_of_several_processes_to_one_file_are_all_read(story: Story) -> None:
    one, two = story.open("same.log", "one"), story.open("same.log", "two")
    story.start("same.log")
    for _ in range(50):
        one.write(3)
        two.write(2)
    story.assert_exact()


# Ends of lines


def test_lines_end_at_newlines_and_empty_ones_are_no_records(story: Story) -> None:
    cases = {
        "empty inside": (b"a\n\nb\n", ["a", "b"]),
        "empty first": (b"\n\n\na\n", ["a"]),
        "empty last": (b"a\n\n\n", ["a"]),
        "empty in all ways": (b"\n\r\n\n\r\na\r\n", ["a"]),
        "crlf": (b"a\r\nb\r\n", ["a", "b"]),
        "crlf and empty": (b"a\r\n\r\nb\n", ["a", "b"]),
        "cr alone": (b"a\rb\n", ["a\rb"]),
        "blanks": (b" \n\t\na\n", [" ", "\t", "a"]),
        "no ends": (b"a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f\n", ["a\x0bb\x0cc\x1cd\x85e\u2028f"]),
    }
    for name, (data, _) in cases.items():
        (story.logs / name).write_bytes(data)
    story.start("*")
    found: dict[str, list[str]] = {name: [] for name in cases}
    for record in map(json.loads, story.values(sum(len(expected) for _, expected in cases.values()))):
        found[Path(record["path"]).name].append(record["message"])
    assert {name: sorted(lines) for name, lines in found.items()} == {
        name: sorted(expected) for name, (_, expected) in cases.items()
    }


def test_only_empty_lines_are_nothing_and_are_passed(story: Story) -> None:
    story.writer.raw(b"\n" * 10_000)
    story.start()
    story.await_saved()
    story.restart()
    story.writer.write(10)
    story.assert_exact()


def test_a_cr_lf_split_over_two_writes_ends_one_line(story: Story) -> None:
    story.start()
    for number in range(5):
        story.writer.raw(b"line %d\r" % number)
        story.agent.status()
        story.writer.raw(b"\n")
        story.await_delivered(number + 1)
    assert messages(story, 5) == [f"line {number}" for number in range(5)]


def test_raw_lines_keep_their_cr(story: Story) -> None:
    story.writer.raw(b"a\r\n\r\nb\n\n")
    story.start(format="raw")
    assert sorted(story.values(3)) == [b"\r", b"a\r", b"b"]


# Bytes


def test_nuls_inside_lines_are_kept(story: Story) -> None:
    story.writer.raw(b"a\0b\n" + b"x" + b"\0" * 100 + b"y\n" + b"\0c\n")
    story.start()
    assert messages(story, 3) == ["\0c", "a\0b", "x" + "\0" * 100 + "y"]


def test_invalid_utf_8_spoils_only_its_own_line(story: Story) -> None:
    story.start()
    for bad in (b"\xff", b"\xc3", b"\xe4\xbd", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf"):
        story.writer.write(5)
        story.writer.raw(b"bad " + bad + b" line\n")
    story.writer.write(5)
    values = story.values(story.sent + 6)
    bad_lines = [json.loads(value)["message"] for value in values if b"message" in value]
    assert len(bad_lines) == 6
    assert all("\ufffd" in line and line.startswith("bad ") and line.endswith(" line") for line in bad_lines)
    story.judge([value for value in values if b"message" not in value]).assert_exact()


def test_a_character_split_over_two_writes_is_whole(story: Story) -> None:
    story.start()
    for byte in "grüße 你好 😀\n".encode():
        story.writer.raw(bytes([byte]))
        story.agent.status()
    assert messages(story, 1) == ["grüße 你好 😀"]


def test_a_byte_order_mark_at_the_start_is_no_part_of_the_first_line(story: Story) -> None:
    story.writer.raw(b"\xef\xbb\xbf")
    story.writer.write(5)
    story.writer.raw("\ufefftext\n".encode())
    story.start()
    values = story.values(6)
    story.judge([value for value in values if b"text\\ufeff" not in value and b"message" not in value]).assert_exact()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "gb18030", "shift_jis", "big5", "euc-kr"])
def test_text_in_other_encodings_may_come_byte_by_byte_and_over_a_restart(story: Story, encoding: str) -> None:
    text = {"shift_jis": "日本語ソ表", "big5": "你好功", "euc-kr": "한국어"}.get(encoding, "你好 ਊ఍ grüße 😀 Ċ")
    story.start(encoding=encoding)
    data = f"{text} 1\n{text} 2\r\n\n{text} 3\n".encode(encoding)
    half = len(data) // 2 + 1
    for byte in data[:half]:
        story.writer.raw(bytes([byte]))
    story.restart()
    for byte in data[half:]:
        story.writer.raw(bytes([byte]))
    assert messages(story, 3) == [f"{text} {number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_the_byte_order_mark_of_utf_16_decides_also_when_it_comes_later(story: Story, mark: bytes, encoding: str) -> None:
    story.start(encoding="utf-16")
    story.writer.raw(mark[:1])
    story.agent.status()
    story.writer.raw(mark[1:] + "first\nsecond ਊ\n".encode(encoding))
    assert messages(story, 2) == ["first", "second ਊ"]


def test_a_line_that_is_nearly_json_is_text(story: Story) -> None:
    lines = [b'{"a": 1', b'{"a": }', b"{}extra", b"[1]", b'"text"', b"null", b'{"a": 1}}']
    story.writer.raw(b"\n".join(lines) + b"\n")
    story.writer.write(10)
    story.start()
    values = story.values(10 + len(lines))
    texts = sorted(json.loads(value)["message"].encode() for value in values if b"message" in value)
    assert texts == sorted(lines)
    story.judge([value for value in values if b"message" not in value]).assert_exact()


def test_fields_are_put_into_json_and_text_alike(story: Story) -> None:
    story.writer.raw(b'{"message": "json"}\n{}\ntext\n')
    story.start(fields={"env": "test"})
    assert [json.loads(value)["env"] for value in story.values(3)] == ["test"] * 3
