"""From the tree that `configload` read to the structs of `config`, with every error reported by its exact key.

The structs' annotations say what each key is; `keys` is the one reading of them, for this walk, for the JSON Schema and for
the manual pages. An element of an array is named by its place in the merged order, counted from 0: `tail[1].paths[0]`.
A message says what was found, then what is allowed, in the words of TOML.
"""

from __future__ import annotations

import math
import os
import re
import types
import warnings
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from forwarder import config, kafkaproperties
from forwarder.configload import Errors, Node, join, nearest, quote, shown, type_name

STRUCTS: tuple[type[msgspec.Struct], ...] = (
    config.Config,
    config.Agent,
    config.Kafka,
    config.Socket,
    config.Tail,
    config.Spool,
    config.Redact,
    config.Http,
)
NOT_BUILT = {(config.Config, "limit"), (config.Tail, "multiline"), (config.Kafka, "delivery", "exactly-once")}
"""Keys, and values of keys, that are planned and not there yet."""

SOCKET_PATH_BYTES = 107
TOPIC_CHARACTERS = 249

ALLOWED = {
    "string": "a string",
    "integer": "an integer",
    "duration": 'a duration such as "500ms", "20s", "5m" or "1h"',
    "size": 'a size such as "64KiB" or "2GiB", or a number of bytes',
    "mode": 'an octal string such as "0660"',
    "name": "a string that is not empty",
    "absolute path": "an absolute path",
    "socket path": f"an absolute path of at most {SOCKET_PATH_BYTES} bytes",
    "listen address": 'HOST:PORT, unix:PATH with an absolute path, or "" for none',
    "brokers": "HOST:PORT, several with commas",
    "template": "text with {app}, {host}, {level} or {field:NAME} in it",
    "topic template": f"letters, digits, . _ - and {{app}}, {{host}}, {{level}} or {{field:NAME}}, at most {TOPIC_CHARACTERS} characters",
    "codec": 'a text encoding of Python, such as "utf-8" or "gb18030"',
    "pattern": "a regular expression of Python",
    "fields": "a table",
    "kafka properties": "a table of librdkafka properties",
}

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?)?B|([0-9]+)")
_MULTIPLES = {f"{letter}{i}": (1024 if i else 1000) ** power for power, letter in enumerate("KMGT", 1) for i in ("", "i")}
_MODE = re.compile(r"(?:0o?)?([0-7]{3})")
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


class Key(msgspec.Struct, frozen=True):
    """A key of a table, as a user writes it, and the attribute of the struct it becomes."""

    name: str
    attribute: str
    shape: Shape
    required: bool
    default: Any
    """None also where there is no constant default."""


class _Wrong(Exception):
    """Text of what is wrong with a value, and what is allowed instead of the usual words for its kind."""

    def __init__(self, reason: str = "", allowed: str = "") -> None:
        self.reason = reason
        self.allowed = allowed


_BAD: Any = object()
"""Stands for a value that could not be made; the error has been reported."""


@cache
def keys(struct: type[msgspec.Struct]) -> tuple[Key, ...]:
    """The keys of a table, in the order of the struct."""
    found = []
    for info in msgspec.structs.fields(struct):
        default = info.default
        if default is msgspec.NODEFAULT:
            default = info.default_factory() if info.default_factory in (dict, list) else None  # type: ignore[operator]
        found.append(Key(info.encode_name, info.name, _shape(info.type), info.required, default))
    return tuple(found)


def _shape(annotation: Any) -> Shape:
    found: dict[str, Any] = {"kind": "string"}

    def peel(part: Any) -> None:
        origin = get_origin(part)
        if origin is Annotated:
            for meta in part.__metadata__:
                extra = dict(meta.extra or {})
                if extra.get("kind") == "not empty":
                    del extra["kind"]
                    extra["filled"] = True
                found.update(extra)
                if meta.description:
                    found["description"] = meta.description
            kind = found["kind"]
            peel(part.__origin__)
            if kind != "string":
                found["kind"] = kind
        elif origin in (Union, types.UnionType):
            for member in get_args(part):
                if member is not type(None):
                    peel(member)
        elif origin is Literal:
            found["choices"] = get_args(part)
            found["kind"] = found["kind"] if found["kind"] != "string" else "choice"
        elif origin is tuple:
            found.update(kind="array", item=_shape(get_args(part)[0]))
        elif isinstance(part, type) and issubclass(part, msgspec.Struct):
            found.update(kind="table", table=part, description=found.get("description") or (part.__doc__ or ""))
        elif part is int:
            found["kind"] = "integer"

    peel(annotation)
    return Shape(**found)


