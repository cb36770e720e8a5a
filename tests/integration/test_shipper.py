"""A real agent ships to a real Kafka that refuses, lacks topics, goes away, hangs or dies: nothing is lost, nobody else waits."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka, Record
from tests.harness.native import connect
from tests.harness.oracle import Verdict, judge
from tests.harness.wait import eventually

pytestmark = pytest.mark.slow

NOBODY = "127.0.0.1:9"
"""An address at which no Kafka is."""
CHUNK_RECORDS = 5000


@pytest.fixture(scope="module")
def unsteady() -> Iterator[Kafka]:
    """A broker that tests may stop, kill and freeze, and leave running; it makes no topic by itself."""
    with tempfile.TemporaryDirectory(prefix="fwd-kafka-") as directory:
        cluster = Kafka(Path(directory), extra="auto.create.topics.enable=false")
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def new_topic(kafka: Kafka, name: str = "", **options: Any) -> str:
    """A topic of its own for one test; `name` is how its name ends."""
    topic = f"t-{uuid.uuid4().hex[:12]}{name}"
    kafka.create_topic(topic, **options)
    return topic


def up(kafka: Kafka, topic: str) -> None:
    """Start the broker again and wait until it serves the topic."""
    kafka.up()
    eventually(lambda: sum(kafka.end_offsets(topic).values()) >= 0, what="the broker to serve the topic")


def lines(count: int, writer: str = "w", first: int = 0, fill: int = 0) -> list[bytes]:
    text = b"x" * fill
    name = writer.encode()
    return [b'{"writer":"%s","seq":%d,"text":"%s"}' % (name, number, text) for number in range(first, first + count)]


def poison(size: int, number: int = 0, writer: str = "p") -> bytes:
    """A record that compression does not make small."""
    return b'{"writer":"%s","seq":%d,"text":"%s"}' % (writer.encode(), number, os.urandom(size // 2).hex().encode())


def send(agent: Agent, records: list[bytes], app: str = "shop") -> None:
    """Send records and wait until all are acknowledged: the agent has them on disk."""
    with connect(agent.socket) as peer:
        peer.greet(app=app, session=uuid.uuid4().hex)
        for start in range(0, len(records), CHUNK_RECORDS):
            peer.send(records[start : start + CHUNK_RECORDS])
        peer.await_ack(len(records))


def source(agent: Agent, app: str) -> dict[str, Any]:
    sources: list[dict[str, Any]] = agent.status()["sources"]
    (found,) = [each for each in sources if each["app"] == app]
    return found


def delivered(agent: Agent, topic: str = "") -> int:
    counts: dict[str, int] = agent.status()["kafka"]["delivered"]
    return counts.get(topic, 0) if topic else sum(counts.values())


def await_settled(agent: Agent, timeout: float = 30) -> None:
    """Wait until everything that the agent has is in Kafka or set aside."""

    def settled() -> bool:
        status = agent.status()
        kafka = status["kafka"]
        return (kafka["in_flight_bytes"], kafka["oldest_unacked_seconds"]) == (0, 0) and not any(
            each["lag_bytes"] for each in status["sources"]
        )

    eventually(settled, timeout, "everything to be settled")


def no_loss(verdict: Verdict) -> None:
    """Everything arrived and nothing else; repetition is allowed."""
    assert (verdict.lost, verdict.alien) == (0, 0), verdict


def dead_letters(agent: Agent, app: str = "shop") -> list[dict[str, Any]]:
    file = agent.state / "dead" / f"{app}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def logged(agent: Agent, pattern: str) -> list[str]:
    return [line for line in agent.log().splitlines() if re.search(pattern, line)]


def numbers(records: Iterable[Record]) -> dict[bytes | None, list[int]]:
    """The numbers of each key's records, in the order in which they lie in Kafka."""
    found: dict[bytes | None, list[int]] = {}
    for record in records:
        found.setdefault(record.key, []).append(json.loads(record.value)["seq"])
    return found


