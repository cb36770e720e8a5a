"""Log records to one line of JSON each, whatever is in them.

`layout` is the one place that knows what a record looks like as `logstash`, `ecs` or `otel`: the formatters here use it in the
app, the agent uses it for records that the standard library's SocketHandler sent. `dumps` never fails on a value: what JSON
has no form for is written as text, NaN and infinities as null (a document with the string "NaN" in a numeric field would be
refused further on), what cannot even be printed as a placeholder. The line is always valid UTF-8 and never holds a newline.
Standard library only, Python 3.8 and later: this is imported by apps.
"""

from __future__ import annotations

import json
import logging
import math
import re
import socket
import string
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

ECS_VERSION = "1.6.0"
DEEPEST = 32
"""Values nested deeper are cut off, where a value cannot be written as it is."""
BIGGEST_INT_BITS = 8192
STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "exception"}
"""Attributes of a record that no `extra` put there."""

_LAST_SECOND = 253402300799  # 9999-12-31T23:59:59Z
_EXCEPTION_LINE = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?\Z", re.DOTALL)
_LONG_NUMBER = re.compile(r"\d{4}")
_ECS_OBJECTS = frozenset({"ecs", "error", "host", "labels", "log", "process"})


# Values


def plain(value: Any) -> Any:
    """What stands for a value that JSON has no form for."""
    if _is_date_or_time(value):
        return value.isoformat()
    if isinstance(value, (set, frozenset, deque)):
        return list(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    return text_of(value)


def as_text(value: Any) -> Any:
    """As `plain`, but as logstash_formatter does it: ISO 8601 for dates and times, `str()` for all else."""
    return value.isoformat() if _is_date_or_time(value) else text_of(value)


def _is_date_or_time(value: Any) -> bool:
    """Whoever has such a value has imported `datetime`; importing it here would crash isolated interpreters of CPython 3.12."""
    datetime = sys.modules.get("datetime")
    return datetime is not None and isinstance(value, (datetime.date, datetime.time))


def text_of(value: Any) -> str:
    """`str(value)`, or a placeholder when that fails."""
    try:
        return str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def repr_of(value: Any) -> str:
    """`repr(value)`, or that of the parts of a tuple or dict one by one, with a placeholder for what fails."""
    try:
        return repr(value)
    except Exception:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{repr_of(key)}: {repr_of(item)}" for key, item in value.items()) + "}"
        if isinstance(value, tuple):
            return "(" + ", ".join(map(repr_of, value)) + ")"
        return f"<unprintable {type(value).__name__}>"


def dumps(value: Any, default: Callable[[Any], Any] = plain) -> str:
    """One line of JSON, whatever is in `value`."""
    try:
        line = _new_encoder(default).encode(value)
    except Exception:  # NaN, a circle, a key that is no string, a class with surprises
        line = _new_encoder(plain).encode(_sanitized(value, default, ()))
    return line if line.isascii() else without_surrogates(line)


def without_surrogates(line: str) -> str:
    """`line` with every lone surrogate replaced by U+FFFD, so that it has a form in UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return line.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return line


@lru_cache(maxsize=8)
def _new_encoder(default: Callable[[Any], Any]) -> json.JSONEncoder:
    return json.JSONEncoder(default=default, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _sanitized(value: Any, default: Callable[[Any], Any], around: tuple[int, ...]) -> Any:
    """A copy of `value` made of nothing but dict, list, str, int, float, bool and None; `around` are the ids it lies in."""
    try:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int(value) if value.bit_length() <= BIGGEST_INT_BITS else hex(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if id(value) in around:
            return "<circular>"
        if len(around) >= DEEPEST:
            return "<too deep>"
        around = (*around, id(value))
        if isinstance(value, dict):
            return {_key(key): _sanitized(item, default, around) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [_sanitized(item, default, around) for item in value]
        return _sanitized(default(value), default, around)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, (bool, int, float)):
        return "null" if key is None else text_of(key).lower() if isinstance(key, bool) else text_of(key)
    return text_of(plain(key))


# Layouts


def layout(schema: str, attributes: dict[str, Any], host: str) -> dict[str, Any]:
    """The record with these attributes as `schema` has it: "logstash", "logstash-v0", "ecs" or "otel".

    `attributes` are those of a LogRecord, `msg` formatted already, the traceback in `exc_info` or as text in `exc_text`;
    none has to be there, and none has to be of the right type. Values are left as they are.
    """
    return _LAYOUTS[schema](attributes, host)


def timestamp(created: Any, digits: int = 3) -> str:
    """ISO 8601 in UTC of seconds since 1970, with 3 or 6 digits of the fraction; of now if `created` is no such number."""
    microseconds = _microseconds(created)
    return f"{_second(microseconds // 10**6)}.{microseconds % 10**6 // 10 ** (6 - digits):0{digits}d}Z"


def _microseconds(created: Any) -> int:
    """Rounded as datetime does it: cut off, 1700000000.123 would be 122.999 milliseconds after the second."""
    if type(created) not in (float, int) or not 0 <= created <= _LAST_SECOND:
        created = time.time()
    microseconds: int = round(created * 10**6)
    return microseconds


@lru_cache(maxsize=8)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _logstash(attributes: dict[str, Any], host: str) -> dict[str, Any]:
    """logstash_formatter's V1: flat, every attribute under its own name."""
    result = {"@timestamp": timestamp(attributes.get("created")), "@version": 1, "source_host": host}
    result.update(attributes)
    result["message"] = result.pop("msg", "")
    _replace_exception(result)
    return result


