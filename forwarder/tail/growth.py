"""Which files grow: hot ones are looked at every few milliseconds, of quiet ones the kernel tells the next write.

Looking costs one fstat a file and not one event a write. Every quiet file is looked at now and then in any case, because
network file systems tell the kernel nothing; without inotify that is all there is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from forwarder.tail.file import TailedFile
from forwarder.tail.inotify import Inotify

log = logging.getLogger("forwarder.tail")

HOT_PERIOD, HOT_PERIOD_PER_FILE, LONGEST_HOT_PERIOD = 0.003, 0.00005, 0.02
QUIET_AFTER = 3.0
HELD_SECONDS, HELD_SECONDS_AT_THE_STOP = 1.0, 0.25
"""How long nothing must have been written for the last lines to be a whole record, where several lines are one."""
SWEEP_SECONDS, SWEEP_SECONDS_POLLING = 2.0, 0.25
SWEEP_SLICE = 500


class Growth:
    """`rewritten` is called when a file is found to be truncated or written anew."""

    def __init__(self, inotify: Inotify | None, rewritten: Callable[[], None]) -> None:
        self.hot: dict[TailedFile, float] = {}
        """Since when each has not grown, by the loop's clock."""
        self._files: set[TailedFile] = set()
        self._watches: dict[TailedFile, int] = {}
        self._inotify = inotify
        self._rewritten = rewritten
        self._heat = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._warned = False

    def add(self, file: TailedFile) -> None:
        self._files.add(file)
        self._calm(file)

    def remove(self, file: TailedFile) -> None:
        self._files.discard(file)
        self.hot.pop(file, None)
        watch = self._watches.pop(file, None)
        if watch is not None and self._inotify is not None:
            self._inotify.end(watch)

    async def follow(self) -> None:
        """Look at the hot files, until cancelled."""
        while True:
            if not self.hot:
                self._heat.clear()
                await self._heat.wait()
            now = self._loop.time()
            for file, last in list(self.hot.items()):
                if self._look(file):
                    self.hot[file] = now
                elif file.holds and not file.deleted and now - last > HELD_SECONDS:
                    file.end_record()
                elif now - last > QUIET_AFTER:
                    self._calm(file)
            await asyncio.sleep(min(max(HOT_PERIOD, HOT_PERIOD_PER_FILE * len(self.hot)), LONGEST_HOT_PERIOD))

    async def sweep(self) -> None:
        """Look at the quiet files, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS_POLLING if self._inotify is None else SWEEP_SECONDS)
            for number, file in enumerate(list(self._files)):
                if file not in self.hot and file in self._files:
                    self.see(file)
                if number % SWEEP_SLICE == SWEEP_SLICE - 1:
                    await asyncio.sleep(0)

    def see(self, file: TailedFile) -> None:
        """Look at a file that may have grown."""
        if self._look(file):
            self.hot[file] = self._loop.time()
            self._heat.set()

    def hold(self, file: TailedFile) -> None:
        """The last lines of a file are a record that may go on."""
        if file in self._files:
            self.hot.setdefault(file, self._loop.time())
            self._heat.set()

    def end_record(self, file: TailedFile) -> None:
        """The agent stops: what is held of a file is a record, if it is whole."""
        quiet_for = self._loop.time() - self.hot.get(file, -HELD_SECONDS)
        if file.holds and file.record_is_whole and quiet_for > HELD_SECONDS_AT_THE_STOP:
            file.end_record()

    def verify(self, file: TailedFile) -> None:
        """See whether what was read of a file is still there, whatever its size."""
        file.verify()
        self.see(file)

    def see_all(self) -> None:
        for file in list(self._files):
            self.see(file)

    def _look(self, file: TailedFile) -> bool:
        grown = file.look()
        if file.rewritten:
            self.remove(file)
            self._rewritten()
            return False
        return grown

    def _calm(self, file: TailedFile) -> None:
        """Leave the file to the kernel, if it will have it."""
        self.hot.pop(file, None)
        if self._inotify is not None:
            try:
                self._watches[file] = self._inotify.watch_once(file.fd, partial(self._modified, file))
            except OSError as error:
                if not self._warned:
                    log.warning("%s: some files are polled; raise fs.inotify.max_user_watches", error.strerror)
                    self._warned = True
        self.see(file)

    def _modified(self, file: TailedFile) -> None:
        self._watches.pop(file, None)
        if file in self._files:
            self.see(file)
