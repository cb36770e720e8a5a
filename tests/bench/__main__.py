"""`python -m tests.bench`: chooses the bench."""

from __future__ import annotations

import argparse
import sys

from tests.bench import curves, drain, emit, file, fleet, idle, latency, sockets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What a record costs and how long it takes.")
    benches = parser.add_subparsers(title="benches", metavar="BENCH", required=True)
    for bench in (file, sockets, emit, idle, latency, drain, curves, fleet):
        bench.add(benches)
    arguments = parser.parse_args()
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130


sys.exit(main())
