"""System 000, a DACT-BERT engine: an encoder that learns how many of its blocks a text needs, its
training, its search for settings, and what went wrong there.
"""

from __future__ import annotations

import ast
import json
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from ptrain_dactbert.classifier import HaltingClassifier
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.settings import ClassifierSettings, TextClassificationSettings
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import plugin_trainer
from plugin_trainer.configuration import configure
from plugin_trainer.early_exit.blocks import find_blocks
from plugin_trainer.early_exit.rules import Entropy
from plugin_trainer.errors import SettingsError, TrainingFailed
from plugin_trainer.ops import halting_exit, halting_loss
from plugin_trainer.settings.layers import from_assignments

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 16, "num_blocks": 3, "num_heads": 2, "max_positions": 40, "dropout": 0.0}

# N blocks, B rows, C classes


@pytest.fixture
def data(texts):
    """The data module over the seven texts."""
    files = {"train": str(texts), "validation": str(texts)}
    return TextClassification(TextClassificationSettings(**files, batch_size=7, max_tokens=16))


@pytest.fixture
def build(data):
    """A tiny classifier over the texts, its settings changed as asked."""

    def made(**changes) -> HaltingClassifier:
        torch.manual_seed(0)
        return HaltingClassifier(ClassifierSettings(**{**TINY, **changes}), data)

    return made


@pytest.fixture
def batch(data):
    return next(iter(data.validation()))


@pytest.fixture(scope="module")
def trained(dactbert, tmp_path_factory) -> Path:
    """A run of three epochs of two steps, and the exit statistics of its evaluations."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    callbacks = ["dactbert/exit_statistics"]
    dactbert(folder, callbacks=callbacks, ema=False, keep="all", log="1 steps")
    return folder


def units(model, batch):
    """The class logits [N, B, C] and the halting logits [N, B] of a batch."""
    mask_BT = batch["attention_mask"]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask_BT}
    states = model.encoder(**inputs, output_hidden_states=True).hidden_states[1:]
    return model.unit_logits(states, mask_BT=mask_BT)


# ------------------------------------------------------------------------------- the behaviours


def test_an_epoch_trains_in_training_mode_and_is_evaluated_in_evaluation_mode(fit, toy):
    """Feature: the standard loop over epochs."""
    modes = []

    class Noted(nn.Linear):
        def forward(self, features):
            modes.append(self.training)
            return super().forward(features)

    fit(Noted(4, 2), validation=toy.loader(4), length="2 epochs")
    rehearsal, epoch = [False], [True] * 3 + [False]
    assert modes == rehearsal + 2 * epoch


def test_every_tensor_of_a_batch_goes_to_the_device_and_labels_are_class_numbers(build, data, fit):
    """Feature: the step moves every value of a batch."""
    seen = []

    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build()

        def forward(self, **batch):
            seen.append(batch)
            return self.inner(**batch)

    fit(Noted(), data.train(), loss=None, length="1 steps")
    [batch] = seen
    assert {"input_ids", "attention_mask", "labels"} <= batch.keys()
    assert {tensor.device.type for tensor in batch.values()} == {"cpu"}
    assert batch["labels"].dtype == torch.int64


def test_the_answer_is_the_running_mixture_of_the_blocks_answers(build, batch):
    """Feature: a_n = p_(n-1) y_n + (1 - p_(n-1)) a_(n-1), with p the product of the halting h."""
    model = build(initial_depth=2.0)
    logits_NBC, halting_NB = units(model, batch)
    answer_BC, goes_on_B = torch.zeros(7, 2), torch.ones(7)
    for y_BC, h_B in zip(logits_NBC.softmax(-1), halting_NB.sigmoid(), strict=True):
        answer_BC = goes_on_B[:, None] * y_BC + (1 - goes_on_B[:, None]) * answer_BC
        goes_on_B = goes_on_B * h_B
    torch.testing.assert_close(model(**batch)["logits"].exp(), answer_BC)


def test_the_loss_is_the_task_loss_plus_lambda_times_the_mean_sum_of_h(build, batch):
    """Feature: the halting regulariser, in training and in evaluation."""
    model = build(initial_depth=2.0, tau=0.3, deep_supervision=0.0)
    _, halting_NB = units(model, batch)
    price = 0.3 * halting_NB.sigmoid().sum(0).mean()
    for outputs in (model.train()(**batch), model.eval()(**batch)):
        parts = outputs["parts"]
        torch.testing.assert_close(parts["halting"], price)
        torch.testing.assert_close(outputs["loss"], parts["task_loss"] + price)


def test_paying_for_h_makes_exits_earlier(dactbert, tmp_path, lines):
    """Feature: what is charged for going on moves the exits."""
    many = {"length": "40 epochs", "evaluate": "never", "save": "never"}
    depth = {}
    for tau in (0.0, 3.0):
        sets = {"model_settings__tau": tau, "optimizer__learning_rate": 3e-3, "ema": False}
        dactbert(tmp_path / f"{tau}", **sets, **many)
        [depth[tau]] = lines(tmp_path / f"{tau}", "val/mean_exit_block")
    assert depth[3.0] == 1.0 < depth[0.0]


def test_rows_leave_where_no_later_block_can_change_their_label(build, batch):
    """Feature: the exit rule of an evaluation."""
    outputs = build(initial_depth=1.2).eval()(**batch)
    assert outputs["exit_block"].min() < 3
    assert outputs["logits"].argmax(-1).equal(outputs["full_logits"].argmax(-1))


def test_a_looser_exit_is_a_setting_of_the_run(dactbert, tmp_path, lines):
    """Feature: a threshold that lets a batch leave before all of it is sure."""
    for delta in (0.0, 1.0):
        dactbert(tmp_path / f"{delta}", model_settings__delta=delta, ema=False, length="2 steps")
    sure, loose = (lines(tmp_path / f"{d}", "val/mean_exit_block")[-1] for d in (0.0, 1.0))
    assert loose == 1.0 < sure


def test_exits_are_counted_by_row_and_block(trained):
    """Feature: the vector of exit layers, and what is made of it."""
    found = json.loads((trained / "exit_statistics.json").read_text())["val/raw"]
    assert sum(found["histogram"]) == found["count"] == len(found["rows"]) == 7
    assert found["histogram"] == [found["rows"].count(block) for block in (1, 2, 3)]


def test_the_mean_exit_block_is_a_metric_of_each_evaluation(trained, lines):
    """Feature: the average exit layer."""
    found = json.loads((trained / "exit_statistics.json").read_text())["val/raw"]
    assert len(lines(trained, "val/mean_exit_block")) == 3
    assert lines(trained, "val/mean_exit_block")[-1] == pytest.approx(sum(found["rows"]) / 7)


def test_training_and_evaluation_report_their_losses_and_the_task_loss_apart(trained, lines):
    """Feature: training loss, validation loss, and the validation's task loss."""
    parts = ("task_loss", "supervision", "halting")
    for split in ("train", "val"):
        losses = lines(trained, f"{split}/loss")
        by_part = [lines(trained, f"{split}/{part}") for part in parts]
        assert losses == pytest.approx([sum(each) for each in zip(*by_part, strict=True)])


