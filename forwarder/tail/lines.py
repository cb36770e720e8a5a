"""Bytes of a file to records, without I/O: encoding, line ends, format, and what is done with lines that are too long.

- `raw`: every line is a record as it is, without its newline.
- `auto`: a line that is a JSON object is a record as it is; any other becomes one, with the text as `message`.
- Empty lines are no records. Bytes that the encoding does not know become U+FFFD.
- With `multiline` several lines are one record, joined by newlines. No record of several lines is longer than `max_record`:
  what would make it longer begins another one.
- A line longer than `max_record` is cut and marked `truncated`, with its length in bytes as `original_size`; under `raw` it
  is cut and no more, there being no place for a mark.
"""

from __future__ import annotations

import codecs
from collections import deque
from datetime import datetime, timezone
from itertools import pairwise

import msgspec

from forwarder import config
from forwarder.tail.identity import shown
from forwarder.tail.multiline import Grouping, grouping_of

NUL_RUN = 16
"""So many NULs in front of a line are the hole that a writer left which had not noticed a truncation, and no data."""


class _Object(msgspec.Struct):
    """Any JSON object: no field of it is wanted."""


_check_object = msgspec.json.Decoder(_Object).decode
_text = msgspec.json.Encoder().encode
_NULS = b"\0" * NUL_RUN


class Encoding:
    """How a file's bytes become lines: `newline` is what ends one, at multiples of its own length."""

    def __init__(self, name: str, beginning: bytes) -> None:
        """`beginning` is the start of the file, where an encoding with a byte order mark says which order it is."""
        self.name = codecs.lookup(name).name
        if self.name in {"utf-16", "utf-32"}:
            big = beginning.startswith((b"\xfe\xff", b"\0\0\xfe\xff"))
            self.name = f"{self.name}-{'be' if big else 'le'}"
        elif self.name == "utf-8-sig":
            self.name = "utf-8"  # whose byte order mark is left out in any case
        self.newline = "\n".encode(self.name)
        self.width = len(self.newline)

    def last_end(self, data: bytes, start: int) -> int:
        """Index behind the last newline in `data` from `start`, where a line begins; `start` when there is none."""
        end = data.rfind(self.newline, start)
        while end >= 0 and (end - start) % self.width:
            end = data.rfind(self.newline, start, end + self.width - 1)
        return end + self.width if end >= 0 else start

    def first_end(self, data: bytes, start: int) -> int:
        """Index behind the first newline in `data` from `start`; `start` when there is none."""
        end = data.find(self.newline, start)
        while end >= 0 and (end - start) % self.width:
            end = data.find(self.newline, end + 1)
        return end + self.width if end >= 0 else start


class Held:
    """Lines that were read and may not be whole records yet: those of the last record, which may go on.

    Each line is looked at once, however long the record goes on and however often there is more of it.
    """

    def __init__(self, grouping: Grouping, max_record: int) -> None:
        self.body = bytearray()
        self._grouping = grouping
        self._max_record = max_record
        self._told = False

    @property
    def record_is_whole(self) -> bool:
        """Whether the record might be over, as far as its form tells."""
        return self._grouping.whole

    def add(self, data: bytes, encoding: Encoding) -> list[int]:
        """Whole lines that follow; where in `body` records begin in them, but for the one that begins it."""
        # Hot path: but for the pattern of `begins`, half a microsecond a line.
        starts = []
        begins, width, utf_8 = self._grouping.begins, encoding.width, encoding.name == "utf-8"
        record, start = 0, len(self.body)
        self.body += data
        for raw in _split(data, encoding):
            end = start + len(raw) + width
            line = raw if utf_8 else raw.decode(encoding.name, "replace").encode("utf-8", "replace")
            line = _without_hole(line.rstrip(b"\r").removeprefix(codecs.BOM_UTF8))
            first = bool(line) and begins(line) and self._told
            if first or (end - record > self._max_record and start > record):
                starts.append(start)
                record = start
            self._told = self._told or bool(line)
            start = end
        return starts

    def take(self, end: int) -> bytes:
        """What is before `end` in `body`, which is held no more."""
        taken = bytes(self.body[:end])
        del self.body[:end]
        return taken


