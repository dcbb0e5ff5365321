"""Weights split over real processes train as in one process, and are saved and read by any number.

The checks themselves are in sharded_checks.py: a launch costs seconds, so each makes many.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from plugin_trainer.errors import CheckpointError, PtrainError
from plugin_trainer.model_store.packing import pack
from plugin_trainer.training.checkpointing.store import (
    CheckpointStore,
    _write_manifest,
    read_snapshot,
    verify,
)
from plugin_trainer.training.distributed.sharding import (
    check_elementwise,
    local_norm_squared,
    shard,
)
from plugin_trainer.training.distributed.sharding.files import write_shards
from tests import forkserver

pytestmark = [pytest.mark.slow, pytest.mark.process]

HERE = Path(__file__).parent

IN_TWO = [
    "every_process_holds_its_rows",
    "the_optimizer_is_told_the_same_groups",
    "losses_equal_one_process",
    "losses_equal_with_sgd",
    "losses_equal_with_adagrad",
    "losses_equal_with_torch_adamw",
    "losses_equal_with_recomputed_activations",
    "losses_equal_when_compiled",
    "weights_tied_between_blocks_and_the_rest_stay_tied",
    "the_average_is_lent_and_the_raw_weights_are_put_back",
    "a_parameter_used_outside_its_block_is_explained",
    "every_kind_of_tensor_comes_back_bit_by_bit",
    "what_does_not_fit_is_named",
    "a_disk_that_refuses_in_one_process_stops_all",
    "a_run_is_saved",
]
IN_THREE = [
    "every_process_holds_its_rows",
    "losses_equal_one_process",
    "every_kind_of_tensor_comes_back_bit_by_bit",
    "tensors_of_other_world_sizes_come_back",
    "a_run_goes_on_in_other_numbers_of_processes",
    "whole_weights_fit_into_a_sharded_model",
    "weights_of_another_shape_are_left_to_torch_to_name",
]


def launch(processes: int, folder: Path, checks: list[str]) -> dict[str, str]:
    report = folder / f"report-{processes}.json"
    done = forkserver.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), HERE / "sharded_checks.py"),
            *(report, folder, *checks),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    found = json.loads(report.read_text()) if report.exists() else {}
    return {name: found.get(name, done.stdout) for name in checks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def in_two(folder) -> dict[str, str]:
    return launch(2, folder, IN_TWO)


@pytest.fixture(scope="module")
def in_three(folder, in_two) -> dict[str, str]:
    """After the two, whose files they read; the last check kills one of them."""
    return launch(3, folder, [*IN_THREE, "a_writer_is_killed"])


@pytest.mark.parametrize("check", IN_TWO)
def test_in_two_processes(in_two, check):
    assert not in_two[check], in_two[check]


@pytest.mark.parametrize("check", IN_THREE)
def test_in_three_processes(in_three, check):
    assert not in_three[check], in_three[check]


def test_a_killed_writer_leaves_no_checkpoint(folder, in_three):
    assert "SIGKILL" in in_three["a_writer_is_killed"], in_three["a_writer_is_killed"]
    store = CheckpointStore(folder / "sharded")
    assert not store.path_of(7).exists()
    assert store.newest_sound()[0].step == 3
    store.clean()
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest.json", "step-00000003"]


# ------------------------------------------------------------------------------- its checkpoints


@pytest.fixture
def saved(folder, in_two, tmp_path) -> Path:
    """A copy of a checkpoint of two processes."""
    path = CheckpointStore(folder / "sharded").path_of(3)
    return Path(shutil.copytree(path, tmp_path / path.name))


def test_a_sharded_checkpoint_says_so_and_holds_no_pickle(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["layout"] == "sharded"
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "manifest.json"}
    assert {path.partition("/")[0] for path in files if "/" in path} == {
        "model",
        "ema",
        "optimizer",
    }
    assert {Path(path).suffix for path in files} == {".safetensors", ".json"}
    assert len([path for path in files if path.startswith("model/")]) == 2
    aliases = json.loads((saved / "state.json").read_text())["aliases"]
    assert aliases == {"head.weight": "embedding.weight", "again": "scale"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped", "the hash of model/shard-00001-model-00001-of-00001.safetensors does not fit"),
        ("missing", "model/shard-00001-model-00001-of-00001.safetensors is missing"),
        ("another", "model/another.safetensors is not in its manifest"),
        ("elsewhere", "its manifest names other files"),
    ],
)
def test_damage_in_a_shard_is_named(saved, how, message):
    verify(saved)
    file = saved / "model" / "shard-00001-model-00001-of-00001.safetensors"
    if how == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "missing":
        file.unlink()
    elif how == "another":
        file.with_name("another.safetensors").write_bytes(file.read_bytes())
    else:
        text = (saved / "manifest.json").read_text()
        (saved / "manifest.json").write_text(text.replace("model/shard-00001", "../shard-00001"))
    with pytest.raises(CheckpointError, match=message):
        verify(saved)


# ------------------------------------------------------------------- without any other process


class _Cut:
    """Ends the process after a step, once it was saved."""

    def ptrain_checkpoint_committed(self, run):
        if run.progress.step == 4:
            raise KeyboardInterrupt


@pytest.fixture
def sharded_run(fit, tmp_path) -> CheckpointStore:
    """The checkpoints of a run of six steps that was cut after its fourth, in shards; those in
    "whole" are the same as they were written.
    """
    with pytest.raises(KeyboardInterrupt):
        fit(save="1 steps", keep="all", ema={"decay": 0.5}, callbacks=[_Cut()])
    store = CheckpointStore(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for path in store.folder.glob("step-*"):
        for name in ("model", "ema", "optimizer"):
            (path / name).mkdir()
            write_shards(safetensors.torch.load_file(path / f"{name}.safetensors"), path / name)
            (path / f"{name}.safetensors").unlink()
        (path / "manifest.json").unlink()
        _write_manifest(path, step=int(path.name.removeprefix("step-")))
    return store


def test_one_process_reads_a_sharded_checkpoint_like_a_whole_one(sharded_run, tmp_path):
    found = sharded_run.find("last").path
    assert (found / "model").is_dir() and not (found / "model.safetensors").exists()
    ours, theirs = read_snapshot(found), read_snapshot(tmp_path / "whole/checkpoints" / found.name)
    for name in ("model", "ema", "optimizer"):
        some, others = getattr(ours, name), getattr(theirs, name)
        assert some.keys() == others.keys() and len(some) > 0
        assert all(torch.equal(tensor, others[key]) for key, tensor in some.items())
    content = {}
    for run in ("run", "whole"):
        for weights in ("raw", "ema"):
            (tmp_path / f"{run}-{weights}").mkdir()
            packed = pack(
                tmp_path / run,
                tmp_path / f"{run}-{weights}",
                checkpoint="last",
                weights=weights,
                news={},
            )
            content[run, weights] = packed.content
            assert CheckpointStore(tmp_path / f"{run}-{weights}").find("last").step == 4
    assert content["run", "raw"] == content["whole", "raw"] != content["run", "ema"]
    assert content["run", "ema"] == content["whole", "ema"]


def test_one_process_goes_on_from_a_sharded_checkpoint(fit, sharded_run, tmp_path):
    for out in ("run", "whole"):
        fit(save="1 steps", keep="all", ema={"decay": 0.5}, resume="auto", out=out)
    ours, theirs = (
        read_snapshot(CheckpointStore(tmp_path / out).find("last").path) for out in ("run", "whole")
    )
    assert ours.state["progress"]["step"] == 6
    assert torch.equal(ours.model["weight"], theirs.model["weight"])
    assert torch.equal(ours.ema["weight"], theirs.ema["weight"])


def test_a_run_starts_from_a_sharded_checkpoint(fit, sharded_run, tmp_path):
    notices = []
    fit(
        init_from={"run": str(tmp_path / "run"), "weights": "ema"},
        out="next",
        notify=notices.append,
    )
    assert notices == [f"starting from the ema weights of {sharded_run.find('last').path}"]


# --------------------------------------------------------------------------------------- refusals


class _Number(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


def _turned() -> nn.Module:
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.randn(3, 2).t())
    return model


REFUSED = {
    "number": (lambda: _Number(), "the parameter 'scale' is a single number"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(2)),
        "the parameter '0.weight' has no shape before the first batch",
    ),
    "not contiguous": (_turned, "the parameter 'weight' is not contiguous"),
    "dtypes": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()),
        "several dtypes: '0.weight' is float32, '1.weight' is bfloat16",
    ),
    "sparse": (
        lambda: nn.Sequential(nn.Embedding(4, 2, sparse=True)),
        "the gradient of '0' is sparse",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_be_split_is_refused_before_anything_is_done_to_it(kind):
    make, message = REFUSED[kind]
    model = make()
    with pytest.raises(PtrainError) as caught:
        shard(model, None)
    assert 'parallel.strategy: "fsdp2" cannot split the model' in caught.value.message
    assert message in caught.value.message
    assert 'parallel.strategy = "ddp"' in caught.value.hint[-1]
    assert not hasattr(model, "reshard")


@pytest.mark.parametrize("name", ["Muon", "Adafactor", "LBFGS", "SparseAdam"])
def test_an_optimizer_that_needs_whole_weights_is_refused(name):
    with pytest.raises(PtrainError, match=f"optimizer.name: {name} may need whole weights"):
        check_elementwise(getattr(torch.optim, name))


def test_an_optimizer_of_ones_own_may_say_that_it_is_elementwise():
    class Own(torch.optim.AdamW):
        pass

    with pytest.raises(PtrainError, match="Own may need whole weights"):
        check_elementwise(Own)
    Own.elementwise = True
    check_elementwise(Own)


def test_the_norm_of_a_process_without_gradients_is_zero():
    assert local_norm_squared([]) == 0
    squared = local_norm_squared([torch.empty(0, 3), torch.full((2,), 2.0)])
    assert squared.dtype == torch.float64 and squared.item() == pytest.approx(8)
