"""How long early exits take beside the unmodified encoder: in torch, in ONNX Runtime and in int8.

    python -m benchmarks.early_exit RUN [--exit 1% | --level 3.5] [--threads 2] [--into FILE.json]

All contestants answer the same window of 256 rows one after another (of one row, where that is a
batch), so a busy machine slows all of them alike. What counts is the ratio of the total times, on
the run's own validation rows, sorted by length. "in windows" puts the survivors of a window into
new batches after each block, as `ptrain predict` and the ONNX runtime do.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ptrain_dactbert import runtime
from ptrain_dactbert.block_logits import collect
from ptrain_dactbert.export import export

from plugin_trainer import load_run
from plugin_trainer.data.texts import encoders
from plugin_trainer.early_exit.rules import AgreementLevel
from plugin_trainer.early_exit.windows import AT_ONCE, ROWS

# N blocks, B rows, T tokens, C classes

FULL, IN_WINDOWS = "eager, all blocks", "eager, exits, in windows"
Answer = Callable[[Sequence[runtime.Row], int], tuple[Any, Any]]
"""The logits [B, C] of rows, in batches of so many, and the blocks [B] after which they left."""


def batch_of(rows: Sequence[runtime.Row], encoder: Any, pad_id: int) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), longest), pad_id)
    types_BT, mask_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for row, (ids, types) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        types_BT[row, : len(ids)] = torch.tensor(types)
        mask_BT[row, : len(ids)] = 1
    return encoders.inputs_of(encoder, ids_BT, mask_BT, types_BT)


def in_batches(answer: Callable[[Sequence[runtime.Row]], tuple[Any, Any]]) -> Answer:
    """Answer batch by batch."""

    def answers(rows: Sequence[runtime.Row], size: int) -> tuple[Any, Any]:
        parts = [answer(rows[at : at + size]) for at in range(0, len(rows), size)]
        blocks = [block for _, some in parts for block in some]
        return np.concatenate([logits_BC for logits_BC, _ in parts]), blocks

    return answers


def eager(model: Any, pad_id: int) -> Answer:
    def answer(rows: Sequence[runtime.Row]) -> tuple[Any, Any]:
        inputs = batch_of(rows, model.encoder, pad_id)
        with torch.inference_mode():
            states_BTH = model.encoder(**inputs).last_hidden_state
            logits_BC, _ = model.units[-1](states_BTH, inputs["attention_mask"])
        return logits_BC.numpy(), [model.num_blocks] * len(rows)

    return in_batches(answer)


def eager_exits(model: Any, pad_id: int) -> Answer:
    def answer(rows: Sequence[runtime.Row]) -> tuple[Any, Any]:
        with torch.inference_mode():
            result = model.answer_early(
                **{"token_type_ids": None, **batch_of(rows, model.encoder, pad_id)}
            )
        return result["logits"].numpy(), result["exit_block"].tolist()

    return in_batches(answer)


def eager_windows(model: Any, pad_id: int) -> Answer:
    def answer(rows: Sequence[runtime.Row], size: int) -> tuple[Any, Any]:
        batches = [
            batch_of(rows[at : at + size], model.encoder, pad_id)
            for at in range(0, len(rows), size)
        ]
        with torch.inference_mode():
            results = model.answer_window(batches)
        logits_BC = torch.cat([result["logits"] for result in results])
        return logits_BC.numpy(), torch.cat([result["exit_block"] for result in results]).tolist()

    return answer


def onnx(classifier: runtime.Classifier) -> Answer:
    def answer(rows: Sequence[runtime.Row], size: int) -> tuple[Any, Any]:
        runtime.BATCH = min(size, AT_ONCE)
        return classifier.answer(rows)

    return answer


def contestants(run: str, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Answer], Any]:
    """Each way to answer, and the validation rows."""
    loaded = load_run(run, device="cpu", checkpoint=args.checkpoint)
    exit_ = str(args.level) if args.level is not None else args.exit
    for name, int8 in (("fp32", False), ("int8", True)):
        (folder / name).mkdir()
        print(*export(loaded, folder / name, int8=int8, exit_=exit_), sep="\n")
    model: Any = loaded.model
    rows = collect(loaded, loaded.data.validation(), if_empty="name a file with rows of data")
    ways = {FULL: eager(model, loaded.data.pad_id)}
    about = json.loads((folder / "fp32" / runtime.FILE).read_text())
    fitted, level = about["agreement_map"], about["level"]
    if level is not None:
        from plugin_trainer.early_exit.agreement import AgreementMap

        agreement_map = AgreementMap(tuple(fitted["intercepts"]), tuple(fitted["slopes"]))
        model.exit_by(AgreementLevel(agreement_map, level))
        ways["eager, exits"] = eager_exits(model, loaded.data.pad_id)
        ways[IN_WINDOWS] = eager_windows(model, loaded.data.pad_id)
    for title, name, at in (
        ("ONNX, all blocks", "fp32", None),
        ("ONNX, exits", "fp32", "default"),
        ("ONNX int8, all blocks", "int8", None),
        ("ONNX int8, exits", "int8", "default"),
    ):
        ways[title] = onnx(runtime.load(folder / name, level=at, threads=args.threads))
    return ways, rows


def measure(
    ways: dict[str, Answer], windows: Sequence[Sequence[runtime.Row]], *, size: int, rounds: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Wall and CPU seconds, [rounds, windows, 2]; the contestants answer each window in turn."""
    seconds = {title: np.zeros((rounds, len(windows), 2)) for title in ways}
    order = list(ways)
    for answer in ways.values():
        answer(windows[-1], size)
    for turn in range(rounds):
        for at, window in enumerate(windows):
            random.shuffle(order)
            for title in order:
                start = time.perf_counter(), time.process_time()
                ways[title](window, size)
                spent = time.perf_counter() - start[0], time.process_time() - start[1]
                seconds[title][turn, at] = spent
    return seconds


