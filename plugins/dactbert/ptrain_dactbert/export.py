"""Export an early-exit classifier to ONNX: one segment a block, and what a runtime needs to know.

block-1.onnx ...  a block and its unit: states and class logits
exits.json        the agreement map, the certified levels, the label names, what was compared
tokenizer.json    what the `tokenizers` library reads
runtime.py        answers texts without torch: `python FOLDER/runtime.py FOLDER INPUT`
huggingface/      encoder, last unit and tokenizer: the full-depth classifier for transformers
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugin_trainer.errors import PtrainError
from ptrain_dactbert import runtime
from ptrain_dactbert.block_logits import Batch, BlockLogits, collect
from ptrain_dactbert.export_compare import compare, report
from ptrain_dactbert.export_exits import (
    about_exits,
    calibrated,
    choose,
    exits_of,
    exits_of_run,
    promises,
)
from ptrain_dactbert.export_huggingface import write_huggingface
from ptrain_dactbert.export_int8 import quantize
from ptrain_dactbert.export_segments import cannot, write_segments

if TYPE_CHECKING:
    from plugin_trainer.training.inference import LoadedRun

# N blocks, B rows, T tokens, C classes

_TRIED_ROWS = 16
_TOLERANCE = 1e-3  # of a logit, fp32 beside fp32: rounding is a hundredth of it


def export(
    loaded: LoadedRun,
    folder: Path,
    *,
    int8: bool = False,
    max_loss: float | None = None,
    exit_: str | None = None,
) -> list[str]:
    """Fill an empty folder; gives what was found in comparing it with the run, a line each.

    int8      quantize the weights, and calibrate the exits anew
    max_loss  how much accuracy the export may lose against the run's full depth
    exit_     how the runtime leaves by default: "off", a promise such as "1%", or a level; None:
              1% where that is certified, else off

    Raises PtrainError for a model that cannot be exported, and for an export that loses too much.
    """
    _check(loaded)
    rows = collect(loaded, _validation(loaded), if_empty="name a file with rows of data")
    model: Any = copy.deepcopy(loaded.model).cpu().eval()
    _write_beside(folder, model, loaded)
    tried = _padded_rows(rows, model, max_tokens=loaded.data.max_tokens)
    write_segments(model.encoder, model.units, folder, inputs=tried)
    about = _about(loaded, inputs=list(tried), int8=int8)
    _write_about(folder, about)
    _check_segments(folder, model, tried)
    if int8:
        quantize(folder, num_blocks=model.num_blocks)
    logits_NBC = _segment_logits(folder, rows)
    calibration, refused = calibrated(loaded, rows, logits_NBC, int8=int8)
    about |= about_exits(calibration)
    chosen = choose(about, exit_, refused)
    about["level"] = runtime.level_of(about, chosen)
    run_exits, exits = exits_of_run(loaded, chosen), exits_of(calibration, about["level"])
    comparison = compare(rows, logits_NBC, run_exits=run_exits, exits=exits)
    comparison.check(max_loss)
    _write_about(folder, about | {"compared": comparison.as_json(exit_=chosen)})
    title = f"{len(rows.texts)} validation rows: {about['precision']} export beside the run in "
    lines = [f"{title}{loaded.precision.name}"]
    lines += report(comparison, exit_=chosen, num_blocks=model.num_blocks)
    return [*lines, *promises(calibration, refused)]


def _check(loaded: LoadedRun) -> None:
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise PtrainError(
            f"an ONNX export needs {' and '.join(missing)}",
            hint='install what is missing: pip install "ptrain-dactbert[onnx]"',
        )
    model: Any = loaded.model
    if model.learns_halting:
        raise PtrainError(
            "the answer of a model that learns when to halt is mixed from all its blocks, and has "
            "no ONNX export",
            hint='train with loss = "joint", as the recipe dactbert/exits does',
        )


def _validation(loaded: LoadedRun) -> Iterable[Batch]:
    loader = loaded.data.validation()
    if loader is None:
        raise PtrainError(
            "an export compares itself with the run on its validation rows, and there are none",
            hint="name a file: --set data_settings.validation=FILE",
        )
    batches: Iterable[Batch] = loader
    return batches


def _write_beside(folder: Path, model: Any, loaded: LoadedRun) -> None:
    shutil.copyfile(runtime.__file__, folder / "runtime.py")
    tokenizer = loaded.data.tokenizer
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_huggingface(
        model.encoder,
        model.units[-1],
        folder / "huggingface",
        tokenizer=tokenizer,
        labels=loaded.data.label_names,
    )


def _padded_rows(rows: BlockLogits, model: Any, *, max_tokens: int) -> dict[str, Tensor]:
    """The encoder's arguments for some of the rows, and for one of as many tokens as a row has."""
    texts = list(rows.texts[: _TRIED_ROWS - 1])
    some = torch.cat([text["input_ids"] for text in texts])
    longest = some.repeat(-(-max_tokens // len(some)))[:max_tokens]
    ids = [*(text["input_ids"] for text in texts), longest]
    padded = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(row) for row in ids], batch_first=True
        ),
    }
    if "token_type_ids" in texts[0] and getattr(model.encoder.config, "type_vocab_size", 0) > 1:
        types = [*(text["token_type_ids"] for text in texts), torch.zeros_like(longest)]
        padded["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(types, batch_first=True)
    return padded


def _about(loaded: LoadedRun, *, inputs: list[str], int8: bool) -> dict[str, Any]:
    data, model = loaded.data, loaded.model
    return {
        "format": runtime.FORMAT,
        "num_blocks": model.num_blocks,
        "inputs": inputs,
        "labels": list(data.label_names),
        "pairs": bool(data.pairs),
        "max_tokens": data.max_tokens,
        "pad_id": data.pad_id,
        "precision": "int8" if int8 else "fp32",
        "agreement_map": None,
        "certified": [],
        "level": None,
    }


def _write_about(folder: Path, about: Mapping[str, Any]) -> None:
    text = json.dumps(about, ensure_ascii=False, indent=1)
    (folder / runtime.FILE).write_text(text + "\n", encoding="utf-8")


def _segment_logits(folder: Path, rows: BlockLogits) -> Tensor:
    """What the segments answer, [N, B, C] in float64, batched as the runtime does it."""
    classifier = runtime.load(folder, level=None)
    texts = [
        (
            text["input_ids"].tolist(),
            text.get("token_type_ids", torch.zeros_like(text["input_ids"])).tolist(),
        )
        for text in rows.texts
    ]
    return torch.from_numpy(classifier.block_logits(texts)).double()


def _check_segments(folder: Path, model: Any, tried: Mapping[str, Tensor]) -> None:
    """Refuse segments that answer otherwise than the model in float32: a trace is of one input."""
    with torch.inference_mode():
        expected_NBC, _ = model.block_logits(**tried)
    classifier = runtime.load(folder, level=None)
    types_BT = tried.get("token_type_ids", torch.zeros_like(tried["input_ids"]))
    texts = [
        (ids_T[valid_T].tolist(), types_T[valid_T].tolist())
        for ids_T, types_T, valid_T in zip(
            tried["input_ids"], types_BT, tried["attention_mask"].bool(), strict=True
        )
    ]
    logits_NBC = torch.from_numpy(classifier.block_logits(texts))
    worst = float((logits_NBC - expected_NBC).abs().max())
    if not worst < _TOLERANCE:
        raise cannot(model.encoder, f"a logit of its segments is {worst:.2g} off")
