"""The runs of a comparison: loaded, their blocks run once, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from plugin_trainer import load_run
from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.calibration import Calibration, key_of, read_calibration
from plugin_trainer.early_exit.fitting import BlockAnswers, fit
from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import Layer
from ptrain_dactbert.block_logits import BlockLogits, collect

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun

# N blocks that answer, B rows


@dataclass(frozen=True, eq=False)
class Judged:
    """A run, and what its blocks answer on the labelled rows of a split.

    calibration  None of a run by plain fine-tuning, which has one answer
    is_stored    whether the calibration is the run's own; else it was fitted on these rows
    """

    name: str
    loaded: LoadedRun
    rows: BlockLogits
    calibration: Calibration | None
    is_stored: bool

    @property
    def is_plain(self) -> bool:
        """Whether it has one answer: plain fine-tuning of its blocks."""
        return self.calibration is None

    @property
    def agreement_map(self) -> AgreementMap:
        """The map of its calibration."""
        fitted = self.calibration.agreement_map if self.calibration is not None else None
        assert isinstance(fitted, AgreementMap), "a plain run has none"
        return fitted

    @property
    def num_blocks(self) -> int:
        """How many blocks its encoder has."""
        model: Any = self.loaded.model
        blocks: int = model.num_blocks
        return blocks

    @property
    def seed(self) -> int:
        """Of the run."""
        seed: int = self.loaded.settings.seed
        return seed

    @property
    def model_settings(self) -> Mapping[str, Any]:
        """What the model was made with, but for the folder that the encoder was read from."""
        model: Any = self.loaded.model
        made = getattr(model, "settings", None)
        known = asdict(made) if is_dataclass(made) and not isinstance(made, type) else {}
        return {key: value for key, value in known.items() if key != "encoder"}

    @property
    def calibration_name(self) -> str:
        """Where the map comes from, for a reader."""
        if self.calibration is None:
            return ""
        rows = self.calibration.rows
        return f"the run's own, {rows} rows" if self.is_stored else f"fitted on these {rows} rows"


def judge(run: str, *, name: str, split: str, overrides: Layer | None) -> Judged:
    """Load a run and run its blocks on a split.

    name   what messages and tables call it
    split  "validation" or "test"

    Raises PtrainError for a run without exits, and a split without rows or without labels.
    """
    loaded = load_run(run, overrides=overrides)
    if not hasattr(loaded.model, "block_logits"):
        raise PtrainError(
            f"{name}: {loaded.settings.model} has no early exit",
            hint="compare runs of dactbert/classifier",
        )
    way_out = f"name a file with labels: --set data_settings.{split}=FILE"
    make = getattr(loaded.data, split, None)
    batches = make() if make is not None else None
    if batches is None:
        raise PtrainError(f"{name} has no data for the split '{split}'", hint=way_out)
    rows = labelled(collect(loaded, batches, if_empty=way_out), of=name, way_out=way_out)
    calibration, is_stored = _calibration(loaded, rows, of=name)
    return Judged(name, loaded, rows, calibration, is_stored)


def labelled(rows: BlockLogits, *, of: str, way_out: str) -> BlockLogits:
    """The rows that have a label."""
    kept_B = rows.labels_B >= 0 if rows.labels_B is not None else torch.zeros(0, dtype=torch.bool)
    if rows.labels_B is None or not kept_B.any():
        raise PtrainError(f"{of}: no row of the split has a label", hint=way_out)
    if kept_B.all():
        return rows
    return replace(
        rows,
        logits_NBC=rows.logits_NBC[:, kept_B],
        halting_NB=rows.halting_NB[:, kept_B] if rows.halting_NB is not None else None,
        labels_B=rows.labels_B[kept_B],
        texts=tuple(text for text, kept in zip(rows.texts, kept_B, strict=True) if kept),
    )


def _calibration(
    loaded: LoadedRun, rows: BlockLogits, *, of: str
) -> tuple[Calibration | None, bool]:
    """That of these weights in this precision, or one fitted here."""
    if len(rows.logits_NBC) == 1:
        return None, False
    stored = read_calibration(loaded.folder, key_of(loaded.checkpoint.path, loaded.weights))
    if stored is not None and stored.precision == loaded.precision.name:
        return stored, True
    try:
        answers = BlockAnswers(rows.logits_NBC)
        fitted, _ = fit(answers, precision=loaded.precision.name, rows_sha256=rows.sha256)
    except PtrainError as error:
        raise PtrainError(f"{of}: {error.message}", hint=error.hint) from None
    return fitted, False


def check_alike(runs: Sequence[Judged]) -> None:
    """Refuse runs that are no seeds of one recipe. Raises PtrainError."""
    first = runs[0]
    for run in runs:
        if run.is_plain:
            raise PtrainError(
                f"{run.name} answers after its last block only",
                hint=f"it is something to compare with: --against {run.name}",
            )
        if differing := different_settings(first, run):
            raise PtrainError(
                f"{first.name} and {run.name} were not trained alike: "
                f"model_settings.{differing[0]} differs",
                hint=f"give one recipe at a time, and compare: --against {run.name}",
            )


def different_settings(one: Judged, other: Judged) -> list[str]:
    """The settings of the model in which two runs differ."""
    if one.num_blocks != other.num_blocks:
        return ["first_blocks"]
    theirs = other.model_settings
    return [key for key, value in one.model_settings.items() if theirs.get(key) != value]


def check_same_rows(runs: Sequence[Judged]) -> None:
    """Refuse runs that did not answer the same rows. Raises PtrainError."""
    first = runs[0]
    for run in runs[1:]:
        theirs, ours = label_names(run), label_names(first)
        if theirs != ours:
            raise PtrainError(
                f"{run.name} was trained with the labels {', '.join(theirs)}, "
                f"{first.name} with {', '.join(ours)}",
                hint="compare runs of one task",
            )
        if run.rows.sha256 != first.rows.sha256 or not _same_labels(run, first):
            raise PtrainError(
                f"{run.name} has other rows, or other tokens of them, than {first.name}",
                hint="give both one file with --set data_settings.validation=FILE, and compare "
                "runs of one tokenizer and one max_tokens",
            )


def _same_labels(one: Judged, other: Judged) -> bool:
    assert one.rows.labels_B is not None and other.rows.labels_B is not None
    same: bool = torch.equal(one.rows.labels_B, other.rows.labels_B)
    return same


def label_names(run: Judged) -> tuple[str, ...]:
    """The labels in the order of their numbers."""
    count = run.rows.logits_NBC.shape[-1]
    return tuple(getattr(run.loaded.data, "label_names", map(str, range(count))))
