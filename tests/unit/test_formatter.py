"""What a record looks like on the wire: the fields of each layout; and that nothing in it can keep it from being written."""

from __future__ import annotations

import datetime
import decimal
import json
import logging
import math
import sys
import uuid
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder import JSONFormatter, LogstashFormatter, LogstashFormatterV1
from forwarder.formatter import dumps, layout, repr_of, timestamp

CREATED = 1700000000.123456


def record(
    message: Any = "paid %d", *args: Any, exc_info: Any = None, stack: str | None = None, **extra: Any
) -> logging.LogRecord:
    made = logging.LogRecord("app.pay", logging.WARNING, "/srv/app/pay.py", 17, message, args, exc_info, "charge", stack)
    made.created = CREATED
    made.__dict__.update(extra)
    return made


class PaymentError(Exception):
    pass


def failure() -> Any:
    try:
        raise PaymentError("card declined")
    except PaymentError:
        return sys.exc_info()


def strict(line: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert "\n" not in line
    return json.loads(line.encode(), parse_constant=refuse)


def formatted(schema: str, made: logging.LogRecord, **settings: Any) -> Any:
    return strict(JSONFormatter(schema, fmt={"source_host": "web1"}, **settings).format(made))


# Layouts


def test_logstash_is_flat_with_every_attribute_under_its_own_name() -> None:
    found = formatted("logstash", record("paid %d", 3, order=17))
    assert found["@timestamp"] == "2023-11-14T22:13:20.123Z"
    assert found["@version"] == 1
    assert found["source_host"] == "web1"
    assert found["message"] == "paid 3"
    assert (found["name"], found["levelname"], found["levelno"], found["lineno"]) == ("app.pay", "WARNING", 30, 17)
    assert (found["funcName"], found["pathname"], found["filename"]) == ("charge", "/srv/app/pay.py", "pay.py")
    assert found["order"] == 17
    assert not {"msg", "exc_info", "exc_text", "exception"} & set(found)


def test_logstash_has_the_traceback_as_a_list_of_lines() -> None:
    found = formatted("logstash", record("failed", exc_info=failure()))
    assert found["exception"][0] == "Traceback (most recent call last):\n"
    assert found["exception"][-1].endswith("PaymentError: card declined\n")


def test_ecs_has_the_required_fields_and_the_usual_ones() -> None:
    found = formatted("ecs", record("paid %d", 3, order=17))
    assert list(found)[:4] == ["@timestamp", "log.level", "message", "ecs.version"]
    assert found["@timestamp"] == "2023-11-14T22:13:20.123Z"
    assert (found["log.level"], found["message"], found["ecs.version"]) == ("warning", "paid 3", "1.6.0")
    assert found["log"] == {"logger": "app.pay", "origin": {"file": {"name": "pay.py", "line": 17}, "function": "charge"}}
    assert set(found["process"]) == {"pid", "name", "thread"}
    assert set(found["process"]["thread"]) == {"id", "name"}
    assert found["host"] == {"name": "web1"}
    assert found["order"] == 17
    assert "error" not in found


def test_ecs_tells_an_exception_by_class_message_and_trace() -> None:
    error = formatted("ecs", record("failed", exc_info=failure()))["error"]
    assert (error["type"], error["message"]) == ("PaymentError", "card declined")
    assert error["stack_trace"].startswith("Traceback")
    assert formatted("ecs", record("where", stack="Stack: here"))["error"] == {"stack_trace": "Stack: here"}
    nothing = formatted("ecs", record("no exception at all", exc_info=(None, None, None)))["error"]
    assert set(nothing) == {"stack_trace"}


def test_ecs_extras_do_not_break_its_objects() -> None:
    mine = {"team": "pay"}
    found = formatted(
        "ecs", record("m", host="given", labels=mine, error="text", log={"syslog": {"priority": 1}}, trace={"id": "1"})
    )
    assert found["host"] == {"name": "web1"}
    assert found["labels"] == {"team": "pay", "host": "given", "error": "text"}
    assert found["log"]["syslog"] == {"priority": 1}
    assert found["log"]["logger"] == "app.pay"
    assert found["trace"] == {"id": "1"}
    assert mine == {"team": "pay"}, "the app's own dict has been changed"


def test_otel_has_the_names_of_the_log_data_model() -> None:
    found = formatted("otel", record("paid %d", 3, order=17))
    assert found["Timestamp"] == "1700000000123456000"
    assert (found["SeverityText"], found["SeverityNumber"], found["Body"]) == ("WARNING", 13, "paid 3")
    assert found["InstrumentationScope"] == {"Name": "app.pay"}
    assert found["Resource"]["host.name"] == "web1"
    attributes = found["Attributes"]
    assert attributes["order"] == 17
    assert attributes["code.function.name"] == "charge"
    assert attributes["code.file.path"] == "/srv/app/pay.py"
    assert attributes["code.line.number"] == 17


def test_otel_tells_an_exception_by_its_full_class_name() -> None:
    attributes = formatted("otel", record("failed", exc_info=failure(), stack="Stack: here"))["Attributes"]
    assert attributes["exception.type"] == f"{__name__}.PaymentError"
    assert attributes["exception.message"] == "card declined"
    assert attributes["exception.stacktrace"].startswith("Traceback")
    assert attributes["code.stacktrace"] == "Stack: here"


@pytest.mark.parametrize(
    ("level", "number"),
    [(0, 0), (5, 1), (10, 5), (15, 8), (20, 9), (21, 10), (30, 13), (40, 17), (50, 21), (99, 24), ("x", 0), (None, 0)],
)
def test_otel_severities_keep_the_order_of_levels(level: Any, number: int) -> None:
    assert layout("otel", {"levelno": level}, "h")["SeverityNumber"] == number


@pytest.mark.parametrize("schema", ["logstash", "logstash-v0", "ecs", "otel"])
def test_a_layout_needs_none_of_the_attributes_and_no_right_types(schema: str) -> None:
    strict(dumps(layout(schema, {}, "h")))
    names = ["created", "levelno", "levelname", "name", "msg", "exc_info", "exc_text", "stack_info", "process", "labels", "error"]
    for value in (None, True, -1, 10**30, math.nan, "text", b"bytes", [1], {"a": 1}, {1: 2}, (1, 2, 3)):
        strict(dumps(layout(schema, dict.fromkeys(names, value), "h")))


@pytest.mark.parametrize("schema", ["logstash", "ecs", "otel"])
def test_a_traceback_that_came_as_text_is_told_like_one_that_did_not(schema: str) -> None:
    info = failure()
    text = logging.Formatter().formatException(info)
    from_text = layout(schema, {"exc_text": text, "created": CREATED}, "h")
    from_exception = layout(schema, {"exc_info": info, "created": CREATED}, "h")
    if schema == "logstash":
        assert "".join(from_text.pop("exception")) == "".join(from_exception.pop("exception"))
    assert from_text == from_exception


@pytest.mark.parametrize(
    ("created", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1700000000.123, "2023-11-14T22:13:20.123Z"),
        (1700000000.9999999, "2023-11-14T22:13:21.000Z"),
        (253402300799, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_a_timestamp_has_milliseconds_and_ends_in_z(created: float, text: str) -> None:
    assert timestamp(created) == text


@pytest.mark.parametrize("created", [None, "yesterday", math.nan, math.inf, -1, 10**30, True])
def test_a_timestamp_of_no_time_is_now(created: Any) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    found = datetime.datetime.strptime(timestamp(created, 6), "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs((found - now).total_seconds()) < 60


# Logstash, as logstash_formatter writes it


def test_v0_has_everything_below_fields() -> None:
    formatter = LogstashFormatter('{"extra": {"env": "live", "@fields": {"team": "pay", "order": 1}}, "source_host": "web1"}')
    found = strict(formatter.format(record("paid %d", 3, order=17)))
    assert set(found) == {"@message", "@timestamp", "@source_host", "@fields", "env"}
    assert (found["@message"], found["@timestamp"], found["@source_host"]) == ("paid 3", "2023-11-14T22:13:20.123456Z", "web1")
    assert (found["@fields"]["team"], found["@fields"]["order"], found["@fields"]["name"]) == ("pay", 17, "app.pay")
    assert "msg" not in found["@fields"]


def test_v1_is_the_logstash_layout_with_extra_fields_below_the_records_own() -> None:
    formatter = LogstashFormatterV1('{"extra": {"env": "live", "order": 1}, "source_host": "web1"}')
    found = strict(formatter.format(record("paid %d", 3, order=17, when=datetime.date(2024, 2, 29))))
    assert (found["env"], found["order"], found["message"], found["@version"]) == ("live", 17, "paid 3", 1)
    assert found["when"] == "2024-02-29"


def test_names_in_braces_are_filled_in_and_nothing_else_is() -> None:
    def message(text: str) -> str:
        found: str = strict(LogstashFormatterV1().format(record(text, order=17)))["message"]
        return found

    assert message("order {order} in {lineno:04d}") == "order 17 in 0017"
    for text in ("{unknown}", "{0}", "{", "{order.__class__}", "{args[0]}", "{order:>9999999999}", "{order:{order}{order}}"):
        assert message(text) == text


def test_a_dict_as_message_is_merged_into_the_fields() -> None:
    for formatter in (JSONFormatter(), LogstashFormatterV1()):
        found = strict(formatter.format(record({"message": "paid", "order": 17})))
        assert (found["message"], found["order"]) == ("paid", 17)
    assert strict(LogstashFormatter().format(record({"order": 17})))["@fields"]["order"] == 17


def test_an_encoder_and_a_default_of_ones_own_are_used() -> None:
    class Sorted(json.JSONEncoder):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "sort_keys": True})

    line = LogstashFormatterV1(json_cls=Sorted, json_default=lambda value: "mine").format(record("m", zebra=object(), ape=1))
    assert list(strict(line)) == sorted(strict(line))
    assert strict(line)["zebra"] == "mine"
    assert strict(LogstashFormatterV1(json_default=lambda value: "mine").format(record("m", x=object())))["x"] == "mine"


# Formatters


def test_extra_are_fields_of_every_record_and_the_records_own_win() -> None:
    assert formatted("logstash", record("m", env="record"), extra={"env": "all", "team": "pay"})["env"] == "record"
    assert formatted("ecs", record("m"), extra={"service": {"name": "shop"}})["service"] == {"name": "shop"}
    assert formatted("ecs", record("m"), extra={"host": {"ip": "::1"}})["host"] == {"name": "web1", "ip": "::1"}
    assert formatted("otel", record("m"), extra={"service.name": "shop"})["Resource"]["service.name"] == "shop"


def test_a_formatter_can_be_built_as_logging_config_builds_it() -> None:
    settings = '{"schema": "ecs", "extra": {"service": {"name": "shop"}}, "source_host": "web1"}'
    found = strict(JSONFormatter(settings, None, "%").format(record("m")))
    assert (found["service"], found["host"], found["log.level"]) == ({"name": "shop"}, {"name": "web1"}, "warning")
    assert (
        strict(JSONFormatter(None, "%H:%M", "{", validate=False, defaults={"env": "live"}).format(record("m")))["env"] == "live"
    )


@pytest.mark.parametrize(
    "arguments", [("xml",), ("logstash", None, '{"exta": {}}'), ("%(message)s", None, "%"), (None, None, "no json")]
)
def test_a_wrong_setting_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        JSONFormatter(*arguments)


# Values


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Colour(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc), "2024-02-29T12:30:00+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        (Path("/srv"), "/srv"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (deque([1, 2]), [1, 2]),
        ({7}, [7]),
        (math.nan, None),
        (-math.inf, None),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),
        (Unprintable(), "<unprintable Unprintable>"),
        ({(1, 2): 3, None: 4, True: 5, math.inf: 6}, {"(1, 2)": 3, "null": 4, "true": 5, "inf": 6}),
        (10**30, 10**30),
        (Colour("red"), "red"),
        ([Unprintable(), math.nan, {"a": {1}}], ["<unprintable Unprintable>", None, {"a": [1]}]),
    ],
)
def test_a_value_without_a_form_in_json_is_written_readably(value: Any, written: Any) -> None:
    assert strict(dumps({"x": value})) == {"x": written}


