"""A thread for calls that wait, one after the other. One that hangs for good keeps neither loop nor process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Have it called after all that was asked for before."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((future, work, args))
        return future

    def close(self) -> None:
        """End the thread after the calls it has."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, work, args = call
            try:
                result = work(*args)
            except BaseException as error:
                self._tell(future, future.set_exception, error)
            else:
                self._tell(future, future.set_result, result)

    def _tell(self, future: asyncio.Future[Any], tell: Callable[[Any], None], what: Any) -> None:
        def in_loop() -> None:
            if not future.done():
                tell(what)

        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
            self._loop.call_soon_threadsafe(in_loop)
