"""A run on several tasks: what reaches the model, what is logged of each task, what counts."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from plugin_trainer.data import Fed
from plugin_trainer.errors import DataError, PtrainError


class Rows(Dataset):
    """Points with a class (or one for each of three tokens)."""

    def __init__(self, count: int, *, seed: int, tokens: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, tokens, 4) if tokens else (count, 4)
        self.features = torch.randn(shape, generator=generator)
        self.labels = (self.features[..., 0] > 0).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[index], "labels": self.labels[index]}


class ByTask(nn.Module):
    """One layer for all, and one of its own for each task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({"rows": nn.Linear(4, 2), "tokens": nn.Linear(4, 2)})
        self.seen: list[str] = []

    def forward(self, task, features, labels):
        if self.training:
            self.seen.append(task)
        logits = self.heads[task](self.shared(features))
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return {"loss": loss, "parts": {"answer": loss}, "count": labels.numel(), "logits": logits}


def loaders(rows: int = 12, tokens: int = 8, *, seed: int = 0) -> dict[str, DataLoader]:
    return {
        "rows": DataLoader(Rows(rows, seed=seed), batch_size=4),
        "tokens": DataLoader(Rows(tokens, seed=seed + 1, tokens=3), batch_size=4),
    }


def accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes=2, average="micro")


def by_token(outputs, batch):
    return outputs["logits"].flatten(0, 1), batch["labels"].flatten()


METRICS = {
    "rows": {"accuracy": accuracy()},
    "tokens": {"accuracy": Fed(accuracy(), feed=by_token)},
}


@pytest.fixture
def mixed(fit):
    """`fit` on the two tasks: 3 and 2 batches an epoch."""

    def run(train=None, validation=None, **settings):
        model = ByTask()
        train = loaders() if train is None else train
        return fit(model, train, validation, **{"loss": None, "length": "1 epoch", **settings})

    return run


def test_the_task_reaches_the_model_in_turn(mixed):
    result = mixed()
    assert result.model.seen == ["rows", "tokens", "rows", "tokens", "rows"]


def test_every_strategy_is_a_setting(mixed):
    result = mixed(mixture={"strategy": "proportional"}, length="2 epochs")
    assert sorted(result.model.seen) == ["rows"] * 6 + ["tokens"] * 4
    result = mixed(mixture={"until": "first"}, out="first")
    assert result.model.seen == ["rows", "tokens", "rows", "tokens"]


def test_each_task_is_logged_with_its_loss_its_samples_and_its_share_of_the_gradient(
    mixed, metrics_of
):
    norms, losses = [], []

    class Watch:
        def ptrain_step_end(self, run, outcome):
            norms.append(float(run.grad_norm))
            losses.append(float(outcome.loss.detach()))

    result = mixed(callbacks=[Watch()], log="5 steps")
    line = metrics_of(result.folder)[-1]
    assert line["train/rows/samples"] == 12 and line["train/tokens/samples"] == 8
    rows, tokens = sum(losses[0::2]) / 3, sum(losses[1::2]) / 2
    assert line["train/rows/loss"] == pytest.approx(rows, rel=1e-5)
    assert line["train/tokens/loss"] == pytest.approx(tokens, rel=1e-5)
    assert line["train/loss"] == pytest.approx((rows + tokens) / 2, rel=1e-5)
    assert line["train/rows/answer"] == line["train/rows/loss"]
    share = sum(norms[0::2]) / sum(norms)
    assert line["train/rows/grad_norm_share"] == pytest.approx(share, rel=1e-5)
    assert line["train/tokens/grad_norm_share"] == pytest.approx(1 - share, rel=1e-5)


def test_in_a_step_of_several_tasks_a_batch_counts_by_its_rows(mixed, metrics_of):
    """Four rows and twelve tokens are four samples each."""
    result = mixed(
        {"rows": loaders()["rows"], "tokens": loaders()["tokens"]},
        accumulate=2, length="1 steps", log="1 steps",
        optimizer={"name": "SGD", "learning_rate": 1.0, "weight_decay": 0.0},
    )  # fmt: skip
    model = ByTask()
    before = {name: value.clone() for name, value in model.named_parameters()}
    after = dict(result.model.named_parameters())
    moved = before["shared.weight"] - after["shared.weight"].detach()
    expected = torch.zeros_like(moved)
    for task, loader in loaders().items():
        model.zero_grad()
        batch = next(iter(loader))
        model(task, batch["features"], batch["labels"])["loss"].backward()
        expected += model.shared.weight.grad / 2
    torch.testing.assert_close(moved, expected)
    line = metrics_of(result.folder)[-1]
    assert "train/rows/grad_norm_share" not in line  # no step was of one task alone


