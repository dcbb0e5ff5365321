"""A run as ONNX segments answers as the run does; int8 is calibrated anew, and compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from ptrain_dactbert import runtime
from ptrain_dactbert.export_segments import write_segments
from ptrain_dactbert.units import HaltingUnit
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from plugin_trainer import load_run
from plugin_trainer.cli.main import main
from plugin_trainer.data.texts import encoders
from plugin_trainer.errors import PtrainError
from plugin_trainer.training.model.onnx_export import export_onnx
from tests import forkserver

NUM_BLOCKS = 3
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SIZES),
    "roberta": lambda: RobertaConfig(**SIZES, pad_token_id=0, type_vocab_size=1),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=8),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=50, dim=16, n_layers=NUM_BLOCKS, n_heads=2, hidden_dim=32
    ),
    "modernbert": lambda: ModernBertConfig(
        **SIZES, pad_token_id=0, local_attention=8, global_attn_every_n_layers=2
    ),
}


def near(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The largest difference of a probability of two lists of answers."""
    return max(
        abs(a["probabilities"][label] - b["probabilities"][label])
        for a, b in zip(one, other, strict=True)
        for label in a["probabilities"]
    )


@pytest.mark.parametrize("exit_", ["off", "1%", "2%", "0.5"])
def test_the_segments_answer_as_the_run_does(
    exits_run: Path, exported: Path, texts: list[str], exit_: str
) -> None:
    loaded = load_run(exits_run)
    loaded.use_exit(exit_)
    expected = list(loaded.predict(texts))
    answers = runtime.load(exported, level=exit_).predict(texts)
    for key in ("label", "exit_block"):
        assert [one[key] for one in answers] == [one[key] for one in expected]
    assert near(answers, expected) < 1e-5
    assert {one["exit_block"] for one in answers} != {NUM_BLOCKS} or exit_ == "off"


def test_the_export_keeps_the_calibration_of_a_run_in_the_same_precision(
    exits_run: Path, exported: Path
) -> None:
    about = json.loads((exported / "exits.json").read_text())
    (calibration,) = json.loads((exits_run / "early_exit.json").read_text()).values()
    assert about["agreement_map"] == calibration["agreement_map"]
    assert about["certified"] == calibration["certified"]
    assert about["level"] == calibration["certified"][0]["level"]
    assert (about["labels"], about["precision"], about["pairs"]) == (["0", "1"], "fp32", False)
    compared = about["compared"]
    assert (compared["rows"], compared["exit"]) == (400, "1%")
    assert compared["same_exit"] == compared["exit_agreement"] == compared["full_agreement"] == 1.0
    assert 0 < compared["max_difference"] < 1e-5


def test_int8_is_calibrated_anew_and_compared_in_public(
    exits_run: Path, exported: Path, texts: list[str], tmp_path: Path, capsys: Any
) -> None:
    capsys.readouterr()
    out = tmp_path / "onnx"
    command = ["models", "export", str(exits_run), str(out), "--format", "onnx", "--int8"]
    assert main([*command, "--exit", "2%", "--max-loss", "5%"]) == 0
    shown = capsys.readouterr().out
    about, fp32 = (json.loads((at / "exits.json").read_text()) for at in (out, exported))
    assert about["precision"] == "int8"
    assert about["agreement_map"] != fp32["agreement_map"]
    assert [one["rows"] for one in about["certified"]] == [400, 400]
    assert about["level"] == about["certified"][1]["level"]
    compared = about["compared"]
    assert 1e-4 < compared["max_difference"] < 0.3
    for part in (
        "400 validation rows: int8 export beside the run in fp32",
        f"{compared['exit_agreement']:.2%}  answers as the run's by --exit 2%",
        f"{compared['full_agreement']:.2%}  answers at full depth as the run's",
        f"{compared['max_difference']:.1e}  largest difference of a probability",
        f"{compared['accuracy'][2]:.4f}  accuracy of the export by --exit 2%",
        f"--exit 1%  level {about['certified'][0]['level']:g}, ",
    ):
        assert part in shown
    *facts, _, _ = shown.splitlines()
    assert all(len(line) <= 80 for line in facts)
    # The promise is kept on the rows it was certified on, as the runtime answers them.
    off, one = (runtime.load(out, level=at).predict(texts[:400]) for at in ("off", "1%"))
    same = [a["label"] == b["label"] for a, b in zip(off, one, strict=True)]
    assert sum(same) >= 396
    for block in (1, 2, 3):
        operators = [node.op_type for node in onnx.load(out / f"block-{block}.onnx").graph.node]
        # Query, key, value, what is behind them, and the two of the feed-forward net; no unit's.
        assert operators.count("MatMulInteger") == 6