def _logstash_v0(attributes: dict[str, Any], host: str) -> dict[str, Any]:
    """logstash_formatter's V0: attributes under @fields."""
    fields = attributes.copy()
    message = fields.pop("msg", "")
    _replace_exception(fields)
    moment = timestamp(attributes.get("created"), 6)
    return {"@message": message, "@timestamp": moment, "@source_host": host, "@fields": fields}


def _replace_exception(fields: dict[str, Any]) -> None:
    if lines := _traceback(fields):
        fields["exception"] = lines
    fields.pop("exc_info", None)
    fields.pop("exc_text", None)


def _ecs(attributes: dict[str, Any], host: str) -> dict[str, Any]:
    """ECS logging 1.0; an extra that has the name of an ECS object and is none goes to `labels`."""
    get = attributes.get
    origin = {"file": {"name": get("filename"), "line": get("lineno")}, "function": get("funcName")}
    thread = {"id": get("thread"), "name": get("threadName")}
    result: dict[str, Any] = {
        "@timestamp": timestamp(get("created")),
        "log.level": text_of(get("levelname", "")).lower(),
        "message": get("msg", ""),
        "ecs.version": ECS_VERSION,
        "log": {"logger": get("name"), "origin": origin},
        "process": {"pid": get("process"), "name": get("processName"), "thread": thread},
        "host": {"name": host},
    }
    if lines := _traceback(attributes):
        kind, message = _exception(attributes, lines)
        kind = kind and kind.rpartition(".")[2]
        error = {"type": kind, "message": message, "stack_trace": "".join(lines).rstrip("\n")}
        result["error"] = {name: value for name, value in error.items() if value is not None}
    elif get("stack_info"):
        result["error"] = {"stack_trace": get("stack_info")}
    for name, value in attributes.items():
        if name not in STANDARD:
            _add_to_ecs(result, *_nested(name, value))
    return result


def _nested(name: Any, value: Any) -> tuple[Any, Any]:
    """ECS's dotted names as the objects they stand for: ("http.request.id", 1) is ("http", {"request": {"id": 1}})."""
    if isinstance(name, str) and "." in name:
        name, *deeper = name.split(".")
        for part in reversed(deeper):
            value = {part: value}
    return name, value


def _add_to_ecs(result: dict[str, Any], name: str, value: Any) -> None:
    there = result.get(name)
    if isinstance(value, dict):
        result[name] = _over(value, there) if isinstance(there, dict) else value if there is None else there
    elif name in _ECS_OBJECTS:
        result["labels"] = {**result.get("labels", {}), name: value}
    elif there is None:
        result[name] = value


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both merged, `above` wins."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = _over(below[name], above[name])
    return merged


def _otel(attributes: dict[str, Any], host: str) -> dict[str, Any]:
    """OpenTelemetry's log data model."""
    get = attributes.get
    named = {
        "code.function.name": get("funcName"),
        "code.file.path": get("pathname"),
        "code.line.number": get("lineno"),
        "thread.id": get("thread"),
        "thread.name": get("threadName"),
    }
    if lines := _traceback(attributes):
        kind, message = _exception(attributes, lines)
        named["exception.type"] = kind
        named["exception.message"] = message
        named["exception.stacktrace"] = "".join(lines).rstrip("\n")
    if get("stack_info"):
        named["code.stacktrace"] = get("stack_info")
    named.update((name, value) for name, value in attributes.items() if name not in STANDARD)
    return {
        "Timestamp": f"{_microseconds(get('created'))}000",
        "SeverityText": get("levelname"),
        "SeverityNumber": _severity(get("levelno")),
        "Body": get("msg", ""),
        "Resource": {"host.name": host, "process.pid": get("process")},
        "InstrumentationScope": {"Name": get("name")},
        "Attributes": {name: value for name, value in named.items() if value is not None},
    }


