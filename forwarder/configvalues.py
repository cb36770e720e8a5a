"""Single values of the configuration: read from TOML, written as TOML, and the words for what is allowed.

A `Shape` says what a value may be. `read` turns what TOML gave into what the structs of `config` hold, or raises `Wrong`;
`written` is the way back: what `written` makes, `read` reads as the same value.
"""

from __future__ import annotations

import grp
import os
import re
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from forwarder.configtree import quote
from forwarder.redact import slowness

SOCKET_PATH_BYTES = 107
TOPIC_CHARACTERS = 249

ALLOWED = {
    "string": "a string",
    "integer": "an integer",
    "duration": 'a duration such as "500ms", "20s", "5m" or "1h"',
    "size": 'a size such as "64KiB" or "2GiB", or a number of bytes',
    "mode": 'an octal string such as "0660"',
    "name": "a string that is not empty, of printable characters",
    "group": "the name or number of a group of this machine",
    "absolute path": "an absolute path",
    "socket path": f"an absolute path of at most {SOCKET_PATH_BYTES} bytes",
    "listen address": 'HOST:PORT, unix:PATH with an absolute path, or "" for none',
    "brokers": "HOST:PORT, several with commas",
    "template": "text with {app}, {host}, {level} or {field:NAME} in it",
    "topic template": (
        f"letters, digits, . _ - and {{app}}, {{host}}, {{level}} or {{field:NAME}}, at most {TOPIC_CHARACTERS} characters"
    ),
    "codec": 'a text encoding of Python, such as "utf-8" or "gb18030"',
    "pattern": "a regular expression of Python that does not match empty text",
    "fields": "a table",
    "kafka properties": "a table of librdkafka properties",
}

PATTERNS = {
    "duration": r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)",
    "size": r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?)?B|([0-9]+)",
    "mode": r"(?:0o?)?([0-7]{3})",
}
"""Of what is written as text and held as a number."""

_DURATION, _SIZE, _MODE = (re.compile(PATTERNS[kind]) for kind in ("duration", "size", "mode"))
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_MULTIPLES = {f"{letter}{i}": (1024 if i else 1000) ** power for power, letter in enumerate("KMGT", 1) for i in ("", "i")}
_PLACEHOLDER = re.compile(r"\{(?:app|host|level|field:[^{}]+)\}")
_BROKER = re.compile(r"(?:[A-Za-z_]+://)?(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::([0-9]{1,5}))?")
_TCP = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]*):([0-9]{1,5})")


class Shape(msgspec.Struct, frozen=True):
    """What a value may be: a kind of ALLOWED, "choice", "array" or "table", and what belongs to that."""

    kind: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    item: Shape | None = None
    table: Any = None
    description: str = ""
    unset: str = ""
    filled: bool = False
    """An array that must have an element."""


class Wrong(Exception):
    """Text of what is wrong with a value, and what is allowed instead of the usual words for its kind."""

    def __init__(self, reason: str = "", allowed: str = "") -> None:
        self.reason = reason
        self.allowed = allowed


def allowed(shape: Shape, name: str = "") -> str:
    """What may stand there, in words; `name` is that of the key, for arrays of tables."""
    choices = ", ".join(quote(choice) for choice in shape.choices)
    if shape.kind == "choice":
        return choices
    if shape.kind == "table":
        members = ", ".join(f"{name} = …" for name in shape.table.__struct_encode_fields__)
        return f"{choices}, or {{ {members} }}" if choices else "a table"
    if shape.kind == "array":
        assert shape.item is not None
        if shape.item.kind == "table":
            return f"an array of tables, each under [[{name}]]"
        plural = {"integer": "integers", "absolute path": "absolute paths"}.get(shape.item.kind, "strings")
        return f"an array of {plural}{', at least one' if shape.filled else ''}"
    words = ALLOWED[shape.kind]
    if shape.least is not None:
        bounds = (None if bound is None else written(bound, shape) for bound in (shape.least, shape.most))
        least, most = bounds
        word = words.split(" such")[0]
        words = f"{word} of at least {least}" if most is None else f"{word} from {least} to {most}"
    return f"{choices}, or {words}" if choices else words


# From TOML


def read(value: Any, shape: Shape) -> Any:
    """`value` as the struct holds it; raises Wrong."""
    if isinstance(value, str) and value in shape.choices:
        return value
    if shape.kind == "integer":
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong
        number: float = value
    elif shape.kind == "size":
        number = _size(value, shape)
    elif not isinstance(value, str):
        raise Wrong(allowed=_usual(shape) if shape.kind == "duration" else "")
    elif shape.kind == "duration":
        number = _duration(value, shape)
    else:
        return _READERS[shape.kind](value)
    if (shape.least is not None and number < shape.least) or (shape.most is not None and number > shape.most):
        raise Wrong
    return number


