"""What following thousands of files may cost: counted in questions to the file system."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forwarder import config
from forwarder.positions import Saved
from forwarder.route import make_route
from forwarder.source import Source
from forwarder.tail import Tails

FILES = 50


def follow(directory: Path, saved: list[Saved], work: Callable[[Tails, list[Source]], None]) -> None:
    """Start to follow `*.log` in the directory, as an agent with these saved positions does, and have `work` done."""

    async def main() -> None:
        sources: list[Source] = []
        tails = Tails(
            (config.Tail(paths=(f"{directory}/*.log",)),),
            routes=lambda tail: make_route("logs", None, app=tail.app, host="host", prepare=None),
            saved=saved,
            host="host",
            wake=lambda source: None,
            added=sources.append,
            removed=lambda source: None,
            forget=lambda name: None,
            renew=lambda source: None,
            clock=time.time,
            since=time.time() if saved else None,
            scratch=directory,
        )
        try:
            tails.start()
            work(tails, sources)
        finally:
            tails.close()

    asyncio.run(main())


def test_a_directory_is_listed_once_at_the_start_however_many_of_its_files_were_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(FILES):
        (tmp_path / f"{number}.log").write_text("a line that is long enough to tell\n")
    saved: list[Saved] = []

    def read(tails: Tails, sources: list[Source]) -> None:
        for source in sources:
            while source.read(1000) is not None:
                saved.append(Saved(source.name, source.position, source.detail(source.position)))

    follow(tmp_path, [], read)
    assert len(saved) == FILES
    for number in range(FILES):
        (tmp_path / f"{number}.log").rename(tmp_path / f"{number}.log.1")
        (tmp_path / f"{number}.log").write_text("another line, in another file\n")
    listed: Counter[str] = Counter()
    real = os.scandir

    def scandir(path: Any) -> Any:
        listed[os.fspath(path)] += 1
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    def check(tails: Tails, sources: list[Source]) -> None:
        assert len(sources) == 2 * FILES

    follow(tmp_path, saved, check)
    # Once to find what was followed and once, that may have taken a while, for what lies beside the files; and for the glob.
    assert listed == {str(tmp_path): 3}
