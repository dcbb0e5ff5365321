"""Checkpoints on disk: folders of safetensors and JSON that are either complete or do not count.

    checkpoints/step-00000500/   model.safetensors  ema.safetensors  optimizer.safetensors
                                 extra.safetensors  state.json  manifest.json
    checkpoints/latest.json  best.json  best_ema.json      {"checkpoint": "step-00000500", ...}

Of a sharded model each process writes its own rows: in place of model.safetensors there is a folder
model of several such files, and the same for ema and optimizer. What reads a checkpoint reads both.

A checkpoint is written into a hidden folder beside its place, every file fsynced, the sizes and
hashes put into manifest.json last, and then renamed. A folder without a manifest that fits is no
checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from plugin_trainer.errors import CheckpointError
from plugin_trainer.files import (
    fsync_file,
    fsync_folder,
    os_errors,
    read_json,
    read_object,
    sha256_of,
    write_json,
)
from plugin_trainer.training.checkpointing.state_codec import decode, encode
from plugin_trainer.training.distributed.sharding.files import (
    described,
    read_shards_into,
    read_whole,
    write_shards,
)
from plugin_trainer.training.distributed.sharding.tensors import (
    empty_like,
    is_sharded,
    local_part,
    part_of,
)

FORMAT = 1
Read = TypeVar("Read")
_READS = 100  # of a run that saves all the time, one in ten fails
_ALWAYS = {
    "whole": {"model.safetensors", "optimizer.safetensors", "state.json"},
    "sharded": {"state.json"},
}
_SETS = ("model", "ema", "optimizer")
_NAME = re.compile(r"step-(\d{8,})")


@dataclass
class Snapshot:
    """Everything a run is at one step, in memory.

    model, ema, optimizer  tensors by name; `ema` is None for a run without an average. Of a sharded
                           model they are sharded tensors, in all processes
    state                  all the rest: nested values, tensors among them
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def is_sharded(self) -> bool:
        """Whether a process holds only a part of it."""
        return any(map(is_sharded, self.model.values()))


