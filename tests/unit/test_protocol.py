"""The socket's dialects, byte by byte and without a socket: what comes out may not depend on how the stream was cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.protocol import (
    MAX_GREETING,
    SMALLEST_MAX_RECORD,
    FrameError,
    Frames,
    Greeting,
    GreetingError,
    Lines,
    MisuseError,
    Opening,
    cut,
    encode_ack,
    parse_greeting,
)

LIMIT = SMALLEST_MAX_RECORD


def in_two(stream: bytes) -> Iterator[list[bytes]]:
    """The stream in two reads, in every way there is, and in reads of one byte."""
    for point in range(len(stream) + 1):
        yield [stream[:point], stream[point:]]
    yield [stream[point : point + 1] for point in range(len(stream))]


def in_three(stream: bytes) -> Iterator[list[bytes]]:
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            yield [stream[:first], stream[first:second], stream[second:]]


@st.composite
def reads(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    stream = draw(streams)
    points = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    return [stream[a:b] for a, b in zip([0, *points], [*points, len(stream)], strict=True)]


# Lines


def records_of(pieces: Iterable[bytes], max_record: int = LIMIT, finish: bool = False) -> tuple[list[bytes], int]:
    lines = Lines(max_record)
    out: list[bytes] = []

    def take(run: bytes) -> None:
        assert run == b"" or run.endswith(b"\n")
        assert lines.count == run.count(b"\n")
        out.extend(run.split(b"\n")[:-1])
        assert lines.pending >= 0

    for piece in pieces:
        take(lines.feed(piece))
    if finish:
        take(lines.finish())
    return out, lines.cut


def expected(stream: bytes, max_record: int = LIMIT) -> tuple[list[bytes], int]:
    """What the rules above Lines say, in the plainest way."""
    found = [cut(line, len(line), max_record) if len(line) > max_record else line for line in stream.split(b"\n")[:-1]]
    found = [line[:-1] if line.endswith(b"\r") else line for line in found]
    return [line for line in found if line], sum(len(line) > max_record for line in stream.split(b"\n")[:-1])


LONG_TEXT = "långer".encode() * 30
LONG_JSON = b'{"message": "' + b'say \\"yes\\" ' * 20 + b'"}'
STREAMS = {
    "records": b'{"a":1}\n{"b":2}\nplain text\n',
    "blank lines": b'\n\n{"a":1}\n\n\n{"b":2}\n\n',
    "only blank lines": b"\n\n\r\n\n",
    "crlf": b'{"a":1}\r\n\r\n{"b":2}\r\r\nx\ry\n\r\n',
    "bytes of every value": bytes(range(256)) + b"\n\0\n\xff\xfe\n",
    "at the limit": b"x" * (LIMIT - 1) + b"\n" + b"y" * LIMIT + b"\n" + b"z" * (LIMIT + 1) + b"\n",
    "long text in the middle": b"a\n" + LONG_TEXT + b"\nb\n",
    "long JSON in the middle": b"a\n" + LONG_JSON + b"\nb\n",
    "long ones in a row": LONG_JSON + b"\n" + LONG_TEXT + b"\n" + LONG_JSON + b"\r\n",
    "long one of blanks": b" " * (3 * LIMIT) + b"\n\n" + b"\r" * (2 * LIMIT) + b"\n",
}


@pytest.mark.parametrize("name", STREAMS)
def test_lines_come_out_the_same_however_the_stream_is_cut(name: str) -> None:
    stream = STREAMS[name]
    for pieces in in_two(stream):
        assert records_of(pieces) == expected(stream)


@pytest.mark.parametrize("name", ["records", "blank lines", "crlf"])
def test_lines_come_out_the_same_for_every_pair_of_cuts(name: str) -> None:
    for pieces in in_three(STREAMS[name]):
        assert records_of(pieces) == expected(STREAMS[name])


LINES = st.one_of(
    st.sampled_from([b"", b"\r", b"{}", LONG_TEXT, LONG_JSON, b"x" * LIMIT, b"x" * (LIMIT + 1), b'{"a": "' + b"\0" * 500]),
    st.binary(max_size=40),
)


@given(reads(st.lists(LINES, max_size=12).map(b"\n".join)), st.integers(LIMIT, 3 * LIMIT))
def test_lines_come_out_as_the_rules_say_for_any_stream_and_any_cuts(pieces: list[bytes], max_record: int) -> None:
    stream = b"".join(pieces)
    assert records_of(pieces, max_record) == expected(stream, max_record)
    assert records_of(pieces, max_record, finish=True) == expected(stream + b"\n", max_record)


def test_a_line_without_its_end_is_not_a_record_until_the_connection_is_finished() -> None:
    lines = Lines(LIMIT)
    assert lines.feed(b"one\ntwo") == b"one\n"
    assert (lines.count, lines.pending) == (1, 3)
    assert lines.finish() == b"two\n"
    assert (lines.count, lines.pending) == (1, 0)


def test_finishing_after_a_whole_line_gives_nothing() -> None:
    lines = Lines(LIMIT)
    lines.feed(b"one\n")
    assert lines.finish() == b""
    assert lines.count == 0


def test_feeding_after_the_end_is_our_own_bug() -> None:
    lines = Lines(LIMIT)
    lines.finish()
    with pytest.raises(MisuseError):
        lines.feed(b"more")


def test_a_limit_too_small_for_the_mark_is_our_own_bug() -> None:
    with pytest.raises(MisuseError):
        Lines(SMALLEST_MAX_RECORD - 1)


def test_a_run_without_anything_to_change_is_the_very_object_that_was_read() -> None:
    data = b'{"a":1}\n' * 100
    assert Lines(1 << 20).feed(data) is data


def test_a_json_record_that_is_too_long_stays_json_and_says_so() -> None:
    record = json.dumps({"level": "INFO", "message": "ö" * 1000}, ensure_ascii=False).encode()
    ((short,), count) = records_of([record[:700], record[700:] + b"\n"], 512)
    assert count == 1
    assert len(short) <= 512
    found = json.loads(short)
    assert found["truncated"] is True
    assert found["original_size"] == len(record)
    assert record.decode().startswith(found["message"])
    assert len(found["message"].encode()) in (255, 256)


def test_a_text_that_is_too_long_keeps_its_beginning_without_half_a_character() -> None:
    (records, count) = records_of([("x" + "ö" * 500).encode() + b"\nnext\n"], 200)
    assert records == [("x" + "ö" * 99).encode(), b"next"]
    assert count == 1


@given(st.binary(max_size=600), st.integers(LIMIT, 300))
def test_a_cut_record_is_never_longer_than_the_limit_and_never_empty(rest: bytes, limit: int) -> None:
    for start in (b"", b"{", b" {"):
        record = start + rest + b"." * limit
        short = cut(record, len(record), limit)
        assert 0 < len(short) <= limit
        if start:
            assert msgspec.json.decode(short)["original_size"] == len(record)


# A process of its own, so that the peak is that of the feeding alone.
PEAK = """
import resource, sys
from forwarder.protocol import FrameError, Frames, GreetingError, Lines, Opening
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
piece = b"x" * 65536
lines = Lines(1 << 20)
frames = Frames(1 << 30)
opening = Opening()
before = peak()
{body}
print(peak() - before)
"""


def growth_kib(body: str) -> int:
    run = subprocess.run([sys.executable, "-c", PEAK.format(body=body)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.parametrize(
    "body",
    [
        "for _ in range(1600): assert lines.feed(piece) == b''",
        "lines.feed(b'{'); [lines.feed(piece) for _ in range(1600)]; lines.feed(b'\\n'); assert lines.cut == 1",
        "for _ in range(800): lines.feed(piece[:-1] + b'\\n')",
        "for _ in range(400_000): lines.feed(b'xy')",
        "frames.feed((1 << 30).to_bytes(4, 'big')); [frames.feed(piece) for _ in range(16)]",
        "for _ in range(5): frames.feed(b'')\nfor _ in range(80): frames.feed((65532).to_bytes(4, 'big') + piece[4:])",
        "opening.feed(b'{'); [opening.feed(b' ') for _ in range(60_000)]",
    ],
)
def test_no_peer_makes_it_hold_more_than_a_record_and_a_read(body: str) -> None:
    assert growth_kib(body) < 6 * 1024


# The opening and its greeting

HELLO = b'{"forwarder":1,"app":"shop","session":"5f","first":7}\n'


def open_with(pieces: Iterable[bytes]) -> tuple[str | None, Greeting | None, bytes]:
    opening = Opening()
    left = iter(pieces)
    dialect = None
    for piece in left:
        dialect = opening.feed(piece)
        if dialect:
            break
    return dialect, opening.greeting, opening.rest + b"".join(left)


@pytest.mark.parametrize(
    ("stream", "dialect", "greeting", "rest"),
    [
        (b"\0\0\0\x05hello", "pickled", None, b"\0\0\0\x05hello"),
        (HELLO + b"one\ntwo", "lines", Greeting(app="shop", session="5f", first=7), b"one\ntwo"),
        (HELLO + b"\0\0\0\x05hello", "lines", Greeting(app="shop", session="5f", first=7), b"\0\0\0\x05hello"),
        (HELLO, "lines", Greeting(app="shop", session="5f", first=7), b""),
        (b'{"forwarder": 1}\r\n{"a": 1}\n', "lines", Greeting(), b'{"a": 1}\n'),
        (b'{"message": 1}\n' + HELLO, "lines", None, b'{"message": 1}\n' + HELLO),
        (b"plain text\n" + HELLO, "lines", None, b"plain text\n" + HELLO),
        (b"\n" + HELLO, "lines", None, b"\n" + HELLO),
        (b"[1]\n", "lines", None, b"[1]\n"),
        (b"{not json\n", "lines", None, b"{not json\n"),
        (b'{"message": "unfinished', None, None, b'{"message": "unfinished'),
        (b"", None, None, b""),
    ],
)
def test_a_connection_is_understood_however_its_first_bytes_are_cut(
    stream: bytes, dialect: str | None, greeting: Greeting | None, rest: bytes
) -> None:
    for pieces in in_two(stream):
        assert open_with(pieces) == (dialect, greeting, rest)


def test_a_first_line_that_cannot_be_a_greeting_is_not_held_back() -> None:
    assert Opening().feed(b"h") == "lines"


def test_a_first_record_of_any_length_passes_and_is_held_back_no_longer_than_a_greeting() -> None:
    record = b'{"message":"' + b"x" * MAX_GREETING + b'"}\n'
    opening = Opening()
    assert opening.feed(record[:MAX_GREETING]) is None
    assert opening.feed(record[MAX_GREETING : MAX_GREETING + 1]) == "lines"
    assert opening.rest == record[: MAX_GREETING + 1]
    assert open_with([record]) == ("lines", None, record)


@pytest.mark.parametrize("filler", [b'"app":"' + b"x" * MAX_GREETING, b" " * MAX_GREETING])
def test_a_greeting_that_is_too_long_is_refused_however_it_is_cut(filler: bytes) -> None:
    stream = b'{"forwarder":1,' + filler + b'"}\n'
    for point in (0, 5, 20, 1000, MAX_GREETING - 1, MAX_GREETING, MAX_GREETING + 1, len(stream) - 1):
        with pytest.raises(GreetingError, match="longer than 65536 bytes"):
            open_with([stream[:point], stream[point:]])


def test_what_only_gets_to_its_key_beyond_the_limit_is_a_record_however_it_is_cut() -> None:
    stream = b"{" + b" " * MAX_GREETING + b'"forwarder":1}\n'
    for point in (0, 5, MAX_GREETING, MAX_GREETING + 1, len(stream) - 1):
        assert open_with([stream[:point], stream[point:]]) == ("lines", None, stream)


def test_a_greeting_of_just_the_allowed_length_is_understood() -> None:
    line = b'{"forwarder":1' + b" " * (MAX_GREETING - 15) + b"}"
    assert len(line) == MAX_GREETING
    assert open_with([line, b"\n"]) == ("lines", Greeting(), b"")
    with pytest.raises(GreetingError):
        open_with([line + b" ", b"\n"])


def test_an_answered_opening_takes_nothing_more() -> None:
    opening = Opening()
    opening.feed(b"x")
    with pytest.raises(MisuseError):
        opening.feed(b"y")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"text",
        b'["forwarder"]',
        b'"forwarder"',
        b'{"app":"x"}',
        b'{"fields":{"forwarder":1}}',
        b"{" + b"[" * 50_000,
        b'{"a":\xff}',
        b'{"message":"' + b"x" * 70_000 + b'","forwarder":1}',
    ],
)
def test_what_is_not_a_greeting_is_a_record(line: bytes) -> None:
    assert parse_greeting(line) is None


def test_a_greeting_says_all_it_can_say() -> None:
    line = (
        b'{"app":"a b","forwarder":1,"session":"s","first":9223372036854775807,"topic":"t","key":"{host}","dropped":3,"new":[]}'
    )
    assert parse_greeting(line) == Greeting("a b", "s", 2**63 - 1, "t", "{host}", 3)
    assert parse_greeting(b'{"forwarder":1,"app":null,"first":null}') == Greeting()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"forwarder":2}', "the greeting asks for version 2; this agent speaks version 1"),
        (b'{"forwarder":"1"}', "the greeting asks for version '1'; this agent speaks version 1"),
        (b'{"forwarder":true}', "the greeting asks for version True; this agent speaks version 1"),
        (b'{"forwarder":1.0}', "the greeting asks for version 1.0; this agent speaks version 1"),
        (b'{"forwarder":null}', "the greeting asks for version None; this agent speaks version 1"),
        (b'{"forwarder":1,"app":5}', "app in the greeting is 5; it must be a string"),
        (b'{"forwarder":1,"app":""}', "app in the greeting is ''; it must be printable and not empty"),
        (b'{"forwarder":1,"app":"a\\nb"}', "app in the greeting is 'a\\nb'; it must be printable and not empty"),
        (b'{"forwarder":1,"session":"' + b"s" * 65 + b'"}', "session in the greeting has 65 characters; at most 64 are allowed"),
        (b'{"forwarder":1,"topic":"' + b"t" * 250 + b'"}', "topic in the greeting has 250 characters; at most 249 are allowed"),
        (b'{"forwarder":1,"first":-1}', "first in the greeting is -1; it must be a whole number from 0 to 2^63-1"),
        (b'{"forwarder":1,"first":true}', "first in the greeting is True; it must be a whole number from 0 to 2^63-1"),
        (
            b'{"forwarder":1,"dropped":9223372036854775808}',
            "dropped in the greeting is 9223372036854775808; it must be a whole number from 0 to 2^63-1",
        ),
        (
            b'{"forwarder":1,"key":[' + b"1," * 100 + b"1]}",
            "key in the greeting is [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,...; it must be a string",
        ),
    ],
)
def test_a_wrong_greeting_is_refused_with_what_is_wrong(line: bytes, message: str) -> None:
    with pytest.raises(GreetingError) as caught:
        parse_greeting(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "line", [b'{"forwarder":1,"app":"x"', b'{ "forwarder" : 1 \xff}', b'{"forwarder":1,"a":' + b"[" * 60_000]
)
def test_what_was_meant_as_a_greeting_and_is_no_json_is_refused(line: bytes) -> None:
    with pytest.raises(GreetingError, match="the greeting is not valid JSON: "):
        parse_greeting(line)


@given(st.binary(max_size=200).map(lambda rest: b'{"forwarder":' + rest) | st.binary(max_size=200))
def test_no_first_line_raises_anything_but_a_greeting_error(line: bytes) -> None:
    try:
        parse_greeting(line)
    except GreetingError as error:
        assert str(error)


@pytest.mark.parametrize("count", [0, 1, 255, 2**40, 2**64 - 1])
def test_an_acknowledgement_is_eight_bytes_big_endian(count: int) -> None:
    assert encode_ack(count) == count.to_bytes(8, "big")
    assert len(encode_ack(count)) == 8


# Frames


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def frames_of(pieces: Iterable[bytes], max_frame: int = 300) -> tuple[list[bytes], str | None]:
    frames = Frames(max_frame)
    out: list[bytes] = []
    for piece in pieces:
        try:
            out += frames.feed(piece)
        except FrameError as error:
            return out + error.frames, str(error)
        assert frames.pending < 4 + max_frame
    return out, None


PAYLOADS = [b"one", b"x" * 300, b"\0\0\0\0", b"\n", b"z" * 255]


def test_frames_come_out_the_same_however_the_stream_is_cut() -> None:
    stream = b"".join(map(frame, PAYLOADS))
    for pieces in in_two(stream):
        assert frames_of(pieces) == (PAYLOADS, None)


def test_frames_come_out_the_same_for_every_pair_of_cuts() -> None:
    stream = frame(b"a") + frame(b"bcd") + frame(b"efghijk") + frame(b"l")
    for pieces in in_three(stream):
        assert frames_of(pieces) == ([b"a", b"bcd", b"efghijk", b"l"], None)


@given(reads(st.lists(st.binary(min_size=1, max_size=300), max_size=8).map(lambda payloads: b"".join(map(frame, payloads)))))
def test_frames_come_out_the_same_for_any_cuts(pieces: list[bytes]) -> None:
    assert frames_of(pieces) == frames_of([b"".join(pieces)])
    out, error = frames_of(pieces)
    assert b"".join(map(frame, out)) == b"".join(pieces)
    assert error is None


@pytest.mark.parametrize("size", [0, 301, 2**31, 2**32 - 1])
def test_an_impossible_length_is_refused_at_once_and_the_frames_before_it_are_kept(size: int) -> None:
    stream = frame(b"good") + frame(b"also good") + size.to_bytes(4, "big")
    for pieces in in_two(stream):
        assert frames_of(pieces) == ([b"good", b"also good"], f"a frame of {size} bytes was announced; allowed are 1 to 300")


def test_after_an_impossible_length_nothing_more_is_understood() -> None:
    frames = Frames(10)
    with pytest.raises(FrameError):
        frames.feed(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError) as caught:
        frames.feed(frame(b"good"))
    assert caught.value.frames == []


def test_what_has_arrived_of_a_frame_is_known() -> None:
    frames = Frames(100)
    assert frames.pending == 0
    frames.feed(frame(b"x" * 50)[:20])
    assert frames.pending == 20
    frames.feed(frame(b"x" * 50)[20:] + b"\0\0")
    assert frames.pending == 2


def test_a_frame_limit_below_one_is_our_own_bug() -> None:
    with pytest.raises(MisuseError):
        Frames(0)


@pytest.mark.parametrize("make", [lambda data: Lines(LIMIT).feed(data), lambda data: Frames(5).feed(data)])
def test_nothing_read_gives_nothing(make: Callable[[bytes], object]) -> None:
    assert not make(b"")