def written(value: Any, shape: Shape) -> Any:
    """A value of a struct as TOML would have it."""
    if isinstance(value, tuple):
        return [written(item, shape.item or shape) for item in value]
    if isinstance(value, str) or value is None:
        return value
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


def check(root: Node, errors: Errors) -> config.Config | None:
    """The configuration in the tree, or None; whatever is wrong is added to `errors`."""
    return _Check(errors).whole(root)


class _Check:
    def __init__(self, errors: Errors) -> None:
        self._errors = errors

    def whole(self, root: Node) -> config.Config | None:
        found = self._members(root, config.Config, "")
        self._spool(root, found)
        self._paths_of_sockets(root, found)
        if any(value is _BAD for value in found.values()):
            return None
        if not found.get("sockets") and not found.get("tails"):
            found["sockets"] = (config.Socket(),)
        return config.Config(**found)

    # Walking

    def _table(self, node: Node, struct: type[msgspec.Struct], key: str) -> Any:
        found = self._members(node, struct, key)
        return _BAD if any(value is _BAD for value in found.values()) else struct(**found)

    def _members(self, node: Node, struct: type[msgspec.Struct], key: str) -> dict[str, Any]:
        """The attributes of `struct` that the table gives."""
        found: dict[str, Any] = {}
        known = {one.name: one for one in keys(struct)}
        for name, inner in node.value.items():
            if name in known:
                found[known[name].attribute] = self._value(inner, known[name].shape, join(key, name), (struct, name))
            else:
                self._unknown(inner, struct, key, name)
        for name, one in known.items():
            if name in node.value or not one.required:
                continue
            if one.shape.kind == "table":
                found[one.attribute] = self._table(Node({}, node.origin), one.shape.table, join(key, name))
            else:
                found[one.attribute] = _BAD
                if not self._errors.unread:
                    self._errors.add(node.origin, join(key, name), f"missing; required: {_allowed(one.shape)}")
        return found

    def _unknown(self, node: Node, struct: type[msgspec.Struct], key: str, name: str) -> None:
        names = [one.name for one in keys(struct)]
        if (struct, name) in NOT_BUILT:
            text = "not available in this version; remove it"
        elif near := nearest(name, names):
            text = f'unknown key; did you mean "{near}"?'
        elif elsewhere := _elsewhere(name):
            text = f'unknown key; did you mean "{elsewhere}"?'
        else:
            text = f"unknown key; allowed: {', '.join(names)}"
        self._errors.add(node.origin, join(key, name), text)

    def _value(self, node: Node, shape: Shape, key: str, place: tuple[Any, ...]) -> Any:
        if node.broken:
            return _BAD
        if shape.kind == "table":
            if isinstance(node.value, dict):
                return self._table(node, shape.table, key)
        elif shape.kind == "array":
            if isinstance(node.value, list):
                return self._array(node, shape, key, place)
        elif shape.kind == "fields":
            if isinstance(node.value, dict):
                return self._json(node, key)
        elif shape.kind == "kafka properties":
            if isinstance(node.value, dict):
                return self._properties(node, key)
        else:
            try:
                return _scalar(node.value, shape)
            except _Wrong as wrong:
                reason, allowed = wrong.reason, wrong.allowed or _allowed(shape)
                if (*place, node.value if isinstance(node.value, str) else None) in NOT_BUILT:
                    reason = " is not available in this version"
                self._errors.add(node.origin, key, f"{shown(node)}{reason}; allowed: {allowed}")
                return _BAD
        self._errors.add(node.origin, key, f"{shown(node)}; allowed: {_allowed(shape, place[-1])}")
        return _BAD

    def _array(self, node: Node, shape: Shape, key: str, place: tuple[Any, ...]) -> Any:
        assert shape.item is not None
        if shape.filled and not node.value:
            self._errors.add(node.origin, key, f"an empty array; allowed: {_allowed(shape)}")
            return _BAD
        found = tuple(self._value(item, shape.item, f"{key}[{index}]", place) for index, item in enumerate(node.value))
        return _BAD if any(value is _BAD for value in found) else found

    def _json(self, node: Node, key: str) -> Any:
        """Plain values, all of which JSON can hold."""
        if node.broken:
            return _BAD
        if isinstance(node.value, dict):
            table = {name: self._json(inner, join(key, name)) for name, inner in node.value.items()}
            return _BAD if any(value is _BAD for value in table.values()) else table
        if isinstance(node.value, list):
            array = [self._json(inner, f"{key}[{index}]") for index, inner in enumerate(node.value)]
            return _BAD if any(value is _BAD for value in array) else array
        wrong = ""
        if isinstance(node.value, float) and not math.isfinite(node.value):
            wrong = "a number that JSON has"
        elif isinstance(node.value, int) and not -(2**63) <= node.value < 2**64:
            wrong = "an integer of 64 bits"
        if wrong:
            self._errors.add(node.origin, key, f"{shown(node)}; allowed: {wrong}")
            return _BAD
        return node.value

    def _properties(self, node: Node, key: str) -> Any:
        found: dict[str, Any] = {}
        plain: dict[str, Node] = {}
        for name, inner in node.value.items():
            if inner.broken:
                found[name] = _BAD
            elif isinstance(inner.value, (dict, list)) or type_name(inner.value) == "date or time":
                found[name] = _BAD
                self._errors.add(
                    inner.origin, join(key, name), f"{shown(inner)}; allowed: a string, integer, float or boolean{_dotted(name, inner)}"
                )
            else:
                plain[name] = inner
        wrong = kafkaproperties.check({name: inner.value for name, inner in plain.items()})
        for name, inner in plain.items():
            secret = inner.secret or kafkaproperties.is_secret(name)
            found[name] = config.Secret(inner.value) if secret and isinstance(inner.value, str) else inner.value
            if name in wrong:
                found[name] = _BAD
                what = wrong[name].replace("{found}", config.MASK if secret else shown(inner))
                if secret and str(inner.value):
                    what = what.replace(str(inner.value), config.MASK)
                self._errors.add(inner.origin, join(key, name), what)
        if any(value is _BAD for value in found.values()):
            return _BAD
        if trouble := kafkaproperties.check_together(found):
            self._errors.add(node.origin, key, f"librdkafka refuses them together: {trouble}")
            return _BAD
        return found

    # Keys that depend on one another

    def _spool(self, root: Node, found: dict[str, Any]) -> None:
        spool = found.get("spool")
        if not isinstance(spool, config.Spool) or spool.max_bytes_per_app <= spool.max_bytes:
            return
        given = root.value["spool"].value.get("max_bytes_per_app")
        if given is None:
            # A default is never wrong: a small spool may be filled by one app.
            found["spool"] = msgspec.structs.replace(spool, max_bytes_per_app=spool.max_bytes)
            return
        most = _written_size(spool.max_bytes)
        self._errors.add(given.origin, "spool.max_bytes_per_app", f"{shown(given)}; allowed: at most spool.max_bytes, which is {most}")
        found["spool"] = _BAD

    def _paths_of_sockets(self, root: Node, found: dict[str, Any]) -> None:
        taken: dict[str, str] = {}
        array = root.value.get("socket")
        if array is not None and isinstance(array.value, list):
            for index, table in enumerate(array.value):
                inner = table.value.get("path") if isinstance(table.value, dict) else None
                path = inner.value if inner is not None else config.DEFAULT_SOCKET
                self._take(taken, path, f"socket[{index}]", inner or table, f"socket[{index}].path", found, "sockets")
        http = root.value.get("http")
        listen = http.value.get("listen") if http is not None and isinstance(http.value, dict) else None
        if listen is not None and isinstance(listen.value, str) and listen.value.startswith("unix:"):
            self._take(taken, listen.value.removeprefix("unix:"), "http.listen", listen, "http.listen", found, "http")

    def _take(
        self, taken: dict[str, str], path: Any, owner: str, node: Node, key: str, found: dict[str, Any], attribute: str
    ) -> None:
        if not isinstance(path, str) or node.broken:
            return
        other = taken.setdefault(os.path.normpath(path), owner)
        if other != owner:
            self._errors.add(node.origin, key, f"{quote(path)} is also the path of {other}; allowed: a path of its own")
            found[attribute] = _BAD


