"""Cut an encoder into ONNX segments, one a block: its states, and the answer of its unit.

Each segment is traced through the encoder's own forward pass, in which only its block is called and
the embeddings give the states of the block before it. So the encoder prepares its attention mask
and its positions itself, and no modelling code is repeated here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plugin_trainer.early_exit.blocks import find_blocks
from plugin_trainer.errors import PtrainError

# B rows, T tokens, H width of a block, C classes

OPSET = 17
"""The oldest with LayerNormalization, and the newest that the tracing exporter knows whole."""


def write_segments(
    encoder: Any, units: Sequence[nn.Module], folder: Path, *, inputs: Mapping[str, Tensor]
) -> None:
    """Write block-1.onnx, block-2.onnx, ... into a folder.

    encoder  in evaluation mode, on the CPU, in float32; its attention is changed to "eager"
    inputs   its keyword arguments, [B, T] each: a few rows of different lengths, the longest of
             the most tokens that will be asked for

    Raises PtrainError for an encoder that cannot be cut.
    """
    _use_plain_attention(encoder)
    before = _modules_before_the_blocks(encoder, inputs)
    plain_mask = _takes_a_plain_mask(encoder, inputs)
    width: int = encoder.config.hidden_size
    for block, unit in enumerate(units, start=1):
        segment = _Segment(encoder, unit, block, names=list(inputs), before=before)
        segment.plain_mask = plain_mask
        mask_BT = inputs["attention_mask"]
        states_BTH = torch.randn(*mask_BT.shape, width)
        traced = {"states": states_BTH, "attention_mask": mask_BT} if block > 1 else dict(inputs)
        _trace(segment, folder / f"block-{block}.onnx", inputs=traced)


class _Segment(nn.Module):  # type: ignore[misc]
    """One block of the encoder, and its unit."""

    plain_mask = False

    def __init__(
        self,
        encoder: nn.Module,
        unit: nn.Module,
        block: int,
        *,
        names: Sequence[str],
        before: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.unit = unit
        self.block = block
        self.names = names
        self.before = before
        config: Any = encoder.config
        self.is_last = block == config.num_hidden_layers

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The states [B, T, H] after the block, if there is another, and the logits [B, C]."""
        if self.block == 1:
            states_BTH, inputs = None, dict(zip(self.names, arguments, strict=True))
            mask_BT = inputs["attention_mask"]
        else:
            states_BTH, mask_BT = arguments
            inputs = {
                "input_ids": mask_BT,
                "attention_mask": mask_BT,
            }  # any ids: nothing reads them
        if self.plain_mask:
            inputs["attention_mask"] = additive(mask_BT)
        states_BTH = self._states(states_BTH, inputs)
        logits_BC, *_ = self.unit(states_BTH, mask_BT)
        return (logits_BC,) if self.is_last else (states_BTH, logits_BC)

    def _states(self, given_BTH: Tensor | None, inputs: Mapping[str, Tensor]) -> Tensor:
        calls, states_BTH = 0, None

        def call_block(own: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls, states_BTH
            calls += 1
            if calls != self.block:
                return states
            result = own(states if given_BTH is None else given_BTH, *args, **kwargs)
            states_BTH = result[0] if isinstance(result, tuple) else result
            return result

        with ExitStack() as replaced:
            for module in find_blocks(self.encoder):
                replaced.enter_context(_calling(module, call_block))
            if given_BTH is not None:
                for name, width in self.before.items():
                    module = self.encoder.get_submodule(name)
                    replaced.enter_context(_calling(module, _giving(given_BTH, width)))
            last_BTH: Tensor = self.encoder(**inputs, return_dict=True).last_hidden_state
        # The encoder may put a norm behind its last block.
        return last_BTH if self.is_last or states_BTH is None else states_BTH


def additive(mask_BT: Tensor) -> Tensor:
    """A mask as attention adds it, [B, 1, 1, T]: 0, or the lowest number on padding."""
    padding_B11T = 1 - mask_BT[:, None, None, :].to(torch.float32)
    return padding_B11T * torch.finfo(torch.float32).min


def _giving(states_BTH: Tensor, width: int) -> Callable[..., Tensor]:
    """What stands in for embeddings so wide: where no one reads them, only their shape counts."""
    if width == states_BTH.shape[-1]:
        return lambda *_, **__: states_BTH
    return lambda *_, **__: states_BTH[..., :1].expand(-1, -1, width)


@contextmanager
def _calling(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Call function(own forward, ...) where the module's forward is called."""
    own: Any = module.forward
    module.forward = lambda *args, **kwargs: function(own, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward


def _use_plain_attention(encoder: Any) -> None:
    """Attention in products and a softmax: fewer nodes than the decomposition of sdpa."""
    try:
        encoder.set_attn_implementation("eager")
    except (AttributeError, ValueError):  # an architecture with a single one
        return


def _modules_before_the_blocks(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The outermost modules that give [B, T, width] before the first block, and the widths."""
    names = {module: name for name, module in encoder.named_modules() if name}
    widths: dict[str, int] = {}
    has_begun = False

    def begin(*_: Any) -> None:
        nonlocal has_begun
        has_begun = True

    def note(module: nn.Module, _: Any, result: Any) -> None:
        if not has_begun and isinstance(result, Tensor) and result.dim() == 3:
            widths[names[module]] = result.shape[-1]

    hooks = [block.register_forward_pre_hook(begin) for block in find_blocks(encoder)]
    hooks += [module.register_forward_hook(note) for module in names]
    try:
        with torch.inference_mode():
            encoder(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: width
        for name, width in widths.items()
        if not any(name.startswith(f"{outer}.") for outer in widths)
    }


def _takes_a_plain_mask(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the encoder does the same with an additive mask, which saves half of the nodes.

    One with windows of attention, such as ModernBERT, does not where a text is longer than they.
    """
    mask_BT = inputs["attention_mask"]
    with torch.inference_mode():
        own_BTH = encoder(**inputs, return_dict=True).last_hidden_state
        try:
            plain = {**inputs, "attention_mask": additive(mask_BT)}
            plain_BTH = encoder(**plain, return_dict=True).last_hidden_state
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
    valid_BT1 = mask_BT.bool().unsqueeze(-1)
    return bool(torch.allclose(own_BTH * valid_BT1, plain_BTH * valid_BT1, atol=1e-4))


def _trace(segment: _Segment, path: Path, *, inputs: Mapping[str, Tensor]) -> None:
    outputs = ["logits"] if segment.is_last else ["next_states", "logits"]
    rows_and_tokens = {0: "batch", 1: "length"}
    axes: dict[str, dict[int, str]] = dict.fromkeys((*inputs, *outputs), rows_and_tokens)
    axes["logits"] = {0: "batch"}
    with warnings.catch_warnings():
        # The comparison behind the export is what shows that a trace is general.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                segment.eval(),
                tuple(inputs.values()),
                path,
                dynamo=False,  # twenty times as fast, and half as many nodes
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes=axes,
            )
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = f"block {segment.block}: {str(error).splitlines()[0]}"
            raise cannot(segment.encoder, reason) from error


def cannot(encoder: Any, reason: str) -> PtrainError:
    """What an export of such an encoder ends with."""
    return PtrainError(
        f"a {encoder.config.model_type} encoder cannot be exported to ONNX: {reason}",
        hint="encoders that can: BERT, RoBERTa, DistilBERT, ELECTRA, ModernBERT",
    )
