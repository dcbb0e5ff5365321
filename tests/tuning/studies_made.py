"""Studies as `ptrain tune` leaves them, with trials of any kind in Optuna's own database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import tomli_w

from plugin_trainer.settings.render import to_values
from plugin_trainer.settings.tuning import TuneSettings
from plugin_trainer.tuning.studies import ATTRIBUTE, Stage, open_study, optuna_name

STATES = {
    "finished": optuna.trial.TrialState.COMPLETE,
    "pruned": optuna.trial.TrialState.PRUNED,
    "failed": optuna.trial.TrialState.FAIL,
    "waiting": optuna.trial.TrialState.WAITING,
}

LOSS = [{"metric": "val/loss", "mode": "min"}]
LOSS_AND_DEPTH = [*LOSS, {"metric": "val/depth", "mode": "min"}]


def trial(
    *values: float,
    state: str = "finished",
    params: Mapping[str, Any] | None = None,
    reports: Sequence[float] = (),
    **attributes: Any,
) -> optuna.trial.FrozenTrial:
    """A trial that has ended; every number it tried may be from 0 to 100."""
    params = dict(params or {})
    if state == "pruned":
        values = tuple(reports[-1:])  # as Optuna has it
    kinds: dict[type, Any] = {
        int: optuna.distributions.IntDistribution(0, 100),
        float: optuna.distributions.FloatDistribution(0.0, 100.0),
    }
    return optuna.trial.create_trial(
        state=STATES[state],
        values=list(values) or None,
        params=params,
        distributions={
            key: kinds.get(type(value)) or optuna.distributions.CategoricalDistribution([value])
            for key, value in params.items()
        },
        intermediate_values=dict(enumerate(reports, start=1)),
        user_attrs={"steps": 6, **attributes} if state != "waiting" else {},
    )


@cache
def _no_studies() -> bytes:
    """Optuna's database without a study in it, which takes 80 ms to make."""
    with TemporaryDirectory() as folder:
        optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db").engine.dispose()
        return Path(folder, "study.db").read_bytes()


def make_study(
    name: str,
    trials: Sequence[optuna.trial.FrozenTrial] = (),
    *,
    objectives: Sequence[Mapping[str, str]] = LOSS,
    stages: Mapping[str, Sequence[optuna.trial.FrozenTrial]] | None = None,
    starts: Mapping[str, Mapping[str, Any]] | None = None,
    total: int = 10,
) -> Path:
    """A study under studies/, staged if it has `stages`; its folder."""
    folder = Path("studies") / name
    folder.mkdir(parents=True)
    tune = {**to_values(TuneSettings()), "trials": total, "objectives": list(objectives)}
    space = {"space": {"model_settings.x": {"low": 0, "high": 100}}}
    if stages is None:
        tune |= space
    else:
        tune["stages"] = [{"name": stage, **space} for stage in stages]
    settings = {
        "plugins": ["./bowl.py"],
        "model": "bowl/net",
        "data": "bowl/rows",
        "length": "6 steps",
        "best": {"watch": "val/loss", "mode": "min"},
        "tune": tune,
    }
    (folder / "study.toml").write_text(tomli_w.dumps(settings))
    (folder / "study.json").write_text(json.dumps({"id": "here"}))
    (folder / "study.db").write_bytes(_no_studies())
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder}/study.db", skip_compatibility_check=True, skip_table_creation=True
    )
    for stage, its in ({"": trials} if stages is None else stages).items():
        made = optuna.create_study(
            study_name=optuna_name(name, stage),
            storage=storage,
            directions=["minimize" if of["mode"] == "min" else "maximize" for of in objectives],
        )
        start = dict((starts or {}).get(stage, {}))
        about = {"study": name, "stage": stage, "settings": settings, "start": start}
        made.set_user_attr(ATTRIBUTE, {**about, "total": total})
        made.add_trials(list(its))
    return folder


def one_stage(*args: Any, **kwargs: Any) -> Stage:
    """A study that is not staged, read back: its only stage."""
    folder = make_study("made", *args, **kwargs)
    return open_study(folder.name).stages[0]
