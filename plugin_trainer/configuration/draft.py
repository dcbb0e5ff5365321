"""A run whose parts are being chosen, and everything that is found wrong with it on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plugin_trainer.configuration.plugins_named import Unusable
from plugin_trainer.configuration.problems import in_one_line, in_order, place_of, problem_at
from plugin_trainer.errors import Problem, SettingsError
from plugin_trainer.registry.catalog import Catalog
from plugin_trainer.settings.layers import Merged
from plugin_trainer.settings.toml_lines import Key, join_key
from plugin_trainer.settings.validation import validate


@dataclass(frozen=True)
class Draft:
    """What was given for a run and what plugins offer for it.

    unusable  the plugins that cannot be used: what they offer is not in the catalog
    problems  the mistakes found so far; one does not keep the next from being found
    """

    merged: Merged
    catalog: Catalog
    unusable: Unusable = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """The table of what was given."""
        return self.merged.values

    def say(self, key: Key, text: str) -> None:
        """Keep a mistake."""
        self.problems.append(problem_at(key, text, merged=self.merged))

    def check(self, cls: type, values: Mapping[str, Any], *, at: Key = ()) -> Any:
        """The table as the dataclass; None, and the mistakes kept, if it is not right.

        at  where the table stands
        """
        found, problems = validate(
            cls, values, place_of=lambda key: place_of(key, self.merged), at=at
        )
        self.problems.extend(problems)
        return found

    def refuse_mistakes(self) -> None:
        """Raise what is wrong, in the order of the files' lines and then of --set."""
        if len(self.unusable) == 1 and not self.problems:
            raise self.unusable[0][1]
        for key, error in self.unusable:
            where = place_of(key, self.merged) if key else "--plugin"
            self.problems.append(Problem(where, join_key(key), in_one_line(error)))
        if self.problems:
            raise SettingsError(in_order(self.problems, self.merged.places))
