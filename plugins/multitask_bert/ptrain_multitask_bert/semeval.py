"""The files of SemEval-2010 task 8: a numbered, quoted and marked sentence, then its relation.

    1<TAB>"The system has its application in an <e1>configuration</e1> of <e2>elements</e2>."
    Component-Whole(e2,e1)
    Comment: ...

Hendrickx et al., SemEval-2010 Task 8: Multi-Way Classification of Semantic Relations between Pairs
of Nominals, 2010.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import shorten

from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.reading import Row
from plugin_trainer.data.texts.records import check_file, decoded_lines
from plugin_trainer.errors import DataError

SENTENCE = re.compile(r'\s*\d+\s+"(.*)"\s*')
COMMENT = "comment:"


def read_semeval(path: Path, *, key: str, table: str) -> list[Row]:
    """All sentences of a file with their relations, the marks as they are written.

    key  the dotted setting that names the file, and `table` the one that it stands in

    Raises DataError, which tells of all the broken lines at once.
    """
    check_file(
        path, key=key, table=table, endings=[path.suffix], kinds=".tsv, .jsonl or SemEval .txt"
    )
    rows: list[Row] = []
    broken = BrokenRows(str(path))
    text, number_of_text = "", 0
    for number, raw in enumerate(decoded_lines(path), start=1):
        line = raw.strip()
        if not line or line.lower().startswith(COMMENT):
            continue
        if found := SENTENCE.fullmatch(raw.rstrip("\r\n")):
            if text:
                broken.add(no_relation(path, number_of_text))
            text, number_of_text = found[1], number
        elif text:
            rows.append(Row(text=text, label=line, line=number_of_text))
            text = ""
        else:
            broken.add(
                DataError(
                    f"{path}:{number}: a relation without a sentence: "
                    f"{shorten(line, width=40, placeholder=' ...')!r}",
                    hint='before it comes the sentence: its number, a tab, and the text in "..."',
                )
            )
    if text:
        broken.add(no_relation(path, number_of_text))
    broken.check()
    if not rows:
        empty = path.stat().st_size == 0
        raise DataError(
            f"{key}: {path} " + ("is empty" if empty else "holds no sentence"),
            hint="give a file of numbered, quoted sentences, the relation on the next line",
        )
    return rows


def no_relation(path: Path, line: int) -> DataError:
    """The error for a sentence that no relation follows."""
    return DataError(
        f"{path}:{line}: no relation after the sentence",
        hint="the next line is its relation, such as Cause-Effect(e1,e2); test files have none",
    )
