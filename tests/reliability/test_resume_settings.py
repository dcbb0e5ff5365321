"""A run is not resumed with other settings unless somebody says so: R12 of the reliability bar."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from plugin_trainer.training.checkpointing.store import CheckpointStore

PLUGIN = '''
    """Points and what sign they have, in a plugin of one file."""

    from dataclasses import dataclass

    import torch
    from plugin_trainer import CallbackSpec, DataSpec, ModelSpec
    from torch import nn
    from torch.utils.data import TensorDataset

    PTRAIN_API = 1
    HERE = __name__


    def ptrain_models():
        return [ModelSpec(name="net", target=f"{HERE}:Net")]


    def ptrain_data():
        return [DataSpec(name="points", target=f"{HERE}:Points")]


    def ptrain_callbacks():
        return [CallbackSpec(name="stop", target=f"{HERE}:Stop", settings=f"{HERE}:StopSettings")]


    class Net(nn.Module):
        def __init__(self, width: int = 4, dropout: float = 0.1):
            super().__init__()
            self.hidden, self.out = nn.Linear(3, width), nn.Linear(width, 2)
            self.dropout = nn.Dropout(dropout)

        def forward(self, features):
            return {"logits": self.out(self.dropout(self.hidden(features)))}


    class Points:
        def __init__(self, rows: int = 24, noise: float = 0.0):
            self.rows, self.noise = rows, noise

        def train(self):
            generator = torch.Generator().manual_seed(1)
            features = torch.randn(self.rows, 3, generator=generator)
            labels = (features[:, 0] > 0).long()
            return TensorDataset(features + self.noise, labels)

        def validation(self):
            return self.train()


    @dataclass(frozen=True)
    class StopSettings:
        at: int = 4


    class Stop:
        """Interrupts the run, as a signal would."""

        def __init__(self, settings):
            self.at = settings.at

        def ptrain_run_start(self, run):
            run.log({"first_rate": run.optimizer.param_groups[0]["lr"]})

        def ptrain_step_end(self, run):
            if run.progress.step == self.at:
                run.interrupt("enough", signal=15)
'''

# Two epochs of six steps; each key of this table, and those beside it, is changed by a case.
RUN = {
    "model": "points/net",
    "data": "points/points",
    "length": "2 epochs",
    "batch_size": 4,
    "evaluate": "3 steps",
    "save": "1 steps",
    "log": "2 steps",
    "keep": 3,
    "loss": "CrossEntropyLoss",
    "ema.decay": 0.9,
    "callbacks": ["-progress_bar", "-tensorboard", "stop"],
    "optimizer.learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def plugin(memory) -> Path:
    """The file of the plugin."""
    path = memory / "points.py"
    path.write_text(textwrap.dedent(PLUGIN).lstrip())
    return path


@pytest.fixture
def go(ptrain, plugin):
    """Type `ptrain run --resume auto` with the settings of the run, some of them changed."""

    def run(out: Path, *options: str, **changed):
        chosen = {**RUN, **changed}
        sets = [f"{key}={_toml(value)}" for key, value in chosen.items() if value is not None]
        return ptrain(
            *("run", "--plugin", str(plugin), "--out", str(out), "--resume", "auto", *options),
            *(part for text in sets for part in ("--set", text)),
        )

    return run


def _toml(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture
def cut(go, memory, folder):
    """A copy of the run as it was interrupted at a step, and with these settings."""

    def made(step: int = 4, **settings) -> Path:
        settings = {"callback_settings.stop.at": step, **settings}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        kept = memory / f"cut-{key}"
        if not kept.exists():
            assert go(kept, **settings).code == 143
        return Path(shutil.copytree(kept, folder / "run"))

    return made


def contents(run: Path) -> dict[str, bytes]:
    """All that a run folder holds, but for who last held it."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Case:
    """A change of settings.

    after    the settings that differ when the run is resumed
    lines    the differences that it must be refused with
    before   what the run was started with, beside RUN
    step     where it was interrupted
    allowed  what it is refused with even where it is allowed; empty if it goes on
    """

    after: dict
    lines: tuple[str, ...]
    before: dict = field(default_factory=dict)
    step: int = 4
    allowed: str = ""

    @property
    def keys(self) -> list[str]:
        return [line.partition(": ")[0] for line in self.lines]


