"""System 001, a trainer of entity and relation models: its steps, and what went wrong there."""

from __future__ import annotations

import json
import tomllib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

import plugin_trainer
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.training.setup.assemble import pick_device

TINY = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


def sentences(count: int = 8, *, label: str = "labels", seed: int = 0) -> list[dict]:
    """Sentences of eight tokens with a class for each token ("labels") or for all ("label")."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        tokens = torch.randint(3, 30, (8,), generator=generator)
        classes = (tokens > 15).long()
        classes[0] = classes[-1] = -100  # [CLS] and [SEP] have no class
        found.append(
            {
                "input_ids": tokens,
                "attention_mask": torch.ones(8, dtype=torch.long),
                "token_type_ids": (torch.arange(8) > 4).long(),
                label: classes if label == "labels" else (tokens[1] > 15).long(),
            }
        )
    return found


def entity_model() -> nn.Module:
    torch.manual_seed(0)
    return BertForTokenClassification(BertConfig(**TINY, num_labels=2))


def relation_model() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TINY, num_labels=2))


class Rates:
    """A callback that notes the learning rate each step is made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def ptrain_train_step(self, run):
        self.seen.append(run.optimizer.param_groups[0]["lr"])  # and leaves the step to the next


# ------------------------------------------------------------------------------- the behaviours


def test_an_entity_model_learns_from_a_class_for_each_token(fit, lines):
    """Feature: batches with `labels`, special tokens left out by -100."""
    result = fit(
        entity_model(), DataLoader(sentences(16), batch_size=8), loss=None,
        length="20 epochs", log="1 epoch", save="never", optimizer={"learning_rate": 0.02},
    )  # fmt: skip
    losses = lines(result.folder, "train/loss")
    assert losses[-1] < 0.5 * losses[0]


def test_tokens_without_a_class_are_not_counted(fit, lines):
    """Feature: the mean over the tokens that have a class."""
    batches = sentences(2)
    batches[1]["labels"][:] = -100
    batches[1]["labels"][3] = 1
    model = entity_model().eval()
    torch.manual_seed(0)
    [together] = DataLoader(batches, batch_size=2)
    with torch.no_grad():
        expected = model(**together).loss.item()  # over seven tokens, as in one batch
    result = fit(
        model, DataLoader(batches, batch_size=2), DataLoader(batches, batch_size=1), loss=None,
        length="1 steps", optimizer={"learning_rate": 1e-12},
    )  # fmt: skip
    assert result.metrics["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_relation_model_learns_from_a_class_for_each_sentence(fit, lines):
    """Feature: batches with `label`."""
    data = DataLoader(sentences(16, label="label"), batch_size=8)
    result = fit(
        relation_model(), data, loss=nn.CrossEntropyLoss(), length="20 epochs", log="1 epoch",
        save="never", optimizer={"learning_rate": 0.01},
    )  # fmt: skip
    losses = lines(result.folder, "train/loss")
    assert losses[-1] < 0.5 * losses[0]


def test_labels_stand_under_the_key_that_is_named(fit, lines):
    """Feature: the key of the labels is found, there one of two."""
    data = [
        {"features": torch.eye(2), "labels": torch.tensor([1, 0]), "gold": torch.tensor([0, 1])}
    ]

    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, features):
            return self.scale * features

    for key, loss in (("gold", 0.0), ("", 20.0)):
        result = fit(Sure(), data, label=key, length="1 steps", out=f"run-{key}")
        assert lines(result.folder, "train/loss") == [pytest.approx(loss, abs=1e-6)]


