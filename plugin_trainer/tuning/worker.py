"""One process that takes trial after trial of one stage until none is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from plugin_trainer.configuration import Configuration, configure
from plugin_trainer.errors import StudyError
from plugin_trainer.registry.blame import in_words
from plugin_trainer.settings.layers import Layer
from plugin_trainer.tuning.beginning import OpenStudy, total_of
from plugin_trainer.tuning.checking import ranges_of, stages_of
from plugin_trainer.tuning.claims import REASON, STEPS, Claim, Claims, TrialLost, steps_saved
from plugin_trainer.tuning.ranges import Range, as_layer, draw, grid, known
from plugin_trainer.tuning.sampling import make_pruner, make_sampler
from plugin_trainer.tuning.storage import is_of_the_database, told_shortly
from plugin_trainer.tuning.studies import Stage, assignments
from plugin_trainer.tuning.trial import Outcome, Say, run_trial

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_TAKEN = {"best": "best evaluation", "last": "last evaluation", "mean": "mean of evaluations"}

Check = Callable[[Configuration], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a worker works, which changes nothing about what it works on.

    allow         what may differ from what a trial was begun with: plugins, packages, code, content
    restart_lost  begin trials anew whose folder is on another machine
    failed        how many trials had failed before this `ptrain tune`, which gives up on new ones;
                  None: as many as have by now
    check         checks of a trial's configuration, which give problems
    say           takes lines for the user
    """

    allow: tuple[str, ...] = ()
    restart_lost: bool = False
    failed: int | None = None
    check: Check
    say: Say


class GivenUp(StudyError):
    """So many trials have failed, and none has not, that going on is no use."""

    exit_code = 1


def work(study: OpenStudy, number: int, manner: Manner) -> int:
    """Take trials of the so manyeth stage until there is none to take.

    Returns the signal that interrupted it, else 0. Raises GivenUp if trials only fail, and
    StudyError if the database is lost.
    """
    stage = study.read().stages[number]
    assert stage.optuna is not None
    base = study.base()
    configuration = configure(base)
    tune = configuration.settings.tune
    assert tune is not None
    ranges = ranges_of(stages_of(tune)[number].space, configuration)
    seed = configuration.settings.seed
    stage.optuna.pruner = make_pruner(study.tune)
    points = grid(ranges, seed=seed) if tune.sampler == "grid" else None

    def fixed(number: int) -> dict[str, Any]:
        if points is not None:
            return points[number]
        # The first trial of a stage is the winner that it starts from, for it to improve on.
        is_winner = number == 0 and bool(stage.start)
        return known(ranges, partial(_settings, base, stage)) if is_winner else {}

    def prepare(trial: FrozenTrial) -> None:
        assert stage.optuna is not None
        stage.optuna.sampler = make_sampler(
            study.tune, seed=seed, stage=stage.name, number=trial.number
        )
        if values := fixed(trial.number):
            stage.optuna._storage.set_trial_system_attr(trial._trial_id, "fixed_params", values)

    claims = Claims(
        stage.optuna,
        study.place,
        stage.folder,
        url=study.url,
        prepare=prepare,
        restart_lost=manner.restart_lost,
    )
    failed_before = failed_in(stage.optuna) if manner.failed is None else manner.failed
    while True:
        with told_shortly(study.url):
            refuse_hopeless(stage.optuna, after=tune.give_up_after, failed_before=failed_before)
            claim = claims.next(total=total_of(stage.optuna))
        if claim is None:
            return 0
        with claim, told_shortly(study.url):
            say = _prefixed(manner.say, stage, claim)
            try:
                outcome = _run(claim, stage, ranges, partial(configure, base), manner, say)
                _tell(stage, claim, outcome, say)
            except TrialLost as lost:
                say(f"{lost.message}; leaving it to that one")
                continue
        if outcome.signal:
            return outcome.signal


