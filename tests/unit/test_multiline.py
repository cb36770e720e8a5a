"""Lines to records of several lines: what Python's own logging and traceback modules write comes out whole."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder import config
from forwarder.tail.lines import Encoding, Lines

UTF_8 = Encoding("utf-8", b"")
FORMATS = [
    "%(asctime)s %(levelname)s %(message)s",
    "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
    "[%(asctime)s] %(levelname)s in %(module)s: %(message)s",
    "%(levelname)s:%(name)s:%(message)s",
    "%(levelname)-8s %(message)s",
    "[%(levelname)s] %(message)s",
    "%(name)s %(levelname)s %(message)s",
    "%(name)s[%(process)d]: %(levelname)s: %(message)s",
    "%(created)f %(levelname)s %(message)s",
    "time=%(asctime)s level=%(levelname)s msg=%(message)s",
]


def lines(multiline: Any = "python", **settings: Any) -> Lines:
    return Lines(config.Tail(paths=("/x",), multiline=multiline, **settings), "/var/log/x.log", "host-1")


def whole(body: bytes, reader: Lines, encoding: Encoding = UTF_8) -> list[bytes]:
    """All records, the last one too."""
    return reader.joined(body, [0, *reader.held().add(body, encoding), len(body)], encoding, 0.0)


def split(text: str | bytes, reader: Lines | None = None, encoding: Encoding = UTF_8) -> list[str]:
    """The messages of all records, the last one's too."""
    reader = reader or lines()
    body = text if isinstance(text, bytes) else text.encode()
    return [json.loads(record)["message"] for record in whole(body, reader, encoding)]


def logged(layout: str, *what: Callable[[logging.Logger], None]) -> list[str]:
    """What a handler with this layout writes, each time."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(layout))
    logger = logging.Logger("shop.cart")
    logger.addHandler(handler)
    texts = []
    for each in what:
        before = len(stream.getvalue())
        each(logger)
        texts.append(stream.getvalue()[before:])
    return texts


def failing(error: BaseException) -> Callable[[logging.Logger], None]:
    def log(logger: logging.Logger) -> None:
        try:
            raise error
        except type(error):
            logger.exception("it failed")

    return log


def chained(logger: logging.Logger) -> None:
    try:
        try:
            try:
                os.environ["MISSING, I HOPE"]
            except KeyError:
                int("x")
        except ValueError as error:
            raise RuntimeError("third") from error
    except RuntimeError:
        logger.exception("three in a row")


def recursive(logger: logging.Logger) -> None:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError:
        logger.exception("too deep")


def wrong_syntax(logger: logging.Logger) -> None:
    try:
        compile("x = (\n  1,\n y z", "cart.py", "exec")
    except SyntaxError:
        logger.exception("it does not compile")


def with_notes(logger: logging.Logger) -> None:
    error = ValueError("has notes")
    if sys.version_info >= (3, 11):
        error.add_note("a note\n\nof three lines")
    failing(error)(logger)


GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/srv/shop/cart.py", line 12, in total
  |     raise ExceptionGroup("several", [ValueError(1), TypeError("2\\n\\n3")])
  | ExceptionGroup: several (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/srv/shop/cart.py", line 8, in total
    |     price(item)
    |     ~~~~~^^^^^^
    | ValueError: 1
    | 
    | During handling of the above exception, another exception occurred:
    | 
    | Traceback (most recent call last):
    |   File "/srv/shop/cart.py", line 10, in total
    |     raise ValueError(1)
    | ValueError: 1
    +---------------- 2 ----------------
    | TypeError: 2
    | 
    | 3
    +------------------------------------"""  # noqa: W291

MARKED = """\
Traceback (most recent call last):
  File "/srv/shop/cart.py", line 3, in total
    return price["x"]["y"] + \\
           ~~~~~~~~~~^^^^^
TypeError: 'int' object is not subscriptable"""

SYNTAX = """\
  File "/srv/shop/cart.py", line 3
    total = (1 +
            ^
SyntaxError: '(' was never closed"""

CHAINED = f"""\
{MARKED}

During handling of the above exception, another exception occurred:

{MARKED}

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/shop/cart.py", line 9, in <module>
    raise RuntimeError from error
  [Previous line repeated 3 more times]
RuntimeError"""


