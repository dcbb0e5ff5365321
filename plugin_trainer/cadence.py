"""A number with its unit, such as "500 steps": lengths, cadences and warm-ups are made of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from plugin_trainer.quoting import shown

Unit = Literal["steps", "epochs", "%"]

_SPELLINGS: dict[str, Unit] = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "%": "%",
    "percent": "%",
}
_SPAN = re.compile(r"\s*(?P<amount>\d[\d_]*(?:\.\d+)?|\.\d+)\s*(?P<unit>[A-Za-z%]*)\s*")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of training. `amount` is exact, so that "0.1 epoch" never drifts."""

    amount: Fraction
    unit: Unit

    def __str__(self) -> str:
        # All its digits, so that what is written into run.toml reads back as the same span.
        amount = f"{Decimal(self.amount.numerator) / Decimal(self.amount.denominator):f}"
        unit = self.unit.removesuffix("s") if self.amount == 1 else self.unit
        return f"{amount} {unit}"

    @property
    def is_in_whole_epochs(self) -> bool:
        """Whether it is a number of epochs without a part of one."""
        return self.unit == "epochs" and self.amount.denominator == 1

    def in_steps(self, *, steps_per_epoch: int | None, total_steps: int | None = None) -> Fraction:
        """This span in optimizer steps, not rounded.

        Raises ValueError if the unit needs a figure that is not known.
        """
        if self.unit == "steps":
            return self.amount
        if self.unit == "epochs":
            if steps_per_epoch is None:
                raise ValueError(
                    f"'{self}' needs training data with a known length: give it in steps"
                )
            return self.amount * steps_per_epoch
        if total_steps is None:
            raise ValueError(f"'{self}' needs a run of known length: give it in steps")
        return self.amount * total_steps / 100


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Falls due every `period` steps; a fractional period, on the step that completes it."""

    period: Fraction

    def is_due(self, step: int) -> bool:
        """Whether the step just completed, counted from 1, completes another period."""
        period = self.period
        if period.denominator == 1:
            return step % period.numerator == 0
        return step // period > (step - 1) // period


@dataclass(frozen=True, slots=True)
class EpochEnds:
    """Falls due at the end of every `period`-th epoch, of data whose length nobody knows."""

    period: int

    def is_due(self, epoch: int) -> bool:
        """Whether the end of this epoch, counted from 0, completes another period."""
        return (epoch + 1) % self.period == 0


def parse_span(text: object, *, units: tuple[Unit, ...]) -> Span:
    """Read "20_000 steps". Raises ValueError, saying what to write, for anything else."""
    example = {"steps": '"500 steps"', "epochs": '"1 epoch"', "%": '"10 %"'}
    wanted = " or ".join(example[unit] for unit in units)
    if isinstance(text, Span):
        text = str(text)
    if not isinstance(text, str):
        raise ValueError(f"{shown(text)} has no unit: write {wanted}")
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a number with a unit: write {wanted}")
    amount = Fraction(match["amount"].replace("_", ""))
    if not match["unit"]:
        raise ValueError(f"{shown(text)} has no unit: write {wanted}")
    unit = _SPELLINGS.get(match["unit"].lower())
    if unit is None:
        raise ValueError(f"{shown(match['unit'])} in {shown(text)} is not a unit: write {wanted}")
    if unit not in units:
        raise ValueError(f"{shown(text)} cannot be given in {unit}: write {wanted}")
    if unit == "steps" and amount.denominator != 1:
        raise ValueError(f"{shown(text)} is not a whole number of steps")
    if unit == "%" and amount > 100:
        raise ValueError(f"{shown(text)} is more than the whole run")
    return Span(amount, unit)


def parse_length(text: object) -> Span:
    """How long to train: steps or epochs, more than none."""
    span = parse_span(text, units=("steps", "epochs"))
    if span.amount == 0:
        raise ValueError(f"{shown(str(text))} is no length at all")
    return span


def parse_cadence(text: object) -> Span | None:
    """How often something happens: steps, epochs, or "never"."""
    if text is None or (isinstance(text, str) and text.strip().lower() == "never"):
        return None
    span = parse_span(text, units=("steps", "epochs"))
    if span.amount == 0:
        raise ValueError(
            f'{shown(str(text))} would fall due without end: write "never" to switch it off'
        )
    return span


def parse_warmup(text: object) -> Span:
    """How long the learning rate climbs: steps, epochs or a share of the run."""
    return parse_span(text, units=("steps", "epochs", "%"))


def recurrence(
    cadence: Span | None, *, steps_per_epoch: int | None
) -> Recurrence | EpochEnds | None:
    """The cadence as a period in steps; None stays None. Whole epochs of unknown length are told by
    their ends. Raises ValueError as in_steps does.
    """
    if cadence is None:
        return None
    if steps_per_epoch is None and cadence.is_in_whole_epochs:
        return EpochEnds(cadence.amount.numerator)
    period = cadence.in_steps(steps_per_epoch=steps_per_epoch)
    return Recurrence(max(period, Fraction(1)))


def whole_steps(span: Span, *, steps_per_epoch: int | None, total_steps: int | None = None) -> int:
    """The span as a whole number of steps, a part of a step counting as one."""
    return math.ceil(span.in_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps))
