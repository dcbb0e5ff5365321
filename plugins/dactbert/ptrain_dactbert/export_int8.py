"""Segments in int8: weights a channel, activations a batch as they come."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

QUANTIZED = ("MatMul", "Gemm")
"""The products with weights. Embeddings stay: a lookup in int8 saves space alone. The units stay
too: they take no time, and an answer is a difference of their numbers."""


def quantize(folder: Path, *, num_blocks: int) -> None:
    """Replace each segment by one in int8."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it advises a preparation that these graphs do not need
    try:
        for block in range(1, num_blocks + 1):
            path = folder / f"block-{block}.onnx"
            whole = path.rename(path.with_suffix(".fp32"))
            nodes = onnx.load(whole, load_external_data=False).graph.node
            quantize_dynamic(
                whole,
                path,
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=_of_units([node.name for node in nodes]),
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            whole.unlink()
    finally:
        log.setLevel(level)


def _of_units(names: Sequence[str]) -> list[str]:
    """Those of a unit, also under the name that a Gemm has once it is a MatMul and a sum."""
    own = [name for name in names if name.startswith("/unit/")]
    return [*own, *(f"{name}_MatMul" for name in own)]
