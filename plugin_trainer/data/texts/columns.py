"""Which columns hold the texts, the label and what else is read: asked for, or of a usual name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from plugin_trainer.errors import DataError

TEXT_NAMES = ("text", "sentence", "content", "review")
PAIR_NAMES = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
)
LABEL_NAMES = ("label", "labels", "class", "target", "category", "sentiment")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns to read, each a name or a position; "auto" looks for the usual names.

    text_pair  the second text of a sentence pair; empty: there is none
    label      empty: there is none, `more` has what is learnt
    more       other columns, by the setting that asks for each; a JSON object may lack them
    labels     the usual names of a label's column
    table      the settings table that asks, for the messages
    """

    text: str | int = "auto"
    label: str | int = "auto"
    difficulty: str | int = ""
    text_pair: str | int = "auto"
    more: Mapping[str, str | int] = field(default_factory=dict)
    labels: Sequence[str] = LABEL_NAMES
    table: str = "data_settings"

    @property
    def named(self) -> bool:
        """Whether one is asked for by name."""
        asked = (self.text, self.label, self.difficulty, self.text_pair, *self.more.values())
        return any(isinstance(column, str) and column not in ("", "auto") for column in asked)


@dataclass(frozen=True, slots=True)
class Found:
    """The positions of the columns in a record; None: there is no such column."""

    text: int
    label: int | None
    difficulty: int | None
    text_pair: int | None
    more: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def positions(self) -> list[int]:
        """Every position that is read."""
        roles = (self.text, self.text_pair, self.label, self.difficulty, *self.more.values())
        return [position for position in roles if position is not None]


