"""An event loop whose clock is moved and not waited for, so that minutes of an agent's life pass in milliseconds, always alike.

Descriptors are real: what is ready is served first, and only when nothing is does the clock jump to the next timer. What is meant
for a thread runs in the loop, after a while and with its result a while later, so that files can change before and after it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_SECONDS = 0.001


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("the loop waits for something that will never happen")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        self.signal_handlers: dict[int, Callable[[], object]] = {}
        """What was asked to be called at signals; nobody sends any."""
        self._generation = 0
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def pass_time(self, seconds: float) -> None:
        """Run whatever is due within `seconds` from now."""
        self.run_until_complete(asyncio.sleep(seconds))

    def end_all(self) -> None:
        """Cancel what runs and let it end, which takes no time; what was meant for threads and has not begun never does."""
        self._generation += 1
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        self.call_later(THREAD_SECONDS, self._work, self._generation, future, func, args)
        return future

    def _work(self, generation: int, future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
        if generation != self._generation:
            future.cancel()  # who waits for it is to end
            return
        try:
            result = func(*args)
        except Exception as error:
            self.call_later(THREAD_SECONDS, _unless_done, future, future.set_exception, error)
        else:
            self.call_later(THREAD_SECONDS, _unless_done, future, future.set_result, result)

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        self.signal_handlers[sig] = lambda: callback(*args)


def _unless_done(future: asyncio.Future[Any], settle: Callable[[Any], None], value: Any) -> None:
    if not future.done():
        settle(value)
