"""Exponential moving average of a model's weights: every tensor of the model in one call."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops import library
from plugin_trainer.ops.ema import native, reference

__all__ = ["PreparedEma", "ema_decay", "ema_update_", "shadow_dtype"]

_SHADOW_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


# Of float8 and other types torch itself cannot average.
_AVERAGED = native.DTYPES | {torch.complex64, torch.complex128}


def shadow_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of this dtype are averaged.

    float32 for float32, bfloat16 and float16; integers, bool and the others keep their own.
    """
    return _SHADOW_DTYPES.get(dtype, dtype)


def ema_decay(updates: int, *, decay: float, warmup: bool) -> float:
    """The decay to use for the next update.

    updates  how many updates the average has had so far, 0 for the first
    warmup   rise as min(decay, (1 + updates) / (10 + updates)): 0.1 at the first update, so that a
             young average is not mostly the untrained weights. A decay of 0.999 is reached after
             8990 updates

    Raises ValueError if updates is negative or decay is not in [0, 1].
    """
    if updates < 0:
        raise ValueError(f"updates is {updates}; it counts from 0")
    _check_decay(decay)
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


def ema_update_(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], *, decay: float | Tensor
) -> None:
    """shadow <- decay * shadow + (1 - decay) * weight, in place, for every pair.

    shadows  float32 for float32, bfloat16 and float16 weights, otherwise the weight's own dtype
    weights  the same number, shapes and devices; any strides. Integer and bool tensors (step
             counters, masks) are copied, not averaged
    decay    in [0, 1]; a 0-dim tensor on a device is used there and never read by the host. Give it
             in float64: 1 - 0.999 in float32 is off by 1.3e-5 of itself

    A pair that is given twice (tied weights) is updated once. What is not finite stays so. Inside
    torch.compile it is one op in the graph; a decay that changes is best a tensor there, as each
    number is compiled anew. There only a number is checked: a tensor must be in [0, 1].

    Raises ValueError, naming the index, if a pair does not match in shape, device or dtype, if a
    shadow shares memory with a weight, with another shadow or within itself, or if one shadow is
    given for two different weights; nothing is changed then.
    """
    decay = _checked_decay(decay)
    _check_count(shadows, weights)
    if torch.compiler.is_compiling():
        _update_in_graph_(shadows, weights, decay)
        return
    compiled = library.find() is not None and not isinstance(decay, Tensor)
    if compiled and native.update_(list(shadows), list(weights), decay):
        # So that autograd notices a backward through what has changed since. 45 ns a tensor.
        torch.autograd.graph.increment_version(shadows)
    else:
        PreparedEma(shadows, weights)(decay)


