"""Measures section by section, each in a process of its own, and prints the whole table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from plugin_trainer.ops.bench.interleaved import machine

from . import show
from .results import Section

SECTIONS = ("ema", "step", "halting", "norm", "training_step", "engine", "build")
THREADS = 2
ROUNDS = 25


def main() -> int:
    """Measure, print, and write down; 1 if a section failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description="Measures the kernels beside their peers."
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"of {','.join(SECTIONS)}")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help="turns of each (25)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--markdown", action="store_true", help="print as docs/kernels.md has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="put the tables into this page")
    parser.add_argument("--section", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(SECTIONS)}")
    if arguments.rounds < 3:
        parser.error("--rounds: at least 3")
    if arguments.section:
        _measure_here(arguments.section, arguments.rounds, arguments.device, arguments.json)
        return 0

    found: dict[str, dict[str, Any]] = {}
    for name in names:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        values = _measured(name, arguments.rounds, arguments.device)
        if values is not None:
            found[name] = values
            _print(name, values, as_markdown=arguments.markdown)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.into:
        write_into(arguments.into, found)
    return 0 if len(found) == len(names) else 1


def _measured(name: str, rounds: int, device: str) -> dict[str, Any] | None:
    """A section measured in a new process, so that none inherits another's memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "section.json")
        command = [sys.executable, "-m", "benchmarks.kernels", "--section", name]
        command += ["--rounds", str(rounds), "--device", device, "--json", str(file)]
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            print(f"{name} has failed; what it said stands above", file=sys.stderr)
            return None
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return values


def _measure_here(name: str, rounds: int, device: str, file: Path) -> None:
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    section: Section = import_module(f".{name}", __package__).section(rounds=rounds, device=device)
    on = f"{machine(device)}; {rounds} rounds"
    file.write_text(json.dumps({"machine": on, **section.values()}), encoding="utf-8")


def _print(name: str, values: dict[str, Any], *, as_markdown: bool) -> None:
    section = Section.of(values)
    if as_markdown:
        lines = [*show.goals_in_markdown(section.goals), "", *show.markdown(section)]
    else:
        lines = [*textwrap.wrap(values["machine"], show.WIDTH), *show.terminal(name, section)]
    print("\n".join(lines), flush=True)


def write_into(page: Path, found: dict[str, dict[str, Any]]) -> None:
    """Replace the tables of these sections in a page: the goals first, the figures further down."""
    text = page.read_text(encoding="utf-8")
    for name, values in found.items():
        section = Section.of(values)
        text = show.put_into(
            text, f"{name} goals", "\n".join(show.goals_in_markdown(section.goals))
        )
        about = textwrap.wrap(f"{values['machine']}.", show.WIDTH)
        text = show.put_into(text, name, "\n".join([*about, "", *show.markdown(section)]))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
