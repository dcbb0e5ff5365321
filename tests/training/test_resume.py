"""Whether a run goes on, from where, and with which settings."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import plugin_trainer
from plugin_trainer.data.content import content_of
from plugin_trainer.errors import CheckpointError, ResumeError
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot
from plugin_trainer.training.setup.resume import differences


class Interrupt:
    """Kills the run in its own process, right after a step, once it was saved."""

    def __init__(self, step):
        self.step = step

    def ptrain_checkpoint_committed(self, run):
        if run.progress.step == self.step:
            raise KeyboardInterrupt


def validation():
    """A batch to evaluate on."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(8, 4, generator=generator)
    return [(features, (features[:, 0] > 0).long())]


@pytest.fixture
def cut(fit):
    """A run of six steps that was cut after its fourth."""
    with pytest.raises(KeyboardInterrupt):
        fit(save="1 steps", keep="all", callbacks=[Interrupt(4)])


def resumed(fit, **settings):
    notices = []
    result = fit(
        **{"save": "1 steps", "keep": "all", "resume": "auto", "notify": notices.append, **settings}
    )
    return result, notices


def test_a_run_goes_on_from_its_newest_checkpoint_and_says_so(fit, cut, tmp_path):
    result, notices = resumed(fit)
    path = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert notices == [
        f"going on from {path}, step 4",
        "restored: weights, optimizer, schedule, random streams, place in the data (epoch 1, "
        "batch 1)",
    ]
    assert result.step == 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed"] == [4]


def test_resuming_an_empty_folder_starts_the_run(fit):
    result, notices = resumed(fit)
    assert result.step == 6 and notices == []


def test_a_damaged_checkpoint_is_passed_over_with_a_notice(fit, cut, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step-00000004"
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result, notices = resumed(fit)
    assert result.step == 6
    assert notices[0].endswith("step-00000003, step 3")
    assert notices[1].startswith(f"passed over: {path} is not sound: optimizer.safetensors has ")


def test_a_run_of_which_no_checkpoint_is_whole_is_refused_with_every_reason(fit, cut, tmp_path):
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is sound") as caught:
        resumed(fit)
    assert len(caught.value.hint) == 5
    assert caught.value.hint[-1] == "to delete the run and start anew: overwrite=True"


def test_every_changed_setting_is_shown_and_refused(fit, cut, tmp_path):
    with pytest.raises(ResumeError, match=r"the run has changed since .* was started") as e:
        resumed(fit, seed=1, length="3 epochs", ema={"decay": 0.5}, log="never")
    assert e.value.hint == (
        'ema.buffers: (not set) -> "statistics"',
        "ema.decay: (not set) -> 0.5",
        "ema.warmup: (not set) -> true",
        'length: "2 epochs" -> "3 epochs"',
        'log: "50 steps" -> "never"',
        "seed: 0 -> 1",
        'to go on with the new: allow=["ema.buffers", "ema.decay", "ema.warmup", "length", "log", '
        '"seed"]',
    )
    assert CheckpointStore(tmp_path / "run").newest_sound()[0].step == 4


def test_a_change_that_is_allowed_is_made_and_noticed(fit, cut):
    result, notices = resumed(fit, length="3 epochs", log="never", allow=["length", "log"])
    assert result.step == 9
    assert notices[2:] == [
        'changed: length: "2 epochs" -> "3 epochs"',
        'changed: log: "50 steps" -> "never"',
        "resuming is not exact: length has changed",
    ]


def test_a_whole_table_can_be_allowed(fit, cut):
    settings = {"optimizer": {"learning_rate": 0.5, "weight_decay": 0.1}}
    assert resumed(fit, **settings, allow=["optimizer"])[0].step == 6
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}, "name": "x"}) == {}


