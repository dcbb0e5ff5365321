"""The optimizer and its parameter groups, and the optimizer's state by parameter names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from plugin_trainer.errors import Problem, PtrainError, SettingsError
from plugin_trainer.ops import FusedAdamW
from plugin_trainer.registry.building import import_target, wrong_keywords
from plugin_trainer.settings import GroupSettings, OptimizerSettings
from plugin_trainer.training.distributed.sharding import LocalShards, check_elementwise, local_part
from plugin_trainer.training.optim.deferred_dynamo import defer_dynamo
from plugin_trainer.training.optim.one_pass import why_not_in_one_pass

Named = list[tuple[str, nn.Parameter]]

_NORMALISATION = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)

_AS_STARTED = (
    "optimizer.groups and optimizer.no_decay must be what the run was started with",
    "to start a new run from its weights: init_from",
)


def freeze(model: nn.Module, groups: Mapping[str, GroupSettings]) -> None:
    """Freeze the parameters of the groups that say so. Raises as `match_groups` does."""
    for parameter, pattern in match_groups(model, groups).items():
        if pattern and groups[pattern].frozen:
            parameter.requires_grad_(False)


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, *, shards: LocalShards | None = None
) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters.

    shards  those of a sharded model: the optimizer moves them, by the names of the whole parameters

    Raises PtrainError for an unknown optimizer, settings it does not take, a model with nothing to
    train, or an optimizer that cannot do with parts of a parameter where there are shards.
    """
    defer_dynamo()
    freeze(model, settings.groups)
    pattern_of = match_groups(model, settings.groups)
    decayed, exempt = split_by_decay(model, settings.no_decay)
    if not decayed and not exempt:
        raise PtrainError(
            f"the model {type(model).__name__} has no parameter to train",
            hint="every parameter is frozen, or there are none",
        )
    cls = optimizer_class(settings.name)
    if isinstance(cls, type) and issubclass(cls, torch.optim.LBFGS):
        raise PtrainError(
            "optimizer.name: LBFGS computes the loss several times in a step, which the engine's "
            "step does once",
            hint="a plugin can make the whole step itself: see ptrain_train_step",
        )
    if shards is not None:
        check_elementwise(cls)
        pattern_of = {shards.local(p): pattern for p, pattern in pattern_of.items()}
        decayed = [(name, shards.local(p)) for name, p in decayed]
        exempt = [(name, shards.local(p)) for name, p in exempt]
    groups = _groups(decayed, exempt, settings, pattern_of)
    options = dict(settings.settings)
    if options.get("differentiable"):
        raise PtrainError(
            "optimizer.settings.differentiable: a run's step changes the weights in place, which "
            "torch cannot differentiate",
            hint="leave it out",
        )
    if (
        cls is torch.optim.AdamW
        and _all_on_fused_devices(decayed + exempt)
        and "foreach" not in options  # another way, and torch takes one
    ):
        # One pass over all parameters instead of a Python loop over each of them.
        options.setdefault("fused", True)
    if wrong := wrong_keywords(cls, options, given=("params", "lr", "weight_decay")):
        label = f"optimizer {cls.__name__}"
        raise SettingsError([Problem(label, f"optimizer.settings.{k}", text) for k, text in wrong])
    try:
        optimizer = cls(groups, lr=settings.learning_rate, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise PtrainError(
            f"the optimizer {cls.__name__} refuses its settings: {error}",
            hint="see optimizer.settings in the run file",
        ) from error
    if why_not_in_one_pass(optimizer):
        return optimizer
    options.pop("fused", None)
    groups = _groups(decayed, exempt, settings, pattern_of)  # torch has put its own options in
    return FusedAdamW(groups, lr=settings.learning_rate, **options)


def _groups(
    decayed: Named,
    exempt: Named,
    settings: OptimizerSettings,
    pattern_of: Mapping[nn.Parameter, str],
) -> list[dict[str, Any]]:
    """The optimizer's groups: first those of the patterns, then all other parameters; in each those
    that decay before those that do not.
    """
    made = []
    for pattern, own in [*settings.groups.items(), ("", GroupSettings())]:
        rate, decay = own.learning_rate, own.weight_decay
        for named, weight_decay in (
            (decayed, settings.weight_decay if decay is None else decay),
            (exempt, 0.0),
        ):
            members = [p for _, p in named if pattern_of[p] == pattern]
            if members:
                peak = settings.learning_rate if rate is None else rate
                made.append(
                    {
                        "params": members,
                        "lr": peak,
                        "initial_lr": peak,
                        "weight_decay": weight_decay,
                        "name": pattern or "others",
                    }
                )
    return made


def match_groups(model: nn.Module, groups: Mapping[str, GroupSettings]) -> dict[nn.Parameter, str]:
    """The first pattern that matches each parameter by any of its names; empty if none does.

    Raises PtrainError for a pattern that matches no parameter, or only such that belong to an
    earlier pattern.
    """
    named = _all_names(model)
    matched = {
        parameter: next((pattern for pattern in groups if _matches(names, pattern)), "")
        for parameter, names in named.items()
    }
    for pattern in groups:
        if pattern in matched.values():
            continue
        taken = next((matched[p] for p, names in named.items() if _matches(names, pattern)), "")
        raise PtrainError(
            f"optimizer.groups: the pattern '{pattern}' matches no parameter"
            + (f" that '{taken}' before it does not" if taken else ""),
            hint="put the narrower pattern first" if taken else _first_names(named),
        )
    return matched


def _all_names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter once, with all its names: tied weights have several."""
    named: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(parameter, []).append(name)
    return named


def _matches(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _first_names(named: Mapping[nn.Parameter, list[str]]) -> str:
    first = [names[0] for names in named.values()][:6]
    return f"the model's first parameters are: {', '.join(first)}"


def optimizer_class(name: str) -> Any:
    """The class for a name of torch.optim, any case, or for package.module:Class."""
    if ":" in name:
        return import_target(name)
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    known.pop("optimizer", None)
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    raise PtrainError(
        f"optimizer.name: torch.optim has no optimizer '{name}'",
        hint=[
            *([f"did you mean '{known[close[0]].__name__}'?"] if close else []),
            f"there are: {', '.join(sorted(cls.__name__ for cls in known.values()))}",
            "any class works too: package.module:Class",
        ],
    )


def split_by_decay(model: nn.Module, no_decay: str | tuple[str, ...]) -> tuple[Named, Named]:
    """The trainable parameters that decay, and those that do not, each once.

    "auto" exempts biases and everything in a normalisation module, told by the module's type and
    not by the parameter's name, which differs from one library to the next.
    """
    named = _all_names(model)
    if no_decay == "auto":
        exempt = set(_biases_and_normalisation(model))
    elif no_decay == "none":
        exempt = set()
    else:
        for pattern in no_decay:
            if not any(_matches(names, pattern) for names in named.values()):
                raise PtrainError(
                    f"optimizer.no_decay: the pattern '{pattern}' matches no parameter",
                    hint=_first_names(named),
                )
        exempt = {p for rule in no_decay for p, names in named.items() if _matches(names, rule)}
    trainable = [(names[0], p) for p, names in named.items() if p.requires_grad]
    return (
        [(name, p) for name, p in trainable if p not in exempt],
        [(name, p) for name, p in trainable if p in exempt],
    )


def _biases_and_normalisation(model: nn.Module) -> Iterable[nn.Parameter]:
    for module in model.modules():
        own = list(module.named_parameters(recurse=False))
        # Libraries bring normalisation classes of their own: all of them say so in the class's name
        # and hold nothing but vectors.
        named_norm = "norm" in type(module).__name__.lower() and all(p.dim() <= 1 for _, p in own)
        is_norm = isinstance(module, _NORMALISATION) or named_norm
        for name, parameter in own:
            if is_norm or "bias" in name.split("_"):
                yield parameter


def _all_on_fused_devices(named: Named) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p in named)


# ------------------------------------------------------------------------------------------ state


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, shards: LocalShards | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors as "parameter/key", and the rest: other values and the groups'
    options. What belongs to a sharded parameter's elements is sharded as it is.
    """
    names = _names_in_order(optimizer, model, shards)
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    others: dict[Any, Any] = {}  # what an optimizer keeps under a key that is no parameter
    for index, entries in state["state"].items():
        if not isinstance(index, int):
            others[index] = entries
            continue
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}/{key}"] = (
                    value if shards is None else shards.as_sharded(moved[index], value)
                )
            else:
                values.setdefault(names[index], {})[key] = value
    groups = [
        {**group, "params": [names[index] for index in group["params"]]}
        for group in state["param_groups"]
    ]
    rest = {"class": class_name(optimizer), "values": values, "groups": groups}
    return tensors, {**rest, "others": others} if others else rest


