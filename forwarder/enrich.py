"""What the agent changes in a record: fields put in, and what `redact` takes out. Lists of bytes in, lists of bytes out.

Fields are spliced in behind the opening brace, without parsing: a third of a microsecond a record, against 2.7 for decoding
and encoding it. A name that the record has itself then stands twice; JSON parsers keep the last, which is the record's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from forwarder.redact import Rule, redaction
from forwarder.route import Prepare


def pipeline(fields: Mapping[str, Any], redact: Iterable[Rule]) -> Prepare | None:
    """One function doing it all, in order, or None when there is nothing to do."""
    steps: list[Prepare] = []
    if fields:
        steps.append(splice(fields))
    steps += map(redaction, redact)
    if not steps:
        return None
    if len(steps) == 1:
        return steps[0]

    def run(records: list[bytes]) -> list[bytes]:
        for step in steps:
            records = step(records)
        return records

    return run


def splice(fields: Mapping[str, Any]) -> Prepare:
    """A function that puts `fields` into every record that is a JSON object and leaves any other as it is."""
    inner = msgspec.json.encode(dict(fields))[1:-1]
    whole, opening = b"{" + inner + b"}", b"{" + inner + b","

    def run(records: list[bytes]) -> list[bytes]:
        # Hot path, 0.35 microseconds a record; scanning the whole chunk for line starts instead took five times that.
        return [opening + record[1:] if record[:2] == b'{"' and record[-1:] == b"}" else one(record) for record in records]

    def one(record: bytes) -> bytes:
        if record[:1] != b"{" or record[-1:] != b"}":
            return record
        return whole if record[1:-1].isspace() or len(record) == 2 else opening + record[1:]

    return run
