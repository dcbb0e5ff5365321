"""`ptrain predict`: text in, one JSON object a line out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import click

from plugin_trainer.cli.options import which_weights
from plugin_trainer.errors import DataError


@click.command()
@click.argument("run")
@click.argument("input_", required=False, default="-", metavar="[INPUT]")
@which_weights
@click.option(
    "--output", default="-", metavar="FILE", help="Where to write; the screen by default."
)
def predict(run: str, input_: str, checkpoint: str, weights: Any, output: str) -> None:
    """Answer for each line of INPUT, or of what is typed or piped in, with the run RUN."""
    lines = _read(input_)

    from plugin_trainer.training.inference import load_run

    loaded = load_run(run, checkpoint=checkpoint, weights=weights)
    with click.open_file(output, "w", encoding="utf-8") as file:
        _write(file, loaded.predict(lines))


def _read(path: str) -> list[str]:
    if path == "-":
        return [line.rstrip("\n") for line in sys.stdin]
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"there is no input file {path}", hint="give a text file, or - for standard input"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _write(file: IO[Any], answers: Iterable[Mapping[str, Any]]) -> None:
    for answer in answers:
        file.write(json.dumps(answer, ensure_ascii=False) + "\n")
