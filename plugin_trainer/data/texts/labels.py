"""Label names get numbers once, from the training data; every later label must be one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.columns import suggestion
from plugin_trainer.data.texts.reading import Row, is_integer
from plugin_trainer.errors import DataError

SHOWN = 20
"""How many label names a message lists."""

FEW_ROWS = 50
"""With so few, a label for every other row may well be meant."""


def label_names(
    labels: Sequence[str],
    *,
    path: Path | str,
    column: str | int = "auto",
    asked_by: str = "data_settings.label",
    listed_in: str = "data_settings.labels",
) -> tuple[str, ...]:
    """The names in the labels of the training rows: numbers in their order, names sorted.

    path       what a message calls the file or split
    column     the label's column as it is asked for, for the message
    asked_by   the dotted setting that asks for it
    listed_in  the one that may list the labels

    Numbers 0 to C - 1 so keep their meaning. Raises DataError if there is nothing to tell apart,
    or nearly every row has a label of its own.
    """
    seen = set(labels)
    if len(labels) > FEW_ROWS and len(seen) > len(labels) / 2:
        raise DataError(
            f"{path}: {'the column of the labels' if column == 'auto' else f'column {column!r}'} "
            f"does not look like labels: {len(seen)} different values in {len(labels)} rows, "
            f"such as {shortened(labels[0])} and {shortened(labels[-1])}",
            hint=(
                f"name the label's column with {asked_by}",
                f"if they are labels, list them all in {listed_in}",
            ),
        )
    if len(seen) < 2:
        raise DataError(
            f"{path}: every row has the label {labels[0]!r}",
            hint=f"training needs at least two labels; is {asked_by} the right column?",
        )
    return sorted_names(seen)


def sorted_names(names: Collection[str]) -> tuple[str, ...]:
    """Numbers in their order, names sorted."""
    return tuple(sorted(names, key=int if all(map(is_integer, names)) else None))


def shortened(label: str) -> str:
    """A label in quotes, cut to what fits a line."""
    return repr(label if len(label) <= 30 else label[:27] + "...")


@dataclass(frozen=True)
class Labels:
    """The label names in order; the position of a name is its number.

    listed_in  the dotted setting that may list them, for the messages
    """

    names: tuple[str, ...]
    listed_in: str = "data_settings.labels"

    def numbers(self, rows: Iterable[Row], *, path: Path | str) -> list[int]:
        """The number of each row's label, which the file gives as a name or as that number.

        Raises DataError, which tells of all the rows with another label at once.
        """
        numbers, broken = [], BrokenRows(str(path))
        for row in rows:
            try:
                numbers.append(self.number(row.label, at=f"{path}:{row.line}"))
            except DataError as error:
                broken.add(error)
        broken.check()
        return numbers

    def number(self, label: str, *, at: str) -> int:
        """The number of one label, a name or that number. Raises DataError for another one.

        at  where the message says it stands
        """
        if label in self._positions:
            return self._positions[label]
        last = len(self.names) - 1
        shown = ", ".join(self.names[:SHOWN]) + (" ..." if last >= SHOWN else "")
        hint = (f"labels: {shown}", f"correct the row, or list the label in {self.listed_in}")
        numbered = not any(map(is_integer, self.names))
        # Where names are numbers themselves, another number must not pass for a position.
        if is_integer(label) and (numbered or self.names == numerals(last + 1)):
            if 0 <= int(label) <= last:
                return int(label)
            raise DataError(f"{at}: label {label} is outside of the range 0 to {last}", hint=hint)
        raise DataError(
            f"{at}: unknown label {label!r}{suggestion(label, known=self.names)}", hint=hint
        )

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def numerals(count: int) -> tuple[str, ...]:
    """("0", "1", ...): the names of labels that are nothing but numbers."""
    return tuple(str(number) for number in range(count))
