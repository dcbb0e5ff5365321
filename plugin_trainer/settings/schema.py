"""What a run file may say: every key, its type, its default and its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from plugin_trainer.cadence import Span, parse_cadence, parse_length, parse_span, parse_warmup

Length = Annotated[Span, BeforeValidator(parse_length)]
Cadence = Annotated[Span | None, BeforeValidator(parse_cadence)]
Warmup = Annotated[Span, BeforeValidator(parse_warmup)]


def _off(value: Any) -> Any:
    """A table is switched off, over a recipe that has it, by `table = false`."""
    return None if value is False else value


def _keep(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, str) and value.isdigit() and int(value) >= 1:
        return int(value)
    raise ValueError(f'{value!r} is not "all" or a number of checkpoints, 1 or more')


def _no_decay(value: Any) -> Any:
    patterns = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if patterns or value in ("auto", "none"):
        return value
    raise ValueError(f'{value!r} is not "auto", "none" or a list of name patterns')


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer.

    name           "adamw", or any class of torch.optim by its name ("SGD"), or package.module:Class
    learning_rate  the peak learning rate, which the schedule multiplies
    weight_decay   decoupled weight decay
    no_decay       parameters without weight decay: "auto" (biases, and all parameters of
                   normalisation modules), "none", or a list of name patterns such as ["*.bias"]
    max_grad_norm  gradients are scaled down to this global norm; 0 does not clip
    settings       further keyword arguments of the optimizer: {betas = [0.9, 0.98]}
    """

    name: str = "adamw"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    no_decay: Annotated[Literal["auto", "none"] | tuple[str, ...], BeforeValidator(_no_decay)] = (
        "auto"
    )
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the run. What a schedule takes of its own stands in
    [schedule_settings].

    name          "linear", "cosine", "constant", or another schedule that a plugin offers
    warmup        the climb before the schedule proper: "100 steps", "1 epoch" or "10 %"
    start_factor  the share of the learning rate at which the climb begins
    """

    name: str = "linear"
    warmup: Warmup = field(default_factory=lambda: parse_span("0 steps", units=("steps",)))
    start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """An exponential moving average of the weights, evaluated beside them as `val_ema/...`.

    decay   the share of the average that each step keeps
    warmup  hold the decay down at first: min(decay, (1 + n) / (10 + n)) after n updates
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: bool = True


@dataclass(frozen=True, kw_only=True)
class BestSettings:
    """What makes a checkpoint the best one.

    watch  the metric, by the name it has for raw weights: "val/loss", "val/accuracy"
    mode   whether lower ("min") or higher ("max") is better
    """

    watch: str = "val/loss"
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A whole run.

    name               the run folder's name under runs/; left out, one is made: dactbert-1
    plugins            installed plugins, paths or modules that take part
    model              which model: "plugin/name", or package.module:Class
    data               which data module: "plugin/name", or package.module:Class
    length             how long to train: "3 epochs" or "20_000 steps"
    evaluate           how often to evaluate; one more evaluation always ends the run
    save               how often to write a checkpoint; one more always ends the run
    log                how often to write training metrics
    keep               how many of the newest checkpoints stay on disk, or "all"; the best ones
                       always stay
    callbacks          callbacks beside the default ones, in calling order; "-name" takes one away
    seed               the seed of every random stream
    device             "auto", or a torch device: "cpu", "cuda:1"
    precision          "fp32", or "bf16" for autocast to bfloat16
    accumulate         micro-batches in one optimizer step
    batch_size         the batch size for a data module that returns a data set; one that returns
                       loaders has its own
    label              the batch's key that holds the labels, where it is not one of labels, label
                       and labels_<head>
    loss               the loss for a model that returns only logits: a class of torch.nn by its
                       name ("CrossEntropyLoss"), or package.module:Class
    optimizer          see [optimizer]
    schedule           see [schedule]
    ema                see [ema]; without the table there is no average; `ema = false` takes it away
    best               see [best]
    model_settings     what the model takes; its plugin says which keys
    data_settings      what the data module takes
    schedule_settings  what the schedule takes
    callback_settings  one table for each callback: [callback_settings.early_stopping]
    """

    name: str = ""
    plugins: tuple[str, ...] = ()
    model: str = ""
    data: str = ""
    length: Length = field(default_factory=lambda: parse_length("3 epochs"))
    evaluate: Cadence = field(default_factory=lambda: parse_cadence("1 epoch"))
    save: Cadence = field(default_factory=lambda: parse_cadence("1 epoch"))
    log: Cadence = field(default_factory=lambda: parse_cadence("50 steps"))
    keep: Annotated[int | Literal["all"], BeforeValidator(_keep)] = 3
    callbacks: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 32
    label: str = ""
    loss: str = ""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: Annotated[EmaSettings | None, BeforeValidator(_off)] = None
    best: BestSettings = field(default_factory=BestSettings)
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    data_settings: Mapping[str, Any] = field(default_factory=dict)
    schedule_settings: Mapping[str, Any] = field(default_factory=dict)
    callback_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


OPEN_TABLES = ("model_settings", "data_settings", "schedule_settings", "callback_settings")
"""Tables whose keys belong to plugins and are checked against the plugins' own dataclasses."""
