"""Where records go: topic and key, and what is done to them on the way.

A template such as `errors.{app}` is bound once to an app and a host. If nothing of it depends on the record the result is
a constant, and a whole chunk then costs one look at it; `{level}` and `{field:NAME}` are the only parts that look inside a
record, by decoding just that one field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

Prepare = Callable[[list[bytes]], list[bytes]]
Pick = Callable[[bytes], str]

_PLACEHOLDER = re.compile(r"\{(app|host|level|field:[^{}]+)\}")
_NOT_IN_TOPIC = re.compile(r"[^a-zA-Z0-9._-]")
_LEVEL_FIELDS = ("levelname", "level", "log.level", "SeverityText", "severity", "@fields.levelname")
MISSING = "unknown"
"""What stands for a level or field that a record does not have."""


class Route(msgspec.Struct, frozen=True):
    """Topic and key, each a constant or a function of the record; `prepare` changes records just before they are sent."""

    topic: str | Pick
    key: bytes | Pick | None = None
    prepare: Prepare | None = None

    @property
    def pinned(self) -> bool:
        """Whether all records go to one topic without a key, so that a whole chunk may go to one partition."""
        return self.key is None and isinstance(self.topic, str)


def make_route(topic: str, key: str | None, *, app: str, host: str, prepare: Prepare | None = None) -> Route:
    """Bind the templates `topic` and `key`."""
    bound_topic = _bind(topic, app, host)
    if isinstance(bound_topic, str):
        final_topic: str | Pick = topic_name(bound_topic)
    else:
        pick = bound_topic

        def final_topic(record: bytes) -> str:
            return topic_name(pick(record))

    if key is None:
        return Route(final_topic, None, prepare)
    bound_key = _bind(key, app, host)
    return Route(final_topic, bound_key.encode() if isinstance(bound_key, str) else bound_key, prepare)


def describe(topic: str | None, key: str | None, fields: Mapping[str, Any]) -> bytes:
    """What a block of the spool carries of a route that differs from the configuration's own; empty when nothing does."""
    described = {name: value for name, value in (("topic", topic), ("key", key), ("fields", dict(fields))) if value}
    return msgspec.json.encode(described) if described else b""


def described(description: bytes) -> tuple[str | None, str | None, dict[str, Any]]:
    """Topic, key and fields of a description."""
    found: dict[str, Any] = msgspec.json.decode(description) if description else {}
    return found.get("topic"), found.get("key"), found.get("fields", {})


def topic_name(text: str) -> str:
    """`text` with every character that Kafka does not allow in a topic replaced by `_`, and at most 249 characters."""
    name = _NOT_IN_TOPIC.sub("_", text)[:249] or MISSING
    return name.replace(".", "_") if name in {".", ".."} else name


def _bind(template: str, app: str, host: str) -> str | Pick:
    parts: list[str | Pick] = []
    position = 0
    for match in _PLACEHOLDER.finditer(template):
        parts.append(template[position : match.start()])
        parts.append(_part(match.group(1), app, host))
        position = match.end()
    parts.append(template[position:])
    if all(isinstance(part, str) for part in parts):
        return "".join(str(part) for part in parts)
    return lambda record: "".join(part if isinstance(part, str) else part(record) for part in parts)


def _part(name: str, app: str, host: str) -> str | Pick:
    if name == "app":
        return app
    if name == "host":
        return host
    return _field_reader(_LEVEL_FIELDS if name == "level" else (name.partition(":")[2],))


def _field_reader(names: Sequence[str]) -> Pick:
    """A function that gives the first of the fields `names` that a record has; `a.b` is also looked for as b inside a."""
    tops = dict.fromkeys(top for name in names for top in (name, name.partition(".")[0]))
    slots = {top: f"f{number}" for number, top in enumerate(tops)}
    shape: Any = msgspec.defstruct("Picked", [(slot, Any, msgspec.field(name=top, default=None)) for top, slot in slots.items()])
    decode = msgspec.json.Decoder(shape).decode

    def pick(record: bytes) -> str:
        try:
            picked = decode(record)
        except msgspec.MsgspecError:
            return MISSING
        for name in names:
            value = getattr(picked, slots[name])
            if value is None and "." in name:
                top, _, rest = name.partition(".")
                value = _inside(getattr(picked, slots[top]), rest)
            if value is not None:
                return value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return MISSING

    return pick


def _inside(value: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
