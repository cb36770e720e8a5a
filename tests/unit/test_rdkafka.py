"""The batch call of librdkafka, with the mock cluster inside it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from forwarder import config, rdkafka
from forwarder.kafka import Kafka, Way
from forwarder.rdkafka import BatchCall, Unavailable
from tests.harness.wait import eventually


@pytest.fixture
def bootstrap() -> Iterator[str]:
    cluster = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    yield ",".join(f"{broker.host}:{broker.port}" for broker in cluster.list_topics(timeout=10).brokers.values())


def connect(bootstrap: str) -> Kafka:
    settings = config.Config(kafka=config.Kafka(bootstrap_servers=bootstrap))
    return Kafka(settings, way=Way.GAPLESS, topic_changed=lambda name, topic: None)


def received(bootstrap: str, topic: str, partition: int, count: int) -> list[bytes]:
    values: list[bytes] = []
    with contextlib.closing(Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "log_level": 0})) as consumer:
        consumer.assign([TopicPartition(topic, partition, 0)])
        while len(values) < count:
            values += [message.value() or b"" for message in consumer.consume(count, timeout=5)]
    return values


def sent(kafka: Kafka, topic: str, records: list[bytes], partition: int) -> list[KafkaError | None]:
    """Send a batch and wait for its report."""
    reports: list[KafkaError | None] = []
    assert kafka.send(topic, records, partition, lambda error, message: reports.append(error)) is None

    def reported() -> bool:
        kafka.poll()
        return bool(reports)

    eventually(reported, what="the report of the last record")
    return reports


RECORDS = [b"one", b"", b"three \x00 with a NUL", b"x" * 100_000, *(b"%d" % number for number in range(5000)), b"last"]


def test_a_batch_arrives_as_it_was_in_the_partition_it_was_sent_to(bootstrap: str) -> None:
    kafka = connect(bootstrap)
    assert sent(kafka, "logs", RECORDS, 2) == [None]
    assert received(bootstrap, "logs", 2, len(RECORDS)) == RECORDS
    kafka.close()


def test_without_the_batch_call_records_arrive_all_the_same(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdkafka, "_is_mapped", lambda address: False)
    kafka = connect(bootstrap)
    assert sent(kafka, "logs", RECORDS, 2) == [None]
    assert received(bootstrap, "logs", 2, len(RECORDS)) == RECORDS
    kafka.close()


def test_the_handle_is_found_in_this_release_of_confluent_kafka() -> None:
    producer = Producer({"bootstrap.servers": "127.0.0.1:9", "client.id": "me", "log_level": 0})
    BatchCall(producer, "me").close()
    with pytest.raises(Unavailable, match="does not tell the producer's name"):
        BatchCall(producer, "somebody else")


def test_a_record_that_librdkafka_will_not_queue_is_an_error_at_once(bootstrap: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "client.id": "me", "message.max.bytes": 2000, "log_level": 0})
    call = BatchCall(producer, "me")
    error = call.send("logs", [b"good", b"x" * 3000], 0)
    assert error is not None
    assert error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    call.close()


def test_a_full_queue_is_an_error_at_once(bootstrap: str) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "client.id": "me", "queue.buffering.max.messages": 10, "linger.ms": 1000, "log_level": 0}
    )
    call = BatchCall(producer, "me")
    error = call.send("logs", [b"record"] * 20, 0)
    assert error is not None
    assert error.code() == KafkaError._QUEUE_FULL
    call.close()


def test_an_impossible_topic_is_an_error_at_once() -> None:
    producer = Producer({"bootstrap.servers": "127.0.0.1:9", "client.id": "me", "log_level": 0})
    call = BatchCall(producer, "me")
    error = call.send("x" * 1000, [b"record"], 0)
    assert error is not None
    assert error.code() == KafkaError._INVALID_ARG
    call.close()


def test_a_producer_that_is_closed_answers_no_question_and_its_thread_ends() -> None:
    settings = config.Config(kafka=config.Kafka(bootstrap_servers="127.0.0.1:9"))
    answers: list[str] = []
    before = set(threading.enumerate())
    kafka = Kafka(settings, way=Way.GAPLESS, topic_changed=lambda name, topic: answers.append(name))
    for number in range(5):
        kafka.ask(f"topic {number}")
    kafka.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert answers == []


def test_what_is_handed_over_between_two_polls_stays_until_the_second_of_them(bootstrap: str) -> None:
    settings = config.Config(kafka=config.Kafka(bootstrap_servers=bootstrap))
    kafka = Kafka(settings, way=Way.BATCHED, topic_changed=lambda name, topic: None)
    places: list[tuple[int | None, int | None]] = []

    def report(error: KafkaError | None, message: Message) -> None:
        assert error is None
        places.append((message.partition(), message.offset()))
        if len(places) == 1:
            assert not kafka.send_each("t", [(b"key", b"again")], report)
            # Long enough to leave, were it not held back; the passing of time is the point here.
            time.sleep(0.2)

    assert not kafka.send_each("t", [(b"key", b"first")], report)

    def polled(count: int) -> bool:
        kafka.poll()
        return len(places) == count

    eventually(lambda: polled(1), what="the report of the first")
    partition = places[0][0] or 0
    with contextlib.closing(Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "log_level": 0})) as consumer:
        assert consumer.get_watermark_offsets(TopicPartition("t", partition), timeout=5) == (0, 1)
    eventually(lambda: polled(2), what="the report of the second")
    assert places == [(partition, 0), (partition, 1)]
    kafka.close()