def _severity(level: Any) -> int:
    """DEBUG 5, INFO 9, WARN 13, ERROR 17, FATAL 21; levels between are up to 3 more; below DEBUG is TRACE, 1; unknown is 0."""
    if not isinstance(level, int) or level <= 0:
        return 0
    tens = min(level // 10, 5)
    return 1 + 4 * tens + min(level - 10 * tens, 3) if tens else 1


def _traceback(attributes: dict[str, Any]) -> list[str]:
    """The lines of the record's traceback, as traceback.format_exception has them; empty without one."""
    info = attributes.get("exc_info")
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and len(info) == 3:
        try:
            return traceback.format_exception(*info)
        except Exception:
            return [f"<unprintable {getattr(info[0], '__name__', 'exception')}>\n"]
    text = attributes.get("exc_text")
    return [f"{line}\n" for line in text.split("\n")] if isinstance(text, str) and text else []


def _exception(attributes: dict[str, Any], lines: list[str]) -> tuple[str | None, str | None]:
    """Full class name and message of the record's exception; taken from the text where there is nothing but text."""
    info = attributes.get("exc_info")
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        kind = type(error)
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}", text_of(error)
    if isinstance(info, tuple):
        return None, None
    last = max((number for number, line in enumerate(lines) if line.startswith("  ")), default=-1)
    found = _EXCEPTION_LINE.match("".join(lines[last + 1 :]).rstrip("\n"))
    return (found[1], found[2] or "") if found else (None, None)


_LAYOUTS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "logstash": _logstash,
    "logstash-v0": _logstash_v0,
    "ecs": _ecs,
    "otel": _otel,
}


# Formatters


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    `extra` are fields for every record, which a record's own fields win over; with "otel" they describe the Resource. `fmt` is
    what can be written in a configuration file's `format`: a JSON object with `schema`, `extra` and `source_host` (the host's
    name unless given). A message that is a dict is merged into the fields.

    `logging.config` calls a formatter's class as (format, datefmt, style): that is understood too. Raises ValueError.
    """

    default: Callable[[Any], Any] = staticmethod(plain)

    def __init__(
        self,
        schema: str | None = "logstash",
        extra: Mapping[str, Any] | str | None = None,
        fmt: str | Mapping[str, Any] | None = None,
        validate: bool = True,
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if fmt is None or fmt in ("%", "{", "$"):  # (format, datefmt, style)
            fmt = None
            if schema and schema.lstrip().startswith("{"):
                schema, fmt = None, schema
        fixed = {} if extra is None or isinstance(extra, str) else _looked_up(extra)
        options: dict[str, Any] = dict(json.loads(fmt) if isinstance(fmt, str) else fmt or {})
        unknown = sorted(set(options) - {"schema", "extra", "source_host"})
        if unknown:
            raise ValueError(f"{unknown[0]} in the format is unknown; allowed are schema, extra and source_host")
        self.schema: str = options.get("schema", schema or "logstash")
        if self.schema not in _LAYOUTS:
            raise ValueError(f"schema is {self.schema!r}; allowed are {', '.join(_LAYOUTS)}")
        self.extra: dict[str, Any] = {**(defaults or {}), **options.get("extra", {}), **fixed}
        self.source_host: str = options.get("source_host") or socket.gethostname()

    def format(self, record: logging.LogRecord) -> str:
        return dumps(self.fields(record), self.default)

    def fields(self, record: logging.LogRecord, text: str | None = None) -> dict[str, Any]:
        """The record as it is going to be written, with `text` as its message if given."""
        attributes = record.__dict__.copy()
        if text is not None:
            attributes["msg"] = text
        elif isinstance(record.msg, dict):
            attributes.update(record.msg)
            attributes["msg"] = "" if self.schema == "logstash-v0" else record.msg.get("message", "")
        else:
            attributes["msg"] = self.message(record)
        result = _LAYOUTS[self.schema](attributes, self.source_host)
        if self.schema == "otel":
            result.update(_trace_context())
        return self._with_extra(result) if self.extra else result

    def message(self, record: logging.LogRecord) -> str:
        return record.getMessage()

    def _with_extra(self, result: dict[str, Any]) -> dict[str, Any]:
        if self.schema == "otel":
            result["Resource"] = {**self.extra, **result["Resource"]}
            return result
        if self.schema == "ecs":
            return _over(self.extra, result)
        merged = {**self.extra, **result}
        if self.schema == "logstash-v0":
            merged["@fields"] = {**self.extra.get("@fields", {}), **result["@fields"]}
        return merged


def _looked_up(value: Any) -> Any:
    """A copy of what `dictConfig` passes: it resolves `cfg://` and `ext://` in a value when that is looked up, and not before."""
    if isinstance(value, Mapping):
        return {key: _looked_up(value[key]) for key in value}
    if isinstance(value, list):
        return [_looked_up(value[place]) for place in range(len(value))]
    return value


def _trace_context() -> dict[str, Any]:
    """The current span, if the app has imported OpenTelemetry's API and there is one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    try:
        span = trace.get_current_span().get_span_context()
        if not span.is_valid:
            return {}
        return {"TraceId": f"{span.trace_id:032x}", "SpanId": f"{span.span_id:016x}", "TraceFlags": int(span.trace_flags)}
    except Exception:  # half imported, or of another version
        return {}


