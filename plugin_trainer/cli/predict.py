"""`ptrain predict`: text in, one JSON object a line out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click

from plugin_trainer.cli.options import (
    exit_option,
    is_trusted,
    set_option,
    trust_option,
    which_weights,
)
from plugin_trainer.cli.printing import json_text
from plugin_trainer.errors import DataError

_PIPE_BYTES = 1 << 16  # what a pipe holds


@click.command()
@click.argument("run")
@click.argument("input_", required=False, default="-", metavar="[INPUT]")
@which_weights
@exit_option
@set_option
@trust_option
@click.option(
    "--output", default="-", metavar="FILE", help="Where to write; the screen by default."
)
def predict(
    run: str,
    input_: str,
    checkpoint: str,
    weights: Any,
    exit_: str | None,
    assignments: tuple[str, ...],
    output: str,
) -> None:
    """Predict each line of INPUT (default: standard input) with the run RUN.

    Lines that are piped in are answered as they arrive. A table (.csv, .tsv, .jsonl) is read as
    the run's data module reads its own, where it does; each answer then has its `line`.
    """
    lines = None if input_ == "-" else _read(input_)

    from tqdm import tqdm

    from plugin_trainer.settings.layers import from_assignments
    from plugin_trainer.training.inference import load_run

    overrides = from_assignments(assignments) if assignments else None
    loaded = load_run(
        run, checkpoint=checkpoint, weights=weights, overrides=overrides, trust=is_trusted()
    )
    if exit_ is not None:
        loaded.use_exit(exit_)
    rows = read_table(loaded.data, input_)
    try:
        file = click.open_file(output, "w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}") from None
    with file:
        # Answers that run over the screen say themselves how far they are.
        unseen = output == "-" or not sys.stderr.isatty()
        if rows is not None:
            numbers, texts = zip(*rows, strict=True) if rows else ((), ())
            answers = tqdm(loaded.predict(texts), total=len(rows), disable=unseen, leave=False)
            pairs = zip(numbers, answers, strict=True)
            _write(file, ({"line": number, **answer} for number, answer in pairs))
        elif lines is None:
            for arrived in _piped_in():
                _write(file, loaded.predict(arrived))
        else:
            predicted = loaded.predict(lines)
            _write(file, tqdm(predicted, total=len(lines), disable=unseen, leave=False))


def read_table(data: Any, input_: str) -> list[tuple[int, str]] | None:
    """The rows of an input that the data module reads as a table, each with its line; else None."""
    read = getattr(data, "read_table", None)
    return None if read is None or input_ == "-" else read(Path(input_))


def _write(file: IO[Any], answers: Iterable[Mapping[str, Any]]) -> None:
    for answer in answers:
        file.write(json_text(answer) + "\n")
    file.flush()


def _read(path: str) -> list[str]:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            # Not splitlines: that also ends lines inside a text, and answers would not fit.
            return [line.rstrip("\n") for line in file]
    except FileNotFoundError:
        raise DataError(
            f"there is no input file {path}", hint="give a text file, or - for standard input"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _piped_in() -> Iterator[list[str]]:
    """The lines of standard input, each time those that have arrived since the last time."""
    from plugin_trainer.training.inference import Lines

    stdin: Any = sys.stdin
    begun, first_line = b"", 1
    # read1 waits for something to arrive, and then gives what is there.
    while chunk := stdin.buffer.read1(_PIPE_BYTES):
        *ended, begun = (begun + chunk).split(b"\n")
        if ended:
            yield Lines(_text(ended, first_line=first_line), first_line=first_line)
            first_line += len(ended)
    if begun:
        yield Lines(_text([begun], first_line=first_line), first_line=first_line)


def _text(lines: Iterable[bytes], *, first_line: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=first_line):
        try:
            yield line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of the input is not UTF-8: {error}") from None
