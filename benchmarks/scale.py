"""How fast several processes train beside one, with the same threads in all.

    python -m benchmarks.scale [--rounds 3] [--into docs/scale.md]

Each way trains the DACT-BERT recipe for some steps, by turns; what counts is the median of the
samples a second that its log tells, start and evaluation left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
STEPS = 60
EACH = 10
# name -> processes, threads of each, settings
WAYS = {
    "one process, 1 thread": (1, 1, ()),
    "one process, 2 threads": (1, 2, ()),
    "two processes, 1 thread each, DDP": (2, 1, ()),
    "two processes, 1 thread each, FSDP2": (2, 1, ("parallel.strategy=fsdp2",)),
}


def samples_per_second(out: Path, processes: int, threads: int, settings: tuple[str, ...]) -> float:
    """Of one run, the first line left out: it holds what is done once."""
    chosen = (
        *(f"length={STEPS} steps", f"log={EACH} steps", "evaluate=never", "save=never"),
        *("data_settings.examples=4000", "data_settings.validation_examples=32"),
        'callbacks=["-tensorboard", "-progress_bar"]',
        *settings,
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run(
        [
            *(sys.executable, *(launcher if processes > 1 else ()), "-m", "plugin_trainer"),
            *("run", "--plugin", "dactbert", "--out", str(out)),
            *(f"--set={setting}" for setting in chosen),
        ],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    return statistics.median(speeds[1:])


def measured(rounds: int) -> str:
    """A table: samples a second, and how many times the first way."""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for way, (processes, threads, settings) in WAYS.items():
                out = Path(folder) / f"{number}-{way}"
                speeds[way].append(samples_per_second(out, processes, threads, settings))
                print(f"round {number + 1}  {way}: {speeds[way][-1]:.0f} samples/s", flush=True)
    first = next(iter(WAYS))
    rows = ["| | samples a second | of the first |", "|---|---|---|"]
    for way, its in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(its, speeds[first], strict=True))
        rows.append(f"| {way} | {statistics.median(its):.0f} | {ratio:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, print, and put the table into a page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    table = measured(asked.rounds)
    print(table)
    if asked.into is not None:
        page = asked.into.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        page = f"{before}{BEGIN}\n{table}\n{END}{after}"
        asked.into.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
