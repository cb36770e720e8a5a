"""Exactly once: what is sent between two commits is one transaction of Kafka, and each is known by a number.

- Before a transaction is committed, `positions.db` holds its number and where it ends in every source. The transaction itself
  carries the number alone, as an offset of a consumer group that nobody joins. Whether a commit of which nothing was heard
  has happened is never guessed: Kafka is asked for the number, and positions are adopted or dropped accordingly.
- A start fences whatever older instance there is and ends what it left open, then leaves a number of its own. An instance
  that finds a number which is not its own ends itself before it could fence the one that made it.
- Numbers that do not fit, because one side was lost or put back, are said and counted. What the positions say is
  then sent again: records may be in Kafka twice, and none is missing.
- A transaction that fails is aborted and its records are read again from their sources.

The calls that wait run in one thread of its own; all else in the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from confluent_kafka import KafkaError, KafkaException

from forwarder.config import Config
from forwarder.flight import FIRST_BACKOFF, LONGEST_BACKOFF, Flight
from forwarder.kafka import OF_TOPIC, Kafka, Numbered, group_metadata, last_number
from forwarder.positions import Mark, Marks
from forwarder.worker import Worker

log = logging.getLogger("forwarder.transactions")

COMMIT_PACE = 0.03
"""Seconds from one commit to the next at least: each takes a millisecond of processor time, whatever is in it."""
OLDEST = 0.5
"""A transaction is committed after so many seconds also when there is always more to send."""
HUNG_SECONDS = 30.0
"""No call of librdkafka takes so long; one that does never ends."""
LOOK_SECONDS, HOPELESS_SECONDS = 1.0, 2.0
"""How often is looked whether a call hangs, and how long one may go on when it is known to be in vain."""
SLOW_SECONDS = 3.0
STOP_SECONDS = 5.0
RENEW_SECONDS = 12 * 3600.0
"""Kafka forgets a group's offset after a week without a new one."""
RETRY_SECONDS = 0.05
ASK_AGAIN_SECONDS = 0.2
HANGING_FAILURES = 4
HANGING = (
    "a transaction of this agent stays open in Kafka though it has ended, and nothing can be sent before it is closed: see "
    "kafka-transactions.sh find-hanging and abort"
)
"""Kafka 4.3 may complete a transaction without closing it where a partition has no leader, as when a killed broker starts."""

T = TypeVar("T")
NUMBER_LOST = "number_lost"
NUMBER_OLD = "number_old"
POSITIONS_LOST = "positions_lost"
POSITIONS_OLD = "positions_old"
NOT_SAVED = "positions_not_saved"

_WHY = {
    NUMBER_LOST: "Kafka does not know the number of the last transaction (the group's offsets expired, or the topic that held "
    "them was deleted)",
    NUMBER_OLD: "Kafka knows an older transaction than positions.db does (were the group's offsets reset?)",
    POSITIONS_LOST: "positions.db knows of no transaction, Kafka does (was the state directory lost?)",
    POSITIONS_OLD: "Kafka has a transaction that positions.db does not know (was an older copy put back, or does another agent "
    "have the same agent.name?)",
}


class Ousted(Exception):
    """Another agent of the same name has shipped; the message says so and what to do."""


class _Closing(Exception):
    """The agent stops: whoever waits for Kafka gives up."""


class Shipping(Protocol):
    """What a shipper does for its transactions."""

    broken: Counter[str]
    """How often exactly-once could not be kept, by reason."""

    def connect_transactional(self) -> Kafka:
        """A new producer, in place of the one there was."""

    def transaction_open(self) -> None:
        """Records may be sent."""

    async def prepare(self, marks: Marks, flights: list[Flight]) -> None:
        """Save positions, and beside them where the flights end. Raises OSError."""

    async def adopt(self, settled: Mark | None, delivered: bool) -> None:
        """What was prepared by the last run is in Kafka, or it is not. Raises OSError."""

    def settle(self, flights: list[Flight]) -> None:
        """They are in Kafka."""

    def give_back(self, flights: list[Flight], cause: KafkaError | None) -> bool:
        """They are not in Kafka, and are to be sent again; True when it is known how to do better then."""

    def note(self, what: str) -> None:
        """Have `what` shown among the errors."""


