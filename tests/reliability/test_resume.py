"""Resuming is exact: R01 to R08, R11 and R13 of the reliability bar."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import plugin_trainer
from plugin_trainer.data.seeds import seed_everything
from plugin_trainer.files import sha256_of
from plugin_trainer.training.checkpointing.store import read_snapshot
from tests import forkserver

STEPS_PER_EPOCH = 6
TOTAL = 24


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    toy.train(folder)
    return folder


@pytest.fixture(scope="module")
def whole_with_workers(toy, tmp_path_factory):
    """The same with two worker processes, which draw from random streams of their own."""
    folder = tmp_path_factory.mktemp("workers") / "run"
    toy.train(folder, workers=2)
    return folder


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, id="after-the-first-step"),
        pytest.param(3, id="mid-epoch-right-after-an-evaluation"),
        pytest.param(5, id="before-the-last-batch-of-an-epoch"),
        pytest.param(6, id="exactly-at-an-epochs-end"),
        pytest.param(7, id="after-the-first-batch-of-the-next-epoch"),
        pytest.param(23, id="before-the-very-last-step"),
    ],
)
def test_R01_R02_a_run_resumed_anywhere_equals_one_that_never_stopped(
    toy, whole, differences, tmp_path, step
):
    resumed = toy.cut_back(whole, tmp_path / "run", step=step)
    toy.train(resumed)
    assert differences(whole, resumed) == []


def test_R02_a_run_killed_after_its_last_evaluation_has_nothing_left_to_do_but_end(
    toy, whole, differences, tmp_path
):
    resumed = toy.cut_back(whole, tmp_path / "run", step=TOTAL)
    assert toy.train(resumed).step == TOTAL
    assert differences(whole, resumed) == []


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_R02_a_run_resumed_on_an_accumulation_boundary_is_exact(
    toy, differences, tmp_path, accumulate, step
):
    # Four batches a window leave a short window of two at each epoch's end.
    toy.train(tmp_path / "whole", accumulate=accumulate)
    resumed = toy.cut_back(tmp_path / "whole", tmp_path / "run", step=step)
    toy.train(resumed, accumulate=accumulate)
    assert differences(tmp_path / "whole", resumed) == []


@pytest.mark.process
def test_R01_R05_R06_a_run_with_workers_killed_again_and_again_equals_one_that_never_stopped(
    toy_process, whole_with_workers, differences, folder
):
    run = folder / "run"
    moments = ["step_end:2", "saving:3", "committed:5", "evaluating_ema:6", "committed:13"]
    for moment in moments:
        assert toy_process(run, "--workers", "2", "--kill", moment) == -signal.SIGKILL
    assert toy_process(run, "--workers", "2") == 0
    assert differences(whole_with_workers, run) == []
    resumed_at = json.loads((run / "run.json").read_text())["resumed"]
    assert resumed_at == [1, 2, 5, 5, 13]


@pytest.mark.process
def test_R01_R06_ptrain_run_killed_from_outside_three_times_equals_one_that_never_stopped(
    differences, folder
):
    toy = Path(__file__).with_name("toy.py")
    settings = [
        *("length='12 epochs'", "evaluate='3 steps'", "save='1 steps'", "log='2 steps'"),
        *("keep=all", "ema.decay=0.9", "callbacks=['-tensorboard']"),
    ]
    command = ["-m", "plugin_trainer", "run", "--plugin", str(toy), "--resume", "auto"]
    command += [part for setting in settings for part in ("--set", setting)]
    whole, run = folder / "whole", folder / "run"

    def start(out, **options):
        options |= {"output": out.with_suffix(".txt"), "variables": {"OMP_NUM_THREADS": "1"}}
        return forkserver.Process(*command, "--out", out, **options)

    assert start(whole).wait() == 0
    for steps_more, cold in ((4, True), (9, False), (16, False)):
        process = start(run, cold=cold)
        _wait_for_step(run, _step(run) + steps_more)
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(run).wait() == 0
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 3
    assert differences(whole, run) == []


def _step(run: Path) -> int:
    pointer = run / "checkpoints" / "latest.json"
    return json.loads(pointer.read_text())["step"] if pointer.is_file() else 0


def _wait_for_step(run: Path, step: int) -> None:
    for _ in range(6000):
        if _step(run) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was never reached")


def test_R03_R07_every_sample_is_seen_once_an_epoch_in_a_new_order_whatever_was_interrupted(
    toy, whole, tmp_path
):
    resumed = toy.cut_back(whole, tmp_path / "run", step=STEPS_PER_EPOCH)
    toy.train(resumed)
    for run in (whole, resumed):
        model = read_snapshot(run / "checkpoints" / f"step-{TOTAL:08d}").model
        seen = model["seen"][: int(model["count"])].view(4, toy.SAMPLES)
        orders = [tuple(epoch.tolist()) for epoch in seen]
        assert all(sorted(order) == list(range(toy.SAMPLES)) for order in orders)
        assert len(set(orders)) == 4


# ---------------------------------------------------------------------- R04: loaders of other kinds


class Stop:
    """Interrupts the run at some of its steps, as a signal would."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def ptrain_step_end(self, run):
        if run.progress.step in self.steps:
            run.interrupt("enough", signal=15)


