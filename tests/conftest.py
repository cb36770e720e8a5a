"""What every test may ask for: a real Kafka, agents and apps as processes, a topic and a directory of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.harness import apps
from tests.harness.agent import Agent
from tests.harness.gate import Gate
from tests.harness.kafka import Kafka, KafkaFailed

# A busy machine is no failure; a seed that fails is.
settings.register_profile("forwarder", deadline=None, print_blob=True)
settings.load_profile("forwarder")

AGENTS = pytest.StashKey[list[Agent]]()

AgentFactory = Callable[..., Agent]
AppFactory = Callable[..., "subprocess.Popen[str]"]


def pytest_sessionstart() -> None:
    """TERM ends the tests as an interrupt does: with the ends of their fixtures, so that no broker is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """One broker for the whole session, which tests leave running and whole; for others, start a Kafka of your own."""
    with tempfile.TemporaryDirectory(prefix="fwd-kafka-") as directory:
        cluster = Kafka(Path(directory))
        try:
            cluster.start()
        except KafkaFailed as error:
            cluster.stop()
            raise RuntimeError(
                f"no Apache Kafka: {error}; run tests/run, which installs it, or install openjdk-17-jre-headless and maven"
            ) from None
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def own_kafka(directory: Path) -> Iterator[Kafka]:
    """A broker of the test's own, running, to be stopped, killed and started as it likes."""
    cluster = Kafka(directory / "kafka")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def gate(kafka: Kafka) -> Iterator[Gate]:
    gate = Gate(kafka)
    yield gate
    gate.close()


@pytest.fixture
def topic(kafka: Kafka) -> str:
    """The name of a new topic with four partitions."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    kafka.create_topic(name)
    return name


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fwd-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def agent(directory: Path, request: pytest.FixtureRequest) -> Iterator[AgentFactory]:
    """Makes agents, not started yet, from a configuration: the first in the test's directory, others in one of their own."""
    agents: list[Agent] = []
    request.node.stash[AGENTS] = agents

    def make(config: str | Mapping[str, Any], **options: Any) -> Agent:
        place = directory / f"agent{len(agents) + 1}" if agents else directory
        agents.append(Agent(place, config, **options))
        return agents[-1]

    yield make
    for one in agents:
        one.stop()


@pytest.fixture
def app() -> Iterator[AppFactory]:
    """Runs apps as `apps.run_app` does, and ends those that still run when the test is over."""
    running: list[subprocess.Popen[str]] = []

    def run(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
        running.append(apps.run_app(code, *args, **options))
        return running[-1]

    yield run
    for one in running:
        apps.end(one)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of its agents' logs."""
    report = yield
    if report.failed and report.when != "teardown":
        for one in item.stash.get(AGENTS, []):
            report.sections.append((f"end of {one.directory}/agent.log", one.log_tail()))
    return report
