"""From the tree that `configtree` read to the structs of `config`, with every error reported by its exact key.

The structs' annotations say what each key is; `keys` is the one reading of them, for this walk, for `forwarder check` and
for the JSON Schema. An element of an array is named by its place in the merged order, counted from 0: `tail[1].paths[0]`.
A message says what was found, then what is allowed, in the words of TOML.
"""

from __future__ import annotations

import math
import os
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from forwarder import config, kafkaproperties
from forwarder.configtree import Errors, Node, join, nearest, quote, shown, type_name
from forwarder.configvalues import Shape, Wrong, allowed, read, replacement_trouble, written

NOT_BUILT: dict[tuple[Any, ...], str] = {
    (config.Config, "limit"): "limits are not available in this version; remove it, spool.max_bytes_per_app bounds each app",
}
"""Keys, and values of keys, that are planned and not there yet."""


class Key(msgspec.Struct, frozen=True):
    """A key of a table, as a user writes it, and the attribute of the struct it becomes."""

    name: str
    attribute: str
    shape: Shape
    required: bool
    default: Any
    """None also where there is no constant default."""


_BAD: Any = object()
"""Stands for a value that could not be made; the error has been reported."""


@cache
def keys(struct: type[msgspec.Struct]) -> tuple[Key, ...]:
    """The keys of a table, in the order of the struct."""
    found = []
    for info in msgspec.structs.fields(struct):
        default = info.default
        if default is msgspec.NODEFAULT:
            default = info.default_factory() if info.default_factory in (dict, list) else None
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
        built = config.Config(**found)
        if built.kafka.properties and not self._errors.lines:
            self._properties_together(root.value["kafka"].value["properties"], built)
        return built

    # Walking

    def _table(self, node: Node, struct: type[msgspec.Struct], key: str) -> Any:
        found = self._members(node, struct, key)
        if any(value is _BAD for value in found.values()):
            return _BAD
        built = struct(**found)
        return built if not isinstance(built, config.Redact) or self._redact(node, built, key) else _BAD

    def _redact(self, node: Node, built: config.Redact, key: str) -> bool:
        if (built.name is None) == (built.pattern is None):
            there = "both name and pattern" if built.name else "neither name nor pattern"
            self._errors.add(node.origin, key, f"{there}; allowed: one of them")
        elif built.pattern is not None and (reason := replacement_trouble(built.pattern, built.replace)):
            replace = node.value["replace"]
            found_there = shown(replace) if replace.secret else f"{shown(replace)}: {reason}"
            self._errors.add(replace.origin, f"{key}.replace", f"{found_there}; allowed: references to groups of pattern")
        else:
            return True
        return False

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
                    self._errors.add(node.origin, join(key, name), f"missing; required: {allowed(one.shape)}")
        return found

    def _unknown(self, node: Node, struct: type[msgspec.Struct], key: str, name: str) -> None:
        names = [one.name for one in keys(struct)]
        if (struct, name) in NOT_BUILT:
            text = NOT_BUILT[struct, name]
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
            if node.value in shape.choices:
                return node.value
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
                return read(node.value, shape)
            except Wrong as wrong:
                # What is wrong with a secret may quote it.
                reason = "" if node.secret else NOT_BUILT.get((*place, str(node.value)), wrong.reason)
                self._errors.add(node.origin, key, f"{shown(node)}{reason}; allowed: {wrong.allowed or allowed(shape)}")
                return _BAD
        self._errors.add(node.origin, key, f"{shown(node)}; allowed: {allowed(shape, place[-1])}")
        return _BAD

    def _array(self, node: Node, shape: Shape, key: str, place: tuple[Any, ...]) -> Any:
        assert shape.item is not None
        if shape.filled and not node.value:
            self._errors.add(node.origin, key, f"an empty array; allowed: {allowed(shape)}")
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
        for name, inner in node.value.items():
            found[name] = inner.value
            if inner.broken:
                found[name] = _BAD
                continue
            if isinstance(inner.value, (dict, list)) or type_name(inner.value) == "date or time":
                reason = f"allowed: a string, integer, float or boolean{_dotted(name, inner)}"
            else:
                inner.secret = inner.secret or kafkaproperties.is_secret(name)
                reason = kafkaproperties.trouble(name, inner.value)
            if reason:
                found[name] = _BAD
                self._errors.add(inner.origin, join(key, name), f"{shown(inner)}; {_masked(reason, inner)}")
        return _BAD if any(value is _BAD for value in found.values()) else found

    # Keys that depend on one another

    def _properties_together(self, node: Node, built: config.Config) -> None:
        reason = kafkaproperties.trouble_together(built)
        if reason:
            for inner in node.value.values():
                reason = _masked(reason, inner)
            self._errors.add(node.origin, "kafka.properties", f"librdkafka refuses them together: {reason}")

    def _spool(self, root: Node, found: dict[str, Any]) -> None:
        spool = found.get("spool")
        if not isinstance(spool, config.Spool) or spool.max_bytes_per_app <= spool.max_bytes:
            return
        given = root.value["spool"].value.get("max_bytes_per_app")
        if given is None:
            # A default is never wrong: a small spool may be filled by one app.
            found["spool"] = msgspec.structs.replace(spool, max_bytes_per_app=spool.max_bytes)
            return
        most = f"at most spool.max_bytes, which is {written(spool.max_bytes, Shape('size'))}"
        self._errors.add(given.origin, "spool.max_bytes_per_app", f"{shown(given)}; allowed: {most}")
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
            what = config.MASK if node.secret else quote(path)
            self._errors.add(node.origin, key, f"{what} is also the path of {other}; allowed: a path of its own")
            found[attribute] = _BAD


def _masked(text: str, node: Node) -> str:
    """`text` without the value of `node`, if that is secret."""
    return text.replace(str(node.value), config.MASK) if node.secret and str(node.value) else text


def _elsewhere(name: str) -> str | None:
    """The full name of the only key of another place that is called `name`."""
    tables = {one.name: one.shape for one in keys(config.Config)}
    if name in tables:
        return f"[[{name}]]" if tables[name].kind == "array" else f"[{name}]"
    places = []
    for table, shape in tables.items():
        struct = shape.item.table if shape.item else shape.table
        if struct is not None and any(one.name == name for one in keys(struct)):
            places.append(f"[[{table}]] {name}" if shape.kind == "array" else f"{table}.{name}")
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
