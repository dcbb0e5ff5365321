"""A run on several tasks: what reaches the model, what is logged of each task, what counts."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from plugin_trainer.data import Fed
from plugin_trainer.errors import DataError, PtrainError, ResumeError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.metrics.task_shares import TaskShares


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

    def run(train=None, validation=None, *, model=None, **settings):
        model = ByTask() if model is None else model
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


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
def test_in_a_step_of_several_tasks_a_batch_without_a_label_counts_nothing(
    mixed, metrics_of, as_tensor
):
    class Counts(ByTask):
        def forward(self, task, features, labels):
            out = super().forward(task, features, labels)
            count = (labels != -100).sum()
            return {**out, "count": count if as_tensor else int(count)}

    data = loaders()
    data["tokens"].dataset.labels[:] = -100
    result = mixed(
        data, model=Counts(), accumulate=2, length="1 steps", log="1 steps",
        optimizer={"name": "SGD", "learning_rate": 1.0, "weight_decay": 0.0},
    )  # fmt: skip
    model = ByTask()
    batch = next(iter(data["rows"]))
    model("rows", batch["features"], batch["labels"])["loss"].backward()
    expected = model.shared.weight - model.shared.weight.grad
    torch.testing.assert_close(result.model.shared.weight, expected)


def test_a_step_skipped_under_the_loss_scale_has_no_share_of_the_gradient(mixed, metrics_of):
    class Overflow:
        def ptrain_forward(self, run, batch):
            if run.model.training and run.progress.step + 1 in (2, 3):
                outcome = run.forward(batch)
                outcome.loss.register_hook(lambda grad: grad * torch.inf)
                return outcome
            return None

    result = mixed(
        loaders(20, 20), validation=loaders(4, 4), precision="fp16", device="cpu",
        length="4 steps", log="4 steps", ema={"decay": 0.9}, callbacks=[Overflow()],
    )  # fmt: skip
    line = next(line for line in metrics_of(result.folder) if "train/loss" in line)
    assert line["skipped_steps"] == 2 and line["train/rows/samples"] == 8
    shares = [line[f"train/{task}/grad_norm_share"] for task in ("rows", "tokens")]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    assert result.metrics["val_ema/rows/loss"] > 0


class Reads(TorchDispatchMode):
    """Counts what makes the host wait: a tensor's value becoming a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_L06_nothing_is_read_between_log_lines(mixed, accumulate):
    class Count:
        def __init__(self) -> None:
            self.mode = Reads()

        def ptrain_step_end(self, run):
            if run.progress.step == 5:
                self.mode.__enter__()
            if run.progress.step == 90:
                self.mode.__exit__(None, None, None)

    class OnDevice(ByTask):
        def forward(self, task, features, labels):
            out = super().forward(task, features, labels)
            return {**out, "count": (labels != -100).sum()}

    counting = Count()
    mixed(
        loaders(400, 400), model=OnDevice(), accumulate=accumulate, callbacks=[counting],
        length="100 steps", log="100 steps", evaluate="never", save="never",
        optimizer={"name": "adamw", "max_grad_norm": 1.0},
    )  # fmt: skip
    assert counting.mode.count == 0


def test_a_log_line_of_many_tasks_reads_as_often_as_one_of_two(monkeypatch):
    read = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(1) or tolist(self))

    def reads(tasks: int) -> int:
        shares = TaskShares()
        for number in range(tasks):
            batch = {"x": torch.zeros(2), "task": f"t{number}"}
            shares.add(batch, StepOutcome(torch.tensor(float(number)), count=2))
            shares.add_step([batch], torch.tensor(1.0))
        read.clear()
        means = shares.means()
        assert means["loss"] == (tasks - 1) / 2
        assert means[f"t{tasks - 1}/loss"] == tasks - 1 and means["t0/samples"] == 2
        assert means["t1/grad_norm_share"] == pytest.approx(1 / tasks)
        return len(read)

    assert reads(50) == reads(2) <= 2


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


def test_labels_of_a_head_go_before_labels_of_none(fit):
    class Both(ByTask):
        def forward(self, task, features, labels, labels_a):
            out = super().forward(task, features, labels)
            return {**out, "logits": {"a": out["logits"]}}

    batch = {"features": torch.randn(4, 4), "labels": torch.zeros(4).long()}
    model = Both()
    logits = model("rows", labels_a=None, **batch)["logits"]["a"]
    batch["labels_a"] = logits.argmax(-1)
    result = fit(
        model, {"rows": [batch]}, {"rows": [batch]}, loss=None, length="1 epoch",
        optimizer={"learning_rate": 1e-9},
        metrics={"rows": {"a": {"accuracy": accuracy()}, "accuracy": accuracy()}},
    )  # fmt: skip
    assert result.metrics["val/rows/a/accuracy"] == 1
    wanted = (logits.argmax(-1) == 0).float().mean()
    assert result.metrics["val/rows/accuracy"] == pytest.approx(float(wanted))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"rows": {"accuracy": accuracy()}}, "there are logits of 'a', 'b', and it is of no head"),
        (
            {"rows": {"c": {"accuracy": accuracy()}}},
            "there are logits of 'a', 'b', and none of the head 'c'",
        ),
    ],
)
def test_a_metric_that_cannot_tell_its_head_is_named(fit, metrics, message):
    class TwoHeads(ByTask):
        def forward(self, task, features, labels):
            out = super().forward(task, features, labels)
            return {**out, "logits": {"a": out["logits"], "b": out["logits"]}}

    batch = {"features": torch.randn(4, 4), "labels": torch.ones(4).long()}
    with pytest.raises(PtrainError, match=message) as caught:
        fit(TwoHeads(), {"rows": [batch]}, {"rows": [batch]}, loss=None, metrics=metrics)
    assert caught.value.message.startswith("metric 'rows/")


