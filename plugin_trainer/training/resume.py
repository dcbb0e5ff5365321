"""Whether and from where a run is continued, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugin_trainer.errors import CheckpointError, ResumeError, RunFolderError
from plugin_trainer.settings.layers import read_toml
from plugin_trainer.settings.render import flatten
from plugin_trainer.training.checkpoints import CheckpointStore, Found
from plugin_trainer.training.run_folder import RunFolder, is_run

# What a run is called changes nothing about it.
_FREE = ("name",)


@dataclass(frozen=True)
class Resumption:
    """A checkpoint to go on from.

    changed  the keys whose settings differ from those the run was started with
    notices  what the user should know, one line each
    done     the run had ended by itself and its length is the same: there is nothing left to do
    """

    checkpoint: Found
    changed: tuple[str, ...]
    notices: tuple[str, ...]
    done: bool = False


def find_resumption(
    disk: RunFolder, values: Mapping[str, Any], *, allow: Sequence[str], inexact_because: str
) -> Resumption | None:
    """The checkpoint that a run with these settings goes on from; None if none was written yet.

    values  the settings of the run as a table
    allow   keys, or tables, whose settings may differ from those the run was started with

    Raises ResumeError with every difference that is not allowed, and CheckpointError if checkpoints
    were written and none of them is whole.
    """
    found, passed_over = CheckpointStore(disk.path).newest_sound()
    changed = differences(read_toml(disk.path / "run.toml").values, values)
    refused = {key: change for key, change in changed.items() if not _allowed(key, allow)}
    if refused:
        raise ResumeError(
            f"the settings differ from those that {disk.path} was started with",
            hint=[
                *(f"{key}: {before} -> {after}" for key, (before, after) in refused.items()),
                f"to go on with the new ones: {' '.join(f'--allow {key}' for key in refused)}",
            ],
        )
    if found is None:
        if passed_over:
            raise CheckpointError(f"no checkpoint of {disk.path} is sound", hint=passed_over)
        return None
    notices = [f"passed over: {reason}" for reason in passed_over]
    notices += [f"{key}: {before} -> {after}" for key, (before, after) in changed.items()]
    if inexact_because:
        notices.append(f"resuming is not exact: {inexact_because}")
    ended = disk.read_about().get("status") in ("finished", "stopped early")
    return Resumption(found, tuple(changed), tuple(notices), done=ended and "length" not in changed)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Every dotted key whose value differs, with both values as text."""
    old, new = flatten(before), flatten(after)
    return {
        key: (_text(old.get(key)), _text(new.get(key)))
        for key in sorted(old.keys() | new.keys())
        if key not in _FREE and old.get(key) != new.get(key)
    }


def _text(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)


def _allowed(key: str, allow: Sequence[str]) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in allow)


def open_folder(path: Path, *, resume: bool) -> RunFolder:
    """The run folder, held. Raises RunFolderError if it is in use, or occupied and not to be
    resumed.
    """
    _refuse_occupied(path, resume=resume)
    if path.is_dir() and not is_run(path) and any(_foreign(entry) for entry in path.iterdir()):
        raise RunFolderError(
            f"{path} is not empty and not a run folder", hint="choose another with --out"
        )
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file", hint="choose another with --out")
    disk = RunFolder(path)
    disk.hold()
    try:
        _refuse_occupied(path, resume=resume)  # once more: it may have become a run meanwhile
    except RunFolderError:
        disk.release()
        raise
    CheckpointStore(path).clean()
    return disk


def _refuse_occupied(path: Path, *, resume: bool) -> None:
    if is_run(path) and not resume:
        raise RunFolderError(
            f"the run folder {path} is occupied",
            hint=["to go on with that run: --resume auto", "to start another: --out DIR"],
        )


def _foreign(entry: Path) -> bool:
    """What a run that was killed before it wrote run.toml leaves behind is not foreign."""
    return entry.name not in (".lock", "assets") and not entry.name.startswith(".run.")
