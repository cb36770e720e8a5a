"""`forwarder schema`: valid JSON Schema that knows every key, and judges files as the agent does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forwarder import config, configcheck, configload

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

SHIPPED = Path(__file__).parents[2] / "packaging" / "forwarder.toml"
KEYWORDS = {
    "$schema", "title", "description", "default", "type", "properties", "additionalProperties", "required", "items", "minItems",
    "anyOf", "enum", "pattern", "minimum", "maximum",
}  # fmt: skip
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    command = [sys.executable, "-m", "forwarder", "schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(printed.stdout)
    return found


def parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all schemas inside it."""
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
    inner += [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)]
    for one in inner:
        yield from parts(one)


def complaints(value: Any, schema: dict[str, Any], key: str = "") -> Iterator[str]:
    """What the schema has against a value, by the rules of the keywords that ours uses."""
    kinds = schema.get("type", [])
    wanted = [TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    if wanted and not any(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for kind in wanted):
        yield key
    elif "anyOf" in schema:
        if all(list(complaints(value, one)) for one in schema["anyOf"]):
            yield key
    elif isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{key}.{name}" for name in schema.get("required", ()) if name not in value)
        for name, inner in value.items():
            if name not in properties and others is False:
                yield f"{key}.{name}"
            else:
                yield from complaints(
                    inner, properties.get(name) or (others if isinstance(others, dict) else {}), f"{key}.{name}"
                )
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield key
        for index, inner in enumerate(value):
            yield from complaints(inner, schema.get("items", {}), f"{key}[{index}]")
    elif (
        value not in schema.get("enum", [value])
        or (isinstance(value, str) and not re.search(schema.get("pattern", ""), value))
        or (isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value))
    ):
        yield key


def test_it_is_json_schema_2020_12_of_keywords_that_we_know(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for part in parts(schema):
        assert set(part) <= KEYWORDS
        kinds = part.get("type", [])
        assert set([kinds] if isinstance(kinds, str) else kinds) <= set(TYPES)
        re.compile(part.get("pattern", ""))


def test_every_key_is_there_with_a_description_and_its_default_as_it_is_written(schema: dict[str, Any]) -> None:
    tables = {
        (): config.Config,
        ("agent",): config.Agent,
        ("kafka",): config.Kafka,
        ("socket",): config.Socket,
        ("tail",): config.Tail,
        ("spool",): config.Spool,
        ("redact",): config.Redact,
        ("http",): config.Http,
    }
    for path, struct in tables.items():
        part = schema
        for name in path:
            part = part["properties"][name]
            part = part.get("items", part)
        assert list(part["properties"]) == [key.name for key in configcheck.keys(struct)]
        assert part["additionalProperties"] is False
        assert all(one["description"].endswith(".") for one in part["properties"].values())
    kafka, spool = schema["properties"]["kafka"]["properties"], schema["properties"]["spool"]["properties"]
    socket = schema["properties"]["socket"]["items"]["properties"]
    assert "default" not in kafka["bootstrap_servers"]
    assert "default" not in kafka["key"]
    assert (kafka["topic"]["default"], kafka["in_flight"]["default"], kafka["properties"]["default"]) == ("logs", "32MiB", {})
    assert (spool["max_bytes"]["default"], spool["fsync"]["default"], socket["mode"]["default"]) == ("2GiB", "1s", "0660")
    assert socket["allow_topics"]["default"] == []


def test_every_default_is_right_by_the_schema(schema: dict[str, Any]) -> None:
    for part in parts(schema):
        if "default" in part:
            assert list(complaints(part["default"], part)) == []


def test_the_shipped_file_is_right_by_the_schema_and_loads(schema: dict[str, Any]) -> None:
    assert list(complaints(tomllib.loads(SHIPPED.read_text()), schema)) == []
    loaded = configload.load(str(SHIPPED), {}).config
    assert loaded.kafka.bootstrap_servers == "localhost:9092"
    assert [socket.path for socket in loaded.sockets] == [config.DEFAULT_SOCKET]


def test_the_shipped_file_with_its_comments_taken_off_is_right_too(tmp_path: Path, schema: dict[str, Any]) -> None:
    (tmp_path / "password").write_text("secret\n")
    text = SHIPPED.read_text().replace("/etc/forwarder/password", str(tmp_path / "password")).replace('"forwarder"', '"0"')
    file = tmp_path / "forwarder.toml"
    file.write_text(re.sub(r"(?m)^# (?=[\[a-z_]+( =|\]))", "", text))
    assert list(complaints(tomllib.loads(file.read_text()), schema)) == []
    loaded = configload.load(str(file), {}).config
    assert loaded.kafka.properties["sasl.password"] == "secret"
    assert [tail.app for tail in loaded.tails] == ["shop"]
    assert loaded.fields == {"environment": "production"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[kafka]\ntopc = "x"', [".kafka.topc"]),
        ('[kafka]\ncompression = "brotli"\nin_flight = "20 parsecs"', [".kafka.compression", ".kafka.in_flight"]),
        ('[agent]\nshutdown_timeout = 20\n[http]\nlisten = 9600', [".agent.shutdown_timeout", ".http.listen"]),
        ('[[socket]]\nmode = "rw"\nallow_uids = [1, -2]', [".socket[0].mode", ".socket[0].allow_uids[1]"]),
        ("[[tail]]\n[[tail]]\npaths = []", [".tail[0].paths", ".tail[1].paths"]),
        ("[limit]\nburst = 1", [".limit"]),
        ('[kafka.properties]\nsasl.username = "x"', [".kafka.properties.sasl"]),
        ('[kafka]\ncompression = "${CODEC}"\nin_flight = "${MEMORY:-32MiB}"\nproperties = { "linger.ms" = 5 }', []),
        ('[spool]\nmax_bytes = 5000000\nfsync = "always"', []),
    ],
)  # fmt: skip
def test_it_finds_what_is_wrong_with_a_file(schema: dict[str, Any], text: str, expected: list[str]) -> None:
    assert list(complaints(tomllib.loads(text), schema)) == expected
