"""What is on its way: a chunk in flight, the lane of its source, and how long delivery takes.

A position moves only over flights that are done, from the first one on; that is all that keeps records from being skipped.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping

import msgspec
from confluent_kafka import KafkaError, Message

from forwarder.kafka import Way
from forwarder.source import TAIL_PREFIX, Chunk, Source

FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 15.0
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)


Record = tuple[str, "bytes | None", bytes]
"""Topic, key and value."""
Keyed = tuple["bytes | None", bytes]
Halves = Generator[tuple[list[Record], bool], list[Record], None]


class Refused(msgspec.Struct, frozen=True):
    """A record that was not delivered."""

    error: KafkaError
    topic: str
    partition: int
    key: bytes | None
    value: bytes

    @property
    def record(self) -> Record:
        return self.topic, self.key, self.value


class Flight:
    """A chunk on its way: `left` reports are outstanding.

    A `pinned` one went to one partition as a batch and hears of its last record only; any other hears of every record, and
    `refused` then holds exactly those that failed. In a transaction `heard` has what was reported, a message for each error,
    and it is the commit that counts.

    One that is sent carefully is sent in parts, as `halves` say, and those found to be `guilty` are set aside at its end.
    """

    __slots__ = (
        "charge",
        "count",
        "end",
        "guilty",
        "halves",
        "heard",
        "landed",
        "lane",
        "left",
        "pinned",
        "received",
        "refused",
        "start",
        "topics",
        "way",
    )

    def __init__(self, lane: Lane, chunk: Chunk, charge: int, landed: Callable[[Flight], None]) -> None:
        self.lane = lane
        self.start = chunk.start
        self.end = chunk.end
        self.count = len(chunk.records)
        self.charge = charge
        self.received = 0.0
        """On the loop's clock, which nobody sets."""
        self.landed = landed
        self.left = 0
        self.pinned = False
        self.way = Way.GAPLESS
        self.topics: Counter[str] = Counter()
        self.refused: list[Refused] = []
        self.halves: Halves | None = None
        self.guilty: list[Refused] = []
        self.heard: dict[KafkaError | None, Message] = {}

    def report(self, error: KafkaError | None, message: Message) -> None:
        """What librdkafka calls for each record that it reports on."""
        if error is not None:
            partition = message.partition()
            at = -1 if partition is None else partition
            self.refused.append(Refused(error, message.topic() or "", at, message.key(), message.value() or b""))
        self.land()

    def land(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.landed(self)

    @property
    def done(self) -> bool:
        return self.left == 0 and not self.refused


class Lane:
    """A source and what of it is in flight."""

    __slots__ = (
        "_counted",
        "active",
        "backoff",
        "behind_since",
        "careful_for",
        "careful_until",
        "credit",
        "failed",
        "flights",
        "held",
        "in_flight",
        "position",
        "rate",
        "read_to",
        "records",
        "retrying",
        "saved",
        "source",
        "tailed",
        "trouble",
        "waiting",
        "waits_for",
    )  # thousands of them are kept

    def __init__(self, source: Source) -> None:
        self.source = source
        self.saved = False
        """Whether it is on disk, or the disk has refused it."""
        self.position = source.position
        self.flights: list[Flight] = []
        """A list: an empty deque takes six hundred bytes."""
        self.in_flight = 0
        self.credit = 0
        self.active = False
        self.waiting: asyncio.TimerHandle | None = None
        self.waits_for = ""
        self.backoff = FIRST_BACKOFF
        self.failed = False
        self.held: Chunk | None = None
        """What was read and waits for its topic to be known."""
        self.retrying = False
        """What was refused is being sent again: nothing new is read meanwhile."""
        self.trouble = ""
        """What Kafka has against this app's records, as long as it has."""
        self.careful_until = 0
        """What is before this position is sent carefully."""
        self.careful_for = 0.0
        """Until this time on the loop's clock everything is."""
        self.behind_since = 0.0
        """Since when, on the loop's clock and at the earliest, there is something that is not in flight; 0 when there is not."""
        self.tailed = source.name.startswith(TAIL_PREFIX)
        self.read_to = source.position
        self.records = 0
        self.rate = 0.0
        self._counted = 0

    def lag(self) -> int:
        """Bytes that are there and not yet sent."""
        return self.source.lag() + (self.held.size if self.held is not None else 0)

    def recall(self, index: int = 0) -> None:
        """What is in its flights from this one on is to be read again."""
        if self.flights and not index:
            self.behind_since = self.flights[0].received
        del self.flights[index:]

    def measure(self, seconds: float) -> None:
        """Bring `rate`, records a second, up to date; called every `seconds`."""
        self.rate = (self.records - self._counted) / seconds
        self._counted = self.records


class Histogram:
    """Counts by upper bound in seconds, as Prometheus wants them."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int) -> None:
        self.counts[bisect.bisect_left(BUCKETS, value)] += times
        self.sum += value * times


def flat(groups: Mapping[str, list[Keyed]]) -> list[Record]:
    return [(topic, key, value) for topic, pairs in groups.items() for key, value in pairs]


def by_topic(records: Iterable[Record]) -> dict[str, list[Keyed]]:
    groups: dict[str, list[Keyed]] = {}
    for topic, key, value in records:
        groups.setdefault(topic, []).append((key, value))
    return groups
