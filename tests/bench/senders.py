"""Apps that send to a socket: processes of their own, which are not counted, that write large batches, as handlers do when there
is much to send."""

from __future__ import annotations

import contextlib
import enum
import logging
import logging.handlers
import multiprocessing
import socket
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.bench.data import batches, make_lines
from tests.harness.native import Native

BATCH_BYTES = 64 * 1024
DIFFERENT_RECORDS = 20_000
MOST_PROCESSES = 8
PATIENCE = 600.0


class Dialect(enum.Enum):
    NATIVE = "JSON lines behind a greeting, acknowledged"
    PLAIN = "JSON lines and nothing else"
    PICKLED = "the frames of the standard library's SocketHandler"


@contextlib.contextmanager
def sending(dialect: Dialect, path: Path, connections: int, records: int) -> Iterator[list[BaseProcess]]:
    """Senders of `records` in all, which are connected and begin now; each process has an app of its own."""
    processes = multiprocessing.get_context("spawn")
    count = min(connections, MOST_PROCESSES)
    ready = processes.Barrier(count + 1)
    shares = zip(split(connections, count), split(records, count), strict=True)
    senders = [
        processes.Process(target=_send, args=(dialect, str(path), f"app{number}", *share, ready))
        for number, share in enumerate(shares)
    ]
    for sender in senders:
        sender.start()
    try:
        ready.wait(60)
        yield list(senders)
    finally:
        for sender in senders:
            sender.terminate()
            sender.join()


def split(whole: int, parts: int) -> list[int]:
    """Parts of about the same size."""
    return [whole * (number + 1) // parts - whole * number // parts for number in range(parts)]


def _send(dialect: Dialect, path: str, app: str, connections: int, records: int, ready: Any) -> None:
    """Write `records` over several connections in turn, and wait until they are taken."""
    units = frames(min(records, DIFFERENT_RECORDS)) if dialect is Dialect.PICKLED else make_lines(min(records, DIFFERENT_RECORDS))
    streams = [batches(units, share, BATCH_BYTES) for share in split(records, connections)]
    opened = [_connect(path, f"{app}-{number}", app if dialect is Dialect.NATIVE else "") for number in range(connections)]
    ready.wait(60)
    writing = list(zip(opened, streams, strict=True))
    while writing:
        writing = [(connection, stream) for connection, stream in writing if _send_next(connection, stream)]
    if dialect is Dialect.NATIVE:
        for connection, share in zip(opened, split(records, connections), strict=True):
            connection.await_ack(share)
    for connection in opened:
        connection.socket.shutdown(socket.SHUT_WR)
        while connection.socket.recv(65536):
            pass


def _connect(path: str, session: str, app: str) -> Native:
    connection = Native(path, PATIENCE)
    if app:
        connection.greet(app=app, session=session)
    return connection


def _send_next(connection: Native, stream: Iterator[bytes]) -> bool:
    batch = next(stream, None)
    if batch is not None:
        connection.send_bytes(batch)
    return batch is not None


def frames(count: int) -> list[bytes]:
    """Pickled records with the message of a usual line and one `extra`."""
    logger = logging.getLogger("shop.checkout.payment")
    handler = logging.handlers.SocketHandler("nowhere", None)
    where = sys.modules[__name__].__file__ or ""
    made = []
    for number in range(count):
        args = (number, number * 7919 % 1_000_000, number % 5000)
        text = "order %08d of customer %06d took %4d ms"
        extra = {"request_id": f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}"}
        record = logger.makeRecord(logger.name, logging.INFO, where, 100, text, args, None, "charge", extra)
        made.append(handler.makePickle(record))
    return made