class PreparedEma:
    """`ema_update_` of the same tensors again and again: the pairs are checked and sorted once.

    The tensors are held, not their memory: what they are set to later is what is averaged. Raises
    as `ema_update_` does, for the pairs when it is made and for the decay when it is called; also
    for the pairs when it is called, if a tensor has got another shape or dtype since.
    """

    def __init__(self, shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        _check_count(shadows, weights)
        self._shadows, self._weights = list(shadows), list(weights)
        self._prepare()

    def __call__(self, decay: float | Tensor) -> None:
        """shadow <- decay * shadow + (1 - decay) * weight, in place, for every pair."""
        decay = _checked_decay(decay)
        if torch.compiler.is_compiling():
            _update_in_graph_(self._shadows, self._weights, decay)
            return
        if self._groups and any(
            _has_changed(*pair) for group in self._groups for pair in zip(*group, strict=True)
        ):
            self._prepare()  # raises, in words, with the index, before anything is written
        if self._plan is not None:
            # A tensor on the pairs' own device stays there: the host does not wait for it.
            stays = isinstance(decay, Tensor) and decay.device == self._device
            value = decay if stays else float(decay)
            try:
                self._plan.update(value)
            except RuntimeError:  # a tensor is not what it was
                self._prepare()
                if self._plan is not None:
                    self._plan.update(value)
            torch.autograd.graph.increment_version(self._planned)
        if self._groups:
            with torch.no_grad():
                reference.ema_update_(self._groups, decay=decay)

    def _prepare(self) -> None:
        """What the kernels take goes into a plan, the rest into the groups of the reference."""
        pairs = list(zip(self._shadows, self._weights, strict=True))
        compiled = library.find() is not None
        taken = [compiled and native.takes(*pair) for pair in pairs]
        # A plan is of one device.
        devices = (shadow.device for (shadow, _), yes in zip(pairs, taken, strict=True) if yes)
        self._device = next(devices, None)
        taken = [
            yes and pair[0].device == self._device for pair, yes in zip(pairs, taken, strict=True)
        ]
        self._plan = None
        self._planned = [pair[0] for pair, yes in zip(pairs, taken, strict=True) if yes]
        if any(taken):
            try:
                self._plan = native.Plan(
                    self._planned,
                    [pair[1] for pair, is_taken in zip(pairs, taken, strict=True) if is_taken],
                )
            except RuntimeError:
                _checked_pairs(self._shadows, self._weights)  # raises, in words, with the index
                raise
        if all(taken):
            self._groups: list[reference.Group] = []
        else:
            checked = _checked_pairs(self._shadows, self._weights)
            rest = [
                pair
                for pair in checked
                if not (compiled and pair[0].device == self._device and native.takes(*pair))
            ]
            self._groups = reference.grouped(rest)

    def __reduce__(self) -> tuple[type[PreparedEma], tuple[list[Tensor], list[Tensor]]]:
        """Copies and pickles are made anew of their own tensors: a plan is of this process."""
        return PreparedEma, (self._shadows, self._weights)


def _update_in_graph_(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], decay: float | Tensor
) -> None:
    """What torch.compile traces: decided by dtypes and devices alone, as no memory is there yet."""
    compiled = library.has_kernels_for("cpu") and not isinstance(decay, Tensor)
    taken: list[tuple[Tensor, Tensor]] = []
    rest: list[tuple[Tensor, Tensor]] = []
    given: dict[Tensor, list[Tensor]] = {}
    for index, (shadow, weight) in enumerate(zip(shadows, weights, strict=True)):
        _check_pair(index, shadow, weight)
        some = taken if compiled and _is_taken_in_graph(weight) else rest
        its = given.setdefault(shadow, [])
        if not any(weight is other for other in its):
            its.append(weight)
            some.append((shadow, weight))
    with torch.no_grad():
        if taken and not isinstance(decay, Tensor):
            torch.ops.ptrain.ema_update_(
                [shadow for shadow, _ in taken], [weight for _, weight in taken], decay
            )
        reference.ema_update_(reference.grouped(rest), decay=decay)


def _is_taken_in_graph(weight: Tensor) -> bool:
    return weight.dtype in native.DTYPES and weight.device.type == "cpu"


def _checked_decay(decay: float | Tensor) -> float | Tensor:
    """A number where the host has it; only a tensor on a device, or in a graph, stays one."""
    if isinstance(decay, Tensor):
        if decay.dim() != 0:
            raise ValueError(f"decay is a tensor of shape {tuple(decay.shape)}; it must be 0-dim")
        if decay.device.type != "cpu" or torch.compiler.is_compiling():
            return decay
        decay = decay.item()
    _check_decay(decay)
    return decay


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:  # NaN is neither
        raise ValueError(f"decay is {decay}; it must be between 0 and 1, usually 0.99 to 0.9999")


