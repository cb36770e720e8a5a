"""What users would otherwise pick, each at its best known settings: kcat, rsyslog and syslog-ng, as Debian has them.

All send idempotently with acks=all. rsyslog and syslog-ng have a disk buffer before Kafka, as the agent has; kcat has nothing and
shows what librdkafka itself takes. Their configurations are in `configs`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import string
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.common import Cost, arrived, finish, reap
from tests.bench.senders import Dialect, sending
from tests.harness.kafka import Topics
from tests.harness.wait import eventually

CONFIGS = Path(__file__).parent / "configs"
KCAT, RSYSLOG, SYSLOG_NG = "kcat", "rsyslog", "syslog-ng"
PACKAGES = {KCAT: "kcat", RSYSLOG: "rsyslog rsyslog-kafka", SYSLOG_NG: "syslog-ng-core syslog-ng-mod-rdkafka"}
_COMMANDS = {KCAT: "kcat", RSYSLOG: "rsyslogd", SYSLOG_NG: "syslog-ng"}
_ADMIN_PATH = "/usr/sbin:/usr/local/sbin"

_INPUTS = {
    (RSYSLOG, "file"): 'module(load="imfile" mode="inotify")\n'
    'input(type="imfile" file="$path" tag="bench" ruleset="kafka" freshStartTail="off" readMode="0")',
    (RSYSLOG, "socket"): 'module(load="imptcp")\ninput(type="imptcp" path="$path" ruleset="kafka")',
    (SYSLOG_NG, "file"): 'file("$path" flags(no-parse) read-old-records(yes) follow-freq(0.1) '
    "log-fetch-limit(10000) log-iw-size(100000));",
    (
        SYSLOG_NG,
        "socket",
    ): 'unix-stream("$path" flags(no-parse) max-connections(256) log-fetch-limit(10000) log-iw-size(2560000));',
}


def find(peer: str) -> str | None:
    """The peer's command, or None where it is not installed."""
    return shutil.which(_COMMANDS[peer]) or shutil.which(_COMMANDS[peer], path=_ADMIN_PATH)


def version(peer: str) -> str:
    """The number that it says of itself."""
    said = subprocess.run([find(peer) or peer, "-v" if peer == RSYSLOG else "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout)
    return found.group() if found is not None else "of unknown version"


def kcat_file(kafka: Topics, topic: str, path: Path, compression: str) -> Cost:
    """kcat reads the file once and ends."""
    settings = ["-z", compression, "-X", "acks=all", "-X", "enable.idempotence=true"]
    begun = time.monotonic()
    process = subprocess.Popen(
        [find(KCAT) or KCAT, "-P", "-b", kafka.bootstrap, "-t", topic, *settings, "-l", str(path)], stdin=subprocess.DEVNULL
    )
    return reap(process.pid, begun)


def daemon_file(peer: str, kafka: Topics, topic: str, path: Path, records: int, directory: Path) -> Cost:
    """A daemon that follows the file, until all of it is in Kafka."""
    begun = time.monotonic()
    with running(peer, "file", kafka, topic, path, directory) as process:
        return finish(process.pid, lambda: _deliveries(process, kafka, topic), records, begun)


def daemon_socket(peer: str, kafka: Topics, topic: str, connections: int, records: int, directory: Path) -> Cost:
    """A daemon that listens on a Unix socket, until all that was sent is in Kafka."""
    path = directory / "s"
    with running(peer, "socket", kafka, topic, path, directory) as process:
        eventually(path.is_socket, 30, f"{peer} to listen")
        with sending(Dialect.PLAIN, path, connections, records):
            return finish(process.pid, lambda: _deliveries(process, kafka, topic), records, time.monotonic())


@contextlib.contextmanager
def running(peer: str, what: str, kafka: Topics, topic: str, path: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    directory.mkdir(parents=True, exist_ok=True)
    places = {"directory": directory, "bootstrap": kafka.bootstrap, "topic": topic, "path": path}
    taken = string.Template(_INPUTS[peer, what]).substitute(places)
    text = (CONFIGS / f"{peer}.conf").read_text().replace("$input", taken)
    config = directory / f"{peer}.conf"
    config.write_text(string.Template(text).substitute(places))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(_command(peer, config, directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            process.kill()
            process.wait()


def _command(peer: str, config: Path, directory: Path) -> Sequence[str]:
    command = find(peer) or peer
    if peer == RSYSLOG:
        return [command, "-n", "-f", str(config), "-i", str(directory / "pid")]
    files = [f"--persist-file={directory}/persist", f"--pidfile={directory}/pid", f"--control={directory}/control"]
    return [command, "-F", "-f", str(config), *files, "--no-caps"]


def _deliveries(process: subprocess.Popen[bytes], kafka: Topics, topic: str) -> int:
    """Which end with the process."""
    if process.poll() is not None:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    return arrived(kafka, topic)
