"""The one place that talks to librdkafka.

Two ways to send. `send` hands a whole batch for one partition to librdkafka in one call (see rdkafka) and hears of its last
record only. That is sound because the reports of one partition come in order and the gapless guarantee is on: a record that
fails for good makes the producer fatal, and `fatal` is set before the report of any record behind it is served. A success that
is reported while `fatal` is set proves nothing: Kafka may have stored a batch behind the one it refused. `send_each` hears of
every record, for records that keys spread over partitions and for finding the one that made a producer fatal.

In transactions no report is needed: a commit that succeeds proves all that was sent, however it was sent. The calls about them
wait, each for `STEP_SECONDS` at most, and are for another thread than the event loop's. One of them may hang: it is left alone
after `HUNG_SECONDS`, and the producer with it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import os
import queue
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
    libversion,
)

from forwarder.config import Config
from forwarder.rdkafka import BatchCall, Unavailable

log = logging.getLogger("forwarder.kafka")

Report = Callable[[KafkaError | None, Message], Any]

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
METADATA_TIMEOUT = 5.0
FLUSH_SECONDS = 0.002
LONGEST_LINGER_MS = 900_000
STEP_SECONDS = 1.0
HUNG_SECONDS = 5
"""librdkafka 2.16 may wait for ever for the coordinator of a group, whatever time it is given: it sleeps until any connection
changes, and none does once the broker that it waits for is no longer named by the others (its issues 5456 and 5511)."""
ADMIN_SECONDS = 3.0
REBOOTSTRAPS = 0x020B0000
TRANSACTION_RETRY_MS = 10
"""A transaction that begins while the markers of the one before are still being written is asked to come again. librdkafka's
default, 100 ms, was most of what a transaction took; with this one takes 5."""
REPEAT_SECONDS, MOST_REPEATS = 60.0, 200
STRANDED_AFTER = 2
"""So many times in a row another client was answered and the producer, asked before it, was not: never a matter of moments."""

FOR_GOOD = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.POLICY_VIOLATION,
    }
)
"""Errors of the record: sending it again cannot help."""

OF_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    }
)
"""Errors of a topic, or of how it and we are set up: its apps wait, others go on.

A record has the time at which it was handed to librdkafka, and gets a new one when it is sent again. A topic that refuses it
nonetheless (`message.timestamp.before.max.ms`, `after.max.ms`) does so for all records, as does a clock that is wrong: no reason
to set aside everything. Nor is a codec that the broker does not know.

Any other error is waited out too.
"""


def client_properties(config: Config) -> dict[str, Any]:
    """What any client needs to reach the brokers: address, security, the user's own properties."""
    return {
        "bootstrap.servers": config.kafka.bootstrap_servers,
        "client.id": "forwarder",
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        "log.connection.close": False,
        **config.kafka.properties,
    }


class Way(enum.Enum):
    """How a producer treats a record that fails for good."""

    GAPLESS = "becomes fatal, so that the success of a record proves all before it on its partition"
    BATCHED = "reports it, with whatever else was in its batch: all for one partition that was handed over between two polls"
    SINGLE = "reports it alone: each record is a batch"
    TRANSACTION = "has its whole transaction aborted"
    PROBE = "has a transaction aborted that is aborted anyway"


def transactional_id(config: Config) -> str:
    """Of the one producer, and of the group that keeps the numbers of its transactions."""
    return f"forwarder-{config.agent.name}"


def probe_id(config: Config) -> str:
    """The transactional id of the producer that tries records without effect."""
    return f"{transactional_id(config)}-probe"


