"""The one place that knows systemd: sockets handed over, state told, log priorities. All of it does nothing without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

FIRST_FD = 3


def inherited_sockets(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Listening Unix sockets from `LISTEN_FDS` by their path; the variables are taken out, so that children do not see them."""
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    pid, count, _ = (environ.pop(name, "") for name in names)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found = {}
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            sock.detach()
            continue
        sock.setblocking(False)
        found[str(sock.getsockname())] = sock
    return found


class Notifier:
    """Tells systemd the agent's state, through `NOTIFY_SOCKET`."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdecimal() and pid in {"", str(os.getpid())} else 0.0
        """How often systemd wants to hear of us, or 0."""

    def send(self, **state: str | int) -> None:
        """For example `send(READY=1, STATUS="shipping")`. Never fails: a lost notification must not end the agent."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in state.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(text.encode(), self._address)


def under_journal(environ: MutableMapping[str, str], fd: int) -> bool:
    """Whether what is written to `fd` goes to the journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    status = os.fstat(fd)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
