"""The moving average of a list of weights: this project's, and the forms that others use.

The forms of libraries are their update functions in our words, on the tensors of the work; torch's
own class is used as it is. Each leaves out what its library does around the update, in its favour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from plugin_trainer.ops.bench.interleaved import (
    Probe,
    Variant,
    flat_probe,
    in_pieces,
    relative_error,
)
from plugin_trainer.ops.bench.shapes import Shape
from plugin_trainer.ops.ema import PreparedEma, reference, shadow_dtype

DECAY = 0.999
TOLERANCE = 1e-6

OURS = "ours"
FOREACH_LERP = "_foreach_lerp_"
LIGHTNING = "Lightning: AveragedModel, one by one"
COMPOSER = "Composer: copy_ of the blend"
REFERENCE = "our reference, in groups of 2 MiB"


class Work:
    """Weights and their averages, which all variants update in turn: one memory for all.

    weights  normal, of the model's dtype
    shadows  float32 (float64 for float64)
    """

    def __init__(
        self, shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.weights = [
            torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
            for shape in shapes
        ]
        self.shadows = [torch.empty_like(w, dtype=shadow_dtype(dtype)) for w in self.weights]
        self.elements = sum(weight.numel() for weight in self.weights)
        self.device = device

    def error(self, run: Callable[[], object]) -> float:
        """Of two updates, from averages that are the negative of their weights."""
        torch._foreach_copy_(self.shadows, self.weights)
        torch._foreach_neg_(self.shadows)
        run()
        run()
        factor = 1.0 - 2.0 * DECAY**2  # -w, then d * -w + (1 - d) w, then once more
        return relative_error(
            (shadow, weight.double() * factor)
            for pair in zip(self.shadows, self.weights, strict=True)
            for shadow, weight in in_pieces(*pair)
        )

    def variant(
        self, name: str, run: Callable[[], object], *, tolerance: float = TOLERANCE
    ) -> Variant:
        """A way of updating these averages, with its check."""
        run = torch.no_grad()(run)
        return Variant(name, run, lambda: self.error(run), tolerance)

    def probe(self) -> Probe:
        """The machine's limit: each weight read once, each average read and written once."""
        size = self.weights[0].element_size() + 2 * self.shadows[0].element_size()
        return flat_probe(self.elements, ideal_bytes=size * self.elements, device=self.device)


def ours(work: Work) -> Variant:
    """One call for all tensors, through pointers that are looked up anew each time."""
    update = PreparedEma(work.shadows, work.weights)
    return work.variant(OURS, lambda: update(DECAY))


def foreach_lerp(work: Work) -> Variant:
    """What somebody writes who knows torch's multi-tensor operations."""
    return work.variant(
        FOREACH_LERP, lambda: torch._foreach_lerp_(work.shadows, work.weights, 1 - DECAY)
    )


def peers(work: Work) -> list[Variant]:
    """All forms for weights and averages of one dtype."""
    shadows, weights = work.shadows, work.weights

    def mul_add() -> None:
        for shadow, weight in zip(shadows, weights, strict=True):
            shadow.mul_(DECAY).add_(weight, alpha=1 - DECAY)

    def lerp() -> None:
        for shadow, weight in zip(shadows, weights, strict=True):
            shadow.lerp_(weight, 1 - DECAY)

    def foreach_mul_add() -> None:
        torch._foreach_mul_(shadows, DECAY)
        torch._foreach_add_(shadows, weights, alpha=1 - DECAY)

    return [
        foreach_lerp(work),
        work.variant("lerp_, one by one", lerp),
        work.variant("mul_ and add_, one by one", mul_add),
        work.variant("_foreach_mul_ and _foreach_add_", foreach_mul_add),
        work.variant("swa_utils: AveragedModel, multi", swa(shadows, weights)),
        work.variant("timm ModelEmaV3: state dicts, foreach", _timm(shadows, weights)),
        work.variant(LIGHTNING, _lightning(shadows, weights)),
        work.variant(COMPOSER, _composer(shadows, weights)),
    ]