def murmur2(data: bytes) -> int:
    """The hash by which Kafka's Java clients choose a partition, as org.apache.kafka.common.utils.Utils computes it."""
    mask, mixer = 0xFFFFFFFF, 0x5BD1E995
    value = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * mixer & mask
        word = (word ^ word >> 24) * mixer & mask
        value = (value * mixer & mask) ^ word
    if rest := data[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * mixer & mask
    value = (value ^ value >> 13) * mixer & mask
    return value ^ value >> 15


def java_partition(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions


# Records that Kafka refuses


def test_a_record_too_large_for_kafka_is_set_aside_and_all_others_arrive(kafka: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(kafka, config={"max.message.bytes": "2000"})
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    large = poison(100_000)
    send(running, [*lines(500), large, *lines(500, first=500)])
    await_settled(running)

    verdict = judge(kafka.values(topic, expected=1000), {"w": 1000})
    verdict.assert_exact()
    (letter,) = dead_letters(running)
    assert (letter["topic"], letter["value"]) == (topic, large.decode())
    assert "too large" in letter["reason"]
    assert running.metric("forwarder_records_dead_total", reason="MSG_SIZE_TOO_LARGE") == 1
    assert running.metric("forwarder_records_delivered_total", topic=topic) == 1000
    assert len(logged(running, "refused for good")) == 1
    assert any("refused for good" in error for error in running.status()["errors"])

    assert running.terminate() == 0
    running.start()
    send(running, lines(10, first=1000))
    await_settled(running)
    judge(kafka.values(topic, expected=1010), {"w": 1010}).assert_exact()
    assert len(dead_letters(running)) == 1, "the position moved past the refused record"


def test_many_refused_records_one_behind_another_are_all_set_aside(kafka: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(kafka, config={"max.message.bytes": "2000"})
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    refused = [poison(5_000, number) for number in range(20)]
    mixed = [record for pair in zip(refused, lines(20), strict=True) for record in pair]
    send(running, mixed)
    await_settled(running)
    judge(kafka.values(topic, expected=20), {"w": 20}).assert_exact()
    assert sorted(letter["value"] for letter in dead_letters(running)) == sorted(record.decode() for record in refused)


@pytest.mark.parametrize("key", [None, "{field:writer}"], ids=["no key", "key"])
def test_a_record_too_large_for_the_user_s_own_limit_is_set_aside_too(
    kafka: Kafka, topic: str, agent: AgentFactory, key: str | None
) -> None:
    running = agent(
        {
            "kafka": {
                "bootstrap_servers": kafka.bootstrap,
                "topic": topic,
                "properties": {"message.max.bytes": 2000},
                **({"key": key} if key else {}),
            }
        }
    )
    running.start()
    send(running, [*lines(100), poison(5_000), *lines(100, first=100)])
    await_settled(running)
    no_loss(judge(kafka.values(topic, expected=200), {"w": 200}))
    assert [letter["topic"] for letter in dead_letters(running)] == [topic]


def test_an_app_of_which_every_record_is_refused_leaves_the_others_alone(kafka: Kafka, agent: AgentFactory) -> None:
    small = new_topic(kafka, "-small", config={"max.message.bytes": "2000"})
    large = small.replace("-small", "-large")
    kafka.create_topic(large)
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small.replace("-small", "-{app}")}})
    running.start()
    send(running, [poison(5_000)], app="small")
    eventually(lambda: len(dead_letters(running, "small")) == 1, what="the first record to be refused")
    longest = 0.0
    for turn in range(20):
        begun = time.monotonic()
        send(running, [poison(5_000, turn)], app="small")
        send(running, lines(1, first=turn), app="large")
        eventually(lambda count=turn: delivered(running, large) > count, what="the other app's record")  # type: ignore[misc]
        longest = max(longest, time.monotonic() - begun)
    assert running.status()["kafka"]["producers_replaced"] == 1
    assert longest < 0.5, f"a record took {longest:.2f} s"
    eventually(lambda: len(dead_letters(running, "small")) == 21, what="all to be refused")


def test_an_app_without_permission_waits_and_the_others_hardly_notice(directory: Path, agent: AgentFactory) -> None:
    rights = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nallow.everyone.if.no.acl.found=true"
    kafka = Kafka(directory / "kafka", extra=rights)
    kafka.start()
    try:
        free, denied = new_topic(kafka, "-free"), new_topic(kafka, "-denied")
        whom = (ResourceType.TOPIC, denied, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        may = [AclBinding(*whom, operation, AclPermissionType.ALLOW) for operation in (AclOperation.DESCRIBE, AclOperation.READ)]
        for made in admin.create_acls(may).values():
            made.result()
        sockets = [
            {"path": str(directory / name), "app": name, "topic": name_of} for name, name_of in (("f", free), ("d", denied))
        ]
        running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap}, "socket": sockets})
        running.start()
        for turn in range(20):
            for table in sockets:
                with connect(table["path"]) as peer:
                    peer.greet(session=f"{turn}")
                    peer.send(lines(10, first=turn * 10))
                    peer.await_ack(10)
            eventually(lambda count=turn: delivered(running, free) >= 10 * (count + 1), 5, "the other app")  # type: ignore[misc]
        verdict = judge(kafka.values(free, expected=200), {"w": 200})
        # What was on its way when the other app's record made the producer fatal is sent twice, once.
        assert verdict.lost == 0
        assert verdict.duplicated <= 20
        assert running.status()["kafka"]["producers_replaced"] <= 1
        assert running.log().count("its records wait on disk") == 1
        for made in admin.create_acls([AclBinding(*whom, AclOperation.WRITE, AclPermissionType.ALLOW)]).values():
            made.result()
        no_loss(judge(kafka.values(denied, expected=200), {"w": 200}))
        await_settled(running)
    finally:
        kafka.stop()


