"""Answer texts with an exported classifier: ONNX Runtime, tokenizers and numpy, and no torch.

from ptrain_dactbert.runtime import load
load(FOLDER).predict(["a warm and funny film"])

python -m ptrain_dactbert.runtime FOLDER [INPUT]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# N blocks, B rows, R rows of one call, T tokens, H width of a block, C classes

FORMAT = 1
FILE = "exits.json"
WINDOW, BATCH = 256, 32
"""Rows sorted by length go through a block in batches; after it, the survivors of a window are put
into new batches."""

_SLOWER = ("SkipLayerNormFusion", "BiasSkipLayerNormFusion")
"""Fused, a sum and a norm take four times as long: 8 % of an int8 block (ONNX Runtime 1.32)."""

Array = np.ndarray[Any, Any]
Row = tuple[Sequence[int], Sequence[int]]
"""The token ids and the token types of a text."""
Visit = Callable[[int, list[int], Array], Array]
"""visit(block, rows_R, logits_RC) -> stays_R; blocks count from 1."""


class Classifier:
    """The segments of an exported folder.

    level  of the score, the log-odds of agreeing with the last block; None: all blocks
    """

    def __init__(self, folder: Path, *, level: float | str | None, threads: int) -> None:
        self.about = _about(folder)
        self.level = level_of(self.about, level)
        self.num_blocks: int = self.about["num_blocks"]
        self._labels: list[str] = self.about["labels"]
        self._tokenizer = _tokenizer(folder, max_tokens=self.about["max_tokens"])
        blocks = range(1, self.num_blocks + 1)
        self._sessions = [_session(folder / f"block-{block}.onnx", threads) for block in blocks]

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Label, probabilities and exit block of each text, in order.

        Raises ValueError for a text without a tab where the classifier was trained on pairs.
        """
        pairs = self.about["pairs"]
        encoded = self._tokenizer.encode_batch(_split_pairs(texts) if pairs else list(texts))
        logits_BC, block_B = self.answer([(one.ids, one.type_ids) for one in encoded])
        odds_BC = np.exp(logits_BC.astype(np.float64) - logits_BC.max(-1, keepdims=True))
        probabilities_BC = odds_BC / odds_BC.sum(-1, keepdims=True)
        return [
            {
                "label": self._labels[best],
                "probabilities": dict(zip(self._labels, values, strict=True)),
                "exit_block": block,
            }
            for best, values, block in zip(
                logits_BC.argmax(-1), probabilities_BC.tolist(), block_B.tolist(), strict=True
            )
        ]

    def answer(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        """The logits [B, C] of each row where it leaves, and the block [B] after which it does."""
        logits_BC = np.zeros((len(rows), len(self._labels)), np.float32)
        block_B = np.zeros(len(rows), np.int64)

        def visit(block: int, rows_R: list[int], logits_RC: Array) -> Array:
            logits_BC[rows_R], block_B[rows_R] = logits_RC, block  # later, those that stay again
            return self._stays(block, logits_RC)

        self._run(rows, visit)
        return logits_BC, block_B

    def block_logits(self, rows: Sequence[Row]) -> Array:
        """The logits of every block, [N, B, C]."""
        logits_NBC = np.zeros((self.num_blocks, len(rows), len(self._labels)), np.float32)

        def visit(block: int, rows_R: list[int], logits_RC: Array) -> Array:
            logits_NBC[block - 1, rows_R] = logits_RC
            return np.full(len(rows_R), True)

        self._run(rows, visit)
        return logits_NBC

    def _stays(self, block: int, logits_RC: Array) -> Array:
        if self.level is None or block == self.num_blocks:
            return np.full(len(logits_RC), True)
        fitted = self.about["agreement_map"]
        top_R2 = np.partition(logits_RC.astype(np.float64), -2, axis=-1)[:, -2:]
        margin_R = top_R2[:, 1] - top_R2[:, 0]
        score_R = fitted["intercepts"][block - 1] + fitted["slopes"][block - 1] * margin_R
        stays_R: Array = score_R < self.level
        return stays_R

    def _run(self, rows: Sequence[Row], visit: Visit) -> None:
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
        for first in range(0, len(order), WINDOW):
            self._run_window(rows, order[first : first + WINDOW], visit)

    def _run_window(self, rows: Sequence[Row], left: list[int], visit: Visit) -> None:
        states: dict[int, Array] = {}
        for block, session in enumerate(self._sessions, 1):
            survivors: list[int] = []
            for first in range(0, len(left), BATCH):
                rows_R = left[first : first + BATCH]
                lengths = [max(1, len(rows[row][0])) for row in rows_R]
                mask_RT = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
                feed = {"attention_mask": mask_RT}
                if block == 1:
                    feed |= self._first_inputs([rows[row] for row in rows_R], mask_RT)
                else:
                    feed["states"] = _padded([states.pop(row) for row in rows_R])
                *next_states, logits_RC = session.run(None, feed)
                stays_R = visit(block, rows_R, logits_RC)
                if not next_states:  # the last block
                    continue
                for at in stays_R.nonzero()[0].tolist():
                    states[rows_R[at]] = next_states[0][at, : lengths[at]]
                    survivors.append(rows_R[at])
            left = survivors

    def _first_inputs(self, rows: Sequence[Row], mask_RT: Array) -> dict[str, Array]:
        ids_RT = np.full_like(mask_RT, self.about["pad_id"])
        types_RT = np.zeros_like(mask_RT)
        for row, (ids, types) in enumerate(rows):
            ids_RT[row, : len(ids)], types_RT[row, : len(types)] = ids, types
        with_types = "token_type_ids" in self.about["inputs"]
        return {"input_ids": ids_RT} | ({"token_type_ids": types_RT} if with_types else {})


def load(
    folder: str | Path, *, level: float | str | None = "default", threads: int = 1
) -> Classifier:
    """Load what `ptrain models export MODEL FOLDER --format onnx` wrote.

    level    as level_of takes it

    Raises ValueError for a folder or a level that cannot be used, and ImportError without
    onnxruntime.
    """
    return Classifier(Path(folder), level=level, threads=threads)


def level_of(about: Mapping[str, Any], level: float | str | None) -> float | None:
    """The level of a choice: "default" is that of exits.json, None and "off" are all blocks, "1%"
    is what is certified for that promise, and a number is itself.

    Raises ValueError for what is none of these.
    """
    if level == "default":
        level = about["level"]
    if level is None or level == "off":
        return None
    if not about["agreement_map"]:
        raise ValueError(f"{level} needs calibrated exits, and there are none; use off")
    promises = {f"{100 * one['max_disagreement']:g}%": one["level"] for one in about["certified"]}
    if level in promises:
        return float(promises[level])
    try:
        number = float(level)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        choices = ", ".join(("off", *promises, "or a level such as 4.5"))
        raise ValueError(f"{level} is no choice, or is not certified; use {choices}")
    return number


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is no exported classifier: {FILE} cannot be read ({error}); "
            "make one: ptrain models export MODEL FOLDER --format onnx"
        ) from None
    if about["format"] != FORMAT:
        raise ValueError(f"{folder} has format {about['format']}, and this reads {FORMAT}")
    return about


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'onnxruntime is not installed; install it: pip install "ptrain-dactbert[onnx]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Each segment has threads of its own: those of the last one must not spin while this one runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # a pattern is of one shape, and texts have all lengths
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
    )


