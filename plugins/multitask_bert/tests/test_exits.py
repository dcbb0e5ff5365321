"""A task may have exits: every block learns to answer, and a text leaves where a rule lets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ptrain_multitask_bert.exits import to_logits, to_units
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.model import SharedEncoder
from torch import Tensor

from plugin_trainer import load_run
from plugin_trainer.cli.main import main
from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.blocks import find_blocks
from plugin_trainer.early_exit.fitting import BlockAnswers
from plugin_trainer.early_exit.inference import replay
from plugin_trainer.early_exit.rules import AgreementLevel, Certificate
from plugin_trainer.early_exit.tolerance import ToleranceLevel, ToleranceMap
from plugin_trainer.errors import PtrainError

# N blocks, B texts, T tokens, C labels

MakeModel = Callable[..., SharedEncoder]
NUM_BLOCKS = 4
LABELS = {
    "single_label": ("no", "yes", "maybe"),
    "multi_label": ("cheap", "fast", "good"),
    "tokens": ("O", "B-person", "I-person"),
    "relation": ("none", "of(e1,e2)", "of(e2,e1)", "met"),
    "regression": (),
}
KINDS = tuple(LABELS)
MAP = AgreementMap((-0.6, -0.5, -0.4), (1.0, 1.0, 1.0))


def head_of(kind: Any, *, exits: bool = True) -> Head:
    """A head of a kind, whose task has the name of the kind."""
    more = {"tolerance": 0.1} if kind == "regression" and exits else {}
    return Head(task=kind, name="answer", kind=kind, labels=LABELS[kind], exits=exits, **more)


def batch_of(kind: str, *, rows: int = 24, labelled: bool = False) -> dict[str, Any]:
    """A batch of random tokens of different lengths; every other token is the first of a word."""
    generator = torch.Generator().manual_seed(3)
    lengths_B1 = torch.randint(5, 10, (rows, 1), generator=generator)
    mask_BT = (torch.arange(9) < lengths_B1).long()
    word_BT = torch.where((torch.arange(9) % 2 == 1) & mask_BT.bool(), 1, -100)
    batch = {
        "task": kind,
        "input_ids": torch.randint(5, 290, (rows, 9), generator=generator) * mask_BT,
        "attention_mask": mask_BT,
        "mark_positions": torch.randint(5, (rows, 2), generator=generator),
        "word": word_BT,
    }
    if labelled:
        count = len(LABELS[kind])
        if kind == "tokens":
            batch["labels_answer"] = torch.where(word_BT > 0, 1, -100)
        elif kind == "multi_label":
            batch["labels_answer"] = torch.ones(rows, count)
        else:
            labels_B = torch.arange(rows) % max(count, 2)
            batch["labels_answer"] = labels_B.float() if kind == "regression" else labels_B
    return batch


def some(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        key: value[rows] if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def rule_of(name: str, known: BlockAnswers) -> Any:
    """A rule by which some of these texts leave early, and others do not."""
    if known.tolerance is not None:
        return ToleranceLevel(ToleranceMap((-1.0, 0.5, 0.5), (0.0, 3.0, 3.0), 0.1), 0.0)
    # Not the score of any text: the last bits of that depend on its batch.
    level = known.scores(MAP)[:-1].median().item() + 1e-3
    if name == "lossless":
        return Certificate(agreement_map=MAP, level=level)
    return AgreementLevel(MAP, level)


@pytest.fixture
def model(make_model: MakeModel) -> SharedEncoder:
    """A model whose tasks, one of each kind, all have exits; in evaluation mode."""
    made = make_model(*map(head_of, KINDS), num_blocks=NUM_BLOCKS, initializer_range=0.3)
    with torch.no_grad():
        for answer in made.heads.values():
            for linear in (answer.linear, *answer.earlier):
                linear.weight *= 3
    return made.eval()


# ------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, "agreement") for kind in KINDS]
    + [(kind, "lossless") for kind in KINDS if kind != "regression"],
)
def test_answers_are_those_of_all_blocks_in_any_batch(
    kind: str, name: str, model: SharedEncoder
) -> None:
    batch = batch_of(kind)
    with torch.inference_mode():
        known = model.block_answers(**batch)
        rule = rule_of(name, known)
        expected, _ = replay(rule, known.logits_NBC, valid_BT=known.valid_BT)
        full = model(**batch)["logits"]["answer"]
    logits = to_logits(model.heads[f"{kind}/answer"].head, expected.answer_BC)
    assert len(expected.block_B.unique()) > 1
    model.exit_by(rule, task=kind)
    calls: list[int] = []
    for block in find_blocks(model.encoder):
        block.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    rows_B = torch.arange(24)
    for rows in (rows_B, rows_B.flip(0), *rows_B[:, None]):
        calls.clear()
        found = model(**some(batch, rows))
        assert torch.equal(found["exit_block"], expected.block_B[rows])
        assert sum(calls) == expected.block_B[rows].sum()
        answers, wanted = found["logits"]["answer"], logits[rows]
        if kind == "tokens":  # the others count for nothing, and may be of another length
            valid_BT = batch["word"][rows] > 0
            answers, wanted = answers[valid_BT], wanted[valid_BT]
        torch.testing.assert_close(answers, wanted, atol=1e-5, rtol=1e-5)
    at_last_B = expected.block_B == NUM_BLOCKS
    if name == "agreement":
        torch.testing.assert_close(logits[at_last_B], full[at_last_B], atol=1e-5, rtol=1e-5)


def test_a_task_without_exits_runs_all_blocks(make_model: MakeModel) -> None:
    heads = head_of("tokens"), head_of("single_label", exits=False)
    model = make_model(*heads, num_blocks=NUM_BLOCKS).eval()
    batch = batch_of("single_label")
    before = model(**batch)
    model.exit_by(AgreementLevel(MAP, -100.0))
    assert model(**batch_of("tokens"))["exit_block"].tolist() == [1] * 24
    calls: list[int] = []
    for block in find_blocks(model.encoder):
        block.register_forward_hook(lambda *_: calls.append(1))
    after = model(**batch)
    assert len(calls) == NUM_BLOCKS
    assert set(after) == set(before) == {"logits"}
    assert torch.equal(after["logits"]["answer"], before["logits"]["answer"])
    with pytest.raises(PtrainError, match="'single_label' has no exits"):
        model.exit_by(None, task="single_label")


@pytest.mark.parametrize("name", ["agreement", "lossless"])
def test_an_evaluation_says_where_texts_left_and_with_which_answers(
    name: str, model: SharedEncoder
) -> None:
    batch = batch_of("tokens", labelled=True)
    off = model(**batch)
    assert off["exit_block"].tolist() == [NUM_BLOCKS] * 24
    model.exit_by(rule_of(name, model.block_answers(**batch)), task="tokens")
    found = model(**batch)
    tags_BT, last_BT = (one["logits"]["answer"].argmax(-1) for one in (found, off))
    valid_BT = batch["word"] > 0
    agrees_B = ((tags_BT == last_BT) | ~valid_BT).all(1)
    assert torch.equal(found["last_block_agrees"], agrees_B)
    assert 0 < agrees_B.sum() < 24
    # Lossless is with its own full answer, which is not always the last block's.
    assert torch.equal(found["exit_agrees"], agrees_B | (name == "lossless"))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_a_label_of_many_is_a_decision_of_its_own(threshold: float) -> None:
    head = Head(
        task="mail", name="topics", kind="multi_label", labels=("a", "b"), threshold=threshold
    )
    logits_BC = torch.randn(50, 2)
    units_BC2 = to_units(head, logits_BC)
    assert torch.equal(units_BC2.argmax(-1) == 1, logits_BC.sigmoid() >= threshold)
    torch.testing.assert_close(to_logits(head, units_BC2), logits_BC)
    torch.testing.assert_close(to_logits(head, units_BC2.log_softmax(-1)), logits_BC)


# -------------------------------------------------------------------------------------- training


def test_without_the_setting_there_is_one_linear_layer_and_its_loss(make_model: MakeModel) -> None:
    model = make_model(head_of("single_label", exits=False), num_blocks=NUM_BLOCKS, dropout=0.0)
    names = [name for name in model.state_dict() if name.startswith("heads.")]
    assert names == [f"heads.single_label/answer.linear.{name}" for name in ("weight", "bias")]
    batch = batch_of("single_label", labelled=True)
    found = model.train()(**batch)
    expected = torch.nn.functional.cross_entropy(found["logits"]["answer"], batch["labels_answer"])
    torch.testing.assert_close(found["loss"], expected)
    assert set(found) == {"loss", "parts", "count", "logits"}


def test_with_it_nothing_else_begins_with_other_weights(make_model: MakeModel) -> None:
    torch.manual_seed(0)
    plain = make_model(head_of("tokens", exits=False)).state_dict()
    torch.manual_seed(0)
    made = make_model(head_of("tokens")).state_dict()
    assert {name for name in made if name not in plain} == {
        "heads.tokens/answer.earlier.0.weight",
        "heads.tokens/answer.earlier.0.bias",
    }
    assert all(torch.equal(made[name], values) for name, values in plain.items())


def test_every_block_is_trained_in_proportion_to_its_number(model: SharedEncoder) -> None:
    batch = batch_of("tokens", labelled=True)
    answer = model.heads["tokens/answer"]
    with torch.no_grad():
        known = model.block_answers(**batch)
    each = [
        torch.nn.functional.cross_entropy(logits_BTC.flatten(0, 1), batch["labels_answer"].ravel())
        for logits_BTC in known.logits_NBC
    ]
    expected = sum(n * loss for n, loss in enumerate(each, start=1)) / (1 + 2 + 3 + 4)
    evaluated = model(**batch)
    torch.testing.assert_close(evaluated["loss"], each[-1])  # of full depth
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = model(**batch)
    torch.testing.assert_close(found["loss"], torch.as_tensor(expected))
    assert found["count"] == evaluated["count"]
    found["loss"].backward()
    assert all(linear.weight.grad.any() for linear in (answer.linear, *answer.earlier))


# -------------------------------------------------------------------------------------- mistakes


def test_an_encoder_of_one_block_has_no_exits(make_model: MakeModel) -> None:
    with pytest.raises(PtrainError, match="has exits, and the encoder has one block"):
        make_model(head_of("tokens"), num_blocks=1)


def test_a_regression_needs_a_tolerance() -> None:
    with pytest.raises(PtrainError, match="exits of a regression need a tolerance"):
        Head(task="score", name="value", kind="regression", exits=True)


# ------------------------------------------------------------------------------------ whole runs

SMALL = {
    "model_settings.hidden_size": "32",
    "model_settings.num_blocks": "3",
    "model_settings.num_heads": "2",
    "data_settings.tasks.entities.exits": "true",
    "data_settings.tasks.sentiment.exits": "true",
    "data_settings.tasks.relations.examples": "64",
    "data_settings.tasks.relations.validation_examples": "16",
    **{f"data_settings.tasks.{task}.examples": "800" for task in ("entities", "sentiment")},
    **{
        f"data_settings.tasks.{task}.validation_examples": "300"
        for task in ("entities", "sentiment")
    },
    "length": "4 epochs",
    "evaluate": "4 epochs",
    "save": "4 epochs",
    "optimizer.learning_rate": "5e-3",
    "precision": "fp32",
    "callbacks": '["-progress_bar", "-tensorboard"]',
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run of three tasks, of which entities and sentiment have exits."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("exits") / "run"
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    assert main(["run", "--plugin", "multitask_bert", *sets, "--out", str(folder)]) == 0
    promises = ["--max-disagreement", "2%", "--max-disagreement", "10%"]
    assert main(["calibrate", str(folder), *promises]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def evaluated(run: Path, exit_: str, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--exit", exit_, "--json"]) == 0
    metrics: dict[str, float] = json.loads(capsys.readouterr().out)
    return metrics


def test_each_task_keeps_its_promise(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = load_run(run).evaluate()
    off, ten = (evaluated(run, exit_, capsys) for exit_ in ("off", "10%"))
    assert {name: off[name] for name in plain} == plain
    for task in ("entities", "sentiment"):
        assert off[f"val/{task}/mean_exit_block"] == 3
        assert off[f"val/{task}/last_block_agreement"] == 1
        assert ten[f"val/{task}/mean_exit_block"] < 3
        assert ten[f"val/{task}/last_block_agreement"] >= 0.9
        assert ten[f"val/{task}/exit_agreement"] == ten[f"val/{task}/last_block_agreement"]
    assert ten["val/entities/mean_exit_block"] > 1
    assert ten["val/entities/last_block_agreement"] < 1
    assert ten["val/relations/loss"] == off["val/relations/loss"]
    assert not any("relations/mean_exit" in name for name in ten)


def test_lossless_agrees_with_its_own_full_answer_on_every_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluated(run, "lossless", capsys)
    for task in ("entities", "sentiment"):
        assert metrics[f"val/{task}/exit_agreement"] == 1
        assert metrics[f"val/{task}/mean_exit_block"] < 3


def test_predictions_are_those_of_an_evaluation_and_alone_as_among_others(run: Path) -> None:
    loaded = load_run(run)
    loaded.use_exit("10%")
    lines = [
        "yesterday jordan flew from florence to oslo",
        "the staff is rude but the soup is not bad",
        "maria of acme met jonas",
        "the wine is good",
        "<e1> maria </e1> of acme met jonas of <e2> zenith </e2>",
    ]
    together = list(loaded.predict(lines))
    assert "exit_block" not in together[4]["relations"]
    for batch in loaded.data.predict(lines):
        task, rule = batch["task"], loaded.model.exit_rules.get(batch["task"])
        if rule is None:
            continue
        with torch.inference_mode():
            known = loaded.model.block_answers(**batch)
        exits, _ = replay(rule, known.logits_NBC, valid_BT=known.valid_BT)
        assert [answer[task]["exit_block"] for answer in together] == exits.block_B.tolist()
    for line, answer in zip(lines, together, strict=True):
        (alone,) = loaded.predict([line])
        for task in ("entities", "sentiment"):
            assert alone[task]["exit_block"] == answer[task]["exit_block"]
        assert alone["sentiment"]["label"]["label"] == answer["sentiment"]["label"]["label"]
        found, again = (
            [(entity["type"], entity["start"]) for entity in one["entities"]["entities"]]
            for one in (alone, answer)
        )
        assert found == again


def test_a_calibration_is_by_task_and_on_rows_of_ones_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run / "early_exit.json").read_text())
    assert {key.rsplit("/")[-1] for key in before} == {"entities", "sentiment"}
    rows = tmp_path / "rows.txt"
    loaded = load_run(run)
    texts = [
        loaded.data.tokenizer.decode(ids, skip_special_tokens=True)
        for batch in loaded.data.validation()["sentiment"]
        for ids in batch["input_ids"]
    ]
    # Only the sentiment is asked; of the entities nothing is known then, and what was is kept.
    rows.write_text("".join(json.dumps({"task": "sentiment", "text": t}) + "\n" for t in texts))
    capsys.readouterr()
    command = ["calibrate", str(run), "--rows", str(rows), "--max-disagreement", "5%", "--apart"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "sentiment\n300 rows in fp32; tested on other rows\n--exit 5%" in shown
    assert "entities\nthere are no rows to calibrate the task 'entities' on" in shown
    after = json.loads((run / "early_exit.json").read_text())
    for key, entry in before.items():
        assert (after[key] == entry) == key.endswith("entities")


def test_a_promise_that_no_task_can_make_is_one_message(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "early_exit.json").read_text()
    assert main(["calibrate", str(run), "--max-disagreement", "0.5%"]) == 2
    assert "too few rows: 598 are needed" in capsys.readouterr().err
    assert (run / "early_exit.json").read_text() == before
    assert main(["evaluate", str(run), "--exit", "0.5%"]) == 2
    assert "certified for at most 0.5% disagreement (task '" in capsys.readouterr().err


def test_a_run_from_before_there_were_exits_still_answers(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {key: value for key, value in SMALL.items() if "exits" not in key}
    sets |= {"length": "2 steps"}
    run = tmp_path / "run"
    arguments = [f"--set={key}={value}" for key, value in sets.items()]
    assert main(["run", "--plugin", "multitask_bert", *arguments, "--out", str(run)]) == 0
    line = ["the soup is not bad"]
    expected = list(load_run(run).predict(line))
    file = run / "assets" / "tasks.json"
    about = json.loads(file.read_text())
    for task in about["tasks"].values():
        for head in task["heads"]:
            del head["exits"], head["tolerance"]
    file.write_text(json.dumps(about))
    written = json.loads((run / "run.json").read_text())
    del written["assets"]  # nor hashes of them
    (run / "run.json").write_text(json.dumps(written))
    assert list(load_run(run).predict(line)) == expected
    capsys.readouterr()
    assert main(["calibrate", str(run)]) == 2
    assert "has no early exit" in capsys.readouterr().err
    arguments[-1:] = ["--set", 'callbacks=["early_exit"]', "--set", "length=2 steps"]
    assert main(["run", "--plugin", "multitask_bert", *arguments, "--out", str(run) + "2"]) == 2
    assert "has no early exit" in capsys.readouterr().err


def test_a_task_of_several_heads_has_no_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mail.jsonl").write_text(
        "".join(
            json.dumps({"text": f"mail {n}", "urgent": str(n % 2), "length": n}) + "\n"
            for n in range(8)
        )
    )
    file = tmp_path / "run.toml"
    file.write_text(
        'plugins = ["multitask_bert"]\nmodel = "multitask_bert/shared_encoder"\n'
        'data = "multitask_bert/tasks"\nlength = "2 steps"\n'
        f'[data_settings.tasks.mail]\ntrain = "{tmp_path}/mail.jsonl"\nexits = true\n'
        "[data_settings.tasks.mail.heads.urgent]\n"
        '[data_settings.tasks.mail.heads.length]\nkind = "regression"\n'
    )
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "data_settings.tasks.mail.exits is set, and the task has 2 heads" in said
    assert "Traceback" not in said


def test_numbers_leave_early_within_their_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many of the words are good, from 0 to 1: a run that calibrates itself, and is asked."""
    generator = torch.Generator().manual_seed(0)

    def write(name: str, count: int) -> None:
        good_BT = torch.randint(2, (count, 8), generator=generator)
        rows = [
            {
                "text": " ".join("good" if one else "bad" for one in row),
                "label": sum(row) / len(row),
            }
            for row in good_BT.tolist()
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("train.jsonl", 640)
    write("validation.jsonl", 200)
    file, run = tmp_path / "run.toml", tmp_path / "run"
    file.write_text(
        'plugins = ["multitask_bert"]\nmodel = "multitask_bert/shared_encoder"\n'
        'data = "multitask_bert/tasks"\nlength = "4 epochs"\n'
        'callbacks = ["early_exit", "-progress_bar", "-tensorboard"]\nprecision = "fp32"\n'
        "[callback_settings.early_exit]\nmax_disagreement = [0.05]\n"
        "[model_settings]\nhidden_size = 16\nnum_blocks = 3\nnum_heads = 2\n"
        f'[data_settings.tasks.words]\ntrain = "{tmp_path}/train.jsonl"\nexits = true\n'
        f'validation = "{tmp_path}/validation.jsonl"\n'
        '[data_settings.tasks.words.heads.share]\nkind = "regression"\ntolerance = 0.05\n'
        "[optimizer]\nlearning_rate = 5e-3\n"
    )
    assert main(["run", str(file), "--out", str(run)]) == 0
    assert "early exit, words" in capsys.readouterr().out
    loaded = load_run(run)
    found = {}
    for exit_ in ("off", "5%", "lossless"):
        loaded.use_exit(exit_)
        found[exit_] = loaded.evaluate()
    off, five, lossless = found.values()
    assert five["val/words/mean_exit_block"] < 3
    assert five["val/words/last_block_agreement"] >= 0.95
    assert off["val/words/share/mae"] < 0.1
    assert five["val/words/share/mae"] <= off["val/words/share/mae"] + 0.05
    assert lossless["val/words/mean_exit_block"] == 3  # numbers have no certificate
    loaded.use_exit("5%")
    (answer,) = loaded.predict(["good bad good good bad good bad good"])
    assert answer["words"]["share"]["value"] == pytest.approx(0.625, abs=0.2)
    assert answer["words"]["exit_block"] in (1, 2, 3)
