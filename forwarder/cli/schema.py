"""`forwarder schema`: the JSON Schema of the configuration, for editors such as VS Code with taplo.

It describes the TOML file, not the structs: a duration is a text there. Any text may hold a reference such as `${NAME}`, so
one that does is allowed everywhere. `kafka.bootstrap_servers` is not required of a file: it may come from conf.d or the
environment.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import msgspec

    from forwarder.configvalues import Shape

REFERENCE = r"\$\{"


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Prints the JSON Schema of the configuration, for editors.",
        epilog="example: forwarder schema > forwarder.schema.json, and in the first line of the TOML file, "
        "#:schema ./forwarder.schema.json",
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="accepted as by every command; the schema is the same for all files"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
    return 0


def schema() -> dict[str, Any]:
    """The JSON Schema that a configuration file, as parsed TOML, can be validated against."""
    from forwarder import config

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "forwarder",
        **_table(config.Config),
    }


def _table(struct: type[msgspec.Struct]) -> dict[str, Any]:
    from forwarder import configcheck, configvalues

    properties = {}
    for key in configcheck.keys(struct):
        about = key.shape.description + (f" If not given: {key.shape.unset}." if key.shape.unset else "")
        properties[key.name] = {"description": about, **_value(key.shape)}
        if key.default is not None and key.shape.kind != "table":
            properties[key.name]["default"] = configvalues.written(key.default, key.shape)
    required = [key.name for key in configcheck.keys(struct) if key.required and key.shape.kind == "array"]
    return {
        "description": struct.__doc__,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _value(shape: Shape) -> dict[str, Any]:
    from forwarder import configvalues

    if shape.kind == "table":
        table = _table(shape.table)
        return {"anyOf": [{"enum": list(shape.choices)}, table]} if shape.choices else table
    if shape.kind == "array":
        assert shape.item is not None
        return {"type": "array", "items": _value(shape.item), **({"minItems": 1} if shape.filled else {})}
    if shape.kind == "integer":
        return {"type": "integer", "minimum": shape.least, "maximum": shape.most}
    if shape.kind == "fields":
        return {"type": "object"}
    if shape.kind == "kafka properties":
        return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    text: dict[str, Any] = {"type": "string"}
    if shape.kind in configvalues.PATTERNS:
        text["pattern"] = f"^(?:{configvalues.PATTERNS[shape.kind]})$|{REFERENCE}"
    elif shape.kind == "choice":
        text["pattern"] = REFERENCE
    among = [{"enum": list(shape.choices)}] if shape.choices else []
    number = [{"type": "integer", "minimum": shape.least, "maximum": shape.most}] if shape.kind == "size" else []
    return {"anyOf": [*among, text, *number]} if among or number else text
