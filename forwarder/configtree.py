"""Reading the configuration: files, conf.d and environment become one tree in which every value knows where it came from.

Tables merge key by key, the arrays of tables `[[socket]]`, `[[tail]]` and `[[redact]]` append, anything else that comes later
wins; the environment comes last and replaces. `${NAME}`, `${NAME:-default}` and `${file:PATH}` are filled in here. What the
values mean and whether they are allowed is `configcheck`'s to say. Nothing here stops at the first error: a file that cannot
be read is noted, and the others are still looked at.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from forwarder.config import DEFAULT_FILE, MASK, ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

ENVIRONMENT = "FORWARDER__"
ARRAYS_OF_TABLES = ("socket", "tail", "redact")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_AT = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.DOTALL)
_INSIDE = re.compile(r"file:(?P<file>.+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<otherwise>:-.*)?", re.DOTALL)
# What comes through these is masked wherever it would be shown.
_SECRET_REFERENCE = re.compile(r"file:|[^:]*(?:PASS|PWD|SECRET|TOKEN|CRED|KEY|AUTH)", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\$|\$\{(?P<inside>[^}]*)\}|(?P<open>\$\{)")
_REFERENCE_IN_ENVIRONMENT = re.compile(r"\$\{(?P<inside>[^}]*)\}|(?P<open>\$\{)")


class Node(msgspec.Struct):
    """A value and the file, or environment variable, that it came from.

    A table holds a dict of nodes, an array a list of them. `secret`: it is not to be shown, in messages or anywhere.
    `broken`: it could not be had, which has been reported.
    """

    value: Any
    origin: str
    secret: bool = False
    broken: bool = False
    from_environment: bool = False


class Errors:
    """All that is wrong so far, in the order found."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.unread = False
        """Whether a file could not be read, so that a key which is missing may stand there."""

    def add(self, origin: str, *parts: str) -> None:
        line = ": ".join((origin, *(part for part in parts if part)))
        # One line each, whatever a file name or a value holds.
        self.lines.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def read(path: str | None, environ: Mapping[str, str], errors: Errors) -> tuple[Node, list[Path]]:
    """The tree of the file `path` (None: the default file, which may be missing), its conf.d and `environ`; and the files read.

    Raises ConfigError when there is nothing to read.
    """
    root, files = _read_files(path, errors)
    variables = {name: text for name, text in environ.items() if name.startswith(ENVIRONMENT)}
    if not files and not variables and not errors.lines:
        errors.add(root.origin, f"not found; name a file with -c, or set at least {ENVIRONMENT}KAFKA__BOOTSTRAP_SERVERS")
        raise ConfigError(errors.lines)
    if not files:
        root.origin = "environment"
    _overlay(root, variables, errors)
    _expand(root, "", environ, errors)
    return root, files


# Files


def _read_files(path: str | None, errors: Errors) -> tuple[Node, list[Path]]:
    main = Path(DEFAULT_FILE if path is None else path)
    root = Node({}, str(main))
    if not main.is_dir():
        # Not the hidden ones: editors keep their locks and copies there.
        files = sorted(file for file in (main.parent / "conf.d").glob("*.toml") if not file.name.startswith("."))
        if path is not None or main.exists():
            files.insert(0, main)
    else:
        errors.add(str(main), "a directory; allowed: a file in TOML")
        files, errors.unread = [], True
    for file in files:
        table = _read_file(file, errors)
        if table is None:
            errors.unread = True
        else:
            _merge(root, _node(table, str(file)), top=True)
    return root, files


def _read_file(file: Path, errors: Errors) -> dict[str, Any] | None:
    origin = str(file)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        errors.add(origin, "not found")
        return None
    except OSError as error:
        errors.add(origin, f"cannot be read: {error.strerror}")
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        errors.add(origin, f"line {line}, column {column}", f"byte 0x{data[error.start]:02x}; allowed: UTF-8 text")
        return None
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place, what = _syntax_error(str(error), text)
        errors.add(origin, place, what)
    except RecursionError:
        errors.add(origin, "nested too deeply to be read")
    else:
        return table
    return None


def _syntax_error(message: str, text: str) -> tuple[str, str]:
    found = _AT.fullmatch(message)
    if found is None:
        return "TOML", message
    line, column = found["line"], found["column"]
    if line is None:
        lines = text.split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return f"line {line}, column {column}", f"{found['what']}; allowed: TOML"


def _node(value: Any, origin: str, *, from_environment: bool = False) -> Node:
    if isinstance(value, dict):
        value = {name: _node(item, origin, from_environment=from_environment) for name, item in value.items()}
    elif isinstance(value, list):
        value = [_node(item, origin, from_environment=from_environment) for item in value]
    return Node(value, origin, from_environment=from_environment)


def _merge(into: Node, node: Node, *, top: bool) -> None:
    for name, later in node.value.items():
        earlier = into.value.get(name)
        if earlier is not None and isinstance(earlier.value, dict) and isinstance(later.value, dict):
            _merge(earlier, later, top=False)
        elif (
            earlier is not None
            and top
            and name in ARRAYS_OF_TABLES
            and isinstance(earlier.value, list)
            and isinstance(later.value, list)
        ):
            earlier.value.extend(later.value)
        else:
            into.value[name] = later


# Environment


