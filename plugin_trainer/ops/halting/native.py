"""The compiled halting loss: what it takes, how autograd and torch.compile meet it, its errors."""

# N blocks, U halting units (rows, or sentences), T tokens per unit, C classes

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from plugin_trainer.ops import library
from plugin_trainer.ops.halting.inputs import (
    NO_SECOND_DERIVATIVE,
    OUTPUTS,
    PerBlock,
    Settings,
    as_NUTC,
    check_pair,
    per_block,
    regularised_units,
)
from plugin_trainer.ops.halting.reference import accumulation_dtype
from plugin_trainer.ops.halting.targets import class_targets

# The arguments of the ops between the labels and `wanted`: see csrc/binding/halting.h.
Arguments: TypeAlias = tuple[Any, ...]

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
PLAIN = frozenset({Tensor, torch.nn.Parameter})
LABELS = FLOATS | {torch.int64, torch.int32}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}
GIVEN_MEAN = 3
GRAD_LOGITS, GRAD_HALTING = 8, 16


def takes(logits: Tensor, halting_logits: Tensor) -> bool:
    """Whether there are kernels that read these two as they are."""
    return (
        _share_a_device(logits, halting_logits)
        and library.has_kernels_for("cpu" if logits.is_cpu else logits.device.type)
        and logits.dtype in FLOATS
        and halting_logits.dtype in FLOATS
        and (type(logits) in PLAIN or _is_plain(logits))
        and (type(halting_logits) in PLAIN or _is_plain(halting_logits))
    )


def _share_a_device(one: Tensor, other: Tensor) -> bool:
    """To make and compare two `device` objects takes 1 us after a forward pass, this a quarter."""
    return (one.is_cpu and other.is_cpu) or one.device == other.device


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def _wants_reference(settings: Settings) -> bool:
    """Gradients flow to counts and class weights in the reference alone."""
    weight, normalizer = settings.class_weight, settings.normalizer
    if weight is not None and weight.requires_grad:
        return True
    counts = normalizer if isinstance(normalizer, tuple) else (normalizer,)
    return any(
        isinstance(count, Tensor) and (count.requires_grad or count.dtype not in LABELS)
        for count in counts
    )


def loss(
    logits: Tensor,
    halting_logits: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    wanted: int,
    inplace: bool,
) -> Sequence[Tensor] | None:
    """The seven fields of HaltingLoss; those that are not wanted have no elements.

    None if the kernel does not compute this: the reference does.
    """
    if not (_share_a_device(labels, logits) and takes(logits, halting_logits)):
        return None
    weighed = settings.class_weight is not None or settings.normalizer is not None
    if weighed and _wants_reference(settings):
        return None
    if labels.dtype not in LABELS:
        labels = labels.to(torch.int64)
    arguments = _arguments(settings)
    by_logits, by_halting = logits.requires_grad, halting_logits.requires_grad
    records = (by_logits or by_halting) and torch.is_grad_enabled()
    early = 0
    if records:
        early = _early_gradients(logits, halting_logits, arguments, by_logits, by_halting)
    if torch.compiler.is_compiling():
        # The checks cost nothing here: they run while the graph is drawn.
        check_pair(logits, halting_logits)
        wanted |= early
        out = torch.ops.ptrain.halting_loss(logits, halting_logits, labels, *arguments, wanted)
        return tuple(out[:7])
    try:
        if records:
            function = _InPlaceLoss if inplace else _Loss
            by_products: list[Tensor] = []
            parts: tuple[Tensor, ...] = function.apply(
                logits, halting_logits, labels, arguments, wanted, early, by_products
            )
            return (*parts, *by_products)
        if inplace:
            return _run_in_place(logits, halting_logits, labels, arguments, wanted)[:7]
        out = torch.ops.ptrain.halting_loss_unrecorded(
            logits, halting_logits, labels, *arguments, wanted
        )
        return tuple(out[:7])
    except RuntimeError:
        explain(logits, halting_logits, labels, settings)
        raise