@pytest.mark.parametrize("layout", FORMATS)
def test_what_logging_writes_comes_out_record_by_record(layout: str) -> None:
    what: list[Callable[[logging.Logger], None]] = [
        lambda logger: logger.info("started"),
        failing(ValueError("boom")),
        failing(ValueError("of\n\nseveral\n  lines\n")),
        chained,
        lambda logger: logger.warning("a message\n\nwith blank\n\n\nlines\tin it"),
        recursive,
        wrong_syntax,
        with_notes,
        failing(KeyboardInterrupt()),
        failing(ValueError()),
        lambda logger: logger.error("with a stack", stack_info=True),
        lambda logger: logger.info("done"),
    ]
    texts = logged(layout, *what)
    assert split("".join(texts)) == [text.strip("\n") for text in texts]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_an_exception_group_of_this_python_belongs_to_its_record() -> None:
    namespace: dict[str, Any] = {}
    code = "group = ExceptionGroup('several', [ValueError(1), ExceptionGroup('inner', [TypeError('2\\n\\n3'), KeyError()])])"
    exec(code, namespace)
    texts = logged(FORMATS[0], failing(namespace["group"]), lambda logger: logger.info("next"))
    assert split("".join(texts)) == [text.strip("\n") for text in texts]


@pytest.mark.parametrize("what", [GROUP, MARKED, SYNTAX, CHAINED], ids=["group", "marked", "syntax", "chained"])
@pytest.mark.parametrize("first", ["2026-11-23 12:00:00,123 ERROR it failed", "it failed", "==> it failed"])
def test_a_traceback_belongs_to_the_line_before_it_whatever_that_looks_like(first: str, what: str) -> None:
    before, after = first.replace("it failed", "before"), first.replace("it failed", "after")
    assert split(f"{before}\n{first}\n{what}\n{after}\n") == [before, f"{first}\n{what}", after]


@pytest.mark.parametrize("what", [MARKED, CHAINED], ids=["marked", "chained"])
def test_tracebacks_that_nobody_logged_are_records_of_their_own(what: str) -> None:
    assert split(f"{what}\n{what}\nplain\n{what}\n") == [what, what, f"plain\n{what}"]


def test_json_lines_are_records_of_their_own_whatever_follows() -> None:
    text = f'{{"a": 1}}\n{MARKED}\n{{"b": 2}}\n2026-11-23 12:00:00 INFO x\n{{"c": 3}}\nplain\n'
    records = whole(text.encode(), lines())
    assert [record for record in records if b"message" not in record] == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']
    assert [json.loads(record)["message"] for record in records if b"message" in record] == [
        MARKED,
        "2026-11-23 12:00:00 INFO x",
        "plain",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-23 12:00:00,123 [MainThread] x",
        "2026-11-23T12:00:00Z x",
        "23/Nov/2026:12:00:00 x",
        "23/11/2026 12:00 x",
        "Nov 23 12:00:00 host app: x",
        "Mon Nov 23 12:00:00 2026 x",
        "Mon, 23 Nov 2026 12:00:00 x",
        "[2026-11-23 12:00:00 +0000] [7] [INFO] x",
        "12:00:00.123 x",
        "1774008000.25 x",
        "20261123T120000 x",
        "INFO:     127.0.0.1:5000 - x",
        "[info     ] x",
        "I1123 12:00:00.1 7 x.py:1] x",
        "<14>1 x",
        "level=info x",
        "ts=1 x",
        "10.0.0.7 - - [23/Nov/2026:12:00:00 +0000] x",
        "nova-api.log.1.2017-05-16_13:53:08 2017-05-16 00:00:00.008 25746 INFO x",
        "host-1 Nov 23 12:00:00 x",
        "worker-3 | INFO x",
    ],
)
def test_lines_of_many_a_log_are_told_from_the_rest_of_a_message(line: str) -> None:
    assert split(f"{line}\nthe rest\n\nof it\n{line}\n") == [f"{line}\nthe rest\n\nof it", line]


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: 2026-11-23 12:00:00 is in the past",
        "shop.errors.NotFound: 12:00:00",
        "builtins.Exception: ERROR",
        "Warning",
        "KeyError: 'level=1'",
        "MyError:",
        "Outer.<locals>.Inner: INFO",
    ],
)
def test_an_exception_that_reads_like_a_log_line_ends_its_traceback(line: str) -> None:
    traceback = MARKED.rpartition("\n")[0]
    text = f"2026-11-23 12:00:00 ERROR x\n{traceback}\n{line}"
    assert split(f"{text}\n2026-11-23 12:00:01 INFO y\n") == [text, "2026-11-23 12:00:01 INFO y"]


def test_a_traceback_that_a_log_line_cuts_off_does_not_swallow_it() -> None:
    cut = MARKED.rpartition("\n")[0]
    text = f"ERROR:root:x\n{cut}\nERROR:root:y\nERROR: z\n"
    assert split(text) == [f"ERROR:root:x\n{cut}", "ERROR:root:y", "ERROR: z"]


def test_lines_that_look_like_no_log_are_records_one_by_one() -> None:
    assert split("one\ntwo\n\nthree\n  indented\n\tby a tab\nfour\n") == ["one", "two", "three\n  indented\n\tby a tab", "four"]


