"""Run a Hugging Face encoder block by block; a row that has left is not computed any further.

The encoder's own loop runs. Each of its blocks is called through a function that narrows the
arguments to the rows that are left, so no modelling code is repeated here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugin_trainer.early_exit.narrowing import (
    Arguments,
    has_only_a_mask,
    select,
    select_rows,
    trim_tokens,
    valid_lengths,
)
from plugin_trainer.errors import PtrainError

# N blocks, B rows of the batch, R rows that are left, P of them in a part, S of these that stay,
# T tokens, H width of a block

Visit = Callable[[int, Tensor, Tensor], Tensor]
"""visit(block, states_RTH, rows_R) -> leave_R: called after each block, counted from 1.

rows_R says which rows of the batch are left. leave_R is Boolean, and ignored after the last block.
"""

_REFUSED = {
    "funnel": "its blocks change the number of tokens",
    "canine": "its blocks do not all see the same positions",
    "longformer": "its blocks are given padded tokens",
    "squeezebert": "its blocks keep the tokens in the last dimension",
    "xlnet": "its blocks keep the tokens in the first dimension",
}


def find_blocks(encoder: nn.Module) -> Iterable[nn.Module]:
    """The modules that the encoder calls in turn, one a block; ALBERT's are called repeatedly.

    Raises PtrainError for an encoder that cannot be run block by block.
    """
    config: Any = encoder.config
    if reason := _REFUSED.get(config.model_type):
        raise _cannot(config, reason)
    if config.model_type == "albert":
        groups: Any = encoder.get_submodule("encoder.albert_layer_groups")
        return list(groups)
    lists = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise _cannot(config, f"it has {len(lists)} lists of {config.num_hidden_layers} modules")
    if config.model_type == "deberta-v2" and hasattr(encoder, "encoder"):
        stack: Any = encoder.encoder
        if getattr(stack, "conv", None) is not None:
            raise _cannot(config, "a convolution reads the states before and after its first block")
    return lists[0]


def keep_first_blocks(encoder: nn.Module, count: int) -> None:
    """Take all blocks but the first `count` out of an encoder, for good.

    Raises PtrainError for an encoder that cannot be run block by block, or has not so many.
    """
    config: Any = encoder.config
    blocks = find_blocks(encoder)
    if not 1 <= count <= config.num_hidden_layers:
        raise PtrainError(
            f"model_settings.first_blocks is {count}, "
            f"the encoder has {config.num_hidden_layers} blocks",
        )
    if isinstance(blocks, nn.ModuleList):  # ALBERT's one block is called so many times
        del blocks[count:]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def _cannot(config: Any, reason: str) -> PtrainError:
    return PtrainError(
        f"a {config.model_type} encoder cannot be run block by block: {reason}",
        hint="use an encoder such as BERT, RoBERTa or ModernBERT, or turn early exit off",
    )


def run_blocks(
    encoder: nn.Module,
    inputs: Mapping[str, Tensor],
    visit: Visit,
    *,
    rows_at_once: int | None = None,
) -> None:
    """Run the encoder until every row has left. One thread may run an encoder at a time.

    inputs        keyword arguments of the encoder, [B, T] each
    visit         what to do after each block; the last state is the encoder's own, behind a final
                  norm if it has one
    rows_at_once  how many rows a block takes at most. A larger batch is a window: its survivors are
                  put into new parts after each block, each as long as its longest row, so rows
                  should be sorted by length. `visit` is then called for each part
    """
    config: Any = encoder.config
    loop = _Loop(inputs["attention_mask"], config.num_hidden_layers, visit, rows_at_once)
    with _calling_through(encoder, loop):
        try:
            with torch.inference_mode():
                states = encoder(**inputs, return_dict=True).last_hidden_state
                visit(config.num_hidden_layers, states, loop.rows_R)
        except _AllLeft:
            return


class _AllLeft(BaseException):
    """Ends the encoder's loop. No Exception, for nobody on the way may take it for a failure."""


