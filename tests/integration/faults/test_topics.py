"""Topics that are missing, deleted or not allowed: their apps wait on disk, loudly, and others go on."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from tests.conftest import AgentFactory
from tests.harness.agent import Agent
from tests.harness.kafka import Kafka, free_ports
from tests.harness.native import connect
from tests.harness.oracle import judge
from tests.harness.relay import Relay
from tests.harness.wait import eventually
from tests.integration.shipping import (
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


PASSWORDS = """
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,FRONT:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.front.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_shop="right";
"""


def test_with_a_wrong_password_records_wait_and_a_restart_with_the_right_one_sends_them(
    directory: Path, agent: AgentFactory
) -> None:
    front = f"127.0.0.1:{free_ports(1)}"
    kafka = Kafka(directory / "kafka", extra=PASSWORDS, fronts=[(front, front)])
    kafka.start()
    try:
        kafka.create_topic("shop")

        def knowing(password: str) -> Agent:
            login = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "shop"}
            properties = {**login, "sasl.password": password}
            return agent(
                {
                    "kafka": {"bootstrap_servers": kafka.front, "topic": "shop", "properties": properties},
                    "agent": {"state_dir": str(directory / "state"), "shutdown_timeout": "2s"},
                }
            )

        wrong = knowing("wrong")
        wrong.start()
        send(wrong, lines(1000))
        eventually(lambda: logged(wrong, "Authentication failed"), what="a line that says why")
        assert not wrong.status()["kafka"]["connected"]
        assert wrong.metric("forwarder_oldest_unacked_seconds") > 0
        wrong.get("/readyz")
        assert wrong.terminate() == 0
        assert "wrong" not in wrong.log().replace("wrong password", "")

        right = knowing("right")
        right.start()
        judge(kafka.values("shop", expected=1000), {"w": 1000}).assert_exact()
        await_settled(right)
    finally:
        kafka.stop()


def test_records_in_flight_when_their_topic_is_deleted_arrive_in_the_one_that_is_made_anew(
    unsteady: Kafka, agent: AgentFactory
) -> None:
    """A new topic of the old name begins without what the producer has sent: its sequence numbers fit no more."""
    topic = new_topic(unsteady)
    running = agent({"kafka": {"bootstrap_servers": unsteady.bootstrap, "topic": topic, "properties": {"linger.ms": 500}}})
    running.start()
    send(running, lines(1000))
    await_settled(running)
    send(running, lines(1000, first=1000))
    unsteady.delete_topic(topic)
    unsteady.create_topic(topic)
    send(running, lines(1000, first=2000))
    await_settled(running)
    found = {json.loads(value)["seq"] for value in unsteady.values(topic)}
    # What Kafka had acknowledged went with the old topic; all that was not is in one of the two, and that is the new one.
    assert found >= set(range(2000, 3000))
    delivered_to_both = running.metric("forwarder_records_delivered_total", topic=topic)
    assert delivered_to_both >= 3000


def test_a_dead_letter_that_cannot_be_written_yet_has_nothing_sent_twice(
    relayed: tuple[Kafka, Relay], agent: AgentFactory
) -> None:
    """The transaction that is being committed meanwhile holds records of the same app."""
    kafka, relay = relayed
    topic = new_topic(kafka, partitions=1, config={"max.message.bytes": "20000"})
    exactly_once = {"bootstrap_servers": kafka.front, "topic": topic, "delivery": "exactly-once"}
    running = agent({"agent": {"name": topic}, "kafka": {**exactly_once, "properties": {"batch.size": 10_000}}})
    running.start()
    send(running, [poison(25_000)])
    eventually(lambda: dead_letters(running), 60, "the first dead letter")
    # Those before it take two seconds to get there, the record to be refused a quarter of one.
    relay.rate = 100_000
    try:
        # As a replay does that appends to it.
        with (running.state / "dead" / "shop.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            send(running, [poison(15_000, number, "w") for number in range(17)])
            send(running, [poison(25_000, 1)])
            eventually(lambda: source(running, "shop")["waits"], what="it to be tried in vain")
            assert delivered(running) == 0, "it was tried too late"
    finally:
        relay.heal()
    send(running, [poison(10, 17, "w")])
    await_settled(running, 60)
    judge(kafka.values(topic, expected=18), {"w": 18}).assert_exact()
    assert len(dead_letters(running)) == 2
