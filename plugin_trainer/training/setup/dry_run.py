"""A run in small: two steps, one evaluation and one checkpoint, in a folder that is thrown away."""

from __future__ import annotations

import tempfile
from pathlib import Path

from plugin_trainer.configuration import Configuration
from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.blame import SEE_DEBUG
from plugin_trainer.training.distributed.init import join
from plugin_trainer.training.execution import execute
from plugin_trainer.training.result import Result
from plugin_trainer.training.run import Run
from plugin_trainer.training.setup.assemble import assemble

STEPS = 2


class _StopEarly:
    """Stops the run; its schedule and its length stay what they are."""

    def ptrain_step_end(self, run: Run) -> None:
        """Ask for the end after the last step of a dry run."""
        # Several processes stop a step after one of them asked for it.
        if run.progress.step >= STEPS - (run.world.size > 1):
            run.request_stop(f"a dry run is {STEPS} steps")


def dry_run(configuration: Configuration) -> Result:
    """Everything that a run does, once. Raises what the run would raise."""
    with tempfile.TemporaryDirectory(prefix="ptrain-dry-run-") as own:
        folder = join().from_first(own)
        try:
            run = assemble(configuration, out=Path(folder) / "run", callbacks=[_StopEarly()])
            run.is_dry = True
            return execute(run)
        except PtrainError as error:
            kept = [line for line in error.hint if folder not in line]  # it will be gone
            error.hint = (*kept, *([SEE_DEBUG] if len(kept) < len(error.hint) else []))
            raise