class LogstashFormatter(JSONFormatter):
    """The layout V0 of logstash_formatter 0.5.17, and its arguments.

    As there, `{name}` in a message is replaced by the record's field of that name if all that the message names are known. Only
    plain names are: an expression like `{name.__class__}` is left alone, since a message may come from outside.
    One difference: @timestamp is when the record was made, not when it was formatted.
    """

    default = staticmethod(as_text)
    _schema = "logstash-v0"

    def __init__(
        self,
        fmt: str | Mapping[str, Any] | None = None,
        datefmt: str | None = None,
        style: str = "%",
        json_cls: type[json.JSONEncoder] | None = None,
        json_default: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(self._schema, None, fmt or {})
        self.json_cls = json_cls
        self.json_default = json_default

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        self._keep_traces_of_others(record, fields)
        if self.json_cls is not None:
            return json.dumps(fields, cls=self.json_cls, default=self.json_default or self.default)
        return dumps(fields, self.json_default or self.default)

    def message(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return _fill(text, record.__dict__) if "{" in text or "}" in text else text

    def _keep_traces_of_others(self, record: logging.LogRecord, fields: dict[str, Any]) -> None:
        """What formatters of other handlers leave in a record is a field as well there."""
        if record.exc_text:
            fields["@fields"]["exc_text"] = record.exc_text


class LogstashFormatterV1(LogstashFormatter):
    """The layout V1 of logstash_formatter 0.5.17, otherwise as `LogstashFormatter`."""

    _schema = "logstash"

    def _keep_traces_of_others(self, record: logging.LogRecord, fields: dict[str, Any]) -> None:
        if record.exc_text:
            fields["exc_text"] = record.exc_text
        if isinstance(record.msg, dict):
            if "message" not in record.msg and "message" not in record.__dict__:
                del fields["message"]
        elif "message" in record.__dict__:
            fields["msg"] = record.msg


class _PlainNames(string.Formatter):
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if _LONG_NUMBER.search(format_spec):
            raise ValueError("a message does not get to ask for a text of a billion characters")
        text: str = super().format_field(value, format_spec)
        return text


def _fill(text: str, fields: Mapping[str, Any]) -> str:
    try:
        return _PlainNames().vformat(text, (), fields)
    except Exception:
        return text


# Records of any formatter as lines


def one_line(layout: JSONFormatter, record: logging.LogRecord, text: str, formatter: logging.Formatter | None) -> bytes:
    """What `formatter` made of the record as one line: JSON as it is, any other text as the message of a record in `layout`."""
    if type(formatter) not in _ONE_LINE or "\n" in text:
        text = _as_json(layout, record, text)
    return f"{text}\n".encode("utf-8", "replace")


def rescue(layout: JSONFormatter, record: logging.LogRecord, error: Exception) -> bytes:
    """A line for a record that could not be formatted, with what went wrong in `logging_error`; empty if there is no way."""
    try:
        text = text_of(record.msg)
        if record.args:
            text = f"{text} {repr_of(record.args)}"
        noted = logging.makeLogRecord({**record.__dict__, "logging_error": f"{type(error).__name__}: {text_of(error)}"})
        return f"{dumps(layout.fields(noted, text))}\n".encode("utf-8", "replace")
    except Exception:
        return b""


_ONE_LINE = (JSONFormatter, LogstashFormatter, LogstashFormatterV1)


def _as_json(layout: JSONFormatter, record: logging.LogRecord, text: str) -> str:
    if text[:1] == "{":
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            pass
        else:
            return dumps(value) if "\n" in text or "\r" in text else text
    return dumps(layout.fields(record, text))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
