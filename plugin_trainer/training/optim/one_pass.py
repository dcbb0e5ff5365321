"""Whether an optimizer's step can be one pass over memory, and if not, why."""

from __future__ import annotations

import torch
from torch import nn

from plugin_trainer.ops import library

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OTHER_WAYS = ("amsgrad", "maximize", "foreach", "capturable", "differentiable")


def why_not_in_one_pass(optimizer: torch.optim.Optimizer) -> str:
    """Why `FusedAdamW` cannot take the place of this optimizer, in words; empty if it can."""
    if type(optimizer) is not torch.optim.AdamW:
        return f"the optimizer is {type(optimizer).__name__}"
    for group in optimizer.param_groups:
        for option in _OTHER_WAYS:
            if group.get(option):
                return f"{option} is on"
        if group.get("fused") is False:  # None is torch's own default
            return "fused is off"
    compiled = library.find()
    if compiled is None:
        return library.status().reason
    devices = ("cpu", "cuda") if compiled.cuda else ("cpu",)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if type(parameter) is not nn.Parameter:
                return f"a parameter is a {type(parameter).__name__}"
            if parameter.dtype not in _DTYPES:
                return f"a parameter is {parameter.dtype}"
            if parameter.device.type not in devices:
                return f"the kernels are not compiled for {parameter.device.type}"
    return ""
