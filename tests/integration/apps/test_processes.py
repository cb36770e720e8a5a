"""However an app makes processes, threads and interpreters: each record is in Kafka once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import AppFactory
from tests.harness.agent import Agent
from tests.harness.apps import finish
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge
from tests.harness.pythons import PYTHONS

LOGGING = """
import logging, os, sys, threading, time
import forwarder

handler = forwarder.SocketHandler(close_timeout=20)
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(handler)

def write(writer, start, count, pad=""):
    for seq in range(start, start + count):
        log.info("record", extra={"writer": writer, "seq": seq, "pad": pad})
"""

FORKS = (
    LOGGING
    + """
write("parent", 0, 200)
for child in range(8):
    pid = os.fork()
    if not pid:
        write(f"child-{child}", 0, 100)
        grandchild = os.fork()
        if not grandchild:
            write(f"grandchild-{child}", 0, 50)
            logging.shutdown()
            os._exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
        write(f"child-{child}", 100, 100)
        logging.shutdown()
        os._exit(0)
    write("parent", 200 + child * 100, 100)
for child in range(8):
    assert os.wait()[1] == 0
write("parent", 1000, 200)
"""
)


def test_records_of_before_and_after_a_fork_arrive_from_parent_child_and_grandchild(
    kafka: Kafka, topic: str, env: dict[str, str], app: AppFactory
) -> None:
    assert finish(app(FORKS, env=env)) == ""
    expected = {"parent": 1200, **{f"child-{n}": 200 for n in range(8)}, **{f"grandchild-{n}": 50 for n in range(8)}}
    judge(kafka.values(topic, expected=sum(expected.values())), expected).assert_exact()


MULTIPROCESSING = (
    LOGGING.replace("close_timeout=20", "close_timeout=20, backlog='2MiB'")
    + """
import multiprocessing

def work(number):
    write(f"worker-{number}", 0, 1000, "x" * 1000)  # more than may be under way, less than the ring holds
    os.write(1, b"logged\\n")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    write("parent", 0, 100)
    processes = [context.Process(target=work, args=(number,)) for number in range(3)]
    for process in processes: process.start()
    write("parent", 100, 100)
    for process in processes: process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
"""
)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_multiprocessing_that_ends_at_once_loses_nothing_that_has_to_wait(
    method: str, kafka: Kafka, topic: str, running: Agent, env: dict[str, str], app: AppFactory
) -> None:
    running.freeze()
    logging = app(MULTIPROCESSING, method, env=env)
    assert logging.stdout is not None
    assert [logging.stdout.readline() for _ in range(3)] == ["logged\n"] * 3
    running.thaw()
    assert finish(logging) == ""
    expected = {"parent": 200, **{f"worker-{n}": 1000 for n in range(3)}}
    judge(kafka.values(topic, expected=3200), expected).assert_exact()


FUTURES = (
    LOGGING
    + """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

def work(name):
    write(name, 0, 200)

if __name__ == "__main__":
    with ThreadPoolExecutor(8) as threads, ProcessPoolExecutor(3) as processes:
        done = [threads.submit(work, f"thread-{number}") for number in range(16)]
        done += [processes.submit(work, f"process-{number}") for number in range(9)]
        for one in done: one.result()
"""
)


def test_pools_of_concurrent_futures_lose_nothing(kafka: Kafka, topic: str, env: dict[str, str], app: AppFactory) -> None:
    finish(app(FUTURES, env=env))
    expected = {**{f"thread-{n}": 200 for n in range(16)}, **{f"process-{n}": 200 for n in range(9)}}
    judge(kafka.values(topic, expected=5000), expected).assert_exact()


THREADS = (
    LOGGING
    + """
threads = [threading.Thread(target=write, args=(f"thread-{number}", 0, 50)) for number in range(300)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
)


