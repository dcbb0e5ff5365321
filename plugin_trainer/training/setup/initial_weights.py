"""Start a model from the weights of another run."""

from __future__ import annotations

from torch import nn

from plugin_trainer.errors import CheckpointError
from plugin_trainer.run_folder import find_run
from plugin_trainer.settings import InitSettings
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_model_state
from plugin_trainer.training.distributed.sharding import fitted

_SHOWN = 6


def start_from(model: nn.Module, settings: InitSettings) -> str:
    """Put the other run's weights into the model; one line about what was taken.

    Raises RunFolderError or CheckpointError if there are none, and CheckpointError, naming them,
    for weights that do not fit where all of them must.
    """
    folder = find_run(settings.run)
    found = CheckpointStore(folder).choose(settings.checkpoint, weights=settings.weights)
    theirs, ours = read_model_state(found.path, weights=settings.weights), model.state_dict()
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in ours and getattr(ours[name], "shape", None) == getattr(value, "shape", None)
    }
    left = sorted((ours.keys() | theirs.keys()) - fitting.keys())
    if (settings.strict and left) or not fitting:
        raise CheckpointError(
            f"init_from: the weights of {found.path} do not fit the model {type(model).__name__}",
            hint=[
                f"these are on one side only or of another shape: {_some(left)}",
                "to take what fits: init_from.strict = false",
            ],
        )
    model.load_state_dict(fitted(fitting, model), strict=False)
    rest = f"; not taken: {_some(left)}" if left else ""
    return f"starting from the {settings.weights} weights of {found.path}{rest}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