def test_accuracy_is_that_of_all_rows_of_an_evaluation(trained, typed, lines):
    """Feature: accuracy over the predictions of a whole epoch, whatever the batches."""
    scored = typed("evaluate", trained, "--json", "--checkpoint", "last")
    again = typed(
        "evaluate", trained, "--json", "--checkpoint", "last",
        "--set", "data_settings.evaluation_batch_size=1",
    )  # fmt: skip
    assert json.loads(scored)["val/accuracy"] == lines(trained, "val/accuracy")[-1]
    assert json.loads(again)["val/accuracy"] == lines(trained, "val/accuracy")[-1]


def test_adamw_has_the_learning_rate_and_the_weight_decay_it_is_told(fit):
    """Feature: AdamW by settings."""
    seen = []

    class Look:
        def ptrain_run_start(self, run):
            seen.append((type(run.optimizer), run.optimizer.param_groups[0]))

    rates = {"learning_rate": 3e-4, "weight_decay": 0.2, "no_decay": "none"}
    fit(callbacks=[Look()], optimizer=rates)
    [(cls, group)] = seen
    assert issubclass(cls, torch.optim.AdamW)
    assert (group["initial_lr"], group["weight_decay"]) == (3e-4, 0.2)


def test_a_run_stops_when_its_validation_loss_no_longer_improves(fit, toy):
    """Feature: early stopping, its patience a setting."""
    model = toy.Scripted(1.0, 0.5, 0.6, 0.7, 0.1)
    stopping = {"early_stopping": {"patience": 2}}
    result = fit(
        model, validation=toy.loader(4), loss=None, length="9 epochs",
        callbacks=["early_stopping"], callback_settings=stopping,
    )  # fmt: skip
    assert (result.status, result.step) == ("stopped early", 4 * 3)
    assert result.best["raw"].value == 0.5