def test_the_models_own_loss_is_what_is_trained_on(fit, lines):
    """Feature: `outputs.loss`."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))

        def forward(self, features, labels):
            return SimpleNamespace(loss=self.weight**2, logits=features)

    data = [{"features": torch.ones(1, 2), "labels": torch.ones(1)}] * 2
    result = fit(Own(), data, loss=None, length="1 steps")
    assert lines(result.folder, "train/loss") == [9.0]


def test_gradients_are_clipped_to_a_norm_of_one(fit, toy, lines):
    """Feature: clip_grad_norm_ at 1.0."""
    model, steep = toy.net(), [(100 * x, y) for x, y in toy.loader(shuffle=False)]
    plain = {"name": "SGD", "learning_rate": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0}
    result = fit(model, steep, length="1 steps", optimizer=plain, schedule={"name": "constant"})
    pairs = zip(model.parameters(), toy.net().parameters(), strict=True)
    moved = torch.cat([(new - old).detach().flatten() for new, old in pairs])
    assert lines(result.folder, "train/grad_norm")[0] > 10
    assert torch.linalg.vector_norm(moved).item() == pytest.approx(0.1 * 1.0, rel=1e-4)


def test_the_rate_climbs_over_a_share_of_the_steps_and_falls_to_zero(fit, lines):
    """Feature: linear warm-up by a ratio, then a linear fall, a new rate at every step."""
    rates = Rates()
    result = fit(
        callbacks=[rates], length="10 steps", optimizer={"learning_rate": 1.0},
        schedule={"name": "linear", "warmup": "20 %"},
    )  # fmt: skip
    assert rates.seen == pytest.approx([0, 1 / 2, *(1 - step / 8 for step in range(8))])
    assert lines(result.folder, "learning_rate")[-1] == pytest.approx(0.0)


def test_a_ratio_of_nothing_is_no_warm_up(fit):
    """Feature: the ratio's lower end."""
    rates = Rates()
    fit(callbacks=[rates], length="4 steps", optimizer={"learning_rate": 1.0})
    assert rates.seen == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_the_progress_shows_the_loss(fit, capsys, tmp_path):
    """Feature: a progress bar with the loss."""
    shown = {"progress_bar": {"mode": "lines"}}
    fit(callbacks=["progress_bar"], callback_settings=shown, log="3 steps")
    assert "loss" in capsys.readouterr().err


def test_the_rate_can_stay_as_it_is(fit):
    """Feature: the constant schedule of a run without a length."""
    rates = Rates()
    fit(callbacks=[rates], schedule={"name": "constant"}, optimizer={"learning_rate": 0.1})
    assert rates.seen == [0.1] * 6


def test_the_settings_are_kept_beside_the_model(fit):
    """Feature: the configuration is copied into the output folder."""
    result = fit(seed=11, schedule={"warmup": "1 step"})
    kept = tomllib.loads((result.folder / "run.toml").read_text())
    assert (kept["seed"], kept["schedule"]["warmup"]) == (11, "1 step")


def test_each_run_has_a_folder_of_its_own(fit, tmp_path, monkeypatch):
    """Feature: one output folder a run, without a name to think of."""
    monkeypatch.chdir(tmp_path)
    first, second = (fit(out=None, length="1 steps").folder for _ in range(2))
    assert first.resolve() != second.resolve() and first.parent == second.parent


