"""The parameter shapes of the models that the kernels are timed on, from their configurations."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bert:
    """The numbers of a BERT encoder's configuration that decide its parameters' shapes."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2


BERT_BASE = Bert(layers=12, hidden=768, intermediate=3072)
MINILM = Bert(layers=6, hidden=384, intermediate=1536)
SMALL = Bert(layers=6, hidden=96, intermediate=384, vocabulary=3500, positions=128)


def bert_shapes(bert: Bert) -> list[Shape]:
    """Embeddings, blocks and pooler, in the order of the modules."""
    wide, norm = (bert.hidden, bert.hidden), [(bert.hidden,), (bert.hidden,)]
    block: list[Shape] = [
        *[wide, (bert.hidden,)] * 4,  # query, key, value, output
        *norm,
        *[(bert.intermediate, bert.hidden), (bert.intermediate,)],
        *[(bert.hidden, bert.intermediate), (bert.hidden,)],
        *norm,
    ]
    return [
        (bert.vocabulary, bert.hidden),
        (bert.positions, bert.hidden),
        (bert.token_types, bert.hidden),
        *norm,
        *block * bert.layers,
        *[wide, (bert.hidden,)],
    ]


LISTS: dict[str, list[Shape]] = {
    "BERT-base": bert_shapes(BERT_BASE),
    "MiniLM": bert_shapes(MINILM),
    "1 M in 103": bert_shapes(SMALL),
    "2,000 x 256": [(256,)] * 2000,
}


def elements(shapes: list[Shape]) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes)
