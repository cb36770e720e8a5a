"""Setting aside what Kafka refuses for good: into the dead letters as long as there is room, counted in any case, and told of.

The log hears of it at once, and then once a minute as long as it goes on: a storm of refused records is none of the log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from forwarder import dead
from forwarder.flight import Flight, Refused

log = logging.getLogger("forwarder.burial")

REPORT_SECONDS = 60.0


class Burial:
    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
        note: Callable[[str, str], None],
    ) -> None:
        """`clock` is the time of day, `now` that on the loop's clock; `note` gets what happened, and the app."""
        self.dead: Counter[str] = Counter()
        """Dead letters by the name of Kafka's error."""
        self.dropped: Counter[tuple[str, str]] = Counter()
        """Records given up, by app and reason."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._now = now
        self._note = note
        self._told: dict[tuple[str, bool], tuple[float, int]] = {}
        """When those of an app, kept or not, were last told of, and how many there were since."""

    def bury(self, flight: Flight, final: list[Refused]) -> bool:
        """Set records of a flight aside; False when that cannot be done now."""
        lane = flight.lane
        app = lane.source.app
        letters = [dead.DeadLetter(each.topic, each.partition, each.error.str(), each.key, each.value) for each in final]
        try:
            kept = dead.write(self._directory, app, letters, self._clock(), self._max_bytes)
        except dead.InUse:
            return False  # a replay takes the file just now
        except OSError as error:
            trouble = f"its dead letters cannot be written: {error}"
            if trouble != lane.trouble:
                log.error("app %s: %s; it waits", app, trouble)
                lane.trouble = trouble
            return False
        for number, each in enumerate(final):
            flight.topics[each.topic] -= 1
            if number < kept:
                self.dead[each.error.name()] += 1
            else:
                self.dropped[app, "dead_letters_full"] += 1
        for some, dropped in ((final[:kept], False), (final[kept:], True)):
            if some:
                self._tell(app, some, dropped)
        return True

    def _tell(self, app: str, final: list[Refused], dropped: bool) -> None:
        last, untold = self._told.get((app, dropped), (-REPORT_SECONDS, 0))
        now, untold = self._now(), untold + len(final)
        if now - last < REPORT_SECONDS:
            self._told[app, dropped] = last, untold
            return
        self._told[app, dropped] = now, 0
        each = final[-1]
        kept = "dropped, as there are spool.max_bytes_dead of dead letters" if dropped else "set aside"
        others = f"; so were {untold - 1} more" if untold > 1 else ""
        what = f"{each.topic}: a record of {len(each.value)} bytes is refused for good ({each.error.str()}), {kept}{others}"
        log.warning("app %s: %s", app, what)
        self._note(what, app)
