"""A study read back from its folder and its database: stages, trials, winner. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plugin_trainer.errors import StudyError
from plugin_trainer.files import read_object, write_text
from plugin_trainer.registry.blame import in_words
from plugin_trainer.settings.layers import Layer, Merged, merge, read_toml
from plugin_trainer.settings.render import in_one_line, to_toml
from plugin_trainer.tuning.claims import ABOUT, Place, Signs, signs_of_life
from plugin_trainer.tuning.objectives import Objective
from plugin_trainer.tuning.ranges import as_layer
from plugin_trainer.tuning.storage import (
    HEARTBEAT_SECONDS,
    find_optuna_study,
    open_storage,
    sqlite_url,
    study_names,
    told_shortly,
    without_password,
)

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

STUDIES = Path("studies")
SETTINGS = "study.toml"
DATABASE = "study.db"
BEST = "best.toml"

ATTRIBUTE = "ptrain"
"""The user attribute of Optuna's studies under which ours keep what they are."""

State = Literal["waiting", "running", "killed", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial as the database has it.

    state    "killed": it was begun, nobody works on it now, and it is to be continued
    values   one for each objective; of a pruned trial, what it last reported
    params   by dotted key; those that were switched off are not there
    reason   why it failed or was pruned
    folder   its run folder; None if it is not on this machine
    reports  by evaluation, counted from 1, the value that pruning saw
    """

    number: int
    state: State
    values: tuple[float, ...]
    params: Mapping[str, Any]
    reason: str
    folder: Path | None
    steps: int | None
    seconds: float | None
    reports: Mapping[int, float]


@dataclass(frozen=True)
class Stage:
    """One search.

    name       empty for a study that is not staged
    folder     where its trials' folder and its pictures lie
    total      how many trials there shall be
    winner_by  the metric that chooses among the front
    optuna     Optuna's study; None before it is begun
    start      what it starts from: the values of the winners before it, by key
    """

    name: str
    folder: Path
    total: int
    objectives: tuple[Objective, ...]
    winner_by: str
    optuna: optuna.Study | None
    start: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        ended = sum(trial.state in ("finished", "pruned", "failed") for trial in self.trials)
        return self.optuna is not None and ended >= self.total

    def winner(self) -> Trial | None:
        """The best finished trial; of several objectives, of the front the best by `winner_by`."""
        names = [its.metric for its in self.objectives]
        by = names.index(self.winner_by) if self.winner_by else 0
        sign = 1 if self.objectives[by].mode == "min" else -1
        return min(
            self.front(), key=lambda trial: (sign * trial.values[by], trial.number), default=None
        )

    def front(self) -> list[Trial]:
        """The finished trials that no other beats, by the first objective; of one objective, the
        best.
        """
        finished = [trial for trial in self.trials if trial.state == "finished"]
        kept = [one for one in finished if not any(self._beats(other, one) for other in finished)]
        kept = list({trial.values: trial for trial in reversed(kept)}.values())
        return sorted(kept, key=lambda trial: (trial.values, trial.number))

    def _beats(self, one: Trial, other: Trial) -> bool:
        """Whether a trial is no worse by any objective and better by one."""
        signs = [1 if its.mode == "min" else -1 for its in self.objectives]
        mine = [sign * value for sign, value in zip(signs, one.values, strict=True)]
        its = [sign * value for sign, value in zip(signs, other.values, strict=True)]
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


@dataclass(frozen=True)
class Study:
    """A study.

    folder    where its files lie on this machine, if it has been worked on here
    storage   its database's URL, without a password
    settings  what study.toml says: the run, and [tune]
    stages    those that are not begun yet too
    """

    name: str
    folder: Path
    storage: str
    settings: Mapping[str, Any]
    stages: tuple[Stage, ...]


def list_studies(storage: str = "") -> list[str]:
    """The names of the studies under studies/, or in a database.

    Raises StudyError for a database that cannot be used.
    """
    if storage:
        with told_shortly(storage):
            opened = open_storage(storage)
            return list(dict.fromkeys(its.study_name.partition("/")[0] for its in _ours(opened)))
    if not STUDIES.is_dir():
        return []
    return sorted(entry.name for entry in STUDIES.iterdir() if (entry / SETTINGS).is_file())


def open_study(name: str, *, storage: str = "") -> Study:
    """A study by its name or its folder, as it is now.

    storage  its database's URL; left out, what its folder says

    Raises StudyError if there is none, or its database cannot be used.
    """
    folder = folder_of(name)
    if not (folder / SETTINGS).is_file() and not storage:
        raise _no_study(name)
    url = storage_of(folder, storage)
    refuse_lost_trials(folder, url)
    with told_shortly(url), _damage_said(f"the study {folder.name}"):
        return read_study(folder, open_for_signs(folder, url), url=url)


@contextmanager
def _damage_said(what: str) -> Iterator[None]:
    """Raise StudyError where the database holds values that nobody here wrote."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyError(
            f"{what} cannot be read: {in_words(error)}",
            hint="its database holds what ptrain did not write: restore it from a copy",
        ) from error


