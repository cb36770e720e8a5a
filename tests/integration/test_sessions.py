"""The records of a session are in the spool once each, whatever becomes of the agent or the app, and whatever a peer says."""

from __future__ import annotations

import random
import time

import pytest

from tests.conftest import AgentFactory, AppFactory
from tests.harness.agent import Agent
from tests.harness.apps import finish
from tests.harness.kafka import Kafka
from tests.harness.native import connect
from tests.harness.oracle import judge
from tests.harness.wait import eventually

NOWHERE = "127.0.0.1:1"
KILLS = 20

STEADY_APP = """
import logging, os, sys, time
import forwarder

path, writer, stop = sys.argv[1:]
handler = forwarder.SocketHandler(path, app="shop", close_timeout=60)
log = logging.getLogger("load")
log.setLevel(logging.INFO)
log.addHandler(handler)
seq = 0
while not os.path.exists(stop):
    log.info("record %d of a writer", seq, extra={"writer": writer, "seq": seq})
    seq += 1
    if seq % 10 == 0:
        time.sleep(0.004)
logging.shutdown()
print(seq, handler.dropped)
"""

FORKING_APP = """
import logging, os, sys
import forwarder

path, children, records = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
log = logging.getLogger("load")
log.setLevel(logging.INFO)
log.addHandler(forwarder.SocketHandler(path, app="shop", close_timeout=60))


def say(writer, numbers):
    for seq in numbers:
        log.info("record %d of a writer", seq, extra={"writer": writer, "seq": seq})


def have_child(writer, deeper):
    pid = os.fork()
    if pid:
        return pid
    say(writer, range(records))
    if deeper:
        os.waitpid(have_child(f"{writer}-{writer}", False), 0)
    say(writer, range(records, 2 * records))
    logging.shutdown()
    os._exit(0)


pids = []
for child in range(children):
    say("parent", range(child * records, (child + 1) * records))
    pids.append(have_child(f"child{child}", child == 0))
say("parent", range(children * records, (children + 1) * records))
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
logging.shutdown()
"""


@pytest.fixture
def lonely(agent: AgentFactory, topic: str) -> Agent:
    """An agent that has no Kafka, until `deliver`."""
    made = agent({"kafka": {"bootstrap_servers": NOWHERE, "topic": topic}, "agent": {"shutdown_timeout": "0s"}})
    made.start()
    return made


def deliver(lonely: Agent, kafka: Kafka, topic: str, expected: int) -> list[bytes]:
    """Have what is in the spool sent, by the agent's next life; returns what arrived."""
    assert lonely.terminate() == 0
    lonely.file.write_text(lonely.file.read_text().replace(NOWHERE, kafka.bootstrap))
    lonely.start()
    kafka.values(topic, expected)
    eventually(lambda: lonely.status()["kafka"]["oldest_unacked_seconds"] == 0, what="everything to be settled")
    return kafka.values(topic)


@pytest.mark.slow
def test_twenty_kills_of_the_agent_cost_no_record_and_double_none(
    lonely: Agent, kafka: Kafka, topic: str, app: AppFactory
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    stop = lonely.directory / "stop"
    apps = {name: app(STEADY_APP, lonely.socket, name, stop) for name in ("one", "two")}
    for _ in range(KILLS):
        eventually(lambda: lonely.status()["connections"].get("shop") == 2, what="both apps to be connected")
        # Random moments are the point here: nothing is waited for.
        time.sleep(chance.uniform(0, 0.4))
        lonely.kill()
        lonely.start()
    stop.touch()
    said = {name: finish(one).split() for name, one in apps.items()}
    assert [words[1] for words in said.values()] == ["0", "0"], "no handler may have dropped anything"
    sent = {name: int(words[0]) for name, words in said.items()}
    judge(deliver(lonely, kafka, topic, sum(sent.values())), sent).assert_exact()


def test_forked_children_that_go_on_logging_lose_nothing_and_are_not_taken_for_their_parent(
    lonely: Agent, kafka: Kafka, topic: str, app: AppFactory
) -> None:
    finish(app(FORKING_APP, lonely.socket, 4, 300))
    sent = {"parent": 1500, "child0-child0": 600, **{f"child{number}": 600 for number in range(4)}}
    judge(deliver(lonely, kafka, topic, sum(sent.values())), sent).assert_exact()


def test_a_session_may_leave_numbers_out_and_what_it_brings_later_of_them_is_taken_for_known(
    lonely: Agent, kafka: Kafka, topic: str
) -> None:
    for first, end, known in ((0, 10, 0), (50, 60, 10), (5, 60, 60)):
        with connect(lonely.socket) as peer:
            assert peer.greet(app="shop", session="one", first=first) == known
            peer.send(b'{"writer":"w","seq":%d}' % number for number in range(first, end))
            peer.await_ack(end)
    judge(deliver(lonely, kafka, topic, 20), {"w": [*range(10), *range(50, 60)]}).assert_exact()


def test_the_largest_number_is_one_like_any_other_and_a_larger_or_negative_one_is_refused(
    lonely: Agent, kafka: Kafka, topic: str
) -> None:
    largest = 2**63 - 1
    with connect(lonely.socket) as peer:
        peer.greet(app="shop", session="one", first=largest)
        peer.send([b'{"writer":"w","seq":0}', b'{"writer":"w","seq":1}'])
        assert peer.await_ack(largest + 2) == largest + 2
    for first in (largest + 1, -1, 2**70):
        with connect(lonely.socket) as peer, pytest.raises(ConnectionError):
            peer.greet(app="shop", session="two", first=first)
        assert f"first in the greeting is {first}; it must be a whole number from 0 to 2^63-1" in lonely.log()
    assert lonely.metric("forwarder_connections_rejected_total", reason="greeting") == 3
    lonely.kill()
    lonely.start()
    with connect(lonely.socket) as peer:
        assert peer.greet(app="shop", session="one", first=largest) == largest + 2
    judge(deliver(lonely, kafka, topic, 2), {"w": 2}).assert_exact()
