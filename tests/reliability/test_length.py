"""Runs of any length: over data that does not say how long it is, a million steps in, and for long.

    python test_length.py FOLDER --steps 50000

prints what the process holds after each fifth of a run of so many tiny steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import plugin_trainer
from plugin_trainer.data.samplers import sampler_order
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot
from tests import forkserver


class Stop:
    """Interrupts the run at one of its steps, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            run.interrupt("enough", signal=15)


# ---------------------------------------------------------------- R04: data that have no length


class Lines(IterableDataset):
    """Numbered samples from a file, so to speak: how many there are shows at their end."""

    def __init__(self, toy) -> None:
        data = toy.Noisy(18)
        self.samples = [
            {"features": features, "labels": label, "number": torch.tensor(number)}
            for number, (features, label) in enumerate(zip(data.features, data.labels, strict=True))
        ]
        self.read: list[int] = []

    def __iter__(self):
        for number, sample in enumerate(self.samples):
            self.read.append(number)
            yield sample


def trained(toy, out, *, stop=0, lines=None, **settings):
    """Train for two epochs of five steps and one step more; goes on with what the folder holds."""
    said = []
    torch.manual_seed(0)
    result = plugin_trainer.fit(
        toy.Diary(),
        DataLoader(Lines(toy) if lines is None else lines, batch_size=4),
        DataLoader(toy.Noisy(9), batch_size=4, collate_fn=toy.collate),
        out=out,
        resume="auto",
        notify=said.append,
        callbacks=["-progress_bar", "-tensorboard", Stop(stop)],
        **{
            "length": "11 steps",
            "evaluate": "1 epoch",
            "save": "1 epoch",
            "log": "1 steps",
            "keep": "all",
            "ema": {"decay": 0.9},
            "schedule": {"name": "cosine", "warmup": "20 %"},
            **settings,
        },
    )
    return result, said


REASON = "the training data set is iterable, so its order is its own"


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoints_of(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def test_R04_epochs_of_data_without_a_length_end_where_they_end(toy, folder):
    trained(toy, folder / "run", best={"watch": "val/loss", "mode": "max"})
    lines = lines_of(folder / "run")
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 11]
    assert checkpoints_of(folder / "run") == [5, 10, 11]
    epochs = {line["step"]: line["epoch"] for line in lines if "train/loss" in line}
    assert [epochs[step] for step in (4, 5, 6, 9, 10, 11)] == [0, 1, 1, 1, 2, 2]
    assert [line["samples"] for line in lines if "train/loss" in line][3:6] == [16, 18, 22]
    model = read_snapshot(folder / "run" / "checkpoints" / "step-00000011").model
    seen = model["seen"][: int(model["count"])].tolist()
    assert seen == [*range(18), *range(18), *range(4)]


def test_R04_data_without_a_length_goes_on_exactly_at_an_epochs_end(toy, differences, folder):
    trained(toy, folder / "whole")
    trained(toy, folder / "run", stop=5)
    result, said = trained(toy, folder / "run")
    assert result.step == 11
    assert differences(folder / "whole", folder / "run") == []
    assert f"resuming is not exact: {REASON}" in said


@pytest.mark.parametrize("stop", [3, 8])
def test_R04_data_without_a_length_goes_on_inside_an_epoch_and_says_that_it_is_not_exact(
    toy, folder, stop
):
    first = trained(toy, folder / "run", stop=stop)[1]
    assert f"resuming will not be exact: {REASON}" in first
    assert json.loads((folder / "run" / "run.json").read_text())["inexact_because"] == REASON
    lines = Lines(toy)
    result, said = trained(toy, folder / "run", lines=lines)
    assert f"resuming is not exact: {REASON}" in said
    assert result.step == 11
    # Those that were seen are read once more, and dropped: an iterator has no other way.
    assert lines.read[:18] == [*range(18)]
    model = read_snapshot(folder / "run" / "checkpoints" / "step-00000011").model
    assert model["seen"][:40].tolist() == [*range(18), *range(18), *range(4)]


# ------------------------------------------------------------------------ R13: a million steps in