def _usual(shape: Shape) -> str:
    """What is allowed, without the range, for a text that is not even of the kind."""
    return "" if shape.choices else ALLOWED[shape.kind]


def _duration(text: str, shape: Shape) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Wrong(allowed=_usual(shape))
    return float(Decimal(match[1]) * _SECONDS[match[2]])


def _size(value: Any, shape: Shape) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Wrong(allowed=_usual(shape))
    return int(Decimal(match[3] or match[1]) * _MULTIPLES.get(match[2] or "", 1))


def _mode(text: str) -> int:
    match = _MODE.fullmatch(text)
    if match is None:
        raise Wrong
    return int(match[1], 8)


def _choice(text: str) -> str:
    raise Wrong


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise Wrong
    return text


def _group(text: str) -> str:
    if not text.isdecimal():
        try:
            grp.getgrnam(_name(text))
        except KeyError:
            raise Wrong from None
    elif int(text) >= 2**32 - 1:
        raise Wrong
    return text


def _absolute_path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise Wrong
    return text


def _socket_path(text: str) -> str:
    size = len(os.fsencode(_absolute_path(text)))
    if size > SOCKET_PATH_BYTES:
        raise Wrong(f" of {size} bytes")
    return text


def _listen(text: str) -> str:
    if text.startswith("unix:"):
        _socket_path(text.removeprefix("unix:"))
    elif text:
        match = _TCP.fullmatch(text)
        if match is None:
            raise Wrong
        _port(match[1])
    return text


def _port(text: str) -> None:
    if not 0 < int(text) < 65536:
        raise Wrong(f" with port {text}", "a port from 1 to 65535")


def _brokers(text: str) -> str:
    for broker in text.split(","):
        match = _BROKER.fullmatch(broker.strip())
        if match is None:
            raise Wrong
        if match[1] is not None:
            _port(match[1])
    return text


def _template(text: str) -> str:
    constant = _PLACEHOLDER.sub("", text)
    if not text or "{" in constant or "}" in constant:
        raise Wrong(" with an unknown part in braces" if text else "")
    return text


def _topic_template(text: str) -> str:
    constant = _PLACEHOLDER.sub("", _template(text))
    wrong = re.search(r"[^A-Za-z0-9._-]", constant)
    if wrong is not None:
        raise Wrong(f" with {quote(wrong[0])} in it")
    if len(constant) > TOPIC_CHARACTERS:
        raise Wrong(f" of {len(constant)} characters")
    if text in (".", ".."):
        raise Wrong(" is no topic of Kafka")
    return text


def _codec(text: str) -> str:
    try:
        "\n".encode(text)
    except (LookupError, ValueError):
        raise Wrong from None
    return text


def _pattern(text: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            empty = re.compile(text.encode()).search(b"")
    except (re.error, OverflowError, RecursionError) as error:
        raise Wrong(f": {error}") from None
    if empty:
        raise Wrong(", which matches empty text and so between all bytes")
    if slow := slowness(text):
        raise Wrong(f": {slow}", "a pattern that is fast whatever a record holds: bound what it repeats, as in {1,64}")
    return text


def replacement_trouble(pattern: str, replace: str) -> str:
    """Why `replace` cannot stand for what `pattern` matches, or an empty text."""
    try:
        re.compile(pattern.encode()).sub(replace.encode(), b"")
    except (re.error, IndexError) as error:
        return str(error)
    return ""


_READERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "choice": _choice,
    "mode": _mode,
    "name": _name,
    "group": _group,
    "absolute path": _absolute_path,
    "socket path": _socket_path,
    "listen address": _listen,
    "brokers": _brokers,
    "template": _template,
    "topic template": _topic_template,
    "codec": _codec,
    "pattern": _pattern,
}


# To TOML


def written(value: Any, shape: Shape) -> Any:
    """A value of a struct as TOML would have it."""
    if isinstance(value, tuple):
        return [written(item, shape.item or shape) for item in value]
    if isinstance(value, str) or value is None:
        return value
    if shape.kind == "table":
        return msgspec.to_builtins(value)
    if shape.kind == "duration":
        return _written_duration(value)
    if shape.kind == "size":
        return _written_size(value)
    if shape.kind == "mode":
        return f"{value:04o}"
    return value


def _written_duration(seconds: float) -> str:
    exact = Decimal(repr(seconds))
    for unit in ("h", "m", "s"):
        if exact % _SECONDS[unit] == 0 and (exact >= _SECONDS[unit] or unit == "s"):
            return f"{int(exact / _SECONDS[unit])}{unit}"
    return f"{(exact * 1000).normalize():f}ms"


def _written_size(size: int) -> str | int:
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size and size % _MULTIPLES[unit] == 0:
            return f"{size // _MULTIPLES[unit]}{unit}B"
    return size