def open_for_signs(folder: Path, url: str) -> BaseStorage:
    """A study's database, opened so that its workers' signs of life are understood."""
    opened = open_storage(url)
    settings = settings_in(folder, opened)
    seconds = int(settings["tune"]["heartbeat"]) if settings is not None else HEARTBEAT_SECONDS
    if seconds == HEARTBEAT_SECONDS:
        return opened
    return open_storage(url, heartbeat_seconds=seconds, again=True)


def refuse_lost_trials(folder: Path, url: str) -> None:
    """Raise StudyError for the folder of a study whose database was taken away."""
    own = folder / DATABASE
    if url == sqlite_url(own) and (folder / SETTINGS).is_file() and not own.is_file():
        raise StudyError(
            f"{folder} has no {DATABASE}: what its trials were is gone",
            hint="if that is in another database, name it with --storage; else remove the folder",
        )


def folder_of(name: str) -> Path:
    """Where a study's folder is, or would be."""
    path = Path(name)
    return path if (path / SETTINGS).is_file() else STUDIES / path.name


def storage_of(folder: Path, storage: str = "") -> str:
    """The URL of a study's database: as given, or as its folder says, or the file in it.

    Raises StudyError for one whose password is not written down.
    """
    if storage:
        return storage
    about = read_object(folder / ABOUT)
    url = str(about.get("storage") or sqlite_url(folder / DATABASE))
    if "***" in url:
        raise StudyError(
            f"the study {folder.name} is in {url}, whose password is not written down",
            hint="give the whole URL with --storage, or in the variable PTRAIN_STORAGE",
        )
    return url


def read_study(folder: Path, storage: BaseStorage, *, url: str) -> Study:
    """A study from an open database. Raises StudyError if it is not in there."""
    settings = settings_in(folder, storage)
    if settings is None:
        raise _no_study(folder.name, storage=url)
    abouts = {about["stage"]: about for about in _abouts(storage, study=folder.name)}
    place = Place.find(folder)
    stages = tuple(
        _stage(folder, named, settings, abouts.get(named["name"]), storage, place)
        for named in stages_in(settings)
    )
    return Study(folder.name, folder, without_password(url), settings, stages)


def settings_in(folder: Path, storage: BaseStorage) -> Mapping[str, Any] | None:
    """What a study was begun with, as its database or, before its first trial, its folder says;
    None if there is no such study.
    """
    for about in _abouts(storage, study=folder.name):
        return about["settings"]  # type: ignore[no-any-return]
    if (folder / SETTINGS).is_file():
        return read_toml(folder / SETTINGS).values
    return None


