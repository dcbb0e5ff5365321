"""`ptrain predict`: text in, one JSON object a line out."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import click

from plugin_trainer.cli.options import exit_option, which_weights
from plugin_trainer.errors import DataError


@click.command()
@click.argument("run")
@click.argument("input_", required=False, default="-", metavar="[INPUT]")
@which_weights
@exit_option
@click.option(
    "--output", default="-", metavar="FILE", help="Where to write; the screen by default."
)
def predict(
    run: str, input_: str, checkpoint: str, weights: Any, exit_: str | None, output: str
) -> None:
    """Answer for each line of INPUT, or of what is typed or piped in, with the run RUN."""
    lines = _read(input_)

    from tqdm import tqdm

    from plugin_trainer.training.inference import load_run

    loaded = load_run(run, checkpoint=checkpoint, weights=weights)
    if exit_ is not None:
        loaded.use_exit(exit_)
    try:
        file = click.open_file(output, "w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}") from None
    # Answers that run over the screen say themselves how far they are.
    unseen = output == "-" or not sys.stderr.isatty()
    answers = tqdm(loaded.predict(lines), total=len(lines), disable=unseen, leave=False)
    with file:
        _write(file, answers)


def _read(path: str) -> list[str]:
    try:
        if path == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                # Whatever the locale says: in some of them Python lets wrong bytes pass.
                sys.stdin.reconfigure(encoding="utf-8", errors="strict")
            return _lines(sys.stdin)
        with Path(path).open(encoding="utf-8-sig") as file:
            return _lines(file)
    except FileNotFoundError:
        raise DataError(
            f"there is no input file {path}", hint="give a text file, or - for standard input"
        ) from None
    except UnicodeDecodeError as error:
        name = "the input" if path == "-" else path
        raise DataError(f"{name} is not UTF-8: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _lines(file: IO[str]) -> list[str]:
    # Not splitlines: that also ends lines inside a text, and answers would not fit their lines.
    return [line.rstrip("\n") for line in file]


def _write(file: IO[Any], answers: Iterable[Mapping[str, Any]]) -> None:
    for answer in answers:
        file.write(json.dumps(answer, ensure_ascii=False) + "\n")
