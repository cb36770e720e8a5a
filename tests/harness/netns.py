"""A network of an agent's own: a namespace with one cable to this machine, a firewall and a name server. Needs root.

Sockets of apps work as ever: they are files. A command runs inside with `wrapper` before it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

NAME_SERVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    query, whom = server.recvfrom(512)
    end = query.index(0, 12) + 5
    address = query[end - 4 : end - 2] == b"\\0\\1"  # of the types asked for only A has an answer
    head = query[:2] + b"\\x84\\0" + query[4:6] + (b"\\0\\1" if address else b"\\0\\0") + bytes(4)
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4" + socket.inet_aton(sys.argv[1])
    server.sendto(head + query[12:end] + (answer if address else b""), whom)
"""
"""Says of every name that it has the address given; answers live a second."""


@functools.cache
def may_make_networks() -> bool:
    """Whether this machine lets the tests: found out by trying, since a container's root may not."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("iptables") is None:
        return False
    network = Network()
    try:
        with network:
            return True
    except (OSError, subprocess.CalledProcessError):
        network.remove()
        return False


class Network:
    """For use with `with`. `here` is this machine's address as seen from inside."""

    def __init__(self) -> None:
        number = random.randrange(1 << 14)
        self._name = f"fwd-{number}"
        self._outer, self._inner = f"fwo{number}", f"fwi{number}"
        base = f"10.{200 + (number >> 12)}.{number >> 4 & 255}.{(number & 15) << 4}".rpartition(".")
        self.here, self._there = f"{base[0]}.{int(base[2]) + 1}", f"{base[0]}.{int(base[2]) + 2}"
        self._files = Path("/etc/netns") / self._name
        self._names: subprocess.Popen[str] | None = None
        self.wrapper = ("ip", "netns", "exec", self._name)

    def __enter__(self) -> Network:
        self._files.mkdir(parents=True)
        (self._files / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        _run("ip", "netns", "add", self._name)
        _run("ip", "link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self._name)
        _run("ip", "address", "add", f"{self.here}/28", "dev", self._outer)
        _run("ip", "link", "set", self._outer, "up")
        _run("ip", "-n", self._name, "address", "add", f"{self._there}/28", "dev", self._inner)
        _run("ip", "-n", self._name, "link", "set", self._inner, "up")
        _run("ip", "-n", self._name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.forget_names()
        self.remove()

    def remove(self) -> None:
        """Whatever there is of it."""
        for command in (("ip", "link", "delete", self._outer), ("ip", "netns", "delete", self._name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(*command)
        shutil.rmtree(self._files, ignore_errors=True)

    def cut(self) -> None:
        """Drop every packet in either direction, without a word."""
        for chain in ("INPUT", "OUTPUT"):
            _run(*self.wrapper, "iptables", "-I", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")

    def refuse(self) -> None:
        """Answer every TCP packet that leaves with a reset."""
        _run(
            *self.wrapper, "iptables", "-I", "OUTPUT", "!", "-o", "lo", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"
        )

    def heal(self) -> None:
        _run(*self.wrapper, "iptables", "-F")

    def serve_names(self) -> None:
        """Have a name server from now on, which says of every name that it is this machine."""
        self.forget_names()
        command = [*self.wrapper, sys.executable, "-c", NAME_SERVER, self.here]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._names = server
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", "the name server did not start"

    def forget_names(self) -> None:
        """Have no name server any more."""
        if self._names is not None:
            self._names.kill()
            self._names.communicate()
            self._names = None


def _run(*command: str) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, capture_output=True)
