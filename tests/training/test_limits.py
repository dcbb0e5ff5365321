"""`limit_batches`: only the first batches of each split, and what follows from that."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from plugin_trainer import load_run
from plugin_trainer.configuration import configure
from plugin_trainer.errors import SettingsError
from plugin_trainer.settings.layers import Layer
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot
from plugin_trainer.training.execution import execute
from plugin_trainer.training.setup.assemble import assemble


class Counted(Dataset):
    """Rows, and the numbers of those that were loaded."""

    def __init__(self, toy, count: int) -> None:
        self.rows = toy.rows(count)
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        self.loaded.append(index)
        return self.rows[index]

    def loader(self) -> DataLoader:
        return DataLoader(self, batch_size=4, shuffle=True)


class Watch:
    """Notes the windows of training, the batches of evaluations, and may interrupt the run."""

    def __init__(self, *, stop: int = 0) -> None:
        self.stop = stop
        self.windows: list[int] = []
        self.epochs: list[int] = []
        self.evaluated: list[tuple[str, str]] = []

    def ptrain_train_step(self, micro_batches):
        self.windows.append(len(micro_batches))

    def ptrain_step_end(self, run):
        if run.progress.step == self.stop:
            run.interrupt("enough", signal=15)

    def ptrain_epoch_end(self, run):
        self.epochs.append(run.progress.step)

    def ptrain_evaluation_batch_end(self, split, weights):
        self.evaluated.append((split, weights))


@pytest.mark.parametrize(
    ("limit", "accumulate", "windows"),
    [
        (1, 1, [1]),
        (2, 1, [1, 1]),
        (3, 2, [2, 1]),
        (4, 4, [4]),
        (5, 2, [2, 2, 1]),
        (99, 2, [2, 2, 2]),
    ],
)
def test_an_epoch_is_its_first_batches_and_loads_no_more(fit, toy, limit, accumulate, windows):
    data, watch = Counted(toy, 24), Watch()
    result = fit(
        train=data.loader(),
        callbacks=[watch],
        limit_batches={"train": limit},
        accumulate=accumulate,
    )
    per_epoch = 4 * min(limit, 6)
    assert watch.windows == 2 * windows
    assert watch.epochs == [len(windows), 2 * len(windows)]
    assert (result.step, result.samples) == (2 * len(windows), 2 * per_epoch)
    assert len(data.loaded) == 2 * per_epoch
    first, second = data.loaded[:per_epoch], data.loaded[per_epoch:]
    assert len(set(first)) == len(set(second)) == per_epoch
    assert first != second


def test_the_batches_of_a_limited_epoch_are_the_first_of_the_whole_one(fit, toy):
    orders = []
    for number, limit in enumerate(({}, {"train": 2})):
        data = Counted(toy, 24)
        fit(train=data.loader(), limit_batches=limit, length="1 epoch", out=str(number))
        orders.append(data.loaded)
    assert orders[1] == orders[0][:8] and len(orders[0]) == 24


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_limited_run_is_resumed_exactly(fit, toy, tmp_path, accumulate, stop):
    settings = {
        "limit_batches": {"train": 3},
        "accumulate": accumulate,
        "length": "3 epochs",
        "ema": {"decay": 0.9},
    }
    fit(train=Counted(toy, 24).loader(), out="whole", **settings)
    fit(train=Counted(toy, 24).loader(), out="cut", callbacks=[Watch(stop=stop)], **settings)
    data = Counted(toy, 24)
    fit(train=data.loader(), out="cut", resume="auto", **settings)
    whole, cut = (
        read_snapshot(CheckpointStore(tmp_path / out).find("last").path) for out in ("whole", "cut")
    )
    assert whole.state["progress"] == cut.state["progress"]
    assert cut.state["progress"]["samples"] == 3 * 3 * 4
    assert all(torch.equal(whole.model[name], cut.model[name]) for name in whole.model)
    windows = ([1, 1, 1] if accumulate == 1 else [2, 1]) * 3
    assert len(data.loaded) == 4 * sum(windows[stop:])


class WithTest:
    """Data with all three splits; validation and test have three batches."""

    def __init__(self, toy) -> None:
        self.splits = {name: Counted(toy, 12) for name in ("train", "validation", "test")}

    def train(self):
        return self.splits["train"].loader()

    def validation(self):
        return DataLoader(self.splits["validation"], batch_size=4)

    def test(self):
        return DataLoader(self.splits["test"], batch_size=4)


def assembled(toy, tmp_path, watch, **settings):
    data = WithTest(toy)
    values = {"length": "1 epoch", "callbacks": [*toy.quiet], "ema": {"decay": 0.5}, **settings}
    run = assemble(
        configure(Layer("test", values), parts=False),
        out=tmp_path / "run",
        model=toy.net(),
        data=data,
        criterion=nn.functional.cross_entropy,
        callbacks=[watch],
    )
    return run, data


def test_each_split_has_a_limit_of_its_own(toy, tmp_path):
    watch = Watch()
    run, data = assembled(toy, tmp_path, watch, limit_batches={"validation": 1, "test": 2})
    result = execute(run)
    assert result.step == 3 and len(data.splits["train"].loaded) == 12
    assert watch.evaluated == [
        *(("val", "raw"), ("val", "ema")),
        *[("test", "raw")] * 2,
        *[("test", "ema")] * 2,
    ]
    features, labels = data.splits["validation"].rows[:4]
    loss = nn.functional.cross_entropy(result.model(features), labels)
    assert result.metrics["val/loss"] == pytest.approx(loss.item(), abs=1e-6)
    # Once for the rehearsal, and once for each weight set.
    assert len(data.splits["validation"].loaded) == 4 * 3
    assert len(data.splits["test"].loaded) == 4 * (1 + 2 * 2)


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_limit_that_leaves_nothing_is_refused(fit, split, limit):
    with pytest.raises(SettingsError) as caught:
        fit(limit_batches={split: limit})
    assert f"limit_batches.{split}" in "\n".join(caught.value.hint)


PLUGIN = """
    import torch
    from plugin_trainer import DataSpec, ModelSpec
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    PTRAIN_API = 1
    HERE = __name__


    def ptrain_models():
        return [ModelSpec(name="net", target=f"{HERE}:net")]


    def ptrain_data():
        return [DataSpec(name="points", target=f"{HERE}:Points")]


    def net():
        return nn.Linear(4, 2)


    class Points:
        def train(self):
            features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
            return TensorDataset(features, (features[:, 0] > 0).long())

        def validation(self):
            return DataLoader(self.train(), batch_size=4)
"""


def test_evaluating_a_limited_run_later_is_not_limited(tmp_path, ptrain):
    plugin = tmp_path / "limited.py"
    plugin.write_text(textwrap.dedent(PLUGIN))
    settings = {
        "model": "limited/net",
        "data": "limited/points",
        "length": "2 steps",
        "loss": "CrossEntropyLoss",
        "batch_size": "4",
        "limit_batches.train": "1",
        "limit_batches.validation": "1",
        "callbacks": '["-progress_bar", "-tensorboard"]',
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = ptrain("run", "--plugin", str(plugin), "--out", str(tmp_path / "run"), *sets)
    assert done.code == 0, done.err
    run = load_run(tmp_path / "run", checkpoint="last")
    features, labels = run.data.train().tensors
    expected = {
        rows: nn.functional.cross_entropy(run.model(features[:rows]), labels[:rows]).item()
        for rows in (4, 12)
    }
    assert run.evaluate("val")["val/loss"] == pytest.approx(expected[12], abs=1e-6)
    snapshot = read_snapshot(run.checkpoint.path)
    assert snapshot.state["metrics"]["val/loss"] == pytest.approx(expected[4], abs=1e-6)
    assert expected[4] != pytest.approx(expected[12], abs=1e-3)
