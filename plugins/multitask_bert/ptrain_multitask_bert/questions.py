"""What a head of a classification reads in a row, and how that becomes a label to train on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugin_trainer.data.batches import IGNORED_LABEL
from plugin_trainer.data.texts.columns import suggestion
from plugin_trainer.data.texts.labels import Labels, label_names, sorted_names
from plugin_trainer.data.texts.reading import Row
from plugin_trainer.data.texts.records import json_text
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.heads import Head, Kind
from ptrain_multitask_bert.settings_data import Column, HeadSettings

# C labels

GIVEN = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
"""What a column for one label may hold."""

Answer = str | frozenset[str] | float | None
"""What a row says to a head: a label, labels, a number, or nothing."""

Target = int | float | list[float]
"""The same for the loss."""


@dataclass(frozen=True)
class Question:
    """One head of a task, before its labels are known.

    column  where its labels are, a name, a position or "auto"
    only    whether it is the only head and takes one label, which is then the row's own
    table   the settings table of the head, or of the task where it has none
    """

    task: str
    name: str
    kind: Kind
    settings: HeadSettings
    column: Column
    only: bool
    table: str

    @property
    def columns(self) -> dict[str, str | int]:
        """The columns beside the row's own label that it reads, by the setting that asks."""
        if self.only:
            return {}
        if self.settings.columns:
            return {self._role(name): name for name in self.settings.columns}
        return {self._role(): self.column}

    @property
    def asked_by(self) -> str:
        """The dotted setting that names its column."""
        return f"{self.table}.{'column' if '.heads.' in self.table else 'label'}"

    def declared_by(self, declared: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """The label names that the settings or the data declare; empty: neither does.

        declared  those of the data, by role; of the row's own label under ""
        """
        if names := self.settings.labels or self.settings.columns:
            return tuple(names)
        return tuple(declared.get("" if self.only else self._role(), ()))

    def answer(self, row: Row, *, at: str) -> Answer:
        """What the row says. Raises DataError for what cannot be read.

        at  where the message says the row stands
        """
        if self.only:
            return row.label
        if self.settings.columns:
            return self._marked(row, at=at)
        value = row.more.get(self._role())
        if self.kind == "multi_label":
            return self._several(value, at=at)
        if value is None or value == "":
            return None
        if self.kind == "regression":
            return number(value, at=at, asked_by=self.asked_by)
        return self._one(value, at=at)

    def head(
        self,
        answers: Sequence[Answer],
        *,
        declared: Mapping[str, Sequence[str]],
        where: str,
    ) -> Head:
        """The head with its labels: those declared, else those of the training rows.

        where  what a message calls the rows. Raises DataError if they have no label.
        """
        known = [answer for answer in answers if answer is not None]
        if not known:
            raise DataError(
                f"{where}: none of its {len(answers)} rows has a label for the head "
                f"'{self.name}' of the task '{self.task}'",
                hint=f"give it rows with labels; is {self.asked_by} the right column?",
            )
        names = self.declared_by(declared) or self._seen(known, where=where)
        if self.kind == "regression":
            names = ()
        check_names(names, kind=self.kind, listed_in=f"{self.table}.labels")
        return Head(
            task=self.task,
            name=self.name,
            kind=self.kind,
            labels=names,
            weight=self.settings.weight,
            threshold=self.settings.threshold,
            class_weights=class_weights(self.settings.class_weights, names, table=self.table),
        )

    def target(self, answer: Answer, labels: Labels, *, at: str) -> Target:
        """The label as the loss takes it: a class number, C times 0 or 1, or a number.

        What is not known is -100, in a regression NaN. Raises DataError for an unknown label.
        """
        if self.kind == "regression":
            return math.nan if answer is None else float(str(answer))
        if self.kind == "multi_label":
            if answer is None:
                return [float(IGNORED_LABEL)] * len(labels.names)
            assert isinstance(answer, frozenset)
            given = {labels.number(label, at=at) for label in answer}
            return [float(number in given) for number in range(len(labels.names))]
        return IGNORED_LABEL if answer is None else labels.number(str(answer), at=at)

    # ------------------------------------------------------------------------------- inside

    def _role(self, label: str = "") -> str:
        base = f"heads.{self.name}." if ".heads." in self.table else ""
        if label:
            return f"{base}columns: {label}"
        return f"{base}column" if base else "label"

    def _seen(self, known: Sequence[Any], *, where: str) -> tuple[str, ...]:
        if self.kind == "multi_label":
            return sorted_names(set().union(*known))
        if self.kind == "regression":
            return ()
        return label_names(
            known,
            path=where,
            column=self.column,
            asked_by=self.asked_by,
            listed_in=f"{self.table}.labels",
        )

    def _one(self, value: Any, *, at: str) -> str | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, (str, bool, int)):
            return json_text(value).strip() or None
        raise DataError(
            f"{at}: the label of {self.name} is {str(value)[:40]}, not a name or a number",
            hint=f"one label a row; or set {self.table}.kind to multi_label or regression",
        )

    def _several(self, value: Any, *, at: str) -> frozenset[str] | None:
        """The labels of a cell: of a list, or of a text with separators; None: not known."""
        if value is None:
            return None
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{at}: the labels of {self.name} are no JSON list: {error}",
                    hint=f"write them with {self.settings.separator!r} between them, or as a list",
                ) from error
        if isinstance(value, str):
            value = value.split(self.settings.separator)
        if not isinstance(value, list):
            value = [value]
        if any(item is None or isinstance(item, (list, dict)) for item in value):
            raise DataError(
                f"{at}: the labels of {self.name} are {json.dumps(value)[:40]}",
                hint="a list of names or numbers",
            )
        if value and all(isinstance(item, float) for item in value):
            return self._from_marks(value, at=at)
        return frozenset(text for item in value if (text := json_text(item).strip()))

    def _from_marks(self, marks: list[float], *, at: str) -> frozenset[str]:
        """The labels of a list with 1.0 for each label that is given, and 0.0 for the others."""
        names = self.settings.labels
        if len(marks) != len(names) or not {*marks} <= {0.0, 1.0}:
            raise DataError(
                f"{at}: the labels of {self.name} are {len(marks)} numbers such as {marks[0]:g}",
                hint=f"list the {len(marks)} names in {self.table}.labels, and give each 0.0 or "
                "1.0; or give lists of names",
            )
        return frozenset(name for name, mark in zip(names, marks, strict=True) if mark)

    def _marked(self, row: Row, *, at: str) -> frozenset[str] | None:
        """The labels whose columns have a 1; None: no column has anything."""
        cells = {name: row.more.get(self._role(name)) for name in self.settings.columns}
        if all(cell is None or cell == "" for cell in cells.values()):
            return None
        given = set()
        for name, cell in cells.items():
            text = json_text(cell).strip().lower()
            if text not in GIVEN:
                raise DataError(
                    f"{at}: {name} is {text or 'empty'!r}, where 0 or 1 is wanted",
                    hint="a column for each label says whether a text has it",
                )
            if GIVEN[text]:
                given.add(name)
        return frozenset(given)


def number(value: Any, *, at: str, asked_by: str) -> float:
    """A finite number. Raises DataError for what is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"{at}: {str(value)[:40]!r} is not a number",
            hint=f"correct the row; is {asked_by} the right column?",
        )
    return found


def check_names(names: Sequence[str], *, kind: str, listed_in: str) -> None:
    """Refuse a list of labels that is no choice."""
    least = {"regression": 0, "multi_label": 1}.get(kind, 2)
    if len(set(names)) < max(least, len(names)):
        raise DataError(
            f"the labels are {', '.join(names) or 'none'}",
            hint=f"list {least} or more in {listed_in}, each once",
        )


def class_weights(
    weights: Mapping[str, float], names: Sequence[str], *, table: str
) -> tuple[float, ...]:
    """The weight of each label in order; none if none is given. Raises DataError."""
    for name in weights:
        if name not in names:
            raise DataError(
                f"{table}.class_weights: there is no label {name!r}{suggestion(name, known=names)}",
                hint=f"labels: {', '.join(names) or 'none'}",
            )
    return tuple(float(weights.get(name, 1.0)) for name in names) if weights else ()
