"""`python -m tests.chaos`: one run, told as it goes.

Exit 0 only if nothing was lost or altered, nothing repeated where exactly-once is promised, and the agent never ended by itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import soak

MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Faults at random under load; every acknowledged record must arrive."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults befall it (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="which faults, and when (default: another each time)")
    parser.add_argument("--rate", type=float, default=20_000.0, help="records a second, half of them files' (default: 20000)")
    parser.add_argument("--delivery", choices=["at-least-once", "exactly-once"], default="at-least-once")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1)
    parser.add_argument("--keep", metavar="DIR", help="an empty directory to work in and to leave behind, with all logs")
    arguments = parser.parse_args()
    settings = soak.Settings(arguments.minutes, arguments.seed, arguments.rate, arguments.delivery, arguments.brokers)
    print(
        f"seed {settings.seed}, {settings.minutes:g} minutes, {settings.rate:g} records/s, {settings.brokers} broker(s)",
        flush=True,
    )
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} +{time.monotonic() - began:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="fwd-chaos-") as directory:
        outcome = soak.run(settings, Path(arguments.keep or directory), say)
    verdict = outcome.verdict
    print(verdict)
    for trouble in outcome.troubles:
        print(f"trouble: {trouble}")
    print(f"memory of the agent at most {outcome.peak / MIB:.0f} MiB, dead letters {outcome.dead:.0f}")
    failed = bool(verdict.lost or verdict.altered or verdict.alien or outcome.dead or outcome.troubles)
    failed |= settings.delivery == "exactly-once" and verdict.duplicated > 0
    counts = f"lost {verdict.lost}, duplicated {verdict.duplicated}, reordered {verdict.reordered}, altered {verdict.altered}"
    print(f"{'FAILED' if failed else 'passed'}: {counts}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
