"""`ptrain dactbert calibrate RUN`: how early a run's rows may leave, with a promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Percent(click.ParamType):  # type: ignore[type-arg]
    """A share such as 1% or 0.01."""

    name = "percent"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """A number between 0 and 1."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value} is no share; write it as 1%", param, ctx)
        return share


@click.group(name="dactbert")
def dactbert() -> None:
    """Early exits of a dactbert run."""


@dactbert.command()
@click.argument("run")
@click.option(
    "--checkpoint",
    default="",
    metavar="WHICH",
    help="best, last or step-N; best if there is one, by default.",
)
@click.option("--weights", type=click.Choice(["raw", "ema"]), default="raw", show_default=True)
@click.option(
    "--max-disagreement",
    "promises",
    type=Percent(),
    multiple=True,
    metavar="SHARE",
    help="What to promise, such as 1% (repeatable); 1% and 2% by default.",
)
@click.option("--confidence", type=Percent(), default="95%", show_default=True)
@click.option(
    "--rows",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Texts without labels, one a line; the validation split by default.",
)
@click.option("--apart", is_flag=True, help="Fit on a third of the rows, certify on the others.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def calibrate(
    run: str,
    checkpoint: str,
    weights: Any,
    promises: tuple[float, ...],
    confidence: float,
    rows: Path | None,
    apart: bool,
    json_: bool,
) -> None:
    """Calibrate early exits of the run RUN: a run folder, or a name under runs/.

    A promise bounds how many new rows get another answer than from the last block.
    """
    import json
    from dataclasses import asdict

    from plugin_trainer import load_run
    from ptrain_dactbert import calibrate as calibrating

    loaded = load_run(run, checkpoint=checkpoint, weights=weights)
    calibration, refused = calibrating.calibrate(
        loaded,
        promises=promises or calibrating.PROMISES,
        confidence=confidence,
        apart=apart,
        lines=calibrating.read_rows(rows) if rows is not None else None,
    )
    if refused and not calibration.certified:
        raise refused[0]
    if json_:
        for error in refused:
            click.echo(error, err=True)
        click.echo(json.dumps(asdict(calibration), indent=1))
        return
    click.echo(f"{loaded.checkpoint.path}, {weights} weights\n")
    click.echo("\n".join(calibrating.report(calibration, refused)))