def test_a_seed_makes_a_run_repeatable(fit, weights):
    """Feature: a seed for each run."""
    one, same, other = (
        fit(out=name, seed=seed).folder for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert weights(one)["weight"].equal(weights(same)["weight"])
    assert not weights(one)["weight"].equal(weights(other)["weight"])


def test_the_device_is_the_one_asked_for(fit):
    """Feature: the device by settings, the model put there."""
    result = fit(entity_model(), DataLoader(sentences()), loss=None, device="cpu", length="1 steps")
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cpu"}
    with pytest.raises(PtrainError, match="warp"):
        fit(device="warp", out="other")


def test_data_without_a_batch_are_refused_in_words(fit, toy):
    """Feature: an empty loader is noticed, and nothing is trained."""
    with pytest.raises(DataError, match="empty"):
        fit(train=DataLoader(toy.rows(0), batch_size=4))


def test_entities_come_from_a_file_with_a_tag_for_each_word(multitask):
    """Feature: a data module for entities: the first token of a word has its tag, others -100."""
    data = plugin_trainer.load_run(multitask / "run").data
    [batch] = data.validation()["names"]
    tags = next(head.labels for head in data.heads() if head.task == "names")
    [anna, *_] = batch["labels_who"].tolist()
    assert [tags[n] for n in anna if n != -100] == ["B-person", "I-person", "O", "O", "B-place"]
    assert len(anna) == batch["input_ids"].shape[1] > 5


def test_relations_are_read_from_the_marks_around_two_entities(multitask):
    """Feature: a data module for relations: marked pairs, and one class for each."""
    data = plugin_trainer.load_run(multitask / "run").data
    [batch] = data.validation()["bonds"]
    marks = batch["input_ids"].gather(1, batch["mark_positions"])
    assert data.tokenizer.convert_ids_to_tokens(marks[0]) == ["<e1>", "<e2>"]
    assert batch["labels_relation"].tolist() == [0, 1, 1, 0]


def test_batches_are_as_long_as_their_longest_text(multitask):
    """Feature: padding, there always to the longest that a model takes."""
    data = plugin_trainer.load_run(multitask / "run").data
    [batch] = data.validation()["names"]
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1] < 32


def test_the_model_and_its_tokenizer_are_saved_for_other_tools(multitask):
    """Feature: save_pretrained of both into one folder."""
    folder = multitask / "run/hugging_face/last/encoder"
    assert AutoConfig.from_pretrained(folder).hidden_size == 16
    assert AutoTokenizer.from_pretrained(folder)("Anna")["input_ids"]


# ------------------------------------------------------------------------------------ its faults


def test_bug_01_accumulation_is_honoured(fit, toy, weights):
    """Three micro-batches, the last one short, make the step of all ten rows."""

    def step(**settings):
        plain = {"name": "SGD", "learning_rate": 0.1}  # Adam would not see a wrong scale
        flat = {"schedule": {"name": "constant"}, "optimizer": plain}
        return fit(length="1 epochs", **flat, **settings)

    big = step(train=toy.loader(10, batch_size=10, shuffle=False), out="big")
    small = step(train=toy.loader(10, batch_size=4, shuffle=False), out="small", accumulate=3)
    assert big.step == small.step == 1
    torch.testing.assert_close(weights(big.folder), weights(small.folder))


