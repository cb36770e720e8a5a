"""What a handler needs of threads, interrupts and forks: one thread at a time without a lock, and a helper for idle times.

- `Turns.take` does a piece of work unless a thread is at work already. Nobody ever waits, not even a signal handler that
  interrupts the work, and an exception from outside in the middle of the work leaves nothing locked for good.
- `Helper` looks after what waits while the app does nothing. It is a bare thread: starting one of `threading` waits for it, and
  takes locks that a signal handler may not take. It ends by itself, is not there while the process forks, and gets no signals:
  those that the app's own threads block stay blocked.
- `watch_forks` has a handler told of forks, so that a child starts with nothing of its parent's, and of the end of processes of
  multiprocessing: they end by `os._exit`, without `logging.shutdown`.

Standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

LONGEST_GOODBYE = 0.5
"""Seconds to wait for a helper that is in the middle of its work."""
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_watching: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_prepared: list[bool] = []


class Turns:
    """Who is at work stands in a dict, since `setdefault` is atomic, waits for nobody, and can be put right: an interrupt at the
    wrong moment, after which a lock would stay taken for ever, is found out by the stack.

    `recover` is called after an exception from outside, in the middle of the work: it puts right what that left half done.
    """

    def __init__(self, recover: Callable[[], None]) -> None:
        self._recover = recover
        self._at_work: dict[None, tuple[int]] = {}

    def take(self, work: Callable[..., None], *args: Any) -> bool:
        """Do `work`, unless a thread is at work already; whether it was done."""
        mine = (_thread.get_ident(),)  # a new object each time
        before = self._at_work.setdefault(None, mine)
        if before is not mine:
            if before[0] != mine[0] or self._is_at_work(sys._getframe(1)):
                return False  # another thread; or this one, interrupted by a signal handler or a destructor that logs
            self._recover()
        try:
            work(*args)
        except BaseException:
            self._recover()
            raise
        finally:
            self._at_work.clear()
        return True

    def relieve(self) -> None:
        """Forget the thread that is at work, if an interrupt has made it stop without a word."""
        there = self._at_work.get(None)
        if there is not None:
            frames = sys._current_frames().values()  # of all threads: gevent has identities of its own
            if not any(map(self._is_at_work, frames)) and self._at_work.get(None) is there:
                self._recover()
                self._at_work.clear()

    def _is_at_work(self, frame: FrameType | None) -> bool:
        return count_calls(Turns.take, frame, self) > 0


class Helper:
    """A thread that calls `help_along` again and again: it returns how many seconds to pause, or None to end the thread.

    `ended` is called with the helper at its end, however that came about.
    """

    def __init__(self, help_along: Callable[[Helper], float | None], ended: Callable[[Helper], None]) -> None:
        self._help_along = help_along
        self._at_end = ended
        self._stopped = _thread.allocate_lock()
        self._stopped.acquire()
        self._ended = _thread.allocate_lock()
        self._ended.acquire()

    def start(self, pause: float) -> None:
        """Raises RuntimeError where no thread is to be had, or may be."""
        if _is_uwsgi_master():
            raise RuntimeError("uWSGI's master forks without telling Python")
        self._started_by = _thread.get_native_id()
        _thread.start_new_thread(self._run, (pause,))

    def stop(self) -> None:
        """Returns when the thread is about to end, which is at once unless it is just sending."""
        with contextlib.suppress(RuntimeError):  # two threads at once have stopped it
            self._stopped.release()
        self._ended.acquire(timeout=LONGEST_GOODBYE)

    def _run(self, seconds: float) -> None:
        pause: float | None = seconds
        try:
            if _thread.get_native_id() != self._started_by:  # with gevent or eventlet it is no thread
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
            while pause is not None and not self._stopped.acquire(timeout=pause):
                pause = self._help_along(self)
        finally:
            self._at_end(self)
            self._ended.release()


def _is_uwsgi_master() -> bool:
    """Its workers are forked from C: a thread that has the interpreter's lock at that moment would leave it locked in them."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not uwsgi.worker_id() and not uwsgi.mule_id()


def count_calls(function: Callable[..., Any], frame: FrameType | None, of: object = None) -> int:
    """How many calls of `function`, a method of `of` if given, there are from `frame` on down."""
    count = 0
    while frame is not None:
        if frame.f_code is function.__code__ and (of is None or frame.f_locals.get("self") is of):
            count += 1
        frame = frame.f_back
    return count


def watch_forks(handler: Any) -> None:
    """Have the handler told: `_before_fork`, which says whether it has just stopped a thread, `_in_parent`, `_in_child`, and
    `_at_end` of a process of multiprocessing."""
    _watching[id(handler)] = handler
    _prepare_for_the_end()
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _add_finalizer(_at_end)


def _prepare_for_the_end() -> None:
    """Once for this process and all its children: a new process of multiprocessing begins by forgetting all finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _prepared:
        _prepared.append(True)
        util.register_after_fork(_at_end, _add_finalizer)


def _add_finalizer(at_end: Callable[[], None]) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, at_end, exitpriority=-100)


def _watched() -> list[Any]:
    """Taken at once: other threads may be making handlers."""
    return [handler for reference in _watching.valuerefs() if (handler := reference()) is not None]


def _at_end() -> None:
    for handler in _watched():
        handler._at_end()


def _before_fork() -> None:
    """No thread of ours at a fork: Python 3.12 and later warn of it."""
    for handler in _watched():
        if handler._before_fork():
            time.sleep(0.001)  # it has said goodbye, and now the system may take it off its list


def _in_parent() -> None:
    for handler in _watched():
        handler._in_parent()


def _in_child() -> None:
    for handler in _watched():
        handler._in_child()
    _prepare_for_the_end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