def test_a_stack_without_an_exception_does_not_take_the_next_line() -> None:
    stack = 'it was here\nStack (most recent call last):\n  File "/srv/shop/cart.py", line 3, in total\n    f()'
    assert split(f"{stack}\nnext\n{stack}\n") == [stack, "next", stack]


def test_a_pattern_says_where_records_begin() -> None:
    reader = lines(config.Multiline(start=r"^#\d+"))
    assert split("of the one before\n#1 a\n\nb\n #2 c\n#3 d\n", reader) == ["of the one before", "#1 a\n\nb\n #2 c", "#3 d"]


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030", "utf-16-le", "utf-16-be", "utf-16"])
def test_other_encodings_are_grouped_by_their_text(encoding: str) -> None:
    text = "ü 一\n一x\n\n一y\nü 二\n" if encoding != "latin-1" else "ü 1\n1x\n\n1y\nü 2\n"
    body = text.encode(encoding)
    reader = lines(config.Multiline(start="^ü"), encoding=encoding)
    assert split(body, reader, Encoding(encoding, body[:4])) == [
        text[: text.index("\nü 二" if "二" in text else "\nü 2")],
        text[-4:-1],
    ]


def test_carriage_returns_holes_and_a_byte_order_mark_are_no_part_of_it() -> None:
    text = "\ufeff2026-11-23 12:00:00 ERROR x\r\nmore\r\n\r\n" + "\0" * 100 + "2026-11-23 12:00:01 INFO y\r\n"
    assert split(text) == ["2026-11-23 12:00:00 ERROR x\nmore", "2026-11-23 12:00:01 INFO y"]


def test_raw_records_keep_their_bytes() -> None:
    body = b"\n\nERROR x\r\n\n  \xff\n\nINFO y\n"
    assert whole(body, lines(format="raw")) == [b"ERROR x\r\n\n  \xff", b"INFO y"]


def test_a_record_that_would_be_too_long_goes_on_in_another_and_loses_nothing() -> None:
    rest = "\n".join(f"line {number}" for number in range(1000))
    reader = lines(max_record=1024)
    found = split(f"ERROR x\n{rest}\nINFO y\n", reader)
    assert "\n".join(found) == f"ERROR x\n{rest}\nINFO y"
    assert max(map(len, found)) <= 1024 and found[-1] == "INFO y" and len(found) < 15
    assert reader.cut_records == 0


def test_blank_lines_without_end_are_not_held_without_end() -> None:
    held = lines(max_record=1024).held()
    starts = held.add(b"ERROR x\n" + b"\n" * 10_000, UTF_8)
    assert len(starts) == 10_000 // 1024
    held.take(starts[-1])
    assert len(held.body) <= 1024


def test_one_line_longer_than_a_record_is_cut_and_its_neighbours_are_not() -> None:
    found = split("ERROR x\n  " + "y" * 2000 + "\n  z\nINFO w\n", lines(max_record=1024))
    assert [len(message) for message in found] == [7, 1024, 3, 6]


def test_what_is_not_utf_8_is_counted_once_a_record() -> None:
    reader = lines()
    assert split(b"ERROR \xff\n  \xfe\nINFO y\n", reader) == ["ERROR \ufffd\n  \ufffd", "INFO y"]
    assert reader.undecodable == 2


WORDS = [*MARKED.split("\n"), *GROUP.split("\n"), *CHAINED.split("\n"), "", "plain", "INFO x", '{"a": 1}', "2026-11-23 y", "\tz"]


@given(st.lists(st.sampled_from(WORDS), max_size=40), st.sets(st.integers(1, 40)))
def test_no_line_is_lost_and_groups_depend_neither_on_where_reading_begins_nor_on_how_much_is_read_at_once(
    words: list[str], borders: set[int]
) -> None:
    body = "".join(f"{word}\n" for word in words).encode()
    reader = lines()
    starts = [0, *reader.held().add(body, UTF_8)]
    assert [line for line in b"".join(_parts(body, starts)).split(b"\n") if line] == [word.encode() for word in words if word]
    for start in starts:
        found = [start, *(start + each for each in reader.held().add(body[start:], UTF_8))]
        assert found == [each for each in starts if each >= start]
    held, records = reader.held(), []
    for first, last in pairwise(sorted({0, *borders, len(words)})):
        found = held.add("".join(f"{word}\n" for word in words[first:last]).encode(), UTF_8)
        records += _parts(held.take(found[-1]), [0, *found[:-1]]) if found else []
    assert [*records, bytes(held.body)] == _parts(body, starts)


def _parts(body: bytes, starts: list[int]) -> list[bytes]:
    return [body[start:end] for start, end in zip(starts, [*starts[1:], len(body)], strict=True)]