def producer_properties(config: Config, way: Way) -> dict[str, Any]:
    """Those of a producer."""
    properties = {
        "linger.ms": 1,
        "topic.metadata.propagation.max.ms": 5000,
        "partitioner": "murmur2_random",
        **client_properties(config),
        "acks": "all",
        "enable.idempotence": True,
        "enable.gapless.guarantee": way is Way.GAPLESS,
        "compression.type": config.kafka.compression,
        # librdkafka must never give up on a record: that is the shipper's to decide.
        "message.timeout.ms": 0,
        "queue.buffering.max.kbytes": max(4 * config.kafka.in_flight // 1024, 64 * 1024),
        "queue.buffering.max.messages": 0,
    }
    if libversion()[1] >= REBOOTSTRAPS:
        # After it has begun anew with its brokers, librdkafka 2.16 waits for ever for a group's coordinator, and was once seen
        # not to look for leaders again after a long outage.
        properties.setdefault("metadata.recovery.strategy", "none")
    # The broker judges the size, after compression; this limit would refuse before it.
    properties.setdefault("message.max.bytes", MAX_MESSAGE_BYTES)
    if way is Way.SINGLE:
        properties["batch.num.messages"] = 1
    if way is Way.BATCHED:
        # Of what is refused the next records of its key must not have been stored: no batch leaves before all is handed over.
        properties.update({"linger.ms": LONGEST_LINGER_MS, "batch.num.messages": 1_000_000, "batch.size": MAX_MESSAGE_BYTES})
        properties["message.max.bytes"] = MAX_MESSAGE_BYTES
    if way in {Way.TRANSACTION, Way.PROBE}:
        properties.setdefault("retry.backoff.ms", TRANSACTION_RETRY_MS)
        properties["transactional.id"] = probe_id(config) if way is Way.PROBE else transactional_id(config)
    return properties


def _any_turn() -> int:
    return int.from_bytes(os.urandom(2), "big")


class Topic(msgspec.Struct):
    """What is known of a topic: the partitions that have a leader, or what is wrong with it.

    Each agent begins with another partition: those of a fleet that began with the same one would all write to one broker, and
    go on to the next together.
    """

    partitions: list[int] = []
    problem: str = ""
    permanent: bool = False
    stranded: bool = False
    """Kafka answers others, but never this producer again."""
    turn: int = msgspec.field(default_factory=_any_turn)
    sent: int = 0
    asked: float = 0.0
    failures: int = 0


class Kafka:
    """One producer. All calls come from one thread; `topic_changed` is called from another one."""

    def __init__(self, config: Config, *, way: Way, topic_changed: Callable[[str, Topic], None], batch_bytes: int = 0) -> None:
        """`batch_bytes` are the most in a batch of several records, where that is less than usual."""
        self.fatal = ""
        """Why the producer can send nothing more, or empty."""
        self.connected = False
        self._way = way
        self._largest = int(config.kafka.properties.get("message.max.bytes", MAX_MESSAGE_BYTES))
        """Of a record: what the user allows. To librdkafka the same is a limit of batches, which may be larger."""
        self._heard: list[tuple[Report, KafkaError | None, Message]] = []
        self._config = config
        self._reached = False
        self._unanswered = 0
        properties = producer_properties(config, way)
        if batch_bytes:
            properties["batch.size"] = batch_bytes
        self._producer = Producer({**properties, "error_cb": _weakly(self._on_error), "logger": _client_log})
        try:
            self._batch: BatchCall | None = BatchCall(self._producer, str(properties["client.id"]))
        except Unavailable as error:
            log.warning("records are handed to librdkafka one by one, at twice the cost: %s", error)
            self._batch = None
        self._topic_changed = topic_changed
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._look_up, args=(self._producer,), name="forwarder-metadata", daemon=True).start()

    def send(self, topic: str, records: list[bytes], partition: int, last: Report) -> KafkaError | None:
        """Queue `records`, at least one, for one partition; `last` hears of the last. An error means that it will not."""
        produce = self._producer.produce
        try:
            if self._batch is None:
                for record in records[:-1]:
                    produce(topic, record, None, partition)
            elif len(records) > 1:
                error = self._batch.send(topic, records[:-1], partition)
                if error is not None:
                    return error
            produce(topic, records[-1], None, partition, last)
        except KafkaException as error:
            return error.args[0]  # type: ignore[no-any-return]
        except BufferError:
            return KafkaError(KafkaError._QUEUE_FULL)
        return None

    def send_each(
        self, topic: str, records: Sequence[tuple[bytes | None, bytes]], each: Report
    ) -> list[tuple[KafkaError, bytes | None, bytes]]:
        """Queue pairs of key and value; `each` hears of every record queued. Returns those refused, each with its error."""
        refused = []
        report = functools.partial(self._hear, each) if self._way is Way.BATCHED else each
        for key, value in records:
            if len(value) + len(key or b"") > self._largest:
                refused.append((KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), key, value))
                continue
            try:
                self._producer.produce(topic, value, key, -1, report)
            except KafkaException as error:
                refused.append((error.args[0], key, value))
            except BufferError:
                refused.append((KafkaError(KafkaError._QUEUE_FULL), key, value))
        return refused

    def poll(self) -> None:
        """Serve reports; of BATCHED also have sent what was handed over."""
        try:
            if self._way is Way.BATCHED:
                self._flush()
            else:
                self._producer.poll(0)
        except KafkaException as error:
            self._on_error(error.args[0])

    def _flush(self) -> None:
        self._producer.flush(FLUSH_SECONDS)
        # Only now: what is handed over during the flush would leave piece by piece.
        heard, self._heard = self._heard, []
        for each, error, message in heard:
            each(error, message)

    def _hear(self, each: Report, error: KafkaError | None, message: Message) -> None:
        self._heard.append((each, error, message))

    def ask(self, topic: str) -> None:
        """Have the topic looked up in the background; `topic_changed` gets the answer."""
        self._asked.put(topic)

    def _look_up(self, producer: Producer) -> None:
        while (name := self._asked.get()) is not None and not self._closed:
            topic = self._topic(producer, name)
            if not self._closed:
                self._topic_changed(name, topic)

    def _topic(self, producer: Producer, name: str) -> Topic:
        try:
            found = producer.list_topics(name, timeout=METADATA_TIMEOUT).topics[name]
        except KafkaException as error:
            return Topic(problem=f"Kafka does not answer: {error.args[0].str()}", stranded=self._is_stranded(name))
        except Exception as error:  # the thread must go on, or apps would wait for ever
            return Topic(problem=f"the topic cannot be looked up: {error!r}")
        self.connected = self._reached = True
        self._unanswered = 0
        if found.error is not None and found.error.code() != KafkaError.LEADER_NOT_AVAILABLE:
            return Topic(problem=found.error.str(), permanent=found.error.code() in OF_TOPIC)
        led = [number for number, partition in sorted(found.partitions.items()) if partition.leader >= 0]
        return Topic(partitions=led) if led else Topic(problem="no partition has a leader")

    def _is_stranded(self, name: str) -> bool:
        """Whether this producer, which was not answered now, will never be.

        librdkafka forgets brokers that are not in the last metadata it was sent: those of a cluster that has just been started
        again may name none, and a broker may come back at another address. With `metadata.recovery.strategy=none` it then
        stays without brokers for ever; of 50 agents whose three brokers were restarted, 11 did. A producer that is connected may
        just be slow: its question then waits behind what it sends.
        """
        self._unanswered = self._unanswered + 1 if self._reached and not self.connected and _answers(self._config, name) else 0
        return self._unanswered >= STRANDED_AFTER

    # Transactions. Each call raises KafkaException, and those that time out may be called again to go on.

    def init_transactions(self) -> None:
        """Fence older producers of this name and end what they left open."""
        self._producer.init_transactions(STEP_SECONDS)
        self.connected = True

    def begin_transaction(self) -> None:
        self._producer.begin_transaction()

    def add_number(self, topic: str, number: int, writer: str, group: object) -> None:
        """Have the transaction, when it is committed, leave its number as an offset of the group.

        After an error that is neither retriable nor asks for an abort the producer is of no use any more.
        """
        send, offsets = self._producer.send_offsets_to_transaction, [TopicPartition(topic, 0, number, writer)]
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def wait() -> None:
            try:
                send(offsets, group, STEP_SECONDS)
            except Exception as error:  # it is raised where the outcome is waited for
                ended.put(error)
            else:
                ended.put(None)

        threading.Thread(target=wait, name="forwarder-number", daemon=True).start()
        error: Exception | None = KafkaException(
            KafkaError(KafkaError._TIMED_OUT, "librdkafka waits for a coordinator that is gone")
        )
        for _ in range(HUNG_SECONDS):  # one by one: an agent that was frozen for long has not waited for long
            with contextlib.suppress(queue.Empty):
                error = ended.get(timeout=1.0)
                break
        if error is not None:
            raise error

    def commit_transaction(self) -> None:
        """Wait for all that was sent, and commit."""
        self._producer.commit_transaction(STEP_SECONDS)

    def abort_transaction(self) -> None:
        """Give up what was sent, whether or not it has arrived."""
        self._producer.abort_transaction(STEP_SECONDS)

    def close(self) -> None:
        """Give up what is queued; nothing is reported or answered any more. Does not wait."""
        if self._batch is not None:
            self._batch.close()
        self._producer.purge(blocking=False)
        # Its last reference goes with the thread, because its end waits for threads of its own.
        del self._producer
        self._closed = True
        self._asked.put(None)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self.fatal = error.str()
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.connected = False