@dataclass(frozen=True)
class Found:
    """A complete checkpoint on disk."""

    path: Path
    step: int


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, run_folder: Path, *, keep: int | Literal["all"] = "all") -> None:
        self.folder = run_folder / "checkpoints"
        self._keep = keep

    # -------------------------------------------------------------------------------- writing

    def save(self, snapshot: Snapshot, *, step: int) -> Path:
        """Write a checkpoint and commit it, in one process.

        Raises OSError if the disk refuses; then nothing is left.
        """
        beside = self.begin(step)
        try:
            if snapshot.is_sharded:
                write_own_shards(snapshot, beside)
            write_rest(snapshot, beside, step=step)
            return self.commit(beside, step)
        except BaseException:
            self.abandon(beside)
            raise

    def begin(self, step: int) -> Path:
        """Make the hidden folder into which a checkpoint is written, for `commit` or `abandon`.

        Of several processes the first calls it, and `commit` and `abandon` too. Into the folder,
        which all must see, each writes its `write_own_shards`, and the first its `write_rest`.
        """
        beside = self.folder / f".{name_of(step)}.tmp-{os.getpid()}"
        self.abandon(beside)
        beside.mkdir(parents=True)
        return beside

    def commit(self, beside: Path, step: int) -> Path:
        """Let what was written be the checkpoint of a step: all at once, or not at all."""
        place = self.path_of(step)
        _write_manifest(beside, step=step)
        _put_in_place(beside, place)
        self.point("latest", place, step=step)
        return place

    def abandon(self, beside: Path) -> None:
        """Leave nothing of what was written."""
        shutil.rmtree(beside, ignore_errors=True)

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step stands, or will."""
        return self.folder / name_of(step)

    def point(self, pointer: str, checkpoint: Path, **about: Any) -> None:
        """Let a pointer name a checkpoint, relative to the folder, so that the run can be moved."""
        write_json(self.folder / f"{pointer}.json", {"checkpoint": checkpoint.name, **about})

    def point_again(self, pointer: str, checkpoint: Path, **about: Any) -> None:
        """Move a pointer that a kill left behind, between a checkpoint's commit and the move."""
        there = self.pointer(pointer) or {}
        if there.get("checkpoint") != checkpoint.name:
            self.point(pointer, checkpoint, **about)

    def clean(self) -> None:
        """Remove what killed processes left half-written. Only with the run folder's lock held."""
        for old in self.folder.glob(".step-*.tmp-old-*"):
            place = self.folder / old.name[1:].partition(".")[0]
            if not place.exists():  # killed between moving it away and moving its successor in
                old.rename(place)
        for left in self.folder.glob(".*.tmp-*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()

    def prune(self) -> None:
        """Delete all but the newest `keep` checkpoints; the latest and the best are never
        deleted.
        """
        if self._keep == "all":
            return
        safe = {pointer["checkpoint"] for pointer in map(self.pointer, POINTERS) if pointer}
        for name in self._names()[: -self._keep]:
            if name not in safe:
                # Out of sight in one step: who reads it must not take what is left for damage.
                gone = self.folder / f".{name}.tmp-gone-{os.getpid()}"
                with suppress(OSError):
                    (self.folder / name).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    # -------------------------------------------------------------------------------- finding

    def pointer(self, name: str) -> dict[str, Any] | None:
        """What a pointer says, or None if there is none."""
        value = read_object(self.folder / f"{name}.json")
        place = value.get("checkpoint")
        return value if isinstance(place, str) and _NAME.fullmatch(place) else None

    def find(self, which: str) -> Found:
        """The checkpoint called best, best_ema, last or step-N, verified.

        Raises CheckpointError, listing what there is, if it is missing or not sound.
        """
        if which == "last":
            newest = self.newest_sound()
            if newest[0] is not None:
                return newest[0]
            raise CheckpointError(f"there is no sound checkpoint in {self.folder}", hint=newest[1])
        if which in ("best", "best_ema"):
            pointer = self.pointer(which)
            if pointer is None:
                raise CheckpointError(
                    f"there is no {which} checkpoint in {self.folder}", hint=self._listing()
                )
            name = pointer["checkpoint"]
        else:
            number = re.fullmatch(r"(?:step-)?(\d+)", which)
            if number is None:
                raise CheckpointError(
                    f"'{which}' is not a checkpoint", hint="write best, best_ema, last or step-N"
                )
            name = name_of(int(number[1]))
        path = self.folder / name
        if not path.is_dir():
            raise CheckpointError(f"there is no checkpoint {path}", hint=self._listing())
        verify(path)
        return Found(path, step_of(path))

    def choose(self, which: str, *, weights: str) -> Found:
        """What a user calls best, last or step-N, for a weight set; the best, else the last, if
        nothing is said. Raises as `find` does.
        """
        best = "best" if weights == "raw" else "best_ema"
        if which:
            return self.find(best if which == "best" else which)
        return self.find(best if self.pointer(best) is not None else "last")

    def reading(self, read: Callable[[], Read]) -> Read:
        """What `read` gives, read again where what it read was gone and checkpoints have come or
        gone meanwhile: a run that trains deletes its old ones.

        Raises as `read` does.
        """
        for _ in range(_READS):
            names = self._names()
            try:
                return read()
            except (OSError, SafetensorError, CheckpointError) as error:
                if _refused(error) or self._names() == names:
                    raise
        return read()

    def newest_sound(self) -> tuple[Found | None, list[str]]:
        """The newest checkpoint whose files are whole, and why each newer one was passed over."""
        passed_over = []
        for name in reversed(self._names()):
            path = self.folder / name
            try:
                verify(path)
            except CheckpointError as error:
                passed_over.append(error.message)
                continue
            return Found(path, step_of(path)), passed_over
        return None, passed_over

    def _names(self) -> list[str]:
        try:
            names = [path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error.strerror}") from None
        return sorted(names, key=lambda name: int(name.removeprefix("step-")))

    def _listing(self) -> str:
        names = self._names()
        return f"there are: {', '.join(names)}" if names else "there is none at all"


def _refused(error: Exception) -> bool:
    """Whether a disk refused what was asked, which another try would not change."""
    if not isinstance(error, OSError):
        return False
    return not (isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE)


POINTERS = ("latest", "best", "best_ema")


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


# ---------------------------------------------------------------------------------------- content


def write_own_shards(snapshot: Snapshot, folder: Path, *, group: Any = None) -> None:
    """Write this process's rows of a sharded snapshot; all processes of the group call it.

    Raises OSError in all of them if the disk of one refuses.
    """
    model, _ = _without_aliases(snapshot.model)
    for name, tensors in zip(_SETS, (model, snapshot.ema, snapshot.optimizer), strict=True):
        if tensors is not None:
            (folder / name).mkdir(exist_ok=True)
            write_shards(tensors, folder / name, group=group)


def write_rest(snapshot: Snapshot, folder: Path, *, step: int) -> None:
    """Write what is not sharded: all of a whole snapshot, the state of a sharded one."""
    extra: dict[str, Tensor] = {}
    state = encode(snapshot.state, extra)
    model, aliases = _without_aliases(snapshot.model)
    if not snapshot.is_sharded:
        _write_tensors(folder / "model.safetensors", model)
        if snapshot.ema is not None:
            _write_tensors(folder / "ema.safetensors", snapshot.ema)
        _write_tensors(folder / "optimizer.safetensors", snapshot.optimizer)
    if extra:
        _write_tensors(folder / "extra.safetensors", extra)
    text = json.dumps({"format": FORMAT, "step": step, "aliases": aliases, "state": state})
    (folder / "state.json").write_text(text + "\n", encoding="utf-8")


def _write_manifest(folder: Path, *, step: int) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
            continue
        fsync_file(path)
        files[path.relative_to(folder).as_posix()] = {
            "size": path.stat().st_size,
            "sha256": sha256_of(path),
        }
    manifest = {
        "format": FORMAT,
        "layout": "sharded" if (folder / "model").is_dir() else "whole",
        "step": step,
        "torch": torch.__version__,
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # A copy of its own for each: safetensors refuses tensors that share memory or are not
    # contiguous.
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in whole.items():
        memory = tensor.untyped_storage().data_ptr()
        if tensor.numel() and memory in seen:
            whole[name] = tensor.clone()
        seen.add(memory)
    with os_errors(path):
        # One key: several would come in any order, and the hashes of equal files differ.
        safetensors.torch.save_file(whole, path, metadata={"format": "pt"})
    # The library makes its files readable by the owner alone; a user's umask says who may read.
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _without_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tied weights once, and the other names they go by: alias -> name."""
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # A process without a row of a sharded tensor has memory for one still, and so all processes
        # find the same.
        local = local_part(tensor)
        memory = (local.untyped_storage().data_ptr(), local.storage_offset())
        where = (tensor.device, *memory, tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and where in first:
            aliases[name] = first[where]
        else:
            first[where] = name
            kept[name] = tensor
    return kept, aliases


def _put_in_place(beside: Path, place: Path) -> None:
    fsync_folder(beside)
    if place.exists():
        # A folder of this name that no resume took up: not sound, or from a run that was set back.
        old = beside.with_name(f".{place.name}.tmp-old-{os.getpid()}")
        place.rename(old)
        beside.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        beside.rename(place)
    fsync_folder(place.parent)


def verify(checkpoint: Path) -> None:
    """Check every file against the manifest. Raises CheckpointError naming the first that does not
    fit or cannot be read.
    """
    try:
        _verify(checkpoint)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # too many open files: of the process's
            raise
        place = error.filename or checkpoint
        raise CheckpointError(f"{place} cannot be read: {error.strerror}") from None


def _verify(checkpoint: Path) -> None:
    files = _read_manifest(checkpoint)
    # A stray file or folder would be read: an empty `ema`, say, has no weights of the average.
    expected = {"manifest.json", *files, *(name.rpartition("/")[0] for name in files)}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if name not in expected:
            raise CheckpointError(f"{checkpoint} is not sound: {name} is not in its manifest")
    for name, (size, sha256) in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} is not sound: {name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{checkpoint} is not sound: {name} has {path.stat().st_size} bytes "
                f"in place of {size}"
            )
        if sha256_of(path) != sha256:
            raise CheckpointError(f"{checkpoint} is not sound: the hash of {name} does not fit")


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """The size and the hash that each file of a checkpoint should have."""
    if not (checkpoint / "manifest.json").is_file():
        raise CheckpointError(f"{checkpoint} has no manifest: it was never completed")
    try:
        manifest = read_json(checkpoint / "manifest.json")
        version = int(manifest["format"])
        files = {
            str(name): (int(file["size"]), str(file["sha256"]))
            for name, file in manifest["files"].items()
        }
        always = _ALWAYS[manifest.get("layout", "whole")]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{checkpoint} is not sound: its manifest is broken") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{checkpoint} has format {version}; this ptrain reads {FORMAT}",
            hint="upgrade plugin-trainer",
        )
    if not files.keys() >= always or not all(map(_is_inside, files)):
        raise CheckpointError(f"{checkpoint} is not sound: its manifest names other files")
    return files


def _is_inside(name: str) -> bool:
    """Whether a checkpoint may have a file of this name."""
    folder, slash, file = name.rpartition("/")
    return Path(file).name == file and (folder in _SETS if slash else True)


def read_weights(checkpoint: Path, *, weights: str) -> dict[str, Tensor]:
    """The full state of the model, tied names included, with its raw or its EMA weights.

    Raises CheckpointError if the checkpoint has no EMA weights.
    """
    tensors = _read_set(checkpoint, "model")
    if weights == "ema":
        if not _has_set(checkpoint, "ema"):
            raise CheckpointError(
                f"{checkpoint} holds no EMA weights",
                hint="the run had no [ema]: use the raw ones",
            )
        average = _read_set(checkpoint, "ema")
        tensors = {
            name: average[name].to(tensor.dtype) if name in average else tensor
            for name, tensor in tensors.items()
        }
    aliases = _read_state_file(checkpoint)["aliases"]
    tensors.update({alias: tensors[name] for alias, name in aliases.items()})
    return tensors


def read_model_state(checkpoint: Path, *, weights: str) -> dict[str, Any]:
    """What the model's `load_state_dict` takes: its weights, and what modules add as extra state.

    Raises CheckpointError if the checkpoint has no EMA weights.
    """
    extra = _read_state(checkpoint)["model_extra"]
    return {**read_weights(checkpoint, weights=weights), **extra}


def read_snapshot(checkpoint: Path) -> Snapshot:
    """Everything that was saved, whole, on the CPU. The checkpoint must have been verified."""
    return Snapshot(
        model=read_weights(checkpoint, weights="raw"),
        ema=_read_set(checkpoint, "ema") if _has_set(checkpoint, "ema") else None,
        optimizer=_read_set(checkpoint, "optimizer"),
        state=_read_state(checkpoint),
    )


def read_own_shards(checkpoint: Path, model: nn.Module, *, group: Any = None) -> Snapshot:
    """Everything that was saved, of a sharded model's tensors this process's rows.

    The checkpoint may be whole, or of any number of processes; all processes of the group call it.
    What is not in the model, or of another shape there, comes whole. It must have been verified.
    """
    own = {name: value for name, value in model.state_dict().items() if is_sharded(value)}
    read = partial(_read_own, checkpoint, own, group=group)
    tensors = read("model")
    aliases = _read_state_file(checkpoint)["aliases"]
    tensors.update({alias: tensors[name] for alias, name in aliases.items()})
    return Snapshot(
        model=tensors,
        ema=read("ema") if _has_set(checkpoint, "ema") else None,
        optimizer=read("optimizer"),
        state=_read_state(checkpoint),
    )


def _read_own(
    checkpoint: Path, own: Mapping[str, Tensor], which: str, *, group: Any
) -> dict[str, Tensor]:
    def like(name: str, shape: torch.Size) -> Tensor | None:
        name = name.rpartition("/")[0] if which == "optimizer" else name
        return own[name] if name in own and own[name].shape == shape else None

    tensors: dict[str, Tensor] = {}
    if (checkpoint / which).is_dir():
        for name, (shape, dtype) in described(checkpoint / which).items():
            its = like(name, shape)
            tensors[name] = (
                torch.empty(shape, dtype=dtype) if its is None else empty_like(its, dtype=dtype)
            )
        read_shards_into(tensors, checkpoint / which, group=group)
        return tensors
    with safe_open(checkpoint / f"{which}.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            whole = file.get_tensor(name)
            its = like(name, whole.shape)
            tensors[name] = whole if its is None else part_of(whole, its)
    return tensors


def _has_set(checkpoint: Path, which: str) -> bool:
    return (checkpoint / which).is_dir() or (checkpoint / f"{which}.safetensors").is_file()


def _read_set(checkpoint: Path, which: str) -> dict[str, Tensor]:
    """The model's, the average's or the optimizer's tensors, whole."""
    if (checkpoint / which).is_dir():
        return read_whole(checkpoint / which)
    return safetensors.torch.load_file(checkpoint / f"{which}.safetensors")


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """All that is saved beside the weights and the optimizer's tensors."""
    path = checkpoint / "extra.safetensors"
    extra = safetensors.torch.load_file(path) if path.is_file() else {}
    state: dict[str, Any] = decode(_read_state_file(checkpoint)["state"], extra)
    return state


def _read_state_file(checkpoint: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return value