def _settings(base: Layer, stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run with these values over it."""
    return configure(base, over=_layers(stage, values, where="what is searched")).values()


def _layers(stage: Stage, values: Mapping[str, Any], *, where: str) -> list[Layer]:
    """What goes over the run in a trial with these values."""
    return [as_layer(stage.start, where="the stages before"), as_layer(values, where=where)]


def _run(
    claim: Claim,
    stage: Stage,
    ranges: Sequence[Range],
    configure: Callable[..., Configuration],
    manner: Manner,
    say: Say,
) -> Outcome:
    values = _draw(ranges, claim, stage)
    text = ", ".join(assignments(values))
    at = steps_saved(claim.folder)
    say(f"goes on after step {at}: {text}" if claim.begun else text)
    # Settings are chosen by validation data; what they are worth on the test split, the run that
    # is trained with the winner says.
    layers = [
        *_layers(stage, values, where=f"trial {claim.number}"),
        Layer("ptrain tune", {"test_split": "never"}),
    ]
    return run_trial(
        claim,
        stage.objectives,
        partial(configure, over=layers),
        allow=manner.allow,
        check=manner.check,
        say=lambda line: say(f"  {line}"),
    )


def _draw(ranges: Sequence[Range], claim: Claim, stage: Stage) -> dict[str, Any]:
    try:
        return draw(ranges, claim.trial)
    except Exception as error:  # a sampler may need a package, or not bear this space
        assert stage.optuna is not None
        if is_of_the_database(error):
            raise
        sampler = type(stage.optuna.sampler).__name__
        raise StudyError(
            f"Optuna's {sampler} gave no values for trial {claim.number}", hint=in_words(error)
        ) from error


def _tell(stage: Stage, claim: Claim, outcome: Outcome, say: Say) -> None:
    """Tell Optuna, unless another worker has the trial by now, and the user."""
    from optuna.trial import TrialState

    assert stage.optuna is not None
    claim.refuse_if_lost(look=True)
    if outcome.state == "interrupted":
        claim.forget_tries()
        say(f"interrupted after step {outcome.steps}")
        return
    claim.trial.set_user_attr(STEPS, outcome.steps)
    if outcome.reason:
        claim.trial.set_user_attr(REASON, outcome.reason)
    state = {
        "finished": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }[outcome.state]
    stage.optuna.tell(claim.trial, list(outcome.values) or None, state, skip_if_finished=True)
    named = zip(stage.objectives, outcome.values, strict=False)
    told = ", ".join(f"{its.metric} {value:.4g} ({_TAKEN[its.take]})" for its, value in named)
    say({"finished": f"finished: {told}", "pruned": outcome.reason}.get(
        outcome.state, f"failed: {outcome.reason}"
    ))  # fmt: skip


def _prefixed(say: Say, stage: Stage, claim: Claim) -> Say:
    of = f"{stage.name} trial" if stage.name else "trial"
    return lambda line: say(f"{of} {claim.number}: {line}")


def grid_points(study: OpenStudy, number: int) -> int | None:
    """How many trials the grid of a stage makes; None for a sampler that never comes to an end."""
    if study.tune["sampler"] != "grid":
        return None
    configuration = configure(study.base())
    tune = configuration.settings.tune
    assert tune is not None
    ranges = ranges_of(stages_of(tune)[number].space, configuration)
    return len(grid(ranges, seed=configuration.settings.seed))


def failed_in(study: optuna.Study) -> int:
    """How many trials have failed."""
    return sum(trial.state.name == "FAIL" for trial in study.get_trials(deepcopy=False))


def refuse_hopeless(study: optuna.Study, *, after: int, failed_before: int) -> None:
    """Raise GivenUp if so many trials have failed since, and none ever did anything else."""
    trials = study.get_trials(deepcopy=False)
    if any(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials):
        return
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    if len(failed) - failed_before < after:
        return
    reasons = [f"trial {its.number}: {its.user_attrs.get(REASON, '')}" for its in failed[-after:]]
    if len(failed) < len(trials):
        reasons.append("to try the trials that are left: the same command again")
    raise GivenUp(
        f"the study stops: {len(failed)} trials have failed, and none has not", hint=reasons
    )
