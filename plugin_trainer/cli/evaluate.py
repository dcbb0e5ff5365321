"""`ptrain evaluate`: score a run's weights on a split."""

from __future__ import annotations

import sys
from typing import Any

import click

from plugin_trainer.cli.options import (
    exit_option,
    is_trusted,
    json_option,
    set_option,
    trust_option,
    which_weights,
)
from plugin_trainer.cli.printing import echo, emit_json


@click.command()
@click.argument("run")
@which_weights
@click.option("--split", default="validation", show_default=True, help="validation, test or train.")
@exit_option
@set_option
@trust_option
@json_option
def evaluate(
    run: str,
    checkpoint: str,
    weights: Any,
    split: str,
    exit_: str | None,
    assignments: tuple[str, ...],
    json_: bool,
) -> None:
    """Score the run RUN: a run folder, or a name under runs/.

    With --set, on other data: --set data_settings.validation=other.tsv.
    """
    from plugin_trainer.callbacks.evaluation_bar import EvaluationBar
    from plugin_trainer.cli.run import metrics_table
    from plugin_trainer.settings.layers import from_assignments
    from plugin_trainer.training.inference import load_run

    overrides = from_assignments(assignments) if assignments else None
    loaded = load_run(
        run,
        checkpoint=checkpoint,
        weights=weights,
        overrides=overrides,
        trust=is_trusted(),
        callbacks=[EvaluationBar(limited=False)] if sys.stderr.isatty() else [],
    )
    if exit_ is not None:
        loaded.use_exit(exit_)
    metrics = loaded.evaluate("val" if split == "validation" else split)
    if json_:
        emit_json({"checkpoint": str(loaded.checkpoint.path), "weights": weights, **metrics})
        return
    echo(f"{loaded.checkpoint.path}, {weights} weights\n")
    echo(metrics_table(metrics))
