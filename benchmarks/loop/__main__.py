"""Measures all loops, interleaved, and prints the table."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

from . import report, timing
from .contestants import CONTESTANTS


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=200,
        metavar="N",
        help="each loop takes 50 steps in each (200)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(CONTESTANTS),
        metavar="NAME",
        choices=list(CONTESTANTS),
        help=f"of {', '.join(CONTESTANTS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--markdown", action="store_true", help="print the table as docs/performance.md has it"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")

    asked = [CONTESTANTS[name] for name in arguments.only]
    # What somebody asked about is compared with, whether they asked for that or not.
    needed = {*arguments.only, *(contestant.against for contestant in asked)}
    taking_part = [c for c in CONTESTANTS.values() if c.name in needed and c.is_installed]
    absent = [contestant for contestant in asked if not contestant.is_installed]

    def progress(number: int) -> None:
        end = "\n" if number == arguments.rounds else ""
        print(f"\rround {number}/{arguments.rounds}", end=end, file=sys.stderr, flush=True)

    turns = timing.measure(taking_part, rounds=arguments.rounds, progress=progress)
    rows = report.summarise(turns)
    printed = (
        report.markdown(rows, absent=absent, rounds=arguments.rounds)
        if arguments.markdown
        else [*textwrap.wrap(report.machine(), 80), "", *report.lines(rows, absent=absent)]
    )
    print("\n".join(printed))
    if arguments.json:
        arguments.json.write_text(json.dumps(report.values(rows, turns), indent=1) + "\n")


if __name__ == "__main__":
    main()
