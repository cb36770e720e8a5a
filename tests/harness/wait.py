"""Waiting for a condition, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def eventually(condition: Callable[[], T], timeout: float = 30, what: str = "") -> T:
    """The first true value of `condition`; an exception counts as not yet.

    Raises AssertionError with what was awaited and the last value or exception when there is none within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        cause: Exception | None = None
        try:
            value = condition()
            if value:
                return value
            last = f"the last value is {value!r}"
        except Exception as error:  # whatever the condition meets on its way to being true
            cause = error
            last = f"the last try raised {type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            awaited = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"waited {timeout:g} s for: {awaited}; {last}") from cause
        time.sleep(POLL_SECONDS)
