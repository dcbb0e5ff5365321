"""System 003, a trainer of one encoder on many tasks: its turns, heads, scores and logs, and what
went wrong there.
"""

from __future__ import annotations

import json
import os
import pickle
import tomllib
from typing import get_args

import pytest
import safetensors.torch
import torch
from mlflow.tracking import MlflowClient
from ptrain_multitask_bert.entity_score import EntityScore
from ptrain_multitask_bert.heads import Kind
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModel, AutoTokenizer

import plugin_trainer
from plugin_trainer.configuration import configure
from plugin_trainer.errors import PtrainError, SettingsError, TrainingFailed
from plugin_trainer.settings.layers import from_assignments, read_toml


class TwoTasks(nn.Module):
    """One layer that both tasks share, and a head for each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({"many": nn.Linear(4, 2), "few": nn.Linear(4, 3)})
        self.register_buffer("turns", torch.full((60,), -1))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, task, features, labels_class):
        if self.training:
            self.turns[self.count] = list(self.heads).index(task)
            self.count += 1
        logits = self.heads[task](self.shared(features))
        loss = nn.functional.cross_entropy(logits, labels_class)
        return {"loss": loss, "count": len(features), "logits": {"class": logits}}


def samples(count: int, *, classes: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(classes)
    features = torch.randn(count, 4, generator=generator)
    labels = features[:, :classes].argmax(1)
    return [{"features": x, "labels_class": y} for x, y in zip(features, labels, strict=True)]


def tasks(**options) -> dict[str, DataLoader]:
    """Three batches of four of the one task, two batches of two of the other."""
    return {
        "many": DataLoader(samples(12, classes=2), batch_size=4, shuffle=True),
        "few": DataLoader(samples(4, classes=3), batch_size=2, shuffle=True, **options),
    }


def scores() -> dict[str, dict]:
    return {
        "many": {"class": {"accuracy": MulticlassAccuracy(2, average="micro")}},
        "few": {
            "class": {
                "accuracy": MulticlassAccuracy(3, average="micro"),
                "f1": MulticlassF1Score(3, average="weighted"),
            }
        },
    }


@pytest.fixture
def mixed(fit):
    """`fit` on the two tasks, one epoch of five steps."""

    def run(**settings):
        given = {"train": tasks(), "validation": tasks(), "length": "1 epoch", "loss": None}
        return fit(TwoTasks(), **{**given, **settings})

    return run


def turns(result) -> list[str]:
    model = result.model
    return [list(model.heads)[n] for n in model.turns[: model.count].tolist()]


# ------------------------------------------------------------------------------- the behaviours


def test_tasks_take_turns_and_one_that_is_through_drops_out(mixed):
    """Feature: a round robin that goes on until all tasks are exhausted."""
    assert turns(mixed(length="2 epochs")) == 2 * ["many", "few", "many", "few", "many"]


def test_each_task_has_its_own_batches(fit):
    """Feature: a loader and a collate function for each task."""
    seen = []

    class Note:
        def ptrain_move_batch(self, batch):
            seen.append((batch["task"], len(batch["features"]), "extra" in batch))

    def collated(rows):
        return {**torch.utils.data.default_collate(rows), "extra": 1}

    fit(
        TwoTasks(), tasks(collate_fn=collated), loss=None, callbacks=[Note()], length="1 epoch",
    )  # fmt: skip
    assert seen == [("many", 4, False), ("few", 2, True)] * 2 + [("many", 4, False)]


def test_a_step_is_made_of_one_tasks_batch(mixed):
    """Feature: one optimizer step for each batch."""
    result = mixed()
    assert (result.step, result.samples) == (5, 3 * 4 + 2 * 2)


def test_the_rate_climbs_over_a_number_of_steps(mixed, lines):
    """Feature: warmup_steps, counted over the batches of all tasks."""
    result = mixed(
        length="2 epochs", log="1 steps", optimizer={"learning_rate": 1.0},
        schedule={"name": "linear", "warmup": "4 steps"},
    )  # fmt: skip
    rates = lines(result.folder, "learning_rate")
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *(1 - n / 6 for n in range(1, 7))])


def test_each_task_is_evaluated_with_a_loss_of_its_own(mixed):
    """Feature: a loss for each task, and one for all."""
    metrics = mixed().metrics
    both = [metrics["val/many/loss"], metrics["val/few/loss"]]
    assert metrics["val/loss"] == pytest.approx(sum(both) / 2)


def test_each_head_has_metrics_of_its_own(mixed):
    """Feature: accuracy, precision, recall and F1 by task and head."""
    metrics = mixed(metrics=scores()).metrics
    assert {"val/many/class/accuracy", "val/few/class/accuracy", "val/few/class/f1"} <= set(metrics)


def test_a_score_over_all_tasks_is_the_mean_of_chosen_metrics(mixed):
    """Feature: an overall score."""
    chosen = ["many/class/accuracy", "few/class/f1"]
    metrics = mixed(metrics=scores(), overall=chosen).metrics
    mean = sum(metrics[f"val/{name}"] for name in chosen) / 2
    assert metrics["val/overall"] == pytest.approx(mean)


def test_the_training_loss_is_logged_for_each_task(mixed, lines):
    """Feature: the training loss in the log, here by task."""
    [line] = lines(mixed(log="5 steps").folder)
    assert line["train/loss"] == pytest.approx(
        (line["train/many/loss"] + line["train/few/loss"]) / 2
    )
    assert (line["train/many/samples"], line["train/few/samples"]) == (12, 4)


def test_a_run_stops_and_keeps_its_best_by_a_tasks_score(mixed):
    """Feature: metric_for_best_model, greater_is_better, early_stopping_patience."""
    result = mixed(
        metrics=scores(), length="40 epochs", callbacks=["early_stopping"], save="never",
        best={"watch": "val/few/class/accuracy", "mode": "max"},
        callback_settings={
            "early_stopping": {"watch": "val/few/class/accuracy", "mode": "max", "patience": 2}
        },
        optimizer={"learning_rate": 1e-12},
    )  # fmt: skip
    assert (result.status, result.step) == ("stopped early", 3 * 5)
    assert result.best["raw"].watch == "val/few/class/accuracy"


def test_callbacks_learn_the_task_the_loss_and_the_moment(mixed, toy):
    """Feature: hooks of training, epochs, batches and steps."""
    seen = []

    class Note:
        def ptrain_move_batch(self, batch):
            self.task = batch["task"]

        def ptrain_step_end(self, outcome):
            seen.append((self.task, outcome.loss.item() > 0))

    diary = toy.Diary()
    mixed(callbacks=[Note(), diary], validation=None)
    assert seen == [("many", True), ("few", True)] * 2 + [("many", True)]
    assert [diary.calls[0], diary.calls[1]] == ["run_start 0", "epoch_start 0"]
    assert diary.calls[-1] == "run_end 5"


def test_tensorboard_has_every_number_at_its_step(fit, tmp_path):
    """Feature: TensorBoard."""
    result = plugin_trainer.fit(
        TwoTasks(), tasks(), tasks(), length="2 epochs", out=tmp_path / "run",
        callbacks=["-progress_bar", "tensorboard"], notify=lambda line: None,
    )  # fmt: skip
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("val/many/loss")]
    assert [step for step, _ in points] == [5, 10]
    assert points[-1][1] == pytest.approx(result.metrics["val/many/loss"])


def test_tasks_and_their_heads_are_tables_of_the_run_file(multitask):
    """Feature: a typed configuration of tasks, heads, model, tokenizer and training."""
    settings = tomllib.loads((multitask / "run/run.toml").read_text())
    given = settings["data_settings"]["tasks"]["reviews"]["heads"]
    assert given["mood"]["weight"] == 2.0 and given["topics"]["kind"] == "multi_label"
    wrong = from_assignments(["data_settings.tasks.reviews.heads.mood.wieght=3"])
    with pytest.raises(SettingsError, match=r"(?s)wieght.*weight"):
        configure(read_toml(multitask / "run.toml"), overrides=wrong)


def test_one_encoder_serves_the_heads_of_all_tasks(multitask, weights):
    """Feature: a shared backbone and a module for each task's heads."""
    names = weights(multitask / "run")
    heads = {name.removeprefix("heads.").split(".")[0] for name in names if "heads." in name}
    assert heads == {"reviews/mood", "reviews/topics", "reviews/stars", "names/who",
                     "bonds/relation"}  # fmt: skip
    assert {name.split(".")[0] for name in names} == {"encoder", "heads"}