def _tokenizer(folder: Path, *, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens, strategy="longest_first")
    return tokenizer


def _split_pairs(texts: Sequence[str]) -> list[tuple[str, ...]]:
    pairs = [tuple(text.split("\t")) for text in texts]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise ValueError(f"text {number} is no pair; write it as first<TAB>second")
    return pairs


def _padded(states: Sequence[Array]) -> Array:
    """States of different lengths as one [R, T, H]; of a row alone without a copy."""
    if len(states) == 1:
        return states[0][None]
    longest = max(len(states_TH) for states_TH in states)
    padded_RTH = np.zeros((len(states), longest, states[0].shape[-1]), np.float32)
    for row, states_TH in enumerate(states):
        padded_RTH[row, : len(states_TH)] = states_TH
    return padded_RTH


def _windows(path: str) -> Iterator[list[str]]:
    """The lines as they come: what a pipe has written so far is answered before it is closed."""
    with sys.stdin.buffer if path == "-" else Path(path).open("rb") as file:
        stream: Any = file
        rest = b""
        while chunk := stream.read1(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield [line.decode("utf-8-sig").rstrip("\r") for line in lines]
        if rest:
            yield [rest.decode("utf-8-sig").rstrip("\r")]


def main() -> int:
    """The command line: a JSON object for each line of the input."""
    parser = argparse.ArgumentParser(
        description="Answer each line of INPUT, or of what is piped in."
    )
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("input", metavar="INPUT", nargs="?", default="-")
    parser.add_argument("--exit", default="default", help="off, 1%%, 2%% or a level")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    try:
        classifier = load(given.folder, level=given.exit, threads=given.threads)
        for lines in _windows(given.input):
            for answer in classifier.predict(lines):
                print(json.dumps(answer, ensure_ascii=False))
            sys.stdout.flush()
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
