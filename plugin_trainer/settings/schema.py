"""What a run file may say: every key, its type, its default and its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from plugin_trainer.cadence import Span, parse_cadence, parse_length, parse_span, parse_warmup
from plugin_trainer.quoting import shown
from plugin_trainer.settings.tuning import TuneSettings
from plugin_trainer.settings.words import Spelt

_AMOUNT = r"(\d[\d_]*(\.\d+)?|\.\d+)\s*"
_STEPS_OR_EPOCHS = rf"\s*{_AMOUNT}([Ss]teps?|[Ee]pochs?)\s*"

Length = Annotated[
    Span,
    BeforeValidator(parse_length),
    Spelt(
        'a number of steps or epochs: "500 steps", "3 epochs"',
        {"type": "string", "pattern": f"^{_STEPS_OR_EPOCHS}$"},
    ),
]
Cadence = Annotated[
    Span | None,
    BeforeValidator(parse_cadence),
    Spelt(
        'a number of steps or epochs: "500 steps", "0.5 epoch"; or "never"',
        {"type": "string", "pattern": rf"^({_STEPS_OR_EPOCHS}|\s*[Nn]ever\s*)$"},
    ),
]
Warmup = Annotated[
    Span,
    BeforeValidator(parse_warmup),
    Spelt(
        'a number of steps or epochs, or a share of the run: "100 steps", "10 %"',
        {
            "type": "string",
            "pattern": rf"^\s*{_AMOUNT}([Ss]teps?|[Ee]pochs?|%|[Pp]ercent)\s*$",
        },
    ),
]


def _off(value: Any) -> Any:
    """A table is switched off, over a recipe that has it, by `table = false`."""
    return None if value is False else value


def _ema(value: Any) -> Any:
    if _is_table(value := _off(value), EmaSettings):
        return value
    raise ValueError(f"{shown(value)} is not a table: write a table [ema], or false")


def _tune(value: Any) -> Any:
    if _is_table(value := _off(value), TuneSettings):
        return value
    raise ValueError(f"{shown(value)} is not a table: write a table [tune], or false")


def _compile(value: Any) -> Any:
    """The table is also switched on, with its defaults, by `compile = true`."""
    if _is_table(value := {} if value is True else _off(value), CompileSettings):
        return value
    raise ValueError(f"{shown(value)}: write true, false or a table [compile]")


def _init_from(value: Any) -> Any:
    """A run alone, as text, stands for the table that names nothing else."""
    if isinstance(value, (str, Path)) and str(value):
        return {"run": str(value)}
    if _is_table(value := _off(value), InitSettings):
        return value
    raise ValueError(
        f"{shown(value)}: write the folder or the name of a run, a table [init_from], or false"
    )


def _is_table(value: Any, cls: type) -> bool:
    return value is None or isinstance(value, (Mapping, cls))


def _checkpointed(value: Any) -> Any:
    patterns = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool) or patterns:
        return value
    raise ValueError(f"{shown(value)} is not true, false or a list of module name patterns")


def _keep(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f'{shown(value)} is not "all" or a number of checkpoints, 1 or more')


def _no_decay(value: Any) -> Any:
    patterns = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if patterns or value in ("auto", "none"):
        return value
    raise ValueError(f'{shown(value)} is not "auto", "none" or a list of name patterns')


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """What differs for the parameters that a name pattern matches.

    learning_rate  their peak learning rate; left out, that of the optimizer
    weight_decay   their weight decay; left out, that of the optimizer. What no_decay exempts stays
                   exempt
    frozen         do not train them at all
    """

    learning_rate: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    weight_decay: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    frozen: bool = False


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
    groups         parameters that are treated otherwise, by name pattern: a table
                   [optimizer.groups."encoder.*"]. A parameter belongs to the first that matches
    """

    name: str = "adamw"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    no_decay: Annotated[
        Literal["auto", "none"] | tuple[str, ...],
        BeforeValidator(_no_decay),
        Spelt('"auto", "none" or a list of name patterns'),
    ] = "auto"
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, GroupSettings] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the run. What a schedule takes of its own stands in
    [schedule_settings].

    name          "linear", "cosine", "constant", another schedule that a plugin offers, or any
                  class of torch.optim.lr_scheduler by its name ("OneCycleLR")
    warmup        the climb before the schedule proper: "100 steps", "1 epoch" or "10 %"
    start_factor  the share of the learning rate at which the climb begins
    every         how often the schedule proper makes a step of its own: "1 epoch" for a class of
                  torch whose numbers are meant in epochs, such as StepLR
    watch         for "ReduceLROnPlateau", which steps on each evaluation: the metric to look at;
                  left out, best.watch. Its mode is best.mode unless [schedule_settings] says
    """

    name: str = "linear"
    warmup: Warmup = field(default_factory=lambda: parse_span("0 steps", units=("steps",)))
    start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    every: Length = field(default_factory=lambda: parse_length("1 step"))
    watch: str = ""


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """An exponential moving average of the weights, evaluated beside them as `val_ema/...`.

    decay    the share of the average that each step keeps
    warmup   hold the decay down at first: min(decay, (1 + n) / (10 + n)) after n updates
    buffers  which floating buffers are averaged: the running "statistics" of normalisations, "all"
             or "none"; the others are copied, as counts and masks are
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: bool = True
    buffers: Literal["statistics", "all", "none"] = "statistics"


