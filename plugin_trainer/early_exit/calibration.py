"""What a run knows of its exits: the agreement map and the certified levels, in early_exit.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.certify import Certified
from plugin_trainer.early_exit.tolerance import ToleranceMap
from plugin_trainer.files import read_object, write_json

FILE = "early_exit.json"


@dataclass(frozen=True)
class Calibration:
    """Fitted for one set of weights in one precision; it says nothing about another.

    agreement_map  of a regression it maps the change of the number to being within a tolerance
    precision      "fp32", "bf16" or "fp16"
    rows           how many rows it was fitted or tested on
    rows_sha256    of their tokens
    apart          whether the levels were tested on other rows than the map was fitted on
    certified      the promises that hold, the strictest first
    """

    agreement_map: AgreementMap | ToleranceMap
    precision: str
    rows: int
    rows_sha256: str
    apart: bool = False
    certified: tuple[Certified, ...] = ()

    def promise(self, max_disagreement: float) -> Certified | None:
        """The certified level of a promise; None if it was not tested, or did not hold."""
        same = (
            item for item in self.certified if abs(item.max_disagreement - max_disagreement) < 1e-9
        )
        return next(same, None)


def key_of(checkpoint: Path, weights: str) -> str:
    """Which weights a calibration is of, by their content: "step-00000300/raw/db082d8307c7"."""
    prefix = "ema" if weights == "ema" else "model"
    files = read_object(checkpoint / "manifest.json").get("files", {})
    hashes = sorted(about["sha256"] for name, about in files.items() if name.startswith(prefix))
    digest = hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:12]
    return f"{checkpoint.name}/{weights}/{digest}"


def key_of_task(key: str, task: str) -> str:
    """The key of one of a model's tasks; that of the task "" is the key of the weights."""
    return f"{key}/{task}" if task else key


def read_calibration(folder: Path, key: str) -> Calibration | None:
    """The calibration of these weights in a run folder; None if there is none."""
    entry = read_object(folder / FILE).get(key)
    return _from_json(entry) if entry is not None else None


def write_calibration(folder: Path, key: str, calibration: Calibration) -> Calibration:
    """Add a calibration to a run folder, in place of an earlier one of the same weights.

    Promises that were certified earlier on the same rows stay; gives the calibration with them.
    """
    earlier = read_calibration(folder, key)
    if earlier is not None and replace(earlier, certified=calibration.certified) == calibration:
        kept = [
            item for item in earlier.certified if not calibration.promise(item.max_disagreement)
        ]
        promises = sorted([*kept, *calibration.certified], key=lambda item: item.max_disagreement)
        calibration = replace(calibration, certified=tuple(promises))
    known: Mapping[str, Any] = read_object(folder / FILE)
    write_json(folder / FILE, {**known, key: asdict(calibration)})
    return calibration


def _from_json(entry: Mapping[str, Any]) -> Calibration:
    return Calibration(
        agreement_map=_map_from_json(entry["agreement_map"]),
        precision=entry["precision"],
        rows=entry["rows"],
        rows_sha256=entry["rows_sha256"],
        apart=entry["apart"],
        certified=tuple(
            Certified(**{**item, "exits": tuple(item.get("exits", ()))})
            for item in entry["certified"]
        ),
    )


def _map_from_json(fitted: Mapping[str, Any]) -> AgreementMap | ToleranceMap:
    numbers = tuple(fitted["intercepts"]), tuple(fitted["slopes"])
    if "tolerance" in fitted:
        return ToleranceMap(*numbers, fitted["tolerance"])
    return AgreementMap(*numbers)
