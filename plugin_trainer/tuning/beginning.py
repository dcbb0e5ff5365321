"""A study made, or gone on with: its folder, its database, and the trials that are still to come.

What a study is (the run, the space, the objectives) is written into the database when it begins and
never changes: workers anywhere read it there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.configuration import Configuration
from plugin_trainer.configuration.admission import code_named, untrusted
from plugin_trainer.errors import RunFolderError, StudyError
from plugin_trainer.files import read_object, write_json, write_text
from plugin_trainer.ownership import is_signed, signature
from plugin_trainer.settings.layers import Layer
from plugin_trainer.settings.render import flatten, to_toml
from plugin_trainer.tuning.claims import ABOUT, Place
from plugin_trainer.tuning.sampling import make_pruner, make_sampler
from plugin_trainer.tuning.storage import (
    find_optuna_study,
    import_optuna,
    open_storage,
    sqlite_url,
    told_shortly,
    without_password,
)
from plugin_trainer.tuning.studies import (
    ATTRIBUTE,
    DATABASE,
    SETTINGS,
    STUDIES,
    Stage,
    Study,
    about_of,
    open_for_signs,
    open_study,
    optuna_name,
    read_study,
    refuse_lost_trials,
    settings_in,
    stages_in,
    storage_of,
)

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

# What may differ from one `ptrain tune` to the next: how far to go, and how to watch.
_FREE = ("name", "tune.trials", "tune.give_up_after", "tune.heartbeat")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class OpenStudy:
    """A study that this process works on.

    url       its database, password and all
    settings  what study.toml says
    """

    name: str
    folder: Path
    url: str
    storage: BaseStorage
    place: Place
    settings: Mapping[str, Any]

    @property
    def tune(self) -> Mapping[str, Any]:
        """The table [tune]."""
        tune: Mapping[str, Any] = self.settings["tune"]
        return tune

    def base(self) -> Layer:
        """The run that every trial varies."""
        return Layer(str(self.folder / SETTINGS), self.settings)

    def read(self) -> Study:
        """As it is now."""
        with told_shortly(self.url):
            return read_study(self.folder, self.storage, url=self.url)


def open_for_work(
    name: str,
    *,
    storage: str = "",
    configuration: Configuration | None = None,
    trust: bool = False,
) -> OpenStudy:
    """The study of this name, made if there is none.

    configuration  what it is to be made of, or must have been made of; left out, what it was
    trust          the code that it names may be loaded, whoever made it

    Raises StudyError if it has changed since, SettingsError for a sampler or pruner that Optuna
    does not have, UntrustedRun for code that somebody else has it name.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise StudyError(
            f"'{name}' cannot be the name of a study", hint="write letters, digits, '-', '_', '.'"
        )
    folder = STUDIES / name
    if configuration is None:
        open_study(name, storage=storage)  # for what it raises: nothing is made for no study
    settings = settings_of(configuration) if configuration is not None else None
    if settings is not None:
        make_sampler(settings["tune"], seed=0, stage="", number=0)
        make_pruner(settings["tune"])
    place = Place.make(folder)
    url = storage_of(folder, storage)
    refuse_lost_trials(folder, url)
    with told_shortly(url), place.locked():
        opened = open_for_signs(folder, url)
        before = settings_in(folder, opened)
        if before is not None and settings is not None:
            _refuse_changes(name, before, settings)
        if before is None and settings is not None:
            heartbeat = settings["tune"]["heartbeat"]
            opened = open_storage(url, heartbeat_seconds=heartbeat, again=True)
        study = OpenStudy(name, folder, url, opened, place, before or settings or {})
        if before is not None and not trust:
            _admit(study, typed=settings is not None)
        _write_down(study)
    return study


def _admit(study: OpenStudy, *, typed: bool) -> None:
    """Raise UntrustedRun for a study that names code, unless this user made it.

    typed  the run and its code were named again; what the stages begin with was not
    """
    if is_signed(_signed(study), read_object(study.folder / ABOUT).get("signature")):
        return
    begin = {stage.name: dict(stage.start) for stage in study.read().stages}
    code = [*code_named({} if typed else study.settings), *code_named(begin)]
    if code:
        raise untrusted(study.folder, code)


