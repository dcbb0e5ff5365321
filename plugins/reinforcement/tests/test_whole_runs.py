"""Whole runs from the command line: learn, score, predict, and what goes wrong on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plugin_trainer.cli.main import main

SETTINGS = {
    "data_settings.environment": "worlds:Corridor",
    "data_settings.max_episode_steps": "30",
    "data_settings.copies": "2",
    "data_settings.first_acts": "100",
    "data_settings.replay_capacity": "1_000",
    "data_settings.batch_size": "32",
    "data_settings.batches_per_epoch": "20",
    "data_settings.epsilon_steps": "40",
    "data_settings.evaluation_episodes": "5",
    "data_settings.test_episodes": "10",
    "model_settings.hidden_sizes": "[16]",
    "optimizer.learning_rate": "1e-2",
    "length": "80 steps",
    "evaluate": "40 steps",
    "best.ties": "oldest",
    "log": "10 steps",
    "callbacks": '["-progress_bar", "-tensorboard"]',
}

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ptrain(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Type a command; its exit code, standard output and error."""

    def call(*arguments: str, **changes: str) -> tuple[int, str, str]:
        capsys.readouterr()
        settings = {**SETTINGS, **changes} if arguments[0] == "run" else changes
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        plugin = ["--plugin", "reinforcement"] if arguments[0] == "run" else []
        return main([*arguments, *plugin, *sets]), *capsys.readouterr()

    return call


def metrics(run: str) -> list[dict[str, Any]]:
    lines = Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_an_agent_learns_is_scored_and_answers(ptrain: Typed) -> None:
    code, output, error = ptrain("run", "--out", "run")
    assert code == 0, error
    assert "not passed to the model" not in error
    assert "worlds:Corridor, 2 copies, 5 numbers an observation, 2 actions" in error
    scored = [line for line in metrics("run") if "val/episode_reward" in line]
    # The way is at most four steps long, at 0.1 each, and a wind blows; a random walk costs more.
    assert scored[-1]["val/episode_reward"] > 0.3
    assert "test/episode_reward" in output
    assert not any(name.endswith("val/loss") for line in metrics("run") for name in line)

    code, output, error = ptrain("evaluate", "run", "--checkpoint", "last", "--json")
    assert code == 0, error
    again = json.loads(output)
    for name in ("episode_reward", "least_episode_reward", "episode_length"):
        assert again[f"val/{name}"] == scored[-1][f"val/{name}"]

    Path("input.jsonl").write_text("[1, 0, 0, 0, 0]\n[0, 0, 0, 1, 0]\n")
    code, output, error = ptrain("predict", "run", "input.jsonl")
    assert code == 0, error
    answers = [json.loads(line) for line in output.splitlines()]
    assert [answer["action"] for answer in answers] == [1, 1]
    assert all(len(answer["q"]) == 2 for answer in answers)


def test_a_log_line_tells_of_episodes_and_exploration(ptrain: Typed) -> None:
    assert ptrain("run", "--out", "run")[0] == 0
    lines = [line for line in metrics("run") if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(10, 90, 10))
    for line in lines:
        assert line["train/environment_steps"] == 100 + 2 * line["step"]
        assert line["samples"] == 32 * line["step"]
    # Epochs of 20 steps go by, and epsilon only ever falls.
    assert [line["epoch"] for line in lines][-1] == 4
    epsilons = [line["train/epsilon"] for line in lines]
    assert epsilons == pytest.approx([0.7625, 0.525, 0.2875, 0.05, 0.05, 0.05, 0.05, 0.05])
    rewards = [line["train/episode_reward"] for line in lines if "train/episode_reward" in line]
    assert rewards[-1] > rewards[0]


def weights(run: str) -> dict[str, torch.Tensor]:
    (last,) = Path(run, "checkpoints").glob("step-00000080")
    return load_file(last / "model.safetensors")


def test_accumulated_batches_are_the_big_batch(ptrain: Typed) -> None:
    assert ptrain("run", "--out", "big")[0] == 0
    small = {"data_settings.batch_size": "16", "data_settings.batches_per_epoch": "40"}
    assert ptrain("run", "--out", "small", **small, accumulate="2")[0] == 0
    big = weights("big")
    for name, tensor in weights("small").items():
        assert torch.allclose(tensor, big[name], atol=2e-3), name


