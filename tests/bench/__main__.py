"""`python -m tests.bench [BENCH]`: chooses the bench; without a name it is `paths`."""

from __future__ import annotations

import argparse
import os
import sys

from tests.bench import curves, drain, emit, fleet, idle, latency, paths, start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What a record costs and how long it takes.")
    benches = parser.add_subparsers(title="benches", metavar="BENCH", required=True)
    for bench in (paths, latency, drain, idle, start, curves, fleet, emit):
        bench.add(benches)
    named = sys.argv[1:]
    if not named or (named[0].startswith("-") and named[0] not in {"-h", "--help"}):
        named = ["paths", *named]
    arguments = parser.parse_args(named)
    # An agent that is installed has been compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130


sys.exit(main())
