"""Small runs, driven as users drive them: `fit` for a model of one's own, `ptrain` for a plugin."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plugin_trainer
from plugin_trainer.cli.main import main

QUIET = ("-progress_bar", "-tensorboard")


def rows(count: int = 12, *, seed: int = 0) -> TensorDataset:
    """Points with four features and the class that their first feature tells."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator)
    return TensorDataset(features, (features[:, 0] > 0).long())


def loader(count: int = 12, *, batch_size: int = 4, shuffle: bool = True) -> DataLoader:
    return DataLoader(rows(count), batch_size=batch_size, shuffle=shuffle)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 2)


class Scripted(nn.Module):
    """A model whose evaluations have the losses they are told, one after another.

    The first evaluated batch of a run is the rehearsal before its first step, which no log shows.
    """

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.losses = iter([0.0, *losses])

    def forward(self, features: torch.Tensor, _: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            return {"loss": self.weight * features.mean()}
        return {"loss": torch.tensor(next(self.losses))}


class Diary:
    """A callback that writes down which hooks are called, and at which step."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _note(self, hook: str, run: Any) -> None:
        self.calls.append(f"{hook} {run.progress.step}")

    def ptrain_run_start(self, run):
        self._note("run_start", run)

    def ptrain_epoch_start(self, run):
        self._note("epoch_start", run)

    def ptrain_step_end(self, run):
        self._note("step_end", run)

    def ptrain_evaluation_batch_end(self, run):
        self._note("evaluation_batch_end", run)

    def ptrain_evaluation_end(self, run):
        self._note("evaluation_end", run)

    def ptrain_log(self, run):
        self._note("log", run)

    def ptrain_epoch_end(self, run):
        self._note("epoch_end", run)

    def ptrain_checkpoint_save(self, run):
        self._note("checkpoint_save", run)

    def ptrain_checkpoint_load(self, run):
        self._note("checkpoint_load", run)

    def ptrain_checkpoint_committed(self, run):
        self._note("checkpoint_committed", run)

    def ptrain_run_end(self, run):
        self._note("run_end", run)

    def ptrain_run_failed(self, run):
        self._note("run_failed", run)


class Interrupt:
    """A callback that sends this process a signal when a step is done."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step = step
        self.number = number

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            signal.raise_signal(self.number)


@pytest.fixture
def toy() -> SimpleNamespace:
    """The parts of the runs here, for tests that put one together themselves."""
    return SimpleNamespace(
        rows=rows,
        loader=loader,
        net=net,
        Scripted=Scripted,
        Diary=Diary,
        Interrupt=Interrupt,
    )


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., plugin_trainer.Result]:
    """plugin_trainer.fit for 2 epochs of 3 steps, with everything replaceable; prints nothing.

    A model that computes its loss itself is given with `loss=None`.
    """

    def run(model=None, train=None, validation=None, *, callbacks=(), out="run", **settings):
        if settings.get("loss", "") is None:
            del settings["loss"]
        else:
            settings.setdefault("loss", nn.functional.cross_entropy)
        return plugin_trainer.fit(
            net() if model is None else model,
            loader() if train is None else train,
            validation,
            callbacks=[*QUIET, *callbacks],
            out=out and tmp_path / out,
            notify=settings.pop("notify", lambda line: None),
            **{"length": "2 epochs", **settings},
        )

    return run