def _elsewhere(name: str) -> str | None:
    """The full name of the only key of another table that is called `name`."""
    tables = {one.name: one.shape for one in keys(config.Config)}
    places = [
        f"{'[[' if shape.kind == 'array' else ''}{table}{']] ' if shape.kind == 'array' else '.'}{name}"
        for table, shape in tables.items()
        for struct in [shape.table or (shape.item.table if shape.item else None)]
        if struct is not None and any(one.name == name for one in keys(struct))
    ]
    return places[0] if len(places) == 1 else None


def _dotted(name: str, node: Node) -> str:
    """The likeliest reason for a table here: `sasl.username = …`, which TOML reads as a table `sasl`."""
    if not isinstance(node.value, dict):
        return ""
    inner, path = node, name
    while isinstance(inner.value, dict) and inner.value:
        part, inner = next(iter(inner.value.items()))
        path += f".{part}"
    return f"; quote names with dots: {quote(path)} = …"


def _allowed(shape: Shape, name: str = "") -> str:
    choices = ", ".join(quote(choice) for choice in shape.choices)
    if shape.kind == "choice":
        return choices
    if shape.kind == "table":
        return "a table"
    if shape.kind == "array":
        assert shape.item is not None
        if shape.item.kind == "table":
            return f"an array of tables, each under [[{name}]]"
        plural = {"integer": "integers", "absolute path": "absolute paths"}.get(shape.item.kind, "strings")
        return f"an array of {plural}{', at least one' if shape.filled else ''}"
    allowed = ALLOWED[shape.kind]
    if shape.kind in ("duration", "size", "integer") and shape.least is not None:
        least, most = (None if bound is None else written(_number(shape, bound), shape) for bound in (shape.least, shape.most))
        word = allowed.split(" such")[0]
        allowed = f"{word} of at least {least}" if most is None else f"{word} from {least} to {most}"
    return f"{choices}, or {allowed}" if choices else allowed