def test_the_state_with_the_best_validation_loss_is_kept(fit, toy, weights):
    """Feature: the best weights on disk."""
    model = toy.Scripted(1.0, 0.5, 0.6)
    result = fit(model, validation=toy.loader(4), loss=None, length="3 epochs", keep="all")
    assert result.best["raw"].checkpoint == "step-00000006"
    best, then = weights(result.folder, "best"), weights(result.folder, "step-00000006")
    assert best["weight"] == then["weight"] != weights(result.folder)["weight"]


def test_a_run_leaves_its_metrics_weights_and_configuration(trained, lines):
    """Feature: the three files of a run."""
    assert len(lines(trained, "train/loss")) == 6 and len(lines(trained, "val/accuracy")) == 3
    assert (trained / "checkpoints/best.json").is_file()
    settings = tomllib.loads((trained / "run.toml").read_text())["model_settings"]
    assert settings["hidden_size"] == 16 and settings["pooling"] == "mean"
    assert (trained / "assets/encoder/config.json").is_file()


def test_a_trained_classifier_answers_texts(trained, typed, tmp_path):
    """Feature: the configuration and the weights make the model again."""
    (tmp_path / "new.txt").write_text("a dull film\nclever and funny\n")
    answers = [json.loads(a) for a in typed("predict", trained, tmp_path / "new.txt").splitlines()]
    assert [set(a) >= {"label", "exit_block"} for a in answers] == [True, True]
    assert {a["label"] for a in answers} <= {"good", "bad"}


def test_settings_come_from_a_file_or_a_mapping(fit, tmp_path, typed, texts):
    """Feature: parameters from a file, or from a dictionary."""
    result = fit(optimizer={"learning_rate": 0.5}, length="1 steps")
    assert tomllib.loads((result.folder / "run.toml").read_text())["optimizer"]["name"] == "adamw"
    file = tmp_path / "run.toml"
    file.write_text(f'plugins = ["dactbert"]\nseed = 7\n[data_settings]\ntrain = "{texts}"\n')
    shown = tomllib.loads(typed("config", "show", file))
    assert shown["seed"] == 7 and shown["data_settings"]["train"] == str(texts)


def test_a_run_has_the_name_it_is_given(fit, tmp_path, monkeypatch):
    """Feature: a tag that tells one run's files from another's."""
    monkeypatch.chdir(tmp_path)
    fit(out=None, name="tagged", length="1 steps")
    assert (tmp_path / "runs/tagged/run.json").is_file()


def test_trying_settings_out_leaves_no_file(typed, texts, tmp_path, monkeypatch):
    """Feature: a mode that writes nothing."""
    monkeypatch.chdir(tmp_path)
    data = f"data_settings.train={texts}"
    printed = typed("run", "--plugin", "dactbert", "--dry-run", "--set", data)
    assert "nothing was kept" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_trial_reports_each_evaluation_and_can_be_pruned(fit, toy):
    """Feature: a search that is told the validation loss after each epoch, and may end a trial."""
    reported = []

    class Pruner:
        def ptrain_evaluation_end(self, run, metrics):
            reported.append((len(reported) + 1, metrics["val/loss"]))
            if metrics["val/loss"] > 2:
                run.request_stop("pruned")

    model = toy.Scripted(1.0, 3.0, 0.5)
    result = fit(
        model, validation=toy.loader(4), loss=None, length="9 epochs", callbacks=[Pruner()]
    )
    assert reported == [(1, 1.0), (2, 3.0)]
    assert (result.status, result.reason, result.step) == ("stopped early", "pruned", 2 * 3)


def test_two_objectives_of_a_trial_are_in_its_metrics(trained, typed):
    """Feature: a search over task loss and exit layer at once."""
    metrics = json.loads((trained / "run.json").read_text())["metrics"]
    assert metrics["val/task_loss"] > 0 and 1 <= metrics["val/mean_exit_block"] <= 3


