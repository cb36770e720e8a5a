"""Apps end in all manner of ways: what they gave to the socket before is in Kafka afterwards."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import AgentFactory, AppFactory
from tests.harness.apps import finish
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge

FILLS_THE_SOCKET = """
import os, socket, sys

sock = socket.socket(socket.AF_UNIX)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
sock.connect(sys.argv[1])
sock.sendall(b'{"forwarder":1,"app":"dying","session":"s","first":0}\\n')
sock.setblocking(False)
sent, rest = 0, b""
try:
    while True:
        rest = rest or b"".join(b'{"writer":"w","seq":%d,"pad":"%s"}\\n' % (sent + n, b"x" * 950) for n in range(64))
        taken = sock.send(rest)
        sent += rest[:taken].count(b"\\n")
        rest = rest[taken:]
except BlockingIOError:
    print(sent, flush=True)
os._exit(0)
"""

LOGS_AND_DIES = """
import logging, os, signal, sys
import forwarder

log = logging.getLogger("app")
log.addHandler(forwarder.SocketHandler(sys.argv[1], app="dying"))
for seq in range(2000):
    log.error("record", extra={"writer": "w", "seq": seq})
if sys.argv[2] == "raise":
    raise RuntimeError("the app fails")
os.kill(os.getpid(), int(sys.argv[2]))
"""


def test_what_a_dead_app_left_in_the_socket_is_read_to_its_end(
    kafka: Kafka, topic: str, agent: AgentFactory, app: AppFactory
) -> None:
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    one.start()
    one.freeze()
    sent = int(finish(app(FILLS_THE_SOCKET, one.socket)))
    assert sent * 1000 > 150_000
    one.thaw()
    judge(kafka.values(topic, expected=sent), {"w": sent}).assert_exact()


@pytest.mark.parametrize("how", ["raise", signal.SIGTERM, signal.SIGKILL], ids=str)
def test_records_logged_before_an_app_ends_are_in_kafka_after_it(
    kafka: Kafka, topic: str, agent: AgentFactory, app: AppFactory, how: object
) -> None:
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}})
    one.start()
    dying = app(LOGS_AND_DIES, one.socket, int(how) if isinstance(how, signal.Signals) else how)
    assert dying.wait(30) != 0
    judge(kafka.values(topic, expected=2000), {"w": 2000}).assert_exact()
