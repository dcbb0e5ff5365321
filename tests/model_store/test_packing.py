"""A version holds one set of weights, all that its model needs, and what was measured of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer
from plugin_trainer.early_exit.calibration import key_of
from plugin_trainer.files import write_json
from plugin_trainer.model_store import Store
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_model_state, verify

QUIET = ("-progress_bar", "-tensorboard")


class Tied(nn.Module):
    """Two names for one tensor, a buffer, and a tensor that is no part of the state dict proper."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 2)
        self.seen = torch.zeros(3)

    def forward(self, features):
        self.seen += 1
        return self.out(self.norm(self.second(self.first(features))))

    def get_extra_state(self):
        return {"seen": self.seen, "note": ("a", 1)}

    def set_extra_state(self, state) -> None:
        self.seen, self.note = state["seen"], state["note"]


class Ballast:
    """A callback with a large state, as a replay buffer is."""

    def ptrain_checkpoint_save(self, state) -> None:
        state["ballast"] = torch.arange(100_000)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """A run of four steps in the folder `run`, with or without more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PTRAIN_MODELS", raising=False)

    def run(*, out="run", callbacks=(), test=None, **settings):
        torch.manual_seed(0)
        features = torch.randn(16, 4)
        data = TensorDataset(features, (features[:, 0] > 0).long())
        return plugin_trainer.fit(
            Tied(),
            DataLoader(data, batch_size=4, shuffle=True),
            settings.pop("validation", DataLoader(data, batch_size=4)),
            test=DataLoader(data, batch_size=8) if test else None,
            loss=nn.functional.cross_entropy,
            callbacks=(*QUIET, *callbacks),
            out=out,
            notify=lambda line: None,
            **{"length": "1 epoch", "evaluate": "2 steps", "keep": "all", **settings},
        )

    return run


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_version_holds_one_set_of_weights_whole(fit, weights):
    fit(ema={"decay": 0.5})
    Store().register("run", name="tied", weights=weights)
    Store().export("tied", "out")
    source = CheckpointStore(Path("run")).choose("", weights=weights)
    copied = CheckpointStore(Path("out")).choose("", weights="raw")
    verify(copied.path)
    one, other = (
        read_model_state(source.path, weights=weights),
        read_model_state(copied.path, weights="raw"),
    )
    assert one.keys() == other.keys() and "second.weight" in other
    state, again = one.pop("_extra_state"), other.pop("_extra_state")
    assert torch.equal(state["seen"], again["seen"]) and again["note"] == ("a", 1)
    assert all(torch.equal(one[name], other[name]) for name in one)
    Tied().load_state_dict({**other, "_extra_state": again})


def test_what_only_training_needs_stays_behind(fit):
    fit(callbacks=[Ballast()], ema={"decay": 0.5})
    version = Store().register("run", name="tied").version
    assert version.size < 20_000
    Store().export("tied", "out")
    folder = next(Path("out/checkpoints").glob("step-*"))
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "extra.safetensors", "optimizer.safetensors"),
        *("state.json", "manifest.json"),
    }
    assert safetensors.torch.load_file(folder / "optimizer.safetensors") == {}
    assert list(safetensors.torch.load_file(folder / "extra.safetensors")) == [
        "/model_extra/_extra_state/seen"
    ]
    assert set(json.loads((folder / "state.json").read_text())["state"]) == {
        "model_extra",
        "metrics",
    }


def test_the_same_weights_are_the_same_bytes_however_often_they_are_packed(fit):
    """The library writes its metadata in a random order; here it has one entry."""
    fit(ema={"decay": 0.5})
    for weights in ("raw", "ema"):
        found = [Store().register("run", name=weights, weights=weights).version for _ in range(4)]
        assert len({version.content for version in found}) == 1
        assert len({tuple(version.files.items()) for version in found}) == 1
    assert Store().get("raw").content != Store().get("ema").content


def test_each_weight_set_has_its_own_metrics_under_the_same_names(fit):
    fit(ema={"decay": 0.5}, test=True)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        version = Store().register("run", name=weights, weights=weights).version
        assert set(version.metrics) == {"val/loss", "test/loss"}
        logged = {
            name: v for line in lines if line["step"] == version.step for name, v in line.items()
        }
        assert version.metrics["val/loss"] == logged[f"val{suffix}/loss"] == version.value
        tested = next(line for line in lines if f"test{suffix}/loss" in line)
        assert version.metrics["test/loss"] == tested[f"test{suffix}/loss"]


def test_the_test_split_says_nothing_of_a_checkpoint_it_was_not_scored_with(fit):
    result = fit(test=True)
    other = 2 if result.best["raw"].step == 4 else 4
    version = Store().register("run", name="tied", checkpoint=f"step-{other}").version
    assert set(version.metrics) == {"val/loss"}


def test_a_checkpoint_without_an_evaluation_has_no_metrics(fit):
    fit(save="1 steps")
    version = Store().register("run", name="tied", checkpoint="step-3").version
    assert version.metrics == {} and version.value is None


def test_a_metric_that_is_not_finite_is_kept_and_is_no_value(fit):
    class Odd:
        def ptrain_evaluation_end(self, metrics) -> None:
            metrics["val/odd"] = math.nan
            metrics["val/single"] = torch.tensor(0.5).numpy()

    fit(callbacks=[Odd()])
    version = Store().register("run", name="tied").version
    assert math.isnan(Store().get("tied").metrics["val/odd"])
    assert version.metrics["val/single"] == 0.5  # a float32, which JSON does not know
    json.dumps(version.as_json(), allow_nan=False)
    Store().export("tied", "out")
    assert json.loads(Path("out/model.json").read_text())["metrics"]["val/odd"] == "nan"


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_version_keeps_the_calibration_of_its_weights_alone(fit, weights):
    """Under the key that they have in it; the content of a version is that of its weights."""
    fit(ema={"decay": 0.5})
    uncalibrated = Store().register("run", name="tied", weights=weights).version
    assert not any("early_exit" in path for path in uncalibrated.files)
    found = CheckpointStore(Path("run")).choose("", weights=weights)
    key = key_of(found.path, weights)
    entries = {key: {"rows": 1}, f"{key}/task": {"rows": 2}}
    others = {key_of(found.path, "raw" if weights == "ema" else "ema"): {}, f"{key}0": {}}
    write_json(Path("run/early_exit.json"), others | entries)
    again = Store().register("run", name="tied", weights=weights).version
    assert again.content == uncalibrated.content
    assert not Store().register("run", name="tied", weights=weights, once=True).is_new
    Store().export("tied", "out")
    new_key = key_of(CheckpointStore(Path("out")).choose("", weights="raw").path, "raw")
    expected = {new_key: {"rows": 1}, f"{new_key}/task": {"rows": 2}}
    assert json.loads(Path("out/early_exit.json").read_text()) == expected
    # What was packed may be packed once more.
    Store().register("out", name="again")
    Store().export("again", "copy")
    assert json.loads(Path("copy/early_exit.json").read_text()) == expected


def test_no_step_of_it_runs_what_a_stranger_wrote(fit):
    """Tensors are safetensors and the rest is JSON, TOML or the assets: nothing is unpickled."""
    fit()
    version = Store().register("run", name="tied").version
    suffixes = {Path(path).suffix for path in version.files if not path.startswith("assets/")}
    assert suffixes == {".safetensors", ".json", ".toml"}