def test_a_tasks_loss_is_the_sum_of_its_heads_by_weight(multitask):
    """Feature: loss = sum of weight * loss over the heads."""
    trained = plugin_trainer.load_run(multitask / "run")
    batch = next(iter(trained.data.validation()["reviews"]))
    with torch.no_grad():
        outputs = trained.model.eval()(task="reviews", **batch)
    logits, f = outputs["logits"], nn.functional
    expected = {
        "mood": 2.0 * f.cross_entropy(logits["mood"], batch["labels_mood"]),
        "topics": f.binary_cross_entropy_with_logits(logits["topics"], batch["labels_topics"]),
        "stars": f.mse_loss(logits["stars"], batch["labels_stars"]),
    }
    torch.testing.assert_close(outputs["parts"], expected)
    torch.testing.assert_close(outputs["loss"], sum(expected.values()))


def test_each_kind_of_head_has_its_scores(multitask, lines):
    """Feature: accuracy, precision, recall and F1, for labels, label sets and entities."""
    [*_, line] = lines(multitask / "run")
    for head in ("reviews/mood", "reviews/topics", "names/who", "bonds/relation"):
        for score in ("accuracy", "precision", "recall", "f1"):
            assert f"val/{head}/{score}" in line
    assert {"val/reviews/mood/f1_weighted", "val/reviews/topics/f1_micro"} <= line.keys()


