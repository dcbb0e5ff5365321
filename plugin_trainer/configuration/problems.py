"""How a mistake in a run is told: at its place, in one line, in the order of the lines."""

from __future__ import annotations

from collections.abc import Sequence

from plugin_trainer.errors import Problem, PtrainError
from plugin_trainer.settings.layers import Merged
from plugin_trainer.settings.toml_lines import Key, join_key


def place_of(key: Key, merged: Merged) -> str:
    """Where a key was given; for one that was not, the run file where it could be."""
    place = merged.place_of(key)
    files = [place for place in merged.places if place != "--set"]
    return (files[-1] if files else "the run") if place == "default" else place


def problem_at(key: Key, text: str, *, merged: Merged) -> Problem:
    """What is wrong with a key, and where that was given."""
    return Problem(place_of(key, merged), join_key(key), text)


def in_one_line(error: PtrainError) -> str:
    """An error as a problem has it: the message and what to do, without line breaks."""
    # Which Python this is helps only where one plugin is all that is wrong.
    hints = [line for line in error.hint if not line.startswith("this is ")]
    return " ".join("; ".join((error.message, *hints)).split())


def in_order(problems: Sequence[Problem], places: Sequence[str]) -> list[Problem]:
    """The problems by layer and by line, and last what stands nowhere."""

    def rank(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.where.rpartition(":")
        if file in places and line.isdigit():
            return places.index(file), int(line)
        return (places.index(problem.where) if problem.where in places else len(places)), 0

    return sorted(problems, key=rank)
