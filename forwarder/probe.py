"""Which of some records does Kafka refuse? Found out in transactions that are always aborted, so that nobody ever reads them.

A refused record has its whole transaction aborted, and with it what others had sent. So whose records came to that is no part
of a transaction until each has been tried here: alone in its batch, by a producer of its own, which has nothing to do with
the numbers of the other one's transactions. Others go on meanwhile.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from itertools import islice

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from forwarder.config import Config
from forwarder.flight import FIRST_BACKOFF, LONGEST_BACKOFF, Refused
from forwarder.kafka import FOR_GOOD, OF_TOPIC, Kafka, Way, group_metadata

AT_ONCE = 200
POLL_SECONDS = 0.002
PATIENCE_SECONDS = 10.0

Record = tuple[str, bytes | None, bytes]
"""Topic, key and value."""


class Judged(msgspec.Struct):
    """By their places among the records: those refused for good. `of_topic` is an error of a topic: nothing is known then."""

    refused: dict[int, Refused]
    of_topic: Refused | None = None


class Probe:
    """Calls wait, and come from one thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._kafka: Kafka | None = None
        self._group: object = None
        self._closing = threading.Event()

    def judge(self, records: list[Record]) -> Judged | None:
        """Try all; None when the probe was closed."""
        judged = Judged({})
        unknown = dict(enumerate(records))
        backoff = FIRST_BACKOFF
        while unknown and judged.of_topic is None:
            try:
                found = self._try(unknown, judged)
            except KafkaException:
                self._drop()
                found = False
            if not found and self._closing.wait(backoff):
                return None
            backoff = FIRST_BACKOFF if found else min(backoff * 2, LONGEST_BACKOFF)
        return judged

    def _try(self, unknown: dict[int, Record], judged: Judged) -> bool:
        """One transaction of records of one topic: those found out about leave `unknown`. False when Kafka does not answer."""
        kafka = self._kafka or self._connect()
        topic = next(iter(unknown.values()))[0]
        some = dict(islice(((place, record) for place, record in unknown.items() if record[0] == topic), AT_ONCE))
        heard: dict[int, KafkaError | None] = {}
        self._patiently(kafka.begin_transaction)
        for place, (_, key, value) in some.items():
            for refusal, _, _ in kafka.send_each(topic, [(key, value)], functools.partial(_hear, heard, place)):
                heard[place] = refusal
        of_all = self._listen(kafka, topic, heard, len(some))
        answers = dict(heard)
        try:
            self._patiently(kafka.abort_transaction)
        except KafkaException:  # as when it has never begun, because nothing of it was allowed
            self._drop()
        for error in (of_all, *answers.values()):
            if error is not None and error.code() in OF_TOPIC:
                judged.of_topic = Refused(error, topic, -1, None, b"")
                return True
        found = False
        for place, answer in answers.items():
            if answer is not None and answer.code() not in FOR_GOOD:
                continue
            if answer is not None:
                judged.refused[place] = Refused(answer, topic, -1, *some[place][1:])
            del unknown[place]
            found = True
        return found

    def _listen(self, kafka: Kafka, topic: str, heard: dict[int, KafkaError | None], count: int) -> KafkaError | None:
        """Until all of `count` or an error is heard of, or nothing for too long; returns an error that is none of a record's."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(heard) < count and not any(heard.values()) and time.monotonic() < deadline:
            kafka.poll()
            if self._closing.wait(POLL_SECONDS):
                break
        if any(error is None or error.code() in FOR_GOOD for error in heard.values()):
            return None
        # A transaction that may not write to a topic says so only when it is asked for something.
        try:
            kafka.add_number(topic, 0, "", self._group)
        except KafkaException as error:
            return error.args[0]  # type: ignore[no-any-return]
        return None

    def _connect(self) -> Kafka:
        self._kafka = kafka = Kafka(self._config, way=Way.PROBE, topic_changed=lambda name, topic: None)
        self._patiently(kafka.init_transactions)
        self._group = group_metadata(self._config)
        return kafka

    def _patiently(self, call: Callable[[], None]) -> None:
        """Call until it is done; raises KafkaException for what does not pass by itself, or when the probe is closed."""
        while True:
            try:
                call()
                return
            except KafkaException as error:
                if not error.args[0].retriable() or self._closing.wait(POLL_SECONDS):
                    raise

    @property
    def awake(self) -> bool:
        return self._kafka is not None

    def rest(self) -> None:
        """Give up the producer until it is needed again."""
        self._drop()

    def _drop(self) -> None:
        if self._kafka is not None:
            self._kafka.close()
            self._kafka = None

    def close(self) -> None:
        """May be called from any thread; whoever waits in `judge` gets None soon."""
        self._closing.set()


def _hear(heard: dict[int, KafkaError | None], place: int, error: KafkaError | None, message: Message) -> None:
    heard.setdefault(place, error)
