"""What this plugin offers, and how it acts between optimizer steps; imports no torch.

A step of a run is the engine's own, with its accumulation, clipping, guards, schedule and average.
This plugin wraps it: before it, the agent acts in the environment; while it is made, the draws that
the engine's data stream gives become transitions from the replay buffer; after it, the target
network follows.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from plugin_trainer import DataSpec, ModelSpec, RecipeSpec, StepOutcome, hookimpl

if TYPE_CHECKING:
    from ptrain_reinforcement.data import Environment

PTRAIN_API = 1

STATE = "reinforcement"
"""The key of this plugin's state in a checkpoint."""


def ptrain_models() -> list[ModelSpec]:
    """One model: a network of Q values with its target network."""
    return [
        ModelSpec(
            name="q_network",
            target="ptrain_reinforcement.q_network:QNetwork",
            settings="ptrain_reinforcement.settings:QNetworkSettings",
            summary="deep Q-network: double, dueling, or around a network of your own",
            default=True,
        )
    ]


def ptrain_data() -> list[DataSpec]:
    """One data module: a gymnasium environment and what the agent remembers of it."""
    return [
        DataSpec(
            name="environment",
            target="ptrain_reinforcement.data:Environment",
            settings="ptrain_reinforcement.settings:EnvironmentSettings",
            summary="a gymnasium environment, CartPole by default, and a replay buffer",
            default=True,
        )
    ]


def ptrain_recipes() -> list[RecipeSpec]:
    """One run file, which solves CartPole."""
    return [
        RecipeSpec(
            name="cartpole",
            file="recipe.toml",
            summary="deep Q-learning that balances a pole in a few minutes of a CPU",
            default=True,
        )
    ]


# ------------------------------------------------------------------------------------ experience


def ptrain_run_start(run: Any) -> None:
    """Begin to experience the environment, unless a checkpoint has put an earlier state back."""
    data = _environment(run)
    if data is not None and data.experience is None:
        data.begin(seed=run.settings.seed)


@hookimpl(wrapper=True)
def ptrain_train_step(run: Any) -> Generator[None, StepOutcome, StepOutcome]:
    """Act, let the step be made, let the target network follow."""
    data = _environment(run)
    if data is None or data.experience is None:
        return (yield)
    # An environment that fails leaves the weights as the last step left them.
    run.sound = True
    data.experience.grow(run)
    run.stopwatch.lap("data")
    outcome = yield
    if hasattr(run.model, "follow"):
        run.model.follow(step=run.progress.step + 1)
    return outcome


def ptrain_move_batch(run: Any, batch: Any, device: Any) -> Any:
    """Turn draws into the transitions that they choose, on the device."""
    data = _environment(run)
    if data is None or data.experience is None:
        return None
    if not (isinstance(batch, Mapping) and "draws" in batch):
        return None
    transitions = data.experience.replay.drawn(batch["draws"])
    return {name: value.to(device, non_blocking=True) for name, value in transitions.items()}


def ptrain_log(run: Any, metrics: MutableMapping[str, float]) -> None:
    """Add what the agent has lived through since the last line."""
    data = _environment(run)
    if data is not None and data.experience is not None and "train/loss" in metrics:
        metrics.update(data.experience.told(step=run.progress.step))


# ------------------------------------------------------------------------------------ evaluation


def ptrain_evaluation_batch_end(run: Any, outcome: StepOutcome) -> None:
    """Act in the episodes of the evaluation, as the Q values say."""
    data = _environment(run)
    if data is not None and data.episodes is not None:
        data.episodes.act(outcome.outputs["q"])


def ptrain_evaluation_end(run: Any, metrics: MutableMapping[str, float]) -> None:
    """Take the loss out of the scores: in an evaluation nothing is learned, so there is none."""
    if _environment(run) is not None:
        for name in [name for name in metrics if name.endswith("/loss")]:
            del metrics[name]


# ----------------------------------------------------------------------------------- checkpoints


def ptrain_checkpoint_save(run: Any, state: MutableMapping[str, Any]) -> None:
    """Keep all that was experienced, the episodes at hand included."""
    data = _environment(run)
    if data is not None and data.experience is not None:
        state[STATE] = data.experience.state_dict()


def ptrain_checkpoint_load(run: Any, state: Mapping[str, Any]) -> None:
    """Go on with what was experienced."""
    data = _environment(run)
    if data is not None and STATE in state:
        data.begin(seed=run.settings.seed, state=state[STATE])


def _environment(run: Any) -> Environment | None:
    """The run's data module if it is this plugin's; a run may name the plugin and use another."""
    data: Environment | None = run.data if hasattr(run.data, "experience") else None
    return data
