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

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message

from forwarder.config import Config
from forwarder.flight import FIRST_BACKOFF, LONGEST_BACKOFF, Refused
from forwarder.kafka import FOR_GOOD, OF_TOPIC, Kafka, Way

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
        self._closing = threading.Event()

    def judge(self, records: list[Record]) -> Judged | None:
        """Try all; None when the probe was closed."""
        judged = Judged({})
        unknown = dict(enumerate(records))
        backoff = FIRST_BACKOFF
        while unknown:
            try:
                error = self._try({place: unknown[place] for place in list(unknown)[:AT_ONCE]}, unknown, judged)
            except KafkaException:
                self._drop()
                error = True
            if judged.of_topic is not None:
                return judged
            if error and self._closing.wait(backoff):
                return None
            backoff = min(backoff * 2, LONGEST_BACKOFF) if error else FIRST_BACKOFF
        return judged

    def _try(self, some: dict[int, Record], unknown: dict[int, Record], judged: Judged) -> bool:
        """One transaction: what is found out leaves `unknown`. True when nothing was, because Kafka does not answer."""
        kafka = self._kafka or self._connect()
        heard: dict[int, KafkaError | None] = {}
        self._patiently(kafka.begin_transaction)
        for place, (topic, key, value) in some.items():
            for error, _, _ in kafka.send_each(topic, [(key, value)], functools.partial(_hear, heard, place)):
                heard[place] = error
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(heard) < len(some) and not any(heard.values()) and time.monotonic() < deadline:
            kafka.poll()
            if self._closing.wait(POLL_SECONDS):
                break
        answers = dict(heard)
        self._patiently(kafka.abort_transaction)
        found = False
        for place, answer in answers.items():
            topic, key, value = some[place]
            if answer is None:
                del unknown[place]
            elif answer.code() in FOR_GOOD:
                judged.refused[place] = Refused(answer, topic, -1, key, value)
                del unknown[place]
            elif answer.code() in OF_TOPIC:
                judged.of_topic = Refused(answer, topic, -1, key, value)
            else:
                continue
            found = True
        return not found

    def _connect(self) -> Kafka:
        self._kafka = kafka = Kafka(self._config, way=Way.PROBE, topic_changed=lambda name, topic: None)
        self._patiently(kafka.init_transactions)
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
