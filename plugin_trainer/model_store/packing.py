"""Of a run and one of its checkpoints, a run folder that can only answer: one set of weights,
without optimizer, random streams and the rest that training needs.

It is a third of the size, and is loaded, evaluated and predicted with like any run. Its weights are
its raw ones, also where they are the average of the run it is from, and so its metrics are val/...
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugin_trainer.files import fsync_file, read_object, sha256_of, write_json
from plugin_trainer.model_store.errors import StoreError
from plugin_trainer.run_assets import sound_assets
from plugin_trainer.run_folder import is_held
from plugin_trainer.settings.layers import read_toml

# Of several entries the library writes the order as it happens to be, and hashes would differ.
_ABOUT_TENSORS = {"format": "pt"}


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What was packed.

    content   a hash of the weights, and of the step and the kind they are of: the same for every
              packing of the same
    metrics   the evaluation of these weights
    settings  what run.toml says
    about     what run.json says, and the news
    """

    step: int
    content: str
    metrics: dict[str, float]
    watch: str
    mode: str
    settings: dict[str, Any]
    about: dict[str, Any]


def pack(
    run: Path, folder: Path, *, checkpoint: str, weights: str, news: Mapping[str, Any]
) -> Packed:
    """Pack a checkpoint of a run into an empty folder.

    checkpoint  "best", "last" or "step-N"; empty for the best, or the last if there is none
    weights     "raw" or "ema"
    news        what run.json does not say yet

    Raises CheckpointError if there is no such checkpoint or it is not sound.
    """
    from safetensors import SafetensorError

    from plugin_trainer.training.checkpointing.store import CheckpointStore

    store = CheckpointStore(run)
    settings = dict(read_toml(run / "run.toml").values)
    about = {**read_object(run / "run.json"), **news}

    def read() -> tuple[Path, Path, int, str, dict[str, float]]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a read that failed
        found = store.choose(checkpoint, weights=weights)
        small = folder / "checkpoints" / found.path.name
        small.mkdir(parents=True)
        state = json.loads((found.path / "state.json").read_text(encoding="utf-8"))
        metrics = _metrics(state, about, step=found.step, weights=weights)
        content = _write_weights(found.path, small, state, step=found.step, weights=weights)
        _write_state(small, state, step=found.step, metrics=metrics)
        _write_manifest(small, found.path, step=found.step)
        return found.path, small, found.step, content, metrics

    try:
        path, small, step, content, metrics = store.reading(read)
    except FileNotFoundError as error:
        raise _went_away(run) from error
    except SafetensorError as error:  # what the disk answered is in its text
        raise StoreError(f"the weights of {run} cannot be copied: {error}") from error
    best = settings.get("best", {})
    packed = Packed(
        step=step,
        content=content,
        metrics=metrics,
        watch=best.get("watch", "val/loss"),
        mode=best.get("mode", "min"),
        settings=settings,
        about=about,
    )
    _write_around(run, small, packed, weights=weights)
    _write_calibration(run, path, small, weights=weights)
    return packed


def _write_calibration(run: Path, checkpoint: Path, small: Path, *, weights: str) -> None:
    """What the run knows of the exits of these weights, under the key that they have here.

    No part of the content: the same weights may be calibrated again.
    """
    from plugin_trainer.early_exit.calibration import FILE, key_of

    known = read_object(run / FILE)
    key, new_key = key_of(checkpoint, weights), key_of(small, "raw")
    entries = {
        new_key + name.removeprefix(key): entry  # behind the key may stand a task's name
        for name, entry in known.items()
        if name == key or name.startswith(f"{key}/")
    }
    if entries:
        write_json(small.parents[1] / FILE, entries)


def _write_around(run: Path, small: Path, packed: Packed, *, weights: str) -> None:
    """What makes a run folder of the folder that has the checkpoint."""
    from plugin_trainer.training.checkpointing.store import CheckpointStore

    folder = small.parents[1]
    was = {"step": packed.step, "watch": packed.watch, "value": packed.metrics.get(packed.watch)}
    for pointer in ("best", "latest"):
        CheckpointStore(folder).point(pointer, small, **was)
    if assets := sound_assets(run):
        shutil.copytree(assets, folder / "assets", copy_function=shutil.copyfile)
    shutil.copyfile(run / "run.toml", folder / "run.toml")
    best = {"raw": {**was, "checkpoint": small.name}} if was["value"] is not None else {}
    changed = {"weights_only": weights, "metrics": packed.metrics, "best": best}
    write_json(folder / "run.json", {**packed.about, **changed})


def _write_weights(
    checkpoint: Path, small: Path, state: Mapping[str, Any], *, step: int, weights: str
) -> str:
    """The model's weights, and the tensors that its modules keep beside them; a hash of it all."""
    import safetensors.torch
    from safetensors import safe_open

    from plugin_trainer.training.checkpointing.store import read_weights

    tensors = read_weights(checkpoint, weights=weights)
    own = {name: tensor for name, tensor in tensors.items() if name not in state["aliases"]}
    safetensors.torch.save_file(own, small / "model.safetensors", metadata=_ABOUT_TENSORS)
    safetensors.torch.save_file({}, small / "optimizer.safetensors", metadata=_ABOUT_TENSORS)
    rest = {}
    if (checkpoint / "extra.safetensors").is_file():
        with safe_open(checkpoint / "extra.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith("/model_extra/")]  # noqa: SIM118
            rest = {name: file.get_tensor(name) for name in names}
    if rest:
        safetensors.torch.save_file(rest, small / "extra.safetensors", metadata=_ABOUT_TENSORS)
    hashes = {path.name: sha256_of(path) for path in small.iterdir()}
    same = [step, weights, hashes, state["aliases"], state["state"]["model_extra"]]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _write_state(
    small: Path, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]
) -> None:
    from plugin_trainer.training.checkpointing.state_codec import encode
    from plugin_trainer.training.checkpointing.store import FORMAT

    kept = {"model_extra": state["state"]["model_extra"], "metrics": encode(metrics, {})}
    write_json(
        small / "state.json",
        {"format": FORMAT, "step": step, "aliases": state["aliases"], "state": kept},
    )


def _write_manifest(small: Path, checkpoint: Path, *, step: int) -> None:
    from plugin_trainer.training.checkpointing.store import FORMAT

    files = {}
    for path in sorted(small.iterdir()):
        fsync_file(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    torch = read_object(checkpoint / "manifest.json").get("torch", "")
    write_json(
        small / "manifest.json", {"format": FORMAT, "step": step, "torch": torch, "files": files}
    )


def _metrics(
    state: Mapping[str, Any], about: Mapping[str, Any], *, step: int, weights: str
) -> dict[str, float]:
    """What was measured of these weights, as of raw ones: val_ema/loss is val/loss here."""
    from plugin_trainer.training.checkpointing.state_codec import decode

    measured = dict(decode(state["state"]["metrics"], {}))
    # The test split is scored when a run ends, with its best weights, or the last if none is best.
    best = about.get("best", {}).get(weights)
    if step == (best["step"] if best else about.get("step")):
        known = about.get("metrics", {})
        measured.update({name: known[name] for name in known if name.startswith("test")})
    found = {}
    for name, value in measured.items():
        split, slash, rest = name.partition("/")
        if split.endswith("_ema") == (weights == "ema"):
            found[f"{split.removesuffix('_ema')}{slash}{rest}"] = float(value)
    return found


def _went_away(run: Path) -> StoreError:
    hint = "the run goes on and has newer ones: try again" if is_held(run) else ()
    return StoreError(f"a checkpoint of {run} was deleted while it was read", hint=hint)
