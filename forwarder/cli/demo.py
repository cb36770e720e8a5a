"""`forwarder demo`: the whole path on one machine with nothing installed, counted at both ends.

Everything is real but the broker, which is the mock cluster inside librdkafka unless `--bootstrap` names another: a real agent
process, one app logging through `SocketHandler` and one writing a file with `WatchedFileHandler` that is rotated meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from confluent_kafka import Producer
    from rich.progress import Progress, TaskID

ROTATIONS = 3
SETTLE_SECONDS = 60.0

_APP = """
import logging, logging.config, os, sys, time
sys.path.insert(0, {root!r})
import forwarder
kind, path, records, rate, rotations = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
log = logging.getLogger("demo")
log.setLevel(logging.INFO)
if kind == "socket":
    handler = forwarder.SocketHandler(path, app="demo-socket", backlog="64MiB", close_timeout=30.0)
else:
    from logging.handlers import WatchedFileHandler
    handler = WatchedFileHandler(path)
    handler.setFormatter(forwarder.JSONFormatter())
log.addHandler(handler)
began = time.monotonic()
for number in range(records):
    log.info("%s record %d", kind, number)
    if number % 100 == 99:
        ahead = began + number / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    if kind == "file" and rotations and number % (records // (rotations + 1) + 1) == records // (rotations + 1):
        os.rename(path, path + "." + str(number))
logging.shutdown()
"""


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "demo",
        help="show the whole path on this machine, with an embedded Kafka",
        description="Starts an embedded Kafka, an agent and two apps, and counts what arrives. Exit 0 only if nothing was lost.",
        epilog="example: forwarder demo --records 100000",
    )
    parser.add_argument("--records", type=int, default=20_000, metavar="N", help="how many, half by each app (default 20000)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long the apps take to log them (default 5)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a real broker instead, where the demo uses a topic of its own")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.records < 2 or args.seconds < 0:
        print("forwarder: demo needs at least 2 records and no negative seconds", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="forwarder-demo-") as directory:
        return _Demo(Path(directory), args.records, max(args.seconds, 0.001), args.bootstrap).run()


class _Tally:
    """What has arrived: one byte a record and app, how often it was seen."""

    def __init__(self, records: dict[str, int]) -> None:
        self.seen = {kind: bytearray(count) for kind, count in records.items()}
        self.received = 0

    def add(self, value: bytes) -> None:
        kind, _, number = json.loads(value)["message"].split(" ")
        seen = self.seen[kind]
        seen[int(number)] = min(seen[int(number)] + 1, 255)
        self.received += 1

    @property
    def lost(self) -> int:
        return sum(seen.count(0) for seen in self.seen.values())

    @property
    def duplicated(self) -> int:
        return sum(max(times - 1, 0) for seen in self.seen.values() for times in seen)


class _Demo:
    def __init__(self, directory: Path, records: int, seconds: float, bootstrap: str | None) -> None:
        self._directory = directory
        self._sent = {"socket": records - records // 2, "file": records // 2}
        self._seconds = seconds
        self._bootstrap = bootstrap
        self._topic = f"forwarder-demo-{uuid.uuid4().hex[:8]}"

    def run(self) -> int:
        from rich.console import Console

        console = Console()
        with self._broker() as bootstrap, self._agent(bootstrap) as agent:
            where = "a broker embedded in this process" if self._bootstrap is None else "Kafka"
            console.print(f"2 apps → agent (pid {agent.pid}) → {where} at {bootstrap}, topic {self._topic}")
            began, cpu_began = time.monotonic(), _cpu_seconds(agent.pid)
            tally = self._count(bootstrap, agent)
            wall = time.monotonic() - began
            cpu = _cpu_seconds(agent.pid) - cpu_began
        self._report(console, tally, wall, cpu)
        return 0 if tally.lost == 0 else 1

    @contextlib.contextmanager
    def _broker(self) -> Iterator[str]:
        from confluent_kafka import KafkaException, Producer

        if self._bootstrap is not None:
            try:
                Producer({"bootstrap.servers": self._bootstrap, "log_level": 0}).list_topics(timeout=10)
            except KafkaException:
                where = f"no Kafka answers at {self._bootstrap}; check --bootstrap, or leave it out for an embedded one"
                raise SystemExit(f"forwarder: {where}") from None
            yield self._bootstrap
            return
        cluster: Producer = Producer({"bootstrap.servers": "embedded", "test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
        yield f"{broker.host}:{broker.port}"

    @contextlib.contextmanager
    def _agent(self, bootstrap: str) -> Iterator[subprocess.Popen[bytes]]:
        quoted = {name: json.dumps(str(self._directory / name)) for name in ("state", "sock", "app.log", "http")}
        (self._directory / "forwarder.toml").write_text(
            f"[agent]\nstate_dir = {quoted['state']}\n"
            f"[kafka]\nbootstrap_servers = {json.dumps(bootstrap)}\ntopic = {json.dumps(self._topic)}\n"
            f"[[socket]]\npath = {quoted['sock']}\n"
            f'[[tail]]\npaths = [{quoted["app.log"]}]\napp = "demo-file"\n'
            f"[http]\nlisten = {json.dumps('unix:' + str(self._directory / 'http'))}\n"
        )
        with (self._directory / "agent.log").open("wb") as log:
            command = [sys.executable, "-m", "forwarder", "run", "-c", str(self._directory / "forwarder.toml")]
            agent = subprocess.Popen(command, stderr=log, env=_environment())  # noqa: S603 - ourselves
        try:
            self._until_ready(agent)
            yield agent
        finally:
            agent.terminate()
            agent.wait()

    def _until_ready(self, agent: subprocess.Popen[bytes]) -> None:
        from forwarder import client

        deadline = time.monotonic() + 20
        while True:
            try:
                client.get(f"unix:{self._directory / 'http'}", "/readyz")
            except OSError:
                if agent.poll() is not None or time.monotonic() > deadline:
                    said = (self._directory / "agent.log").read_text()
                    raise SystemExit(f"forwarder: the demo's agent did not start:\n{said}") from None
                time.sleep(0.02)
            else:
                return

    def _apps(self) -> list[subprocess.Popen[bytes]]:
        script = self._directory / "app.py"
        script.write_text(_APP.format(root=str(Path(__file__).parent.parent.parent)))
        return [
            subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, script, kind, self._directory / path, str(count), str(count / self._seconds), str(ROTATIONS)],
                env=_environment(),
            )
            for (kind, count), path in zip(self._sent.items(), ("sock", "app.log"), strict=True)
        ]

    def _count(self, bootstrap: str, agent: subprocess.Popen[bytes]) -> _Tally:
        """Start the apps and read back from Kafka until everything is there, or nothing more comes."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
        from rich.progress import Progress

        tally = _Tally(self._sent)
        total = sum(self._sent.values())
        consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": self._topic, "enable.auto.commit": False, "log_level": 0}
        )
        apps = self._apps()
        last = time.monotonic()
        with Progress() as progress, contextlib.closing(consumer):
            bars = {"received": progress.add_task("received", total=total)}
            assigned = 0
            while tally.lost or any(app.poll() is None for app in apps):
                if not assigned:
                    found = consumer.list_topics(self._topic, timeout=5).topics[self._topic]
                    assigned = 0 if found.error else len(found.partitions)
                    if assigned:
                        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in found.partitions])
                for message in consumer.consume(10_000, timeout=0.1):
                    if message.error() is None:
                        tally.add(message.value() or b"")
                        last = time.monotonic()
                self._show(progress, bars, tally)
                running = any(app.poll() is None for app in apps)
                if agent.poll() is not None or (not running and time.monotonic() - last > SETTLE_SECONDS):
                    break
        for app in apps:
            app.terminate()
            app.wait()
        return tally

    @staticmethod
    def _show(progress: Progress, bars: dict[str, TaskID], tally: _Tally) -> None:
        progress.update(bars["received"], completed=tally.received)

    def _report(self, console: Any, tally: _Tally, wall: float, cpu: float) -> None:
        from rich.table import Table

        total = sum(self._sent.values())
        table = Table(show_header=False)
        for name, value in (
            ("sent", f"{total}"),
            ("received", f"{tally.received}"),
            ("lost", f"{tally.lost}"),
            ("duplicated", f"{tally.duplicated}"),
            ("records/s", f"{total / wall:.0f}"),
            ("agent's CPU per record", f"{cpu / total * 1e6:.1f} µs"),
        ):
            table.add_row(name, value)
        console.print(table)
        if tally.lost:
            console.print("The agent's log:")
            console.print((self._directory / "agent.log").read_text(), markup=False)


def _environment() -> dict[str, str]:
    """The environment for our own processes: the same package, and none of the user's configuration."""
    root = str(Path(__file__).parent.parent.parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORWARDER")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
