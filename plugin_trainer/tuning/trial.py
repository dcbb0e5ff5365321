"""One trial: a run in its own folder, watched, and what came of it told to Optuna."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plugin_trainer.configuration import Configuration, in_one_line
from plugin_trainer.errors import (
    CheckpointError,
    NotSaved,
    PtrainError,
    ResumeError,
    RunFolderError,
    StudyError,
)
from plugin_trainer.registry.blame import in_words
from plugin_trainer.tuning.claims import MOST_TRIES, Claim, TrialLost, steps_saved, tries_of
from plugin_trainer.tuning.objectives import Objective, Tally
from plugin_trainer.tuning.storage import told_shortly

if TYPE_CHECKING:
    from plugin_trainer.training.run import Run

Say = Callable[[str], None]

STATE = "tuning"
"""Under which key a trial's checkpoints hold what it is worth so far."""

_PROGRESS_BAR = "core/progress_bar"

# What is wrong with the disk, the folder or the database is no fault of the trial's settings.
_NOT_ITS_FAULT = (NotSaved, ResumeError, RunFolderError, CheckpointError, StudyError)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, or did not.

    values  one for each objective, of a finished trial
    reason  why it was pruned or failed
    signal  what interrupted it, else 0
    """

    state: Literal["finished", "pruned", "failed", "interrupted"]
    steps: int
    values: Sequence[float] = ()
    reason: str = ""
    signal: int = 0


class Watcher:
    """The callback of a trial's run: it takes in every evaluation and prunes.

    The step of a report is the number of the evaluation, counted from 1.
    """

    def __init__(self, claim: Claim, objectives: Sequence[Objective], *, say: Say) -> None:
        self.tally = Tally(objectives)
        self.pruned = ""
        self._claim = claim
        self._trial = claim.trial
        self._say = say
        frozen = self._trial.storage.get_trial(self._trial._trial_id)
        self._reported = set(frozen.intermediate_values)

    def ptrain_run_start(self, run: Run) -> None:
        """Have a wrong objective found before the first step."""
        for its in self.tally.objectives:
            run.watch(its.metric, setting="objective")

    def ptrain_step_end(self, run: Run) -> None:
        """Leave a trial that is another worker's by now."""
        self._claim.refuse_if_lost()

    def ptrain_evaluation_end(self, run: Run, metrics: MutableMapping[str, float]) -> None:
        """Report the evaluation, and stop a run that is not worth going on with."""
        with told_shortly(self._claim.url):
            self._claim.refuse_if_lost(look=True)
        values = self.tally.add(metrics)
        named = zip(self.tally.objectives, values, strict=True)
        told = ", ".join(f"{its.metric} {value:.4g}" for its, value in named)
        self._say(f"evaluation {self.tally.count}, step {run.progress.step}: {told}")
        if len(values) > 1:
            return  # Optuna prunes by one objective only
        with told_shortly(self._claim.url):
            if self.tally.count not in self._reported:  # by the process before this one
                self._trial.report(values[0], self.tally.count)
            bad = not run.is_ending and self._trial.should_prune()
        if bad:
            self.pruned = f"pruned at evaluation {self.tally.count}: {told}"
            run.request_stop(self.pruned)

    def ptrain_checkpoint_save(self, run: Run, state: MutableMapping[str, Any]) -> None:
        """Keep what was taken in."""
        state[STATE] = {"tally": self.tally.state_dict(), "pruned": self.pruned}

    def ptrain_checkpoint_load(self, run: Run, state: Mapping[str, Any]) -> None:
        """Go on counting where another process stopped."""
        self.take_back(state)

    def take_back(self, state: Mapping[str, Any]) -> None:
        """Take back what a checkpoint holds."""
        if STATE in state:
            self.tally.load_state_dict(state[STATE]["tally"])
            self.pruned = state[STATE]["pruned"]


def run_trial(
    claim: Claim,
    objectives: Sequence[Objective],
    configure: Callable[[], Configuration],
    *,
    allow: Sequence[str],
    check: Callable[[Configuration], Sequence[Any]],
    say: Say,
) -> Outcome:
    """Train the trial's run from where it stands to its end.

    configure  gives the run with the trial's values
    allow      what may differ from what the trial was begun with: plugins, packages, code, content
    check      further checks of the configuration, which give problems

    A mistake in the trial's settings, and whatever goes wrong in training, makes a failed trial;
    what is no fault of its settings, such as a full disk, is raised.
    """
    if tries_of(claim.trial) > MOST_TRIES:
        at = steps_saved(claim.folder)
        reason = f"its process was killed {MOST_TRIES} times after step {at}, without getting on"
        return Outcome("failed", at, reason=reason)
    watcher = Watcher(claim, objectives, say=say)
    try:
        return _train(claim, watcher, configure, allow=allow, check=check, say=say)
    except TrialLost:
        raise
    except Exception as error:
        if isinstance(error, _NOT_ITS_FAULT):
            raise
        return Outcome("failed", steps_saved(claim.folder), reason=_reason(error))
    finally:
        gc.collect()  # a model in a cycle would stand in the way of the next trial's


def _train(
    claim: Claim,
    watcher: Watcher,
    configure: Callable[[], Configuration],
    *,
    allow: Sequence[str],
    check: Callable[[Configuration], Sequence[Any]],
    say: Say,
) -> Outcome:
    from plugin_trainer.errors import SettingsError
    from plugin_trainer.training.execution import execute
    from plugin_trainer.training.setup.assemble import AlreadyDone, assemble

    configuration = configure()
    if problems := check(configuration):
        raise SettingsError(problems)
    shown = [choice for choice in configuration.callbacks if choice.offer.address != _PROGRESS_BAR]
    configuration = dataclasses.replace(configuration, callbacks=tuple(shown))
    try:
        run = assemble(
            configuration,
            out=claim.folder,
            resume="auto",
            allow=allow,
            notify=say,
            callbacks=[watcher],
        )
    except AlreadyDone as done:  # only the word to Optuna is missing
        watcher.take_back(_last_state(claim.folder))
        return _ended(watcher, steps=int(done.about.get("step", 0)))
    result = execute(run)
    if result.signal:
        return Outcome("interrupted", result.step, signal=result.signal)
    return _ended(watcher, steps=result.step)


def _ended(watcher: Watcher, *, steps: int) -> Outcome:
    if watcher.pruned:
        return Outcome("pruned", steps, reason=watcher.pruned)
    return Outcome("finished", steps, watcher.tally.values())


def _last_state(folder: Path) -> Mapping[str, Any]:
    """What callbacks kept in a run's newest checkpoint."""
    from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot

    found, _ = CheckpointStore(folder).newest_sound()
    if found is None:
        return {}
    state: Mapping[str, Any] = read_snapshot(found.path).state["callbacks"]
    return state


def _reason(error: Exception) -> str:
    """In one line."""
    if not isinstance(error, PtrainError):
        return " ".join(in_words(error).split())
    elsewhere = ("the run was saved to ", "the traceback is in ")
    told = [line for line in error.hint if not line.startswith(elsewhere)]
    return in_one_line(PtrainError(error.message, hint=told))
