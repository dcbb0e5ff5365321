"""Refuses what does not fit, and makes one case of rows and sentences."""

# N blocks, U halting units (rows, or sentences), T tokens per unit, C classes

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

PerBlock: TypeAlias = float | Sequence[float] | Tensor
Count: TypeAlias = float | Tensor

NO_SECOND_DERIVATIVE = (
    "halting_loss has no second derivative: call backward without create_graph=True"
)

# The by-products of the loss, and the bits that stand for them in the ops.
OUTPUTS = {"log_answer": 1, "halting_p": 2, "exit_weights": 4}


class Settings(NamedTuple):
    """What `halting_loss` is called with beside its tensors; there it says what each means."""

    tau: float
    alpha: PerBlock | None
    beta: PerBlock | None
    eta: PerBlock | None
    ignore_index: int
    class_weight: Tensor | None
    label_smoothing: float
    reg_mask: Tensor | None
    reduction: str
    normalizer: Count | tuple[Count, Count] | None
    empty: str


def check_pair(logits: Tensor, halting_logits: Tensor) -> None:
    """Raise ValueError if class logits and halting logits are no network's answers."""
    if not (logits.is_floating_point() and halting_logits.is_floating_point()):
        raise ValueError(
            f"logits are {logits.dtype}, halting_logits {halting_logits.dtype}; both must be float"
        )
    if logits.dim() < 3 or logits.shape[0] < 1:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, not [blocks, rows, classes]")
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} have {logits.shape[-1]} classes, not 2 or more"
        )
    per_row = tuple(logits.shape[:-1])
    per_sentence = per_row[:-1] if len(per_row) > 2 else per_row
    if tuple(halting_logits.shape) not in (per_row, per_sentence):
        raise ValueError(
            f"halting_logits have shape {tuple(halting_logits.shape)}; with logits of shape "
            f"{tuple(logits.shape)} they must have {' or '.join(map(str, {per_row, per_sentence}))}"
        )


def check_choices(
    tau: float, label_smoothing: float, reduction: str, normalizer: object, empty: str
) -> None:
    """Raise ValueError for a setting of the loss that means nothing."""
    if not (math.isfinite(tau) and tau >= 0.0):
        raise ValueError(f"tau is {tau}; it must be 0 or more")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be between 0 and 1")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")
    if empty not in ("nan", "zero"):
        raise ValueError(f"empty is {empty!r}; it must be 'nan' or 'zero'")
    if normalizer is not None and reduction != "mean":
        raise ValueError(f"normalizer replaces the counts of a mean; reduction is {reduction!r}")


def check_mode(logits: Tensor, halting_logits: Tensor) -> None:
    """Raise RuntimeError where the loss would have no derivative, or a silent zero for one."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "halting_loss cannot be used inside the transforms of torch.func (grad, vmap, jvp); "
            "differentiate it with backward() or torch.autograd.grad"
        )
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in (logits, halting_logits)
    ):
        raise RuntimeError(
            "halting_loss has no forward-mode derivative; differentiate it with backward()"
        )


def bits_of(outputs: Sequence[str]) -> int:
    """The by-products as bits. Raises ValueError for one that there is not."""
    bits = 0
    for name in outputs:
        if name not in OUTPUTS:
            raise ValueError(f"outputs names {name!r}; there are {', '.join(OUTPUTS)}")
        bits |= OUTPUTS[name]
    return bits


def check_inplace(logits: Tensor, reduction: str) -> None:
    """Raise ValueError if no gradient may be written over the logits."""
    if reduction == "none":
        raise ValueError("inplace needs a loss that is one number; reduction is 'none'")
    if logits.dim() > 0 and logits.shape[0] > 0 and not logits[0].is_contiguous():
        raise ValueError(
            f"inplace needs each block's logits without gaps; these have shape "
            f"{tuple(logits.shape)} and strides {logits.stride()}: leave inplace out, or give it "
            "logits.contiguous()"
        )
    base = logits._base
    if (logits.is_leaf and logits.requires_grad) or (
        base is not None and base.is_leaf and base.requires_grad
    ):
        raise ValueError(
            "inplace would write the gradient over a leaf that requires grad, a parameter: "
            "leave inplace out, or give it logits that were computed"
        )


def check_weights(logits: Tensor, settings: Settings) -> None:
    """Raise ValueError if a weight or a count has another form than `halting_loss` says."""
    blocks, classes = logits.shape[0], logits.shape[-1]
    for name in ("alpha", "beta", "eta"):
        value = getattr(settings, name)
        if value is not None and not isinstance(value, (int, float)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else (len(value),)
            if shape != (blocks,):
                raise ValueError(f"{name} has shape {shape}; there are {blocks} blocks")
    weight = settings.class_weight
    if weight is not None and (
        not isinstance(weight, Tensor)
        or not weight.is_floating_point()
        or weight.shape != (classes,)
    ):
        is_given = (
            f"has shape {tuple(weight.shape)} and is {weight.dtype}"
            if isinstance(weight, Tensor)
            else f"is a {type(weight).__name__}"
        )
        raise ValueError(f"class_weight {is_given}; it must be a float tensor of ({classes},)")
    normalizer = settings.normalizer
    counts = normalizer if isinstance(normalizer, tuple) else (normalizer, normalizer)
    if normalizer is not None and (len(counts) != 2 or not all(map(_is_count, counts))):
        raise ValueError(
            f"normalizer is {normalizer!r}; it must be a number or a 0-dim tensor, or a pair of "
            "them: (rows, units)"
        )


def _is_count(count: object) -> bool:
    return count.dim() == 0 if isinstance(count, Tensor) else isinstance(count, (int, float))


def check_mask(name: str, mask: Tensor, shapes: list[torch.Size]) -> None:
    """Raise ValueError if the mask is not bool or has none of the shapes."""
    if mask.dtype != torch.bool or mask.shape not in shapes:
        wanted = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(
            f"{name} is {mask.dtype} of shape {tuple(mask.shape)}, not bool of shape {wanted}"
        )


def as_NUTC(logits: Tensor, halting_logits: Tensor) -> Tensor:
    """Rows become units of one token, so that rows and sentences are one case."""
    blocks, classes = logits.shape[0], logits.shape[-1]
    units = math.prod(halting_logits.shape[1:])
    tokens = logits.shape[-2] if halting_logits.dim() == logits.dim() - 2 else 1
    return logits.reshape(blocks, units, tokens, classes)


def per_block(value: PerBlock, name: str, logits: Tensor, dtype: torch.dtype) -> Tensor:
    """One number per block, [N], on the logits' device."""
    blocks = logits.shape[0]
    if isinstance(value, int | float):
        return torch.full((blocks,), float(value), dtype=dtype, device=logits.device)
    value_N = torch.as_tensor(value, dtype=dtype, device=logits.device).detach()
    if value_N.shape != (blocks,):
        raise ValueError(f"{name} has shape {tuple(value_N.shape)}; there are {blocks} blocks")
    return value_N


def regularised_units(
    reg_mask: Tensor | None, labelled_UT: Tensor, rows: torch.Size, units: torch.Size
) -> Tensor:
    """Which units the regulariser counts, bool [U]: as masked, or else those with a label."""
    if reg_mask is None:
        return labelled_UT.any(-1)
    check_mask("reg_mask", reg_mask, [units] if units == rows else [units, rows])
    per_unit = reg_mask.shape == units
    return reg_mask.reshape(-1) if per_unit else reg_mask.reshape(labelled_UT.shape).any(-1)
