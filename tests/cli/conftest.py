"""A plugin in one file, ./toy.py, and a run of it, trained once and copied for each test."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main
from plugin_trainer.ownership import signature

TOY = '''
    """Which of two signs the sum of some numbers has."""

    from __future__ import annotations

    import json
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Annotated

    from pydantic import Field

    from plugin_trainer import CallbackSpec, DataSpec, ModelSpec, RecipeSpec

    PTRAIN_API = 1
    HERE = __name__


    @dataclass(frozen=True, kw_only=True)
    class NetSettings:
        width: Annotated[int, Field(ge=1)] = 4


    @dataclass(frozen=True, kw_only=True)
    class RowsSettings:
        train_rows: int = 24
        validation_rows: int = 12
        train: str = ""
        classes: int = 2


    @dataclass(frozen=True, kw_only=True)
    class BreakSettings:
        step: int = 2
        moment: str = "step_end"


    def net(settings, data):
        from torch import nn

        return nn.Sequential(nn.Linear(3, settings.width), nn.Tanh(), nn.Linear(settings.width, 2))


    class Rows:
        def __init__(self, settings):
            import torch
            from torch.utils.data import DataLoader, TensorDataset

            self.settings = settings
            if settings.train:
                Path(settings.train).read_text()

            def loader(rows, seed, shuffle=False):
                features = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
                labels = (features.sum(1) > 0).long() * (settings.classes - 1)
                return DataLoader(TensorDataset(features, labels), batch_size=4, shuffle=shuffle)

            self.train = lambda: loader(settings.train_rows, 0, shuffle=settings.train_rows > 0)
            self.validation = lambda: loader(settings.validation_rows, 1)

        def metrics(self):
            from torchmetrics.classification import MulticlassAccuracy

            return {"accuracy": MulticlassAccuracy(num_classes=2, average="micro")}

        def predict(self, lines):
            import torch

            rows = torch.tensor([[float(n) for n in line.split()] for line in lines])
            return [(part,) for part in rows.split(2)]

        def decode(self, outputs, batch):
            return [{"sign": "-+"[int(k)]} for k in outputs["logits"].argmax(1)]

        def save_assets(self, folder):
            (folder / "toy.json").write_text(json.dumps({"signs": "-+"}))


    class Break:
        def __init__(self, settings):
            self.settings = settings

        def ptrain_step_end(self, run):
            if run.progress.step == self.settings.step:
                raise ValueError("broken on purpose")


    def ptrain_models():
        settings = f"{HERE}:NetSettings"
        return [ModelSpec(name="net", target=f"{HERE}:net", settings=settings, default=True)]


    def ptrain_data():
        return [
            DataSpec(
                name="rows", target=f"{HERE}:Rows", settings=f"{HERE}:RowsSettings", default=True
            )
        ]


    def ptrain_callbacks():
        return [
            CallbackSpec(name="break", target=f"{HERE}:Break", settings=f"{HERE}:BreakSettings")
        ]


    def ptrain_recipes():
        return [RecipeSpec(name="quick", file="toy.toml", default=True)]
'''

RECIPE = """
    model    = "toy/net"
    data     = "toy/rows"
    length   = "2 epochs"
    evaluate = "3 steps"
    log      = "3 steps"
    loss     = "CrossEntropyLoss"

    [best]
    ties = "oldest"
    watch = "val/accuracy"
    mode  = "max"

    [optimizer]
    learning_rate = 0.05

    [ema]
    decay = 0.9
"""


def write_toy(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "toy.py").write_text(textwrap.dedent(TOY).lstrip())
    (folder / "toy.toml").write_text(textwrap.dedent(RECIPE).lstrip())


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A current folder with ./toy.py in it."""
    monkeypatch.setenv("COLUMNS", "80")
    write_toy(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="session")
def _trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "here"
    write_toy(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "--plugin", "./toy.py", "--out", "runs/first"]) == 0
    return folder


@pytest.fixture
def trained(_trained, tmp_path, monkeypatch) -> Path:
    """A current folder with ./toy.py and the finished run runs/first, the test's own."""
    monkeypatch.setenv("COLUMNS", "80")
    here = tmp_path / "here"
    shutil.copytree(_trained, here)
    run_toml = here / "runs" / "first" / "run.toml"
    run_toml.write_text(run_toml.read_text().replace(str(_trained), str(here)))
    about = json.loads(run_toml.with_name("run.json").read_text())
    about["signature"] = signature(run_toml.read_text())
    run_toml.with_name("run.json").write_text(json.dumps(about))
    monkeypatch.chdir(here)
    return here


@pytest.fixture(autouse=True)
def _forget_toys():
    """A plugin in a file is imported once per process; each test has a file of its own."""
    yield
    for name in [name for name in sys.modules if name.startswith("ptrain_local_toy")]:
        del sys.modules[name]
