"""The shipper with kafka.delivery = "exactly-once": a chunk is settled when the transaction that it is part of is committed.

- Transactions grow with the load by themselves: a commit begins when there is nothing more to read, the window is full, or the
  transaction has some age; while it goes on, sources wait on disk.
- When a transaction is aborted, its sources are read again from what is settled.
- When it was for a record or a topic that Kafka refuses, those whose records may be to blame are tried, apart from all
  others, before they become part of a transaction again. What is refused for good becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError
from msgspec.structs import replace

from forwarder.config import Config
from forwarder.flight import Flight, Keyed, Lane, Refused, flat
from forwarder.kafka import FOR_GOOD, OF_TOPIC, Kafka, Report, Way
from forwarder.positions import Mark, Marks, Positions, Saved
from forwarder.probe import Probe
from forwarder.shipper import SUSPECT_SECONDS, Shipper, log
from forwarder.source import Chunk
from forwarder.transactions import NOT_SAVED, Transactions
from forwarder.worker import Worker

USUAL_BATCH_BYTES = 1_000_000
"""librdkafka's own default of batch.size."""

Groups = dict[str, list[Keyed]]


class ExactlyOnceShipper(Shipper):
    way = Way.TRANSACTION

    def __init__(self, config: Config, positions: Positions, dead_letters: Path) -> None:
        super().__init__(config, positions, dead_letters)
        self.transactions = Transactions(config, positions.marks(), self)
        self._worn = False
        """Whether the main producer has been used."""
        self._batch_bytes = int(config.kafka.properties.get("batch.size", USUAL_BATCH_BYTES))
        self._tasks: set[asyncio.Task[None]] = set()
        self._probe = Probe(config)
        self._probing = Worker("forwarder-probe")
        self._letters: dict[Lane, set[tuple[int, str, bytes | None, bytes]]] = {}
        """Dead letters of chunks that are not settled."""
        self._tried: deque[tuple[Flight, Groups]] = deque()
        """What Kafka takes, each record alone, and is to be sent when a transaction is open."""
        self._spawn(self.transactions.run())

    def _spawn(self, story: Coroutine[Any, Any, None]) -> None:
        """Run it beside all else; that it fails ends shipping."""
        task = self._loop.create_task(story)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)

    # Turns

    def _take_turn(self) -> None:
        self._scheduled = None
        self._last_turn = self._loop.time()
        transactions = self.transactions
        if not transactions.open:
            return
        self._main.poll()
        self._send_tried()
        self._ship()
        wait = 0.0
        if transactions.flights and (not self._active or self._limited or transactions.aged):
            wait = transactions.commit()
            if not wait:
                return
        if self._active and not self._limited:
            self._due = self._last_turn
            self._scheduled = self._loop.call_soon(self._turn)
        elif wait:
            self._schedule(wait)

    def _replace_producers(self) -> None:
        """That a producer has failed is found out by the next commit."""

    # Sending

    def _report(self, flight: Flight) -> Report:
        return flight.heard.setdefault

    def _take_off(self, flight: Flight, reports: int) -> None:
        super()._take_off(flight, 1)
        self.transactions.add(flight)

    def _not_queued(self, flight: Flight, refused: Refused) -> None:
        flight.refused.append(refused)
        self.transactions.spoil(refused.error)

    def _send_each(self, flight: Flight, chunk: Chunk, records: list[bytes]) -> None:
        lane = flight.lane
        groups = self._grouped(flight, chunk, records)
        if groups is None:
            return
        lane.flights.append(flight)
        if flight.start < lane.careful_until:
            super()._take_off(flight, 1)
            lane.retrying = True
            self._spawn(self._try(flight, groups))
        else:
            self._queue_in_transaction(flight, groups)

    def _queue_in_transaction(self, flight: Flight, groups: Groups) -> None:
        self._take_off(flight, 1)
        for name, pairs in groups.items():
            for error, key, value in self._main.send_each(name, pairs, flight.heard.setdefault):
                self._not_queued(flight, Refused(error, name, -1, key, value))

    # Trying

    async def _try(self, flight: Flight, groups: Groups) -> None:
        """Find out what Kafka refuses of a chunk that is sent carefully, set it aside, and have the rest sent."""
        lane = flight.lane
        records = flat(groups)
        judged = await self._probing.call(self._probe.judge, records)
        if judged is None or flight not in lane.flights:  # an older one was aborted meanwhile: all is read again
            return
        if judged.of_topic is not None:
            self._note(f"{judged.of_topic.topic}: {judged.of_topic.error.str()}", lane.source.app)
            self._blame_topic(lane, judged.of_topic)
        self._set_aside(flight, list(judged.refused.values()))
        if judged.of_topic is not None or flight.refused:
            self._drop(flight)
            self._wait(lane, "")
            return
        left: Groups = {}
        for place, (name, key, value) in enumerate(records):
            if place not in judged.refused:
                left.setdefault(name, []).append((key, value))
        flight.way = Way.SINGLE
        self._tried.append((flight, left))
        self._schedule()

    def _drop(self, flight: Flight) -> None:
        """The last flight of its lane, which nothing was sent of, is read again; those before it are on their way."""
        lane = flight.lane
        lane.flights.remove(flight)
        lane.in_flight -= flight.charge
        self.in_flight -= flight.charge
        lane.retrying = False
        self._seek(lane, flight.start)

    def _set_aside(self, flight: Flight, refused: list[Refused]) -> None:
        """Dead letters of what has none yet: the rest of a chunk may be sent more than once before it is settled."""
        buried = self._letters.setdefault(flight.lane, set())
        places = [(flight.start, each.topic, each.key, each.value) for each in refused]
        flight.refused = [each for each, place in zip(refused, places, strict=True) if place not in buried]
        for each in refused:
            if each not in flight.refused:
                flight.topics[each.topic] -= 1
        if flight.refused:
            self._bury(flight, flight.refused)
        if not flight.refused:
            buried.update(places)

    def _send_tried(self) -> None:
        while self._tried:
            flight, groups = self._tried.popleft()
            lane = flight.lane
            if flight not in lane.flights:
                continue
            lane.in_flight -= flight.charge
            self.in_flight -= flight.charge
            if groups:
                self._queue_in_transaction(flight, groups)
            else:
                self._take_off(flight, 1)
            lane.retrying = False
            self.wake(lane.source)

    def _take_back(self, lanes: Iterable[Lane]) -> None:
        """Nothing of them is on its way any more: they are read again from what is settled."""
        for lane in lanes:
            self.in_flight -= lane.in_flight
            lane.in_flight = 0
            lane.failed = lane.retrying = False
            lane.recall()
            self._seek(lane, lane.position)
            self.wake(lane.source)

    def _renew_producer(self, why: str) -> None:
        self.transactions.renew(KafkaError(KafkaError._TIMED_OUT, why))

    # What transactions ask for

    def connect_transactional(self) -> Kafka:
        if self._worn:
            self._main.close()
            self._main = self._connect(self.way)
            self._topics.asked_in_vain()
            self.replaced += 1
        self._worn = True
        return self._main

    def transaction_open(self) -> None:
        self._schedule()

    async def prepare(self, marks: Marks, flights: list[Flight]) -> None:
        await self._saver.save_many()
        async with self._saver.alone:
            ends = {flight.lane: flight.end for flight in flights}
            rows = [Saved(lane.source.name, end, lane.source.detail(end)) for lane, end in ends.items()]
            await self._saver.save_with(functools.partial(self._positions.prepare, marks, rows))

    def _settled(self) -> Mark | None:
        return self.transactions.settled

    async def adopt(self, settled: Mark | None, delivered: bool) -> None:
        async with self._saver.alone:
            try:
                rows = await self._loop.run_in_executor(None, self._positions.resolve, settled, delivered)
            except OSError as error:
                log.error("%s; shipping goes on, after a kill some records will be sent twice", error)
                self.broken[NOT_SAVED] += 1
                rows = self._positions.prepared() if delivered else []
            for row in rows:
                lane = self._lanes.get(row.name)
                if lane is not None:
                    lane.source.skip(row.position, row.detail)
                    lane.position = lane.read_to = lane.source.position
                    self._saver.moved(lane)

    def settle(self, flights: list[Flight]) -> None:
        for flight in flights:
            flight.left, flight.pinned = 0, False
            flight.heard.clear()
            self._landed(flight)
            letters = self._letters.pop(flight.lane, None)
            if letters and (later := {place for place in letters if place[0] >= flight.lane.position}):
                self._letters[flight.lane] = later

    def give_back(self, flights: list[Flight], cause: KafkaError | None) -> bool:
        suspected = suspects(flights, cause)
        for flight in suspected:
            flight.lane.careful_until = max(flight.lane.careful_until, flight.end)
        wiser = bool(suspected)
        if suspected and all(flight.way is Way.SINGLE for flight in suspected):
            for flight in suspected:
                flight.lane.careful_for = max(flight.lane.careful_for, self._loop.time() + SUSPECT_SECONDS)
            errors = {cause, *(error for flight in suspected for error in flight.heard)}
            wiser = any(error is not None and error.code() in {*FOR_GOOD, KafkaError._STATE} for error in errors)
            if wiser:
                self._shrink_batches()
        self._take_back({flight.lane for flight in flights})
        return wiser

    def _shrink_batches(self) -> None:
        """Each record is taken alone, and they are not together: topics may have a limit that is below that of a batch."""
        self._batch_bytes = max(self._batch_bytes // 2, 1)
        properties = {**self._config.kafka.properties, "batch.size": self._batch_bytes}
        self._config = replace(self._config, kafka=replace(self._config.kafka, properties=properties))
        log.warning("Kafka refuses batches of records that it takes one by one; from now on they are %d bytes", self._batch_bytes)

    def note(self, what: str) -> None:
        self._note(what, "")

    def tick(self) -> None:
        self._main.poll()  # during a commit nobody else does
        super().tick()
        if self.transactions.hangs:
            # librdkafka keeps records of a topic that was deleted, and with them their transaction, until it is made anew.
            for name in {name for flight in self.transactions.flights for name in flight.topics}:
                if problem := self._topics.problem(name):
                    self.transactions.give_up(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"topic {name}: {problem}"))
                else:
                    self._topics.look_up(name)

    # Its end

    def close(self) -> None:
        super().close()
        for task in self._tasks:
            task.cancel()

    async def drain(self, timeout: float) -> bool:
        drained = await super().drain(timeout)
        self._probe.close()
        await self.transactions.stop()
        return drained and not self.in_flight

    def _retire_careful(self) -> None:
        if self._probe.awake and all(
            lane.position >= lane.careful_until and lane.careful_for <= self._last_turn for lane in self._lanes.values()
        ):
            self._probing.call(self._probe.rest)


def suspects(flights: list[Flight], cause: KafkaError | None) -> list[Flight]:
    """Those that may hold what Kafka refused: what was reported says which batches failed, of which each may hold several."""
    bad = FOR_GOOD | OF_TOPIC
    guilty = {
        place for place, flight in enumerate(flights) if any(error is not None and error.code() in bad for error in flight.heard)
    }
    guilty.update(place for place, flight in enumerate(flights) if any(each.error.code() in bad for each in flight.refused))
    if not guilty:
        # Where librdkafka had failed the transaction before it was asked to commit, it no longer says why.
        return list(flights) if cause is not None and cause.code() in {*bad, KafkaError._STATE} else []
    topics = {name for place in guilty for name in flights[place].topics}
    following = {place + 1 for place in guilty if place + 1 < len(flights) and topics & flights[place + 1].topics.keys()}
    return [flights[place] for place in sorted(guilty | following)]