def _overlay(root: Node, variables: Mapping[str, str], errors: Errors) -> None:
    """Put what the variables say into the tree; the shorter names first, so that a key wins over a whole table."""
    for variable in sorted(variables, key=lambda name: (name.count("__"), name)):
        parts = variable.removeprefix(ENVIRONMENT).lower().split("__")
        if not _is_text(variables[variable]):
            errors.add(variable, "not UTF-8; allowed: UTF-8 text")
        elif not all(parts):
            errors.add(variable, f"not the name of a key; allowed: {ENVIRONMENT}SECTION__KEY")
        elif parts[0] in ARRAYS_OF_TABLES and len(parts) > 1:
            whole = f"{ENVIRONMENT}{parts[0].upper()}='[{{…}}]'"
            errors.add(variable, parts[0], f"part of an array of tables; allowed: all of it in one value, {whole}")
        else:
            if parts[:2] == ["kafka", "properties"] and len(parts) > 2:
                # Shells have no dots in names; of the properties that can be written only log_level has an underscore.
                name = "__".join(parts[2:])
                parts = [*parts[:2], name if name == "log_level" else name.replace("_", ".")]
            _set(root, parts, _from_variable(parts, variable, variables[variable]))


def _set(root: Node, parts: Sequence[str], node: Node) -> None:
    table = root
    for part in parts[:-1]:
        inner = table.value.get(part)
        if inner is None or not isinstance(inner.value, dict):
            inner = table.value[part] = Node({}, node.origin, from_environment=True)
        table = inner
    earlier = table.value.get(parts[-1])
    if earlier is not None and isinstance(earlier.value, dict) and isinstance(node.value, dict):
        _merge(earlier, node, top=False)
    else:
        table.value[parts[-1]] = node


def _from_variable(parts: Sequence[str], variable: str, text: str) -> Node:
    """A property of librdkafka is taken as it stands; other text is a TOML value if it is one that can be meant there."""
    value: Any = text
    if parts[:2] != ["kafka", "properties"] or len(parts) == 2:
        try:
            parsed = tomllib.loads(f"value = {text}")
        except (tomllib.TOMLDecodeError, RecursionError):
            parsed = {}
        whole = parts[0] == "fields" or parts[0] in ARRAYS_OF_TABLES or parts in [["kafka", "properties"], [parts[0]]]
        if set(parsed) == {"value"} and (whole or isinstance(parsed["value"], str)):
            value = parsed["value"]
    return _node(value, variable, from_environment=True)


# References


class _Unusable(Exception):
    """A reference that cannot be filled in."""


def _expand(node: Node, key: str, environ: Mapping[str, str], errors: Errors) -> None:
    if isinstance(node.value, dict):
        for name, inner in node.value.items():
            _expand(inner, join(key, name), environ, errors)
    elif isinstance(node.value, list):
        for index, inner in enumerate(node.value):
            _expand(inner, f"{key}[{index}]", environ, errors)
    elif isinstance(node.value, str) and "$" in node.value:

        def fill_in(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            if match["open"]:
                raise _Unusable('"${" without "}"; allowed: ${NAME}, ${NAME:-default}, ${file:PATH}, and $$ for a plain $')
            node.secret = node.secret or _SECRET_REFERENCE.match(match["inside"]) is not None
            return _referred(match["inside"], node.origin, environ)

        # In a variable's value `$$` stays: passwords arrive that way, from places that know nothing of this notation.
        pattern = _REFERENCE_IN_ENVIRONMENT if node.from_environment else _REFERENCE
        try:
            node.value = pattern.sub(fill_in, node.value)
        except _Unusable as error:
            node.broken = True
            errors.add(node.origin, key, str(error))


def _referred(inside: str, origin: str, environ: Mapping[str, str]) -> str:
    found = _INSIDE.fullmatch(inside)
    if found is None:
        raise _Unusable(f"${{{inside}}}; allowed: ${{NAME}}, ${{NAME:-default}}, ${{file:PATH}}, and $$ for a plain $")
    if found["file"] is not None:
        # Relative to the file that says it; the variable of the environment has no folder, and the working one stands in.
        file = Path(origin).parent / found["file"]
        try:
            return file.read_bytes().decode().removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise _Unusable(f"${{{inside}}}: {error.strerror}; allowed: a file that can be read") from None
        except UnicodeDecodeError:
            raise _Unusable(f"${{{inside}}}: not UTF-8; allowed: a file of UTF-8 text") from None
    value = environ.get(found["name"])
    if found["otherwise"] is not None:
        value = value or found["otherwise"].removeprefix(":-")
    if value is None:
        name = found["name"]
        raise _Unusable(f"${{{name}}}: not in the environment; allowed: a variable that is, or ${{{name}:-default}}")
    if not _is_text(value):
        raise _Unusable(f"${{{inside}}}: not UTF-8; allowed: UTF-8 text")
    return value


def _is_text(value: str) -> bool:
    """Whether the bytes in the environment were UTF-8; others arrive as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


# Words for messages


def join(key: str, name: str) -> str:
    """`key.name`, as TOML writes it."""
    if not _BARE_KEY.fullmatch(name):
        name = quote(name)
    return f"{key}.{name}" if key else name


def quote(text: str) -> str:
    """`text` as a string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    for plain, short in {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}.items():
        escaped = escaped.replace(plain, short)
    return '"' + "".join(f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else c for c in escaped) + '"'


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was most likely meant to be, if there is one."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), 1)
    return near[0] if near else None


def type_name(value: Any) -> str:
    """What TOML calls the type of `value`."""
    for kind, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "float"), (dict, "table"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "date or time"


def shown(node: Node) -> str:
    """A value, short, for an error message; a secret one is masked."""
    if isinstance(node.value, (dict, list)):
        return f"{'an' if isinstance(node.value, list) else 'a'} {type_name(node.value)}"
    if node.secret:
        return MASK
    if isinstance(node.value, str):
        return quote(node.value if len(node.value) <= 60 else node.value[:57] + "...")
    return f"{type_name(node.value)} {str(node.value).lower() if isinstance(node.value, bool) else node.value}"