def _check_count(shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    if len(shadows) != len(weights):
        raise ValueError(f"{len(shadows)} shadows for {len(weights)} weights")


def _checked_pairs(
    shadows: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The pairs to update, each once."""
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    indices: dict[int, int] = {}
    for index, (shadow, weight) in enumerate(zip(shadows, weights, strict=True)):
        _check_pair(index, shadow, weight)
        for what, tensor in (("shadow", shadow), ("weight", weight)):
            if not native.has_memory(tensor):
                raise ValueError(
                    f"{what} {index} has lost its memory: it has {tensor.numel()} elements, its "
                    "storage fewer; give it memory again"
                )
        address = shadow.data_ptr()
        if address == 0:  # empty
            continue
        if address == weight.data_ptr():
            raise ValueError(
                f"shadow {index} shares its memory with its weight; make it a copy: weight.clone()"
            )
        first_shadow, first = pairs.setdefault(address, (shadow, weight))
        indices.setdefault(address, index)
        if first is not weight and (
            first.data_ptr() != weight.data_ptr() or first_shadow.shape != shadow.shape
        ):
            raise ValueError(f"shadow {index} was already given, for another weight")
    _refuse_overlaps([(indices[address], *pair) for address, pair in pairs.items()])
    return list(pairs.values())


def _check_pair(index: int, shadow: Tensor, weight: Tensor) -> None:
    for what, tensor in (("weight", weight), ("shadow", shadow)):
        if tensor.layout is not torch.strided:
            raise ValueError(f"{what} {index} is sparse ({tensor.layout}); make it dense")
    if weight.dtype not in _AVERAGED:
        raise ValueError(
            f"weight {index} is {weight.dtype}, which cannot be averaged; give it as one of "
            + ", ".join(map(str, _SHADOW_DTYPES))
            + ", or as an integer"
        )
    if shadow.shape != weight.shape or shadow.device != weight.device:
        raise ValueError(_mismatch(index, shadow, weight))
    if shadow.dtype != _SHADOW_DTYPES.get(weight.dtype, weight.dtype):
        raise ValueError(_wrong_dtype(index, shadow, weight))


def _has_changed(shadow: Tensor, weight: Tensor) -> bool:
    """Whether a pair that was checked no longer fits, as after `weight.data = other`."""
    return (
        shadow.shape != weight.shape
        or shadow.dtype != shadow_dtype(weight.dtype)
        or not (native.has_memory(shadow) and native.has_memory(weight))
    )


def _refuse_overlaps(pairs: Sequence[tuple[int, Tensor, Tensor]]) -> None:
    """Of tensors without gaps; whether two with gaps meet is not known without trying all elements.

    pairs  index, shadow, weight
    """
    spans = []  # begin, end, index of the shadows, by address
    for index, shadow, _ in pairs:
        if any(
            step == 0 and size > 1 for step, size in zip(shadow.stride(), shadow.shape, strict=True)
        ):
            raise ValueError(
                f"shadow {index} is expanded: its elements share memory; make it .contiguous()"
            )
        if _is_dense(shadow):
            spans.append((*_span(shadow), index))
    spans.sort()
    for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise ValueError(f"shadow {max(one, other)} overlaps shadow {min(one, other)}")
    begins = [begin for begin, _, _ in spans]
    for index, _, weight in pairs:
        if _is_dense(weight):
            begin, end = _span(weight)
            # Of the shadows that begin before it ends, the last is the one that can meet it.
            place = bisect.bisect_left(begins, end) - 1
            if place >= 0 and spans[place][1] > begin:
                raise ValueError(f"weight {index} overlaps shadow {spans[place][2]}")


def _is_dense(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided:
        return False
    return tensor.is_contiguous() or _reach(tensor) == tensor.numel()


def _reach(tensor: Tensor) -> int:
    """Elements from the first to past the last in memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def _span(tensor: Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    return begin, begin + tensor.numel() * tensor.element_size()


def _mismatch(index: int, shadow: Tensor, weight: Tensor) -> str:
    return (
        f"shadow {index} has shape {tuple(shadow.shape)} on {shadow.device}, "
        f"its weight has shape {tuple(weight.shape)} on {weight.device}"
    )


def _wrong_dtype(index: int, shadow: Tensor, weight: Tensor) -> str:
    want = shadow_dtype(weight.dtype)
    message = f"shadow {index} is {shadow.dtype} for a {weight.dtype} weight; it must be {want}"
    if shadow.dtype in (torch.bfloat16, torch.float16):
        # Half an ulp of bfloat16 is 2e-3 of the value, of float16 2.4e-4: the step is rounded away.
        message += (
            ": an average in this precision stands still, since at a decay of 0.999 a step is a "
            "thousandth of the difference, less than half of its last digit"
        )
    return message
