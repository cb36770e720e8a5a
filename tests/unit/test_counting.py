"""The relay that counts requests finds them in whatever pieces they come."""

from __future__ import annotations

from collections import Counter

from tests.harness.counting import Requests

PRODUCE, METADATA, UNKNOWN = (b"\x00\x00\x00\x06\x00" + kind + b"...." for kind in (b"\x00", b"\x03", b"\x63"))
STREAM = METADATA + PRODUCE + PRODUCE + UNKNOWN
KINDS = Counter({"Metadata": 1, "Produce": 2, "kind 99": 1})


def test_requests_are_counted_wherever_the_stream_is_cut() -> None:
    for first in range(len(STREAM) + 1):
        for second in range(first, len(STREAM) + 1):
            found: Counter[str] = Counter()
            requests = Requests(found)
            for piece in (STREAM[:first], STREAM[first:second], STREAM[second:]):
                requests.feed(piece)
            assert found == KINDS, (first, second)


def test_requests_are_counted_when_bytes_come_one_by_one() -> None:
    found: Counter[str] = Counter()
    requests = Requests(found)
    for byte in STREAM:
        requests.feed(bytes([byte]))
    assert found == KINDS