def _answers(config: Config, topic: str) -> bool:
    """Whether Kafka answers a client that begins with the configured brokers. Blocks."""
    client = Producer({**client_properties(config), "logger": _client_log})
    try:
        return bool(client.list_topics(topic, timeout=METADATA_TIMEOUT).brokers)
    except KafkaException:
        return False


class Numbered(NamedTuple):
    """The number of a committed transaction, who made it, and the topic by which the group keeps it."""

    number: int
    writer: str
    topic: str


def last_number(config: Config, *, stable: bool) -> Numbered | None:
    """The number of the last committed transaction, None when there is none; `stable`: only when none is open that may leave
    another. Raises KafkaException. Blocks.

    All topics are looked through, since the one that holds it may be known to Kafka alone. A consumer asks, though the admin
    client could tell in one question: librdkafka 2.16 ends the process when a group's coordinator is still loading.
    """
    properties: dict[str, Any] = {**client_properties(config), "logger": _client_log, "group.id": transactional_id(config)}
    properties["isolation.level"] = "read_committed" if stable else "read_uncommitted"
    consumer = Consumer({**properties, "enable.auto.commit": False})
    try:
        topics = consumer.list_topics(timeout=ADMIN_SECONDS).topics
        found = []
        for place in consumer.committed([TopicPartition(name, 0) for name in topics], ADMIN_SECONDS) if topics else []:
            if place.error is not None:
                raise KafkaException(place.error)
            if place.offset >= 0:
                found.append(Numbered(place.offset, place.metadata or "", place.topic))
    finally:
        consumer.close()
    return max(found, default=None)


