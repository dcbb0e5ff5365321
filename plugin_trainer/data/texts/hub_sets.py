"""A data set of the `datasets` library: from the Hub, from a folder, or a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from plugin_trainer.data.texts import hub
from plugin_trainer.data.texts.columns import suggestion
from plugin_trainer.data.texts.pretrained import locate
from plugin_trainer.errors import DataError, MissingExtra

SAVED_FILES = ("dataset_dict.json", "state.json")
"""One of these says that a folder was written by `save_to_disk`."""


def library(*, needed_by: str) -> Any:
    """The `datasets` package, imported now. Raises MissingExtra if it is not installed."""
    spec = find_spec("datasets")
    if spec is None or spec.origin is None:  # without an origin it is just a folder of that name
        raise MissingExtra(
            f"{needed_by} needs the package datasets",
            hint="install it: pip install datasets",
        )
    return import_module("datasets")


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Without the bars that `datasets` draws while it reads files."""
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def offline(datasets: Any) -> Iterator[None]:
    """With the Hub left alone: what is cached is used, and nothing is tried again and again."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def open_parquet(path: Path, *, key: str, streaming: bool) -> Any:
    """The rows of a Parquet file. Raises DataError, which names the setting `key`."""
    datasets = library(needed_by=f"{key}: {path}")
    if not path.is_file():
        raise DataError(f"{key}: {path} is not there", hint=f"looked at {path.absolute()}")
    try:
        with quiet(datasets):
            return datasets.load_dataset(
                "parquet", data_files=str(path), split="train", streaming=streaming
            )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{key}: {path} is no Parquet file that can be read", hint=root_cause(error)
        ) from error


@dataclass(frozen=True)
class DataSet:
    """A data set as a settings table asks for it.

    name       a Hub id, or a folder: of data files, or written by `save_to_disk`
    streaming  nothing is downloaded or converted as a whole: the splits are iterated
    table      the settings table, for the messages
    """

    name: str
    subset: str = ""
    revision: str = ""
    streaming: bool = False
    table: str = "data_settings"

    @property
    def key(self) -> str:
        """The dotted setting that names it."""
        return f"{self.table}.dataset"


def open_splits(asked: DataSet) -> Mapping[str, Any]:
    """The splits of a data set by name, read lazily.

    Raises DataError if the data set or its subset cannot be had.
    """
    name = asked.name
    datasets = library(needed_by=f"{asked.key} = {name!r}")
    source = locate(name, key=asked.key)
    folder = Path(source)
    if any((folder / file).is_file() for file in SAVED_FILES):
        return saved_splits(datasets, folder, asked)
    if folder.is_dir():
        return loaded_splits(datasets, source, replace(asked, revision=""))
    if why := hub.why_unreachable():
        if asked.revision:
            raise DataError(
                f"{asked.table}.revision: {name} could not be had from the Hugging Face Hub, "
                f"{constants.ENDPOINT}: {why}",
                hint="its cache does not tell revisions apart: be online, or leave the revision "
                "out to take what is cached",
            )
        try:
            with offline(datasets):
                return loaded_splits(datasets, source, asked)
        except DataError as error:
            if isinstance(error.__cause__, ConnectionError):
                instead = f"files ({asked.table}.train = ...), or a folder of them"
                raise hub.unreachable(name, key=asked.key, why=why, instead=instead) from error
            raise
    return loaded_splits(datasets, source, asked)


def saved_splits(datasets: Any, folder: Path, asked: DataSet) -> Mapping[str, Any]:
    """The splits that `save_to_disk` wrote; a data set without splits is its `train`."""
    if asked.subset:
        raise DataError(
            f"{asked.table}.subset: {folder} was written by save_to_disk and has no subsets",
            hint=f"leave {asked.table}.subset out",
        )
    try:
        found: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{asked.key}: {folder} cannot be read", hint=root_cause(error)) from error
    splits = found if isinstance(found, Mapping) else {"train": found}
    if not asked.streaming:
        return splits
    return {split: rows.to_iterable_dataset() for split, rows in splits.items()}


def loaded_splits(datasets: Any, source: str, asked: DataSet) -> Mapping[str, Any]:
    """The splits that `load_dataset` finds."""
    try:
        with quiet(datasets):
            splits: Mapping[str, Any] = datasets.load_dataset(
                source,
                asked.subset or None,
                revision=asked.revision or None,
                streaming=asked.streaming,
            )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise not_found(source, error, asked) from error
    except ConnectionError as error:
        raise DataError(
            f"{asked.key}: {source} cannot be fetched", hint=root_cause(error)
        ) from error
    except Exception as error:  # whatever a builder raises over the files it finds
        check_subset(datasets, source, asked)
        raise DataError(f"{asked.key}: {source} cannot be read", hint=root_cause(error)) from error
    return splits


def not_found(source: str, error: Exception, asked: DataSet) -> DataError:
    """The error for a data set or a revision that the Hub does not have, or does not show."""
    said = root_cause(error)
    if "revision" in said.lower():
        return DataError(
            f"{asked.table}.revision: {said}", hint="give a branch, a tag or a commit of it"
        )
    return DataError(
        f"{asked.key}: there is no data set {source} on {constants.ENDPOINT}, or it is not public",
        hint=(said, "check the spelling; for a private or gated one, log in: hf auth login"),
    )


def check_subset(datasets: Any, source: str, asked: DataSet) -> None:
    """Raise DataError, which lists the subsets, if it is the subset that is wrong."""
    subset = asked.subset
    try:
        known = datasets.get_dataset_config_names(source, revision=asked.revision or None)
    except Exception:  # then it was not the subset
        return
    shown = f"subsets: {', '.join(known)}"
    if subset and subset not in known:
        raise DataError(
            f"{asked.table}.subset: {source} has no subset {subset!r}"
            f"{suggestion(subset, known=known)}",
            hint=shown,
        )
    if not subset and len(known) > 1:
        raise DataError(f"{asked.table}.subset is not set, and {source} has several", hint=shown)


def pick_split(splits: Mapping[str, Any], spec: str, *, name: str, key: str) -> Any:
    """One split, or a part of one such as train[:10%], as `datasets` writes it.

    key  the dotted setting that asks for it. Raises DataError, which lists the splits.
    """
    if spec in splits:
        return splits[spec]
    shown = f"splits: {', '.join(splits)}"
    if "[" in spec and not all(hasattr(split, "__len__") for split in splits.values()):
        raise DataError(f"{key}: a part of a split, {spec}, cannot be streamed", hint=shown)
    datasets = library(needed_by=key)
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(
            {split: len(rows) for split, rows in splits.items() if hasattr(rows, "__len__")}
        )
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{key}: {name} has no split {spec!r}{suggestion(spec, known=splits)}", hint=shown
        ) from error
    return datasets.concatenate_datasets(
        [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )


def root_cause(error: BaseException) -> str:
    """The first line of what the innermost of a chain of errors says."""
    while (inner := error.__cause__) is not None:
        error = inner
    return str(error).strip().partition("\n")[0] or type(error).__name__
