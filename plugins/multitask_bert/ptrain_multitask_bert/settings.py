"""What a user may set: one frozen dataclass per offer, every key explained in its docstring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ptrain_multitask_bert.settings_data import HeadSettings, MultitaskSettings, TaskSettings

__all__ = [
    "ExportSettings",
    "HeadSettings",
    "MultitaskSettings",
    "SharedEncoderSettings",
    "TaskSettings",
]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Which = Literal["best", "last", "best_ema", "last_ema"]


@dataclass(frozen=True, kw_only=True)
class SharedEncoderSettings:
    """The encoder that all tasks share, and how their heads read it.

    encoder            folder or Hub id of a BERT-family encoder; empty: a small one from scratch
    hidden_size        width of the encoder from scratch
    num_blocks         blocks of the encoder from scratch
    num_heads          attention heads of the encoder from scratch; must divide hidden_size
    max_positions      longest input, in tokens, of the encoder from scratch
    initializer_range  standard deviation of the first weights of the encoder from scratch; a narrow
                       encoder wants more than BERT's 0.02
    pooling            what the heads of a whole text read: "mean" of its tokens, or "cls", the
                       first one
    dropout            dropout before each head, and in the encoder from scratch
    """

    encoder: str = ""
    hidden_size: Positive = 64
    num_blocks: Positive = 4
    num_heads: Positive = 4
    max_positions: Positive = 512
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    pooling: Literal["mean", "cls"] = "mean"
    dropout: Fraction = 0.1


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is written in Hugging Face format when the run ends, and where.

    weights  which weights: "best" and "last", and of the moving average "best_ema" and "last_ema";
             what a run does not have is left out
    folder   folder in the run folder; there is one folder for each of the weights in it
    """

    weights: tuple[Which, ...] = ("best", "last")
    folder: Annotated[str, Field(min_length=1)] = "hugging_face"
