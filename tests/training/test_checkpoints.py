"""A checkpoint is whole or does not count, holds everything without a pickle, and is kept."""

from __future__ import annotations

import errno
import json
import os
import pickletools
import re
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from plugin_trainer.errors import CheckpointError
from plugin_trainer.training.checkpointing.store import (
    CheckpointStore,
    Snapshot,
    name_of,
    read_model_state,
    read_snapshot,
    read_weights,
    step_of,
    verify,
)
from plugin_trainer.training.optim.ema import Ema


def snapshot(model=None, *, ema=None, optimizer=None, **state) -> Snapshot:
    weights = {"w": torch.ones(2)} if model is None else model
    return Snapshot(weights, ema, optimizer or {}, state)


def bytes_of(tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


# ------------------------------------------------------------------------------------- durability


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is synced is not told")
def test_all_is_on_disk_before_a_checkpoint_takes_its_place_and_so_is_its_place(store, monkeypatch):
    """A loss of power may undo whatever was not synced: the files, their names, the new name."""
    done, fsync, rename = [], os.fsync, os.rename

    def noted_fsync(descriptor):
        done.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def noted_rename(source, target, **options):
        done.append(("rename", str(target)))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    path = store.save(snapshot(optimizer={"m": torch.ones(1)}), step=1)
    placed = done.index(("rename", str(path)))
    synced = [
        re.sub(r"^\.(.+)\.tmp-.*", r"\1", Path(name).name)  # what is written beside, then renamed
        for kind, name in done[:placed]
        if kind == "sync"
    ]
    assert {file.name for file in path.iterdir()} <= set(synced)
    assert synced[-1] == path.name  # the folder, when all names are in it
    assert done[placed + 1] == ("sync", str(path.parent))


# --------------------------------------------------------------------------------------- round trip


def test_every_kind_of_tensor_comes_back_bit_by_bit(store):
    model = {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).t(),
        "every_second": torch.arange(10)[::2],
        "expanded": torch.ones(1).expand(5),
        "view": torch.arange(6.0)[2:4],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "bfloat16": torch.randn(3).bfloat16(),
        "float16": torch.randn(3).half(),
        "float64": torch.randn(3).double(),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([2**62]),
        "uint8": torch.tensor([255], dtype=torch.uint8),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    found = read_snapshot(store.save(snapshot(model, optimizer=dict(model)), step=1))
    for tensors in (found.model, found.optimizer):
        assert tensors.keys() == model.keys()
        for name, tensor in model.items():
            assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
            assert bytes_of(tensors[name]) == bytes_of(tensor)


def test_the_files_of_equal_tensors_are_equal(store):
    """In 8 files, metadata of two keys would come in both orders 127 times in 128."""
    its = snapshot({"w": torch.ones(2), "b": torch.zeros(1)}, ema={"w": torch.ones(2)})
    paths = [store.save(its, step=step) for step in range(1, 9)]
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert len({(path / name).read_bytes() for path in paths}) == 1


def test_tied_weights_are_written_once_and_read_under_all_their_names(store):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    path = store.save(snapshot(model.state_dict()), step=1)
    assert "2.weight" not in safetensors.torch.load_file(path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    fresh.load_state_dict(read_weights(path, weights="raw"))
    assert torch.equal(fresh[2].weight, model[0].weight)


def test_weights_that_only_look_alike_are_not_taken_for_tied(store):
    whole = torch.arange(4.0)
    model = {"a": whole, "b": whole.view(2, 2), "c": whole.clone(), "d": whole[:2]}
    found = read_weights(store.save(snapshot(model), step=1), weights="raw")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.items())


def test_the_average_of_tied_half_precision_weights_is_read_under_all_names(store):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).bfloat16()
    model[1].weight = model[0].weight
    ema = Ema(model, decay=0.5, warmup=False)
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    path = store.save(snapshot(model.state_dict(), ema=ema.state_dict()), step=1)
    found = read_weights(path, weights="ema")
    assert found.keys() == model.state_dict().keys()
    assert found["1.weight"].dtype == torch.bfloat16
    assert torch.equal(found["1.weight"], ema.shadow["0.weight"].bfloat16())
    assert read_snapshot(path).ema["0.weight"].dtype == torch.float32


