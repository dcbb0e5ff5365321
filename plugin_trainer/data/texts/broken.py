"""Broken rows are reported together: the first ten of them, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass, field

from plugin_trainer.errors import DataError

SHOWN = 10
"""How many broken rows a message lists."""


@dataclass
class BrokenRows:
    """What is wrong with the rows of one file or split.

    where  what the message calls the file or split
    """

    where: str
    count: int = 0
    _first: list[DataError] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Take one more; only those that a message lists are kept."""
        self.count += 1
        if len(self._first) < SHOWN:
            self._first.append(error)

    def check(self) -> None:
        """Raise DataError if there are any: a single one as it is, several as a list."""
        if self.count == 0:
            return
        if self.count == 1:
            raise self._first[0]
        advice = dict.fromkeys(line for error in self._first for line in error.hint)
        more = [f"and {self.count - SHOWN} more"] if self.count > SHOWN else []
        raise DataError(
            f"{self.where}: {self.count} rows cannot be used",
            hint=[*(error.message for error in self._first), *more, *advice],
        )