def explain(logits: Tensor, halting_logits: Tensor, labels: Tensor, settings: Settings) -> None:
    """Raise what the reference raises for these inputs, if it raises anything.

    The kernel checks as much, so a good call pays for no check twice.
    """
    check_pair(logits, halting_logits)
    dtype = accumulation_dtype(logits, halting_logits)
    rows, units = logits.shape[1:-1], halting_logits.shape[1:]
    targets = class_targets(
        labels,
        as_NUTC(logits, halting_logits),
        rows=rows,
        ignore_index=settings.ignore_index,
        class_weight=settings.class_weight,
        label_smoothing=settings.label_smoothing,
        dtype=dtype,
    )
    for name, value in zip(
        ("alpha", "beta", "eta"), (settings.alpha, settings.beta, settings.eta), strict=True
    ):
        if value is not None:
            per_block(value, name, logits, dtype)
    regularised_units(settings.reg_mask, targets.labelled_UT, rows, units)


def _arguments(settings: Settings) -> Arguments:
    tau, alpha, beta, eta, ignore_index, class_weight, smoothing, mask, reduction, normalizer, _ = (
        settings
    )
    alpha, alphas = (1.0, None) if alpha is None else _split(alpha)
    beta, betas = (0.0, None) if beta is None else _split(beta)
    eta, etas = (0.0, None) if eta is None else _split(eta)
    code, rows, units, row_count, unit_count = REDUCTIONS[reduction], 1.0, 1.0, None, None
    if normalizer is not None:
        code = GIVEN_MEAN
        pair = normalizer if isinstance(normalizer, tuple) else (normalizer, normalizer)
        (rows, row_count), (units, unit_count) = _split(pair[0]), _split(pair[1])
    return (
        class_weight,
        mask,
        alphas,
        betas,
        etas,
        row_count,
        unit_count,
        tau,
        alpha,
        beta,
        eta,
        smoothing,
        rows,
        units,
        ignore_index,
        code,
        settings.empty == "zero",
    )


REDUCTION = 15  # its place in Arguments


def _split(value: PerBlock) -> tuple[float, Tensor | None]:
    """A number, or else a tensor of them: what the ops take."""
    if isinstance(value, Tensor):
        return 0.0, value
    if isinstance(value, int | float):
        return float(value), None
    return 0.0, torch.tensor(value, dtype=torch.float64)


def _early_gradients(
    logits: Tensor, halting_logits: Tensor, arguments: Arguments, by_logits: bool, by_halting: bool
) -> int:
    """What the forward pass computes of the gradients, as bits of `wanted`.

    Nothing for reduction="none", where what comes from above is not known yet, and for float16,
    which would lose what a loss scale is there to keep.
    """
    half = torch.float16
    if arguments[REDUCTION] == 2 or logits.dtype is half or halting_logits.dtype is half:
        return 0
    return (GRAD_LOGITS if by_logits else 0) | (GRAD_HALTING if by_halting else 0)


@functools.cache
def _unrecorded() -> Any:
    """The op, looked up once: there are kernels when this is called."""
    return torch.ops.ptrain.halting_loss_unrecorded.default