def test_hundreds_of_threads_lose_nothing(kafka: Kafka, topic: str, env: dict[str, str], app: AppFactory) -> None:
    assert finish(app(THREADS, env=env)) == ""
    judge(kafka.values(topic, expected=15000), {f"thread-{n}": 50 for n in range(300)}).assert_exact()


ASYNCIO = (
    LOGGING
    + """
import asyncio

async def write_and_wait(name):
    for seq in range(100):
        write(name, seq, 1)
        await asyncio.sleep(0)

async def main():
    await asyncio.gather(*(write_and_wait(f"task-{number}") for number in range(20)))

write("no loop", 0, 10)
asyncio.run(main())
"""
)


def test_tasks_of_asyncio_log_without_awaiting_and_without_a_loop(
    kafka: Kafka, topic: str, env: dict[str, str], app: AppFactory
) -> None:
    assert finish(app(ASYNCIO, env=env, flags=["-X", "dev"])) == ""
    expected = {"no loop": 10, **{f"task-{n}": 100 for n in range(20)}}
    judge(kafka.values(topic, expected=2010), expected).assert_exact()


LAST_BREATH = (
    LOGGING
    + """
import itertools, signal

alarms = itertools.count()
def on_alarm(number, frame):
    write("signals", next(alarms), 1)

class Bad:
    def __repr__(self): raise RuntimeError("no text")

class Inner:
    logged = False
    def __str__(self):  # called for the message and for `args`
        if not self.logged:
            self.logged = True
            write("inner", 0, 1)
        return "outer"

class Last:
    write = staticmethod(write)
    def __del__(self): self.write("destructor", 0, 1)

last = Last()
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
write("plain", 0, 3000)
signal.setitimer(signal.ITIMER_REAL, 0)
logging.raiseExceptions = False
log.info("%r", Bad(), extra={"writer": "bad", "seq": 0})
logging.raiseExceptions = True
log.info("%s", Inner(), extra={"writer": "outer", "seq": 0})
handler.flush()
print(next(alarms), handler.dropped)
"""
)


def test_signal_handlers_destructors_and_arguments_that_log_or_fail_lose_nothing(
    kafka: Kafka, topic: str, env: dict[str, str], app: AppFactory
) -> None:
    caught, dropped = map(int, finish(app(LAST_BREATH, env=env)).split())
    expected = {"signals": caught, "plain": 3000, "bad": 1, "inner": 1, "outer": 1, "destructor": 1}
    verdict = judge(kafka.values(topic, expected=sum(expected.values()) - dropped), expected)
    assert (verdict.lost, verdict.duplicated, verdict.alien) == (dropped, 0, 0), str(verdict)
    assert caught > 10
    assert verdict.writers["signals"].lost == dropped  # a record within a record within a record is dropped, and counted


INTERPRETERS = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = '''
import sys
sys.path.insert(0, {root!r})
import logging, os, forwarder
handler = forwarder.SocketHandler(close_timeout=20)
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(handler)
for seq in range(300):
    log.info("record", extra={{"writer": "interpreter-{number}", "seq": seq}})
{end}
'''
for number in range(4):
    interpreter = interpreters.create()
    failed = interpreters.run_string(interpreter, CODE.format(
        root=sys.argv[1], number=number, end="logging.shutdown()" if number % 2 else ""))
    assert failed is None, failed
    interpreters.destroy(interpreter)
print("survived")
"""


@pytest.mark.parametrize("python", [pytest.param(path, id=f"python{v}") for v, path in PYTHONS if int(v.split(".")[1]) >= 12])
def test_subinterpreters_lose_nothing_and_end_well(
    python: str, kafka: Kafka, topic: str, env: dict[str, str], app: AppFactory
) -> None:
    root = Path(__file__).parents[3]
    assert finish(app(INTERPRETERS, root, env=env, python=python, flags=["-S"])) == "survived\n"
    judge(kafka.values(topic, expected=1200), {f"interpreter-{n}": 300 for n in range(4)}).assert_exact()
