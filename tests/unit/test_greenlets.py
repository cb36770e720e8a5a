"""Apps whose threads and sockets gevent or eventlet have replaced, before our import or after it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.harness.apps import environment
from tests.unit.fake_agent import FakeAgent

PATCH = {
    "gevent": "import gevent, gevent.monkey; gevent.monkey.patch_all(); spawn, wait = gevent.spawn, gevent.joinall",
    "eventlet": """
import warnings
warnings.simplefilter("ignore")
import eventlet
eventlet.monkey_patch()
spawn = eventlet.spawn
def wait(them):
    for one in them: one.wait()
""",
}
IMPORT = """
import logging, sys, forwarder
log = logging.getLogger("shop")
log.setLevel("INFO")
"""
ADD = """
handler = forwarder.SocketHandler(sys.argv[1], close_timeout=20)
log.addHandler(handler)
log.info("first")
"""
WORK = """
import threading, time
def work(number):
    for turn in range(20):
        for _ in range(10): log.info("greenlet %d", number)
        time.sleep(0.001)
wait([spawn(work, number) for number in range(20)])
thread = threading.Thread(target=log.info, args=("thread",))
thread.start()
thread.join()
handler.flush()
assert not handler._waiting and handler.dropped == 0
"""


@pytest.mark.parametrize("kind", PATCH)
@pytest.mark.parametrize("patched", ["before the import", "after the import", "after the first record"])
def test_greenlets_lose_nothing(kind: str, patched: str, tmp_path: Path) -> None:
    parts = {
        "before the import": [PATCH[kind], IMPORT, ADD],
        "after the import": [IMPORT, PATCH[kind], ADD],
        "after the first record": [IMPORT, ADD, PATCH[kind]],
    }
    agent = FakeAgent(tmp_path / "agent.sock")
    late = patched == "after the first record"  # which a thread waits to send, made before the patch
    with agent:
        if late:
            agent.set(acknowledges=False)
        command = [sys.executable, "-c", "".join([*parts[patched], WORK]), str(agent.path)]
        app = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if late:
            agent.until_records(1)
            agent.set(acknowledges=True)
        said, _ = app.communicate(timeout=60)
        assert (app.returncode, said) == (0, "")
        assert Counter(agent.messages()) == {"first": 1, "thread": 1, **{f"greenlet {n}": 200 for n in range(20)}}
        assert agent.gaps == []


RELIEVING = """
from time import sleep  # a real one
import forwarder.turns
import gevent, gevent.monkey
gevent.monkey.patch_all()
from gevent.threadpool import ThreadPool
states, recovered = [], []
turns = forwarder.turns.Turns(lambda: recovered.append(True))
def work():
    states.append("at work")
    while "go on" not in states: sleep(0.001)
done = ThreadPool(1).spawn(turns.take, work)
while not states: gevent.sleep(0.001)
turns.relieve()
assert not turns.take(lambda: None), "two are at work"
states.append("go on")
assert done.get() and not recovered
"""


def test_a_thread_of_gevents_pool_that_is_at_work_is_not_taken_for_one_that_has_died() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RELIEVING], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
