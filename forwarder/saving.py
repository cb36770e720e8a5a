"""Which sources' positions are to be written, and writing them: four times a second, and before a source is read first.

Sources forget what is before their position also when it cannot be written: a disk that is full of it would stay full. Where
there is nothing left to read from the position written last, a source goes on at the first that is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping

from forwarder.flight import Lane
from forwarder.positions import Mark, Positions, Saved
from forwarder.source import Source

SAVED_AT_ONCE = 500


class Saver:
    def __init__(
        self,
        positions: Positions,
        lanes: Mapping[str, Lane],
        *,
        settled: Callable[[], Mark | None],
        wake: Callable[[Source], None],
    ) -> None:
        """`settled` says which transaction positions that have moved are those of; `wake` is for those that may be read now."""
        self.unsaved = asyncio.Event()
        """Sources have been added that wait for `save`."""
        self.alone = asyncio.Lock()
        """Who holds it writes, and nobody else."""
        self._positions = positions
        self._lanes = lanes
        self._settled = settled
        self._wake = wake
        self._moved: dict[Lane, None] = {}
        """Those whose position on disk is not that which they have; a set of thousands takes three times as much."""
        self._gone: set[str] = set()

    def add(self, lane: Lane) -> None:
        self._gone.discard(lane.source.name)
        self._moved[lane] = None
        self.unsaved.set()

    def moved(self, lane: Lane) -> None:
        self._moved[lane] = None

    def remove(self, lane: Lane) -> None:
        self._moved.pop(lane, None)

    def forget(self, name: str) -> None:
        """Drop a saved position that no source goes by any more."""
        self._gone.add(name)

    async def save(self) -> None:
        """Write the positions that moved, and let the sources forget what is before them; raises OSError."""
        async with self.alone:
            self.unsaved.clear()
            moved, gone = self._take()
            settled = self._settled()
            failed: OSError | None = None
            while moved or gone:
                some, moved = moved[:SAVED_AT_ONCE], moved[SAVED_AT_ONCE:]
                # The rows of those that are gone go last: others may have to know of them.
                last = not moved and failed is None
                try:
                    write = functools.partial(
                        self._positions.save, gone=gone if last else set(), settled=settled if last else None
                    )
                    await self._save_some(some, write)
                except OSError as error:
                    failed = error  # the others are to be tried all the same: none is read before
                    self._not_saved(some, set())
                except BaseException:  # it was cancelled
                    self._not_saved([*some, *moved], gone)
                    raise
                if not moved:
                    break
            if failed is not None:
                self._not_saved([], gone)
                raise failed

    async def save_many(self) -> None:
        """Save if more has moved than is to be written in one go. Raises OSError."""
        if len(self._moved) > SAVED_AT_ONCE:
            await self.save()

    async def save_with(self, write: Callable[[set[str], list[Saved]], None]) -> None:
        """`write` what has moved, which it gets with the names of those that are gone; for who is `alone`. Raises OSError."""
        moved, gone = self._take()
        try:
            await self._save_some(moved, functools.partial(write, gone))
        except BaseException:
            self._not_saved(moved, gone)
            raise

    def _take(self) -> tuple[list[Lane], set[str]]:
        moved, self._moved = list(self._moved), {}
        gone, self._gone = self._gone, set()
        return moved, gone

    def _not_saved(self, lanes: Iterable[Lane], gone: set[str]) -> None:
        """They are to be written, and removed, the next time, unless that has changed meanwhile."""
        self._gone |= {name for name in gone if name not in self._lanes}
        self._moved.update((lane, None) for lane in lanes if self._lanes.get(lane.source.name) is lane)

    async def _save_some(self, lanes: list[Lane], write: Callable[[list[Saved]], None]) -> None:
        places = [(lane, lane.position) for lane in lanes]
        rows = [Saved(lane.source.name, position, lane.source.detail(position)) for lane, position in places]
        job = asyncio.get_running_loop().run_in_executor(None, write, rows)
        try:
            await asyncio.shield(job)
        finally:
            if not job.done():  # cancelled: what is written next must not be overtaken
                await asyncio.wait([job])
            for lane, position in places:
                with contextlib.suppress(OSError):  # a segment that cannot be removed now is tried again
                    lane.source.commit(position)
                if not lane.saved:
                    lane.saved = True
                    self._wake(lane.source)
