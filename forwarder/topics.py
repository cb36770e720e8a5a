"""What is known of the topics that records go to: which can be sent to, and what is wrong with the others.

A topic is looked up when it is needed first, again as long as something is wrong with it, and every half minute otherwise. What
was known of it stands while Kafka is away; only Kafka's own word that it is missing or forbidden takes that back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from forwarder.flight import LONGEST_BACKOFF
from forwarder.kafka import Topic

log = logging.getLogger("forwarder.topics")

REFRESH = 30.0


class Topics:
    def __init__(self, ask: Callable[[str], None], now: Callable[[], float], note: Callable[[str], None]) -> None:
        """`ask` has a topic looked up, and `learn` is to be called with the answer; `now` is the time on the loop's clock."""
        self._ask = ask
        self._now = now
        self._note = note
        self._topics: dict[str, Topic] = {}
        self._asking: set[str] = set()

    def known(self, name: str) -> Topic | None:
        """The topic if it can be sent to; it is being looked up if it is not known, or not known to be well."""
        topic = self._topics.get(name)
        well = topic is not None and not topic.problem
        if topic is None or not well or self._now() - topic.asked > REFRESH:
            self.look_up(name)
        return topic if well else None

    def problem(self, name: str) -> str:
        """What Kafka itself has said to be wrong with the topic, or nothing."""
        topic = self._topics.get(name)
        return topic.problem if topic is not None and topic.permanent else ""

    def look_up(self, name: str) -> None:
        if name not in self._asking:
            self._asking.add(name)
            self._ask(name)

    def learn(self, name: str, topic: Topic) -> bool:
        """The answer to a question; True when the topic can be sent to."""
        self._asking.discard(name)
        topic.asked = self._now()
        known = self._topics.get(name)
        if topic.problem:
            if known is not None and not known.problem and not topic.permanent:
                known.asked = topic.asked - REFRESH + LONGEST_BACKOFF
                return False
            topic.failures = known.failures + 1 if known is not None else 1
            # Once is what a topic that the broker makes when asked for it answers.
            if topic.failures == 2:
                log.warning("topic %s: %s; its apps wait on disk", name, topic.problem)
                self._note(f"{name}: {topic.problem}")
        elif known is not None:
            topic.turn, topic.sent = known.turn, known.sent
            if known.failures > 1:
                log.warning("topic %s can be reached now", name)
        self._topics[name] = topic
        return not topic.problem

    def doubt(self, name: str) -> None:
        """A record was refused because of the topic: what is known of it may be wrong."""
        self._topics.pop(name, None)

    def asked_in_vain(self) -> None:
        """Who was asked does not answer any more."""
        self._asking.clear()