def test_stages_of_a_search_are_runs_that_start_from_another(trained, dactbert, tmp_path):
    """Feature: studies in a chain, the last with what the ones before chose."""
    dactbert(tmp_path / "next", init_from=str(trained), model_settings__tau=0.5, length="2 steps")
    chosen = tomllib.loads((tmp_path / "next/run.toml").read_text())
    assert chosen["init_from"]["run"] == str(trained) and chosen["model_settings"]["tau"] == 0.5


def test_parts_of_a_split_validate_on_what_is_left(tmp_path):
    """Feature: a share of the data set aside for validation."""
    (tmp_path / "set").mkdir()
    rows = "".join(f"text number {n},{'yes' if n % 3 else 'no'}\n" for n in range(20))
    (tmp_path / "set/train.csv").write_text("text,label\n" + rows)
    settings = TextClassificationSettings(
        dataset=str(tmp_path / "set"), train="train[:70%]", validation="train[70%:]", batch_size=20
    )
    data = TextClassification(settings)
    sizes = [len(next(iter(split))["labels"]) for split in (data.train(), data.validation())]
    assert sizes == [14, 6]


# ------------------------------------------------------------------------------------ its faults


def test_bug_01_the_classifier_works_with_its_defaults(data, batch):
    outputs = HaltingClassifier(ClassifierSettings(), data)(**batch)
    assert outputs["loss"].isfinite()


def test_bug_02_every_module_parses_on_the_oldest_python_promised():
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert promised == ">=3.11"
    for folder in ("plugin_trainer", "plugins"):
        for file in (ROOT / folder).rglob("*.py"):
            ast.parse(file.read_text(), str(file), feature_version=(3, 11))


def test_bug_03_training_gives_values_and_not_the_names_of_keys(fit, toy):
    result = fit(validation=toy.loader(4))
    assert isinstance(result.folder, Path) and result.folder.is_dir()
    assert isinstance(result.metrics["val/loss"], float)


def test_bug_04_an_error_is_told_in_its_own_words(fit):
    class Broken:
        def ptrain_step_end(self):
            raise KeyError("the real error")

    with pytest.raises(TrainingFailed, match="the real error") as caught:
        fit(callbacks=[Broken()])
    assert isinstance(caught.value.__cause__, KeyError)


def test_bug_05_patience_5_ends_after_five_evaluations_without_improvement(fit, toy):
    model = toy.Scripted(*[1.0] * 20)
    result = fit(
        model, validation=toy.loader(4), loss=None, length="20 epochs",
        callbacks=["early_stopping"], callback_settings={"early_stopping": {"patience": 5}},
    )  # fmt: skip
    assert result.step == 6 * 3  # the first is the best, five more are no better


def test_bug_06_every_checkpoint_that_is_pointed_to_is_there(trained):
    pointers = list((trained / "checkpoints").glob("*.json"))
    assert {pointer.stem for pointer in pointers} == {"latest", "best"}
    for pointer in pointers:
        name = json.loads(pointer.read_text())["checkpoint"]
        assert (trained / "checkpoints" / name / "model.safetensors").is_file()


def test_bug_07_lambda_zero_is_off(build, batch):
    outputs = build(tau=0.0, deep_supervision=0.0)(**batch)
    assert outputs["parts"].keys() == {"task_loss"}
    torch.testing.assert_close(outputs["loss"], outputs["parts"]["task_loss"])


def test_bug_08_the_objective_of_a_run_that_stopped_early_is_not_divided_by_all_its_epochs(
    fit, toy, lines
):
    model = toy.Scripted(*[1.0] * 20)
    result = fit(
        model, validation=toy.loader(4), loss=None, length="20 epochs",
        callbacks=["early_stopping"], callback_settings={"early_stopping": {"patience": 3}},
    )  # fmt: skip
    assert result.metrics["val/loss"] == result.best["raw"].value == 1.0
    assert lines(result.folder, "val/loss") == [1.0] * 4


def test_bug_09_a_right_answer_costs_nothing():
    """No second softmax over probabilities, which would leave 0.55 for three classes."""
    sure_NBC = 40 * nn.functional.one_hot(torch.tensor([[0, 1, 2]] * 4), 3).float()
    loss = halting_loss(sure_NBC, torch.zeros(4, 3), torch.tensor([0, 1, 2]), tau=0.0)
    assert loss.loss < 1e-6