def class_name(thing: object) -> str:
    """The full name of an object's class.

    AdamW in one pass goes by torch's name: a checkpoint of either is one for the other.
    """
    cls = torch.optim.AdamW if isinstance(thing, FusedAdamW) else type(thing)
    return f"{cls.__module__}:{cls.__qualname__}"


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    *,
    with_new_settings: bool = False,
    shards: LocalShards | None = None,
) -> None:
    """Put the state back by parameter names.

    tensors            sharded where `optimizer_state` gives them so
    with_new_settings  the options of the groups, learning rates included, stay those the optimizer
                       was built with; a rate that a schedule has lowered is lowered as far again

    Raises PtrainError if the parameters are not the same.
    """
    built = [dict(group) for group in optimizer.param_groups]
    names = _names_in_order(optimizer, model, shards)
    saved = [name for group in rest["groups"] for name in group["params"]]
    if sorted(saved) != sorted(names):
        differing = sorted(set(saved) ^ set(names))[:6]
        raise PtrainError(
            "the checkpoint's optimizer holds other parameters than this model",
            hint=[f"these are on one side only: {', '.join(differing)}", *_AS_STARTED],
        )
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[Any, Any] = dict(rest.get("others", {}))
    for name, entries in rest["values"].items():
        state.setdefault(index_of[name], {}).update(entries)
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        state.setdefault(index_of[name], {})[key] = local_part(tensor)
    groups = [
        {**group, "params": [index_of[name] for name in group["params"]]}
        for group in rest["groups"]
    ]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise PtrainError(
            "the checkpoint's optimizer has other parameter groups than this one",
            hint=[str(error), *_AS_STARTED],
        ) from error
    _undo_casts(optimizer, state)
    for group, new in zip(optimizer.param_groups, built, strict=True):
        # What a schedule that is new to the run keeps in the groups.
        group.update({key: value for key, value in new.items() if key not in group})
    if with_new_settings:
        for group, new in zip(optimizer.param_groups, built, strict=True):
            lowered = group["lr"] / group["initial_lr"]
            group.update({key: value for key, value in new.items() if key != "params"})
            group["lr"] = new["initial_lr"] * lowered


def _undo_casts(optimizer: torch.optim.Optimizer, saved: Mapping[Any, Any]) -> None:
    """Give state back as it was saved: torch's `load_state_dict` casts every tensor to its
    parameter's dtype, a count in int64 too, and takes a text for a sequence of letters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in saved.items():
        if isinstance(index, int):
            state = optimizer.state[parameters[index]]
            state.update({key: _as_saved(entries[key], state[key]) for key in entries})


def _as_saved(saved: Any, loaded: Any) -> Any:
    """A value of the state as it was saved, its tensors where they were loaded to."""
    if isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
    if isinstance(saved, Mapping):
        return {key: _as_saved(value, loaded[key]) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        return type(saved)(map(_as_saved, saved, loaded))
    return saved


def _names_in_order(
    optimizer: torch.optim.Optimizer, model: nn.Module, shards: LocalShards | None
) -> list[str]:
    if shards is not None:
        names = shards.names
    else:
        names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]
