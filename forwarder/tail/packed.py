"""Files that were compressed after a rotation, while the agent was away: what had not been read of them is unpacked and read.

Only what is wanted is kept, in a file without a name: the beginning, which tells it from others, and what lies behind the
position. After a crash the same is found in the same archive again.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from forwarder.tail.identity import MARK_BYTES, Identity, digest, holds

BLOCK_BYTES = 1 << 20
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def name_before(name: str) -> str:
    """The name before compression; empty for what is no archive."""
    return next((name.removesuffix(suffix) for suffix in _OPENERS if name.endswith(suffix)), "")


def unpack(path: str, scratch: Path, identity: Identity | None = None, position: int = 0) -> int | None:
    """Descriptor of a nameless file in the directory `scratch` with what the archive holds, but for what is before `position`.

    None if the archive does not hold the file that `identity` tells of. Raises OSError, also when the archive is damaged.
    """
    with _OPENERS[Path(path).suffix](path) as archive, tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
        at = 0
        for block in _blocks(archive):
            if at == 0 and identity is not None and digest(block[: identity.head_size]) != identity.head:
                return None
            if at == 0 or at + len(block) > position - MARK_BYTES:
                os.pwrite(file.fileno(), block, at)
            at += len(block)
        if identity is not None and not holds(file.fileno(), identity, position):
            return None
        return os.dup(file.fileno())


def _blocks(archive: IO[bytes]) -> Iterator[bytes]:
    try:
        while block := archive.read(BLOCK_BYTES):
            yield block
    except (EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise OSError(f"it cannot be unpacked: {error}") from error