def _signed(study: OpenStudy) -> str:
    """What a study is, as the text that its user signs."""
    return json.dumps(study.settings, sort_keys=True)


def settings_of(configuration: Configuration) -> dict[str, Any]:
    """The run and its search as a table, without what follows from other keys: those may be
    searched.
    """
    values: dict[str, Any] = json.loads(json.dumps(configuration.values_with_tuning()))
    follow = (
        getattr(configuration.data.offer.spec, "defaults_from", {}) if configuration.data else {}
    )
    for name in follow:
        origin = configuration.origins.get(("data_settings", name), "from")
        if origin.startswith("from"):
            values["data_settings"].pop(name, None)
    return {**values, "name": ""}


def _refuse_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    old, new = (_comparable(values) for values in (before, after))
    changed = [
        f"{key}: {_text(old.get(key))} -> {_text(new.get(key))}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise StudyError(
            f"the study '{name}' was begun with other settings",
            hint=[
                *changed,
                f"to go on as it was begun: ptrain tune --study {name}, without a run file",
                "to search with the new: another --study NAME",
            ],
        )


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf by dotted key, of stages one key each, without what may differ."""
    flat = {}
    for key, value in flatten(settings).items():
        if key in _FREE:
            continue
        if key == "tune.stages":
            for stage in value:
                its = {name: part for name, part in stage.items() if name != "trials"}
                flat.update(flatten(its, at=("tune", "stages", stage["name"])))
        else:
            flat[key] = value
    return flat


def _text(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)


def _write_down(study: OpenStudy) -> None:
    """Say in the folder what the study is, and where its database is unless that lies there."""
    elsewhere = study.url != sqlite_url(study.folder / DATABASE)
    about = read_object(study.folder / ABOUT)
    new = {**about, "signature": signature(_signed(study))}
    if elsewhere:
        new["storage"] = without_password(study.url)
    try:
        if not (study.folder / SETTINGS).is_file():
            write_text(study.folder / SETTINGS, to_toml(study.settings))
        if new != about:
            write_json(study.folder / ABOUT, new)
    except OSError as error:
        raise RunFolderError(
            f"the study's folder {study.folder} cannot be written: {error.strerror or error}"
        ) from error


# ------------------------------------------------------------------------------------------ stages


def begin_stage(study: OpenStudy, number: int, *, trials: int | None) -> Stage:
    """The so manyeth stage as it is, begun if it was not, with as many trials waiting as are
    missing.

    trials  how many there shall be in all; left out, what it was begun with

    The stage before it must have a winner.
    """
    optuna = import_optuna()
    named = stages_in(study.settings)[number]
    stage: str = named["name"]
    name = optuna_name(study.name, stage)
    with told_shortly(study.url), study.place.locked():
        found = find_optuna_study(study.storage, name)
        if found is None or ATTRIBUTE not in found.user_attrs:
            found = optuna.create_study(
                study_name=name,
                storage=study.storage,
                directions=[its.direction for its in named["objectives"]],
                load_if_exists=True,
            )
        before = about_of(found) if ATTRIBUTE in found.user_attrs else None
        about = before or {
            "study": study.name,
            "stage": stage,
            "settings": study.settings,
            "start": _start(study, number),
        }
        total = trials or about.get("total") or named["total"]
        if about.get("total") != total:
            found.set_user_attr(ATTRIBUTE, {**about, "total": total})
        _top_up(found, total)
    return study.read().stages[number]


def _start(study: OpenStudy, number: int) -> dict[str, Any]:
    """The values of the winners of the stages before."""
    if number == 0:
        return {}
    before = study.read().stages[number - 1]
    winner = before.winner()
    if winner is None:
        raise StudyError(f"stage {before.name} has no winner: no trial of it has finished")
    return {**before.start, **winner.params}


def _top_up(study: optuna.Study, total: int) -> None:
    """Add waiting trials until there are as many as wanted.

    Two machines that do so at once add some too many; these have higher numbers, and nobody begins
    them.
    """
    import optuna

    waiting = optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING)
    for _ in range(total - len(study.get_trials(deepcopy=False))):
        study.add_trial(waiting)


def total_of(study: optuna.Study) -> int:
    """How many trials there shall be, as it stands in the database now."""
    return int(about_of(study)["total"])
