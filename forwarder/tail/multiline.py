"""Which lines belong together: a traceback to the record that it was logged with, or whatever follows a line that starts one.

- Where a record begins depends on the lines before it in the same record and on nothing else, so reading again from the
  start of a record, after a restart, finds the same ones.
- `python` goes by the form of tracebacks (frames are indented, an unindented line ends them, chained exceptions are announced),
  and by the first line of the record. If that looks like a log line, with a time or a level, then what follows belongs to it
  until the next line that looks like one: messages of several lines stay whole. If it does not, only tracebacks and indented
  lines belong to it.
- A JSON object is a record of its own, whatever follows.
- Writers that share a file tear each other's tracebacks apart; no rule can mend that. One file a process, or the socket, does.

The form of tracebacks: Lib/traceback.py, TracebackException.format.
"""

from __future__ import annotations

import re
from typing import Protocol

from forwarder import config

_LEVEL = rb"(?:TRACE|DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL)\b"
_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = (
    rb"(?:\d{4}[-/.]\d\d[-/.]\d\d|\d\d[-/.]\d\d[-/.]\d{2,4}\b|\d\d:\d\d:\d\d|\d{8}[T ]\d{4}|\d{6} \d{6}\b|\d{10}(?:\.\d+)?\b"
    rb"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?\s|" + _MONTH + rb"\s+\d|\d{1,2}[ /-]" + _MONTH + rb")"
)
_LOG_LINE = re.compile(
    # With a time first, or after one word that has more than letters in it, such as a host or a file.
    rb"[\[(<\"']*" + _TIME + rb"|(?=\S*[\d._\-\]])\S*[^\s:]\s+[\[(<]*" + _TIME +
    # With a level first, or after one word, such as the name of a logger; glog's, syslog's, and level=… of logfmt.
    rb"|[\[(<]*" + _LEVEL + rb"|[\w.\-/\[\]]+(?:\s*[:|-]\s*|\s+)[\[(<]*" + _LEVEL +
    rb"|[\[<][a-z]+\s*[\]>]|[DIWEFC]\d{4}\s\d\d:|<\d{1,3}>|(?:ts|time|timestamp|level|lvl|severity)="
    # An access log's address.
    rb"|\d{1,3}(?:\.\d{1,3}){3}\s"
)  # fmt: skip
_EXCEPTION = re.compile(rb"(?!" + _LEVEL + rb")[A-Za-z_][\w.<>]*(?:: |:?\Z)")
_TRACEBACK = b"Traceback (most recent call last)"
_STACK = b"Stack (most recent call last)"  # frames too, without an exception
_GROUP = b"+ Exception Group Traceback (most recent call last)"
_FRAME = b'File "'
_CHAINED = (
    b"During handling of the above exception, another exception occurred:",
    b"The above exception was the direct cause of the following exception:",
)


class Grouping(Protocol):
    """Told the lines of a file one by one, without their ends; empty ones are not told, they never begin a record."""

    def begins(self, line: bytes) -> bool:
        """Whether `line` is the first of a record."""

    @property
    def whole(self) -> bool:
        """Whether the record might be over after the last line, as far as its form tells."""


class FromPattern:
    """Lines that a pattern is found in begin records."""

    whole = True

    def __init__(self, pattern: str) -> None:
        self._search = re.compile(pattern.encode()).search

    def begins(self, line: bytes) -> bool:
        return self._search(line) is not None


class Python:
    """Records of Python programs with their tracebacks."""

    def __init__(self) -> None:
        self._alone = True
        """The record is a JSON object, or there is none."""
        self._log_line = False
        """The first line of the record looks like one of a log."""
        self._in_frames = False
        self._raised = False
        """The last traceback has come to its exception."""
        self._in_stack = False

    @property
    def whole(self) -> bool:
        return not self._in_frames

    def begins(self, line: bytes) -> bool:
        # Hot path: 1 to 3 microseconds a line, most of them the pattern's.
        if line[:1] in (b" ", b"\t") and not self._alone:
            self._indented(line.lstrip())
            return False
        log_line = _LOG_LINE.match(line) is not None
        if not self._alone and self._goes_on(line, log_line):
            return False
        self._alone = _is_object(line)
        self._log_line = log_line
        self._in_stack = line.startswith(_STACK)
        self._in_frames = line.startswith(_TRACEBACK) or line.lstrip().startswith(_FRAME)
        self._raised = False
        return True

    def _indented(self, line: bytes) -> None:
        if line.startswith(_FRAME) and not self._in_stack:
            self._in_frames, self._raised = True, False
        elif line.startswith(_GROUP):
            self._in_frames, self._raised = False, True  # its last line is indented as well

    def _goes_on(self, line: bytes, log_line: bool) -> bool:
        """Whether an unindented line is part of the record; takes note of where in a traceback it is, if it is."""
        self._in_stack = line.startswith(_STACK)
        if self._in_stack:
            return True
        if line.startswith(_TRACEBACK):
            if self._raised and not self._log_line:
                return False
            self._in_frames, self._raised = True, False
            return True
        if _is_object(line):
            return False
        if self._in_frames:
            if log_line and not _EXCEPTION.match(line):
                return False
            self._in_frames, self._raised = False, True
            return True
        if self._raised and line.startswith(_CHAINED):
            self._raised = False
            return True
        return self._log_line and not log_line


def _is_object(line: bytes) -> bool:
    """Whether it looks like a JSON object; what Python prints of a dictionary has other quotes."""
    return line.endswith(b"}") and line.startswith((b'{"', b'{ "', b"{}"))


def grouping_of(settings: config.Tail) -> Grouping:
    """How the lines of one of a table's files, that has `multiline`, are grouped."""
    assert settings.multiline is not None
    return Python() if settings.multiline == "python" else FromPattern(settings.multiline.start)