def test_the_refused_record_of_one_app_does_not_stop_another(kafka: Kafka, agent: AgentFactory) -> None:
    small = new_topic(kafka, "-small", config={"max.message.bytes": "2000"})
    large = small.replace("-small", "-large")
    kafka.create_topic(large)
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": small.replace("-small", "-{app}")}})
    running.start()
    for turn in range(5):
        send(running, [*lines(100, first=turn * 100), poison(5_000, turn)], app="small")
        send(running, lines(1000, first=turn * 1000), app="large")
    await_settled(running)
    for topic, count in ((small, 500), (large, 5000)):
        verdict = judge(kafka.values(topic, expected=count), {"w": count})
        no_loss(verdict)
    assert len(dead_letters(running, "small")) == 5
    assert not dead_letters(running, "large")


def test_records_with_a_key_keep_their_order_around_one_that_is_refused(kafka: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(kafka, config={"max.message.bytes": "20000"})
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic, "key": "{field:writer}"}})
    running.start()
    kept = [line for number in range(800) for writer in "abcde" for line in lines(1, writer, number)]
    send(running, [*kept[:1200], poison(100_000, writer="a"), *kept[1200:2400], poison(100_000, 1, writer="b"), *kept[2400:]])
    await_settled(running)
    records = kafka.records(topic, expected=len(kept))
    verdict = judge((record.value for record in records), dict.fromkeys("abcde", 800))
    no_loss(verdict)
    assert not verdict.reordered, verdict
    assert len(dead_letters(running)) == 2
    assert [letter["key"] for letter in dead_letters(running)] == ["a", "b"]


def test_a_topic_that_refuses_the_time_of_records_keeps_them_waiting_and_gets_them_with_another_time(
    kafka: Kafka, agent: AgentFactory
) -> None:
    strict = new_topic(kafka, "-strict", config={"message.timestamp.before.max.ms": "0"})
    other = strict.replace("-strict", "-other")
    kafka.create_topic(other)
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": strict.replace("-strict", "-{app}")}})
    running.start()
    send(running, lines(1000), app="strict")
    eventually(lambda: logged(running, f"{strict}.*its records wait on disk"), what="a line in the log")
    send(running, lines(100), app="other")
    judge(kafka.values(other, expected=100), {"w": 100}).assert_exact()
    kafka.configure_topic(strict, {"message.timestamp.before.max.ms": "3600000"})
    no_loss(judge(kafka.values(strict, expected=1000), {"w": 1000}))
    await_settled(running)
    assert not dead_letters(running, "strict")
    assert len(logged(running, "its records wait on disk")) == 1


# Topics


def test_an_app_whose_topic_is_missing_waits_and_no_other_does(unsteady: Kafka, agent: AgentFactory) -> None:
    present = new_topic(unsteady, "-present")
    missing = present.replace("-present", "-missing")
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": present.replace("-present", "-{app}")}})
    running.start()
    send(running, lines(1000), app="missing")
    eventually(lambda: logged(running, f"WARNING.*{missing}|{missing}.*apps wait"), what="a warning that names the topic")
    for turn in range(5):
        send(running, lines(1000, first=turn * 1000), app="present")
        eventually(lambda count=turn: delivered(running, present) == (count + 1) * 1000, 2, "the other app's records")  # type: ignore[misc]
    waiting = source(running, "missing")
    assert (waiting["waits"], waiting["waits_for_topic"]) == (True, missing)
    assert any(missing in error for error in running.status()["errors"])
    assert running.status()["kafka"]["oldest_unacked_seconds"] > 0

    unsteady.create_topic(missing)
    judge(unsteady.values(missing, expected=1000), {"w": 1000}).assert_exact()
    judge(unsteady.values(present, expected=5000), {"w": 5000}).assert_exact()
    await_settled(running)
    assert not source(running, "missing")["waits"]
    assert len(logged(running, f"{missing}.*apps wait")) == 1
    assert len(logged(running, f"{missing} can be reached")) == 1


