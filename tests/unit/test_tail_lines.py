"""Bytes of a file to records: encodings, line ends, formats and limits, without a file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder import config
from forwarder.tail.lines import Encoding, Lines

UTF_8 = Encoding("utf-8", b"")
NOON = 1_774_008_000.25


def lines(**settings: object) -> Lines:
    return Lines(config.Tail(paths=("/x",), app="web", **settings), "/var/log/x.log", "host-1")  # type: ignore[arg-type]


def messages(records: list[bytes]) -> list[str]:
    return [json.loads(record)["message"] for record in records]


def test_json_objects_pass_as_they_are() -> None:
    body = b'{"a": 1}\n{}\n{"b":{"c":[1,2]}}\n'
    assert lines().records(body, UTF_8, NOON) == body.splitlines()


@pytest.mark.parametrize(
    "line", ["plain", "[1, 2]", '"text"', "12", "null", '{"a": 1', '{"a": 1} {"b": 2}', "{'a': 1}", '{"cut": "he{"a": 1}', "}{"]
)
def test_any_other_line_becomes_the_message_of_a_record(line: str) -> None:
    (record,) = lines().records(line.encode() + b"\n", UTF_8, NOON)
    assert json.loads(record) == {
        "@timestamp": "2026-03-20T12:00:00.250Z",
        "message": line,
        "host": "host-1",
        "app": "web",
        "path": "/var/log/x.log",
    }


def test_text_and_json_may_be_mixed() -> None:
    first, second, third = lines().records(b'text\n{"a":1}\nmore\n', UTF_8, NOON)
    assert second == b'{"a":1}'
    assert messages([first, third]) == ["text", "more"]


@pytest.mark.parametrize("format", ["auto", "raw"])
def test_empty_lines_are_no_records(format: str) -> None:
    assert len(lines(format=format).records(b"\n\none\n\n\ntwo\n\n", UTF_8, NOON)) == 2


def test_carriage_returns_belong_to_the_line_end_unless_raw() -> None:
    assert messages(lines().records(b"one\r\n\r\ntwo\r\n", UTF_8, NOON)) == ["one", "two"]
    assert lines(format="raw").records(b"one\r\n", UTF_8, NOON) == [b"one\r"]


def test_nul_bytes_are_data_but_not_the_hole_of_a_stale_writer() -> None:
    assert messages(lines().records(b"a\0b\n" + b"\0" * 4096 + b"after\n", UTF_8, NOON)) == ["a\0b", "after"]
    assert lines(format="raw").records(b"\0x\n" + b"\0" * 4096 + b"after\n", UTF_8, NOON) == [b"\0x", b"after"]


def test_bytes_that_are_no_utf_8_become_replacement_characters_and_are_counted() -> None:
    these = lines()
    assert messages(these.records(b"good\nb\xffd\n\xc3\xa4\n", UTF_8, NOON)) == ["good", "b\ufffdd", "ä"]
    assert these.undecodable == 1
    assert json.loads(these.records(b'{"a":"\xff"}\n', UTF_8, NOON)[0]) == {"a": "\ufffd"}


def test_a_byte_order_mark_is_not_part_of_the_first_line() -> None:
    assert lines().records(b'\xef\xbb\xbf{"a":1}\n', UTF_8, NOON) == [b'{"a":1}']


def test_a_line_above_max_record_is_cut_at_a_character_and_marked_with_its_size() -> None:
    these = lines(max_record=1024)
    text = "ä" * 600
    before, cut, after = these.records(f"before\n{text}\nafter\n".encode(), UTF_8, NOON)
    assert messages([before, after]) == ["before", "after"]
    assert json.loads(cut) | {"message": "ä" * 512, "truncated": True, "original_size": 1200} == json.loads(cut)
    assert these.cut_records == 1


def test_a_json_line_above_max_record_becomes_text() -> None:
    record = json.dumps({"a": "x" * 2000}).encode()
    (cut,) = lines(max_record=1024).records(record + b"\n", UTF_8, NOON)
    assert json.loads(cut)["message"] == record[:1024].decode()


def test_raw_lines_are_cut_without_a_mark() -> None:
    assert lines(max_record=1024, format="raw").records(b"x" * 2000 + b"\n", UTF_8, NOON) == [b"x" * 1024]


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "gb18030", "latin-1", "shift_jis", "cp1252", "utf-16"])
def test_the_encoding_finds_line_ends_where_they_are(name: str) -> None:
    encoding = Encoding(name, b"\xff\xfe")
    text = "a b\nc\n" if name in {"latin-1", "cp1252"} else "a日\nb\n"
    data = text.encode(encoding.name)
    ends = [len(text[: index + 1].encode(encoding.name)) for index, character in enumerate(text) if character == "\n"]
    assert encoding.first_end(data, 0) == ends[0]
    assert encoding.last_end(data, 0) == ends[-1]
    assert messages(lines().records(data, encoding, NOON)) == text.split("\n")[:-1]


def test_a_newline_across_two_characters_of_utf_16_is_none() -> None:
    encoding = Encoding("utf-16-le", b"")
    data = "\u0a00\u0100\n".encode("utf-16-le")
    assert encoding.first_end(data, 0) == encoding.last_end(data, 0) == 6
    assert encoding.last_end(data[:4], 0) == 0


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=30), max_size=30))
def test_whatever_the_text_every_line_that_is_not_empty_arrives_whole(texts: list[str]) -> None:
    body = "".join(text + "\n" for text in texts).encode()
    expected = [text.removeprefix("\ufeff") if number == 0 else text for number, text in enumerate(texts)]
    found = []
    for record in lines().records(body, UTF_8, NOON):
        value = json.loads(record)
        found.append(value["message"] if "path" in value else record.decode())
    assert found == [text for text in expected if text]