def test_an_export_that_loses_more_than_asked_is_refused(exits_run: Path, tmp_path: Path) -> None:
    loaded = load_run(exits_run)
    with torch.no_grad():
        for parameter in loaded.model.units[0].answer.parameters():
            parameter.neg_()
    with pytest.raises(PtrainError, match=r"loses .* and at most 5.00% were asked for"):
        export_onnx(loaded, tmp_path / "onnx", max_loss=0.05, exit_="-50")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exit", "3%"], "3% is no choice, or is not certified; use off, 1%, 2%, or a level"),
        (["--exit", "lossless"], "lossless is no choice"),
        (["--set", "data_settings.validation="], "there are none\n  name a file: --set"),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    exits_run: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    command = ["models", "export", str(exits_run), str(tmp_path / "onnx"), "--format", "onnx"]
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(
    exits_run: Path, exported: Path, capsys: Any
) -> None:
    before = sorted(exported.rglob("*"))
    assert main(["models", "export", str(exits_run), str(exported), "--format", "onnx"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted(exported.rglob("*")) == before


def test_a_model_that_learned_to_halt_is_refused(exits_run: Path, tmp_path: Path) -> None:
    loaded = load_run(exits_run)
    loaded.model.learns_halting = True
    with pytest.raises(PtrainError, match="learns when to halt") as caught:
        export_onnx(loaded, tmp_path / "onnx")
    assert "dactbert/exits" in str(caught.value)


def test_without_onnxruntime_the_extra_is_named(
    exits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run(exits_run)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PtrainError, match="needs onnxruntime") as caught:
        export_onnx(loaded, tmp_path / "onnx")
    assert 'pip install "ptrain-dactbert[onnx]"' in str(caught.value)


@pytest.mark.parametrize("family", CONFIGS)
def test_each_family_is_cut_into_segments(family: str, tmp_path: Path) -> None:
    """Traced on one shape, they answer for others, and for texts longer than a window too."""
    encoder = encoders.from_config(CONFIGS[family]()).eval()
    units = torch.nn.ModuleList(
        HaltingUnit(
            16, unit_size=8, num_labels=3, dropout=0.1, pooling=pooling, halting_bias=None
        ).eval()
        for pooling in ("attention", "mean", "cls")
    )
    luck = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 40, 23, 17, 1])
    ids_BT = torch.randint(1, 50, (5, 40), generator=luck)
    mask_BT = (torch.arange(40) < lengths[:, None]).long()
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    types_BT = (torch.arange(40) > lengths[:, None] // 2).long() * mask_BT
    if getattr(encoder.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = types_BT
    with torch.inference_mode():
        states = encoders.block_states(
            encoder, input_ids=ids_BT, attention_mask=mask_BT, token_type_ids=types_BT
        )
        expected_NBC = torch.stack([u(s, mask_BT)[0] for u, s in zip(units, states, strict=True)])
    traced = {key: value[:2, -30:] for key, value in inputs.items()}
    traced["attention_mask"] = (torch.arange(30) < torch.tensor([[30], [4]])).long()
    write_segments(encoder, units, tmp_path, inputs=traced)
    answers_NBC = segments_of(tmp_path, list(inputs)).block_logits(
        [
            (ids[:length].tolist(), types[:length].tolist())
            for ids, types, length in zip(ids_BT, types_BT, lengths, strict=True)
        ]
    )
    torch.testing.assert_close(torch.from_numpy(answers_NBC), expected_NBC, atol=1e-5, rtol=1e-4)


def segments_of(folder: Path, inputs: list[str]) -> runtime.Classifier:
    """The segments in a folder that has nothing else yet."""
    from plugin_trainer.data.texts.tokenizers import trained_tokenizer

    tokenizer = trained_tokenizer(["a film"], vocabulary_size=50)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    about = {"format": 1, "num_blocks": NUM_BLOCKS, "inputs": inputs, "labels": list("abc")}
    about |= {"pairs": False, "max_tokens": 40, "pad_id": 0, "level": None}
    (folder / "exits.json").write_text(json.dumps(about))
    return runtime.load(folder)


HUGGINGFACE = """
import json, sys
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers import dynamic_module_utils
folder, dynamic_module_utils.HF_MODULES_CACHE, *texts = sys.argv[1:]
encoder = AutoModel.from_pretrained(folder).eval()
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
states = [each(**batch).last_hidden_state for each in (encoder, model.bert)]
assert type(encoder).__name__ == "BertModel" and states[0].equal(states[1])
loss = model(**batch, labels=batch["input_ids"][:, 0] * 0).loss
loss.backward()
probabilities = model(**batch).logits.softmax(-1).tolist()
print(json.dumps([dict(zip(model.config.id2label.values(), values)) for values in probabilities]))
"""


@pytest.mark.process
def test_the_full_depth_classifier_loads_in_plain_transformers(
    exported: Path, texts: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "huggingface"
    shutil.copytree(exported / "huggingface", folder)
    command = [sys.executable, "-c", HUGGINGFACE, str(folder), str(tmp_path / "cache")]
    done = forkserver.run([*command, *texts[:20]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [{"probabilities": one} for one in json.loads(done.stdout)]
    assert near(found, runtime.load(exported, level=None).predict(texts[:20])) < 1e-5
    assert AutoModel.from_pretrained(folder).config.id2label == {0: "0", 1: "1"}


def test_a_registered_model_keeps_its_calibration(
    exits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PTRAIN_MODELS", raising=False)
    assert main(["models", "register", str(exits_run), "--name", "films"]) == 0
    assert main(["models", "export", "films", "out"]) == 0
    Path("input.txt").write_text("\n".join(texts[:50]))
    capsys.readouterr()
    for run in (str(exits_run), "out"):
        assert main(["predict", run, "input.txt", "--exit", "1%"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:50] == lines[50:]
    assert main(["models", "export", "films", "onnx", "--format", "onnx", "--exit", "off"]) == 0
    about = json.loads(Path("onnx/exits.json").read_text())
    (calibration,) = json.loads((exits_run / "early_exit.json").read_text()).values()
    assert (about["certified"], about["level"]) == (calibration["certified"], None)
