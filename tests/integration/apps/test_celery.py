"""Celery's prefork workers, the handler made before the fork or in each child: each task's records are in Kafka once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.apps import environment
from tests.harness.kafka import Kafka
from tests.harness.oracle import judge

SHOP = """
import logging, os, sys
import celery, celery.signals
import forwarder

def set_up(**_):
    log = logging.getLogger("shop")
    log.setLevel("INFO")
    log.addHandler(forwarder.SocketHandler(close_timeout=20))

if os.environ["WHERE"] == "parent":
    set_up()
else:
    celery.signals.worker_process_init.connect(set_up)

app = celery.Celery("shop", broker="filesystem://", backend="file://" + os.path.join(os.getcwd(), "results"))
app.conf.update(
    broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"},
    worker_enable_remote_control=False, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True,
)

@app.task
def work(number):
    for seq in range(50):
        logging.getLogger("shop").info("record", extra={"writer": f"task-{number}", "seq": seq})
    return os.getpid()
"""

ASK = """
import shop
results = [shop.work.delay(number) for number in range(40)]
print(len({result.get(timeout=60, interval=0.1) for result in results}))
"""


@pytest.mark.parametrize("where", ["parent", "child"])
def test_tasks_of_prefork_workers_lose_nothing(
    where: str, directory: Path, kafka: Kafka, topic: str, env: dict[str, str]
) -> None:
    (directory / "shop.py").write_text(SHOP)
    for name in ("queue", "control", "results"):
        (directory / name).mkdir()
    path = os.pathsep.join([str(directory), environment()["PYTHONPATH"]])
    variables = environment({**env, "PYTHONPATH": path, "WHERE": where})
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "3", "-l", "WARNING"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (directory / "celery.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=directory, env=variables, stdout=log, stderr=log)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK], cwd=directory, env=variables, capture_output=True, text=True, timeout=120, check=False
        )
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0, (directory / "celery.log").read_text()
    finally:
        worker.kill()
        worker.wait()
    assert asked.returncode == 0, asked.stderr
    assert int(asked.stdout) > 1  # processes
    judge(kafka.values(topic, expected=2000), {f"task-{n}": 50 for n in range(40)}).assert_exact()
