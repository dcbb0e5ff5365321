"""Label names get numbers once, from the training data; every later label must be one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plugin_trainer.errors import DataError
from ptrain_dactbert.broken import BrokenRows
from ptrain_dactbert.columns import suggestion
from ptrain_dactbert.reading import Row, is_integer

SHOWN = 20
"""How many label names a message lists."""

FEW_ROWS = 50
"""With so few, a label for every other row may well be meant."""


def label_names(
    rows: Sequence[Row], *, path: Path | str, column: str | int = "auto"
) -> tuple[str, ...]:
    """The labels of the training rows: numbers in their order, names sorted.

    path    what a message calls the file or split
    column  the label's column as it is asked for, for the message

    Numbers 0 to C - 1 so keep their meaning. Raises DataError if there is nothing to tell apart,
    or nearly every row has a label of its own.
    """
    seen = {row.label for row in rows}
    if len(rows) > FEW_ROWS and len(seen) > len(rows) / 2:
        raise DataError(
            f"{path}: {'the column of the labels' if column == 'auto' else f'column {column!r}'} "
            f"does not look like labels: {len(seen)} different values in {len(rows)} rows, "
            f"such as {shortened(rows[0].label)} and {shortened(rows[-1].label)}",
            hint=(
                "name the label's column with data_settings.label",
                "if they are labels, list them all in data_settings.labels",
            ),
        )
    if len(seen) < 2:
        raise DataError(
            f"{path}: every row has the label {rows[0].label!r}",
            hint="training needs at least two labels; is data_settings.label the right column?",
        )
    if all(is_integer(label) for label in seen):
        return tuple(sorted(seen, key=int))
    return tuple(sorted(seen))


def shortened(label: str) -> str:
    """A label in quotes, cut to what fits a line."""
    return repr(label if len(label) <= 30 else label[:27] + "...")


@dataclass(frozen=True)
class Labels:
    """The label names in order; the position of a name is its number."""

    names: tuple[str, ...]

    def numbers(self, rows: Iterable[Row], *, path: Path | str) -> list[int]:
        """The number of each row's label, which the file gives as a name or as that number.

        Raises DataError, which tells of all the rows with another label at once.
        """
        positions = {name: number for number, name in enumerate(self.names)}
        numbers, broken = [], BrokenRows(str(path))
        for row in rows:
            try:
                numbers.append(self._number(row, positions=positions, path=path))
            except DataError as error:
                broken.add(error)
        broken.check()
        return numbers

    def _number(self, row: Row, *, positions: dict[str, int], path: Path | str) -> int:
        if row.label in positions:
            return positions[row.label]
        last = len(self.names) - 1
        shown = ", ".join(self.names[:SHOWN]) + (" ..." if last >= SHOWN else "")
        hint = (f"labels: {shown}", "correct the row, or list the label in data_settings.labels")
        numbered = not any(map(is_integer, self.names))
        # Where names are numbers themselves, another number must not pass for a position.
        if is_integer(row.label) and (numbered or self.names == numerals(last + 1)):
            if 0 <= int(row.label) <= last:
                return int(row.label)
            raise DataError(
                f"{path}:{row.line}: label {row.label} is outside of the range 0 to {last}",
                hint=hint,
            )
        raise DataError(
            f"{path}:{row.line}: unknown label {row.label!r}"
            f"{suggestion(row.label, known=self.names)}",
            hint=hint,
        )


def numerals(count: int) -> tuple[str, ...]:
    """("0", "1", ...): the names of labels that are nothing but numbers."""
    return tuple(str(number) for number in range(count))