def peers_16_bit(work: Work) -> list[Variant]:
    """The forms that average 16-bit weights in float32: the libraries' own cannot."""
    shadows, weights = work.shadows, work.weights
    buffers = [torch.empty_like(shadow) for shadow in shadows]

    def mul_add() -> None:
        for shadow, weight in zip(shadows, weights, strict=True):
            shadow.mul_(DECAY).add_(weight, alpha=1 - DECAY)

    def lerp_of_a_copy() -> None:
        for shadow, weight in zip(shadows, weights, strict=True):
            shadow.lerp_(weight.float(), 1 - DECAY)

    def foreach_mul_add() -> None:
        torch._foreach_mul_(shadows, DECAY)
        torch._foreach_add_(shadows, weights, alpha=1 - DECAY)

    def foreach_lerp_of_copies() -> None:
        torch._foreach_lerp_(shadows, [weight.float() for weight in weights], 1 - DECAY)

    def foreach_lerp_of_kept_copies() -> None:
        torch._foreach_copy_(buffers, weights)
        torch._foreach_lerp_(shadows, buffers, 1 - DECAY)

    groups = reference.grouped(list(zip(shadows, weights, strict=True)))
    return [
        work.variant("mul_ and add_, one by one", mul_add),
        work.variant("lerp_ of a float32 copy, one by one", lerp_of_a_copy),
        work.variant("_foreach_mul_ and _foreach_add_", foreach_mul_add),
        work.variant("_foreach_lerp_ of float32 copies", foreach_lerp_of_copies),
        work.variant("_foreach_lerp_ of kept float32 copies", foreach_lerp_of_kept_copies),
        work.variant(REFERENCE, lambda: reference.ema_update_(groups, decay=DECAY)),
    ]


def swa(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], *, decay: float = DECAY
) -> Callable[[], object]:
    """torch.optim.swa_utils, all parameters in one call."""
    return _averaged(shadows, weights, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _lightning(shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> Callable[[], object]:
    """Lightning's EMAWeightAveraging: torch's class, a function for one tensor, buffers too."""
    return _averaged(shadows, weights, avg_fn=get_ema_avg_fn(DECAY), use_buffers=True)


def _averaged(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], **how: Any
) -> Callable[[], object]:
    model = _module(weights)
    # The copy that it makes of an empty model costs nothing; then it gets the work's averages.
    average = AveragedModel(_module([weight.new_empty(0) for weight in weights]), **how)
    for parameter, shadow in zip(average.module.parameters(), shadows, strict=True):
        parameter.data = shadow
    average.n_averaged.fill_(1)  # the first call would only copy
    return lambda: average.update_parameters(model)


def _timm(shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> Callable[[], object]:
    """timm's ModelEmaV3: two state dicts each time, floating tensors in one call, others copied."""
    average, model = _module(shadows), _module(weights)

    def update() -> None:
        averages, news = [], []
        pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for old, new in pairs:
            if old.is_floating_point():
                averages.append(old)
                news.append(new)
            else:
                old.copy_(new)
        torch._foreach_lerp_(averages, news, weight=1.0 - DECAY)

    return update


def _composer(shadows: Sequence[Tensor], weights: Sequence[Tensor]) -> Callable[[], object]:
    """Composer's EMA (and timm's ModelEmaV2): a new tensor for the blend, copied over the old."""
    average, model = _module(shadows), _module(weights)

    def update() -> None:
        olds = chain(average.parameters(), average.buffers())
        news = chain(model.parameters(), model.buffers())
        for old, new in zip(olds, news, strict=True):
            old.copy_(old * DECAY + new.detach() * (1.0 - DECAY))

    return update


def _module(tensors: Sequence[Tensor]) -> nn.Module:
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
