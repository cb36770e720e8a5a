"""A real agent ships to a real Kafka: what is refused, where records go, positions, and turns. Faults are in `faults/`."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import AgentFactory
from tests.harness.kafka import Kafka, Record
from tests.harness.oracle import judge
from tests.harness.wait import eventually
from tests.integration.shipping import (
    NOBODY,
    await_settled,
    dead_letters,
    delivered,
    lines,
    logged,
    new_topic,
    no_loss,
    poison,
    send,
    source,
)

pytestmark = pytest.mark.slow


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
    no_loss(verdict)  # what was in flight beside it may be there twice
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
    after = judge(kafka.values(topic, expected=1010 + verdict.duplicated), {"w": 1010})
    no_loss(after)
    assert after.duplicated == verdict.duplicated
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


# Topics and keys


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


def test_agents_that_start_together_do_not_all_begin_with_the_same_partition(kafka: Kafka, agent: AgentFactory) -> None:
    topic = new_topic(kafka, partitions=100)
    fleet = [agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}}) for _ in range(4)]
    for number, each in enumerate(fleet):
        each.start()
        send(each, lines(1, first=number))
    records = kafka.records(topic, expected=len(fleet))
    assert len(records) == len(fleet)
    assert len({record.partition for record in records}) > 1, "once in a million runs they do"


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