def summary(
    seconds: dict[str, np.ndarray[Any, Any]], windows: Sequence[Sequence[runtime.Row]]
) -> dict[str, dict[str, float]]:
    found = {}
    full = seconds[FULL].sum(1)
    for title, spent in seconds.items():
        wall, cpu = (spent.sum(1) / full).T
        per_row = 1e3 * spent[..., 0] / [len(window) for window in windows]
        found[title] = {
            "ratio": float(np.median(wall)),
            "least": float(wall.min()),
            "most": float(wall.max()),
            "cpu_ratio": float(np.median(cpu)),
            "median_ms": float(np.median(per_row)),
            "p95_ms": float(np.percentile(per_row, 95)),
        }
    return found


def answers(ways: dict[str, Answer], rows: Any, texts: Sequence[runtime.Row]) -> dict[str, Any]:
    """Accuracy, agreement with the run at full depth and mean block, in batches of 32."""
    full_B = rows.logits_NBC[-1].argmax(-1).numpy()
    labels_B = rows.labels_B.numpy() if rows.labels_B is not None else None
    order = np.argsort([len(ids) for ids, _ in texts], kind="stable")
    found = {}
    for title, answer in ways.items():
        given_B, block_B = np.zeros(len(texts), int), np.zeros(len(texts))
        for first in range(0, len(order), ROWS):
            part = order[first : first + ROWS]
            logits_BC, blocks = answer([texts[row] for row in part], 32)
            given_B[part], block_B[part] = logits_BC.argmax(-1), blocks
        found[title] = {
            "accuracy": float((given_B == labels_B).mean()) if labels_B is not None else None,
            "agreement": float((given_B == full_B).mean()),
            "mean_block": float(block_B.mean()),
        }
    return found


def table(size: int, timing: dict[str, Any], judged: dict[str, Any]) -> str:
    lines = [
        f"\n| batch {size} | ratio | CPU | median / p95 ms a row | blocks | accuracy | agreement |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, its in timing.items():
        of = judged[title]
        accuracy = f"{of['accuracy']:.4f}" if of["accuracy"] is not None else ""
        lines.append(
            f"| {title} | {its['ratio']:.3f} [{its['least']:.3f}-{its['most']:.3f}] | "
            f"{its['cpu_ratio']:.3f} | "
            f"{its['median_ms']:.2f} / {its['p95_ms']:.2f} | {of['mean_block']:.2f} | {accuracy} | "
            f"{of['agreement']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Export twice, measure every batch size, print tables and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--exit", default="1%")
    parser.add_argument("--level", type=float, help="of the score, in place of a promise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="time so many rows alone, spread over the lengths")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--into", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        ways, rows = contestants(args.run, Path(folder), args)
        texts = [
            (
                text["input_ids"].tolist(),
                text.get("token_type_ids", torch.zeros_like(text["input_ids"])).tolist(),
            )
            for text in rows.texts
        ]
        judged = answers(ways, rows, texts)
        in_order = sorted(texts, key=lambda text: len(text[0]))
        in_order = in_order[:: max(1, len(in_order) // args.rows)] if args.rows else in_order
        record: dict[str, Any] = {"threads": args.threads, "rows": len(in_order), "answers": judged}
        print(f"\n{len(in_order)} rows, {args.threads} threads, {args.rounds} rounds", flush=True)
        for size in args.batch_sizes:
            each = ROWS if size > 1 else 1
            windows = [in_order[at : at + each] for at in range(0, len(in_order), each)]
            turns = {title: way for title, way in ways.items() if size > 1 or title != IN_WINDOWS}
            timing = summary(measure(turns, windows, size=size, rounds=args.rounds), windows)
            record[f"batch {size}"] = timing
            print(table(size, timing, judged), flush=True)
    if args.into:
        args.into.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
