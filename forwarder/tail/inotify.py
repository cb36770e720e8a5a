"""The kernel's word that something changed: directories all the time, a quiet file once.

A watch that ends with its first event (IN_ONESHOT) is what lets a busy writer cost nothing: the file is polled from then
on, and watched again when it has become quiet. The bindings are ours because watchdog's API knows no such watch, and takes
a thread and an inotify instance of its own. Everything here is called from the event loop's thread. Source: inotify(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from typing import Generic, TypeVar

_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _Q_OVERFLOW, _IGNORED = 0x400, 0x800, 0x4000, 0x8000
_ONLYDIR, _ONESHOT = 0x1000000, 0x80000000
_DIRECTORY = _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_DEAF = {
    0x6969,  # NFS
    0x517B,  # SMB
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB2
    0x65735546,  # FUSE
    0x794C7630,  # overlay
    0x01021997,  # 9p
    0x00C36400,  # Ceph
    0x5346414F,  # AFS
    0x73757245,  # Coda
    0x0BD00BD0,  # Lustre
    0x47504653,  # GPFS
    0x19830326,  # BeeGFS
    0x7461636F,  # OCFS2
    0x01161970,  # GFS2
    0x786F4256,  # VirtualBox
}
"""Types of file systems: statfs(2), and the remote ones in src/stat.c of GNU coreutils."""
_STATFS_WORDS = 64
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify(Generic[T]):
    """One instance of inotify; `overflowed` means that events were lost, `modified` gets what the watch was set for."""

    def __init__(
        self, directory_changed: Callable[[], None], overflowed: Callable[[], None], modified: Callable[[T], None]
    ) -> None:
        """Raises OSError when the user has too many instances (fs.inotify.max_user_instances)."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._directory_changed = directory_changed
        self._overflowed = overflowed
        self._modified = modified
        self._directories: dict[str, int] = {}
        self._files: dict[int, T] = {}
        self._hears: dict[int, bool] = {}
        """By device."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def watch_directories(self, paths: set[str]) -> bool:
        """Watch exactly these; True when some were not watched before.

        Raises OSError (ENOSPC) at the limit of watches; one that has just gone is left out.
        """
        before, self._directories = self._directories, {}
        try:
            for path in paths:
                try:
                    # Again at each call, which costs nothing: another directory may stand there now.
                    self._directories[path] = self._add(os.fsencode(path), _DIRECTORY)
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue
        finally:
            for watch in set(before.values()) - set(self._directories.values()):
                self.end(watch)
        return not set(self._directories.values()) <= set(before.values())

    def watch_once(self, path: str, what: T) -> int:
        """Tell of the next write to the file, once, as `what`. Raises OSError (ENOSPC) at the limit of watches.

        Returns what `end` takes, should nobody want to know any more.
        """
        watch = self._add(os.fsencode(path), _MODIFY | _ONESHOT)
        self._files[watch] = what
        return watch

    def end(self, watch: int) -> None:
        """End a watch; one that has ended by itself is left alone."""
        self._files.pop(watch, None)
        _libc.inotify_rm_watch(self._fd, watch)

    def hears_all(self, path: str) -> bool:
        """Whether the kernel is told of every write to files there: not when other machines or layers may write too.

        Raises OSError.
        """
        device = os.stat(path).st_dev
        if device not in self._hears:
            # The type is the first word of struct statfs, a long: statfs(2).
            answer = (ctypes.c_long * _STATFS_WORDS)()
            _checked(_libc.statfs(ctypes.c_char_p(os.fsencode(path)), answer))
            self._hears[device] = answer[0] & 0xFFFFFFFF not in _DEAF
        return self._hears[device]

    def _add(self, path: bytes, mask: int) -> int:
        return _checked(_libc.inotify_add_watch(self._fd, ctypes.c_char_p(path), ctypes.c_uint32(mask)))

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        changed = False
        at = 0
        while at < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & _Q_OVERFLOW:
                self._overflowed()
            elif mask & (_MODIFY | _IGNORED):
                # The latter follows on the former, or the file is no more.
                if watch in self._files:
                    self._modified(self._files.pop(watch))
            else:
                changed = True
        if changed:
            self._directory_changed()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