class Rows(Dataset):
    """Two million rows that are computed, and which of them were."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.loaded_first_at = 0.0

    def __len__(self) -> int:
        return 2_000_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.loaded:
            self.loaded_first_at = time.process_time()
        self.loaded.append(index)
        return torch.tensor([index / 2_000_000]), torch.tensor([1.0])


MILLION = 1_000_000


def trained_on_rows(out, rows, *, stop):
    torch.manual_seed(0)
    return plugin_trainer.fit(
        nn.Linear(1, 1),
        DataLoader(rows, batch_size=3, shuffle=True),
        loss="MSELoss",
        out=out,
        resume="auto",
        notify=lambda line: None,
        callbacks=["-progress_bar", "-tensorboard", Stop(stop)],
        length="1_000_100 steps",
        evaluate="never",
        save="never",
        ema={"decay": 0.999},
        schedule={"name": "cosine", "warmup": "1 %"},
    )


def set_forward(run: Path, *, step: int) -> None:
    """Have a run stand where it would after so many steps, but for its weights."""
    store = CheckpointStore(run)
    found = store.find("last")
    snapshot = read_snapshot(found.path)
    per_epoch = snapshot.state["batches_per_epoch"]
    epoch, batch = divmod(step, per_epoch)
    samples = 2_000_000 * epoch + 3 * batch
    snapshot.state["progress"] = {"step": step, "epoch": epoch, "batch": batch, "samples": samples}
    snapshot.state["ema"]["updates"] = step
    warmup_steps = 10_001
    snapshot.state["schedule"]["steps"] = step
    snapshot.state["schedule"]["scheduler"]["last_epoch"] = step - warmup_steps
    for name, tensor in snapshot.optimizer.items():
        if name.endswith("/step"):
            tensor.fill_(step)
    store.save(snapshot, step=step)


def test_R13_a_run_a_million_steps_in_goes_on_without_loading_what_it_has_seen(
    folder, differences, record_property
):
    trained_on_rows(folder / "run", Rows(), stop=2)
    set_forward(folder / "run", step=MILLION)
    shutil.copytree(folder / "run", folder / "twice")
    rows = Rows()
    started = time.process_time()
    result = trained_on_rows(folder / "run", rows, stop=MILLION + 3)
    record_property("cpu_seconds_to_the_first_batch", rows.loaded_first_at - started)
    assert (result.step, result.samples) == (MILLION + 3, 3 * MILLION - 1 + 9)
    progress = read_snapshot(CheckpointStore(folder / "run").find("last").path).state["progress"]
    at = MILLION - 666_667  # an epoch has 666_667 batches
    assert (progress["epoch"], progress["batch"]) == (1, at + 3)
    order = sampler_order(RandomSampler(range(2 * MILLION)), seed=0, task="", epoch=1)
    assert rows.loaded == order[3 * at : 3 * (at + 3)].tolist()

    again = Rows()
    for stop in (MILLION + 1, MILLION + 3):
        trained_on_rows(folder / "twice", again, stop=stop)
    assert again.loaded == rows.loaded
    assert differences(folder / "run", folder / "twice") == []


# ------------------------------------------------------------------------------- memory stays flat


class Line(nn.Module):
    """A line through points."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x, y):
        return {"loss": (self.line(x) - y).square().mean()}


class Watch:
    """Notes, at five moments of the run, what the process holds."""

    def __init__(self, steps: int) -> None:
        self.at = [steps * fifth // 5 for fifth in range(1, 6)]
        self.held: list[dict[str, int]] = []

    def ptrain_step_end(self, run):
        if run.progress.step in self.at:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            objects = len(gc.get_objects())
            kilobytes = pages * os.sysconf("SC_PAGE_SIZE") // 1024
            self.held.append({"step": run.progress.step, "kb": kilobytes, "objects": objects})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    points = torch.randn(64, 1)
    watch = Watch(given.steps)
    plugin_trainer.fit(
        Line(),
        DataLoader(TensorDataset(points, 2 * points), batch_size=1, shuffle=True),
        length=f"{given.steps} steps",
        save="never",
        log="1000 steps",
        ema={"decay": 0.99},
        optimizer={"learning_rate": 1e-4},
        callbacks=[watch],
        out=given.out,
    )
    print(json.dumps(watch.held))


@pytest.mark.process
@pytest.mark.slow
def test_a_run_of_many_steps_holds_no_more_at_its_end_than_before(folder):
    """With the default callbacks and an average, in a process of its own.

    A tensor kept for each step would be an object each, and some 500 bytes: 3 MB between the
    moments compared. What the allocator has not given back after the first fifth is some 100 KB.
    """
    command = [__file__, folder / "run", "--steps", "10000"]
    process = forkserver.Process(*command, output=folder / "said")
    assert process.wait() == 0, process.text
    held = json.loads(process.text.splitlines()[-1])
    assert [moment["step"] for moment in held] == [2_000, 4_000, 6_000, 8_000, 10_000]
    assert held[-1]["objects"] - held[1]["objects"] < 100
    assert held[-1]["kb"] - held[1]["kb"] < 2048


if __name__ == "__main__":
    main()
