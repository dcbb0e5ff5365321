"""Run a Hugging Face encoder block by block; a row that has left is not computed any further.

The encoder's own loop runs. Each of its blocks is called through a function that narrows the
arguments to the rows that are left, so no modelling code is repeated here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plugin_trainer.errors import PtrainError

# N blocks, B rows of the batch, R rows that are left, T tokens, H width of a block

Visit = Callable[[int, Tensor, Tensor], Tensor]
"""visit(block, states_RTH, rows_R) -> leave_R: called after each block, counted from 1.

rows_R says which rows of the batch are left. leave_R is Boolean, and ignored after the last block.
"""

# The arguments of a block that have one entry a row, in transformers 5. By name: a table of as many
# positions as the batch has rows has the same shape.
_PER_ROW = frozenset(
    {"attention_mask", "position_bias", "position_embeddings", "position_ids", "query_states"}
)

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
    if any(name.endswith("encoder.conv") for name, _ in encoder.named_modules()):
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
    rows_at_once  split the rows that are left into calls of so many: a large batch then is a window
                  whose survivors are put together anew after each block
    """
    count = next(iter(inputs.values())).shape[0]
    config: Any = encoder.config
    depth: int = config.num_hidden_layers
    loop = _Loop(count, depth, visit, rows_at_once, inputs["input_ids"].device)
    with _calling_through(find_blocks(encoder), loop):
        try:
            with torch.inference_mode():
                states = encoder(**inputs, return_dict=True).last_hidden_state
                visit(depth, states, loop.rows_R)
        except _AllLeft:
            return


class _AllLeft(BaseException):
    """Ends the encoder's loop. No Exception, for nobody on the way may take it for a failure."""


class _Loop:
    """The rows that are left, and the arguments of the blocks narrowed to them."""

    def __init__(
        self, count: int, depth: int, visit: Visit, rows_at_once: int | None, device: torch.device
    ) -> None:
        self.rows_R = torch.arange(count, device=device)
        self._count = count
        self._depth = depth
        self._visit = visit
        self._rows_at_once = rows_at_once
        self._block = 0
        self._narrowed: dict[str, tuple[Any, Any]] = {}

    def call(
        self, forward: Callable[..., Any], names: Sequence[str], args: Any, kwargs: Any
    ) -> Any:
        """One block on the rows that are left, and the visit behind it."""
        states, *args = args
        args = [self._narrow(name, value) for name, value in zip(names, args, strict=False)]
        kwargs = {name: self._narrow(name, value) for name, value in kwargs.items()}
        result = self._in_parts(forward, names, states, args, kwargs)
        self._block += 1
        if self._block == self._depth:
            return result
        states = result[0] if isinstance(result, tuple) else result
        leave_R = self._visit(self._block, states, self.rows_R)
        stays_R = leave_R.logical_not().nonzero().squeeze(1)
        if len(stays_R) == len(leave_R):
            return result
        if not len(stays_R):
            raise _AllLeft
        self.rows_R = self.rows_R[stays_R]
        self._narrowed.clear()
        states = states[stays_R]
        return (states, *result[1:]) if isinstance(result, tuple) else states

    def _narrow(self, name: str, value: Any) -> Any:
        """An argument's entries of the rows that are left; most blocks are given the same one."""
        if name not in _PER_ROW or len(self.rows_R) == self._count or value is None:
            return value
        known = self._narrowed.get(name)
        if known is None or known[0] is not value:
            known = self._narrowed[name] = (value, self._select(value, self.rows_R))
        return known[1]

    def _select(self, value: Any, rows: Tensor | slice) -> Any:
        if isinstance(value, tuple):
            return tuple(self._select(part, rows) for part in value)
        # Masks and position tables that are the same for every row have one entry.
        is_per_row = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] > 1
        return value[rows] if is_per_row else value

    def _in_parts(
        self,
        forward: Callable[..., Any],
        names: Sequence[str],
        states: Tensor,
        args: Any,
        kwargs: Any,
    ) -> Any:
        size = self._rows_at_once
        if size is None or len(states) <= size:
            return forward(states, *args, **kwargs)
        results = []
        for first in range(0, len(states), size):
            part = slice(first, first + size)

            def cut(name: str, value: Any, part: slice = part) -> Any:
                return self._select(value, part) if name in _PER_ROW else value

            results.append(
                forward(
                    states[part],
                    *[cut(name, value) for name, value in zip(names, args, strict=False)],
                    **{name: cut(name, value) for name, value in kwargs.items()},
                )
            )
        first_result = results[0]
        if not isinstance(first_result, tuple):
            return torch.cat(results)
        return (torch.cat([result[0] for result in results]), *first_result[1:])


@contextmanager
def _calling_through(blocks: Iterable[nn.Module], loop: _Loop) -> Iterator[None]:
    """Put the loop between the encoder and its blocks."""
    with ExitStack() as restored:
        for block in blocks:
            own: Any = block.forward
            names = list(inspect.signature(own).parameters)[1:]

            def through(
                *args: Any, _own: Any = own, _names: Sequence[str] = names, **kwargs: Any
            ) -> Any:
                return loop.call(_own, _names, args, kwargs)

            block.forward = through
            restored.callback(delattr, block, "forward")
        yield
