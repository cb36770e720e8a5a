"""`forwarder check`, as a process: exit codes, what it prints, what it keeps to itself, and what it says of Kafka."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from forwarder import config, configload

EVERYTHING = r"""
[agent]
name = "edge-1"
state_dir = "/srv/state"
shutdown_timeout = "90s"
[kafka]
bootstrap_servers = "k-1:9092,k-2:9092"
topic = "logs.{app}"
key = "{field:trace.id}"
compression = "zstd"
in_flight = "1.5MiB"
properties = { "linger.ms" = 5, "socket.keepalive.enable" = false, "client.id" = "a \"quoted\" name" }
[[socket]]
path = "/run/one.sock"
mode = "0600"
group = "0"
app = "one"
topic = "one"
key = "k"
fields = { "a b" = { c = [1, 2.5, true, "x", 2026-01-02] } }
allow_topics = ["audit.*"]
allow_uids = [0, 1000]
allow_groups = ["adm"]
max_record = 5000
schema = "ecs"
[[socket]]
[[tail]]
paths = ["/var/log/a b/**/*.log"]
exclude = []
start = "end"
format = "raw"
encoding = "gb18030"
ignore_older = "36h"
[spool]
max_bytes = "3GiB"
max_bytes_per_app = "2000001B"
fsync = "250ms"
when_full = "drop-oldest"
[[redact]]
pattern = '([$${]\d+)\\ "x"$'
replace = '\1$$$$'
[[redact]]
name = "credit-card"
[fields]
environment = "production"
line = "tab\tand\nline feed"
cost = "$$5 and $${x}"
when = 2026-01-02T03:04:05Z
[http]
listen = ""
"""


def check(file: Path | None, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it with the environment of this process, without what would configure the agent, and `environ`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORWARDER")}
    where = [] if file is None else ["-c", str(file)]
    command = [sys.executable, "-m", "forwarder", "check", *where, *options]
    return subprocess.run(command, env={**kept, **environ}, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "forwarder.toml"


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """The address of a mock cluster that has the topic `there`."""
    producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    producer.list_topics("there", timeout=10)
    yield next(iter(f"{one.host}:{one.port}" for one in producer.list_topics(timeout=10).brokers.values()))


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address at which nobody listens, and nobody else can while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(EVERYTHING, id="every key"),
        pytest.param('[kafka]\nbootstrap_servers = "k"\n', id="defaults"),
        pytest.param('[kafka]\nbootstrap_servers = "k"\n[[tail]]\npaths = ["/a"]\n', id="only a tail"),
        pytest.param('[kafka]\nbootstrap_servers = "k"\n[spool]\nmax_bytes = "5MiB"\n', id="a small spool"),
    ],
)
def test_what_it_prints_fed_back_in_loads_to_the_same_configuration(file: Path, text: str) -> None:
    file.write_text(text)
    printed = check(file)
    assert (printed.returncode, printed.stderr) == (0, "")
    again = file.with_name("again.toml")
    again.write_text(printed.stdout)
    assert configload.load(str(again), {}).config == configload.load(str(file), {}).config


def test_it_prints_defaults_and_what_holds_for_keys_that_are_not_set(file: Path) -> None:
    file.write_text('[kafka]\nbootstrap_servers = "k"\n')
    lines = check(file).stdout.splitlines()
    assert f"# from {file}" in lines
    for line in ('max_bytes = "2GiB"', 'mode = "0660"', 'shutdown_timeout = "20s"', "# group: not set, the agent's own group"):
        assert line in lines


def test_the_environment_alone_is_enough(file: Path) -> None:
    if Path(config.DEFAULT_FILE).exists():
        file.write_text("")
        printed = check(file, FORWARDER__KAFKA__BOOTSTRAP_SERVERS="k:9092")
    else:
        printed = check(None, FORWARDER__KAFKA__BOOTSTRAP_SERVERS="k:9092")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert 'bootstrap_servers = "k:9092"' in printed.stdout.splitlines()


def test_errors_come_to_standard_error_one_line_each_and_the_exit_code_is_78(file: Path) -> None:
    file.write_text('[kafka]\ntopc = "x"\n')
    printed = check(file)
    assert (printed.returncode, printed.stdout) == (78, "")
    assert printed.stderr.splitlines() == [
        f'{file}: kafka.topc: unknown key; did you mean "topic"?',
        f"{file}: kafka.bootstrap_servers: missing; required: HOST:PORT, several with commas",
    ]


def test_wrong_usage_is_exit_code_2() -> None:
    assert check(None, "--conect").returncode == 2


def test_no_secret_is_printed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter-file\n")
    file.write_text(
        """
        [kafka]
        bootstrap_servers = "k"
        key = "${KEY_OF_ALL:-x}"
        [kafka.properties]
        "sasl.username" = "someone"
        "sasl.password" = "hunter-plain"
        "ssl.key.password" = "${file:password}"
        "ssl.keystore.password" = "hunter-keystore"
        "sasl.oauthbearer.client.secret" = "a-${SOME_SECRET}-b"
        "sasl.oauthbearer.config" = "hunter-config"
        [fields]
        token = { inner = ["${API_TOKEN}"] }
        from_file = "x${file:password}"
        environment = "${ENVIRONMENT_NAME}"
        [[redact]]
        pattern = "${file:password}"
        replace = ""
        """
    )
    secrets = {"SOME_SECRET": "hunter-secret", "API_TOKEN": "hunter-token", "KEY_OF_ALL": "hunter-key"}
    printed = check(
        file, **secrets, ENVIRONMENT_NAME="staging", FORWARDER__KAFKA__PROPERTIES__SASL_OAUTHBEARER_CLIENT_SECRET="hunter-env"
    )
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "hunter" not in printed.stdout
    assert printed.stdout.count('"********"') == 9
    assert 'environment = "staging"' in printed.stdout.splitlines()
    assert '"sasl.username" = "someone"' in printed.stdout


def test_a_broker_that_is_not_there_is_said_with_what_to_do(file: Path, closed_port: str) -> None:
    file.write_text(f'[kafka]\nbootstrap_servers = "{closed_port}"\n')
    printed = check(file, "--connect")
    assert printed.returncode == 78
    (line,) = printed.stderr.splitlines()
    assert line.startswith(f'kafka.bootstrap_servers: no broker answers at "{closed_port}": ')
    assert "Connection refused" in line
    assert line.endswith("; start the broker or correct the address; with TLS or SASL, look at kafka.properties too")


def test_with_all_topics_there_it_ends_with_0_and_what_it_prints_is_still_toml(file: Path, broker: str) -> None:
    file.write_text(f'[kafka]\nbootstrap_servers = "{broker}"\ntopic = "there"\n')
    printed = check(file, "--connect")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.splitlines()[-2:] == [f"# Kafka answers at {broker}: 1 broker", '# topic "there" of kafka.topic: there']
    again = file.with_name("again.toml")
    again.write_text(printed.stdout)
    assert configload.load(str(again), {}).config == configload.load(str(file), {}).config


def test_missing_topics_are_named_by_their_keys_and_not_made(file: Path, broker: str) -> None:
    file.write_text(
        f"""
        [kafka]
        bootstrap_servers = "{broker}"
        topic = "missing-default"
        [[socket]]
        path = "/a"
        topic = "there"
        allow_topics = ["missing-audit", "audit.*"]
        [[socket]]
        path = "/b"
        topic = "missing-{{app}}"
        [[tail]]
        paths = ["/x"]
        app = "shop"
        topic = "missing-{{app}}"
        [[tail]]
        paths = ["/y"]
        topic = "errors.{{level}}"
        [[tail]]
        paths = ["/z"]
        """
    )
    expected = [
        'tail[0].topic: topic "missing-shop" does not exist; create it, or name one that does',
        'kafka.topic: topic "missing-default" does not exist; create it, or name one that does',
        'socket[0].allow_topics[0]: topic "missing-audit" does not exist; create it, or name one that does',
    ]
    printed = check(file, "--connect")
    assert (printed.returncode, printed.stderr.splitlines()) == (78, expected)
    assert printed.stdout.splitlines()[-5:] == [
        f"# Kafka answers at {broker}: 1 broker",
        '# topic "there" of socket[0].topic: there',
        '# topics "missing-{app}" of socket[1].topic: not looked at, apps or records decide',
        '# topics "errors.{level}" of tail[1].topic: not looked at, apps or records decide',
        '# topics "audit.*" of socket[0].allow_topics[1]: not looked at, apps or records decide',
    ]
    assert list(Producer({"bootstrap.servers": broker}).list_topics(timeout=10).topics) == ["there"]
