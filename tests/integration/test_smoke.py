"""The main path, once, with everything real: socket, spool, Kafka, and a stop in good order."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

from tests.conftest import AgentFactory
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.oracle import judge
from tests.harness.wait import eventually


def test_what_is_sent_to_the_socket_is_acknowledged_and_arrives_in_kafka_byte_for_byte(
    kafka: Kafka, topic: str, agent: AgentFactory
) -> None:
    lines = [b'{"message":"line \xe4\xb8\xad %d","writer":"w","seq":%d}' % (number, number) for number in range(1000)]
    running = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    running.start()
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one") == 0
        peer.send(lines)
        assert peer.await_ack(1000) == 1000

    values = kafka.values(topic, expected=1000)
    assert sorted(values) == sorted(lines)
    judge(values, {"w": 1000}).assert_exact()
    eventually(lambda: running.metric("forwarder_records_delivered_total", topic=topic) == 1000, what="deliveries counted")
    assert running.metric("forwarder_records_received_total", app="shop", source="socket") == 1000
    assert running.status()["kafka"]["connected"]

    assert running.terminate() == 0, running.log()
    with closing(sqlite3.connect(running.state / "positions.db")) as positions:
        assert positions.execute("SELECT count(*) FROM source WHERE position > 0").fetchone()[0] == 1
    assert not running.socket.exists()

    running.start()
    with connect(running.socket) as peer:
        assert peer.greet(app="shop", session="one") == 1000, "the session is known after a restart"
    running.signal(signal.SIGINT)
    assert running.wait() == 0
    assert len(kafka.values(topic)) == 1000, "nothing is sent twice after a stop in good order"
