"""A broker in memory, in place of librdkafka and Kafka, for the real shipper: it takes batches in the order in which they came.

It can be away, slow, refuse what it has not taken yet, or make its producers fatal. What it has not taken when a producer is
closed is gone; a crash of the agent may find the first of that taken, and nobody told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from confluent_kafka import KafkaError, Message

from forwarder.config import Config
from forwarder.flight import Flight, Lane
from forwarder.kafka import Report, Topic, Way
from tests.harness.virtual import VirtualLoop

METADATA_TIMEOUT = 5.0
FATAL = "made so by the test"


class Taken(NamedTuple):
    """A record that arrived, and where it came from: the lane of its source, and the position behind its chunk."""

    value: bytes
    lane: Lane
    end: int


@dataclass
class _Batch:
    producer: FakeKafka
    records: list[bytes]
    report: Report
    told: list[bytes]
    """Of which records `report` hears."""
    due: float
    topic: str
    error: KafkaError | None = None

    @property
    def flight(self) -> Flight:
        # Who hears of a record is the one who knows where it came from.
        return cast(Flight, cast(Any, self.report).__self__)


@dataclass
class Broker:
    loop: VirtualLoop
    taken: list[Taken] = field(default_factory=list)
    away: bool = False
    latency: float = 0.002
    full: int = 0
    """So many batches are not even queued."""
    _queue: deque[_Batch] = field(default_factory=deque)
    _producers: list[FakeKafka] = field(default_factory=list)

    def connect(self, config: Config, *, way: Way, topic_changed: Callable[[str, Topic], None]) -> FakeKafka:
        """What stands in for the class `Kafka`."""
        producer = FakeKafka(self, topic_changed)
        self._producers.append(producer)
        return producer

    @property
    def in_flight(self) -> int:
        return len(self._queue)

    @property
    def troubled(self) -> bool:
        """Whether something is to be refused, or has been and the shipper has not heard of it yet."""
        return bool(self.full or any(batch.error for batch in self._queue) or any(each.fatal for each in self._producers))

    def refuse(self) -> None:
        """What is in flight fails."""
        for batch in self._queue:
            batch.error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)

    def make_fatal(self, *, told: bool = False) -> None:
        """Each producer fails for good, with all it has in flight; or, if that is to be `told`, with all but the last record of
        its first batch, and the rest is reported as stored in the same poll."""
        for producer in self._producers:
            if told:
                producer.fails = True
            else:
                producer.fatal = FATAL

    def crash(self, stored: int) -> None:
        """The agent is killed: the first `stored` batches in flight have arrived all the same."""
        for batch in list(self._queue)[:stored]:
            self._store(batch)
        self._queue.clear()
        self._producers.clear()

    def _store(self, batch: _Batch) -> None:
        self.taken += [Taken(record, batch.flight.lane, batch.flight.end) for record in batch.records]

    def queue(self, producer: FakeKafka, topic: str, records: list[bytes], report: Report, told: list[bytes]) -> bool:
        if producer not in self._producers:
            return True  # its agent was killed: this does not happen
        if self.full:
            self.full -= 1
            return False
        # Nothing overtakes: what comes behind something that fails does so too.
        error = self._queue[-1].error if self._queue else None
        self._queue.append(_Batch(producer, records, report, told, self.loop.time() + self.latency, topic, error))
        return True

    def serve(self, producer: FakeKafka) -> None:
        """Take what is due and tell of it, as long as it is this producer's."""
        queue = self._queue
        fails = producer.fails and bool(queue) and queue[0].producer is producer and queue[0].due <= self.loop.time()
        if fails:
            producer.fatal, producer.fails = FATAL, False
            queue[0].records = queue[0].records[-1:]
        while queue and queue[0].producer is producer and (fails or not producer.fatal):
            batch = queue[0]
            if self.away or batch.due > self.loop.time():
                break
            queue.popleft()
            if batch.error is None:
                self._store(batch)
            for record in batch.told:
                batch.report(batch.error, cast(Any, Message)(topic=batch.topic, partition=0, key=None, value=record))

    def forget(self, producer: FakeKafka) -> None:
        self._producers = [other for other in self._producers if other is not producer]
        self._queue = deque(batch for batch in self._queue if batch.producer is not producer)


class FakeKafka:
    """The public face of `forwarder.kafka.Kafka`."""

    def __init__(self, broker: Broker, topic_changed: Callable[[str, Topic], None]) -> None:
        self.fatal = ""
        self.fails = False
        """Whether it becomes fatal when it serves its next report."""
        self.connected = False
        self._broker = broker
        self._topic_changed = topic_changed
        self._closed = False

    def send(self, topic: str, records: list[bytes], partition: int, last: Report) -> KafkaError | None:
        if self._broker.queue(self, topic, records, last, records[-1:]):
            return None
        return KafkaError(KafkaError._QUEUE_FULL)

    def send_each(
        self, topic: str, records: Sequence[tuple[bytes | None, bytes]], each: Report
    ) -> list[tuple[KafkaError, bytes | None, bytes]]:
        values = [value for _, value in records]
        if self._broker.queue(self, topic, values, each, values):
            return []
        return [(KafkaError(KafkaError._QUEUE_FULL), key, value) for key, value in records]

    def poll(self) -> None:
        self._broker.serve(self)

    def ask(self, topic: str) -> None:
        if self._broker.away:
            self._broker.loop.call_later(METADATA_TIMEOUT, self._answer, topic, Topic(problem="Kafka does not answer"))
        else:
            self._answer(topic, Topic(partitions=[0]))

    def _answer(self, name: str, topic: Topic) -> None:
        if not self._closed:
            self._topic_changed(name, topic)

    def close(self) -> None:
        self._closed = True
        self._broker.forget(self)