def read_lines(run: Path, name: str = "") -> list[Any]:
    """The lines of a run's metrics.jsonl, or those of one metric's values."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line] if name else lines


@pytest.fixture
def lines() -> Callable[..., list[Any]]:
    """See `read_lines`."""
    return read_lines


@pytest.fixture
def weights() -> Callable[..., dict[str, torch.Tensor]]:
    """The tensors of a checkpoint of a run: of its last one, unless another is named."""

    def read(run: Path, checkpoint: str = "latest", file: str = "model") -> dict[str, torch.Tensor]:
        folder = run / "checkpoints"
        if (pointer := folder / f"{checkpoint}.json").is_file():
            checkpoint = json.loads(pointer.read_text())["checkpoint"]
        return safetensors.torch.load_file(folder / checkpoint / f"{file}.safetensors")

    return read


# ------------------------------------------------------------------------------- a plugin's runs


@pytest.fixture(scope="session")
def typed() -> Callable[..., str]:
    """Type a `ptrain` command that goes well, in this process; gives what it printed."""

    def type_(*args: str | Path) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(arg) for arg in args])
        assert code == 0, err.getvalue()
        return out.getvalue()

    return type_


TEXTS = (
    ("a warm and funny film", "good"),
    ("dull", "bad"),
    ("the plot goes nowhere and the camera follows it there", "bad"),
    ("honest , clever and moving", "good"),
    ("i laughed once", "bad"),
    ("i laughed all the way home and the day after", "good"),
    ("not one line of it is true", "bad"),
)
SMALL = {
    "model_settings.hidden_size": 16,
    "model_settings.num_blocks": 3,
    "model_settings.num_heads": 2,
    "model_settings.max_positions": 40,
    "model_settings.initial_depth": 2,
    "data_settings.max_tokens": 16,
    "data_settings.batch_size": 4,
    "data_settings.evaluation_batch_size": 3,
    "length": "3 epochs",
}


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """Seven labelled texts, as TSV without a header."""
    file = tmp_path_factory.mktemp("texts") / "texts.tsv"
    file.write_text("".join(f"{text}\t{label}\n" for text, label in TEXTS))
    return file


@pytest.fixture(scope="session")
def dactbert(typed, texts) -> Callable[..., str]:
    """`ptrain run --plugin dactbert` on the texts, tiny; `sets` go over its settings."""

    def run(out: Path, *options: str, **sets: Any) -> str:
        given = {"train": texts, "validation": texts}
        values = {
            **{f"data_settings.{key}": str(path) for key, path in given.items()},
            **SMALL,
            **{key.replace("__", "."): value for key, value in sets.items()},
        }
        command = ["run", "--plugin", "dactbert", "--out", out, *options]
        for key, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += ["--set", f"{key}={text}"]
        return typed(*command)

    return run


TASKS = {
    "reviews.jsonl": """
        {"text": "the soup is good", "mood": "good", "topics": ["food"], "stars": 0.9}
        {"text": "the staff is rude", "mood": "bad", "topics": ["staff"], "stars": 0.1}
        {"text": "soup and staff are good", "mood": "good", "topics": ["food", "staff"], "stars": 1}
        {"text": "a rude place", "mood": "bad", "topics": [], "stars": 0.2}
        {"text": "good bread", "mood": "good", "topics": ["food"], "stars": 0.8}
    """,
    "names.conll": """
        Anna B-person
        Berg I-person
        lives O
        in O
        Rome B-place

        Rome B-place
        saw O
        Jonas B-person

        Jonas B-person
        left O
        Oslo B-place
    """,
    "bonds.tsv": """
        text\tlabel
        <e1>Anna</e1> lives in <e2>Rome</e2>\thome
        <e1>Jonas</e1> saw <e2>Rome</e2>\tvisit
        <e1>Anna</e1> saw <e2>Oslo</e2>\tvisit
        <e1>Jonas</e1> lives in <e2>Oslo</e2>\thome
    """,
    "run.toml": """
        plugins   = ["multitask_bert"]
        model     = "multitask_bert/shared_encoder"
        data      = "multitask_bert/tasks"
        length    = "2 epochs"
        log       = "1 epoch"
        overall   = ["reviews/mood/accuracy", "names/who/f1", "bonds/relation/accuracy"]
        callbacks = ["-progress_bar", "-tensorboard"]

        [model_settings]
        hidden_size   = 16
        num_blocks    = 1
        num_heads     = 2
        max_positions = 40

        [data_settings]
        batch_size      = 4
        max_tokens      = 32
        vocabulary_size = 400

        [data_settings.tasks.reviews]
        train      = "reviews.jsonl"
        validation = "reviews.jsonl"

        [data_settings.tasks.reviews.heads.mood]
        weight = 2.0

        [data_settings.tasks.reviews.heads.topics]
        kind      = "multi_label"
        threshold = 0.3

        [data_settings.tasks.reviews.heads.stars]
        kind = "regression"

        [data_settings.tasks.names]
        kind       = "entities"
        train      = "names.conll"
        validation = "names.conll"
        heads      = { who = {} }

        [data_settings.tasks.bonds]
        kind       = "relations"
        train      = "bonds.tsv"
        validation = "bonds.tsv"
    """,
}


@pytest.fixture(scope="session")
def multitask_folder(typed, tmp_path_factory) -> Path:
    """Files of three tasks, run.toml, and a run of it."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in TASKS.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip("\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        typed("run", "run.toml", "--out", "run")
    return folder


@pytest.fixture
def multitask(multitask_folder, monkeypatch) -> Path:
    """The current folder, with the files of three tasks, run.toml, and the finished run `run`."""
    monkeypatch.chdir(multitask_folder)
    return multitask_folder