class _Loop:
    """Calls the blocks with the rows that are left."""

    def __init__(self, mask_BT: Tensor, depth: int, visit: Visit, rows_at_once: int | None) -> None:
        self._count, self._num_tokens = mask_BT.shape
        self.rows_R = torch.arange(self._count, device=mask_BT.device)
        self._depth = depth
        self._visit = visit
        is_window = rows_at_once is not None and self._count > rows_at_once
        self._rows_at_once = rows_at_once if is_window else None
        self._lengths_B = valid_lengths(mask_BT) if is_window else []
        self._block = 0
        self._narrowed: dict[str, tuple[Any, Any]] = {}

    def call(self, forward: Callable[..., Any], states_RTH: Tensor, arguments: Arguments) -> Any:
        """One block on the rows that are left, and the visit behind it."""
        self._block += 1
        arguments = {name: self._narrow(name, value) for name, value in arguments.items()}
        if self._rows_at_once is not None:
            return self._in_parts(forward, states_RTH, arguments, self._rows_at_once)
        result = forward(states_RTH, **arguments)
        if self._block == self._depth:  # the encoder may yet put a norm behind it
            return result
        states_RTH = _states_of(result)
        stays_S = self._stays(states_RTH, self.rows_R)
        if len(stays_S) == len(states_RTH):
            return result
        self._go_on_with(self.rows_R[stays_S])
        return _with_states(result, states_RTH[stays_S])

    def _in_parts(
        self,
        forward: Callable[..., Any],
        states_RTH: Tensor,
        arguments: Arguments,
        rows_at_once: int,
    ) -> Any:
        trims = has_only_a_mask(arguments)
        result: Any = None
        rows, states, first = [], [], 0
        for rows_P in self.rows_R.tensor_split(-(-len(self.rows_R) // rows_at_once)):
            part = slice(first, first := first + len(rows_P))
            of_part = select_rows(arguments, part)
            longest = states_RTH.shape[1]
            if trims:
                longest = max(self._lengths_B[row] for row in rows_P.tolist())
                of_part = trim_tokens(of_part, longest, num_tokens=self._num_tokens)
            # Each product with a part that is not contiguous would copy it anew.
            result = forward(states_RTH[part, :longest].contiguous(), **of_part)
            states_PTH = _states_of(result)
            if self._block < self._depth:
                stays_S = self._stays(states_PTH, rows_P)
                rows_P, states_PTH = rows_P[stays_S], states_PTH[stays_S]
            rows.append(rows_P)
            states.append(states_PTH)
        self._go_on_with(torch.cat(rows))
        return _with_states(result, _padded([part for part in states if len(part)]))

    def _stays(self, states_RTH: Tensor, rows_R: Tensor) -> Tensor:
        """Which of these rows stay after the block, as positions among them, [S]."""
        leave_R = self._visit(self._block, states_RTH, rows_R)
        return leave_R.logical_not().nonzero().squeeze(1)

    def _go_on_with(self, rows_R: Tensor) -> None:
        if not len(rows_R):
            raise _AllLeft
        if len(rows_R) < len(self.rows_R):
            self.rows_R = rows_R
            self._narrowed.clear()

    def _narrow(self, name: str, value: Any) -> Any:
        """An argument's entries of the rows that are left; most blocks are given the same one."""
        if len(self.rows_R) == self._count:
            return value
        known = self._narrowed.get(name)
        if known is None or known[0] is not value:
            known = self._narrowed[name] = (value, select(name, value, self.rows_R))
        return known[1]


def _states_of(result: Any) -> Tensor:
    states: Tensor = result[0] if isinstance(result, tuple) else result
    return states


def _with_states(result: Any, states: Tensor) -> Any:
    return (states, *result[1:]) if isinstance(result, tuple) else states


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """The states of all parts, as long as the longest of them."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


@contextmanager
def _calling_through(encoder: nn.Module, loop: _Loop) -> Iterator[None]:
    """Put the loop between the encoder and its blocks."""
    with ExitStack() as restored:
        for block in find_blocks(encoder):
            own: Any = block.forward
            names = _names_behind_the_states(getattr(own, "__func__", own))

            def through(
                states: Tensor,
                *args: Any,
                _own: Any = own,
                _names: Sequence[str] = names,
                **kwargs: Any,
            ) -> Any:
                if len(args) > len(_names):  # a wrapper's: it could not be told what is the mask
                    raise _cannot(encoder.config, "its blocks take arguments without names")
                return loop.call(_own, states, {**dict(zip(_names, args, strict=False)), **kwargs})

            if "forward" in vars(block):  # somebody else's, around the class's
                restored.callback(setattr, block, "forward", own)
            else:
                restored.callback(delattr, block, "forward")
            block.forward = through
        yield


@lru_cache(maxsize=64)  # it takes 15 us, and is asked for each block of each batch
def _names_behind_the_states(forward: Callable[..., Any]) -> Sequence[str]:
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is named]
    return names[2 if names[:1] == ["self"] else 1 :]