def test_entities_are_scored_whole(multitask):
    """Feature: F1 of entities, not of tokens."""
    score = EntityScore(("O", "B-person", "I-person"), "f1")
    truth = torch.tensor([[1, 2, 0, 1]])
    guessed = torch.tensor([[1, 0, 0, 1]])  # three words of four right, one entity of two
    score.update(nn.functional.one_hot(guessed, 3).float(), truth)
    assert score.compute() == 0.5


def test_the_best_model_and_its_tokenizer_are_in_hugging_face_format(multitask):
    """Feature: save_pretrained of the best model and of the tokenizer."""
    folder = multitask / "run/hugging_face/best"
    encoder = AutoModel.from_pretrained(folder / "encoder", add_pooling_layer=False)
    tokens = AutoTokenizer.from_pretrained(folder / "encoder")("the soup", return_tensors="pt")
    tokens.pop("token_type_ids", None)
    assert encoder(**tokens).last_hidden_state.shape[-1] == 16
    named = json.loads((folder / "heads.json").read_text())["heads"]
    assert [head["labels"] for head in named if head["name"] == "mood"] == [["bad", "good"]]


def test_a_trained_run_answers_for_every_task(multitask, typed, tmp_path):
    """Feature: inference with labels, entities and relations."""
    (tmp_path / "in.txt").write_text("Anna left\n<e1>Anna</e1> saw <e2>Oslo</e2>\n")
    plain, marked = map(json.loads, typed("predict", "run", tmp_path / "in.txt").splitlines())
    assert plain["reviews"]["mood"]["label"] in ("good", "bad")
    assert "bonds" not in plain and marked["bonds"]["relation"]["label"] in ("home", "visit")
    for entity in plain["names"]["who"]:
        assert plain["text"][entity["start"] : entity["end"]] == entity["text"]


