"""From files and environment to a checked configuration, or everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from forwarder import configcheck, configtree
from forwarder.config import Config, ConfigError
from forwarder.configtree import Errors, Node, join


class Loaded(msgspec.Struct, frozen=True):
    """A configuration that is right, and what is known of where it came from."""

    config: Config
    files: tuple[str, ...]
    """Those read, in their order."""
    secrets: frozenset[str]
    """Full keys, such as `socket[1].fields.token`, of values that are not to be shown."""


def load(path: str | None, environ: Mapping[str, str]) -> Loaded:
    """The configuration of the file `path` (None: the default file, which may be missing), its conf.d and `environ`.

    Raises ConfigError with everything that is wrong.
    """
    errors = Errors()
    root, files = configtree.read(path, environ, errors)
    config = configcheck.check(root, errors)
    if config is None or errors.lines:
        raise ConfigError(errors.lines)
    return Loaded(config, tuple(map(str, files)), frozenset(_secrets(root, "")))


def _secrets(node: Node, key: str) -> Iterator[str]:
    if node.secret:
        yield key
    elif isinstance(node.value, dict):
        for name, inner in node.value.items():
            yield from _secrets(inner, join(key, name))
    elif isinstance(node.value, list):
        for index, inner in enumerate(node.value):
            yield from _secrets(inner, f"{key}[{index}]")