def trained_on(toy, loader, out, *, stop=(), **settings):
    """Train the diary on a loader; goes on with what the folder holds. The result, and what was
    said.
    """
    said = []
    torch.manual_seed(0)
    result = plugin_trainer.fit(
        toy.Diary(),
        loader,
        DataLoader(toy.Noisy(9), batch_size=4, collate_fn=toy.collate),
        out=out,
        resume="auto",
        notify=said.append,
        callbacks=["-progress_bar", "-tensorboard", Stop(*stop)],
        **{
            "length": "15 steps",
            "evaluate": "never",
            "save": "never",
            "log": "2 steps",
            "ema": {"decay": 0.9},
            **settings,
        },
    )
    return result, said


def seen_by(run: Path, *, step: int) -> list[int]:
    """The numbers of the samples that the diary was trained on, in order."""
    model = read_snapshot(run / "checkpoints" / f"step-{step:08d}").model
    return model["seen"][: int(model["count"])].tolist()


SAMPLERS = {
    "weighted": lambda data: WeightedRandomSampler([1.0 + row for row in range(len(data))], 22),
    "subset": lambda data: SubsetRandomSampler([*range(2, 23)]),
    "replacement": lambda data: RandomSampler(data, replacement=True),
    "distributed": lambda data: DistributedSampler(data, num_replicas=2, rank=0),
}


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2], ids=["0", "2-persistent"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_R04_a_run_with_any_sampler_interrupted_twice_equals_one_that_never_stopped(
    toy, differences, folder, sampler, workers
):
    def loader():
        data = toy.Noisy()
        return DataLoader(
            data,
            batch_size=toy.BATCH,
            sampler=SAMPLERS[sampler](data),
            collate_fn=toy.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    trained_on(toy, loader(), folder / "whole")
    # In the middle of two epochs, whether they have three steps or six.
    for step in (2, 8):
        assert trained_on(toy, loader(), folder / "run", stop=(step,))[0].step == step
    result, said = trained_on(toy, loader(), folder / "run")
    assert result.step == 15
    assert differences(folder / "whole", folder / "run") == []
    assert not any("not exact" in line for line in said)
    epochs = seen_by(folder / "run", step=15)
    assert len(set(epochs)) > 9 and epochs[:9] != epochs[-9:]


class Quiet(torch.utils.data.Dataset):
    """The numbered samples, the same each time they are made."""

    def __init__(self, toy) -> None:
        seed_everything(0)
        self.samples = [toy.Noisy()[index] for index in range(toy.SAMPLES)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index]


def interrupted_twice(toy, make_loader, folder) -> list[str]:
    """A whole run, and one interrupted in an epoch and at its end; what the last resume said."""
    trained_on(toy, make_loader(), folder / "whole")
    for step in (4, STEPS_PER_EPOCH):
        trained_on(toy, make_loader(), folder / "run", stop=(step,))
    result, said = trained_on(toy, make_loader(), folder / "run")
    assert result.step == 15
    return said


@pytest.mark.process
@pytest.mark.parametrize(
    ("workers", "random"),
    [
        pytest.param(0, True, id="0"),
        # What the workers of such a loader draw is not in its state.
        pytest.param(2, False, id="2-persistent"),
    ],
)
def test_R04_a_stateful_loader_goes_on_exactly(toy, differences, folder, workers, random):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        torch.manual_seed(5)
        return stateful.StatefulDataLoader(
            toy.Noisy() if random else Quiet(toy),
            batch_size=toy.BATCH,
            shuffle=True,
            collate_fn=toy.collate if random else None,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    said = interrupted_twice(toy, loader, folder)
    orders = [seen_by(folder / run, step=15) for run in ("whole", "run")]
    assert orders[0] == orders[1]
    assert sorted(orders[0][: toy.SAMPLES]) == [*range(toy.SAMPLES)]
    assert differences(folder / "whole", folder / "run") == []
    assert not any("not exact" in line for line in said)


def test_R08_evaluating_more_often_does_not_change_the_training(toy, tmp_path):
    toy.train(tmp_path / "often", evaluate="1 steps")
    toy.train(tmp_path / "never", evaluate="never")
    often, never = (
        read_snapshot(tmp_path / run / "checkpoints" / f"step-{TOTAL:08d}")
        for run in ("often", "never")
    )
    assert all(torch.equal(often.model[name], never.model[name]) for name in often.model)
    assert often.state["rng"] == never.state["rng"]


def edit_state(run: Path, change) -> None:
    """Change the newest checkpoint's state and make its manifest fit again."""
    pointer = max((run / "checkpoints").glob("step-*"))
    path = pointer / "state.json"
    content = json.loads(path.read_text())
    change(content["state"])
    path.write_text(json.dumps(content))
    manifest = json.loads((pointer / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (pointer / "manifest.json").write_text(json.dumps(manifest))


def _other_torch_stream(state):
    generator = torch.Generator().manual_seed(99)
    from plugin_trainer.training.seeding import _text

    state["rng"]["torch"] = _text(generator.get_state())


def _other_python_stream(state):
    state["rng"]["python"][1][:5] = [1, 2, 3, 4, 5]


def _other_numpy_stream(state):
    state["rng"]["numpy"][1][:5] = [1, 2, 3, 4, 5]


def _no_cursor(state):
    state["progress"]["batch"] = 0


def _no_average_counter(state):
    state["ema"]["updates"] = 0


def _no_schedule(state):
    state["schedule"]["steps"] = 0


@pytest.mark.parametrize(
    "drop",
    [
        _other_torch_stream,
        _other_python_stream,
        _other_numpy_stream,
        _no_cursor,
        _no_average_counter,
        _no_schedule,
    ],
)
def test_R11_a_checkpoint_that_lost_a_stream_or_a_counter_does_not_resume_exactly(
    toy, whole, differences, tmp_path, drop
):
    resumed = toy.cut_back(whole, tmp_path / "run", step=4)
    edit_state(resumed, drop)
    toy.train(resumed)
    assert differences(whole, resumed) != []


def test_R13_resuming_loads_no_sample_that_was_seen(toy, whole, tmp_path):
    resumed = toy.cut_back(whole, tmp_path / "run", step=9)
    dataset = toy.Noisy()
    toy.train(resumed, dataset=dataset)
    samples_after_step_9 = 4 * toy.SAMPLES - toy.SAMPLES - 3 * toy.BATCH
    assert len(dataset.loaded) == samples_after_step_9
