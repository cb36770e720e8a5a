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
from confluent_kafka import KafkaError, KafkaException

from forwarder.config import Config
from forwarder.flight import FIRST_BACKOFF, LONGEST_BACKOFF, Keyed, Record, Refused
from forwarder.halving import try_all
from forwarder.kafka import FOR_GOOD, OF_TOPIC, Kafka, Way, group_metadata

POLL_SECONDS = 0.002
PATIENCE_SECONDS = 10.0


class Judged(msgspec.Struct):
    """By their places among the records: those refused for good. `of_topic` is an error of a topic: nothing is known then."""

    refused: dict[int, Refused]
    of_topic: Refused | None = None


class _OfTopic(Exception):
    """Nothing more can be found out."""


class _Closed(Exception):
    """The probe was closed."""


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
        places: dict[str, list[int]] = {}
        for place, (topic, _, _) in enumerate(records):
            places.setdefault(topic, []).append(place)
        try:
            for of_topic in places.values():
                try_all(of_topic, functools.partial(self._refused, judged, records), few=1)
        except _OfTopic:
            pass
        except _Closed:
            return None
        return judged

    def _refused(self, judged: Judged, records: list[Record], places: list[int], alone: bool) -> list[int]:
        """All or none of these records of one topic. Raises _OfTopic, _Closed."""
        topic, key, value = records[places[0]]
        error = self._answer(topic, [records[place][1:] for place in places])
        if error is None:
            return []
        if error.code() in OF_TOPIC:
            judged.of_topic = Refused(error, topic, -1, None, b"")
            raise _OfTopic
        if alone:
            judged.refused[places[0]] = Refused(error, topic, -1, key, value)
        return places

    def _answer(self, topic: str, records: list[Keyed]) -> KafkaError | None:
        """What Kafka has against the topic, or for good against one of the records. Raises _Closed."""
        backoff = FIRST_BACKOFF
        while True:
            try:
                errors = self._try(topic, records)
            except KafkaException:
                self._drop()
                errors = None
            for bad in (OF_TOPIC, FOR_GOOD):
                for error in errors or ():
                    if error.code() in bad:
                        return error
            if errors is not None and not errors:
                return None
            if self._closing.wait(backoff):
                raise _Closed
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    def _try(self, topic: str, records: list[Keyed]) -> list[KafkaError] | None:
        """The errors of one transaction of these records; None when Kafka does not say what becomes of all."""
        kafka = self._kafka or self._connect()
        heard: list[KafkaError | None] = []
        self._patiently(kafka.begin_transaction)
        heard += [refusal for refusal, _, _ in kafka.send_each(topic, records, lambda error, message: heard.append(error))]
        of_all = self._listen(kafka, topic, heard, len(records))
        answers = [of_all, *heard]
        try:
            self._patiently(kafka.abort_transaction)
        except KafkaException:  # as when it has never begun, because nothing of it was allowed
            self._drop()
        errors = [error for error in answers if error is not None]
        return errors if errors or len(answers) > len(records) else None

    def _listen(self, kafka: Kafka, topic: str, heard: list[KafkaError | None], count: int) -> KafkaError | None:
        """Until all of `count` or an error is heard of, or nothing for too long; returns an error that is none of a record's."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(heard) < count and not any(heard) and time.monotonic() < deadline:
            kafka.poll()
            if self._closing.wait(POLL_SECONDS):
                break
        if any(error is None or error.code() in FOR_GOOD for error in heard):
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