def test_what_comes_while_a_topic_is_deleted_waits_until_it_is_made_anew(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(1000))
    await_settled(running)
    unsteady.delete_topic(topic)
    for turn in range(1, 6):
        send(running, lines(1000, first=turn * 1000))
    eventually(lambda: logged(running, f"{topic}.*apps wait"), what="a warning that names the topic")
    unsteady.create_topic(topic)
    no_loss(judge(unsteady.values(topic, expected=5000), {"w": range(1000, 6000)}))


def test_topic_and_key_are_made_from_the_app_the_level_and_fields(kafka: Kafka, agent: AgentFactory) -> None:
    prefix = f"t-{uuid.uuid4().hex[:8]}"
    expected = {f"{prefix}.shop.{level}": 200 for level in ("INFO", "ERROR", "unknown")}
    for name in expected:
        kafka.create_topic(name)
    running = agent(
        {
            "kafka": {
                "bootstrap_servers": kafka.bootstrap,
                "topic": f"{prefix}.{{app}}.{{level}}",
                "key": "{field:user.id}",
            }
        }
    )
    running.start()
    send(
        running,
        [
            b'{"levelname":"INFO","user":{"id":"ann"},"seq":1}',
            b'{"level":"ERROR","user.id":7,"seq":2}',
            b'{"seq":3}',
            b"no JSON at all",
        ]
        * 200,
    )
    await_settled(running)
    found = {name: kafka.records(name) for name in expected}
    assert {name: len(records) for name, records in found.items()} == {**expected, f"{prefix}.shop.unknown": 400}
    keys = [{record.key for record in records} for records in found.values()]
    assert keys == [{b"ann"}, {b"7"}, {b"unknown"}]


def test_records_of_a_key_keep_their_order_and_lie_where_java_clients_look_for_them(
    kafka: Kafka, topic: str, agent: AgentFactory
) -> None:
    assert murmur2(b"foobar") == -790332482 & 0xFFFFFFFF
    assert murmur2(b"a-little-bit-longer-string") == -1486304829 & 0xFFFFFFFF
    assert murmur2(b"21") == -973932308 & 0xFFFFFFFF
    assert murmur2(b"abc") == 479470107
    keys = [f"key {number}" for number in range(47)] + ["a", "bc", "def", "日志"]
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic, "key": "{field:writer}"}})
    running.start()
    send(running, [line for number in range(200) for key in keys for line in lines(1, key, number)])
    records = kafka.records(topic, expected=200 * len(keys))
    assert numbers(records) == {key.encode(): list(range(200)) for key in keys}
    assert {record.key: record.partition for record in records} == {key.encode(): java_partition(key.encode(), 4) for key in keys}


def test_fields_are_put_in_and_patterns_taken_out_before_records_leave(
    kafka: Kafka, topic: str, agent: AgentFactory, directory: Path
) -> None:
    running = agent(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic},
            "socket": [{"path": str(directory / "s.sock"), "app": "shop", "fields": {"team": "pay", "env": "stage"}}],
            "fields": {"env": "prod", "site": "eu"},
            "redact": [{"pattern": 'password=[^ "]+', "replace": "password=***"}],
        }
    )
    running.start()
    send(running, [b'{"message":"login password=secret ok","site":"mine"}', b"plain password=secret"])
    first, second = sorted(kafka.values(topic, expected=2), reverse=True)
    assert json.loads(first) == {"message": "login password=*** ok", "site": "mine", "team": "pay", "env": "stage"}
    assert second == b"plain password=***"


# Kafka away


