"""A mixture of tasks resumes exactly, in any strategy: R01, R02 and R05 for several loaders."""

from __future__ import annotations

import json

import pytest

from plugin_trainer.errors import ResumeError
from plugin_trainer.training.checkpointing.store import read_snapshot

STEPS_PER_EPOCH = 9

MIXTURES = [
    pytest.param({"strategy": "round_robin"}, id="round_robin"),
    pytest.param({"until": "first"}, id="round_robin-until-first"),
    pytest.param({"strategy": "proportional"}, id="proportional"),
    pytest.param({"strategy": "temperature", "temperature": 4.0}, id="temperature"),
]


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The runs that were never interrupted, by their mixture."""
    made = {}

    def run(mixture: dict, **settings):
        key = json.dumps([mixture, settings])
        if key not in made:
            made[key] = tmp_path_factory.mktemp("mixture") / "run"
            toy.train(made[key], tasks=toy.TASKS, mixture=mixture, **settings)
        return made[key]

    return run


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("step", [1, 3, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, 14])
def test_R01_R02_a_mixture_resumed_anywhere_equals_one_that_never_stopped(
    toy, whole, differences, tmp_path, mixture, step
):
    resumed = toy.cut_back(whole(mixture), tmp_path / "run", step=step)
    toy.train(resumed, tasks=toy.TASKS, mixture=mixture)
    assert differences(whole(mixture), resumed) == []


@pytest.mark.parametrize("step", [1, 2, 4])
def test_R02_a_mixture_resumed_on_an_accumulation_boundary_is_exact(
    toy, whole, differences, tmp_path, step
):
    mixture = {"strategy": "proportional"}
    resumed = toy.cut_back(whole(mixture, accumulate=2), tmp_path / "run", step=step)
    toy.train(resumed, tasks=toy.TASKS, mixture=mixture, accumulate=2)
    assert differences(whole(mixture, accumulate=2), resumed) == []


@pytest.mark.process
@pytest.mark.parametrize(
    "mixture", [MIXTURES[1].values[0], MIXTURES[3].values[0]], ids=["until-first", "temperature"]
)
def test_R01_workers_that_stay_over_mixed_epochs_draw_the_same_after_a_resume(
    toy, whole, differences, tmp_path, mixture
):
    resumed = toy.cut_back(whole(mixture, workers=1), tmp_path / "run", step=7)
    toy.train(resumed, tasks=toy.TASKS, mixture=mixture, workers=1)
    assert differences(whole(mixture, workers=1), resumed) == []


def test_R01_a_limited_mixture_resumes_as_exactly(toy, whole, differences, tmp_path):
    mixture, limit = {"strategy": "temperature"}, {"train": 5}
    resumed = toy.cut_back(whole(mixture, limit_batches=limit), tmp_path / "run", step=7)
    toy.train(resumed, tasks=toy.TASKS, mixture=mixture, limit_batches=limit)
    assert differences(whole(mixture, limit_batches=limit), resumed) == []


@pytest.mark.process
def test_R05_a_mixture_with_workers_killed_again_and_again_equals_one_that_never_stopped(
    toy, toy_process, differences, folder
):
    toy.train(folder / "whole", workers=1, tasks=toy.TASKS, mixture={"strategy": "proportional"})
    run = folder / "run"
    options = ("--workers", "1", "--mixture", "proportional")
    for moment in ("step_end:2", "saving:7", "committed:9", "committed:13"):
        assert toy_process(run, *options, "--kill", moment) == -9
    assert toy_process(run, *options) == 0
    assert differences(folder / "whole", run) == []


def test_a_checkpoint_tells_where_each_task_stands(whole):
    checkpoints = whole({"strategy": "round_robin"}) / "checkpoints"
    cursors = read_snapshot(checkpoints / f"step-{STEPS_PER_EPOCH + 2:08d}").state["cursors"]
    assert cursors == {"first": 4 + 1, "second": 2 + 1, "third": 3}


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param({"first": 15, "second": 9, "third": 5}, id="other-sizes-of-one-sum"),
        pytest.param({"first": 15, "other": 5, "third": 9}, id="another-task"),
    ],
)
def test_R12_a_place_that_the_tasks_are_not_at_any_more_is_refused(toy, whole, tmp_path, tasks):
    mixture = {"strategy": "round_robin"}
    resumed = toy.cut_back(whole(mixture), tmp_path / "run", step=8)
    with pytest.raises(ResumeError, match=r"stood at its batch .* and with the data of now"):
        toy.train(resumed, tasks=tasks, mixture=mixture, allow=["content"])


def test_R12_another_strategy_in_mid_epoch_is_refused_even_where_it_is_allowed(
    toy, whole, tmp_path
):
    resumed = toy.cut_back(whole({"strategy": "round_robin"}), tmp_path / "run", step=3)
    with pytest.raises(ResumeError, match=r"mixture\.strategy"):
        toy.train(resumed, tasks=toy.TASKS, mixture={"strategy": "proportional"})
    with pytest.raises(ResumeError, match="stood at its batch"):
        toy.train(
            resumed,
            tasks=toy.TASKS,
            mixture={"strategy": "proportional"},
            allow=["mixture.strategy"],
        )