def _number(shape: Shape, bound: float) -> float:
    return float(bound) if shape.kind == "duration" else int(bound)


# Single values


def _scalar(value: Any, shape: Shape) -> Any:
    """`value` as the struct holds it; raises _Wrong."""
    if isinstance(value, str) and value in shape.choices:
        return value
    if shape.kind == "integer":
        if not isinstance(value, int) or isinstance(value, bool):
            raise _Wrong
        number: float = value
    elif shape.kind == "size":
        number = _size(value, shape)
    elif not isinstance(value, str):
        raise _Wrong(allowed=ALLOWED[shape.kind] if shape.kind == "duration" and not shape.choices else "")
    elif shape.kind == "duration":
        number = _duration(value, shape)
    else:
        return READERS[shape.kind](value)
    if (shape.least is not None and number < shape.least) or (shape.most is not None and number > shape.most):
        raise _Wrong
    return number


def _usual(shape: Shape) -> str:
    """What is allowed, without the range, for a text that is not even of the kind."""
    return "" if shape.choices else ALLOWED[shape.kind]


def _duration(text: str, shape: Shape) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise _Wrong(allowed=_usual(shape))
    return float(Decimal(match[1]) * _SECONDS[match[2]])


def _size(value: Any, shape: Shape) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _Wrong(allowed=_usual(shape))
    return int(Decimal(match[3] or match[1]) * _MULTIPLES.get(match[2] or "", 1))


def _mode(text: str) -> int:
    match = _MODE.fullmatch(text)
    if match is None:
        raise _Wrong
    return int(match[1], 8)


def _choice(text: str) -> str:
    raise _Wrong


def _name(text: str) -> str:
    if not text.strip():
        raise _Wrong
    return text


def _absolute_path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise _Wrong
    return text


def _socket_path(text: str) -> str:
    size = len(os.fsencode(_absolute_path(text)))
    if size > SOCKET_PATH_BYTES:
        raise _Wrong(f" of {size} bytes")
    return text


def _listen(text: str) -> str:
    if text.startswith("unix:"):
        _socket_path(text.removeprefix("unix:"))
    elif text:
        match = _TCP.fullmatch(text)
        if match is None:
            raise _Wrong
        _port(match[1])
    return text


def _port(text: str) -> None:
    if not 0 < int(text) < 65536:
        raise _Wrong(f" with port {text}", "a port from 1 to 65535")


def _brokers(text: str) -> str:
    for broker in text.split(","):
        match = _BROKER.fullmatch(broker.strip())
        if match is None:
            raise _Wrong
        if match[1] is not None:
            _port(match[1])
    return text


def _template(text: str) -> str:
    constant = _PLACEHOLDER.sub("", text)
    if not text or "{" in constant or "}" in constant:
        raise _Wrong(" with an unknown part in braces" if text else "")
    return text


def _topic_template(text: str) -> str:
    constant = _PLACEHOLDER.sub("", _template(text))
    wrong = re.search(r"[^A-Za-z0-9._-]", constant)
    if wrong is not None:
        raise _Wrong(f" with {quote(wrong[0])} in it")
    if len(constant) > TOPIC_CHARACTERS:
        raise _Wrong(f" of {len(constant)} characters")
    if text in (".", ".."):
        raise _Wrong(" is no topic of Kafka")
    return text


def _codec(text: str) -> str:
    try:
        "\n".encode(text)
    except (LookupError, ValueError):
        raise _Wrong from None
    return text


def _pattern(text: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(text.encode())
    except (re.error, OverflowError, RecursionError) as error:
        raise _Wrong(f": {error}") from None
    return text


READERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "choice": _choice,
    "mode": _mode,
    "name": _name,
    "absolute path": _absolute_path,
    "socket path": _socket_path,
    "listen address": _listen,
    "brokers": _brokers,
    "template": _template,
    "topic template": _topic_template,
    "codec": _codec,
    "pattern": _pattern,
}
