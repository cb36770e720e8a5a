"""A disk that fails when it is told to: a FUSE file system over a directory, spoken to the kernel directly.

Everything goes through to the directory, unless `fail` says which kinds of calls get which error. Nothing is remembered: what
the directory has is what there is. Needs root and `/dev/fuse`; `available` tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

READ, CHANGE, ROOM, SYNC, REMOVE = "read", "change", "room", "sync", "remove"
"""Kinds of calls: reading what is in files; changing anything; taking room; syncing; removing. A call may be of several."""

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4QII")
_ROOT = 1
_MAX_WRITE = 128 * 1024
_WRITING = os.O_WRONLY | os.O_RDWR
_NOSUID_NODEV = 6

(LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, RENAME, OPEN, READ_CALL, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT) = (
    1, 2, 3, 4, 9, 10, 11, 12, 14, 15, 16, 17, 18, 20, 25, 26,
)  # fmt: skip
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = 27, 28, 29, 30, 35, 36, 42, 45

_KINDS = {
    READ_CALL: {READ},
    WRITE: {CHANGE, ROOM},
    CREATE: {CHANGE, ROOM},
    MKDIR: {CHANGE, ROOM},
    SETATTR: {CHANGE},
    UNLINK: {CHANGE, REMOVE},
    RMDIR: {CHANGE, REMOVE},
    RENAME: {CHANGE},
    RENAME2: {CHANGE},
    FSYNC: {SYNC},
}


def available() -> bool:
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


class _Node:
    def __init__(self, fd: int, lookups: int = 0) -> None:
        self.fd = fd
        self.lookups = lookups

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"


class FaultyDisk:
    """Mounted at `path` from `with` to its end; what is in it is in `backing`."""

    def __init__(self, path: Path, backing: Path) -> None:
        self.path = path
        self.backing = backing
        self.refused = 0
        """How many calls were given an error on purpose."""
        self._faults: dict[str, int] = {}
        self._under = ""
        self._nodes: dict[int, _Node] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._next = _ROOT

    def fail(self, error: int, *kinds: str, under: str = "") -> None:
        """From now on calls of these kinds get `error`, if what they are for has `under` in its path."""
        self._under = under
        self._faults = dict.fromkeys(kinds, error)

    def mend(self) -> None:
        self._faults = {}

    def __enter__(self) -> FaultyDisk:
        self.path.mkdir(exist_ok=True)
        self.backing.mkdir(exist_ok=True)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        mounted = libc.mount(b"faulty", os.fsencode(self.path), b"fuse.faulty", _NOSUID_NODEV, options.encode())
        if mounted != 0:
            number = ctypes.get_errno()
            os.close(self._device)
            raise OSError(number, os.strerror(number), str(self.path))
        self._number(os.open(self.backing, os.O_PATH | os.O_CLOEXEC))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self._thread.join(10)
        os.close(self._device)
        for node in self._nodes.values():
            os.close(node.fd)

    # The kernel's questions

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return  # unmounted
                if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                    continue
                raise
            size, call, unique, number, *_ = _IN.unpack_from(request)
            body = request[_IN.size : size]
            if call == FORGET:
                self._forget(number, *struct.unpack_from("<Q", body))
            elif call == BATCH_FORGET:
                (count,) = struct.unpack_from("<I", body)
                for one in range(count):
                    self._forget(*struct.unpack_from("<QQ", body, 8 + 16 * one))
            elif call != INTERRUPT:
                self._answer(unique, call, number, body)

    def _answer(self, unique: int, call: int, number: int, body: bytes) -> None:
        try:
            self._check(call, number, body)
            answer, code = self._calls[call](self, number, body), 0
        except KeyError:
            answer, code = b"", errno.ENOSYS
        except OSError as error:
            answer, code = b"", error.errno or errno.EIO
        # Nobody waits for the answer to a call that was interrupted.
        with contextlib.suppress(FileNotFoundError):
            os.write(self._device, _OUT.pack(_OUT.size + len(answer), -code, unique) + answer)

    def _check(self, call: int, number: int, body: bytes) -> None:
        kinds = _KINDS.get(call, set())
        if call == OPEN and struct.unpack_from("<I", body)[0] & _WRITING:
            kinds = {CHANGE}
        for kind in kinds & self._faults.keys():
            if self._under in str(Path(self._nodes[number].path).readlink()):
                self.refused += 1
                raise OSError(self._faults[kind], "on purpose")

    def _number(self, fd: int) -> int:
        """The kernel's number for what `fd` is, which stays open as long as the kernel knows it."""
        status = os.fstat(fd)
        identity = status.st_dev, status.st_ino
        number = self._numbers.get(identity)
        if number is None:
            number = self._numbers[identity] = self._next
            self._next += 1
            self._nodes[number] = _Node(fd)
        else:
            os.close(fd)
        self._nodes[number].lookups += 1
        return number

    def _forget(self, number: int, lookups: int) -> None:
        node = self._nodes[number]
        node.lookups -= lookups
        if node.lookups <= 0 and number != _ROOT:
            status = os.fstat(node.fd)
            del self._numbers[status.st_dev, status.st_ino], self._nodes[number]
            os.close(node.fd)

    def _attributes(self, status: os.stat_result) -> bytes:
        times = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
        return _ATTR.pack(
            status.st_ino,
            status.st_size,
            status.st_blocks,
            *(time // 10**9 for time in times),
            *(time % 10**9 for time in times),
            status.st_mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            0,
            status.st_blksize,
            0,
        )

    def _entry(self, number: int, name: bytes) -> bytes:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._nodes[number].fd)
        status = os.fstat(fd)
        return _ENTRY.pack(self._number(fd), 0, 0, 0, 0, 0) + self._attributes(status)

    def _init(self, number: int, body: bytes) -> bytes:
        return struct.pack("<4I2H2I2H2I", 7, 31, 128 * 1024, 1 << 5, 16, 12, _MAX_WRITE, 1, 32, 0, 0, 0) + bytes(24)

    def _lookup(self, number: int, body: bytes) -> bytes:
        return self._entry(number, body.rstrip(b"\0"))

    def _getattr(self, number: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(os.fstat(self._nodes[number].fd))

    def _setattr(self, number: int, body: bytes) -> bytes:
        valid, _, _, size, _, _, mtime, _, _, mtime_ns, _, mode, _, uid, gid = struct.unpack_from("<II6Q7I", body)
        path = self._nodes[number].path
        if valid & 1:
            Path(path).chmod(mode)
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(path, size)
        if valid & 32:
            os.utime(path, ns=(mtime * 10**9 + mtime_ns,) * 2)
        return self._getattr(number, body)

    def _mkdir(self, number: int, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<II", body)
        name = body[8:].rstrip(b"\0")
        os.mkdir(name, mode, dir_fd=self._nodes[number].fd)
        return self._entry(number, name)

    def _unlink(self, number: int, body: bytes) -> bytes:
        os.unlink(body.rstrip(b"\0"), dir_fd=self._nodes[number].fd)
        return b""

    def _rmdir(self, number: int, body: bytes) -> bytes:
        os.rmdir(body.rstrip(b"\0"), dir_fd=self._nodes[number].fd)
        return b""

    def _rename(self, number: int, body: bytes, names: int = 8) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        old, new = body[names:].split(b"\0")[:2]
        os.rename(old, new, src_dir_fd=self._nodes[number].fd, dst_dir_fd=self._nodes[target].fd)
        return b""

    def _rename2(self, number: int, body: bytes) -> bytes:
        return self._rename(number, body, 16)

    def _open(self, number: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        # A positioned write to a file opened for appending would not go where it is meant to.
        fd = os.open(self._nodes[number].path, flags & ~(os.O_APPEND | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC)
        return struct.pack("<QII", fd, 0, 0)

    def _create(self, number: int, body: bytes) -> bytes:
        flags, mode, _, _ = struct.unpack_from("<IIII", body)
        name = body[16:].rstrip(b"\0")
        fd = os.open(name, flags & ~os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode, dir_fd=self._nodes[number].fd)
        return self._entry(number, name) + struct.pack("<QII", fd, 0, 0)

    def _read(self, number: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(fd, size, offset)

    def _write(self, number: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(fd, body[40 : 40 + size], offset), 0)

    def _statfs(self, number: int, body: bytes) -> bytes:
        found = os.statvfs(self.backing)
        sizes = found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree
        return struct.pack("<5Q4I24x", *sizes, found.f_bsize, found.f_namemax, found.f_frsize, 0)

    def _release(self, number: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def _fsync(self, number: int, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def _nothing(self, number: int, body: bytes) -> bytes:
        return b""

    def _readdir(self, number: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for place, entry in enumerate(sorted(os.scandir(fd), key=lambda entry: entry.name)):
            if place >= offset:
                name = os.fsencode(entry.name)
                part = struct.pack("<QQII", entry.inode(), place + 1, len(name), 0) + name
                part += bytes(-len(part) % 8)
                if len(answer) + len(part) > size:
                    break
                answer += part
        return answer

    _calls: dict[int, Callable[[FaultyDisk, int, bytes], bytes]] = {  # noqa: RUF012
        INIT: _init,
        LOOKUP: _lookup,
        GETATTR: _getattr,
        SETATTR: _setattr,
        MKDIR: _mkdir,
        UNLINK: _unlink,
        RMDIR: _rmdir,
        RENAME: _rename,
        RENAME2: _rename2,
        OPEN: _open,
        CREATE: _create,
        READ_CALL: _read,
        WRITE: _write,
        STATFS: _statfs,
        RELEASE: _release,
        FSYNC: _fsync,
        FLUSH: _nothing,
        OPENDIR: _open,
        READDIR: _readdir,
        RELEASEDIR: _release,
        FSYNCDIR: _nothing,
    }