def test_what_came_while_kafka_was_not_there_yet_is_delivered_when_it_comes(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    unsteady.down()
    try:
        running.start()
        send(running, lines(5000))
        assert not running.status()["kafka"]["connected"]
        assert running.metric("forwarder_kafka_connected") == 0
        running.get("/readyz")
    finally:
        up(unsteady, topic)
    judge(unsteady.values(topic, expected=5000), {"w": 5000}).assert_exact()
    eventually(lambda: running.metric("forwarder_kafka_connected") == 1, what="Kafka to count as connected")


def test_while_kafka_is_away_memory_stays_flat_and_the_processor_idle_and_nothing_is_lost(
    unsteady: Kafka, agent: AgentFactory
) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(2000, fill=200))
    await_settled(running)
    before = running.rss()
    try:
        for turn in range(1, 10):
            if turn == 4:
                unsteady.down()
            send(running, lines(2000, first=turn * 2000, fill=200))
        # What is on its way when Kafka goes ends its first tries.
        eventually(lambda: not running.status()["kafka"]["connected"], what="the loss of Kafka to be seen")
        send(running, lines(40_000, first=20_000, fill=200))
        used = running.cpu()
        time.sleep(3)
        used = running.cpu() - used
        grown = running.rss() - before
    finally:
        up(unsteady, topic)
    verdict = judge(unsteady.values(topic, expected=60_000), {"w": 60_000})
    no_loss(verdict)
    assert used < 0.15, f"{used:.2f} s of processor time in 3 s with nothing to do"
    assert grown < 16 << 20, f"{grown >> 20} MiB more memory"


