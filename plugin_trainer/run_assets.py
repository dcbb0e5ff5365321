"""What a run keeps beside its weights, tokenizer and labels among it: on disk, and whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugin_trainer.errors import RunFolderError
from plugin_trainer.files import fsync_file, fsync_folder, read_object, sha256_of

_KEY = "assets"


def seal(folder: Path) -> dict[str, Any]:
    """Make the assets in a folder last; what run.json says of them: the hash of each file."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
        else:
            fsync_file(path)
            hashes[path.relative_to(folder).as_posix()] = sha256_of(path)
    fsync_folder(folder)
    return {_KEY: hashes}


def sound_assets(run: Path) -> Path | None:
    """The folder of a run's assets; None if it has none.

    Raises RunFolderError for a link, and for a file that is missing or has changed since the run
    began. A run of before there were hashes is taken as it is.
    """
    folder = run / "assets"
    if not folder.is_dir():
        return None
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise RunFolderError(
                f"{path} is a link: a run folder holds its own files",
                hint="put the file itself there",
            )
    hashes = read_object(run / "run.json").get(_KEY)
    if hashes is None:
        return folder
    if not isinstance(hashes, dict):
        raise RunFolderError(
            f"{run / 'run.json'}: {_KEY} is no table", hint="copy the whole run folder again"
        )
    present = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()
    }
    if stray := sorted(present.keys() - hashes.keys()):
        raise RunFolderError(f"{folder / stray[0]} is no asset of this run", hint="delete it")
    for name, sha256 in hashes.items():
        path = folder / name
        if name not in present or not path.is_file():
            raise RunFolderError(f"{path} is missing", hint="copy the whole run folder again")
        if sha256_of(path) != sha256:
            raise RunFolderError(
                f"{path} has changed since the run began", hint="copy the whole run folder again"
            )
    return folder
