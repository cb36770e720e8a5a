"""From sources to Kafka: fair turns, a bounded window, positions that follow Kafka's acknowledgements.

- Sources with something to read take turns of about QUANTUM bytes, so one app's storm costs the others one turn.
- What was handed to librdkafka and is not yet acknowledged is in flight. The window for it starts small and grows only while
  Kafka takes what it is given, up to `kafka.in_flight`; when Kafka goes away it stays as it was, and sources wait on disk.
- A chunk is settled when all its records are acknowledged. A source's position is the end of its settled chunks up to the
  first that is not, so a kill at any moment repeats records and never skips one.
- Nothing is sent of a source that is not on disk with its position: a file whose first lines are in Kafka is found again
  wherever it was rotated to after a kill.
- An error of a record itself puts it into the dead letters; an error of a topic makes its apps wait; any other error is
  waited out. A producer that has become fatal is replaced and everything not settled sent again, carefully: by halves
  of what is refused, which finds the record that broke it.

This is at-least-once; `exactly_once` says what is different in transactions. Everything here runs in the event loop's thread and
never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError

from forwarder.burial import Burial
from forwarder.config import Config
from forwarder.flight import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    Flight,
    Halves,
    Histogram,
    Keyed,
    Lane,
    Record,
    Refused,
    by_topic,
    flat,
)
from forwarder.halving import halves
from forwarder.kafka import FOR_GOOD, MAX_MESSAGE_BYTES, OF_TOPIC, Kafka, Report, Topic, Way
from forwarder.positions import Mark, Positions
from forwarder.saving import Saver
from forwarder.source import Chunk, Source
from forwarder.topics import Topics

log = logging.getLogger("forwarder.shipper")

QUANTUM = 256 * 1024
TURN_BYTES = 1024 * 1024
PACE = 0.002
"""Seconds between turns at least, unless there is a backlog: of a trickle each turn is a wake-up of some 50 microseconds."""
REPORT_PACE = 0.005
LONGEST_POLL = 0.25
SMALLEST_WINDOW = 2 * 1024 * 1024
RECORD_OVERHEAD = 256
"""What a record costs in librdkafka and its binding beside its bytes."""
STICKY_BYTES = 256 * 1024
DRAIN_PATIENCE = 5.0
CAREFUL_SECONDS = 60.0
"""How long an app is sent carefully after a record of it was refused: the next one then disturbs nobody else."""
SUSPECT_SECONDS = 5.0
HOLD = 0.02
HELD_BYTES, HELD_OVERHEAD = 4 * 1024 * 1024, 2048
"""So much of what was read may wait in memory for topics that are not known yet, and what each chunk of it counts beside."""
CLOCK_STEP = 5.0
"""librdkafka waits by the time of day (its issue 2145): what it waits for when that is set back comes as much later."""


class Shipper:
    way = Way.GAPLESS
    """Of the producer that everything goes through as long as nothing is refused."""

    def __init__(
        self, config: Config, positions: Positions, dead_letters: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.delivered: Counter[str] = Counter()
        self.latency = Histogram()
        self.tailed: Counter[str] = Counter()
        """Records read from files, by app; what comes from sockets the listener counts."""
        self.tailed_bytes: Counter[str] = Counter()
        self.in_flight = 0
        self.replaced = 0
        self.broken: Counter[str] = Counter()
        """How often exactly-once could not be kept, by reason."""
        self.errors: deque[str] = deque(maxlen=10)
        self._config = config
        self._positions = positions
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        """Gets the exception that ended shipping, if one does."""
        self._lanes: dict[str, Lane] = {}
        self._saver = Saver(positions, self._lanes, settled=self._settled, wake=self.wake)
        self.unsaved = self._saver.unsaved
        self._lively: set[Lane] = set()
        """Those that were read from, lately."""
        self._held_bytes = 0
        self._active: deque[Lane] = deque()
        self._topics = Topics(self._ask, self._loop.time, lambda what: self._note(what, ""))
        self._burial = Burial(dead_letters, config.spool.max_bytes_dead, clock=clock, now=self._loop.time, note=self._note)
        self.dead, self.dropped = self._burial.dead, self._burial.dropped
        self._producers: dict[Way, Kafka] = {}
        self._main = self._connect(self.way)
        self._scheduled: asyncio.Handle | None = None
        self._due = 0.0
        self._replaced_at = -LONGEST_BACKOFF
        self._replace_backoff = FIRST_BACKOFF
        self._last_turn = 0.0
        self._poll_delay = PACE
        self._window = min(SMALLEST_WINDOW, config.kafka.in_flight)
        self._limited = False
        self._peak = 0
        self._largest = int(config.kafka.properties.get("message.max.bytes", MAX_MESSAGE_BYTES))
        self.last_delivery = clock()
        self._clock_ahead = clock() - self._loop.time()

    # Sources

    def add(self, source: Source) -> None:
        """Take up `source`, from where it stands, once that is saved."""
        lane = self._lanes[source.name] = Lane(source)
        self._saver.add(lane)

    def remove(self, source: Source) -> None:
        """Leave a source that has nothing more, and drop its saved position."""
        lane = self._lanes.pop(source.name, None)
        if lane is not None:
            self._take_held(lane)
            self._saver.remove(lane)
            self._lively.discard(lane)
            if lane.waiting is not None:
                lane.waiting.cancel()
        self.forget(source.name)

    def forget(self, name: str) -> None:
        """Drop a saved position that no source goes by any more."""
        self._saver.forget(name)

    def renew(self, source: Source) -> None:
        """Save its position again: what is kept beside it has changed."""
        lane = self._lanes.get(source.name)
        if lane is not None:
            self._saver.moved(lane)

    def wake(self, source: Source) -> None:
        """The source may have something to read."""
        lane = self._lanes.get(source.name)
        if lane is None or not lane.saved or lane.active or lane.waiting is not None or lane.failed:
            return
        lane.active = True
        lane.credit = 0
        if not lane.flights and not lane.behind_since:
            lane.behind_since = self._loop.time()
        self._active.append(lane)
        self._schedule()

    # Turns

    def _schedule(self, delay: float = 0.0) -> None:
        """Have a turn `delay` seconds from now, or sooner if one is due sooner; never within PACE of the one before."""
        now = self._loop.time()
        due = max(now + delay, self._last_turn + PACE)
        if self._scheduled is not None:
            if self._due <= due:
                return
            self._scheduled.cancel()
        self._due = due
        self._scheduled = self._loop.call_later(due - now, self._turn) if due > now else self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._safely(self._take_turn)

    def _safely(self, work: Callable[..., None], *args: Any) -> None:
        """What the event loop calls."""
        try:
            work(*args)
        except Exception as error:
            # A bug of ours. Going on would ship nothing and say nothing: the agent ends, and starts again from its positions.
            if not self.failed.done():
                self.failed.set_exception(error)

    def _take_turn(self) -> None:
        self._scheduled = None
        self._last_turn = self._loop.time()
        if self._main.fatal:
            self._replace_producers()
            return
        outstanding = self.in_flight
        for kafka in list(self._producers.values()):
            kafka.poll()
        landed = self.in_flight != outstanding
        if self._main.fatal:
            self._replace_producers()
            return
        self._retire_careful()
        self._ship()
        if self._main.fatal:
            self._schedule()
        elif self._active and not self._limited:
            self._due = self._last_turn
            self._scheduled = self._loop.call_soon(self._turn)
        elif self.in_flight:
            least = PACE if self._limited else REPORT_PACE
            # Only what lands is a reason to ask soon again: a Kafka that is away has much to report, and nothing of it helps.
            self._poll_delay = least if landed else min(max(self._poll_delay * 1.3, least), LONGEST_POLL)
            self._schedule(self._poll_delay)

    def _ship(self) -> None:
        """Send from the sources in turn until the window, this turn's share or what there is to read is used up."""
        budget = TURN_BYTES
        skipped = 0
        self._limited = False
        active = self._active
        while active and budget > 0:
            free = self._window - self.in_flight
            if free <= 0 or skipped == len(active):
                self._limited = True
                return
            lane = active.popleft()
            if lane.failed or lane.retrying or lane.waiting is not None:
                lane.active = False
                continue
            # A source may fill half of what is free, then half of the rest: there is always room for another.
            if lane.in_flight > free:
                active.append(lane)
                skipped += 1
                continue
            skipped = 0
            lane.credit = min(lane.credit + QUANTUM, QUANTUM)
            if lane.credit <= 0:
                active.append(lane)
                continue
            chunk = self._take_held(lane) or lane.source.read(QUANTUM)
            if chunk is None:
                lane.active = False
                continue
            if chunk.start >= lane.read_to:
                self._count(lane, chunk)
            lane.credit -= chunk.size
            budget -= chunk.size
            self._send(lane, chunk)
            if lane.source.lag():
                active.append(lane)
            else:
                lane.active = False

    def _count(self, lane: Lane, chunk: Chunk) -> None:
        """Count what is read for the first time."""
        lane.read_to = chunk.end
        lane.records += len(chunk.records)
        self._lively.add(lane)
        if lane.tailed:
            self.tailed[lane.source.app] += len(chunk.records)
            self.tailed_bytes[lane.source.app] += chunk.size

    def _send(self, lane: Lane, chunk: Chunk) -> None:
        """Send a chunk, or make its lane wait with it."""
        route = chunk.route
        records = chunk.records
        if route.prepare is not None and records:
            records = route.prepare(records)
        size = sum(map(len, records))
        flight = Flight(lane, chunk, size + RECORD_OVERHEAD * len(records), self._landed)
        flight.received = self._loop.time() - max(self._clock() - chunk.received, 0.0)
        if lane.careful_for > self._last_turn or (size > self._largest and max(map(len, records)) > self._largest):
            lane.careful_until = max(lane.careful_until, chunk.end)
        if not records:
            lane.flights.append(flight)
            self._advance(lane)
        elif route.pinned and chunk.start >= lane.careful_until:
            self._send_pinned(flight, chunk, str(route.topic), records)
        else:
            self._send_each(flight, chunk, records)

    def _send_pinned(self, flight: Flight, chunk: Chunk, name: str, records: list[bytes]) -> None:
        topic = self._topics.known(name)
        if topic is None:
            self._wait_for_topic(flight.lane, chunk, name)
            return
        if topic.sent >= STICKY_BYTES:
            topic.turn += 1
            topic.sent = 0
        topic.sent += flight.charge
        flight.pinned = True
        flight.topics[name] = flight.count
        flight.lane.flights.append(flight)
        self._take_off(flight, 1)
        partition = topic.partitions[topic.turn % len(topic.partitions)]
        error = self._main.send(name, records, partition, self._report(flight))
        if error is not None:
            self._not_queued(flight, Refused(error, name, partition, None, b""))

    def _report(self, flight: Flight) -> Report:
        return flight.report

    def _not_queued(self, flight: Flight, refused: Refused) -> None:
        """Some of a batch could not be given to librdkafka."""
        flight.refused.append(refused)
        flight.land()

    def _send_each(self, flight: Flight, chunk: Chunk, records: list[bytes]) -> None:
        lane, route = flight.lane, chunk.route
        careful = flight.start < lane.careful_until
        if route.key is not None and any(other.left and (careful or other.way is not Way.GAPLESS) for other in lane.flights):
            # While parts of a chunk are sent again, or by another producer, records behind it would overtake those of their key.
            self._hold(lane, chunk)
            self._pause(lane, HOLD)
            return
        groups = self._grouped(flight, chunk, records)
        if groups is None:
            return
        lane.flights.append(flight)
        if careful:
            flight.halves = halves(flat(groups))
            self._send_part(flight, *next(flight.halves))
        else:
            self._queue(flight, groups)

    def _grouped(self, flight: Flight, chunk: Chunk, records: list[bytes]) -> dict[str, list[Keyed]] | None:
        """The records by topic, with their keys; None when the lane has to wait for one of the topics."""
        route = chunk.route
        groups: dict[str, list[Keyed]] = {}
        for record in records:
            name = route.topic if isinstance(route.topic, str) else route.topic(record)
            key = route.key(record).encode() or None if callable(route.key) else route.key
            groups.setdefault(name, []).append((key, record))
        for name in groups:
            if self._topics.known(name) is None:
                self._wait_for_topic(flight.lane, chunk, name)
                return None
        for name, pairs in groups.items():
            flight.topics[name] = len(pairs)
        return groups

    def _send_part(self, flight: Flight, records: list[Record], alone: bool) -> None:
        flight.way = Way.SINGLE if alone else Way.BATCHED
        self._queue(flight, by_topic(records))

    def _queue(self, flight: Flight, groups: Mapping[str, list[Keyed]]) -> None:
        """Send record by record, to the partitions that librdkafka chooses."""
        kafka = self._producers.get(flight.way) or self._connect(flight.way)
        # One report more than there are records: it cannot land before all are queued.
        self._take_off(flight, 1 + sum(map(len, groups.values())))
        for name, pairs in groups.items():
            for error, key, value in kafka.send_each(name, pairs, flight.report):
                flight.refused.append(Refused(error, name, -1, key, value))
                flight.left -= 1
        flight.land()

    def _take_off(self, flight: Flight, reports: int) -> None:
        lane = flight.lane
        flight.left = reports
        lane.in_flight += flight.charge
        self.in_flight += flight.charge
        self._peak = max(self._peak, self.in_flight)
        self._poll_delay = PACE

    # Reports

    def _landed(self, flight: Flight) -> None:
        """Everything of a flight is reported."""
        lane = flight.lane
        lane.in_flight -= flight.charge
        self.in_flight -= flight.charge
        if flight.pinned and self._main.fatal:
            # Of a producer that has become fatal success proves nothing; all this is about to be sent again.
            flight.left = -1  # nor is it done
            return
        if flight.halves is not None and self._go_on(flight, flight.halves):
            return
        if flight.refused and not self._handle_refused(flight):
            return
        if not flight.refused:
            self.last_delivery = self._clock()
            self._main.connected = True
            self.delivered.update(flight.topics)
            self.latency.observe(self._loop.time() - flight.received, flight.count)
            lane.backoff = FIRST_BACKOFF
            self._replace_backoff = FIRST_BACKOFF
            if lane.trouble:
                log.warning("app %s: its records are taken again", lane.source.app)
                lane.trouble = ""
            if self._limited:
                self._window = min(self._window + flight.charge, self._config.kafka.in_flight)
            self._advance(lane)
        if lane.failed and not any(other.left for other in lane.flights):
            self._try_again(lane)

    def _go_on(self, flight: Flight, parts: Halves) -> bool:
        """A part of what is sent carefully has landed: send the next. False after the last, or if it must be sent again."""
        refused = [each for each in flight.refused if each.error.code() in FOR_GOOD]
        if len(refused) < len(flight.refused):
            return False
        if flight.way is Way.SINGLE:
            flight.guilty += refused
        flight.refused = []
        try:
            self._send_part(flight, *parts.send([each.record for each in refused]))
        except StopIteration:
            flight.halves, flight.way = None, Way.SINGLE
            flight.refused, flight.guilty = flight.guilty, []
            return False
        return True

    def _advance(self, lane: Lane) -> None:
        flights = lane.flights
        done = next((number for number, flight in enumerate(flights) if not flight.done), len(flights))
        if done:
            last = flights[done - 1]
            lane.position = last.end
            self._saver.moved(lane)
            del flights[:done]
            # What comes behind it is not older.
            lane.behind_since = last.received if not flights and lane.lag() else 0.0
        if lane.retrying and not flights:
            lane.retrying = False
            self.wake(lane.source)

    def _handle_refused(self, flight: Flight) -> bool:
        """Decide what becomes of the records in `refused`; False when that has already been begun."""
        lane = flight.lane
        error = flight.refused[0].error
        if error.fatal() or error.code() in {KafkaError._FATAL, KafkaError._GAPLESS_GUARANTEE}:
            self._main.fatal = self._main.fatal or error.str()
            return False
        for_good = [each for each in flight.refused if each.error.code() in FOR_GOOD]
        if for_good and flight.way is Way.GAPLESS and not flight.pinned:
            flight.way = Way.SINGLE
            lane.careful_until = max(lane.careful_until, flight.end)
            self._queue_again(flight)
            return False
        if for_good and flight.way is Way.SINGLE:
            self._bury(flight, for_good)
        elif for_good:
            lane.careful_until = max(lane.careful_until, lane.flights[-1].end)
        for refused in flight.refused:
            self._note(f"{refused.topic}: {refused.error.str()}", lane.source.app)
            if refused.error.code() in OF_TOPIC:
                self._blame_topic(lane, refused)
            lane.failed = True
        return True

    def _blame_topic(self, lane: Lane, refused: Refused) -> None:
        self._topics.doubt(refused.topic)
        # It may be fatal to the producer which all apps share.
        lane.careful_for = self._loop.time() + CAREFUL_SECONDS
        trouble = f"topic {refused.topic}: {KafkaError(refused.error.code()).str()}"
        if trouble != lane.trouble:
            log.warning("app %s: %s; its records wait on disk", lane.source.app, trouble)
            lane.trouble = trouble

    def _bury(self, flight: Flight, final: list[Refused]) -> None:
        """Put what is refused for good into the dead letters; if that fails it stays in `refused` and is tried again."""
        if self._burial.bury(flight, final):
            flight.refused = [each for each in flight.refused if each.error.code() not in FOR_GOOD]
            flight.lane.careful_for = self._loop.time() + CAREFUL_SECONDS

    def _try_again(self, lane: Lane) -> None:
        """All flights of a failed lane have landed: after a while the first batch that failed and all behind it again."""
        for index, flight in enumerate(lane.flights):
            if flight.refused and flight.pinned:
                self._seek(lane, flight.start)
                lane.recall(index)
                break
        lane.failed = False
        self._wait(lane, "")

    def _queue_again(self, flight: Flight) -> None:
        again = [refused.record for refused in flight.refused]
        flight.refused = []
        self._queue(flight, by_topic(again))

    def _replace_producers(self) -> None:
        """The producer can send nothing more: a new one, and everything that is not settled again."""
        wait = self._replaced_at + self._replace_backoff - self._loop.time()
        if wait > 0:
            self._schedule(wait)
            return
        self._replaced_at = self._loop.time()
        self._replace_backoff = min(self._replace_backoff * 2, LONGEST_BACKOFF)
        log.error("the producer failed (%s) and is replaced; what was in flight is sent again", self._main.fatal)
        self._note(f"the producer failed ({self._main.fatal}) and was replaced", "")
        self.replaced += 1
        for kafka in self._producers.values():
            kafka.close()
        self._producers.clear()
        self._topics.asked_in_vain()
        self._main = self._connect(Way.GAPLESS)
        self.in_flight = 0
        for lane in list(self._lanes.values()):  # going back in one may add another
            lane.failed = lane.retrying = False
            lane.in_flight = 0
            if lane.flights:
                # One of these lanes is to blame; which, the reports of its records will say.
                lane.careful_until = max(lane.careful_until, lane.flights[-1].end)
                lane.careful_for = max(lane.careful_for, self._loop.time() + SUSPECT_SECONDS)
                lane.recall()
                self._seek(lane, lane.position)
            self.wake(lane.source)
        self._schedule()  # lanes that were active are not woken

    def _retire_careful(self) -> None:
        """Close the careful producers once every lane is past what made them necessary."""
        if len(self._producers) > 1 and all(
            lane.position >= lane.careful_until and lane.careful_for <= self._last_turn for lane in self._lanes.values()
        ):
            for way in (Way.BATCHED, Way.SINGLE):
                if way in self._producers:
                    self._producers.pop(way).close()

    # Topics and waiting

    def _connect(self, way: Way) -> Kafka:
        def changed(name: str, topic: Topic) -> None:
            # Raises RuntimeError once the loop is closed: the agent has stopped and nobody asks any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._topic_changed, kafka, name, topic)

        kafka = self._producers[way] = Kafka(self._config, way=way, topic_changed=changed)
        return kafka

    def _ask(self, name: str) -> None:
        self._main.ask(name)

    def _topic_changed(self, asked: Kafka, name: str, topic: Topic) -> None:
        if topic.stranded and asked is self._main:
            self._renew_producer("librdkafka has lost its brokers, while Kafka answers others")
        if self._topics.learn(name, topic):
            waiting = [lane for lane in self._lanes.values() if lane.waits_for == name and lane.waiting is not None]
            # What was read first goes first: it may be of the file that stood at the same path before.
            for lane in sorted(waiting, key=lambda lane: lane.held.received if lane.held is not None else math.inf):
                if lane.waiting is not None:
                    lane.waiting.cancel()
                    self._waited(lane)

    def _wait_for_topic(self, lane: Lane, chunk: Chunk, name: str) -> None:
        self._put_back(lane, chunk)
        self._wait(lane, name)

    def _put_back(self, lane: Lane, chunk: Chunk) -> None:
        """The chunk cannot be sent now. A file may be truncated meanwhile, so of files some is kept in hand."""
        if lane.tailed and self._held_bytes < HELD_BYTES:
            self._hold(lane, chunk)
        else:
            self._seek(lane, chunk.start)

    def _hold(self, lane: Lane, chunk: Chunk) -> None:
        lane.held = chunk
        self._held_bytes += chunk.size + HELD_OVERHEAD

    def _take_held(self, lane: Lane) -> Chunk | None:
        chunk, lane.held = lane.held, None
        if chunk is not None:
            self._held_bytes -= chunk.size + HELD_OVERHEAD
        return chunk

    def _seek(self, lane: Lane, position: int) -> None:
        """Read again from `position`."""
        self._take_held(lane)
        lane.source.seek(position)

    def _wait(self, lane: Lane, topic: str) -> None:
        """Leave the lane alone for a while, each time longer, or until the topic it waits for can be reached."""
        lane.waits_for = topic
        self._pause(lane, lane.backoff)
        lane.backoff = min(lane.backoff * 2, LONGEST_BACKOFF)

    def _pause(self, lane: Lane, seconds: float) -> None:
        if lane.waiting is not None:
            lane.waiting.cancel()
        lane.waiting = self._loop.call_later(seconds, self._safely, self._waited, lane)

    def _waited(self, lane: Lane) -> None:
        lane.waiting = None
        lane.waits_for = ""
        if lane.failed:
            return  # its flights are still landing; what becomes of those refused is decided after the last
        for flight in list(lane.flights):
            if flight.refused and flight.left == 0:
                lane.retrying = True
                self._queue_again(flight)
        self.wake(lane.source)

    def _note(self, what: str, app: str) -> None:
        text = f"app {app}: {what}" if app else what
        if not self.errors or self.errors[-1] != text:
            self.errors.append(text)

    # Positions

    async def save(self) -> None:
        """Write the positions that moved, and let the sources forget what is before them; raises OSError."""
        await self._saver.save()

    def _settled(self) -> Mark | None:
        """The transaction that the positions which have moved are those of."""
        return None

    def tick(self) -> None:
        """Once a second: serve what librdkafka has to say when nothing is in flight; let an unused window shrink."""
        for lane in self._lively:
            lane.measure(1.0)
        self._lively = {lane for lane in self._lively if lane.rate}  # a set that was large once stays so
        if self.in_flight and not self._main.fatal:
            # With a full window nothing is sent that would ask, and librdkafka was once seen not to look for a leader again.
            for name in {name for lane in self._lanes.values() for flight in lane.flights for name in flight.topics}:
                self._topics.known(name)
        ahead = self._clock() - self._loop.time()
        stepped, self._clock_ahead = ahead - self._clock_ahead, ahead
        if stepped < -CLOCK_STEP and not self._main.fatal:
            self._renew_producer(f"the clock, which its waits go by, was set back by {-stepped:.0f} s")
        if not self.in_flight and not self._main.fatal:
            for kafka in list(self._producers.values()):
                kafka.poll()
            self._retire_careful()
            if self._main.fatal:
                self._replace_producers()
        if self._peak < self._window // 4:
            self._window = max(self._window // 2, min(SMALLEST_WINDOW, self._config.kafka.in_flight))
        self._peak = self.in_flight

    def _renew_producer(self, why: str) -> None:
        self._main.fatal = why
        self._schedule()

    @property
    def connected(self) -> bool:
        return self._main.connected

    @property
    def window(self) -> int:
        return self._window

    def lanes(self) -> list[Lane]:
        return list(self._lanes.values())

    def oldest_unacked(self) -> float:
        """Seconds since the oldest record that is not in Kafka yet reached the agent; 0 when there is none."""
        oldest = now = self._loop.time()
        for lane in self._lanes.values():
            if lane.flights:
                oldest = min(oldest, lane.flights[0].received)
            elif lane.lag() > 0 and lane.behind_since:
                oldest = min(oldest, lane.behind_since)
        return now - oldest

    async def drain(self, timeout: float) -> bool:
        """Send what there is until all is settled; False when `timeout` seconds, or 5 without a delivery, did not do."""
        deadline = self._loop.time() + timeout
        quiet_since, delivered = self._loop.time(), self.delivered.total()
        while self.in_flight or any(lane.active or lane.waiting for lane in self._lanes.values()):
            now = self._loop.time()
            if self.delivered.total() != delivered:
                quiet_since, delivered = now, self.delivered.total()
            if now > deadline or now - quiet_since > DRAIN_PATIENCE:
                return False
            await asyncio.sleep(0.005)
        return True

    def close(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
        for lane in self._lanes.values():
            if lane.waiting is not None:
                lane.waiting.cancel()
        for kafka in self._producers.values():
            kafka.close()