class _Loss(torch.autograd.Function):
    """Computes the gradients of `loss` beside the loss; backward only hands them on.

    What is not differentiable goes past autograd, into the list `by_products`: three outputs fewer
    are 7 us less of 90. Both passes run cold after a model's, where a line of Python takes 0.5 us.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        halting_logits: Tensor,
        labels: Tensor,
        arguments: Arguments,
        wanted: int,
        early: int,
        by_products: list[Tensor],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        loss, task, supervision, regulariser, answer, halting_p, exit_weights, grad_z, grad_u = (
            _unrecorded()(logits, halting_logits, labels, *arguments, wanted | early)
        )
        by_products.extend((answer, halting_p, exit_weights))
        ctx.save_for_backward(logits, halting_logits, labels, grad_z, grad_u)
        ctx.call = arguments, early
        return loss, task, supervision, regulariser

    @staticmethod
    def backward(
        ctx: Any,
        grad_loss: Tensor | None,
        grad_task: Tensor | None,
        grad_supervision: Tensor | None,
        grad_regulariser: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        logits, halting_logits, labels, grad_z, grad_u = ctx.saved_tensors
        arguments, early = ctx.call
        needs_z, needs_u = ctx.needs_input_grad[:2]
        if early and grad_task is grad_supervision is grad_regulariser is None:
            if grad_loss is None:
                return None, None, None, None, None, None, None
            if not (grad_loss.is_cpu and grad_loss.item() == 1.0):
                grad_z = grad_z * grad_loss if needs_z else None
                grad_u = grad_u * grad_loss if needs_u else None
        else:
            grad_z, grad_u = torch.ops.ptrain.halting_loss_backward(
                logits,
                halting_logits,
                labels,
                grad_loss,
                grad_task,
                grad_supervision,
                grad_regulariser,
                *arguments,
                (GRAD_LOGITS if needs_z else 0) | (GRAD_HALTING if needs_u else 0),
            )
        if not needs_z:
            grad_z = None
        if not needs_u:
            grad_u = None
        return grad_z, grad_u, None, None, None, None, None


def _run_in_place(
    logits: Tensor, halting_logits: Tensor, labels: Tensor, arguments: Arguments, wanted: int
) -> tuple[Tensor, ...]:
    out = tuple(torch.ops.ptrain.halting_loss_(logits, halting_logits, labels, *arguments, wanted))
    # Whoever saved the logits for a backward pass of their own is told that they are gone.
    torch.autograd.graph.increment_version(logits)
    return out


class _InPlaceLoss(torch.autograd.Function):
    """The gradient by the logits takes their place: at once, or (float16) in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        halting_logits: Tensor,
        labels: Tensor,
        arguments: Arguments,
        wanted: int,
        early: int,
        by_products: list[Tensor],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.arguments = arguments
        ctx.early, ctx.done = early, False
        if early:
            *fields, grad_u = _run_in_place(
                logits, halting_logits, labels, arguments, wanted | (early & GRAD_HALTING)
            )
            ctx.grad_z = logits.detach()
            ctx.save_for_backward(grad_u)
        else:
            *fields, _, _ = torch.ops.ptrain.halting_loss_unrecorded(
                logits, halting_logits, labels, *arguments, wanted
            )
            ctx.save_for_backward(logits, halting_logits, labels)
        by_products.extend(fields[4:])
        return tuple(fields[:4])

    @staticmethod
    def backward(
        ctx: Any,
        grad_loss: Tensor | None,
        grad_task: Tensor | None,
        grad_supervision: Tensor | None,
        grad_regulariser: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        if ctx.done:
            raise RuntimeError(
                "halting_loss(inplace=True) gives its gradient once: it lay where the logits were, "
                "and the first backward has handed it on"
            )
        parts = grad_task, grad_supervision, grad_regulariser
        needs_z, needs_u = ctx.needs_input_grad[:2]
        if ctx.early:
            if parts != (None, None, None):
                raise RuntimeError(
                    "halting_loss(inplace=True) knows the gradient of `loss` only, and the logits "
                    "are gone: differentiate `loss`, or leave inplace out"
                )
            if grad_loss is None:
                return None, None, None, None, None, None, None
            (grad_u,) = ctx.saved_tensors
            grad_z, ctx.grad_z = ctx.grad_z, None
            if not (grad_loss.is_cpu and grad_loss.item() == 1.0):
                grad_z = grad_z.mul_(grad_loss)
                grad_u = grad_u * grad_loss if needs_u else None
        else:
            logits, halting_logits, labels = ctx.saved_tensors
            grad_u = torch.ops.ptrain.halting_loss_backward_(
                logits,
                halting_logits,
                labels,
                grad_loss,
                *parts,
                *ctx.arguments,
                GRAD_HALTING if needs_u else 0,
            )
            torch.autograd.graph.increment_version(logits)
            grad_z = logits.detach()
        ctx.done = True
        if not needs_z:
            grad_z = None
        if not needs_u:
            grad_u = None
        return grad_z, grad_u, None, None, None, None, None


def exits(
    logits: Tensor, halting_logits: Tensor, valid: Tensor | None, delta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of HaltingExit."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.ptrain.halting_exit(
        logits, halting_logits, valid, delta
    )
    return out


# --------------------------------------------------------------- what torch.compile must know


def register() -> None:
    """Tell torch.compile the shapes of what the ops return, and how the loss is differentiated."""
    library = torch.library
    library.register_fake("ptrain::halting_loss", _fake_loss)
    library.register_fake("ptrain::halting_loss_unrecorded", _fake_loss)
    library.register_fake("ptrain::halting_loss_", _fake_loss_in_place)
    library.register_fake("ptrain::halting_loss_backward", _fake_backward)
    library.register_fake("ptrain::halting_loss_backward_", _fake_backward_in_place)
    library.register_fake("ptrain::halting_exit", _fake_exits)
    library.register_autograd("ptrain::halting_loss", _backward, setup_context=_save)


def _fake_loss(
    logits: Tensor, halting_logits: Tensor, labels: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    *arguments, wanted = arguments  # type: ignore[assignment]
    return (
        *_fake_parts(logits, halting_logits, arguments[REDUCTION], wanted),
        _fake_like(logits, wanted & GRAD_LOGITS),
        _fake_like(halting_logits, wanted & GRAD_HALTING),
    )


def _fake_loss_in_place(
    logits: Tensor, halting_logits: Tensor, labels: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return (
        *_fake_loss(logits, halting_logits, labels, *arguments)[:7],
        _fake_like(halting_logits, arguments[-1] & GRAD_HALTING),
    )


def _fake_backward(
    logits: Tensor, halting_logits: Tensor, labels: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    wanted = arguments[-1]
    return (
        _fake_like(logits, wanted & GRAD_LOGITS),
        _fake_like(halting_logits, wanted & GRAD_HALTING),
    )


def _fake_backward_in_place(
    logits: Tensor, halting_logits: Tensor, labels: Tensor, *arguments: Any
) -> Tensor:
    return _fake_like(halting_logits, arguments[-1] & GRAD_HALTING)


def _fake_like(tensor: Tensor, wanted: int) -> Tensor:
    return tensor.new_empty(tensor.shape if wanted else (0,))


def _fake_parts(
    logits: Tensor, halting_logits: Tensor, reduction: int, wanted: int
) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(logits, halting_logits)
    rows, units = logits.shape[1:-1], halting_logits.shape[1:]
    scalar = reduction != REDUCTIONS["none"]

    def empty(shape: Any, there: bool = True) -> Tensor:
        return logits.new_empty(shape if there else (0,), dtype=dtype)

    return (
        empty(() if scalar else units),
        empty(() if scalar else rows),
        empty(() if scalar else rows),
        empty(() if scalar else units),
        empty(logits.shape[1:], bool(wanted & OUTPUTS["log_answer"])),
        empty(halting_logits.shape, bool(wanted & OUTPUTS["halting_p"])),
        empty(halting_logits.shape, bool(wanted & OUTPUTS["exit_weights"])),
    )


def _fake_exits(
    logits: Tensor, halting_logits: Tensor, valid: Tensor | None, delta: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(logits, halting_logits)
    answer = logits.shape[1:]
    return (
        logits.new_empty(halting_logits.shape[1:], dtype=torch.int64),
        logits.new_empty(answer, dtype=dtype),
        logits.new_empty(answer, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(*inputs[:10], *output[7:])
    ctx.numbers, ctx.wanted = inputs[10:-1], inputs[-1]


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    grad_loss, *parts = grads[:4]
    *tensors, grad_z, grad_u = ctx.saved_tensors
    needs_z, needs_u = ctx.needs_input_grad[:2]
    wanted = (GRAD_LOGITS if needs_z else 0) | (GRAD_HALTING if needs_u else 0)
    if all(part is None for part in parts) and ctx.wanted & wanted == wanted:
        # Always multiplied: a look at the number would make the host wait, or break the graph.
        if grad_loss is not None:
            grad_z, grad_u = grad_z * grad_loss, grad_u * grad_loss
    else:
        grad_z, grad_u = torch.ops.ptrain.halting_loss_backward(
            *tensors[:3], grad_loss, *parts, *tensors[3:], *ctx.numbers, wanted
        )
    none = [None] * (len(tensors) + len(ctx.numbers) + 1 - 2)
    return grad_z if needs_z else None, grad_u if needs_u else None, *none
