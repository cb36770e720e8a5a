"""A real Apache Kafka: one broker or several, as processes that can be stopped, killed and frozen one by one; and its records.

`tests/tools/kafka.sh` does the work, which also serves by hand. It finds the jars in FORWARDER_TEST_CACHE.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic

from tests.harness.wait import POLL_SECONDS, eventually

SCRIPT = Path(__file__).parents[1] / "tools" / "kafka.sh"
AT_ONCE = 10_000
LEADERS_MOVE_BACK = "leader.imbalance.check.interval.seconds=2\nleader.imbalance.per.broker.percentage=0"
"""For several brokers: one that comes back leads again what it led before, within seconds."""

T = TypeVar("T")


class Record(NamedTuple):
    """A record as Kafka has it; `timestamp` in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int


class KafkaFailed(Exception):
    """kafka.sh did not do what it was asked for."""


class Topics:
    """Topics and records of the Kafka at `bootstrap`, whoever runs it."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._known: AdminClient | None = None

    def create_topic(self, name: str, partitions: int = 4, config: Mapping[str, str] | None = None, copies: int = -1) -> None:
        """Create a topic and wait until every partition has a leader; `copies` of -1 are as many as the brokers' default."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=copies, config=dict(config or {}))
        self._admin.create_topics([topic], request_timeout=30)[name].result(timeout=60)
        eventually(lambda: len(self._led_partitions(name)) == partitions, what=f"topic {name} with {partitions} partitions")

    def configure_topic(self, name: str, config: Mapping[str, str]) -> None:
        """Change some of a topic's configuration."""
        entries = [ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()]
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        self._admin.incremental_alter_configs([resource])[resource].result(timeout=30)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        self._admin.delete_topics([name], request_timeout=30)[name].result(timeout=60)
        eventually(lambda: name not in self._admin.list_topics(timeout=10).topics, what=f"topic {name} to be gone")

    def partitions(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions. Raises KafkaException when there is no such topic."""
        found = self._admin.list_topics(topic, timeout=10).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return sorted(found.partitions)

    def leaders_preferred(self, topic: str) -> bool:
        """Whether each partition is led by its first replica, as it was when the topic was made."""
        found = self._admin.list_topics(topic, timeout=10).topics[topic].partitions.values()
        return all(partition.leader == partition.replicas[0] for partition in found)

    def in_sync(self, *topics: str) -> bool:
        """Whether every copy of these topics has everything."""
        found = self._admin.list_topics(timeout=10).topics
        partitions = [partition for topic in topics for partition in found[topic].partitions.values()]
        return all(len(partition.isrs) == len(partition.replicas) for partition in partitions)

    def end_offsets(self, topic: str, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED) -> dict[int, int]:
        """For each partition, the offset after the last record that is not part of an open transaction, or after the last one."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]

        def ask() -> dict[int, int]:
            # Each time anew, which tells the client of leaders that have changed.
            wanted = {TopicPartition(topic, number): latest for number in self.partitions(topic)}
            found = self._admin.list_offsets(wanted, isolation_level=isolation, request_timeout=10)
            return {place.partition: future.result(timeout=10).offset for place, future in found.items()}

        # A partition may be between two leaders.
        return eventually(ask, what=f"the ends of topic {topic}")

    def records(self, topic: str, expected: int | None = None, timeout: float = 60) -> list[Record]:
        """What is in the topic, by partition in order. See `_read`."""
        return self._read(topic, expected, timeout, _record)

    def values(self, topic: str, expected: int | None = None, timeout: float = 60) -> list[bytes]:
        """As `records`, only the values; a million takes a few seconds."""
        return self._read(topic, expected, timeout, Message.value)

    def each(self, topic: str, use: Callable[[bytes, int], None], timeout: float = 60) -> None:
        """Call `use` with every value and its partition: of more records than memory holds."""
        self._read(topic, None, timeout, lambda message: use(message.value() or b"", cast(int, message.partition())), keep=False)

    def _read(
        self, topic: str, expected: int | None, timeout: float, take: Callable[[Message], T | None], keep: bool = True
    ) -> list[T]:
        """Read from the beginning to where the topic ends now; before that, wait until there are `expected` records.

        So what was duplicated beyond `expected` is seen as well. Of transactions only those committed are read. Raises
        AssertionError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        taken: list[Any] = []
        unkept: deque[Any] = deque(maxlen=0)
        reached: dict[int, int] = {}
        # Asked for by another connection than the one that fetches, where the question would wait behind each long poll.
        end = self.end_offsets(topic)
        places = [TopicPartition(topic, number) for number in end]
        with self._consumer() as consumer, _garbage_kept():
            # A consumer that does not know the leaders yet asks for them half a second after it was given partitions.
            consumer.list_topics(topic, timeout=10)
            consumer.get_watermark_offsets(places[0], timeout=30)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in end])
            enough = expected is None
            while True:
                if all(reached.get(number, 0) >= offset for number, offset in end.items()):
                    if enough:
                        return taken
                    # Where it ends once there is enough, or where it may be by now.
                    enough = len(taken) >= cast(int, expected)
                    end = self.end_offsets(topic)
                    if not enough and sum(end.values()) <= sum(reached.values()):
                        time.sleep(POLL_SECONDS)
                if time.monotonic() > deadline:
                    wanted = f"up to the offsets {end}" if enough else f"of {expected}"
                    raise AssertionError(f"after {timeout:g} s {len(taken)} records {wanted} were read from topic {topic}")
                messages = consumer.consume(AT_ONCE, timeout=POLL_SECONDS)
                good = [message for message in messages if message.error() is None]
                (taken if keep else unkept).extend(map(take, good))
                if len(good) < len(messages):
                    _note_ends(messages, reached)
                if good:
                    for position in consumer.position(places):
                        reached[position.partition] = max(reached.get(position.partition, 0), position.offset)

    @property
    def _admin(self) -> AdminClient:
        if self._known is None:
            self._known = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 500})
        return self._known

    def _led_partitions(self, name: str) -> list[int]:
        found = self._admin.list_topics(name, timeout=10).topics[name]
        return [number for number, partition in found.partitions.items() if partition.leader >= 0 and partition.error is None]

    @contextlib.contextmanager
    def _consumer(self) -> Iterator[Consumer]:
        settings = {
            "bootstrap.servers": self.bootstrap,
            "group.id": "tests",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,
            "fetch.max.bytes": 64 << 20,
            "max.partition.fetch.bytes": 16 << 20,
            "queued.min.messages": 1_000_000,
            "log_level": 0,
        }
        with contextlib.closing(Consumer(settings)) as consumer:
            yield consumer


class Kafka(Topics):
    """A cluster of `nodes` brokers in `directory`, which is the caller's to remove; `extra` are more properties of the brokers.

    Brokers are numbered from 1. The cluster keeps its data and its ports when it is stopped and started again. `fronts`, one
    for each broker, are where else it listens, HOST:PORT, and the address by which it tells clients there to reach it: that
    of a relay, or one of another network. The listener's name is FRONT.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 1,
        port: int | None = None,
        extra: str = "",
        fronts: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.directory = directory
        self.nodes = nodes
        self.port = free_ports(2 * nodes) if port is None else port
        super().__init__(",".join(f"127.0.0.1:{self.port + 2 * number}" for number in range(nodes)))
        self.front = ",".join(advertised for _, advertised in fronts)
        """What clients in front of the brokers begin with."""
        self._fronts = fronts
        self._extra = extra
        self._frozen: set[int] = set()

    # Brokers

    def start(self) -> None:
        """Start all brokers and wait until each accepts connections. Raises KafkaFailed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._extra:
            (self.directory / "extra.properties").write_text(self._extra + "\n")
        for number, (listens, advertised) in enumerate(self._fronts, start=1):
            place, own = self.directory / str(number), f"127.0.0.1:{self.port + 2 * (number - 1)}"
            place.mkdir(exist_ok=True)
            (place / "extra.properties").write_text(
                f"listeners=PLAINTEXT://{own},CONTROLLER://127.0.0.1:{self.port + 2 * number - 1},FRONT://{listens}\n"
                f"advertised.listeners=PLAINTEXT://{own},FRONT://{advertised}\n"
            )
        try:
            self._script("start", self.directory, self.port, self.nodes)
        except KafkaFailed as error:
            raise KafkaFailed("\n".join([str(error), *self._last_words()])) from None

    def stop(self) -> None:
        """End all brokers cleanly, those that are frozen too."""
        for number in tuple(self._frozen):
            self.thaw(number)
        self._script("stop", self.directory)

    def up(self, number: int = 1, timeout: float = 60) -> None:
        """Start one broker again and wait until it accepts connections."""
        self._script("up", self.directory, number)
        address = ("127.0.0.1", self.port + 2 * (number - 1))
        eventually(lambda: _accepts(address), timeout, f"broker {number} to answer; its log is {self.directory}/{number}/log")

    def down(self, number: int = 1) -> None:
        """End one broker with SIGTERM: it hands its partitions over first."""
        self._script("down", self.directory, number)

    def kill(self, number: int = 1) -> None:
        """End one broker with SIGKILL."""
        self._script("kill", self.directory, number)
        self._frozen.discard(number)

    def freeze(self, number: int = 1) -> None:
        """Stop one broker with SIGSTOP: its connections stay open and nothing answers."""
        os.kill(self.pid(number), signal.SIGSTOP)
        self._frozen.add(number)

    def thaw(self, number: int = 1) -> None:
        """Let a frozen broker go on."""
        self._frozen.discard(number)
        os.kill(self.pid(number), signal.SIGCONT)

    def pid(self, number: int = 1) -> int:
        return int(self._script("pid", self.directory, number))

    # Inside

    def _script(self, *args: object) -> str:
        done = subprocess.run(
            [str(SCRIPT), *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise KafkaFailed(f"kafka.sh {' '.join(map(str, args))}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout.strip()

    def _last_words(self) -> list[str]:
        """The ends of the brokers' logs, which may soon be removed."""
        logs = [path for name in ("log", "format.log") for path in sorted(self.directory.glob(f"*/{name}"))]
        return [line for path in logs for line in path.read_text(errors="replace").splitlines()[-10:]]


@contextlib.contextmanager
def temporary_cluster(**options: Any) -> Iterator[Kafka]:
    """A cluster in a directory of its own, from its start to its stop; `options` are those of `Kafka`."""
    with tempfile.TemporaryDirectory(prefix="fwd-kafka-") as directory:
        cluster = Kafka(Path(directory), **options)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports of the loopback that nobody uses, below those the kernel hands out by itself."""
    for first in random.sample(range(20_000, 32_000, count), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
            return first
    raise OSError(f"no {count} consecutive free ports found")


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """No garbage collection meanwhile: among a million records it takes nearly half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _accepts(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, timeout=1):
        return True


def _note_ends(messages: list[Message], reached: dict[int, int]) -> None:
    """Take down which partitions were read to their end. Raises KafkaException for errors that will not pass."""
    for message in messages:
        error = message.error()
        if error is None:
            continue
        if error.code() == KafkaError._PARTITION_EOF:
            reached[cast(int, message.partition())] = cast(int, message.offset())
        elif error.fatal() or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise KafkaException(error)


def _record(message: Any) -> Record:
    headers = message.headers()
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.key(),
        message.value() or b"",
        tuple(headers) if headers else (),
        message.timestamp()[1],
    )