def one(key, value, change, **more) -> Case:
    return Case({key: value}, (f"{key}: {change}",), **more)


OTHER_PLACE = (
    "the training data has {} batches an epoch, and had 6: batch 4 of epoch 0 is no longer"
)
OTHER_EPOCHS = "an epoch has {} steps now and had 6: how far '2 epochs' is cannot be told any more"
OTHER_GROUPS = "the checkpoint's optimizer has other parameter groups than this one"
EARLY_STOPPING = [*RUN["callbacks"], "early_stopping"]

CASES = {
    "batch_size-mid-epoch": one("batch_size", 8, "4 -> 8", allowed=OTHER_PLACE.format(3)),
    "batch_size-at-an-epochs-end": one(
        "batch_size", 8, "4 -> 8", step=6, before={"length": "18 steps"}
    ),
    "batch_size-in-a-length-of-epochs": one(
        "batch_size", 8, "4 -> 8", step=6, allowed=OTHER_EPOCHS.format(3)
    ),
    "accumulate": one("accumulate", 2, "1 -> 2", before={"length": "12 steps"}),
    "accumulate-in-a-length-of-epochs": one(
        "accumulate", 2, "1 -> 2", allowed=OTHER_EPOCHS.format(3)
    ),
    "length": one("length", "3 epochs", '"2 epochs" -> "3 epochs"'),
    "length-that-is-over": one(
        "length", "3 steps", '"2 epochs" -> "3 steps"',
        allowed="length: 3 steps is 3 steps, but the run has made 4 already",
    ),
    "seed": one("seed", 7, "0 -> 7"),
    "model-of-another-size": one(
        "model_settings.width", 5, "(not set) -> 5",
        allowed="the checkpoint's weights do not fit the model Net",
    ),
    "model": one("model_settings.dropout", 0.5, "(not set) -> 0.5"),
    "data-of-another-size": one(
        "data_settings.rows", 32, "(not set) -> 32", allowed=OTHER_PLACE.format(8)
    ),
    "data-of-another-size-at-an-epochs-end": one(
        "data_settings.rows", 32, "(not set) -> 32", step=6, before={"length": "18 steps"}
    ),
    "data-of-another-size-in-a-length-of-epochs": one(
        "data_settings.rows", 32, "(not set) -> 32", step=6, allowed=OTHER_EPOCHS.format(8)
    ),
    "data": one("data_settings.noise", 0.5, "(not set) -> 0.5"),
    "limit_batches": one("limit_batches.train", 5, "(not set) -> 5", allowed=OTHER_PLACE.format(5)),
    "optimizer.learning_rate": one("optimizer.learning_rate", 0.1, "0.01 -> 0.1"),
    "optimizer.weight_decay": one("optimizer.weight_decay", 0.1, "0.01 -> 0.1"),
    "optimizer.max_grad_norm": one("optimizer.max_grad_norm", 1.0, "0.0 -> 1.0"),
    "optimizer.no_decay": one(
        "optimizer.no_decay", "none", '"auto" -> "none"', allowed=OTHER_GROUPS
    ),
    "optimizer.settings": one("optimizer.settings.eps", 0.1, "(not set) -> 0.1"),
    "optimizer.groups": Case(
        {'optimizer.groups."out.*".learning_rate': 0.1},
        (
            'optimizer.groups."out.*".frozen: (not set) -> false',
            'optimizer.groups."out.*".learning_rate: (not set) -> 0.1',
        ),
        allowed=OTHER_GROUPS,
    ),
    "optimizer.name": one("optimizer.name", "Adam", '"adamw" -> "Adam"'),
    "schedule.name": one("schedule.name", "cosine", '"core/linear" -> "core/cosine"'),
    "schedule.warmup": one("schedule.warmup", "5 steps", '"0 steps" -> "5 steps"'),
    "schedule_settings": one("schedule_settings.final_factor", 0.5, "0.0 -> 0.5"),
    "ema-without": Case(
        {"ema.decay": None},
        (
            'ema.buffers: "statistics" -> (not set)',
            "ema.decay: 0.9 -> (not set)",
            "ema.warmup: true -> (not set)",
        ),
    ),
    "ema-anew": Case(
        {"ema.decay": 0.9},
        (
            'ema.buffers: (not set) -> "statistics"',
            "ema.decay: (not set) -> 0.9",
            "ema.warmup: (not set) -> true",
        ),
        before={"ema.decay": None},
    ),
    "ema.decay": one("ema.decay", 0.5, "0.9 -> 0.5"),
    "precision": one("precision", "bf16", '"fp32" -> "bf16"'),
    "precision-with-a-loss-scale": one("precision", "fp16", '"fp32" -> "fp16"'),
    "precision-without-a-loss-scale": one(
        "precision", "fp32", '"fp16" -> "fp32"', before={"precision": "fp16"}
    ),
    "loss": one("loss", "MultiMarginLoss", '"CrossEntropyLoss" -> "MultiMarginLoss"'),
    "best.mode": one("best.mode", "max", '"min" -> "max"'),
    "evaluate": one("evaluate", "2 steps", '"3 steps" -> "2 steps"'),
    "save": one("save", "2 steps", '"1 step" -> "2 steps"'),
    "log": one("log", "1 steps", '"2 steps" -> "1 step"'),
    "keep": one("keep", 1, "3 -> 1"),
    "callbacks": Case(
        {"callbacks": EARLY_STOPPING},
        (
            *(
                f'callback_settings."core/early_stopping".{key}: (not set) -> {value}'
                for key, value in (
                    ("min_delta", "0.0"), ("mode", '"min"'), ("patience", "3"),
                    ("restore_best", "false"), ("watch", '"val/loss"'),
                )
            ),
            f"callbacks: {json.dumps(RUN['callbacks'])} -> {json.dumps(EARLY_STOPPING)}",
        ),
    ),
    "callback_settings": Case(
        {"callback_settings.stop.at": 99}, ('callback_settings."points/stop".at: 4 -> 99',)
    ),
    "deterministic": one("deterministic", True, "false -> true"),
    "activation_checkpointing": one("activation_checkpointing", ["out"], 'false -> ["out"]'),
}  # fmt: skip