def test_bug_02_precision_is_a_setting_and_a_skipped_step_does_not_move_the_schedule(fit, lines):
    class Steep(nn.Module):
        """Its first gradients, times a loss scale of 65536, are beyond what fp16 can hold."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)
            self.factor = 1e4

        def forward(self, features):
            logits = self.inner(features) * self.factor
            self.factor = 1.0
            return logits

    rates = Rates()
    steps = {"length": "4 steps", "log": "1 steps", "optimizer": {"learning_rate": 1.0}}
    result = fit(Steep(), callbacks=[rates], precision="fp16", **steps)
    assert lines(result.folder, "skipped_steps") == [1] * 4
    assert rates.seen == pytest.approx([1.0, 1.0, 0.75, 0.5])
    plain = fit(out="plain", length="1 steps")
    assert tomllib.loads((plain.folder / "run.toml").read_text())["precision"] == "fp32"


def test_bug_03_every_entry_of_a_batch_reaches_the_model(fit):
    seen = []

    class Typed(BertForTokenClassification):
        def forward(self, token_type_ids=None, **batch):
            seen.append(token_type_ids)
            return super().forward(token_type_ids=token_type_ids, **batch)

    data = DataLoader(sentences(2), batch_size=2)
    fit(Typed(BertConfig(**TINY, num_labels=2)), data, loss=None, length="1 steps")
    assert seen[0].tolist() == [[0] * 5 + [1] * 3] * 2


def test_bug_04_a_batch_without_labels_is_told_with_the_keys_it_has(fit):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, features):
            return self.inner(features)

    with pytest.raises(PtrainError, match=r"(?s)labels.*(features, targets|targets, features)"):
        fit(Logits(), [{"features": torch.ones(1, 2), "targets": torch.ones(1)}], length="1 steps")


DECAYED = {
    "distilbert": (
        lambda: DistilBertForTokenClassification(
            DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
        ),
        ("sa_layer_norm", "output_layer_norm", "LayerNorm"),
    ),
    "gpt2": (
        lambda: GPT2ForSequenceClassification(
            GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=16)
        ),
        ("ln_1", "ln_2", "ln_f"),
    ),
    "t5": (
        lambda: T5ForSequenceClassification(
            T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        ("layer_norm", "final_layer_norm"),
    ),
}


@pytest.mark.parametrize("architecture", DECAYED)
def test_bug_05_normalisations_and_biases_do_not_decay_by_any_name(fit, architecture):
    build, norms = DECAYED[architecture]
    decay = {}

    class Look:
        def ptrain_run_start(self, run):
            names = {id(tensor): name for name, tensor in run.model.named_parameters()}
            for group in run.optimizer.param_groups:
                decay.update({names[id(t)]: group["weight_decay"] for t in group["params"]})
            run.request_stop("seen")

    fit(build(), callbacks=[Look()], optimizer={"weight_decay": 0.1})
    assert set(decay.values()) == {0.0, 0.1}
    for name, value in decay.items():
        normalises = any(part in norms for part in name.split("."))
        assert value == (0.0 if normalises or name.endswith(".bias") else 0.1), name


def test_bug_06_any_module_is_trained_and_saved(fit, toy, weights):
    result = fit(toy.net())
    assert set(weights(result.folder)) == {"weight", "bias"}


def test_bug_08_training_data_need_no_length(fit, toy):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(toy.rows(12))

    assert fit(train=DataLoader(Stream(), batch_size=4), length="5 steps").step == 5


def test_bug_09_label_names_are_saved_with_the_model(dactbert, typed, texts, tmp_path):
    dactbert(tmp_path / "run", ema=False, length="2 steps")
    assert json.loads((tmp_path / "run/assets/labels.json").read_text())["labels"] == [
        "bad",
        "good",
    ]
    (tmp_path / "line.txt").write_text("a film\n")
    [answer] = typed("predict", tmp_path / "run", tmp_path / "line.txt").splitlines()
    assert json.loads(answer)["label"] in ("bad", "good")


def test_bug_09_tags_of_entities_and_relations_are_saved_with_the_model_too(multitask):
    heads = plugin_trainer.load_run(multitask / "run").data.heads()
    labels = {head.name: set(head.labels) for head in heads}
    assert labels["who"] == {"O", "B-person", "I-person", "B-place", "I-place"}
    assert labels["relation"] == {"home", "visit"}


def test_bug_10_a_run_can_be_resumed_with_its_optimizer_and_schedule(fit, toy, weights):
    settings = {"schedule": {"name": "cosine", "warmup": "2 steps"}}
    whole = fit(out="whole", **settings)
    fit(out="cut", callbacks=[toy.Interrupt(3)], **settings)
    cut = fit(out="cut", resume="auto", **settings)
    for file in ("model", "optimizer"):
        one, other = weights(whole.folder, file=file), weights(cut.folder, file=file)
        assert one.keys() == other.keys()
        assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_bug_11_a_short_last_batch_weighs_what_it_holds(fit, toy, lines):
    data = [({"x": torch.zeros(n, 1)}) for n in (3, 1)]

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return {"loss": self.weight + (1.0 if len(x) == 3 else 5.0)}

    flat = {"optimizer": {"learning_rate": 1e-12}}
    result = fit(Loss(), data, loss=None, length="1 epochs", log="1 epoch", **flat)
    assert lines(result.folder, "train/loss") == [pytest.approx((3 * 1.0 + 1 * 5.0) / 4)]


def test_bug_12_any_device_of_torch_can_be_chosen(fit):
    """The meta device stands for one that is neither CUDA nor the CPU."""
    assert pick_device("meta").type == "meta"
    assert pick_device("auto") is not None
