"""`forwarder schema`: the JSON Schema of the configuration, for editors such as VS Code with taplo.

It is msgspec's schema of the structs, with durations, sizes and modes as they are written in TOML instead of the numbers that
the structs hold, and without the nulls that TOML does not have.
"""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Prints the JSON Schema of the configuration, for editors.",
        epilog='example: forwarder schema > forwarder.schema.json, and "#:schema ./forwarder.schema.json" as first line of the TOML file',
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
    import msgspec

    from forwarder import config, configcheck

    (whole,), definitions = msgspec.json.schema_components([config.Config], ref_template="#/$defs/{name}")
    for struct in configcheck.STRUCTS:
        written = definitions[struct.__name__]
        for key in configcheck.keys(struct):
            properties = written["properties"][key.name] = _as_written(written["properties"][key.name])
            if "default" in properties:
                if key.default in (None, (), {}) or isinstance(key.default, msgspec.Struct):
                    del properties["default"]
                else:
                    properties["default"] = configcheck.written(key.default, key.kind)
            if key.unset:
                properties["description"] += f" If not given: {key.unset}."
    definitions["Config"]["required"] = []
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "forwarder",
        **whole,
        "definitions": definitions,
    }


def _as_written(part: Any) -> Any:
    return part