def test_R09_an_average_can_be_dropped_and_can_begin_when_that_is_allowed(fit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(save="1 steps", callbacks=[Interrupt(4)], ema={"decay": 0.5})
    assert resumed(fit, keep=3, allow=["ema"])[0].step == 6
    with pytest.raises(KeyboardInterrupt):
        fit(save="1 steps", callbacks=[Interrupt(4)], out="other")
    with pytest.raises(ResumeError, match="has changed since"):
        resumed(fit, keep=3, ema={"decay": 0.5}, out="other")
    _, notices = resumed(fit, keep=3, ema={"decay": 0.5}, allow=["ema"], out="other")
    assert "an average that begins here" in notices[1]
    stores = [CheckpointStore(tmp_path / "other").find(f"step-{step}").path for step in (4, 5, 6)]
    raw = [read_snapshot(path).model["weight"] for path in stores]
    shadow = raw[0]  # it begins with the weights of the checkpoint, and so does its warm-up
    for number, weight in enumerate(raw[1:]):
        decay = min(0.5, (1 + number) / (10 + number))
        shadow = shadow + (1 - decay) * (weight - shadow)
    assert torch.allclose(read_snapshot(stores[-1]).ema["weight"], shadow)


@pytest.mark.parametrize(
    ("key", "where", "flag"),
    [
        ("packages.torch", ("packages", "torch"), "packages"),
        ("packages.python", ("python",), "packages"),
        ("packages.plugin-trainer", ("ptrain",), "packages"),
        ("code.model", ("code", "model"), "code"),
    ],
)
def test_other_packages_and_other_code_are_shown_and_refused(fit, cut, tmp_path, key, where, flag):
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    table = about
    for name in where[:-1]:
        table = table[name]
    now, table[where[-1]] = table[where[-1]], "0.1"
    path.write_text(json.dumps(about))
    with pytest.raises(ResumeError) as caught:
        resumed(fit)
    assert caught.value.hint == (
        f"{key}: 0.1 -> {now}",
        f'to go on with the new: allow=["{flag}"]',
    )
    _, notices = resumed(fit, allow=[flag])
    assert notices[2:] == [
        f"changed: {key}: 0.1 -> {now}",
        f"resuming is not exact: {key} has changed",
    ]


OTHERS = {
    "arguments": ("loss_repr", {"loss": nn.CrossEntropyLoss(label_smoothing=0.5)}),
    "weights": ("loss_repr", {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))}),
    "class": ("loss_repr", {"loss": nn.MultiMarginLoss()}),
    "function": ("loss_repr", {"loss": nn.functional.cross_entropy}),
    "model": ("model_repr", {"model": nn.Sequential(nn.Linear(4, 2), nn.Tanh())}),
}


@pytest.mark.parametrize(("key", "other"), OTHERS.values(), ids=OTHERS.keys())
def test_another_loss_and_another_kind_of_module_are_shown_and_refused(toy, tmp_path, key, other):
    def go(length, **changed):
        given = {"model": nn.Sequential(nn.Linear(4, 2), nn.ReLU()), "loss": nn.CrossEntropyLoss()}
        plugin_trainer.fit(
            **{**given, **changed}, train=toy.loader(), length=length, out=tmp_path / "run",
            callbacks=["-tensorboard", "-progress_bar"], notify=lambda line: None, resume="auto",
        )  # fmt: skip

    go("2 steps")
    go("3 steps", allow=["length"])
    with pytest.raises(ResumeError) as caught:
        go("4 steps", allow=["length"], **other)
    text = str(caught.value)
    assert f"code.{key}: " in text and ("(1): ReLU() -> (1): Tanh()" in text or key == "loss_repr")
    assert 'allow=["code"]' in text
    go("4 steps", allow=["length", "code"], **other)


def test_another_machine_is_shown_and_goes_on(fit, cut, tmp_path):
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    about["machine"]["threads"] = 64
    path.write_text(json.dumps(about))
    _, notices = resumed(fit)
    assert notices[2] == "resuming is not exact: machine.threads: 64 -> 1"


def test_another_model_is_refused_in_words(fit, cut):
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="weights do not fit the model Linear") as caught:
        resumed(fit, model=nn.Linear(4, 3), allow=["code"])
    assert "size mismatch for weight" in caught.value.hint[0]


def test_a_finished_run_made_longer_goes_on(fit, toy, tmp_path):
    fit(save="1 steps", keep="all")
    result, _ = resumed(fit, length="3 epochs", allow=["length"])
    assert result.step == 9 and result.status == "finished"