class Lines:
    """Turns runs of whole lines of one file into records."""

    def __init__(self, settings: config.Tail, path: str, host: str) -> None:
        self.cut_records = 0
        self.undecodable = 0
        """Records that were cut, or had bytes unknown to the encoding; for whoever counts them to take."""
        self.max_record = settings.max_record
        self.multiline = settings.multiline is not None
        self._settings = settings
        self._raw = settings.format == "raw"
        self._ending = b"".join((b',"host":', _text(host), b',"app":', _text(settings.app), b',"path":', _text(shown(path))))

    def records(self, body: bytes, encoding: Encoding, now: float) -> list[bytes]:
        """Records of `body`, whole lines each with its newline; `now`, in seconds, stands in those that are plain text."""
        if self._raw:
            return self._cut_all(_split_raw(body, encoding))
        body = self._decoded(body, encoding)
        # Hot path: a split, a look for empty lines and for long ones, and 0.4 microseconds to see that a record is JSON.
        records = body.split(b"\n")
        records.pop()
        if b"\0" in body:
            records = list(map(_without_hole, records))
        if b"" in records:
            records = [record for record in records if record]
        if len(body) > self.max_record and max(map(len, records), default=0) > self.max_record:
            return self._wrap_all(records, now)
        try:
            deque(map(_check_object, records), maxlen=0)
        except (msgspec.MsgspecError, RecursionError):
            return self._wrap_all(records, now)
        return records

    def held(self) -> Held:
        """Nothing yet, of a table with `multiline`."""
        return Held(grouping_of(self._settings), self.max_record)

    def joined(self, body: bytes, borders: list[int], encoding: Encoding, now: float) -> list[bytes]:
        """The records of `body` that begin at all `borders` but the last and end at the next."""
        records = [self._joined(body[start:end], encoding) for start, end in pairwise(borders)]
        records = [record for record in records if record]
        return self._cut_all(records) if self._raw else self._wrap_all(records, now)

    def _joined(self, body: bytes, encoding: Encoding) -> bytes:
        if self._raw:
            return encoding.newline.join(_without_margins(list(map(_without_hole, _split(body, encoding)))))
        text = self._decoded(body, encoding)
        if b"\0" in text:
            text = b"\n".join(map(_without_hole, text.split(b"\n")))
        return text.strip(b"\n")

    def cut(self, beginning: bytes, size: int, encoding: Encoding, now: float) -> bytes:
        """The record for a line of `size` bytes that begins with `beginning`, at least `max_record` bytes of it."""
        self.cut_records += 1
        if self._raw:
            return beginning[: self.max_record]
        text = beginning[: self.max_record].decode(encoding.name, "replace").rstrip("\ufffd")
        return self._marked(text, size, _opening(now))

    def _wrap_all(self, records: list[bytes], now: float) -> list[bytes]:
        opening = _opening(now)
        return [self._wrap(record, opening) for record in records]

    def _wrap(self, record: bytes, opening: bytes) -> bytes:
        if len(record) > self.max_record:
            self.cut_records += 1
            return self._marked(codecs.utf_8_decode(record[: self.max_record], "ignore")[0], len(record), opening)
        if record[:1] == b"{" and record[-1:] == b"}":
            try:
                _check_object(record)
            except (msgspec.MsgspecError, RecursionError):
                pass
            else:
                return record
        return b"".join((opening, _text(record.decode()), self._ending, b"}"))

    def _marked(self, text: str, size: int, opening: bytes) -> bytes:
        """The record of a line of `size` bytes of which only `text` is kept."""
        return b"".join((opening, _text(text), self._ending, b',"truncated":true,"original_size":%d}' % size))

    def _cut_all(self, records: list[bytes]) -> list[bytes]:
        if max(map(len, records), default=0) <= self.max_record:
            return records
        self.cut_records += sum(len(record) > self.max_record for record in records)
        return [record[: self.max_record] for record in records]

    def _decoded(self, body: bytes, encoding: Encoding) -> bytes:
        """As UTF-8, with simple line ends."""
        if encoding.name != "utf-8":
            body = self._transcode(body, encoding)
        elif not body.isascii():
            body = self._repair(body)
        return body.replace(b"\r\n", b"\n") if b"\r" in body else body

    def _transcode(self, body: bytes, encoding: Encoding) -> bytes:
        try:
            text = body.decode(encoding.name)
        except UnicodeDecodeError:
            text = body.decode(encoding.name, "replace")
            self.undecodable += sum("\ufffd" in line for line in text.split("\n"))
        return text.removeprefix("\ufeff").encode("utf-8", "replace")

    def _repair(self, body: bytes) -> bytes:
        body = body.removeprefix(codecs.BOM_UTF8)
        try:
            body.decode()
        except UnicodeDecodeError:
            lines = body.split(b"\n")
            for number, line in enumerate(lines):
                repaired = line.decode("utf-8", "replace").encode()
                if repaired != line:
                    self.undecodable += 1
                    lines[number] = repaired
            return b"\n".join(lines)
        return body


def _split(body: bytes, encoding: Encoding) -> list[bytes]:
    """The lines of `body` without their ends."""
    if encoding.width == 1:
        lines = body.split(encoding.newline)
        lines.pop()
        return lines
    lines, start = [], 0
    while start < len(body):
        end = encoding.first_end(body, start)
        lines.append(body[start : end - encoding.width])
        start = end
    return lines


def _split_raw(body: bytes, encoding: Encoding) -> list[bytes]:
    return [_without_hole(line) for line in _split(body, encoding) if line]


def _without_margins(lines: list[bytes]) -> list[bytes]:
    """Without the empty lines before and after."""
    filled = [number for number, line in enumerate(lines) if line]
    return lines[filled[0] : filled[-1] + 1] if filled else []


def _without_hole(record: bytes) -> bytes:
    return record.lstrip(b"\0") if record.startswith(_NULS) else record


def _opening(now: float) -> bytes:
    moment = datetime.fromtimestamp(now, timezone.utc)
    return b'{"@timestamp":"%s.%03dZ","message":' % (moment.strftime("%Y-%m-%dT%H:%M:%S").encode(), moment.microsecond // 1000)