HARMLESS = ("keep", "log", "save")


@pytest.mark.parametrize("name", CASES)
def test_R12_a_changed_setting_is_refused_with_both_values_unless_it_is_named(go, cut, name):
    case = CASES[name]
    run = cut(case.step, **case.before)
    settings = {"callback_settings.stop.at": case.step, **case.before, **case.after}
    was = contents(run)

    refused = go(run, **settings)
    assert refused.code == 2
    *lines, way_out = refused.err.splitlines()[1:]
    assert tuple(line.strip() for line in lines) == case.lines
    allow = [part for key in case.keys for part in ("--allow", key)]
    flags = " ".join(f"--allow {shlex.quote(key)}" for key in case.keys)
    assert way_out.strip() == f"to go on with the new: {flags}"
    assert contents(run) == was

    allowed = go(run, *allow, **settings)
    if case.allowed:
        assert allowed.code == 2
        assert allowed.err.startswith(f"error: {case.allowed}")
        assert contents(run) == was
        return
    assert allowed.code == 0, allowed.err
    said = [line.strip() for line in allowed.err.splitlines()]
    assert (
        f"going on from {run / 'checkpoints' / f'step-{case.step:08d}'}, step {case.step}" in said
    )
    assert [line for line in said if line.startswith("changed: ")] == [
        f"changed: {line}" for line in case.lines
    ]
    inexact = [key for key in case.keys if key not in HARMLESS]
    for key in case.keys:
        assert (f"resuming is not exact: {key} has changed" in said) == (key in inexact)
    again = go(run, **settings)  # the new settings are those of the run now
    assert again.code == 0 and "is finished already" in again.out


# ------------------------------------------------------------------ what goes on does so as it says

