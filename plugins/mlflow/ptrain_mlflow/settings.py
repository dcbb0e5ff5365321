"""What a user may set, every key explained in the docstring. Imports neither torch nor mlflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from ptrain_mlflow.naming import name_for


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """Where a run is logged, and what of it.

    tracking_uri     the store, as MLflow writes it: "sqlite:///mlflow.db", "http://host:5000"; left
                     out: what MLFLOW_TRACKING_URI or mlflow.set_tracking_uri says, else
                     mlflow.db in the current folder, with its artifacts in mlartifacts/ beside it
    experiment       the experiment, made if there is none of that name; left out: what
                     MLFLOW_EXPERIMENT_NAME or mlflow.set_experiment says, else "ptrain"
    run_name         what the run is called there; left out: the name of the run folder
    tags             tags of the run: {team = "search"}
    send             "logged": what is logged is sent within `send_every_s`; "saved": once a
                     checkpoint holds it, so that no resume can go back behind it
    send_every_s     seconds from one batch of metrics to the next
    best_checkpoint  also send the best checkpoint, and what predicting from it needs
    active_run       what to do where a run of mlflow.start_run() is active in the process:
                     "join": log to it and leave it open; "nest": log to a child of it; "ignore"
    """

    tracking_uri: str = ""
    experiment: str = ""
    run_name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    send: Literal["logged", "saved"] = "logged"
    send_every_s: Annotated[float, Field(gt=0)] = 10.0
    best_checkpoint: bool = False
    active_run: Literal["join", "nest", "ignore"] = "join"

    def __post_init__(self) -> None:
        """Refuse tags that MLflow would refuse when the run has begun."""
        for name in self.tags:
            if name_for(name) != name:
                raise ValueError(f"tags: MLflow takes no tag called {name!r}")
