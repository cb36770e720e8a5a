"""Unix stream sockets: bound without a moment in which apps are refused, taken over only from the dead, peers known by name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

BACKLOG = 4096
PATIENCE = 5.0
_PEERCRED = struct.Struct("3i")


class SocketInUse(Exception):
    """Another process answers on the path."""


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        try:
            user = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            user = str(self.uid)
        try:
            command = Path(f"/proc/{self.pid}/comm").read_text(errors="replace").strip()
        except OSError:
            command = "ended"
        return f"pid {self.pid} ({command}) of user {user}"

    def groups(self) -> set[int]:
        """All groups of the peer's user, and the group it runs with."""
        try:
            return {self.gid, *os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)}
        except KeyError:
            return {self.gid}


def peer_of(sock: socket.socket) -> Peer:
    return Peer(*_PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)))


def bind(path: Path, *, mode: int, group: str | None) -> socket.socket:
    """Listen at `path`; a stale socket file there is replaced.

    Raises SocketInUse when somebody answers there, OSError with a message for the user when the path cannot be used.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _alone_in(path.parent):
        _refuse_to_take_over(path)
        # Listening under another name first: whoever finds the final name can connect, with the right mode.
        temporary = path.with_name(f".{path.name[:20]}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(str(temporary))
            if group is not None:
                os.chown(temporary, -1, _group_id(group))
            temporary.chmod(mode)
            sock.listen(BACKLOG)
            temporary.rename(path)
        except BaseException:
            sock.close()
            temporary.unlink(missing_ok=True)
            raise
    return sock


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Of those that bind in `directory` at the same time, one at a time: else each might find that nobody answers there yet."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    until = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise OSError(errno.EAGAIN, "another process has had it locked for too long", str(directory)) from None
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _group_id(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(errno.EINVAL, f"there is no group named {group}") from None


def _refuse_to_take_over(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "something that is no socket is there", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # a full backlog: somebody listens
    raise SocketInUse(f"{path}: another process answers there; stop it or choose another path")


def unlink_own(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket file unless somebody has put another in its place; `identity` is what `identify` said of it."""
    try:
        if identify(path) == identity:
            path.unlink()
    except FileNotFoundError:
        return


def identify(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def is_member(peer: Peer, groups: tuple[str, ...]) -> bool:
    """Whether the peer belongs to one of `groups`, names or numbers; a group that does not exist has no members."""
    for group in groups:
        try:
            if _group_id(group) in peer.groups():
                return True
        except OSError:
            continue
    return False
