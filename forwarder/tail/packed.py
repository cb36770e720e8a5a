"""Files that were compressed after a rotation, while the agent was away: what had not been read of them is unpacked and read.

Only what is wanted is kept, in a file without a name: the beginning, which tells it from others, and what lies behind the
position. After a crash the same is found in the same archive again. The libraries for it, a megabyte, are loaded then.
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from forwarder.tail.identity import MARK_BYTES, Ended, Identity, digest, holds

BLOCK_BYTES = 1 << 20
_LIBRARIES = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}


def name_before(name: str) -> str:
    """The name before compression; empty for what is no archive."""
    return next((name.removesuffix(suffix) for suffix in _LIBRARIES if name.endswith(suffix)), "")


class Sought(msgspec.Struct, frozen=True):
    """A file that may be in an archive: it was read to `end`, and what is behind `begin` is wanted."""

    identity: Identity | Ended
    end: int
    begin: int


def unpack(
    path: str, scratch: Path, sought: Sequence[Sought], *, unknown: bool = False, stopped: Callable[[], bool] = lambda: False
) -> tuple[int, int | None] | None:
    """Descriptor of a nameless file in the directory `scratch` with what the archive holds, and the place in `sought` of that.

    What is before its `begin` may be missing. If it is none of them, the result is None, or all the archive holds where it may
    be `unknown`. Takes minutes for what is large, so this may run in a thread, until it is `stopped`. Raises OSError, also
    when the archive is damaged or it was stopped.
    """
    import tempfile

    library: Any = importlib.import_module(_LIBRARIES[Path(path).suffix])
    with library.open(path) as archive, tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
        at = begin = 0
        alike: list[Sought] = []
        for block in _blocks(archive):
            if stopped():
                raise OSError("the agent stops")
            if at == 0:
                alike = [each for each in sought if digest(block[: each.identity.head_size]) == each.identity.head]
                if not alike and not unknown:
                    return None
                begin = min((min(each.begin, each.end - MARK_BYTES) for each in alike), default=0)
            if at == 0 or at + len(block) > begin:
                os.pwrite(file.fileno(), block, at)
            at += len(block)
        found = next((sought.index(each) for each in alike if holds(file.fileno(), each.identity, each.end)), None)
        if found is not None or (unknown and not alike):
            return os.dup(file.fileno()), found
    return unpack(path, scratch, (), unknown=True, stopped=stopped) if unknown else None


def _blocks(archive: IO[bytes]) -> Iterator[bytes]:
    import lzma

    try:
        while block := archive.read(BLOCK_BYTES):
            yield block
    except (EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise OSError(f"it cannot be unpacked: {error}") from error
