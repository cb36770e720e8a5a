"""Our layouts beside those of the packages whose layouts they are, for the same records: field for field."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import ecs_logging
import logstash_formatter
import pytest
from opentelemetry import trace

from forwarder import JSONFormatter, KafkaLoggerHandler, LogstashFormatter, LogstashFormatterV1

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the Kafka client that it imports
    import kafka_logger.handlers

ROOT = Path(__file__).parents[2]


def record(message: Any = "paid %d", args: Any = (3,), **attributes: Any) -> logging.LogRecord:
    one = logging.LogRecord("shop.pay", logging.WARNING, "/srv/shop/pay.py", 7, message, args, None, "pay", None)
    one.__dict__.update(attributes)
    return one


def failed(**attributes: Any) -> logging.LogRecord:
    try:
        try:
            raise KeyError("price")
        except KeyError as error:
            raise ValueError("no price") from error
    except ValueError:
        return record("failed", (), exc_info=sys.exc_info(), **attributes)


def failed_before() -> logging.LogRecord:
    """As another handler's formatter leaves it."""
    one = failed()
    logging.Formatter().format(one)
    return one


RECORDS: dict[str, Callable[[], logging.LogRecord]] = {
    "plain": record,
    "no arguments": lambda: record("100 %", ()),
    "arguments of a dict": lambda: record("%(a)s and %(b)r", ({"a": 1, "b": "x"},)),
    "extra": lambda: record(order=7, customer={"name": "ann", "tags": ["a", "b"]}, none=None, truth=True, share=0.5),
    "values": lambda: record(
        when=datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc),
        day=date(2026, 1, 2),
        hour=time(1, 2),
        id=uuid.UUID(int=5),
        price=Decimal("1.20"),
        kind=ValueError("x"),
        raw=b"raw",
    ),
    "text": lambda: record("grüße %s", ("雪\n\t\x00\u2028",)),
    "exception": failed,
    "exception formatted before": failed_before,
    "stack": lambda: record(stack_info="Stack (most recent call last):\n  here"),
    "a dict": lambda: record({"order": 7, "state": "paid"}, ()),
    "a dict with a message": lambda: record({"message": "from the dict", "order": 7}, ()),
    "braces of a field": lambda: record("{order} of {name}", (), order=7),
    "braces of nothing known": lambda: record("{nothing} of {name}", ()),
    "braces with a number": lambda: record("{0} {}", ()),
    "braces that do not match": lambda: record("{", ()),
    "braces with a format": lambda: record("{order:>5}|{order!r}", (), order=7),
    "a message that is no text": lambda: record(12, ()),
}
FORMATS = [None, '{"extra": {"appName": "shop", "@fields": {"env": "test"}}, "source_host": "web-1"}']
NOW = {"@timestamp"}
"""When they have formatted the record, there; when it was made, here."""


@pytest.mark.parametrize("fmt", FORMATS, ids=["bare", "extra"])
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("version", ["V0", "V1"])
def test_logstash_layouts_are_those_of_logstash_formatter(version: str, name: str, fmt: str | None) -> None:
    ours = LogstashFormatter if version == "V0" else LogstashFormatterV1
    theirs = logstash_formatter.LogstashFormatter if version == "V0" else logstash_formatter.LogstashFormatterV1
    one = RECORDS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # datetime.utcnow
        expected = json.loads(theirs(fmt).format(one))
    written = json.loads(ours(fmt).format(one))
    for moment in NOW:
        assert len(written.pop(moment)) == len(expected.pop(moment))
    assert written == expected


def test_the_logstash_schema_is_v1_for_a_usual_record() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = json.loads(logstash_formatter.LogstashFormatterV1().format(failed(order=7)))
    written = json.loads(JSONFormatter("logstash").format(failed(order=7)))
    assert written.keys() == expected.keys()


OF_ECS = ["plain", "no arguments", "arguments of a dict", "extra", "text", "exception", "stack", "braces of a field"]


@pytest.mark.parametrize("name", OF_ECS)
def test_ecs_is_what_ecs_logging_writes(name: str) -> None:
    written = json.loads(JSONFormatter("ecs").format(RECORDS[name]()))
    theirs = ecs_logging.StdlibFormatter(exclude_fields=["log.original"])
    expected = json.loads(theirs.format(RECORDS[name]()))
    assert written.pop("host").keys() == {"name"}  # theirs has none
    nulls = {key for key, value in written.items() if value is None}  # an extra that is None they leave out
    written = {key: value for key, value in written.items() if key not in nulls}
    assert len(written.pop("@timestamp")) == len(expected.pop("@timestamp"))
    if name == "exception":  # theirs has the innermost frames alone; ours the whole chain, and the last line
        assert expected["error"].pop("stack_trace") in written["error"].pop("stack_trace")
    assert written == expected


def test_ecs_extras_with_dotted_names_lie_where_ecs_logging_puts_them() -> None:
    attributes = {"http.request.method": "get", "http": {"version": "1.1"}, "trace.id": "abc", "event.dataset": "shop.log"}
    written = json.loads(JSONFormatter("ecs").format(record(**attributes)))
    expected = json.loads(ecs_logging.StdlibFormatter().format(record(**attributes)))
    for name in ("http", "trace", "event"):
        assert written[name] == expected[name]


def test_otel_has_the_current_span_of_opentelemetry() -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, False, trace.TraceFlags(1)))
    formatter = JSONFormatter("otel")
    with trace.use_span(span):
        written = json.loads(formatter.format(record()))
    assert (written["TraceId"], written["SpanId"], written["TraceFlags"]) == (f"{0xABC:032x}", f"{0xDEF:016x}", 1)
    assert not {"TraceId", "SpanId", "TraceFlags"} & json.loads(formatter.format(record())).keys()


def test_otel_does_not_import_opentelemetry() -> None:
    script = (
        "import json, logging, sys, forwarder\n"
        "print(forwarder.JSONFormatter('otel').format(logging.makeLogRecord({'msg': 'x'})))\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["Body"] == "x"


OF_RED_HAT = sorted(RECORDS.keys() - {"values"})
"""Values that JSON has no form for they cannot send."""


@pytest.mark.parametrize("name", OF_RED_HAT)
def test_records_of_the_stand_in_for_redhat_aqe_are_those_of_the_package(name: str) -> None:
    theirs = object.__new__(kafka_logger.handlers.KafkaLoggingHandler)  # its own beginning asks a broker
    logging.Handler.__init__(theirs)
    ours = KafkaLoggerHandler("h", "orders", additional_fields={"service": "shop"}, log_preprocess=[dict.copy])
    theirs.additional_fields, theirs.log_preprocess = ours.additional_fields, ours.log_preprocess
    one = RECORDS[name]()
    written = json.loads(ours.makePickle(one))
    expected = json.loads(json.dumps(theirs.prepare_record_dict(one)))  # changes the record
    assert written == expected