@dataclass(frozen=True, kw_only=True)
class BestSettings:
    """What makes a checkpoint the best one.

    watch  the metric, by the name it has for raw weights: "val/loss", "val/accuracy"; empty: no
           checkpoint is the best, and the last one is used
    mode   whether lower ("min") or higher ("max") is better
    ties   of equal values, whether the "newest" is the best or the "oldest"
    """

    watch: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    ties: Literal["newest", "oldest"] = "newest"


@dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """How tasks are mixed, for a data module that gives several.

    strategy     "round_robin": one batch of each task in turn, a task that has none left drops out;
                 "proportional": every batch of every task once an epoch, in a random order;
                 "temperature": as many batches, shared out by size ** (1 / temperature)
    temperature  1 is proportional; the higher, the more evenly tasks of unlike sizes are drawn
    until        of a round robin, what ends an epoch: "all" tasks are used up, or the "first" is
    """

    strategy: Literal["round_robin", "proportional", "temperature"] = "round_robin"
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    until: Literal["all", "first"] = "all"


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """How several processes, started by torchrun or `--processes`, train one run. One process
    ignores it.

    strategy           "ddp": each holds the whole model, the optimizer and the average; "fsdp2":
                       each holds a shard of them
    unused_parameters  of "ddp": "find out" sees in the first step whether the model leaves
                       parameters out of it; "search" looks at every step, for a model that leaves
                       out others each time, which costs a pass over its graph
    """

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    unused_parameters: Literal["find out", "search"] = "find out"


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """torch.compile of the model's forward pass.

    mode       "default", "reduce-overhead", "max-autotune" or "max-autotune-no-cudagraphs"
    backend    which compiler: "inductor", or another that torch knows
    fullgraph  refuse a model that cannot be compiled as one graph
    dynamic    expect shapes that change; left out, torch finds out
    """

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    backend: str = "inductor"
    fullgraph: bool = False
    dynamic: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Only the first batches of each split, for a quick look. Left out, all of them.

    train       batches of an epoch
    validation  batches of an evaluation
    test        batches of the test split
    """

    train: Annotated[int | None, Field(ge=1)] = None
    validation: Annotated[int | None, Field(ge=1)] = None
    test: Annotated[int | None, Field(ge=1)] = None


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """Weights to start from: those of another run, whose optimizer and place are not taken over.

    run         the other run's folder, or its name under runs/
    checkpoint  "best", "last" or "step-N"; left out, the best if there is one, else the last
    weights     "raw" or "ema"
    strict      refuse weights that do not fit the model in full; without it, what fits by name and
                shape is taken and the rest is named
    """

    run: str
    checkpoint: str = ""
    weights: Literal["raw", "ema"] = "raw"
    strict: bool = True


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A whole run.

    name               the run folder's name under runs/; left out, one is made: dactbert-1
    plugins            installed plugins, paths or modules that take part
    model              which model: "plugin/name", or package.module:Class
    data               which data module: "plugin/name", or package.module:Class
    length             how long to train: "3 epochs" or "20_000 steps"
    evaluate           how often to evaluate; one more evaluation always ends the run
    test_split         when to score the test split, if the data has one: once at the "end", with
                       the best weights, or "never"
    save               how often to write a checkpoint; one more always ends the run
    log                how often to write training metrics
    keep               how many of the newest checkpoints stay on disk, or "all"; the best ones
                       always stay
    callbacks          callbacks beside the default ones, in calling order; "-name" takes one away.
                       A list of nothing but "+name" and "-name" changes that of the recipe or file
                       below, any other replaces it
    seed               the seed of every random stream
    device             "auto", or a torch device: "cpu", "cuda:1"
    deterministic      refuse operations whose result differs from one time to the next; slower
    precision          "fp32"; "bf16" or "fp16" for autocast, fp16 with a loss scale; or "auto":
                       bf16 where the hardware computes in it, else fp32
    compile            see [compile]; `compile = true` for its defaults
    activation_checkpointing
                       compute activations again in the backward pass, to save memory: true for
                       every block (entry of a ModuleList), or a list of module name patterns
    accumulate         micro-batches in one optimizer step
    batch_size         of a data set that the run puts into batches itself, 32 where it is left out;
                       a loader has its own. Several processes share each batch
    parallel           see [parallel]
    limit_batches      see [limit_batches]
    init_from          a run whose weights to start from: its folder or name; or see [init_from]
    label              the batch's key that holds the labels, where it is not one of labels, label
                       and labels_<head>
    loss               the loss for a model that returns only logits: a class of torch.nn by its
                       name ("CrossEntropyLoss"), or package.module:Class
    optimizer          see [optimizer]
    schedule           see [schedule]
    ema                see [ema]; without the table there is no average; `ema = false` takes it away
    best               see [best]
    overall            metrics whose mean is logged as val/overall, named without the split:
                       ["sentiment/label/accuracy", "entities/tags/f1"]
    mixture            see [mixture]
    tune               see [tune]; read by `ptrain tune` alone
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
    test_split: Literal["end", "never"] = "end"
    save: Cadence = field(default_factory=lambda: parse_cadence("1 epoch"))
    log: Cadence = field(default_factory=lambda: parse_cadence("50 steps"))
    keep: Annotated[
        int | Literal["all"],
        BeforeValidator(_keep),
        Spelt(
            'a whole number, 1 or more, or "all"',
            {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}]},
        ),
    ] = 3
    callbacks: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    deterministic: bool = False
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    compile: Annotated[
        CompileSettings | None,
        BeforeValidator(_compile),
        Spelt("true, false or a table [compile]", also=({"type": "boolean"},)),
    ] = None
    activation_checkpointing: Annotated[
        bool | tuple[str, ...],
        BeforeValidator(_checkpointed),
        Spelt("true, false or a list of module name patterns"),
    ] = False
    accumulate: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int | None, Field(ge=1)] = None
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    limit_batches: LimitSettings = field(default_factory=LimitSettings)
    init_from: Annotated[
        InitSettings | None,
        BeforeValidator(_init_from),
        Spelt(
            "the folder or the name of a run, a table [init_from], or false",
            also=({"type": "string", "minLength": 1}, {"const": False}),
        ),
    ] = None
    label: str = ""
    loss: str = ""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: Annotated[
        EmaSettings | None,
        BeforeValidator(_ema),
        Spelt("a table [ema], or false", also=({"const": False},)),
    ] = None
    best: BestSettings = field(default_factory=BestSettings)
    overall: tuple[str, ...] = ()
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    tune: Annotated[
        TuneSettings | None,
        BeforeValidator(_tune),
        Spelt("a table [tune], or false", also=({"const": False},)),
    ] = None
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    data_settings: Mapping[str, Any] = field(default_factory=dict)
    schedule_settings: Mapping[str, Any] = field(default_factory=dict)
    callback_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


OPEN_TABLES = ("model_settings", "data_settings", "schedule_settings", "callback_settings")
"""Tables whose keys belong to plugins and are checked against the plugins' own dataclasses."""
