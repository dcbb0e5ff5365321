"""The one knob of early exit: off, lossless, a promise such as 1%, or a level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from plugin_trainer.early_exit.calibration import Calibration
from plugin_trainer.early_exit.rules import AgreementLevel, Certificate, ExitRule
from plugin_trainer.early_exit.tolerance import ToleranceLevel, ToleranceMap
from plugin_trainer.errors import PtrainError

_LOSSLESS_PROMISE = 0.02
"""The lossless rule halts at the boldest certified level up to this disagreement."""


@runtime_checkable
class EarlyExitModel(Protocol):
    """A model that may leave early. One of several tasks has `exit_tasks`, too: the names of those
    with exits; its `exit_by` takes a keyword `task`.

    learns_halting  whether its units learn halting logits
    """

    learns_halting: bool

    def exit_by(self, rule: ExitRule | None) -> None:
        """Use a rule from now on; None: all blocks, always."""
        ...


def tasks_with_exits(model: object) -> Sequence[str]:
    """The tasks of a model that may leave early; a model of one task has the task "".

    Raises PtrainError for a model without exits.
    """
    tasks: Sequence[str] = getattr(model, "exit_tasks", ("",))
    if not isinstance(model, EarlyExitModel) or not tasks:
        raise PtrainError(
            f"{type(model).__name__} has no early exit",
            hint="models with exits: dactbert/classifier, and multitask_bert with exits = true for "
            "a task",
        )
    return tasks


def use_exit(
    model: object,
    exit_: str,
    calibration: Calibration | Mapping[str, Calibration | None] | None,
    *,
    precision: str,
    where: str = "RUN",
) -> None:
    """Set what a user typed after --exit.

    calibration  of the model's weights, if there is one; of a model of several tasks, by task
    precision    the model runs in
    where        the run and its weights, as `ptrain calibrate` takes them

    Raises PtrainError for what is no choice, and for a choice that needs a calibration.
    """
    by_task = calibration if isinstance(calibration, Mapping) else {"": calibration}
    rules = {
        task: _rule(
            exit_,
            by_task.get(task),
            of=f" (task '{task}')" if task else "",
            precision=precision,
            learns_halting=getattr(model, "learns_halting", False),
            command=f"ptrain calibrate {where}",
        )
        for task in tasks_with_exits(model)
    }
    chosen: Any = model
    for task, rule in rules.items():
        chosen.exit_by(rule, **({"task": task} if task else {}))


def _rule(
    exit_: str,
    calibration: Calibration | None,
    *,
    of: str,
    precision: str,
    learns_halting: bool,
    command: str,
) -> ExitRule | None:
    if exit_ == "off":
        return None
    if exit_ == "lossless" and learns_halting:
        return Certificate()
    level, promise = _level(exit_), _promise(exit_)
    if exit_ != "lossless" and level is None and promise is None:
        raise PtrainError(
            f"--exit {exit_} is not a choice",
            hint="use off, lossless, a promise such as 1%, or a level such as 4.5",
        )
    if calibration is None:
        raise PtrainError(
            f"--exit {exit_} needs a calibration of these weights{of}",
            hint=f"make one: {command}",
        )
    if calibration.precision != precision:
        raise PtrainError(
            f"the exits{of} were calibrated in {calibration.precision}, and this is {precision}",
            hint=f"calibrate in {precision}: {command}",
        )
    if level is not None:
        return _at_level(calibration, level)
    if promise is not None:
        certified = calibration.promise(promise)
        if certified is None:
            raise PtrainError(
                f"no level is certified for at most {exit_} disagreement{of}",
                hint=f"certify one: {command} --max-disagreement {exit_}",
            )
        return _at_level(calibration, certified.level)
    if isinstance(calibration.agreement_map, ToleranceMap):
        return None  # no certificate is known for numbers: all blocks run
    usable = [item for item in calibration.certified if item.max_disagreement <= _LOSSLESS_PROMISE]
    if not usable:
        raise PtrainError(
            f"--exit lossless needs a level that is certified for at most 2% disagreement{of}",
            hint=f"certify one: {command} --max-disagreement 2%",
        )
    boldest = min(usable, key=lambda item: item.level)
    return Certificate(agreement_map=calibration.agreement_map, level=boldest.level)


def _at_level(calibration: Calibration, level: float) -> ExitRule:
    if isinstance(calibration.agreement_map, ToleranceMap):
        return ToleranceLevel(calibration.agreement_map, level)
    return AgreementLevel(calibration.agreement_map, level)


def _level(exit_: str) -> float | None:
    try:
        level = float(exit_)
    except ValueError:
        return None
    return level if math.isfinite(level) else None


def _promise(exit_: str) -> float | None:
    number = _level(exit_.removesuffix("%")) if exit_.endswith("%") else None
    return number / 100 if number is not None and 0 < number < 100 else None