def transactional_problem(config: Config, name: str) -> KafkaError | None:
    """Why this user may not use the transactional id, or cannot. Blocks. Disturbs nobody who uses it, unless the broker's
    `transaction.max.timeout.ms` is the largest there is: an agent that runs then goes on with a new producer.

    The broker looks at rights before it looks at the timeout, and at a timeout that it does not allow before it does anything.
    """
    properties = {**client_properties(config), "transactional.id": name, "transaction.timeout.ms": 2**31 - 1}
    producer = Producer({**properties, "logger": _client_log})
    try:
        producer.init_transactions(METADATA_TIMEOUT)
    except KafkaException as error:
        problem: KafkaError = error.args[0]
        return None if problem.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT else problem
    return None


def group_metadata(config: Config) -> object:
    """What a transaction needs to know of the group; nobody joins it."""
    consumer = Consumer({"group.id": transactional_id(config), "logger": _client_log})
    try:
        return consumer.consumer_group_metadata()
    finally:
        consumer.close()


def _weakly(method: Callable[[KafkaError], None]) -> Callable[[KafkaError], None]:
    """A callable that does not keep the method's object: a producer that held its owner would never be freed."""
    reference = weakref.WeakMethod(method)

    def call(error: KafkaError) -> None:
        alive = reference()
        if alive is not None:
            alive(error)

    return call


class _Quiet(logging.Filter):
    """Keeps out what librdkafka says about settings chosen knowingly, and lets a line that repeats through once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "enable.gapless.guarantee" in text or "is a producer property and will be ignored" in text:
            return False
        alike = re.sub(r"\d+", "", text)
        if record.created - self._last.get(alike, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._last) > MOST_REPEATS:
            self._last.clear()
        self._last[alike] = record.created
        return True


_client_log = logging.getLogger("forwarder.kafka.client")
_client_log.addFilter(_Quiet())
