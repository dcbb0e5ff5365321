"""What a head is asked, in words: its kind, its labels and its weight; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from plugin_trainer.errors import PtrainError

Kind = Literal["single_label", "multi_label", "tokens", "relation", "regression"]

KINDS: tuple[Kind, ...] = get_args(Kind)

MARKS = ("<e1>", "</e1>", "<e2>", "</e2>")
"""Where the two entities of a relation begin and end: special tokens of the tokenizer."""


RESERVED = ("loss", "samples", "grad_norm_share")
"""What a task logs beside the losses of its heads."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """One question that a task puts to its texts.

    task           the task it belongs to
    name           unique in its task; its labels are in a batch's `labels_<name>`
    kind           "single_label": one label a text; "multi_label": any number of them;
                   "tokens": one label a token; "relation": one label for two marked spans;
                   "regression": a number
    labels         their names, in the order of their numbers; a regression has none
    weight         factor on its loss in the loss of the task
    threshold      the probability from which on a label of a "multi_label" head counts as given
    class_weights  factor on the loss of each label, in the order of the labels; empty: 1 each
    exits          whether every block of the encoder answers, so that a text may leave early
    tolerance      of a "regression" with exits: how far from full depth a number may be
    """

    task: str
    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    weight: float = 1.0
    threshold: float = 0.5
    class_weights: tuple[float, ...] = ()
    exits: bool = False
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no head. Raises PtrainError."""
        for what, value in (("task", self.task), ("head", self.name)):
            # Metrics are named split/task/head/metric, and weights module.name.
            if not value or set("./") & set(value):
                raise PtrainError(
                    f"a {what} is named '{value}'",
                    hint=f"give the {what} a name without '.' and '/'",
                )
        if self.name in RESERVED:
            raise PtrainError(
                f"a head of the task {self.task} is named '{self.name}', as another metric is",
                hint="give the head another name",
            )
        if problem := self._problem():
            text, hint = problem
            raise PtrainError(f"head {self.address}: {text}", hint=hint)

    def _problem(self) -> tuple[str, str] | None:
        if self.kind not in KINDS:
            return f"there is no kind '{self.kind}'", f"there are: {', '.join(KINDS)}"
        if self.kind == "regression" and self.labels:
            return "a regression has no labels", "leave out its labels, or make it single_label"
        least = {"regression": 0, "multi_label": 1}.get(self.kind, 2)
        if len(set(self.labels)) < max(least, len(self.labels)):
            names = ", ".join(self.labels) or "none"
            return f"its labels are {names}", f"a {self.kind} head takes {least} or more, each once"
        if self.class_weights and len(self.class_weights) != len(self.labels):
            return (
                f"{len(self.class_weights)} class weights for {len(self.labels)} labels",
                "give one number a label, or none",
            )
        if min(self.weight, *self.class_weights, 0.0) < 0.0:
            return "a weight is negative", "weights are 0 or more"
        if not 0.0 < self.threshold < 1.0:
            return f"the threshold is {self.threshold:g}", "it is a probability between 0 and 1"
        if self.exits and self.kind == "regression" and self.tolerance <= 0.0:
            return (
                "exits of a regression need a tolerance",
                "set tolerance of the head: how far from full depth a number may be",
            )
        return None

    @property
    def address(self) -> str:
        """ "task/head": its name among all heads."""
        return f"{self.task}/{self.name}"

    @property
    def width(self) -> int:
        """How many numbers it answers with for a text, a pair of spans or a token."""
        return len(self.labels) or 1