def test_a_broker_killed_and_started_again_loses_nothing(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    try:
        for turn in range(10):
            if turn == 5:
                unsteady.kill()
            send(running, lines(2000, first=turn * 2000))
    finally:
        up(unsteady, topic)
    verdict = judge(unsteady.values(topic, expected=20_000), {"w": 20_000})
    # One broker alone may forget what it acknowledged only when the machine dies, not when the process does.
    no_loss(verdict)


def test_what_is_in_flight_when_first_kafka_and_then_the_agent_dies_is_sent_again(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(1000))
    await_settled(running)
    unsteady.kill()
    try:
        for turn in range(1, 5):
            send(running, lines(1000, first=turn * 1000))
        eventually(lambda: source(running, "shop")["lag_bytes"] == 0, what="all to be in flight")
        # Longer than it takes until positions are saved: they must not have moved.
        time.sleep(1)
        running.kill()
    finally:
        up(unsteady, topic)
    running.start()
    judge(unsteady.values(topic, expected=5000), {"w": 5000}).assert_exact()


def test_a_broker_that_hangs_for_five_seconds_costs_nothing_but_time(unsteady: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(1000))
    unsteady.freeze()
    try:
        send(running, lines(19_000, first=1000))
        time.sleep(5)
        running.get("/healthz")
    finally:
        unsteady.thaw()
    judge(unsteady.values(topic, expected=20_000), {"w": 20_000}).assert_exact()


def test_a_leader_that_is_killed_in_mid_stream_hands_over_and_nothing_is_lost(agent: AgentFactory, directory: Path) -> None:
    cluster = Kafka(directory / "kafka", nodes=3)
    cluster.start()
    try:
        cluster.create_topic("three", partitions=6, config={"min.insync.replicas": "2"})
        running = agent({"kafka": {"bootstrap_servers": cluster.bootstrap, "topic": "three"}})
        running.start()
        for turn in range(40):
            if turn == 10:
                cluster.kill(2)
            if turn == 30:
                cluster.up(2)
            send(running, lines(2000, first=turn * 2000))
            time.sleep(0.1)
        verdict = judge(cluster.values("three", expected=80_000), {"w": 80_000})
        no_loss(verdict)
        await_settled(running)
    finally:
        cluster.stop()


# The agent's own end


def test_an_agent_killed_in_mid_delivery_loses_nothing_and_repeats_little(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    kills = 4
    for turn in range(kills):
        send(running, lines(20_000, first=turn * 20_000))
        running.kill()
        running.start()
    await_settled(running)
    verdict = judge(kafka.values(topic, expected=kills * 20_000), {"w": kills * 20_000})
    no_loss(verdict)
    # What was sent since positions were last saved: at most all of one turn.
    assert verdict.duplicated <= kills * 20_000, verdict


def test_term_drains_what_there_is_and_ends_with_0(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(50_000))
    begun = time.monotonic()
    assert running.terminate() == 0
    assert time.monotonic() - begun < 10
    judge(kafka.values(topic), {"w": 50_000}).assert_exact()
    assert "everything is in Kafka" in running.log()


def test_term_while_kafka_is_away_ends_soon_and_the_next_start_delivers(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    away = agent({"kafka": {"bootstrap_servers": NOBODY, "topic": topic}, "agent": {"shutdown_timeout": "3s"}})
    away.start()
    send(away, lines(5000))
    begun = time.monotonic()
    assert away.terminate() == 0
    assert time.monotonic() - begun < 5
    assert re.search(r"[1-9]\d* bytes are not in Kafka yet", away.log())

    back = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "agent": {"state_dir": str(away.state)}})
    back.start()
    judge(kafka.values(topic, expected=5000), {"w": 5000}).assert_exact()


def test_a_second_interrupt_ends_the_agent_at_once(agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": NOBODY}})
    running.start()
    send(running, lines(100))
    running.signal(signal.SIGINT)
    eventually(lambda: "stopping" in running.log(), what="the first interrupt to be taken")
    begun = time.monotonic()
    running.signal(signal.SIGINT)
    assert running.wait() == 130
    assert time.monotonic() - begun < 1
    assert "at once" in running.log()


# Positions


def test_damaged_positions_are_moved_aside_and_what_is_on_disk_is_sent_again(
    kafka: Kafka, topic: str, agent: AgentFactory
) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(1000))
    await_settled(running)
    assert running.terminate() == 0
    database = running.state / "positions.db"
    database.write_bytes(b"not a database at all" * 1000)
    running.start()
    send(running, lines(1000, first=1000))
    await_settled(running)
    verdict = judge(kafka.values(topic, expected=2000), {"w": 2000})
    no_loss(verdict)
    assert verdict.duplicated <= 1000
    assert list(running.state.glob("positions.db.bad-*"))
    assert logged(running, "positions.db is damaged")
    with closing(sqlite3.connect(database)) as positions:
        assert positions.execute("SELECT count(*) FROM source").fetchone() == (1,)


def test_while_positions_cannot_be_saved_records_flow_and_the_spool_still_shrinks(
    kafka: Kafka, topic: str, agent: AgentFactory
) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "spool": {"max_bytes_per_app": "1MiB"}})
    running.start()
    send(running, lines(10))
    await_settled(running)
    with closing(sqlite3.connect(running.state / "positions.db", isolation_level=None)) as positions:
        for action in ("INSERT", "UPDATE"):
            positions.execute(f"CREATE TRIGGER no_{action} BEFORE {action} ON source BEGIN SELECT RAISE(FAIL, 'no'); END")
        # Three times what the spool may hold.
        send(running, lines(30_000, first=10, fill=50))
        await_settled(running)
        eventually(lambda: running.status()["spool"]["apps"]["shop"] < 300_000, what="the spool to shrink")
        with pytest.raises(OSError, match="not writable"):
            running.get("/readyz")
        assert len(logged(running, "cannot save positions")) == 1
        running.kill()
        running.start(wait=False)
        eventually(lambda: running.get("/healthz"), what="the agent to be there")
        send(running, lines(10, first=30_010))
        for action in ("INSERT", "UPDATE"):
            positions.execute(f"DROP TRIGGER no_{action}")
    eventually(lambda: running.get("/readyz"), what="positions to be saved again")
    no_loss(judge(kafka.values(topic, expected=30_020), {"w": 30_020}))


def test_positions_of_a_newer_release_stop_the_start_with_a_clear_message(agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": NOBODY}})
    running.start()
    assert running.terminate() == 0
    with closing(sqlite3.connect(running.state / "positions.db")) as positions:
        positions.execute("PRAGMA user_version=99")
    running.start(wait=False)
    assert running.wait() == 1
    assert re.search(r"cannot run: .*positions\.db has format version 99.*start the release that wrote it", running.log())
    assert "Traceback" not in running.log()


def a_file_in_its_place(state: Path) -> None:
    state.write_text("in the way")


def a_directory_for_positions(state: Path) -> None:
    (state / "positions.db").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [a_file_in_its_place, a_directory_for_positions])
def test_a_state_directory_that_cannot_be_used_ends_the_start_with_one_line(
    agent: AgentFactory, spoil: Callable[[Path], None]
) -> None:
    running = agent({"kafka": {"bootstrap_servers": NOBODY}})
    spoil(running.state)
    running.start(wait=False)
    assert running.wait() == 1
    (line,) = running.log().splitlines()
    assert re.search(rf"^forwarder: cannot run: .*{re.escape(str(running.state))}", line)