def test_tensors_in_the_state_come_back(store):
    path = store.save(snapshot(callbacks={"mine": {3: [torch.ones(2)]}}), step=1)
    assert torch.equal(read_snapshot(path).state["callbacks"]["mine"][3][0], torch.ones(2))


def test_what_a_module_saves_beside_its_tensors_is_there_for_evaluation_too(store):
    path = store.save(snapshot(model_extra={"net._extra_state": {"seen": 3}}), step=1)
    assert read_model_state(path, weights="raw")["net._extra_state"] == {"seen": 3}


def test_a_checkpoint_without_an_average_says_so(store):
    path = store.save(snapshot(), step=1)
    assert read_snapshot(path).ema is None
    with pytest.raises(CheckpointError, match="holds no EMA weights") as caught:
        read_weights(path, weights="ema")
    assert caught.value.hint == ("the run had no [ema]: use the raw ones",)


def test_no_file_of_a_run_is_a_pickle(fit, toy, tmp_path):
    fit(validation=toy.loader(4), ema={"decay": 0.9}, keep="all")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".toml", ""}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        with pytest.raises(ValueError):
            list(pickletools.genops(content))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_is_what_the_umask_says(store, umask, mode):
    before = os.umask(umask)
    try:
        path = store.save(snapshot(extra=torch.ones(1)), step=1)
    finally:
        os.umask(before)
    files = [*path.iterdir(), store.folder / "latest.json"]
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {
        file.name: oct(mode) for file in files
    }


# ---------------------------------------------------------------------------------------- soundness


def damage(path: Path, how: str) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[:-1])
    elif how == "grown":
        file.write_bytes(content + b"\0")
    elif how == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    elif how == "empty manifest":
        (path / "manifest.json").write_text("")
    elif how == "odd manifest":
        (path / "manifest.json").write_text("[]")
    elif how == "newer format":
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


