"""Compare runs, time one of them, and write the table, the figures and the pictures to a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin_trainer.errors import PtrainError
from plugin_trainer.files import write_json, write_text
from plugin_trainer.settings.layers import Layer
from ptrain_dactbert.curve.figures import compare
from ptrain_dactbert.curve.groups import Group, common_name, group_baselines, trace
from ptrain_dactbert.curve.picture import draw_pictures
from ptrain_dactbert.curve.printing import for_markdown
from ptrain_dactbert.curve.runs import check_alike, check_same_rows, judge
from ptrain_dactbert.curve.timing import time_exits


def evidence(
    runs: Sequence[str],
    *,
    against: Sequence[str],
    split: str,
    overrides: Layer | None,
    timing: Mapping[str, Any] | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """All figures of a comparison.

    timing    batch_sizes, rounds and threads as `time_exits` takes them; None: no timing
    progress  is told what comes next

    Raises PtrainError for runs that cannot be compared.
    """
    judged = []
    for name, run in zip(_names([*runs, *against]), [*runs, *against], strict=True):
        progress(f"running all blocks of {name} ...")
        judged.append(judge(run, name=name, split=split, overrides=overrides))
    ours, theirs = judged[: len(runs)], judged[len(runs) :]
    check_alike(ours)
    check_same_rows(judged)
    progress("replaying every rule ...")
    group = Group(common_name(ours), ours, [trace(run) for run in ours])
    baselines = group_baselines(theirs)
    document = compare(group, baselines, split=split)
    if timing is not None:
        document["timing"] = time_exits(
            group.curves[0],
            baselines,
            # At 1.5 of 6 blocks nothing is left to gain: the others are what one would use.
            depths=document["depths"][1:],
            progress=progress,
            **timing,
        )
    return document


def _names(runs: Sequence[str]) -> list[str]:
    """The folders' own names, or as they were typed where two are the same."""
    folders = [Path(run).resolve() for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise PtrainError(f"{runs[number]} is given twice", hint="give each run once")
    names = [Path(run).name for run in runs]
    return names if len(set(names)) == len(names) else [str(Path(run)) for run in runs]


def write_evidence(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write curve.json, curve.md and the pictures. Raises PtrainError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw_pictures(document, folder)
        write_json(folder / "curve.json", document)
        light, dark = (path.name for path in pictures if path.suffix == ".svg")
        page = for_markdown(document, pictures=(light, dark))
        write_text(folder / "curve.md", page)
    except OSError as error:
        raise PtrainError(f"{folder} cannot be written to: {error.strerror}") from None
    return [folder / "curve.md", folder / "curve.json", *pictures]
