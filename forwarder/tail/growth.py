"""Which files grow: hot ones are looked at every few milliseconds, of quiet ones the kernel tells the next write.

Looking costs one fstat a file and not one event a write. Where the kernel does not hear of all writes, on network file systems
or without inotify, quiet files are looked at several times a second; all others once in a while in any case.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable

from forwarder.tail.file import TailedFile
from forwarder.tail.inotify import Inotify

log = logging.getLogger("forwarder.tail")

HOT_PERIOD, HOT_PERIOD_PER_FILE, LONGEST_HOT_PERIOD = 0.003, 0.00005, 0.02
QUIET_AFTER = 3.0
HELD_SECONDS, HELD_SECONDS_AT_THE_STOP = 1.0, 0.25
"""How long nothing must have been written for the last lines to be a whole record, where several lines are one."""
SWEEP_SECONDS, SWEEP_SECONDS_POLLING = 60.0, 0.25
SWEEP_SLICE, SWEEP_SHARE = 500, 0.02
"""So many files are looked at in one go, and polling takes so much of the time at most."""


class Growth:
    """`rewritten` is called when a file is found to be truncated or written anew."""

    def __init__(self, inotify: Inotify[TailedFile | None] | None, rewritten: Callable[[], None]) -> None:
        self.hot: dict[TailedFile, float] = {}
        """Since when each has not grown, by the loop's clock."""
        self._files: dict[TailedFile, int | None] = {}
        """With their watches, those that have one; a set of thousands takes three times as much memory."""
        self._polled: set[TailedFile] = set()
        self._inotify = inotify
        self._rewritten = rewritten
        self._heat = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._warned = False

    def add(self, file: TailedFile) -> None:
        self._files[file] = None
        self._calm(file)

    def remove(self, file: TailedFile) -> None:
        self._polled.discard(file)
        self.hot.pop(file, None)
        watch = self._files.pop(file, None)
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
                elif file.may_go_on and not file.deleted and now - last > HELD_SECONDS:
                    file.end_record()
                elif now - last > QUIET_AFTER:
                    self._calm(file)
            await asyncio.sleep(min(max(HOT_PERIOD, HOT_PERIOD_PER_FILE * len(self.hot)), LONGEST_HOT_PERIOD))

    async def sweep(self) -> None:
        """Look at the quiet files, until cancelled."""
        last = self._loop.time()
        pause = SWEEP_SECONDS_POLLING
        while True:
            await asyncio.sleep(pause)
            began = self._loop.time()
            everything = began - last > SWEEP_SECONDS
            if everything:
                last = began
            spent = await self._look_at_quiet(self._files if everything else self._polled)
            pause = max(SWEEP_SECONDS_POLLING, spent / SWEEP_SHARE)

    async def _look_at_quiet(self, files: Iterable[TailedFile]) -> float:
        """Returns the seconds it took, without those of others in between."""
        spent, began = 0.0, self._loop.time()
        for number, file in enumerate(list(files), 1):
            if file not in self.hot and file in self._files:
                self.see(file)
            if number % SWEEP_SLICE == 0:
                spent += self._loop.time() - began
                await asyncio.sleep(0)
                began = self._loop.time()
        return spent + self._loop.time() - began

    def see(self, file: TailedFile) -> None:
        """Look at a file that may have grown."""
        if self._look(file):
            self.hot[file] = self._loop.time()
            self._heat.set()

    def check(self, file: TailedFile) -> None:
        """Look at a file that was let go of: another may stand there with its inode, of which the kernel tells nothing."""
        self.see(file)
        if file in self._files and self._files[file] is None and file not in self.hot and file not in self._polled:
            self._calm(file)

    def hold(self, file: TailedFile) -> None:
        """The last lines of a file are a record that may go on."""
        if file in self._files:
            self.hot.setdefault(file, self._loop.time())
            self._heat.set()

    def end_record(self, file: TailedFile) -> None:
        """The agent stops: what is held of a file is a record, if it is whole."""
        quiet_for = self._loop.time() - self.hot.get(file, -HELD_SECONDS)
        if file.may_go_on and file.record_is_whole and quiet_for > HELD_SECONDS_AT_THE_STOP:
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
        heard = False
        try:
            if self._inotify is not None:
                path = f"/proc/self/fd/{file.fd}"
                heard = self._inotify.hears_all(path)
                self._files[file] = self._inotify.watch_once(path, file)
        except OSError as error:
            heard = False
            if error.errno == errno.ENOSPC and not self._warned:
                log.warning("%s: some files are polled; raise fs.inotify.max_user_watches", error.strerror)
                self._warned = True
        (self._polled.discard if heard else self._polled.add)(file)
        self.see(file)

    def modified(self, file: TailedFile) -> None:
        """The kernel says so, once."""
        if file in self._files:
            self._files[file] = None
            self.see(file)