def suggestion(wrong: str, *, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def names_columns(
    cells: Sequence[str], *, labels: Sequence[str] = LABEL_NAMES, labelled: bool = True
) -> bool:
    """Whether the cells hold a usual name for a text or a pair of texts, and one for a label.

    labelled  whether a label is looked for at all
    """
    plain = plain_names(cells)
    texts = any(name in plain for name in TEXT_NAMES) or bool(usual_pairs(plain))
    return texts and (not labelled or any(name in plain for name in labels))


def plain_names(names: Sequence[str]) -> list[str]:
    """The names as they are compared with the usual ones."""
    return [name.strip().lower() for name in names]


def usual_pairs(plain: Sequence[str]) -> list[tuple[str, str]]:
    """The usual names of sentence pairs that are there in full."""
    return [pair for pair in PAIR_NAMES if pair[0] in plain and pair[1] in plain]


# ------------------------------------------------------------------------------------- finding


def table_columns(
    columns: Columns, *, names: Sequence[str] | None, cells: Sequence[str], at: str
) -> Found:
    """The columns of a table, which may be given by position, with or without a header.

    names  the header, or None. Without usual names the texts come first and the label follows.
    cells  the first line, a header or not

    Raises DataError where the order alone would have to choose among more columns than are read.
    """
    text, pair = find_texts(columns, names=names or (), at=at)
    first = Finder(names, len(cells), at, columns.table)
    found_text = first.find(text, role="text", position=0)
    found_pair = None if pair == "" else first.find(pair, role="text_pair", position=1)
    label = usual_label(columns, names=names or ())
    usual = usual_label(replace(columns, label="auto"), names=names or ())
    after_texts = 1 if found_pair is None else max(found_text, found_pair) + 1
    found_label = None if label == "" else first.find(label, role="label", position=after_texts)
    difficulty = columns.difficulty
    found_difficulty = (
        None if difficulty == "" else first.find(difficulty, role="difficulty", position=2)
    )
    asked = {role: usual if one == "auto" else one for role, one in columns.more.items()}
    more = {role: first.find(one, role=role, position=after_texts) for role, one in asked.items()}
    found = Found(found_text, found_label, found_difficulty, found_pair, more)
    if "auto" in (text, label, *asked.values()) and not reads_all(found, width=len(cells)):
        raise unclear_columns(cells, header=names is not None, at=at, table=columns.table)
    return found


def reads_all(found: Found, *, width: int) -> bool:
    """Whether every column of a table is read, each as one thing."""
    return sorted(found.positions) == list(range(width))


def unclear_columns(
    cells: Sequence[str], *, header: bool, at: str, table: str = "data_settings"
) -> DataError:
    """The error for columns that only their order could tell apart.

    header  whether the cells are known to be names; else they may be data as well
    """
    last = len(cells) - 1
    names = [json.dumps(cell[:60], ensure_ascii=False) for cell in cells]

    def write(columns: Sequence[object]) -> str:
        pair = f", {table}.text_pair = {columns[1]} for a pair," if last > 1 else ""
        return f"{table}.text = {columns[0]}{pair} and {table}.label = {columns[last]}"

    by_name = f"say which to read, for example {write(names)}"
    by_position = (
        f"if the line is data, not names: {table}.header = false, and positions, "
        f"for example {write(range(len(cells)))}"
    )
    return DataError(
        f"{at}: which columns are the text and the label? No usual names tell",
        hint=(
            f"columns: {', '.join(names)}",
            by_name,
            *([] if header else [by_position]),
        ),
    )


def named_columns(columns: Columns, *, names: Sequence[str], at: str) -> Found:
    """The columns of data that have names only, such as JSON objects and Parquet files."""
    text, pair = find_texts(columns, names=names, at=at)
    text = TEXT_NAMES[0] if text == "auto" else text
    label = usual_label(columns, names=names)
    label = columns.labels[0] if label == "auto" else label
    asked = {"text": text, "text_pair": pair, "label": label, "difficulty": columns.difficulty}
    for role, wanted in {**asked, **columns.more}.items():
        if isinstance(wanted, int):
            raise DataError(
                f"{at}: {columns.table}.{role} is the position {wanted}, and here are names only",
                hint=f"columns: {', '.join(names) or 'none'}",
            )
    by_name = Finder(names, len(names), at, columns.table)
    found = {
        role: None if wanted == "" else by_name.find(wanted, role=role)
        for role, wanted in asked.items()
    }
    usual = usual_label(replace(columns, label="auto"), names=names)
    more = {}
    for role, column in columns.more.items():
        wanted = usual if column == "auto" else column
        more[role] = list(names).index(str(wanted)) if wanted in names else None
    if found["text"] is None:
        raise DataError(
            f"{columns.table}.text is empty", hint="set it to the column that holds the texts"
        )
    return Found(found["text"], found["label"], found["difficulty"], found["text_pair"], more)


def find_texts(columns: Columns, *, names: Sequence[str], at: str) -> tuple[str | int, str | int]:
    """The columns of the text and its pair as far as names tell; "auto": these names do not.

    A text asked for stands alone unless its pair is asked for too. Raises DataError where a pair
    and something else could be meant.
    """
    plain = plain_names(names)
    text, pair = columns.text, columns.text_pair
    if text != "auto":
        return text, "" if pair == "auto" else pair
    if pair not in ("", "auto"):
        return usual_partner(pair, names=names), pair
    pairs = usual_pairs(plain) if pair == "auto" else []
    in_pairs = {name for both in pairs for name in both}
    singles = [(name,) for name in TEXT_NAMES if name in plain and name not in in_pairs][:1]
    candidates: list[tuple[str, ...]] = [*pairs, *singles]
    if not candidates:
        return "auto", ""
    if len(candidates) > 1:
        shown = ", or ".join(" and ".join(each) for each in candidates)
        raise DataError(
            f"{at}: the texts could be {shown}",
            hint=(
                f"columns: {', '.join(names)}",
                f"set {columns.table}.text, and {columns.table}.text_pair for a pair",
            ),
        )
    chosen = [names[plain.index(name)] for name in candidates[0]]
    return chosen[0], chosen[1] if len(chosen) == 2 else ""


def usual_partner(pair: str | int, *, names: Sequence[str]) -> str | int:
    """The first text that goes with a second one which is asked for; "auto" if no name tells."""
    plain = plain_names(names)
    wanted = plain_names([pair])[0] if isinstance(pair, str) else ""
    usual = [first for first, second in usual_pairs(plain) if second == wanted]
    usual += [name for name in TEXT_NAMES if name in plain and name != wanted]
    return names[plain.index(usual[0])] if usual else "auto"


def usual_label(columns: Columns, *, names: Sequence[str]) -> str | int:
    """The label's column as far as names tell; "auto": these names do not."""
    if columns.label != "auto":
        return columns.label
    plain = plain_names(names)
    return next((names[plain.index(name)] for name in columns.labels if name in plain), "auto")


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds a column in one header, or in one record where there is none.

    names  the header, or None
    width  how many columns there are
    at     where the message says they stand
    table  the settings table that asks for it
    """

    names: Sequence[str] | None
    width: int
    at: str
    table: str = "data_settings"

    def find(self, wanted: str | int, *, role: str, position: int | None = None) -> int:
        """The position of one column, or a DataError that lists those seen.

        position  the one that "auto" stands for; None: there is no such
        """
        if wanted == "auto" and position is not None:
            wanted = position
        if isinstance(wanted, int):
            if wanted < self.width:
                return wanted
            raise DataError(
                f"{self.at}: no column {wanted} for the {role}: the line has {self.width}, "
                "counted from 0",
                hint=f"set {self.table}.{role} to a position or a name in the file",
            )
        if self.names is None:
            raise DataError(
                f"{self.at}: column {wanted!r} is asked for by name, and the file has no header",
                hint=f"set {self.table}.{role} to a position counted from 0",
            )
        if (times := list(self.names).count(wanted)) > 1:
            raise DataError(
                f"{self.at}: {times} columns are called {wanted!r}, which is asked for as {role}",
                hint=f"name them differently, or set {self.table}.{role} to a position",
            )
        if times:
            return list(self.names).index(wanted)
        raise DataError(
            f"{self.at}: no column {wanted!r} for the {role}{suggestion(wanted, known=self.names)}",
            hint=(
                f"columns: {', '.join(self.names) or 'none'}",
                f"set {self.table}.{role} to one of them"
                + ("" if position is None else ", or to a position counted from 0"),
            ),
        )