def test_a_finished_run_is_not_trained_again(fit, tmp_path):
    first = fit(save="1 steps", keep="all")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    result, notices = resumed(fit)
    run = tmp_path / "run"
    assert notices == [f"{run} is finished already: 2 epochs are done"]
    assert torch.equal(result.model.weight, first.model.weight)
    for name in ("status", "reason", "step", "epoch", "samples", "metrics", "best", "folder"):
        assert getattr(result, name) == getattr(first, name), name
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_data_with_an_order_of_its_own_says_that_resuming_is_not_exact(fit, toy, tmp_path):
    batches = [*toy.loader(12, shuffle=False)]
    notices = []
    with pytest.raises(KeyboardInterrupt):
        fit(train=batches, save="1 steps", callbacks=[Interrupt(4)], notify=notices.append)
    reason = "the training data is a list, not a DataLoader"
    assert notices == [f"resuming will not be exact: {reason}"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["inexact_because"] == reason
    _, notices = resumed(fit, train=batches, keep=3)
    assert notices[2] == f"resuming is not exact: {reason}"


def test_a_checkpoint_of_a_failed_step_says_that_resuming_is_not_exact(fit, tmp_path):
    class Fails:
        def ptrain_forward(self, run):
            if run.progress.step == 3:
                raise ValueError("broken")

    with pytest.raises(Exception, match="broken"):
        fit(save="never", callbacks=[Fails()])
    notices = []
    fit(save="never", resume="auto", notify=notices.append)
    assert notices[2] == (
        "resuming is not exact: that checkpoint was written after a failure inside a step"
    )


def test_a_changed_learning_rate_that_is_allowed_holds_from_the_next_step_on(
    fit, tmp_path, metrics_of
):
    schedule = {"schedule": {"name": "constant"}, "log": "1 steps"}
    with pytest.raises(KeyboardInterrupt):
        fit(save="1 steps", callbacks=[Interrupt(4)], **schedule)
    resumed(
        fit,
        allow=["optimizer.learning_rate", "keep"],
        optimizer={"learning_rate": 0.25},
        **schedule,
    )
    rates = {line["step"]: line["learning_rate"] for line in metrics_of(tmp_path / "run")}
    assert rates[4] == 1e-3
    assert rates[5] == rates[6] == 0.25


def test_a_rate_that_a_schedule_has_lowered_is_lowered_as_far_from_a_new_one(
    fit, cut, tmp_path, metrics_of
):
    resumed(
        fit,
        allow=["optimizer.learning_rate", "log"],
        optimizer={"learning_rate": 0.6},
        log="1 steps",
    )
    rates = {line["step"]: line["learning_rate"] for line in metrics_of(tmp_path / "run")}
    assert rates[5] == pytest.approx(0.1)  # a sixth is left after five of six steps
    assert rates[6] == pytest.approx(0.0)


def test_data_that_lost_the_place_in_the_epoch_is_refused_and_an_epochs_end_is_in_any(fit, toy):
    for step, fits in ((4, False), (3, True)):
        out = f"cut-{step}"
        with pytest.raises(KeyboardInterrupt):
            fit(save="1 steps", keep="all", callbacks=[Interrupt(step)], out=out)
        longer = {"train": toy.loader(20), "out": out, "allow": ["content"]}
        if fits:
            with pytest.raises(ResumeError, match="an epoch has 5 steps now and had 3"):
                resumed(fit, **longer)
            longer["allow"] = ["content", "length"]
            assert resumed(fit, **longer, length="9 steps")[0].step == 9
        else:
            with pytest.raises(ResumeError, match="5 batches an epoch, and had 3: batch 1"):
                resumed(fit, **longer)


def test_numbers_logged_by_a_callback_and_not_yet_written_survive(fit, tmp_path, metrics_of):
    class Once:
        def ptrain_step_end(self, run):
            if run.progress.step == 4:
                run.log({"seen": torch.tensor(4.0)})

    with pytest.raises(KeyboardInterrupt):
        fit(save="1 steps", keep="all", log="6 steps", callbacks=[Once(), Interrupt(4)])
    resumed(fit, log="6 steps")
    assert metrics_of(tmp_path / "run")[-1]["seen"] == 4.0


@pytest.mark.parametrize("end", ["killed", "signalled"])
def test_a_run_that_was_stopped_for_good_stays_stopped(fit, tmp_path, end):
    class Enough:
        def ptrain_evaluation_end(self, run):
            if run.progress.step == 4:
                run.request_stop("enough")

    class Signal:
        def ptrain_step_end(self, run):
            if run.progress.step == 4:
                run.interrupt("SIGTERM was received", signal=15)

    settings = {"save": "1 steps", "evaluate": "1 steps", "validation": validation()}
    if end == "killed":
        with pytest.raises(KeyboardInterrupt):
            fit(callbacks=[Enough(), Interrupt(4)], **settings)
    else:
        result = fit(callbacks=[Enough(), Signal()], **settings)
        assert (result.status, result.step) == ("stopped early", 4)
    result, _ = resumed(fit, callbacks=[Enough()], **{**settings, "keep": 3})
    assert (result.status, result.reason, result.step) == ("stopped early", "enough", 4)


def test_allowing_a_setting_that_is_not_there_is_refused(fit, cut):
    with pytest.raises(ResumeError, match=r"allow=\[\"lenght\"\]: .* did you mean 'length'"):
        resumed(fit, allow=["lenght"])


def test_a_run_without_a_checkpoint_says_that_it_starts_anew(fit, tmp_path):
    class Dies:
        def ptrain_run_start(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[Dies()])
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "failed" and about["reason"] == "KeyboardInterrupt"
    _, notices = resumed(fit, save="1 epoch", keep=3)
    assert notices == [f"{tmp_path / 'run'} has no checkpoint yet: it starts at step 0"]


def test_more_patience_lets_a_run_that_stopped_early_go_on(fit, tmp_path):
    def settings(patience):
        stopping = {"early_stopping": {"patience": patience, "min_delta": 1000}}  # never better
        return {
            "callbacks": ["early_stopping"], "callback_settings": stopping,
            "validation": validation(), "evaluate": "1 steps", "keep": 3,
        }  # fmt: skip

    first = fit(save="1 steps", **settings(2))
    assert (first.status, first.step) == ("stopped early", 3)
    result, notices = resumed(fit, **settings(2))
    assert result.step == 3 and "already" in notices[0]
    result, _ = resumed(fit, **settings(9), allow=["callback_settings"])
    assert (result.status, result.step) == ("finished", 6)


class Columns:
    """A data set of one's own, with its rows in attributes."""

    def __init__(self, labels):
        self.labels, self.names = labels, ["a"] * len(labels)
        self.read = 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        self.read += 1
        return torch.ones(4), torch.tensor(int(self.labels[i]))


def relabelled(rows):
    features, labels = rows.tensors
    changed = labels.clone()
    changed[3] = 1 - changed[3]
    return TensorDataset(features, changed)


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: DataLoader(rows, 4),
        lambda rows: rows,
        lambda rows: DataLoader([(x, y) for x, y in rows], 4),
        lambda rows: Subset(rows, range(12)),
        lambda rows: ConcatDataset([rows, rows]),
        lambda rows: Columns(rows.tensors[1]),
        lambda rows: Columns(rows.tensors[1].numpy()),
        lambda rows: Columns(rows.tensors[1].tolist()),
    ],
    ids=["loader", "tensors", "list", "subset", "both", "own", "arrays", "lists"],
)
def test_data_with_other_labels_is_noticed_and_nothing_is_loaded_for_it(toy, tmp_path, make):
    def train(rows, **more):
        plugin_trainer.fit(
            toy.net(), make(rows), loss="CrossEntropyLoss",
            out=tmp_path / "run", callbacks=["-progress_bar", "-tensorboard"], resume="auto",
            **{"notify": lambda line: None, "length": "3 steps", **more},
        )  # fmt: skip

    train(toy.rows())
    train(toy.rows(), length="4 steps", allow=["length"])
    with pytest.raises(ResumeError, match="the run has changed") as caught:
        train(relabelled(toy.rows()), length="5 steps", allow=["length"])
    assert caught.value.hint[0].startswith("content.training: ")
    assert 'allow=["content"]' in caught.value.hint[-1]
    lines = []
    train(
        relabelled(toy.rows()), length="5 steps", allow=["length", "content"], notify=lines.append
    )
    assert any("content.training has changed" in line for line in lines)


def test_a_data_set_is_not_asked_for_a_row(toy):
    data = Columns(toy.rows().tensors[1])
    assert content_of(data) == content_of(DataLoader(Columns(toy.rows().tensors[1])))
    assert data.read == 0
    assert content_of(iter([1])) == {}