def test_each_task_is_scored_by_its_own_metrics_and_the_loss_is_their_mean(mixed):
    result = mixed(
        validation=loaders(8, 4, seed=5),
        metrics=METRICS,
    )
    scores = result.metrics
    model = result.model
    for task, loader in loaders(8, 4, seed=5).items():
        data = loader.dataset
        with torch.no_grad():
            out = model(task, data.features, data.labels)
        assert scores[f"val/{task}/loss"] == pytest.approx(float(out["loss"]), rel=1e-5)
        assert scores[f"val/{task}/answer"] == scores[f"val/{task}/loss"]
        right = (out["logits"].argmax(-1) == data.labels).float().mean()
        assert scores[f"val/{task}/accuracy"] == pytest.approx(float(right))
    mean = (scores["val/rows/loss"] + scores["val/tokens/loss"]) / 2
    assert scores["val/loss"] == pytest.approx(mean)


def test_a_task_may_be_left_out_of_the_validation(mixed):
    validation = {"tokens": loaders(seed=5)["tokens"]}
    result = mixed(
        validation=validation,
        metrics=METRICS,
    )
    assert set(result.metrics) == {
        *("val/loss", "val/tokens/loss", "val/tokens/answer", "val/tokens/accuracy"),
    }


def test_heads_of_a_task_are_named_under_it(fit):
    class TwoHeads(ByTask):
        def forward(self, task, features, labels_a, labels_b):
            out = super().forward(task, features, labels_a)
            return {**out, "logits": {"a": out["logits"], "b": -out["logits"]}}

    batch = {"features": torch.randn(4, 4), "labels_a": torch.ones(4).long()}
    batch["labels_b"] = batch["labels_a"]
    result = fit(
        TwoHeads(), {"rows": [batch]}, {"rows": [batch]}, loss=None, length="1 epoch",
        metrics={"rows": {"a": {"accuracy": accuracy()}, "b": {"accuracy": accuracy()}}},
    )  # fmt: skip
    a, b = (result.metrics[f"val/rows/{head}/accuracy"] for head in "ab")
    assert a + b == 1


def test_overall_is_the_mean_of_the_metrics_that_were_chosen_and_can_be_the_best(mixed):
    result = mixed(
        validation=loaders(8, 4, seed=5),
        metrics=METRICS,
        overall=["rows/accuracy", "tokens/accuracy"],
        best={"watch": "val/overall", "mode": "max"},
        ema={"decay": 0.9},
    )
    for split in ("val", "val_ema"):
        members = [result.metrics[f"{split}/{task}/accuracy"] for task in ("rows", "tokens")]
        assert result.metrics[f"{split}/overall"] == pytest.approx(sum(members) / 2)
    assert result.best["raw"].watch == "val/overall"


def test_overall_over_an_unknown_metric_is_refused_before_the_first_step(mixed):
    with pytest.raises(PtrainError, match="overall: there is no metric 'rows/f1'") as caught:
        mixed(validation=loaders(seed=5), overall=["rows/f1"])
    assert "rows/loss" in "\n".join(caught.value.hint)


def test_metrics_that_belong_to_no_task_are_refused(mixed):
    with pytest.raises(PtrainError, match=r"metrics\(\) gave accuracy for none of them"):
        mixed(validation=loaders(seed=5), metrics={"accuracy": accuracy()})


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({}, r"validation\(\) gave no task"),
        ({"rows": []}, r"the validation \('rows'\) data is empty"),
        ({"rows": iter([])}, r"the validation \('rows'\) data can be iterated only once"),
    ],
)
def test_validation_data_that_cannot_work_is_named_by_its_task(mixed, validation, message):
    with pytest.raises(DataError, match=message):
        mixed(validation=validation)


def test_what_will_starve_or_be_alone_is_said_at_the_start(mixed):
    lines: list[str] = []
    mixed(loaders(40, 4), notify=lines.append)
    assert any(line.startswith("task 'rows' ends every epoch alone") for line in lines)


def test_run_json_tells_the_batches_of_each_task(mixed):
    about = json.loads((mixed().folder / "run.json").read_text())
    assert about["tasks"] == {"rows": 3, "tokens": 2}
