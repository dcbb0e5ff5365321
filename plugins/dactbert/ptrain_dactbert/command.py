"""`ptrain dactbert`: how early a run's rows may leave with a promise, and what that costs."""

from __future__ import annotations

from pathlib import Path

import click

from plugin_trainer.cli.calibrate import calibrate
from plugin_trainer.cli.options import json_option, set_option
from plugin_trainer.cli.printing import echo, emit_json


@click.group(name="dactbert")
def dactbert() -> None:
    """Early exits of a dactbert run."""


dactbert.add_command(calibrate)


class _SeveralAgainst(click.Command):
    """--against takes all runs behind it, as a shell spells them out for runs/plain-*."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put --against before each of its runs."""
        spelled: list[str] = []
        takes_more = False
        for arg in args:
            if arg.startswith("-"):
                takes_more = arg == "--against"
            elif takes_more and spelled[-1] != "--against":
                spelled.append("--against")
            spelled.append(arg)
        return super().parse_args(ctx, spelled)


@dactbert.command(cls=_SeveralAgainst)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--against",
    multiple=True,
    metavar="RUN...",
    help="Baselines: plain fine-tuning of all or of the first blocks, or another recipe.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="curve",
    show_default=True,
    metavar="DIR",
    help="Where curve.md, curve.json and the pictures go.",
)
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="validation",
    show_default=True,
    help="The rows to judge on.",
)
@set_option
@click.option("--timing/--no-timing", default=True, help="Time the first RUN.  [default: timing]")
@click.option(
    "--batch",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8, 32, 128),
    show_default=True,
    metavar="ROWS",
    help="A batch size to time (repeatable).",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Times over all batches.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads while timing.",
)
@json_option
def curve(
    runs: tuple[str, ...],
    against: tuple[str, ...],
    out: Path,
    split: str,
    assignments: tuple[str, ...],
    timing: bool,
    batch_sizes: tuple[int, ...],
    rounds: int,
    threads: int,
    json_: bool,
) -> None:
    """Judge early exits of the runs RUN..., seeds of one recipe, by every rule.

    Writes accuracy and agreement by mean blocks and by milliseconds to a folder, as a table, as
    JSON and as pictures. Needs the extra "curve".
    """
    from plugin_trainer.settings.layers import from_assignments
    from ptrain_dactbert.curve.evidence import evidence, write_evidence
    from ptrain_dactbert.curve.picture import need_matplotlib
    from ptrain_dactbert.curve.printing import for_terminal

    need_matplotlib()
    options = {"batch_sizes": batch_sizes, "rounds": rounds, "threads": threads}
    document = evidence(
        runs,
        against=against,
        split=split,
        overrides=from_assignments(assignments) if assignments else None,
        timing=options if timing else None,
        progress=lambda line: echo(line, err=True),
    )
    written = write_evidence(document, out)
    if json_:
        emit_json(document)
        return
    echo(for_terminal(document))
    echo("")
    for path in written:
        echo(f"wrote {path}")
