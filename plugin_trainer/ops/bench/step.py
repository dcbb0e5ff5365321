"""What follows a backward pass (clipping, AdamW, moving average): in one pass, and as torch has it.

Every variant works on the same parameters, gradients and averages, in turn; the optimizers are
given the moments, so that a model of 110 M parameters is in memory once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from plugin_trainer.ops.bench import ema
from plugin_trainer.ops.bench.interleaved import (
    Probe,
    RelativeError,
    Variant,
    flat_probe,
    in_pieces,
)
from plugin_trainer.ops.bench.shapes import Shape
from plugin_trainer.ops.ema import shadow_dtype
from plugin_trainer.ops.step import FusedAdamW

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
_SETTINGS: dict[str, Any] = {
    "lr": LEARNING_RATE,
    "betas": BETAS,
    "eps": EPS,
    "weight_decay": WEIGHT_DECAY,
}
# The average moves by a hundredth, so that two steps of it stand above its rounding.
DECAY = 0.99
CLIPPED_TO = 0.5  # of the gradients' norm, so that clipping is at work

OURS = "ours"
DEFAULT = "AdamW, clip, foreach EMA"
FUSED = "AdamW fused, clip, foreach EMA"
FUSED_SWA = "AdamW fused, clip, swa EMA"
BEST = "best of torch: fused, scale folded in"
BEST_16_BIT = "best of torch, 16-bit moments"
STANDS_STILL = "the same, 16-bit average (stands still)"

# Of the movement of two steps. torch's norm on a CPU is off by up to 1.3e-3 on a large tensor, and
# its square is in the second moment; ours is not.
TOLERANCE, PEERS_TOLERANCE = 5e-4, 5e-3
# 16-bit weights are rounded by up to 2^-9 of their value, which is a tenth of two steps.
TOLERANCE_16_BIT = 0.1


class Work:
    """Parameters with gradients, moments and averages.

    moments  `torch.optim.AdamW`'s own are of the parameters' dtype, ours never narrower than
             float32
    """

    def __init__(
        self, shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(scale: float) -> list[Tensor]:
            return [
                torch.empty(shape, dtype=dtype, device=device).normal_(
                    std=scale, generator=generator
                )
                for shape in shapes
            ]

        self.first_weights, self.first_gradients = normal(0.02), normal(1.0)
        self.parameters = [nn.Parameter(weight.clone()) for weight in self.first_weights]
        for parameter, gradient in zip(self.parameters, self.first_gradients, strict=True):
            parameter.grad = gradient.clone()
        self.gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.weights = [parameter.detach() for parameter in self.parameters]
        wide = shadow_dtype(dtype)
        self.shadows = [torch.empty_like(weight, dtype=wide) for weight in self.weights]
        self.moments = self._moments(wide)
        self.narrow_moments = self.moments if wide == dtype else self._moments(dtype)
        self.norm = math.sqrt(
            sum(
                float(piece.double().square().sum())
                for gradient in self.first_gradients
                for (piece,) in in_pieces(gradient)
            )
        )
        self.max_norm = CLIPPED_TO * self.norm
        self._truth: list[list[Tensor]] = []
        self.elements = sum(weight.numel() for weight in self.weights)
        self.device = device

    def _moments(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        def zeros() -> list[Tensor]:
            return [torch.zeros_like(weight, dtype=dtype) for weight in self.weights]

        return zeros(), zeros()

    def hand_moments_to(
        self, optimizer: torch.optim.Optimizer, *, narrow: bool, steps_on: str
    ) -> None:
        """Let an optimizer keep its state in the work's memory, and its counts of steps there."""
        moments = self.narrow_moments if narrow else self.moments
        for parameter, exp_avg, exp_avg_sq in zip(self.parameters, *moments, strict=True):
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=steps_on),
                "exp_avg": exp_avg,
                "exp_avg_sq": exp_avg_sq,
            }

    def error(
        self,
        run: Callable[[], object],
        steps: Sequence[Tensor],
        *,
        narrow: bool = False,
        average: bool = True,
    ) -> float:
        """Of two steps from the first weights: the largest of four, those of the weights and of
        their average over how far they moved, those of the two moments over themselves.
        """
        moments = self.narrow_moments if narrow else self.moments
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.first_weights)
            torch._foreach_copy_(self.shadows, self.first_weights)
            for zeros in (*moments, steps):
                torch._foreach_zero_(zeros)
            for _ in range(2):
                torch._foreach_copy_(self.gradients, self.first_gradients)
                run()
        errors = [RelativeError() for _ in range(4)]
        for index, first in enumerate(self.first_weights):
            found = (self.weights[index], self.shadows[index], *(m[index] for m in moments))
            for start, *pieces in in_pieces(first, *found, *self._truths()[index]):
                start = start.to(self.shadows[0].dtype)
                values = [pieces[0] - start, pieces[1] - start, *pieces[2:4]]
                for error, value, truth in zip(errors, values, pieces[4:], strict=True):
                    error.add(value, truth)
        counted = [error for place, error in enumerate(errors) if average or place != 1]
        values = [error.value for error in counted]
        return math.nan if any(map(math.isnan, values)) else max(values)

    def _truths(self) -> list[list[Tensor]]:
        """How far weight and average move in two steps, and the moments after; made once."""
        if not self._truth:
            for first, gradient in zip(self.first_weights, self.first_gradients, strict=True):
                parts = [torch.empty_like(first, dtype=self.shadows[0].dtype) for _ in range(4)]
                for start, by, *out in in_pieces(first, gradient, *parts):
                    for where, what in zip(
                        out, two_steps(start.double(), by.double()), strict=True
                    ):
                        where.copy_(what)
                self._truth.append(parts)
        return self._truth

    def variant(
        self,
        name: str,
        run: Callable[[], object],
        steps: Sequence[Tensor],
        *,
        tolerance: float,
        narrow: bool = False,
        average: bool = True,
    ) -> Variant:
        """A way of making these steps, with its check."""
        if self.weights[0].dtype in (torch.bfloat16, torch.float16):
            tolerance = TOLERANCE_16_BIT
        return Variant(
            name, run, lambda: self.error(run, steps, narrow=narrow, average=average), tolerance
        )

    def probe(self) -> Probe:
        """The machine's limit: gradients read twice, once for the norm; all else read and written
        once.
        """
        weight, wide = self.weights[0].element_size(), self.shadows[0].element_size()
        return flat_probe(
            self.elements,
            ideal_bytes=(2 * weight + 2 * weight + 3 * 2 * wide) * self.elements,
            device=self.device,
        )