def test_mlflow_has_the_metrics_at_their_steps_and_the_settings(fit, tmp_path, monkeypatch):
    """Feature: MLflow, with an experiment and a store to choose, closed at the end."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    store = f"sqlite:///{tmp_path}/logged.db"
    client = MlflowClient(tracking_uri=store)
    client.search_experiments()  # makes the database, for which a run does not wait for ever
    result = fit(
        TwoTasks(), tasks(), tasks(), loss=None, plugins=["mlflow"], callbacks=["mlflow/logger"],
        callback_settings={"mlflow/logger": {"tracking_uri": store, "experiment": "many"}},
    )  # fmt: skip
    [run] = client.search_runs([client.get_experiment_by_name("many").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["length"] == "2 epochs"
    points = client.get_metric_history(run.info.run_id, "val/many/loss")
    assert [point.step for point in points] == [5, 10]
    assert points[-1].value == pytest.approx(result.metrics["val/many/loss"])


# ------------------------------------------------------------------------------------ its faults


def test_bug_01_what_is_watched_by_default_is_always_there(mixed):
    result = mixed(callbacks=["early_stopping"])
    assert result.best["raw"].watch == "val/loss"


def test_bug_02_when_to_evaluate_and_to_save_is_obeyed_and_the_best_comes_back(mixed, toy, lines):
    def evaluated(out, **settings):
        folder = mixed(out=out, length="2 epochs", **settings).folder
        return [line["step"] for line in lines(folder) if "val/loss" in line]

    assert evaluated("none", validation=None) == []
    assert evaluated("never", evaluate="never") == [10]
    assert evaluated("steps", evaluate="4 steps") == [4, 8, 10]
    assert evaluated("epochs", evaluate="1 epoch") == [5, 10]
    result = mixed(
        out="best", length="3 epochs", callbacks=["early_stopping"],
        callback_settings={"early_stopping": {"restore_best": True}},
    )  # fmt: skip
    assert json.loads((result.folder / "run.json").read_text())["restored_best"]


def test_bug_03_the_best_is_saved_without_any_early_stopping(mixed):
    result = mixed(save="never")
    checkpoint = result.folder / "checkpoints" / result.best["raw"].checkpoint
    assert (checkpoint / "model.safetensors").is_file()


def test_bug_05_predictions_are_those_of_the_trained_weights(multitask, weights):
    loaded = plugin_trainer.load_run(multitask / "run", checkpoint="last")
    for name, tensor in weights(multitask / "run").items():
        assert loaded.model.state_dict()[name].equal(tensor), name
    exported = safetensors.torch.load_file(multitask / "run/hugging_face/last/heads.safetensors")
    trained = weights(multitask / "run")["heads.reviews/mood.linear.weight"]
    assert exported["reviews/mood.weight"].equal(trained)


def test_bug_06_every_kind_that_is_documented_is_trained_and_scored(multitask, lines):
    kinds = get_args(Kind)
    loaded = plugin_trainer.load_run(multitask / "run")
    heads = loaded.data.heads()
    assert {head.kind for head in heads} == set(kinds)
    [*_, line] = lines(multitask / "run")
    for head in heads:
        assert any(name.startswith(f"val/{head.address}/") for name in line), head.address


def test_bug_07_a_head_of_entities_has_any_name_and_tags_that_are_not_known_are_named(
    multitask, ptrain, lines
):
    assert lines(multitask / "run", "val/names/who/f1")
    (multitask / "other.conll").write_text("Rome B-planet\n")
    other = "data_settings.tasks.names.validation=other.conll"
    refused = ptrain("run", "run.toml", "--out", "refused", "--set", other)
    assert refused.code == 2
    assert "other.conll" in refused.err and "planet" in refused.err


def test_bug_08_the_threshold_of_a_label_is_a_probability(multitask, typed, tmp_path):
    (tmp_path / "in.txt").write_text("the soup\nrude staff\na place\n")
    answers = [json.loads(a) for a in typed("predict", "run", tmp_path / "in.txt").splitlines()]
    for answer in answers:
        given = answer["reviews"]["topics"]
        over = [name for name, p in given["probabilities"].items() if p >= 0.3]
        assert given["labels"] == over
    loaded = plugin_trainer.load_run(multitask / "run")
    fed = loaded.data.metrics()["reviews"]["topics"]["f1_micro"]
    below_and_above = torch.logit(torch.tensor([[0.29, 0.31]]))
    like_probabilities = torch.tensor([[0.1, 0.29]])  # which they are not: of these, 0.52 and 0.57
    for logits, labels in ((below_and_above, [0.0, 1.0]), (like_probabilities, [1.0, 1.0])):
        batch = {"labels_topics": torch.tensor([labels])}
        fed.metric.update(*fed.feed({"logits": {"topics": logits}}, batch))
    assert fed.metric.compute() == 1.0


def test_bug_09_the_overall_score_has_the_members_that_were_chosen_and_no_others(fit):
    """A task whose name holds "f1" brings none of its metrics into it."""

    class Renamed(TwoTasks):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"f1 of all": nn.Linear(4, 2), "few": nn.Linear(4, 3)})

    def renamed(by_task):
        return {"f1 of all": by_task["many"], "few": by_task["few"]}

    def run(out, **settings):
        return fit(
            Renamed(), renamed(tasks()), renamed(tasks()), metrics=renamed(scores()), loss=None,
            length="1 epoch", out=out, **settings,
        ).metrics  # fmt: skip

    metrics = run("one", overall=["few/class/f1"])
    assert metrics["val/overall"] == metrics["val/few/class/f1"]
    with pytest.raises(PtrainError, match="few/class/f2"):
        run("wrong", overall=["few/class/f2"])


def test_bug_10_a_head_without_labels_is_not_moved_and_a_task_without_any_is_refused(
    multitask, fit
):
    loaded = plugin_trainer.load_run(multitask / "run")
    batch = {**next(iter(loaded.data.train()["reviews"])), "task": "reviews"}
    without = {**batch, "labels_mood": torch.full_like(batch["labels_mood"], -100)}
    model = loaded.model.train()
    model(**without)["loss"].backward()
    moved = model.heads["reviews/mood"].linear.weight.grad
    assert moved is None or moved.abs().max() == 0
    assert model.heads["reviews/stars"].linear.weight.grad.abs().max() > 0
    nothing = {key: value for key, value in batch.items() if not key.startswith("labels_")}
    with pytest.raises(PtrainError, match="no labels"):
        fit(loaded.model, [nothing], loss=None, length="1 steps")


def test_bug_13_callbacks_are_given_what_the_model_answered(mixed):
    seen = []

    class Look:
        def ptrain_evaluation_batch_end(self, batch, outcome):
            seen.append((batch["task"], outcome.outputs["logits"]["class"].shape))

    mixed(callbacks=[Look()])
    assert set(seen) == {("many", (4, 2)), ("few", (2, 3))}


def test_bug_14_an_error_ends_the_run_in_order_whatever_listens(mixed, toy, lines):
    class Broken:
        def ptrain_step_end(self, run):
            if run.progress.step == 3:
                raise ValueError("broken")

    diary = toy.Diary()
    with pytest.raises(TrainingFailed, match="broken"):
        mixed(callbacks=[Broken(), diary])
    assert diary.calls[-1] == "run_failed 3"


def test_bug_15_no_task_need_end_every_epoch_alone(mixed):
    uneven = {"many": DataLoader(samples(36, classes=2), batch_size=4), "few": tasks()["few"]}
    alone = turns(mixed(train=uneven))
    assert alone[4:] == ["many"] * 7
    tempered = {"strategy": "temperature", "temperature": 9.0}
    drawn = turns(mixed(train=uneven, out="drawn", mixture=tempered))
    assert len(drawn) == 11 and drawn.count("few") == 5
    by_size = {"strategy": "proportional"}
    spread = turns(mixed(train=uneven, out="spread", length="2 epochs", mixture=by_size))
    assert [spread[:11].count("few"), spread[11:].count("few")] == [2, 2]
    assert "few" in spread[4:11] + spread[15:]


def test_bug_16_a_mixture_is_seeded_accumulates_and_resumes_exactly(mixed, toy, weights):
    settings = {
        "accumulate": 2, "length": "3 epochs", "precision": "bf16",
        "mixture": {"strategy": "proportional"},
    }  # fmt: skip
    whole = mixed(out="whole", **settings)
    mixed(out="cut", callbacks=[toy.Interrupt(4)], **settings)
    cut = mixed(out="cut", resume="auto", **settings)
    one, other = weights(whole.folder), weights(cut.folder)
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_bug_16_batches_can_be_made_by_workers_that_are_not_forked(multitask):
    """Data sets and what collates them go through pickle."""
    for loader in plugin_trainer.load_run(multitask / "run").data.train().values():
        dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
        assert collate([dataset[0]])["input_ids"].shape[0] == 1


def test_bug_17_a_logger_that_does_not_exist_is_refused(mixed):
    with pytest.raises(PtrainError, match="wandb"):
        mixed(callbacks=["wandb"])