def test_bug_10_lambda_means_the_same_at_every_batch_size(build, batch):
    model = build(initial_depth=2.0)
    twice = {key: torch.cat([value, value]) for key, value in batch.items()}
    for name, part in model(**batch)["parts"].items():
        torch.testing.assert_close(model(**twice)["parts"][name], part)


def test_bug_11_no_exit_changes_the_label_of_full_depth():
    generator = torch.Generator().manual_seed(0)
    logits_NBC = 3 * torch.randn(6, 20_000, 3, generator=generator)
    halting_NB = 2 * torch.randn(6, 20_000, generator=generator)
    exits = halting_exit(logits_NBC, halting_NB, delta=0.0)
    assert exits.exit_block.float().mean() < 4  # the bound lets rows go
    assert exits.log_answer.argmax(-1).equal(exits.full_log_answer.argmax(-1))


def test_bug_12_the_blocks_of_rows_that_have_left_do_not_run(build, batch):
    model = build().eval()
    model.exit_by(Entropy(threshold=10.0))  # every answer is surer than that
    rows_run = []
    for block in find_blocks(model.encoder):
        block.register_forward_pre_hook(lambda _, args: rows_run.append(len(args[0])))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    assert model(**inputs)["exit_block"].tolist() == [1] * 7
    assert rows_run == [7]


def test_bug_13_no_answer_and_no_exit_depends_on_the_rest_of_the_batch(build, batch):
    model = build(initial_depth=1.5).eval()
    together = model(**batch)["exit_block"]
    alone = [
        model(**{key: value[row : row + 1] for key, value in batch.items()})["exit_block"]
        for row in range(7)
    ]
    assert together.equal(torch.cat(alone))


def test_bug_14_a_partial_configuration_gets_the_rest_from_defaults_and_is_read_back(
    trained, typed
):
    kept = tomllib.loads((trained / "run.toml").read_text())["model_settings"]
    assert kept["tau"] == 0.04, "what the recipe says"
    assert kept["unit_size"] == 0, "a default"
    again = tomllib.loads(typed("config", "show", trained / "run.toml"))
    assert again["model_settings"] == kept


def test_bug_15_what_is_not_given_is_left_out_and_data_need_no_length(fit, toy, lines):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(toy.rows(40))

    result = fit(train=DataLoader(Endless(), batch_size=4), length="5 steps")
    assert (result.status, result.samples) == ("finished", 20)
    assert not lines(result.folder, "val/loss")


def test_bug_16_an_evaluation_has_every_row_however_few(fit, toy, lines):
    seen = []

    class Count:
        def ptrain_evaluation_batch_end(self, batch):
            seen.append(len(batch[1]))

    fit(
        validation=toy.loader(5, batch_size=4, shuffle=False), callbacks=[Count()], length="1 steps"
    )
    assert seen == [4, 1]
    fit(validation=toy.loader(1), out="one", length="1 steps")


def test_bug_17_an_activation_that_is_not_offered_is_refused_and_never_replaced():
    chosen = from_assignments(["model_settings.activation=LeakyReLU"])
    with pytest.raises(SettingsError, match="activation"):
        configure(plugins=["dactbert"], overrides=chosen)


def test_bug_18_the_configuration_holds_every_setting_and_the_device_is_the_runs(trained):
    settings = tomllib.loads((trained / "run.toml").read_text())["model_settings"]
    left_out = {"halting", "initial_depth"} - settings.keys()
    assert settings.keys() | left_out == {field.name for field in fields(ClassifierSettings)}
    loaded = plugin_trainer.load_run(trained)
    assert {tensor.device for tensor in loaded.model.parameters()} == {loaded.device}


def test_bug_19_a_run_resumes_exactly_is_seeded_and_overwrites_nothing(fit, toy, weights, tmp_path):
    whole = fit(out="whole")
    fit(out="cut", callbacks=[toy.Interrupt(2)])
    cut = fit(out="cut", resume="auto")
    for name, tensor in weights(whole.folder).items():
        assert tensor.equal(weights(cut.folder)[name])
    with pytest.raises(plugin_trainer.PtrainError, match="is occupied"):
        fit(out="cut")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_bug_20_autocast_and_the_loss_scale_run(fit, precision):
    result = fit(precision=precision, length="2 steps")
    assert result.status == "finished"
