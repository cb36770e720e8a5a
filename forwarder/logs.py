"""The agent's own log: standard error, one line an event, with priorities where the journal reads them. Never our own socket."""

from __future__ import annotations

import logging
import os
import sys

from forwarder import systemd

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


class _Formatter(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n  ")
        if not self._journal:
            return text
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def set_up(level: int = logging.INFO) -> None:
    """Send the agent's own log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(journal=systemd.under_journal(os.environ, sys.stderr.fileno())))
    root = logging.getLogger("forwarder")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