def test_one_metric_under_two_names_is_counted_apart(mixed):
    one = accuracy()
    shared = mixed(
        validation=loaders(8, 4, seed=5),
        metrics={"rows": {"accuracy": one}, "tokens": {"accuracy": Fed(one, feed=by_token)}},
    )
    apart = mixed(validation=loaders(8, 4, seed=5), metrics=METRICS, out="apart")
    assert shared.metrics == pytest.approx(apart.metrics)
    assert len({shared.metrics[f"val/{task}/accuracy"] for task in ("rows", "tokens")}) == 2


def test_metrics_of_a_task_that_no_data_is_of_are_refused(mixed):
    metrics = {"row": {"accuracy": accuracy()}}
    with pytest.raises(PtrainError, match=r"metrics\(\) gave 'row': .* did you mean 'rows'"):
        mixed(validation=loaders(seed=5), metrics=metrics)
    only = {"tokens": loaders(seed=5)["tokens"]}
    result = mixed(validation=only, metrics=METRICS, out="trained-only")
    assert "val/tokens/accuracy" in result.metrics


def test_metrics_by_task_and_head_for_data_of_no_task_are_named(mixed):
    class NoTask(ByTask):
        def forward(self, features, labels, task="rows"):
            return super().forward(task, features, labels)

    with pytest.raises(PtrainError, match=r"nests 'rows/a' too deep"):
        mixed(
            validation=loaders()["rows"], model=NoTask(),
            metrics={"rows": {"a": {"accuracy": accuracy()}}},
        )  # fmt: skip


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
    with pytest.raises(PtrainError, match="no metric 'rows/lss'") as caught:
        mixed(validation=loaders(seed=5), overall=["rows/loss", "rows/lss"], out="near")
    assert caught.value.hint[0] == "'rows/lss': no such metric; did you mean 'rows/loss'?"


def test_overall_of_a_run_with_a_test_split_alone_is_looked_at_too(mixed):
    with pytest.raises(PtrainError, match="overall: there is no metric 'rows/f1'"):
        mixed(test=loaders(seed=5), overall=["rows/f1"])
    result = mixed(test=loaders(seed=5), overall=["rows/loss"], out="right")
    assert result.metrics["test/overall"] == result.metrics["test/rows/loss"]


def test_metrics_that_belong_to_no_task_are_refused(mixed):
    with pytest.raises(PtrainError, match=r"metrics\(\) gave accuracy for none of them"):
        mixed(validation=loaders(seed=5), metrics={"accuracy": accuracy()})


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({}, r"validation\(\) gave no task"),
        ({"a/b": loaders()["rows"]}, r"a task cannot be called 'a/b'"),
        ({"rows": []}, r"the validation \('rows'\) data is empty"),
        ({"rows": iter([])}, r"the validation \('rows'\) data can be iterated only once"),
    ],
)
def test_validation_data_that_cannot_work_is_named_by_its_task(mixed, validation, message):
    with pytest.raises(DataError, match=message):
        mixed(validation=validation)


def test_a_mixture_is_not_resumed_as_one_loader_nor_one_loader_as_a_mixture(fit):
    class NoTask(ByTask):
        def forward(self, features, labels, task="rows"):
            return super().forward(task, features, labels)

    class Kill:
        def ptrain_checkpoint_committed(self, run):
            if run.progress.step == 2:
                raise KeyboardInterrupt

    alone = loaders(12)["rows"]
    common = {"loss": None, "length": "1 epoch", "save": "1 steps"}
    for first, then in (({"rows": alone}, alone), (alone, {"rows": alone})):
        out = "mixture-first" if first is not alone else "loader-first"
        with pytest.raises(KeyboardInterrupt):
            fit(NoTask(), first, out=out, callbacks=[Kill()], **common)
        with pytest.raises(ResumeError, match="task 'rows' stood at its batch"):
            fit(NoTask(), then, out=out, resume="auto", allow=["content"], **common)


def test_what_will_starve_or_be_alone_is_said_at_the_start(mixed):
    lines: list[str] = []
    mixed(loaders(40, 4), notify=lines.append)
    assert any(line.startswith("task 'rows' ends every epoch alone") for line in lines)


def test_run_json_tells_the_batches_of_each_task(mixed):
    about = json.loads((mixed().folder / "run.json").read_text())
    assert about["tasks"] == {"rows": 3, "tokens": 2}


def test_a_metric_that_is_called_as_a_part_of_the_loss_is_refused_before_the_first_step(mixed):
    with pytest.raises(PtrainError, match=r"metrics\(\) gave 'rows/loss', and the loss has a part"):
        mixed(validation=loaders(seed=5), metrics={"rows": {"loss": accuracy()}})


def test_the_splits_of_a_data_set_are_no_tasks(mixed):
    from datasets import Dataset, DatasetDict

    splits = DatasetDict({split: Dataset.from_dict({"x": [1]}) for split in ("train", "test")})
    with pytest.raises(DataError, match="gave a DatasetDict of the splits train, test"):
        mixed(splits)
