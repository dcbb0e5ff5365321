"""Whether and from where a run is continued, and what has changed since."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from plugin_trainer.errors import CheckpointError, ResumeError, RunFolderError
from plugin_trainer.run_folder import METRICS, TRACEBACK, RunFolder, is_run
from plugin_trainer.settings import RunSettings
from plugin_trainer.settings.layers import read_toml
from plugin_trainer.settings.render import flatten
from plugin_trainer.settings.validation import unknown
from plugin_trainer.training.checkpointing.store import CheckpointStore, Found

# What a run writes: through a link it would write elsewhere.
_OWN = ("run.toml", "run.json", METRICS, TRACEBACK, "checkpoints", "assets", ".lock")
# What a run is called changes nothing about it.
_FREE = ("name",)
# What changes nothing about the steps that a run makes, only what is shown or kept of them.
_HARMLESS = ("keep", "log", "save", "test_split")
# What differs beside the settings.
_AROUND = ("plugins", "packages", "code", "content")
# What the bits of a result depend on.
_MACHINE = ("device", "accelerator", "processes", "threads", "precision")


@dataclass(frozen=True)
class Resumption:
    """A checkpoint to go on from.

    checkpoint   the newest sound one
    passed_over  why each newer one is not sound
    changed      the keys whose settings differ from those the run was started with
    differing    everything that differs, settings or not, one line each
    inexact      why what follows will not be what it would have been without the stop
    done         the run had ended by itself and its length is the same: there is nothing left to do
    """

    checkpoint: Found
    passed_over: tuple[str, ...]
    changed: tuple[str, ...]
    differing: tuple[str, ...]
    inexact: tuple[str, ...]
    done: bool = False


def find_resumption(
    disk: RunFolder,
    values: Mapping[str, Any],
    *,
    allow: Sequence[str],
    around: Mapping[str, Any],
    inexact_because: str,
) -> Resumption:
    """The checkpoint that a run with these settings goes on from.

    values  the settings of the run as a table
    allow   keys, or tables, whose settings may differ from those the run was started with; or
            "plugins", "packages", "code", "content"
    around  the run's surroundings, as run.json has them

    Raises ResumeError with every difference that is not allowed, and CheckpointError if checkpoints
    were written and none of them is whole.
    """
    _refuse_unknown(allow)
    found, passed_over = CheckpointStore(disk.path).newest_sound()
    about = disk.read_about()
    settings = differences(read_toml(disk.path / "run.toml").values, values)
    beside = surrounding_differences(about, around)
    if any(key.partition(".")[0] in ("data", "data_settings") for key in settings):
        # It goes without saying that other data holds something else.
        beside = {key: change for key, change in beside.items() if not key.startswith("content.")}
    changed = {**settings, **beside}
    refused = {key: change for key, change in changed.items() if not _allowed(key, allow)}
    if refused:
        flags = dict.fromkeys(_flag(key) for key in refused)
        raise ResumeError(
            f"the run has changed since {disk.path} was started",
            hint=[
                *(_line(key, change) for key, change in refused.items()),
                f"to go on with the new: {' '.join(f'--allow {flag}' for flag in flags)}",
            ],
        )
    if found is None:
        raise CheckpointError(
            f"no checkpoint of {disk.path} is sound",
            hint=[*passed_over, "to delete the run and start anew: --overwrite"],
        )
    machine = _differing(about.get("machine", {}), around["machine"], _MACHINE)
    inexact = [inexact_because] if inexact_because else []
    inexact += [f"{key} has changed" for key in changed if key not in _HARMLESS]
    inexact += [_line(f"machine.{key}", change) for key, change in machine.items()]
    return Resumption(
        found,
        passed_over=tuple(passed_over),
        changed=tuple(settings),
        differing=tuple(_line(key, change) for key, change in changed.items()),
        inexact=tuple(inexact),
        # The last checkpoint of a run that ended may be damaged: then its steps are made again.
        done=_has_ended(about, changed) and found.step >= about.get("step", 0),
    )


def _has_ended(about: Mapping[str, Any], changed: Collection[str]) -> bool:
    """Whether there is nothing left to do: what stopped a run may be what has changed."""
    status = about.get("status")
    if status == "stopped early":
        return all(key in _HARMLESS for key in changed)
    return status == "finished" and "length" not in changed


Change = tuple[str, str]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """Every dotted key whose value differs, with both values as text."""
    old, new = flatten(before), flatten(after)
    return {
        key: (_text(old.get(key)), _text(new.get(key)))
        for key in sorted(old.keys() | new.keys())
        if key not in _FREE and old.get(key) != new.get(key)
    }


def surrounding_differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Change]:
    """What differs in plugins, packages and code, under keys that begin with one of these."""
    changes: dict[str, Change] = {}
    for kind, old, new in (
        ("plugins", _plugins(before), _plugins(after)),
        ("packages", _packages(before), _packages(after)),
        ("code", before.get("code", {}), after["code"]),
        ("content", before.get("content", {}), after["content"]),
    ):
        for name, change in _differing(old, new, sorted(old)).items():
            changes[f"{kind}.{name}"] = change
    return changes


def _plugins(about: Mapping[str, Any]) -> dict[str, str]:
    return {
        plugin["name"]: " ".join(filter(None, (plugin["version"], plugin.get("code"))))
        for plugin in about.get("plugins", ())
        if plugin["origin"] != "core"
    }


def _packages(about: Mapping[str, Any]) -> dict[str, str]:
    own = {"plugin-trainer": about.get("ptrain"), "python": about.get("python")}
    return {**about.get("packages", {}), **{name: v for name, v in own.items() if v}}


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Change]:
    """Those of the names whose values differ. What was not written down before differs not."""
    return {
        name: _first_lines(str(old[name]), str(new.get(name, "(none)")))
        for name in names
        if name in old and old[name] != new.get(name)
    }


def _first_lines(old: str, new: str) -> Change:
    """The first line that differs, of each."""
    pairs = zip_longest(old.split("\n"), new.split("\n"), fillvalue="(no more)")
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    return one.strip(), other.strip()


def _line(key: str, change: Change) -> str:
    return f"{key}: {change[0]} -> {change[1]}"


def _text(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)


def _refuse_unknown(allow: Sequence[str]) -> None:
    known = {*(field.name for field in dataclasses.fields(RunSettings)), *_AROUND}
    for key in allow:
        if key.partition(".")[0] not in known:
            raise ResumeError(f"--allow {key}: {unknown(key, known, what='setting')}")


def _allowed(key: str, allow: Sequence[str]) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in allow)


def _flag(key: str) -> str:
    """How a difference is allowed: plugins, packages and code as a whole, a setting by its key."""
    kind = key.partition(".")[0]
    # A name within a key stands in quotes, which a shell would take away.
    return shlex.quote(kind if kind in _AROUND else key)


def open_folder(path: Path, *, occupied: bool) -> RunFolder:
    """The run folder, held.

    occupied  whether it may hold a run, to be resumed or overwritten

    Raises RunFolderError if it is in use, or holds what it may not hold.
    """
    _refuse_run(path, occupied=occupied)
    if path.is_dir() and not is_run(path) and any(_foreign(entry) for entry in path.iterdir()):
        raise RunFolderError(
            f"{path} is not empty and not a run folder", hint="choose another with --out"
        )
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file", hint="choose another with --out")
    for name in _OWN:
        if (path / name).is_symlink():
            raise RunFolderError(
                f"{path / name} is a link: a run folder holds its own files",
                hint="choose another with --out",
            )
        if not ((path / name).is_file() or (path / name).is_dir() or not (path / name).exists()):
            raise RunFolderError(f"{path / name} is no regular file", hint="delete it")  # a FIFO
    disk = RunFolder(path)
    disk.hold()
    try:
        _refuse_run(path, occupied=occupied)  # once more: it may have become a run meanwhile
    except RunFolderError:
        disk.release()
        raise
    disk.clean()
    CheckpointStore(path).clean()
    return disk


def has_saved(path: Path) -> bool:
    """Whether a run has written a checkpoint, sound or not: else there is nothing to resume."""
    return any((path / "checkpoints").glob("step-*"))


def refuse_overwriting(path: Path) -> None:
    """Raise RunFolderError for a folder that holds more than a run, or something else."""
    if Path.cwd().is_relative_to(path.resolve()):
        raise RunFolderError(
            f"{path} is not overwritten: the command was started in it",
            hint="choose another with --out",
        )
    if is_run(path) and not (path / "run.json").is_file():
        raise RunFolderError(
            f"{path} is not overwritten: it has a run.toml, but no run.json, which each run has",
            hint="choose another with --out",
        )


def _refuse_run(path: Path, *, occupied: bool) -> None:
    if is_run(path) and not occupied:
        raise RunFolderError(
            f"the run folder {path} is occupied",
            hint=[
                "to resume that run: --resume auto",
                "to start another one elsewhere: --out DIR",
                "to delete that run and start anew: --overwrite",
            ],
        )


def _foreign(entry: Path) -> bool:
    """What a run that was killed before it wrote run.toml leaves behind is not foreign."""
    left = (".lock", "assets", "run.json", TRACEBACK)
    return entry.name not in left and not entry.name.startswith(".run.")