def test_a_circle_ends_and_the_rest_is_kept() -> None:
    circle: dict[str, Any] = {"name": "circle", "list": []}
    circle["list"].append(circle)
    assert strict(dumps({"x": circle, "y": 1})) == {"x": {"name": "circle", "list": ["<circular>"]}, "y": 1}


def test_what_is_nested_without_end_is_cut_off() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    found = dumps({"x": deep, "y": 1})
    assert "<too deep>" in found
    assert strict(found)["y"] == 1
    while deep:  # freed one by one, not by recursion
        deep = deep.pop()


def test_an_integer_of_many_thousand_digits_is_written_in_hexadecimal() -> None:
    assert strict(dumps({"x": 1 << 50_000})) == {"x": hex(1 << 50_000)}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text() | st.integers() | st.floats() | st.none() | st.binary() | st.tuples(st.text()), inner)
            | st.tuples(inner, inner)
        ),
        max_leaves=30,
    )
)
def test_any_value_is_one_line_of_valid_json(value: Any) -> None:
    strict(dumps({"x": value}))


def test_the_text_for_arguments_that_did_not_fit_shows_all_that_can_be_shown() -> None:
    assert repr_of((1, "a", Unprintable())) == "(1, 'a', <unprintable Unprintable>)"
    assert repr_of({"a": Unprintable()}) == "{'a': <unprintable Unprintable>}"
    assert repr_of((1,)) == "(1,)"