def two_steps(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What two steps of AdamW with one gradient, clipped, move the weight and its average by, and
    the two moments after them.

    With one gradient g the corrected moments are g and g^2 at each step, so that both steps are
    lr * g / (|g| + eps), and the moments are (1 - beta1^2) g and (1 - beta2^2) g^2.
    """
    gradient = gradient * CLIPPED_TO
    step = LEARNING_RATE * gradient / (gradient.abs() + EPS)
    keep = 1 - LEARNING_RATE * WEIGHT_DECAY
    first = weight * keep - step
    second = first * keep - step
    first, second = first - weight, second - weight
    average = DECAY * (1 - DECAY) * first + (1 - DECAY) * second
    exp_avg = (1 - BETAS[0] ** 2) * gradient
    exp_avg_sq = (1 - BETAS[1] ** 2) * gradient.square()
    return second, average, exp_avg, exp_avg_sq


def ours(work: Work) -> Variant:
    """Norm, then everything else in one pass."""
    optimizer = FusedAdamW(work.parameters, **_SETTINGS, max_norm=work.max_norm)
    work.hand_moments_to(optimizer, narrow=False, steps_on=work.device)
    optimizer.forget_plans()
    optimizer.attach_average(dict(zip(work.parameters, work.shadows, strict=True)))
    optimizer.average_decay = DECAY
    return work.variant(OURS, optimizer.step, _steps(optimizer), tolerance=TOLERANCE)


def fused(work: Work) -> Variant:
    """What a careful person writes: fused AdamW, clip_grad_norm_, an average in one call."""
    return _as_torch_has_it(work, FUSED, _average(work), fused=True)


def peers(work: Work) -> list[Variant]:
    """AdamW in its three forms with two forms of the average, and the best that torch can do."""
    swa = ema.swa(work.shadows, work.weights, decay=DECAY)
    found = [
        _as_torch_has_it(work, DEFAULT, _average(work)),
        _as_torch_has_it(work, "AdamW foreach, clip, foreach EMA", _average(work), foreach=True),
        fused(work),
    ]
    if work.shadows[0].dtype == work.weights[0].dtype:
        found += [
            _as_torch_has_it(work, "AdamW, clip, swa EMA", swa),
            _as_torch_has_it(work, "AdamW foreach, clip, swa EMA", swa, foreach=True),
            _as_torch_has_it(work, FUSED_SWA, swa, fused=True),
            best_of_torch(work),
        ]
    else:
        narrow = [torch.empty_like(weight) for weight in work.weights]
        found += [
            best_of_torch(work),
            _folded(
                work,
                STANDS_STILL,
                lambda: torch._foreach_lerp_(narrow, work.weights, 1 - DECAY),
                average_counts=False,
            ),
            _best_in_float32(work),
        ]
    return found


def best_of_torch(work: Work) -> Variant:
    """The fewest passes that torch's own operations can do it in."""
    narrow = work.shadows[0].dtype != work.weights[0].dtype
    return _folded(work, BEST_16_BIT if narrow else BEST, _average(work))


def _folded(
    work: Work, name: str, average: Callable[[], object], *, average_counts: bool = True
) -> Variant:
    """The norm; the update, told of the clipping as if it were the scale of a mixed-precision
    scaler; the average.
    """
    moments = work.narrow_moments
    steps = [torch.zeros((), device=work.device) for _ in work.weights]

    @torch.no_grad()
    def run() -> None:
        _fused_update(work, work.weights, work.gradients, moments, steps)
        average()

    return work.variant(
        name, run, steps, tolerance=PEERS_TOLERANCE, narrow=True, average=average_counts
    )


def _best_in_float32(work: Work) -> Variant:
    """16-bit weights and gradients through kept float32 copies: moments as precise as ours."""
    weights, gradients = ([torch.empty_like(s) for s in work.shadows] for _ in range(2))
    steps = [torch.zeros((), device=work.device) for _ in work.weights]

    @torch.no_grad()
    def run() -> None:
        torch._foreach_copy_(weights, work.weights)
        torch._foreach_copy_(gradients, work.gradients)
        _fused_update(work, weights, gradients, work.moments, steps)
        torch._foreach_copy_(work.weights, weights)
        torch._foreach_lerp_(work.shadows, weights, 1 - DECAY)

    return work.variant(
        "best of torch, through float32 copies", run, steps, tolerance=PEERS_TOLERANCE
    )


def _fused_update(
    work: Work,
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: tuple[list[Tensor], list[Tensor]],
    steps: list[Tensor],
) -> None:
    norm = get_total_norm(gradients).float()
    torch._foreach_add_(steps, 1)
    torch._fused_adamw_(
        weights,
        gradients,
        *moments,
        [],
        steps,
        lr=LEARNING_RATE,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        eps=EPS,
        amsgrad=False,
        maximize=False,
        grad_scale=((norm + 1e-6) / work.max_norm).clamp(min=1.0),
    )


def _as_torch_has_it(work: Work, name: str, average: Callable[[], object], **form: bool) -> Variant:
    optimizer = torch.optim.AdamW(work.parameters, **_SETTINGS, **form)
    # Only the fused form looks for its counts on the device; the others would have to wait there.
    steps_on = work.device if form.get("fused") else "cpu"
    work.hand_moments_to(optimizer, narrow=True, steps_on=steps_on)

    def run() -> None:
        clip_grad_norm_(work.parameters, work.max_norm)
        optimizer.step()
        average()

    return work.variant(name, run, _steps(optimizer), tolerance=PEERS_TOLERANCE, narrow=True)


def _average(work: Work) -> Callable[[], object]:
    """The fastest form of torch's own operations that averages in float32."""
    if work.shadows[0].dtype == work.weights[0].dtype:
        return torch.no_grad()(lambda: torch._foreach_lerp_(work.shadows, work.weights, 1 - DECAY))
    buffers = [torch.empty_like(shadow) for shadow in work.shadows]

    @torch.no_grad()
    def average() -> None:
        torch._foreach_copy_(buffers, work.weights)
        torch._foreach_lerp_(work.shadows, buffers, 1 - DECAY)

    return average


def _steps(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state["step"] for state in optimizer.state.values()]
