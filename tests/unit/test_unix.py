"""Binding sockets: however many start at once, one gets the path, and apps that find it reach that one."""

from __future__ import annotations

import multiprocessing
import socket
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from forwarder import unix

RIVALS, ROUNDS = 4, 60


def compete(directory: Path, barrier: Barrier, answers: Connection) -> None:
    """In each round bind at a path of its own; tell whether that went well, and whether whoever connects gets here."""
    for number in range(ROUNDS):
        path = directory / f"{number}.sock"
        barrier.wait(10)
        try:
            sock = unix.bind(path, mode=0o600, group=None)
        except unix.SocketInUse:
            barrier.wait(10)
            answers.send((False, False))
            continue
        barrier.wait(10)
        with sock, socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            try:
                sock.accept()[0].close()
                answers.send((True, True))
            except BlockingIOError:
                answers.send((True, False))


@pytest.mark.parametrize("stale", [False, True], ids=["nothing there", "a dead agent's socket there"])
def test_of_those_that_start_in_the_same_instant_one_gets_the_socket(directory: Path, stale: bool) -> None:
    if stale:
        for number in range(ROUNDS):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(directory / f"{number}.sock"))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(RIVALS)
    pipes = [context.Pipe(duplex=False) for _ in range(RIVALS)]
    rivals = [context.Process(target=compete, args=(directory, barrier, sender), daemon=True) for _, sender in pipes]
    for rival, (_, sender) in zip(rivals, pipes, strict=True):
        rival.start()
        sender.close()
    for _ in range(ROUNDS):
        answers = [receiver.recv() for receiver, _ in pipes]
        assert sorted(answers) == [(False, False)] * (RIVALS - 1) + [(True, True)]
    for rival in rivals:
        rival.join()


def test_a_directory_that_stays_locked_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "PATIENCE", 0.05)
    with unix._alone_in(directory), pytest.raises(OSError, match="another process has had it locked for too long"):
        unix.bind(directory / "s.sock", mode=0o600, group=None)
