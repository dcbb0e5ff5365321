"""A plugin in one file, ./bowl.py, whose loss is known beforehand: (x - 3)^2, and a little more
that training takes away. It writes down every step that any process made, and kills itself on
demand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main
from tests import forkserver

BOWL = '''
    from __future__ import annotations

    import os
    import signal
    import time
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Annotated, Literal

    from pydantic import Field

    from plugin_trainer import DataSpec, ModelSpec, SpaceSpec

    PTRAIN_API = 1
    HERE = __name__


    @dataclass(frozen=True, kw_only=True)
    class NetSettings:
        x: float = 0.0
        width: Annotated[int, Field(ge=1, le=64)] = 4
        kind: Literal["plain", "deep"] = "plain"
        layers: int = 1
        encoder: str = "none"
        broken: bool = False


    @dataclass(frozen=True, kw_only=True)
    class RowsSettings:
        rows: int = 8
        tokenizer: str = ""


    def net(settings, data):
        import torch
        from torch import nn

        if settings.broken:
            raise ValueError("this one is broken on purpose")

        class Bowl(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(settings.width))

            def forward(self, features, labels=None):
                loss = (settings.x - 3) ** 2 + self.w.pow(2).mean()
                return {"loss": loss, "logits": features}

        return Bowl()


    class Rows:
        def __init__(self, settings):
            import torch
            from torch.utils.data import DataLoader, TensorDataset

            rows = TensorDataset(torch.zeros(settings.rows, 2), torch.zeros(settings.rows).long())
            self.train = lambda: DataLoader(rows, batch_size=2)
            self.validation = lambda: DataLoader(rows, batch_size=8)


    def ptrain_models():
        settings = f"{HERE}:NetSettings"
        return [ModelSpec(name="net", target=f"{HERE}:net", settings=settings, default=True)]


    def ptrain_data():
        return [
            DataSpec(
                name="rows",
                target=f"{HERE}:Rows",
                settings=f"{HERE}:RowsSettings",
                default=True,
                defaults_from={"tokenizer": "model_settings.encoder"},
            )
        ]


    def ptrain_spaces():
        return [
            SpaceSpec(name="near", file="near.toml", summary="x close to 3", default=True),
            SpaceSpec(name="far", file="far.toml"),
        ]


    def ptrain_evaluation_end(run, metrics):
        metrics["val/depth"] = run.settings.model_settings["x"] + 1.0


    def ptrain_step_end(run):
        trial, step = run.folder.name, run.progress.step
        with Path("diary.txt").open("a") as diary:
            diary.write(f"{trial} {step} {os.getpid()}\\n")
        _obey("KILL", trial, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        _obey("STOP", trial, step, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        _obey("WAIT", trial, step, lambda: _wait(run))


    def _obey(order, trial, step, do):
        """BOWL_KILL=0002:3 does it in trial 2 after step 3, once in all processes."""
        for which in filter(None, os.environ.get(f"BOWL_{order}", "").split(",")):
            mark = Path(f"{order}-{which}")
            if which == f"{trial}:{step}" and not mark.exists():
                mark.touch()
                do()


    def _wait(run):
        while not Path("go").exists() and not run.stop_reason:
            time.sleep(0.02)
'''

RUN = """
    plugins  = ["./bowl.py"]
    length   = "6 steps"
    evaluate = "2 steps"
    save     = "2 steps"
    keep     = 1
    callbacks = ["-tensorboard"]

    [optimizer]
    learning_rate = 0.1
"""

SPACE = """
    [tune]
    pruner = "none"

    [tune.space."model_settings.x"]
    low = 0
    high = 6
"""


@dataclass
class Here:
    """The current folder of a test.

    run, space  the two halves of run.toml
    """

    folder: Path
    run: str = RUN
    space: str = SPACE
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, name: str, *texts: str) -> str:
        """A file of dedented texts."""
        text = "\n".join(textwrap.dedent(text) for text in texts)
        (self.folder / name).write_text(text.lstrip("\n"), encoding="utf-8")
        return name

    def tune(self, *args: str) -> int:
        """`ptrain tune` in this process; its exit code."""
        return main(["tune", *args])

    def start(self, *args: str, **variables: str) -> subprocess.Popen[str]:
        """`ptrain tune` in a process of its own."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        process = forkserver.Popen(
            [sys.executable, "-m", "plugin_trainer", "tune", *args],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def diary(self) -> list[tuple[str, int, int]]:
        """Every step that was made, in order: run folder's name, step, process."""
        lines = (self.folder / "diary.txt").read_text().splitlines()
        return [(name, int(step), int(pid)) for name, step, pid in map(str.split, lines)]

    def steps_of(self, name: str) -> list[int]:
        """The steps that were made in one run folder, by whichever process."""
        return [step for folder, step, _ in self.diary() if folder == name]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Iterator[Here]:
    """A current folder with ./bowl.py in it."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("PTRAIN_STORAGE", raising=False)
    monkeypatch.setattr("plugin_trainer.tuning.search.subprocess", forkserver)  # its workers
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = Here(folder)
    made.write("bowl.py", BOWL)
    made.write("near.toml", 'save = "3 steps"', SPACE.replace("high = 6", "high = 4"))
    made.write("far.toml", SPACE.replace("low = 0", "low = 40").replace("high = 6", "high = 60"))
    made.write("run.toml", RUN, SPACE)
    yield made
    for process in made.started:
        process.kill()  # of a test that failed; its workers end with it
        process.wait()


@pytest.fixture(autouse=True)
def _forget_bowls():
    """A plugin in a file is imported once per process; each test has a file of its own."""
    yield
    for name in [name for name in sys.modules if name.startswith("ptrain_local_bowl")]:
        del sys.modules[name]