def test_a_spool_that_cannot_be_opened_is_said_and_nothing_is_acknowledged(agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": NOBODY}})
    running.state.mkdir()
    (running.state / "spool").write_text("in the way")
    running.start()
    with pytest.raises(ConnectionError):
        send(running, lines(1))
    eventually(lambda: logged(running, f"spool of app shop cannot be opened.*{running.state}"), what="a line that says why")
    assert "Traceback" not in running.log()
    assert running.terminate() == 0


# Fairness and figures


def backlog(agent: AgentFactory, state: Path, config: dict[str, Any], sent: dict[str, int]) -> None:
    """Leave records of some apps on disk, in this order."""
    away = agent({"kafka": {"bootstrap_servers": NOBODY, **config}, "agent": {"state_dir": str(state), "shutdown_timeout": "0s"}})
    away.start()
    for app, count in sent.items():
        send(away, lines(count, app, fill=150), app=app)
    away.kill()


def test_an_app_with_a_large_backlog_lets_a_small_one_pass(
    kafka: Kafka, topic: str, agent: AgentFactory, directory: Path
) -> None:
    backlog(agent, directory / "shared", {"topic": topic}, {"large": 200_000, "small": 1000})
    running = agent(
        {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "agent": {"state_dir": str(directory / "shared")}}
    )
    running.start()
    records = kafka.records(topic, expected=201_000)
    small = max(record.timestamp for record in records if b'"small"' in record.value)
    before = sum(record.timestamp < small for record in records)
    assert before < 60_000, f"{before} of 201000 records were sent before the last of the small app's 1000"


def test_records_of_a_small_app_take_less_than_a_second_while_another_catches_up(
    kafka: Kafka, topic: str, agent: AgentFactory, directory: Path
) -> None:
    backlog(agent, directory / "shared", {"topic": f"{topic}"}, {"large": 300_000})
    small = new_topic(kafka, "-small")
    running = agent(
        {
            # A slow Kafka: a megabyte at a time, and each batch waits for the fifth part of a second.
            "kafka": {
                "bootstrap_servers": kafka.bootstrap,
                "topic": topic,
                "in_flight": "1MiB",
                "properties": {"linger.ms": 200, "batch.size": 16 << 20},
            },
            "socket": [{"path": str(directory / "s.sock"), "topic": small}],
            "agent": {"state_dir": str(directory / "shared"), "shutdown_timeout": "0s"},
        }
    )
    running.start()
    eventually(lambda: delivered(running, topic), what="the backlog to be on its way")
    longest = 0.0
    for number in range(15):
        begun = time.monotonic()
        send(running, lines(1, first=number), app="small")
        eventually(lambda count=number: delivered(running, small) > count, what="the small app's record")  # type: ignore[misc]
        longest = max(longest, time.monotonic() - begun)
    assert source(running, "large")["lag_bytes"], "the backlog was done too soon to be in anybody's way"
    assert longest < 1, f"a record took {longest:.2f} s"


PROMISED = [
    "records_received_total",
    "bytes_received_total",
    "records_delivered_total",
    "records_dropped_total",
    "records_dead_total",
    "source_lag_bytes",
    "spool_bytes",
    "in_flight_bytes",
    "delivery_seconds",
    "oldest_unacked_seconds",
    "kafka_connected",
    "connections",
    "client_dropped_total",
    "build_info",
]


def test_every_metric_that_is_promised_is_there(kafka: Kafka, topic: str, agent: AgentFactory) -> None:
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    send(running, lines(10))
    await_settled(running)
    page = running.get("/metrics").decode()
    described = set(re.findall(r"^# TYPE (?:forwarder_)?(\w+) ", page, re.MULTILINE))
    assert set(PROMISED) - described - {name for name in PROMISED if name.removesuffix("_total") in described} == set()
    assert "process_resident_memory_bytes" in described
    metrics = running.metrics()
    labels = {name: set(dict(having)) for name, having in metrics}
    assert labels["forwarder_records_received_total"] == {"source", "app"}
    assert labels["forwarder_bytes_received_total"] == {"source", "app"}
    assert labels["forwarder_records_delivered_total"] == {"topic"}
    assert labels["forwarder_source_lag_bytes"] == {"source", "app"}
    assert labels["forwarder_spool_bytes"] == {"app"}
    assert running.metric("forwarder_delivery_seconds_count") == 10
