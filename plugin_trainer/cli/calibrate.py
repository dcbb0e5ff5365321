"""`ptrain calibrate`: how early a run's rows may leave, with a promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plugin_trainer.cli.options import (
    is_trusted,
    json_option,
    set_option,
    trust_option,
    which_weights,
)
from plugin_trainer.cli.printing import echo, emit_json
from plugin_trainer.errors import PtrainError


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


@click.command()
@click.argument("run")
@which_weights
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
    help="Inputs without labels, one a line; the validation split by default.",
)
@click.option("--apart", is_flag=True, help="Fit on a third of the rows, certify on the others.")
@set_option
@trust_option
@json_option
def calibrate(
    run: str,
    checkpoint: str,
    weights: Any,
    promises: tuple[float, ...],
    confidence: float,
    rows: Path | None,
    apart: bool,
    assignments: tuple[str, ...],
    json_: bool,
) -> None:
    """Calibrate early exits of the run RUN: a run folder, or a name under runs/.

    A promise bounds how many new rows get another answer than from the last block: a sentence with
    another tag on any word, or a number that is further from it than the tolerance. Each task of
    the run that has exits is calibrated. With --set, in another precision: --set precision=fp32.
    """
    from plugin_trainer.early_exit import calibrate as calibrating
    from plugin_trainer.early_exit.fitting import PROMISES
    from plugin_trainer.settings.layers import from_assignments
    from plugin_trainer.training.inference import load_run

    overrides = from_assignments(assignments) if assignments else None
    loaded = load_run(
        run, checkpoint=checkpoint, weights=weights, overrides=overrides, trust=is_trusted()
    )
    outcomes = calibrating.calibrate(
        loaded,
        promises=promises or PROMISES,
        confidence=confidence,
        apart=apart,
        lines=_read(rows) if rows is not None else None,
    )
    refused = [error for outcome in outcomes.values() for error in outcome.refused]
    found = [outcome.calibration for outcome in outcomes.values()]
    if refused and not any(calibration and calibration.certified for calibration in found):
        raise refused[0]
    if json_:
        for error in refused:
            echo(error, err=True)
        emit_json(_as_json(outcomes))
        return
    echo(f"{loaded.checkpoint.path}, {weights} weights")
    for task, outcome in outcomes.items():
        echo("\n".join(["", *([task] if task else []), *calibrating.report(outcome)]))


def _as_json(outcomes: Any) -> Any:
    from dataclasses import asdict

    found = {task: asdict(one.calibration) for task, one in outcomes.items() if one.calibration}
    return found.get("", found)


def _read(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            # Not splitlines: that also ends lines inside a text.
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PtrainError(f"{path} cannot be read: {reason}") from None