STEEP = {"schedule.name": "linear", "log": "1 steps", "optimizer.learning_rate": 1.0}
PERCENT = {"schedule.warmup": "25 %"}
ONE_CYCLE = {"schedule.name": "OneCycleLR", "schedule_settings.max_lr": 0.01}
PLATEAU = {"schedule.name": "ReduceLROnPlateau"}
CYCLES = {"schedule.name": "CyclicLR", "schedule_settings": "{base_lr = 0.001, max_lr = 0.01}"}
LINEAR = {"schedule.name": "linear"}


def rate_after(step: int, *, steps: int = 12, warmup: int = 0, final: float = 0.0) -> float:
    """The rate of the step after this one, in a straight line."""
    if step < warmup:
        return step / warmup
    return 1 - (1 - final) * (step - warmup) / (steps - warmup)


def go_on_with(go, run, before, after):
    """Resume with settings that have changed, each of them allowed."""
    settings = {**before, **dict.fromkeys(before.keys() - STEEP.keys() - PERCENT.keys()), **after}
    refused = go(run, **settings)
    lines = [line.strip() for line in refused.err.splitlines() if " -> " in line]
    allow = [part for line in lines for part in ("--allow", line.partition(": ")[0])]
    return go(run, *allow, **settings)


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [
        pytest.param({}, {"length": "3 epochs"}, {"steps": 18}, id="length"),
        pytest.param({}, {"schedule_settings.final_factor": 0.5}, {"final": 0.5}, id="final"),
        pytest.param({}, {"schedule.warmup": "6 steps"}, {"warmup": 6}, id="warmup"),
        pytest.param(
            PERCENT, {"length": "4 epochs"}, {"steps": 24, "warmup": 6}, id="length-and-warmup"
        ),
        pytest.param(PLATEAU, LINEAR, {}, id="from-a-plateau"),
        pytest.param(ONE_CYCLE, LINEAR, {}, id="from-one-cycle"),
    ],
)
def test_R12_a_schedule_goes_on_at_its_step_in_the_new_settings(go, cut, before, after, rate):
    before = {**STEEP, **before}
    run = cut(**before)
    done = go_on_with(go, run, before, after)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["learning_rate"] for line in lines}
    found[4] = next(line["first_rate"] for line in lines if line["step"] == 5)
    expected = {step: rate_after(step, **rate) for step in range(4, rate.get("steps", 12) + 1)}
    assert {step: found[step] for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "after"),
    [(LINEAR, PLATEAU), (LINEAR, ONE_CYCLE), (LINEAR, CYCLES), (ONE_CYCLE, CYCLES)],
    ids=["linear-plateau", "linear-one-cycle", "linear-cycles", "one-cycle-cycles"],
)
def test_R12_another_schedule_goes_on(go, cut, before, after):
    done = go_on_with(go, cut(**before), before, after)
    assert done.code == 0, done.err


def test_R12_a_length_that_is_over_is_refused_in_words_whatever_the_schedule(go, cut):
    run = cut(**ONE_CYCLE)
    was = contents(run)
    refused = go(run, "--allow", "length", **ONE_CYCLE, length="3 steps")
    assert refused.code == 2
    assert refused.err.startswith("error: length: 3 steps is 3 steps, but the run has made 4")
    assert contents(run) == was


MOMENTUM = {"optimizer.name": "SGD", "optimizer.settings.momentum": 0.9}


@pytest.mark.parametrize(
    ("before", "name"),
    [({}, "SGD"), ({}, "Adagrad"), ({}, "RMSprop"), (MOMENTUM, "AdamW")],
    ids=["AdamW-SGD", "AdamW-Adagrad", "AdamW-RMSprop", "SGD-AdamW"],
)
def test_R12_another_optimizer_begins_where_the_run_goes_on(go, cut, folder, before, name):
    run = cut(**before)
    done = go_on_with(go, run, before, {"optimizer.name": name})
    assert done.code == 0, done.err
    assert "an optimizer that begins here" in done.err
    assert go(folder / "fresh", **{"optimizer.name": name}).code == 143
    # Nothing of the other one is left, and what counts its steps began with it.
    ours, fresh = (
        load_file(CheckpointStore(path).find("last").path / "optimizer.safetensors")
        for path in (run, folder / "fresh")
    )
    assert ours.keys() == fresh.keys()
    assert all(int(step) == 8 for key, step in ours.items() if key.endswith("/step"))
