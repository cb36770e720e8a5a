"""What an app sets on a handler, as text or number. Standard library only, Python 3.8 and later."""

from __future__ import annotations

import logging
import re
from typing import Any

LONGEST = {"app": 200, "topic": 249, "key": 1024}
"""Characters, as the agent has it."""

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": 1 << 20}
_UNITS.update({"g": 10**9, "gb": 10**9, "gib": 1 << 30})


def parse_size(value: str | int) -> int:
    """Bytes of 8388608, "8388608" or "8MiB". Raises ValueError."""
    found = re.match(r"\s*(\d+)\s*([a-z]*)\s*\Z", str(value).lower())
    if not found or found[2] not in _UNITS or not int(found[1]):
        raise ValueError(f"{value!r} is no size; write bytes as a number, or like 8MiB")
    return int(found[1]) * _UNITS[found[2]]


def parse_level(value: str | int) -> int:
    """The number of a level or its name. Raises ValueError."""
    known = (logging.getLevelName(name) for name in (value, str(value).upper()))
    level = value if isinstance(value, int) else next((level for level in known if isinstance(level, int)), None)
    if level is None:
        raise ValueError(f"keep_level is {value!r}; it must be a level, like WARNING or 30")
    return level


def greeting_of(**wanted: Any) -> dict[str, str]:
    """What a greeting asks of the agent, without what is None. Raises ValueError for what the agent would refuse."""
    greeting = {name: value for name, value in wanted.items() if value is not None}
    for name, value in greeting.items():
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST[name]:
            raise ValueError(f"{name} is {value!r}; it must be a printable string of 1 to {LONGEST[name]} characters")
    return greeting