def outcome(marks: Marks, found: Mark | None) -> tuple[bool, str]:
    """Whether what is prepared is in Kafka, which has the number `found`; and why that cannot be told, or an empty text."""
    if found is not None and found == marks.prepared:
        return True, ""
    if found == marks.settled:
        return False, ""
    if found is None:
        return False, NUMBER_LOST
    if marks == Marks():
        return False, POSITIONS_LOST
    if marks.settled is not None and found.number < marks.settled.number:
        return False, NUMBER_OLD
    return False, POSITIONS_OLD


class Transactions:
    """One transaction after another. Records may be sent while it is `open`, and what was sent is in `flights`."""

    def __init__(self, config: Config, marks: Marks, shipping: Shipping) -> None:
        self.open = False
        self.flights: list[Flight] = []
        self.resolved = asyncio.Event()
        """Set when it is known what became of the transaction that the last run left."""
        self._config = config
        self._shipping = shipping
        self._loop = asyncio.get_running_loop()
        self._worker = Worker("forwarder-transactions")
        self._calling_since = 0.0
        """When the call that the worker waits for was begun, on the monotonic clock; 0 when there is none."""
        self._closing = threading.Event()
        self._due = asyncio.Event()
        self._marks = marks
        self._kafka: Kafka | None = None
        self._group: object = None
        self._writer = uuid.uuid4().hex[:12]
        self._topic = ""
        """That by which the group keeps the number."""
        self._unfit: set[str] = set()
        """Topics that could not be used for that."""
        self._last = 0
        """The largest number known, here or in Kafka."""
        self._begun = 0.0
        self._committed_at = 0.0
        self._spoiled: KafkaError | None = None
        self._worn = False
        self._hopeless: KafkaError | None = None
        self._hopeless_since = 0.0
        self._backoff = FIRST_BACKOFF
        self._problem = ""

    async def run(self) -> None:
        """One transaction after another, until `stop`. Raises Ousted."""
        first = True
        while not self._closing.is_set():
            self._worn, self._hopeless = False, None
            kafka = self._kafka = self._shipping.connect_transactional()
            try:
                await self._take_over(kafka, first)
                first = False
                while not self._closing.is_set() and not self._worn:
                    await self._one(kafka)
            except _Closing:
                return
            except KafkaException as error:
                await self._wait_out(f"the producer failed ({error.args[0].str()}) and is replaced")

    def add(self, flight: Flight) -> None:
        if not self.flights:
            self._begun = self._loop.time()
        self.flights.append(flight)

    def spoil(self, error: KafkaError) -> None:
        """Some of what was to be sent could not even be queued: this transaction cannot be committed."""
        self._spoiled = error

    def give_up(self, error: KafkaError) -> None:
        """What is being committed never can be: go on with a new producer."""
        self._hopeless, self._hopeless_since = error, time.monotonic()

    def renew(self, error: KafkaError) -> None:
        """The producer is not to be trusted any more: go on with a new one, whatever the thread is at."""
        self._hopeless = error
        self._worn = True
        self._hopeless_since = time.monotonic()
        self._due.set()

    @property
    def hangs(self) -> bool:
        """Whether a commit takes suspiciously long."""
        return not self.open and bool(self.flights) and self._loop.time() - self._committed_at > SLOW_SECONDS

    @property
    def aged(self) -> bool:
        return self._spoiled is not None or self._loop.time() - self._begun > OLDEST

    def commit(self) -> float:
        """Begin to commit, or return in how many seconds that may be done."""
        wait = self._committed_at + COMMIT_PACE - self._loop.time()
        if wait > 0:
            return wait
        self.open = False
        self._due.set()
        return 0.0

    @property
    def settled(self) -> Mark | None:
        """The last transaction, if nothing is prepared beyond it."""
        return self._marks.settled if self._marks.prepared is None else None

    async def stop(self) -> None:
        """Begin nothing more, and abort what is open. The next start finds out what became of a commit that hangs."""
        self.open = False
        self._closing.set()
        await asyncio.wait([self._worker.call(self._give_up)], timeout=STOP_SECONDS)
        self._worker.close()

    def _give_up(self) -> None:
        """Runs after whatever the thread was at."""
        if self.flights and self._marks.prepared is None and self._kafka is not None:
            with contextlib.suppress(KafkaException):
                self._kafka.abort_transaction()

    # The steps of a transaction

    async def _one(self, kafka: Kafka) -> None:
        """Let records be sent until a commit is due, and commit."""
        self.open = True
        self._shipping.transaction_open()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._due.wait(), RENEW_SECONDS)
        self._due.clear()
        self.open = False
        self._committed_at = self._loop.time()
        if self.flights or self._topic:
            await self._commit(kafka)

    async def _commit(self, kafka: Kafka) -> None:
        """Raises KafkaException when the producer can do nothing more: what is prepared may be in Kafka or not."""
        self._last += 1
        mark = Mark(self._last, self._writer)
        if self._spoiled is not None:
            cause: KafkaError | None = self._spoiled
            await self._in_thread(self._abort, kafka)
        else:
            self._marks = Marks(self._marks.settled, mark)
            try:
                await self._shipping.prepare(self._marks, self.flights)
            except OSError:
                # Not to commit would keep a full disk full. If the agent is killed now, this transaction is sent again.
                self._shipping.broken[NOT_SAVED] += 1
            cause = await self._in_thread(self._finish, kafka, mark, self._choose_topic())
        # After an abort the sequence numbers of what was refused are missing: a new producer has none.
        self._worn = self._worn or cause is not None
        if not self._conclude(mark, cause) and cause is not None:
            await self._wait_out(f"a transaction was aborted ({cause.str()}) and is sent again")

    def _choose_topic(self) -> str:
        """The same as before, else one that exists: one that this transaction writes to."""
        if not self._topic:
            topics = {topic for flight in self.flights for topic in flight.topics}
            self._topic = min(topics - self._unfit or topics)
        return self._topic

    def _conclude(self, mark: Mark, cause: KafkaError | None, *, delivered: bool = True) -> bool:
        """The outcome is known: without a `cause` it is as `delivered` says. True when there is no reason to wait."""
        flights, self.flights = self.flights, []
        self._spoiled = None
        if cause is None and delivered:
            self._marks = Marks(mark)
            self._backoff = FIRST_BACKOFF
            self._problem = ""
            self._shipping.settle(flights)
            return True
        self._marks = Marks(self._marks.settled)
        return self._shipping.give_back(flights, cause)

    async def _wait_out(self, problem: str) -> None:
        self._say(problem)
        await asyncio.sleep(self._backoff)
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF)

    def _say(self, problem: str) -> None:
        self._shipping.note(problem)
        if problem != self._problem:
            log.warning("%s", problem)
            self._problem = problem

    # Taking over

    async def _take_over(self, kafka: Kafka, first: bool) -> None:
        """Become the only instance, and find out what became of what was prepared."""
        found = await self._in_thread(self._fence, kafka, first)
        delivered, trouble = outcome(self._marks, _mark(found))
        prepared = self._marks.prepared
        settled = prepared if delivered else self._marks.settled
        if trouble:
            self._shipping.broken[trouble] += 1
            settled = _mark(found)
            what = f"exactly-once is broken: {_WHY[trouble]}"
            log.error("%s; what positions.db does not know to be in Kafka is sent, again if it is there", what)
            self._shipping.note(what)
        self._last = max(found.number if found else 0, *(mark.number for mark in (prepared, settled) if mark), self._last)
        self._topic = found.topic if found else ""
        if first:
            await self._shipping.adopt(settled, delivered)
        else:
            self._conclude(prepared or Mark(0, ""), None, delivered=delivered)
        self._marks = Marks(settled)
        self.resolved.set()
        if found is not None and not self._closing.is_set():
            # So that an older instance which is only suspended finds that it is not the last one.
            await self._commit(kafka)

    # In the thread

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Raises KafkaException when the thread hangs; it is given up then, and so must be the producer."""
        result = self._worker.call(work, *args)
        while not (await asyncio.wait([result], timeout=LOOK_SECONDS))[0]:
            since, now = self._calling_since, time.monotonic()
            hopeless = self._hopeless is not None and now - self._hopeless_since > HOPELESS_SECONDS
            if since and (hopeless or now - since > HUNG_SECONDS):
                result.cancel()
                self._worker.close()
                self._worker = Worker("forwarder-transactions")
                self._calling_since = 0.0
                raise KafkaException(self._hopeless or KafkaError(KafkaError._TIMED_OUT, "librdkafka hangs"))
        return result.result()

    def _fence(self, kafka: Kafka, first: bool) -> Numbered | None:
        """The last number, when no other instance can leave one any more."""
        if not first:
            # Of an older producer of our own a transaction may still be open.
            self._refuse_to_fence(self._ask(stable=False))
        self._patiently(kafka.init_transactions)
        self._group = group_metadata(self._config)
        found = self._ask()
        if not first:
            self._refuse_to_fence(found)
        kafka.begin_transaction()
        return found

    def _refuse_to_fence(self, found: Numbered | None) -> None:
        if found is not None and _mark(found) not in {self._marks.settled, self._marks.prepared}:
            raise Ousted(
                f'another agent with agent.name = "{self._config.agent.name}" ships to this Kafka: this one ends, so that '
                "nothing is sent twice; give each agent a name of its own, and let only one work with a state directory or a "
                "copy of it"
            )

    def _finish(self, kafka: Kafka, mark: Mark, topic: str) -> KafkaError | None:
        """Commit, and begin the next; None when it is committed, otherwise why it was aborted.

        Raises KafkaException when the producer could do neither.
        """
        added = False
        try:
            self._patiently(kafka.add_number, topic, mark.number, mark.writer, self._group)
            added = True
            self._patiently(kafka.commit_transaction)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if not cause.txn_requires_abort():
                raise
            if added:
                self._patiently(kafka.abort_transaction)
                self._worn = True
                return None if _mark(self._ask()) == mark else cause
            if cause.code() in OF_TOPIC:
                self._unfit.add(topic)
                self._topic = ""
            self._abort(kafka)
            return cause
        kafka.begin_transaction()
        return None

    def _abort(self, kafka: Kafka) -> None:
        """End a transaction of which no commit was asked for; what an abort that fails leaves is ended by the next producer."""
        with contextlib.suppress(KafkaException):
            self._patiently(kafka.abort_transaction)

    def _ask(self, *, stable: bool = True) -> Numbered | None:
        for failures in itertools.count():
            try:
                return last_number(self._config, stable=stable)
            except KafkaException as error:
                if failures:  # once is what a coordinator that has just been made answers
                    problem = f"the number of the last transaction cannot be had: {error.args[0].str()}"
                    if stable and failures >= HANGING_FAILURES and self._is_there():
                        problem = HANGING
                    self._loop.call_soon_threadsafe(self._say, problem)
            if self._closing.wait(min(ASK_AGAIN_SECONDS * 2**failures, LONGEST_BACKOFF)):
                break
        raise _Closing

    def _is_there(self) -> bool:
        """Whether Kafka has an answer as long as it is not asked what an open transaction may change."""
        try:
            last_number(self._config, stable=False)
        except KafkaException:
            return False
        return True

    def _patiently(self, call: Callable[..., None], *args: Any) -> None:
        """Call until it is done; raises KafkaException for what does not pass by itself, _Closing when the agent stops."""
        while True:
            since = self._calling_since = time.monotonic()
            try:
                call(*args)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
            finally:
                if self._calling_since == since:  # the thread was not given up meanwhile, or no other calls yet
                    self._calling_since = 0.0
            if self._hopeless is not None:
                raise KafkaException(self._hopeless)
            if self._closing.wait(RETRY_SECONDS):
                raise _Closing


def _mark(found: Numbered | None) -> Mark | None:
    return Mark(found.number, found.writer) if found is not None else None