DAMAGES = {
    "missing": "is not sound: model.safetensors is missing",
    "truncated": r"is not sound: model.safetensors has \d+ bytes in place of \d+",
    "grown": r"is not sound: model.safetensors has \d+ bytes in place of \d+",
    "flipped": "is not sound: the hash of model.safetensors does not fit",
    "no manifest": "has no manifest: it was never completed",
    "empty manifest": "is not sound: its manifest is broken",
    "odd manifest": "is not sound: its manifest is broken",
    "newer format": "has format 99; this ptrain reads 1",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_detected_and_named(store, how):
    path = store.save(snapshot(), step=1)
    verify(path)
    damage(path, how)
    with pytest.raises(CheckpointError, match=DAMAGES[how]):
        verify(path)


@pytest.mark.parametrize("how", DAMAGES)
def test_the_newest_whole_checkpoint_is_found_and_why_others_were_not(store, how):
    for step in (9, 10, 100):
        store.save(snapshot(), step=step)
    damage(store.path_of(100), how)
    found, passed_over = store.newest_sound()
    assert found.step == 10
    assert len(passed_over) == 1 and "step-00000100" in passed_over[0]
    assert store.find("last").step == 10


def test_a_checkpoint_is_found_by_its_names(store):
    path = store.save(snapshot(), step=7)
    store.point("best", path, step=7)
    for which in ("best", "last", "step-7", "step-00000007", "7"):
        assert store.find(which).path == path


@pytest.mark.parametrize(
    ("which", "message", "hint"),
    [
        ("best", "there is no best checkpoint in", "there are: step-00000007"),
        ("step-8", "there is no checkpoint .*step-00000008", "there are: step-00000007"),
        ("first", "'first' is not a checkpoint", "write best, best_ema, last or step-N"),
    ],
)
def test_a_missing_checkpoint_lists_what_there_is(store, which, message, hint):
    store.save(snapshot(), step=7)
    with pytest.raises(CheckpointError, match=message) as caught:
        store.find(which)
    assert caught.value.hint == (hint,)


def test_a_store_without_any_checkpoint_says_so(store):
    assert store.newest_sound() == (None, [])
    with pytest.raises(CheckpointError, match="there is no sound checkpoint in"):
        store.find("last")
    with pytest.raises(CheckpointError) as caught:
        store.find("step-1")
    assert caught.value.hint == ("there is none at all",)


# ---------------------------------------------------------------------------------------- retention


def kept(store):
    return [int(name.removeprefix("step-")) for name in store._names()]


@pytest.mark.parametrize(
    ("keep", "expected"), [(1, [100]), (2, [10, 100]), (3, [9, 10, 100]), ("all", [1, 9, 10, 100])]
)
def test_the_newest_are_kept_by_number_and_not_by_spelling(tmp_path, keep, expected):
    store = CheckpointStore(tmp_path, keep=keep)
    for step in (9, 10, 100, 1):
        store.save(snapshot(), step=step)
    store.point("latest", store.path_of(100))
    store.prune()
    assert kept(store) == expected


def test_the_best_and_the_latest_are_never_deleted(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3, 4, 5):
        store.save(snapshot(), step=step)
    store.point("best", store.path_of(1))
    store.point("best_ema", store.path_of(3))
    store.point("latest", store.path_of(2))
    store.prune()
    assert kept(store) == [1, 2, 3, 5]


def test_names_sort_by_step_beyond_eight_digits(store):
    for step in (99_999_999, 100_000_000):
        store.save(snapshot(), step=step)
    assert kept(store) == [99_999_999, 100_000_000]
    assert step_of(Path(name_of(100_000_000))) == 100_000_000


# ------------------------------------------------------------------------------------- interruption


def test_what_was_left_half_written_is_cleaned_and_never_counts(store):
    store.save(snapshot(), step=1)
    half = store.folder / ".step-00000002.tmp-12345"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    (store.folder / ".latest.json.tmp-12345").write_text("{")
    assert kept(store) == [1]
    store.clean()
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest.json", "step-00000001"]


def test_a_disk_that_refuses_leaves_nothing_behind(store, monkeypatch):
    store.save(snapshot(), step=1)

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(OSError, match="No space left"):
        store.save(snapshot(), step=2)
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest.json", "step-00000001"]
    assert store.find("last").step == 1


def test_a_state_that_cannot_be_written_leaves_nothing_behind(store):
    with pytest.raises(TypeError, match="the state at '/callbacks/mine' is a object"):
        store.save(snapshot(callbacks={"mine": object()}), step=2)
    assert list(store.folder.iterdir()) == []


def test_saving_a_step_again_replaces_it(store):
    store.save(snapshot({"w": torch.zeros(1)}), step=1)
    path = store.save(snapshot({"w": torch.ones(1)}), step=1)
    verify(path)
    assert read_weights(path, weights="raw")["w"] == 1
    assert kept(store) == [1] and list(store.folder.glob(".*")) == []


# ----------------------------------------------------------------------------- read while it trains


def test_retention_takes_a_checkpoint_out_of_sight_before_it_deletes_any_of_it(
    tmp_path, monkeypatch
):
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2):
        store.save(snapshot(), step=step)
    deleted = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: deleted.append(path))
    store.prune()
    monkeypatch.undo()
    (gone,) = deleted
    assert gone.exists() and not store.path_of(1).exists()
    store.clean()
    assert not gone.exists() and store.path_of(2).exists()


def test_what_retention_deletes_meanwhile_is_read_from_a_newer_checkpoint(tmp_path):
    """A writer that saves all the time and keeps one: without another try some reads fail."""
    writer, reader = CheckpointStore(tmp_path, keep=1), CheckpointStore(tmp_path)
    writer.save(snapshot(), step=1)
    done = threading.Event()

    def save():
        step = 1
        while not done.is_set():
            step += 1
            writer.save(snapshot({"w": torch.full((2,), float(step))}), step=step)
            writer.prune()

    def read():
        found = reader.choose("", weights="raw")
        return found, read_weights(found.path, weights="raw")["w"]

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(150):
            found, weights = reader.reading(read)
            assert weights.tolist() == [found.step] * 2
    finally:
        done.set()
        thread.join()


def test_a_disk_that_refuses_is_not_asked_again(store):
    tries = []

    def read():
        tries.append(store.save(snapshot(), step=len(tries) + 1))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.reading(read)
    assert len(tries) == 1


def test_what_is_not_there_is_not_waited_for(store):
    store.save(snapshot(), step=1)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        store.reading(lambda: store.choose("step-7", weights="raw"))