def test_the_seed_decides_and_nothing_else(ptrain: Typed) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert ptrain("run", "--out", out, seed=seed)[0] == 0
    one, same, other = weights("a"), weights("b"), weights("c")
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"ema.decay": "0.9"},
        {"precision": "bf16"},
        {"optimizer.name": "SGD"},
        {"optimizer.settings": "{fused = false}"},
        {"model_settings.dueling": "false", "model_settings.double": "false"},
        {"data_settings.environment": "worlds:Picture"},
        {"data_settings.environment": "FrozenLake-v1"},
    ],
    ids=str,
)
def test_the_parts_of_the_engine_and_of_the_plugin_go_together(
    ptrain: Typed, changes: dict[str, str]
) -> None:
    code, _, error = ptrain("run", "--out", "run", **changes)
    assert code == 0, error
    names = metrics("run")[-1].keys() | metrics("run")[-2].keys()
    assert ("val_ema/episode_reward" in names) == ("ema.decay" in changes)
    assert not any(name.endswith(("val/loss", "val_ema/loss")) for name in names)


def test_gradients_are_clipped_and_the_schedule_moves(ptrain: Typed) -> None:
    assert ptrain("run", "--out", "run", **{"optimizer.max_grad_norm": "1e-9"})[0] == 0
    lines = [line for line in metrics("run") if "train/loss" in line]
    assert lines[-1]["learning_rate"] == 0
    assert lines[3]["learning_rate"] == pytest.approx(0.005)
    assert ptrain("run", "--out", "free")[0] == 0
    assert not torch.allclose(weights("run")["network.value.bias"],
                              weights("free")["network.value.bias"])  # fmt: skip


def test_a_dry_run_goes_well(ptrain: Typed) -> None:
    code, output, error = ptrain("run", "--dry-run")
    assert code == 0, error
    assert "the dry run went well" in output
    assert not Path("runs").exists()


def test_an_environment_that_fails_leaves_what_was_learned_until_then(ptrain: Typed) -> None:
    breaks = {
        "data_settings.environment": "worlds:Breaks",
        "data_settings.first_acts": "10",
        "data_settings.evaluation_episodes": "0",
        "data_settings.test_episodes": "0",
    }
    code, _, error = ptrain("run", "--out", "run", **breaks)
    assert code == 1
    # Each of the two copies makes five of the first ten acts.
    assert "plugin 'reinforcement' failed in ptrain_train_step at step 75" in error
    assert "OSError: the joystick came off" in error
    checkpoint = Path("run/checkpoints/step-00000075")
    assert (checkpoint / "manifest.json").is_file()
    state = json.loads((checkpoint / "state.json").read_text())["state"]["callbacks"]
    broken, whole = state["reinforcement"]["actors"]
    assert set(broken) == {"episode"}
    assert "environment" in whole


def test_an_environment_that_fails_at_once_is_found_out_before_the_first_step(
    ptrain: Typed,
) -> None:
    breaks = {
        "data_settings.environment": "worlds:Breaks",
        "data_settings.options": "{after = 3}",
    }
    code, _, error = ptrain("run", "--out", "run", **breaks)
    assert code == 2
    assert "worlds:Breaks failed when it was tried out" in error
    assert "OSError: the joystick came off" in error
    assert not Path("run/run.toml").exists()


def test_a_run_file_must_say_what_its_best_is(ptrain: Typed) -> None:
    code, _, error = ptrain("run", "--out", "run", **{"best.watch": "val/loss"})
    assert code == 2
    assert "val/loss" in error
    assert "val/episode_reward" in error


def test_a_mistake_in_the_settings_is_told_with_its_key(ptrain: Typed) -> None:
    wrong = {"data_settings.copys": "2", "model_settings.discount": "2.0"}
    code, _, error = ptrain("run", "--out", "run", **wrong)
    assert code == 2
    assert "data_settings.copys" in error
    assert "model_settings.discount" in error
    code, _, error = ptrain("run", "--out", "run", **{"data_settings.first_acts": "2_000"})
    assert code == 2
    assert "more than the replay_capacity of 1000 can hold" in error


def test_training_data_cannot_be_scored(ptrain: Typed) -> None:
    assert ptrain("run", "--out", "run", length="20 steps")[0] == 0
    code, _, error = ptrain("evaluate", "run", "--split", "train")
    assert code == 2
    assert "takes none of the batch's keys: draws" in error


@pytest.mark.slow
def test_cartpole_is_solved_over_a_hundred_episodes(ptrain: Typed) -> None:
    """The recipe itself, cut short: balanced for 195 steps and more on the average."""
    quiet = 'callbacks=["-progress_bar", "-tensorboard"]'
    command = ["run", "--plugin", "reinforcement", "--out", "run"]
    assert main([*command, "--set", "length=2_500 steps", "--set", quiet]) == 0
    assert metrics("run")[-1]["test/episode_reward"] >= 195
