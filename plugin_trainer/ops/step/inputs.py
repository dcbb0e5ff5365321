"""What the fused step asks of its tensors, said before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a parameter's moments and average: float64 for float64, otherwise float32.

    In 16 bits they would stand still: (1 - 0.999) of a number is less than half of its last digit.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps, in any order of dimensions."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_order(one: Tensor, other: Tensor) -> bool:
    """Whether the elements of two dense tensors of one shape lie in the same order."""
    return one.numel() < 2 or all(
        size < 2 or mine == its
        for size, mine, its in zip(one.shape, one.stride(), other.stride(), strict=True)
    )


def has_memory(tensor: Tensor) -> bool:
    """Whether the storage is as large as the tensor: `storage.resize_(0)` gives memory back."""
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return True
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in strides)
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_memory(name: str, tensor: Tensor) -> None:
    """Raises ValueError if the tensor's memory was given back."""
    if not has_memory(tensor):
        raise ValueError(
            f"{name} has lost its memory: it has {tensor.numel()} elements, and its storage "
            f"{tensor.untyped_storage().nbytes()} bytes; give it memory again before the step"
        )


def check_apart(
    written: Iterable[tuple[str, Tensor]], read: Iterable[tuple[str, Tensor]] = ()
) -> None:
    """Raises ValueError if what is written shares memory with what is written or read.

    Both are names and tensors. Of tensors with gaps only the beginning is looked at: whether they
    meet elsewhere is not known without trying all elements.
    """
    spans: list[tuple[int, int, tuple[bool, int], str]] = []
    for is_read, some in ((False, written), (True, read)):
        for name, tensor in some:
            if tensor.numel() > 0:
                begin = tensor.data_ptr()
                size = tensor.numel() if is_dense(tensor) else 1
                order = (is_read, len(spans))
                spans.append((begin, begin + size * tensor.element_size(), order, name))
    spans.sort()
    reaches: dict[bool, tuple[int, tuple[bool, int], str]] = {}  # by whether it is read
    for begin, end, order, name in spans:
        for is_read, (reach, other_order, other) in reaches.items():
            if begin < reach and not (is_read and order[0]):
                later, earlier = (name, other) if order > other_order else (other, name)
                raise ValueError(
                    f"{later} shares memory with {earlier}; make one of them a copy: .clone()"
                )
        if order[0] not in reaches or end > reaches[order[0]][0]:
            reaches[order[0]] = (end, order, name)


def check_lists(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    shadows: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    norm: Tensor | None,
    *,
    zero_grads: bool,
) -> None:
    """Raises ValueError, naming the list and the index, if the lists do not fit together."""
    lists = {
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "steps": steps,
        "groups": groups,
    }
    if shadows:
        lists["shadows"] = shadows
    for name, some in lists.items():
        if len(some) != len(params):
            raise ValueError(f"{len(some)} {name} for {len(params)} params")
    if hyper.dtype != torch.float64 or hyper.dim() != 2 or hyper.shape[1] != 6:
        raise ValueError(
            f"hyper is {hyper.dtype} of shape {tuple(hyper.shape)}; it must be float64 of shape "
            "(groups, 6): learning rate, beta1, beta2, eps, weight decay, decay of the average"
        )
    if norm is not None and (norm.dtype != torch.float64 or norm.numel() != 1):
        raise ValueError(
            f"norm is {norm.dtype} of shape {tuple(norm.shape)}; it must be one float64, as "
            "grad_norm gives it"
        )
    for i, param in enumerate(params):
        check_param(f"params[{i}]", param)
        if param.device != params[0].device:
            raise ValueError(f"params[{i}] is on {param.device}, params[0] on {params[0].device}")
        if not is_dense(param):
            raise ValueError(
                f"params[{i}] has gaps or overlaps in its memory (shape {tuple(param.shape)}, "
                f"strides {param.stride()}); step a contiguous copy"
            )
        if not 0 <= groups[i] < hyper.shape[0]:
            raise ValueError(f"groups[{i}] is {groups[i]}, but hyper has {hyper.shape[0]} rows")
        check_gradient(f"grads[{i}]", grads[i], param)
        for name, tensor in (("exp_avgs", exp_avgs[i]), ("exp_avg_sqs", exp_avg_sqs[i])):
            _check_beside(f"{name}[{i}]", tensor, param)
        if steps[i].dtype != torch.float32 or steps[i].numel() != 1:
            raise ValueError(
                f"steps[{i}] is {steps[i].dtype} of shape {tuple(steps[i].shape)}; "
                "it must be one float32"
            )
        if steps[i].device != param.device:
            raise ValueError(f"steps[{i}] is on {steps[i].device}, its parameter on {param.device}")
        if shadows and shadows[i].numel() > 0:
            check_shadow(f"shadows[{i}]", shadows[i], param)
            _check_beside(f"shadows[{i}]", shadows[i], param)
    if torch.compiler.is_compiling():
        return  # there is no memory yet; the compiled op looks at it
    tensors = {
        "params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps,
        "shadows": shadows,
    }  # fmt: skip
    changed = [(f"{name}[{i}]", x) for name, some in tensors.items() for i, x in enumerate(some)]
    gradients = [(f"grads[{i}]", gradient) for i, gradient in enumerate(grads)]
    for name, tensor in (*changed, *gradients):
        check_memory(name, tensor)
    check_apart(*((changed + gradients,) if zero_grads else (changed, gradients)))


def check_param(name: str, param: Tensor) -> None:
    """Raises ValueError if it is not a plain tensor of a dtype that can be stepped."""
    if param.layout != torch.strided:
        raise ValueError(f"{name} is sparse ({param.layout}); make it dense")
    if param.dtype not in DTYPES:
        raise ValueError(
            f"{name} is {param.dtype}; it must be one of {', '.join(map(str, DTYPES))}"
        )


def check_gradient(name: str, gradient: Tensor, param: Tensor) -> None:
    """Raises ValueError if this is no gradient of the parameter; its strides may be others."""
    if gradient.layout != torch.strided:
        raise ValueError(
            f"{name} is sparse ({gradient.layout}); make the layer's gradient dense "
            "(nn.Embedding(sparse=False)) or use torch.optim.SparseAdam for it"
        )
    _check_like(name, gradient, param, param.dtype)


def check_shadow(name: str, shadow: Tensor, param: Tensor) -> None:
    """Raises ValueError if this is no average of the parameter; its strides may be others."""
    check_state(name, shadow, param)
    if not torch.compiler.is_compiling() and shadow.data_ptr() == param.data_ptr() != 0:
        raise ValueError(f"{name} shares its memory with its parameter; make it a copy: .clone()")


def check_state(name: str, tensor: Tensor, param: Tensor) -> None:
    """Raises ValueError if this is no moment or average of it; its strides may be others."""
    _check_like(name, tensor, param, state_dtype(param.dtype))


def _check_beside(name: str, tensor: Tensor, param: Tensor) -> None:
    _check_like(name, tensor, param, state_dtype(param.dtype))
    if not is_dense(tensor) or not same_order(tensor, param):
        raise ValueError(
            f"{name} has strides {tensor.stride()}, its parameter {param.stride()}; "
            "make it torch.empty_like(parameter)"
        )


def _check_like(name: str, tensor: Tensor, param: Tensor, dtype: torch.dtype) -> None:
    if tensor.shape != param.shape or tensor.device != param.device:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} on {tensor.device}, "
            f"its parameter has shape {tuple(param.shape)} on {param.device}"
        )
    if tensor.dtype != dtype:
        raise ValueError(
            f"{name} is {tensor.dtype} for a {param.dtype} parameter; it must be {dtype}"
        )
