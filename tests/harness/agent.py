"""The agent as a process: started from a configuration, asked over HTTP, killed and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from forwarder import client
from tests.harness import process
from tests.harness.apps import environment
from tests.harness.wait import eventually

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LONGEST_SOCKET_PATH = 107
BOUND_BY_PERMISSIONS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""A wrapper: the permissions of files mean something to an agent even when root runs the tests."""
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Agent:
    """An agent with everything in `directory`, whose path has to be short because of the sockets in it.

    To `config`, a tree or TOML, are added, where it does not say otherwise: a state directory, a Unix socket for HTTP, and a
    socket for apps when it names neither sockets nor files.
    """

    def __init__(
        self,
        directory: Path,
        config: str | Mapping[str, Any],
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """`wrapper` is a command that runs the one which follows it, in its own place."""
        self.directory = directory
        self.config = with_defaults(tomllib.loads(config) if isinstance(config, str) else config, directory)
        self.file = directory / "forwarder.toml"
        self.state = Path(self.config["agent"]["state_dir"])
        self.listen = str(self.config["http"]["listen"])
        self._log = directory / "agent.log"
        self._python = python
        self._env = env
        self._wrapper = wrapper
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.file.write_text(to_toml(self.config), encoding="utf-8")

    # Its life

    def start(self, wait: bool = True) -> None:
        """Start it, also after it has ended; with `wait`, until it is ready. Raises AssertionError when it ends instead."""
        assert not self.alive, "the agent runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, self._python, "-m", "forwarder", "run", "-c", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._env),
                cwd=self.directory,
            )
        if wait:
            self.await_ready()

    def await_ready(self, timeout: float = 30) -> None:
        eventually(lambda: not self.alive or client.get(self.listen, "/readyz"), timeout, "the agent to be ready")
        assert self.alive, f"the agent ended with {self._known.returncode}; its last words:\n{self.log_tail(5)}"

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._known.kill()
        self._known.wait()

    def terminate(self, timeout: float = 30) -> int:
        """End it with SIGTERM; returns its exit code."""
        self._known.terminate()
        return self.wait(timeout)

    def wait(self, timeout: float = 30) -> int:
        """Wait until it ends; returns its exit code."""
        try:
            return self._known.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the agent did not end within {timeout:g} s; its last words:\n{self.log_tail(5)}") from None

    def signal(self, number: int) -> None:
        self._known.send_signal(number)

    def freeze(self) -> None:
        """Stop it with SIGSTOP: its sockets stay open and nothing answers."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, if it runs, at once."""
        if self._process is not None:
            self.kill()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._known.pid

    @property
    def _known(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the agent was never started"
        return self._process

    # What it says

    @property
    def socket(self) -> Path:
        """The first socket for apps."""
        return Path(self.config["socket"][0]["path"])

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def log_tail(self, lines: int = 50) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def get(self, path: str) -> bytes:
        """A page over HTTP. Raises OSError."""
        return client.get(self.listen, path)

    def status(self) -> dict[str, Any]:
        return client.status(self.listen)

    def metrics(self) -> Metrics:
        """Every sample, by name and labels."""
        families = text_string_to_metric_families(self.get("/metrics").decode())
        return {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for family in families
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels, among others; 0 when there are none."""
        wanted = labels.items()
        return sum(value for (found, having), value in self.metrics().items() if found == name and wanted <= having)

    # What it costs

    def rss(self) -> int:
        """Bytes of memory it has now."""
        return process.memory(self.pid, "VmRSS")

    def peak(self) -> int:
        """Bytes of memory it had at most."""
        return process.memory(self.pid, "VmHWM")

    def cpu(self) -> float:
        """Seconds of processor time it has used, user and system."""
        return process.cpu(self.pid)


def with_defaults(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The configuration of an agent that keeps to `directory`."""
    tree = dict(config)
    tree["agent"] = {"state_dir": str(directory / "state"), **tree.get("agent", {})}
    tree["http"] = {"listen": f"unix:{directory / 'http.sock'}", **tree.get("http", {})}
    if not tree.get("socket") and not tree.get("tail"):
        tree["socket"] = [{"path": str(directory / "s.sock")}]
    paths = [tree["http"]["listen"].removeprefix("unix:"), *(table["path"] for table in tree.get("socket", ()))]
    too_long = [path for path in paths if len(os.fsencode(path)) > LONGEST_SOCKET_PATH]
    assert not too_long, f"no socket can have so long a path: {too_long}"
    return tree


def to_toml(tree: Mapping[str, Any]) -> str:
    """TOML for a configuration: tables and arrays of tables at the top, whatever is deeper in line."""
    plain: list[str] = []
    tables: list[str] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            tables += ["", f"[{_key(name)}]", *_pairs(value)]
        elif isinstance(value, (list, tuple)) and value and all(isinstance(table, Mapping) for table in value):
            for table in value:
                tables += ["", f"[[{_key(name)}]]", *_pairs(table)]
        else:
            plain.append(f"{_key(name)} = {_inline(value)}")
    return "\n".join([*plain, *tables]).lstrip("\n") + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_inline(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else _inline(name)


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, (str, bool, int, float)):
        # JSON's strings are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"no TOML for {value!r}")