def stages_in(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What study.toml says of each search; one without a name if it is not staged."""
    tune = settings["tune"]
    best = settings.get("best", {})
    found = []
    for stage in tune.get("stages") or [{"name": "", "space": tune.get("space", {})}]:
        objectives = stage.get("objectives") or tune.get("objectives")
        objectives = objectives or [{"metric": best["watch"], "mode": best["mode"]}]
        left_out = "best" if len(objectives) == 1 else "last"
        metrics = [its["metric"] for its in objectives]
        winner_by = stage.get("winner_by") or tune.get("winner_by") or ""
        found.append(
            {
                "name": stage["name"],
                "space": stage.get("space", {}),
                "total": stage.get("trials") or tune["trials"],
                "own_total": bool(stage.get("trials")),
                "objectives": tuple(
                    Objective(its["metric"], its.get("mode", "min"), its.get("take") or left_out)
                    for its in objectives
                ),
                "winner_by": winner_by if winner_by in metrics else metrics[0],
            }
        )
    return found


def optuna_name(study: str, stage: str) -> str:
    """What Optuna calls a stage."""
    return f"{study}/{stage}" if stage else study


def _ours(storage: BaseStorage) -> Iterator[optuna.Study]:
    """The stages of our studies in a database, as Optuna has them."""
    for name in study_names(storage):
        opened = find_optuna_study(storage, name)
        if opened is not None and ATTRIBUTE in opened.user_attrs:
            yield opened


def _abouts(storage: BaseStorage, *, study: str) -> Iterator[dict[str, Any]]:
    """What the stages of a study are. Raises as `about_of` does."""
    for opened in _ours(storage):
        if opened.study_name.partition("/")[0] == study:
            yield about_of(opened)


def about_of(opened: optuna.Study) -> dict[str, Any]:
    """What a stage of ours is: its study and name, settings, start and total.

    Raises StudyError if its database says what nobody here wrote.
    """
    with _damage_said(f"the study {opened.study_name}"):
        about = opened.user_attrs[ATTRIBUTE]
        json.dumps(about, ensure_ascii=False).encode()  # half a character fits into no file
        study, _, stage = opened.study_name.partition("/")
        if (about["study"], about["stage"]) != (study, stage):
            raise ValueError("it is said to be another one")
        maps = {key: {**about[key]} for key in ("settings", "start")}
        return {**about, **maps, "total": int(about["total"])}


def _stage(
    folder: Path,
    named: Mapping[str, Any],
    settings: Mapping[str, Any],
    about: Mapping[str, Any] | None,
    storage: BaseStorage,
    place: Place,
) -> Stage:
    name = named["name"]
    its = folder / name if name else folder
    opened = find_optuna_study(storage, optuna_name(folder.name, name)) if about else None
    return Stage(
        name=name,
        folder=its,
        total=about["total"] if about else named["total"],
        objectives=named["objectives"],
        winner_by=named["winner_by"],
        optuna=opened,
        start=about["start"] if about else {},
        trials=_trials(opened, folder, its, place) if opened is not None else (),
    )


def _trials(
    opened: optuna.Study, folder: Path, stage_folder: Path, place: Place
) -> tuple[Trial, ...]:
    life = signs_of_life(opened, place, stage_folder)
    found = []
    for frozen in opened.get_trials(deepcopy=False):
        with _damage_said(f"trial {frozen.number} of the study {opened.study_name}"):
            found.append(_trial(frozen, life, folder, count=len(opened.directions)))
    return tuple(found)


def _trial(frozen: optuna.trial.FrozenTrial, life: Signs, folder: Path, *, count: int) -> Trial:
    attributes = frozen.user_attrs
    state: State = "waiting"
    match frozen.state.name:
        case "RUNNING":
            state = "running" if life.of(frozen) in ("alive", "elsewhere") else "killed"
        case "COMPLETE":
            state = "finished"
            if len(frozen.values) != count:
                raise ValueError(f"it has {len(frozen.values)} values in place of {count}")
        case "PRUNED":
            state = "pruned"
        case "FAIL":
            state = "failed"
    where = folder / attributes["folder"] if attributes.get("folder") else None
    steps = attributes.get("steps")
    return Trial(
        number=frozen.number,
        state=state,
        values=tuple(float(value) for value in frozen.values or ()),
        params=dict(frozen.params),
        reason=str(attributes.get("reason", "")),
        folder=where if where is not None and where.is_dir() else None,
        steps=None if steps is None else int(steps),
        seconds=frozen.duration.total_seconds() if frozen.duration else None,
        reports=dict(sorted(frozen.intermediate_values.items())),
    )


def _no_study(name: str, *, storage: str = "") -> StudyError:
    names = list_studies(storage)
    where = f"in {without_password(storage)}" if storage else f"under {STUDIES}/"
    return StudyError(
        f"there is no study '{name}'",
        hint=f"{where} there are: {', '.join(names)}" if names else f"there is none {where}",
    )


# ------------------------------------------------------------------------------------- the winner


def values_with(study: Study, stage: Stage, trial: Trial) -> dict[str, Any]:
    """The whole run with a trial's values: what a run file of it says."""
    base = {key: value for key, value in study.settings.items() if key != "tune"}
    layers = [
        Layer(SETTINGS, base),
        as_layer(stage.start, where="the stages before"),
        as_layer(trial.params, where=f"trial {trial.number}"),
    ]
    merged: Merged = merge(layers)
    return merged.values


def write_best(
    study: Study, *, stage: Stage | None = None, trial: Trial | None = None
) -> Path | None:
    """Write best.toml, a run file of a trial; left out, of the furthest stage's winner.

    Returns where it is, or None if no trial has finished.
    """
    if stage is None:
        won = [its for its in study.stages if its.winner() is not None]
        if not won:
            return None
        stage = won[-1]
    trial = trial or stage.winner()
    if trial is None:
        return None
    path = study.folder / BEST
    study.folder.mkdir(parents=True, exist_ok=True)
    of = f", stage {stage.name}" if stage.name else ""
    values = ", ".join(
        f"{its.metric} {value:.6g}"
        for its, value in zip(stage.objectives, trial.values, strict=False)
    )
    title = f"# Trial {trial.number} of the study {study.name}{of}: {values}\n"
    write_text(path, title + to_toml(values_with(study, stage, trial)))
    return path


def assignments(params: Mapping[str, Any]) -> list[str]:
    """The values of a trial for --set, as TOML spells them; a shell needs quotes around some."""
    return [f"{key}={in_one_line(value)}" for key, value in params.items()]


def counts(trials: Iterable[Trial]) -> dict[str, int]:
    """How many trials are in each state, in the order of a trial's life; none left out are 0."""
    found = dict.fromkeys(("waiting", "running", "killed", "finished", "pruned", "failed"), 0)
    for trial in trials:
        found[trial.state] += 1
    return {state: number for state, number in found.items() if number}
