"""The store: register, find, name, export, load, check and remove versions of models.

Files come first and the registry's line last, so that a version that is written down has all its
files whenever a process is killed. Removing goes the other way round.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plugin_trainer.files import fsync_folder, write_json
from plugin_trainer.model_store import rows
from plugin_trainer.model_store.artifacts import Artifact, Artifacts, Cleaned, disk_said
from plugin_trainer.model_store.database import reading, writing
from plugin_trainer.model_store.errors import StoreError
from plugin_trainer.model_store.names import (
    Reference,
    check_alias,
    check_name,
    check_tag,
    parse_reference,
)
from plugin_trainer.model_store.versions import Version
from plugin_trainer.run_folder import find_run, now

if TYPE_CHECKING:
    from sqlite3 import Connection

    from plugin_trainer.model_store.packing import Packed
    from plugin_trainer.settings.layers import Layer
    from plugin_trainer.training.inference import LoadedRun

DEFAULT = "models"
VARIABLE = "PTRAIN_MODELS"
BEST = "best"


@dataclass(frozen=True)
class Registered:
    """What came of registering.

    is_new    false where the checkpoint was a version already, and `once` was asked for
    moved     the aliases it was given, each with the number of the version that had it before
    not_best  the version that keeps the alias `best`, where this one is not better
    """

    version: Version
    is_new: bool = True
    moved: Mapping[str, int | None] = field(default_factory=dict)
    not_best: Version | None = None

    def __str__(self) -> str:
        version, holder = self.version, self.not_best
        what = f"step {version.step}, {version.weights} weights{_with_value(version)}"
        if not self.is_new:
            return f"{version} is this checkpoint already: {what}"
        lines = [f"{version} is new: {what}"]
        for alias, before in self.moved.items():
            was = f" (was {version.name}:{before})" if before is not None else ""
            lines.append(f"{version.name}@{alias} is {version}{was}")
        if holder is not None:
            lines.append(f"{version.name}@{BEST} stays {holder}{_with_value(holder)}")
        if version.cannot_predict:
            lines.append(f"{version}: {version.cannot_predict}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Damage:
    """A file of a version that is missing or not what it was."""

    version: Version
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.version}: {self.path}: {self.what}"


class Store:
    """The models in one folder; several processes may use it at once.

    folder  left out, what PTRAIN_MODELS names, else models/

    Every method raises StoreError for what is not there and for a disk that refuses.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or os.environ.get(VARIABLE) or DEFAULT)
        self._registry = self.folder / "registry.sqlite"
        self._artifacts = Artifacts(self.folder)

    # --------------------------------------------------------------------------------- registering

    def prepare(self) -> None:
        """Make the store if there is none, and see that it can be written."""
        self._make()
        with self._in_words(), self._artifacts.held(), self._artifacts.staging():
            pass

    def _make(self) -> None:
        with self._in_words():
            self.folder.mkdir(parents=True, exist_ok=True)
            with writing(self._registry):
                pass

    def register(
        self,
        run: str | Path,
        *,
        name: str,
        checkpoint: str = "",
        weights: Literal["raw", "ema"] = "raw",
        aliases: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        once: bool = False,
        news: Mapping[str, Any] | None = None,
    ) -> Registered:
        """Make a checkpoint of a run the next version of a model.

        run         its folder, or its name under runs/
        checkpoint  "best", "last" or "step-N"; left out, the best, or the last if there is none
        weights     which set of them the version has
        aliases     names it is given; `best` only if it is better than the version that has it
        once        change nothing if the checkpoint is a version of this model already
        news        what the run's run.json does not say yet

        Raises RunFolderError or CheckpointError if the run or the checkpoint cannot be used.
        """
        from plugin_trainer.model_store.packing import pack

        check_name(name)
        for alias in aliases:
            check_alias(alias)
        checked = dict(check_tag(key, value) for key, value in (tags or {}).items())
        folder = find_run(str(run))
        self._make()
        self._clean_after_kills()
        with self._in_words(), self._artifacts.held(), self._artifacts.staging() as staging:
            packed = pack(folder, staging, checkpoint=checkpoint, weights=weights, news=news or {})
            files = self._adopt(staging)
            with writing(self._registry) as connection:
                there = rows.versions_of(connection, name)
                same = [version for version in there if version.content == packed.content]
                if once and same:
                    return Registered(same[-1], is_new=False)
                version = _version(
                    packed,
                    name=name,
                    number=rows.next_number(connection, name),
                    run=folder,
                    weights=weights,
                    files=files,
                    tags=checked,
                )
                rows.insert(connection, version)
                return _give_aliases(connection, version, aliases)

    def _adopt(self, staging: Path) -> dict[str, Artifact]:
        found = sorted(path for path in staging.rglob("*") if path.is_file())
        return {path.relative_to(staging).as_posix(): self._artifacts.adopt(path) for path in found}

    # ------------------------------------------------------------------------------------- finding

    def versions(self, name: str = "", *, damaged: list[str] | None = None) -> list[Version]:
        """The versions of a model, or of all models, by name, the newest last.

        damaged  is given a line for each entry that cannot be used; left out, the first is an error
        """
        with reading(self._registry) as connection:
            if name and damaged is None:
                rows.find(connection, Reference(check_name(name)))
            return rows.versions_of(connection, name, damaged=damaged)

    def get(self, reference: str) -> Version:
        """The version that NAME (its newest), NAME:VERSION or NAME@ALIAS means."""
        with reading(self._registry) as connection:
            return rows.find(connection, parse_reference(reference))

    # -------------------------------------------------------------------------------------- naming

    def set_alias(self, reference: str, alias: str) -> tuple[Version, int | None]:
        """Let an alias mean a version; that version, and the number of the one it meant before."""
        wanted = parse_reference(reference)
        check_alias(alias)
        with self._changing() as connection:
            version = rows.find(connection, wanted)
            before = rows.point(connection, alias, version)
            return rows.find(connection, Reference(version.name, number=version.number)), before

    def remove_alias(self, reference: str, alias: str) -> int:
        """Take an alias away; the number of the version that had it.

        Raises StoreError if the reference is to a version that does not have it.
        """
        wanted = parse_reference(reference)
        with self._changing() as connection:
            holder = rows.find(connection, Reference(wanted.name, alias=check_alias(alias)))
            if not wanted.is_newest and rows.find(connection, wanted) != holder:
                raise StoreError(f"{reference} is not @{alias}: {holder} is")
            rows.unpoint(connection, holder.name, alias)
            return holder.number

    def set_tags(
        self, reference: str, tags: Mapping[str, str], *, remove: Sequence[str] = ()
    ) -> Version:
        """Give a version tags, in place of those with the same keys, and take others away."""
        wanted = parse_reference(reference)
        checked = dict(check_tag(key, value) for key, value in tags.items())
        with self._changing() as connection:
            version = rows.find(connection, wanted)
            missing = [key for key in remove if key not in version.tags]
            if missing:
                has = ", ".join(version.tags) or "none"
                raise StoreError(
                    f"{version} has no tag '{missing[0]}'", hint=f"its tags are: {has}"
                )
            rows.remove_tags(connection, version, remove)
            rows.add_tags(connection, version, checked)
            return rows.find(connection, Reference(version.name, number=version.number))

    # --------------------------------------------------------------------------------------- using

    def export(self, reference: str, folder: str | Path) -> Version:
        """Copy a version into a new folder, which is a run folder: `ptrain predict` takes it.

        It is there whole or not at all. model.json in it says what it is.
        """
        place = Path(folder).absolute()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise StoreError(
                f"{folder} is there already", hint="name a folder that is new or empty"
            )
        beside = place.with_name(f".{place.name}.tmp-{os.getpid()}")
        with self._in_words(f"the folder {folder}"), self._artifacts.held():
            version = self.get(reference)
            shutil.rmtree(beside, ignore_errors=True)
            try:
                (beside / "assets").mkdir(parents=True)
                for path, artifact in version.files.items():
                    self._artifacts.copy(artifact, beside / path)
                write_json(beside / "model.json", version.as_json())
                beside.rename(place)
                fsync_folder(place.parent)
            except BaseException:
                shutil.rmtree(beside, ignore_errors=True)
                raise
        return version

    def load(
        self,
        reference: str,
        *,
        device: str = "auto",
        overrides: Layer | None = None,
        **objects: Any,
    ) -> LoadedRun:
        """Load a version to evaluate and to predict with.

        overrides  settings that go over those of the run, such as another validation file
        objects    for a run of `fit`: model=MODEL and whatever else load_run takes

        Raises PtrainError if its files or plugins cannot be used.
        """
        from plugin_trainer.training.api import load_run

        folder = Path(tempfile.mkdtemp(prefix="ptrain-model-"))
        try:
            with self._artifacts.held():
                version = self.get(reference)
                (folder / "assets").mkdir()
                for path, artifact in version.files.items():
                    self._put(artifact, folder / path)
                loaded = load_run(folder, device=device, overrides=overrides, **objects)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # A data module may read its assets late.
        weakref.finalize(loaded, shutil.rmtree, folder, ignore_errors=True)
        return loaded

    def _put(self, artifact: Artifact, place: Path) -> None:
        """A file of a version for reading: tensors where they are, everything else as a copy."""
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".safetensors":
            place.symlink_to(self._artifacts.path_of(artifact).absolute())
        else:
            self._artifacts.copy(artifact, place)

    # ------------------------------------------------------------------------- checking, removing

    def verify(self, reference: str = "") -> tuple[list[Version], list[Damage]]:
        """Hash every file of a version, or of all; what was looked at, and what is not whole."""
        with self._artifacts.held():
            looked_at = [self.get(reference)] if reference else self.versions()
            files = {artifact for version in looked_at for artifact in version.files.values()}
            wrong = {artifact: self._artifacts.damage_of(artifact) for artifact in files}
        damages = [
            Damage(version, path, wrong[artifact])
            for version in looked_at
            for path, artifact in version.files.items()
            if wrong[artifact]
        ]
        return looked_at, damages

    def removable(self, reference: str) -> Version:
        """The version that `remove` would remove. Raises StoreError as that would."""
        with reading(self._registry) as connection:
            return _removable(connection, parse_reference(reference))

    def remove(self, reference: str) -> tuple[Version, Cleaned]:
        """Remove a version, and the files that no other has. Its number is not given again.

        Raises StoreError if it has an alias, which must be moved or taken away first, and for a
        name alone.
        """
        wanted = parse_reference(reference)
        with self._deleting() as connection:
            version = _removable(connection, wanted)
            rows.remove(connection, version)
        return version, self._clean()

    def remove_all(self, name: str) -> tuple[list[Version], Cleaned]:
        """Remove a model: all its versions, aliases too, and the files that no other model has."""
        wanted = Reference(check_name(name))
        with self._deleting() as connection:
            rows.find(connection, wanted)
            found = rows.versions_of(connection, name)
            for version in found:
                for alias in version.aliases:
                    rows.unpoint(connection, name, alias)
                rows.remove(connection, version)
        return found, self._clean()

    @contextmanager
    def _deleting(self) -> Iterator[Connection]:
        """Change the registry, leaving word for the next process if this one is killed before it
        has cleaned up.
        """
        with self._in_words():
            if self._registry.exists():
                with self._artifacts.held():
                    self._artifacts.leave_word()
            with self._changing() as connection:
                yield connection

    def _clean(self) -> Cleaned:
        with self._in_words(), self._artifacts.held(alone=True):
            return self._artifacts.clean(wanted=self._wanted())

    def _clean_after_kills(self) -> None:
        """Delete what a killed process left, unless another is at work, whose it may be."""
        if not self._artifacts.has_leftovers():
            return
        with self._in_words(), self._artifacts.held(alone=True, wait=False) as held:
            if held:
                self._artifacts.clean(wanted=self._wanted())

    def _wanted(self) -> set[str]:
        with reading(self._registry) as connection:
            return rows.wanted_files(connection)

    # --------------------------------------------------------------------------------------- inside

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """Change the registry; one that is not there is not made for a mistake."""
        change = writing if self._registry.exists() else reading
        with change(self._registry) as connection:
            yield connection

    @contextmanager
    def _in_words(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_said(error, what or f"the model store {self.folder}") from error


def _with_value(version: Version) -> str:
    return "" if version.value is None else f", {version.watch} {version.value:.4g}"


def _removable(connection: Connection, reference: Reference) -> Version:
    version = rows.find(connection, reference)
    if reference.is_newest:
        raise StoreError(
            f"which version of {reference}?",
            hint=f"name one, {version}, or all of them: {reference} --all",
        )
    if version.aliases:  # somebody counts on it
        alias = version.aliases[0]
        raise StoreError(
            f"{version} is {', '.join(f'@{name}' for name in version.aliases)}",
            hint=[
                f"give that to another first: ptrain models alias {version.name}:N {alias}",
                f"or take it away: ptrain models alias {version} {alias} --remove",
            ],
        )
    return version


def _version(
    packed: Packed,
    *,
    name: str,
    number: int,
    run: Path,
    weights: str,
    files: Mapping[str, Artifact],
    tags: Mapping[str, str],
) -> Version:
    return Version(
        name=name,
        number=number,
        created=now(),
        run=str(run.absolute()),
        step=packed.step,
        weights=weights,
        watch=packed.watch,
        mode=packed.mode,
        content=packed.content,
        metrics=packed.metrics,
        settings=packed.settings,
        about=packed.about,
        files=files,
        tags=tags,
        aliases=(),
    )


def _give_aliases(connection: Connection, version: Version, aliases: Sequence[str]) -> Registered:
    moved, not_best = {}, None
    for alias in aliases:
        holder = rows.pointed_at(connection, version.name, alias)
        if alias == BEST and holder is not None:
            rival = rows.find(connection, Reference(version.name, number=holder))
            if not version.is_better_than(rival):
                not_best = rival
                continue
        moved[alias] = rows.point(connection, alias, version)
    written = rows.find(connection, Reference(version.name, number=version.number))
    return Registered(written, moved=moved, not_best=not_best)
