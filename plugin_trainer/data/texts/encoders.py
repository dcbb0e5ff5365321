"""An encoder comes from a folder, the Hub or nowhere; all three give states of one kind."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, BertConfig, PretrainedConfig

from plugin_trainer.data.texts.pretrained import locate, quiet_transformers, reading
from plugin_trainer.errors import PtrainError

# B rows, T tokens, H width of a block


class Wanted(Protocol):
    """The settings that say which encoder a model has."""

    @property
    def encoder(self) -> str:
        """Folder or Hub id; empty: one from scratch, which the others describe."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of a block."""
        ...

    @property
    def num_blocks(self) -> int:
        """How many blocks."""
        ...

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest input, in tokens."""
        ...

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the first weights."""
        ...

    @property
    def dropout(self) -> float:
        """Dropout of states and of attention."""
        ...


def build(settings: Wanted, *, vocabulary_size: int, pad_id: int) -> nn.Module:
    """The encoder that the settings name, or a small BERT with random weights.

    vocabulary_size, pad_id  of the tokenizer, for the one from scratch
    """
    if settings.encoder:
        return pretrained(settings.encoder)
    if settings.hidden_size % settings.num_heads:
        raise PtrainError(
            f"model_settings.hidden_size is {settings.hidden_size}, which {settings.num_heads} "
            "attention heads do not divide",
            hint="change model_settings.hidden_size or model_settings.num_heads",
        )
    config = BertConfig(
        vocab_size=vocabulary_size,
        pad_token_id=pad_id,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_blocks,
        num_attention_heads=settings.num_heads,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=settings.max_positions,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        initializer_range=settings.initializer_range,
    )
    return from_config(config)


def pretrained(name: str) -> nn.Module:
    """The encoder in a folder or on the Hub, with its weights, in float32."""
    key = "model_settings.encoder"
    source = locate(name, key=key)
    with reading(name, key=key, what="encoder") as options:
        config = AutoConfig.from_pretrained(source, **options)
        model, info = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **poolerless(config),
            **options,
        )
    if missing := sorted(info["missing_keys"]):
        # transformers would fill them with random numbers and train on.
        raise PtrainError(
            f"{key}: the weights in {name} lack {len(missing)} tensors, {missing[0]} the first",
            hint="the files may be damaged, or belong to another architecture than config.json's",
        )
    return checked(model)


def from_config(config: PretrainedConfig) -> nn.Module:
    """An encoder of that configuration with random weights: a checkpoint fills them."""
    auto: Any = AutoModel
    return checked(auto.from_config(config, dtype=torch.float32, **poolerless(config)))


def from_folder(folder: Path) -> nn.Module:
    """The encoder whose configuration `save_pretrained` wrote there."""
    return from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def poolerless(config: PretrainedConfig) -> dict[str, Any]:
    """The argument that leaves out the pooler, which nothing reads, where there is one."""
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, (tuple, list)):
        model_class = model_class[0]
    takes = model_class and "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if takes else {}


def checked(model: nn.Module) -> nn.Module:
    """The model, if it is an encoder with a known number of blocks."""
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "num_hidden_layers", 0):
        raise PtrainError(
            f"model_settings.encoder: a {config.model_type} model is not a BERT-family encoder",
            hint="give an encoder such as BERT, DistilBERT or RoBERTa",
        )
    return model


def make_room(encoder: Any, *, vocabulary_size: int) -> None:
    """Let the encoder take ids up to a vocabulary's size: new tokens begin as random ones do."""
    if vocabulary_size > encoder.config.vocab_size:
        with quiet_transformers():
            encoder.resize_token_embeddings(vocabulary_size, mean_resizing=False)


def last_states(
    encoder: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
) -> Tensor:
    """The hidden states [B, T, H] after the last block."""
    inputs = inputs_of(encoder, input_ids, attention_mask, token_type_ids)
    states: Tensor = encoder(**inputs, return_dict=True).last_hidden_state
    return states


def block_states(
    encoder: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
) -> tuple[Tensor, ...]:
    """The hidden states [B, T, H] after each block, the embeddings left out."""
    inputs = inputs_of(encoder, input_ids, attention_mask, token_type_ids)
    states: tuple[Tensor, ...] = encoder(
        **inputs, output_hidden_states=True, return_dict=True
    ).hidden_states
    return states[1:]


def inputs_of(
    encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
) -> dict[str, Tensor]:
    """The keyword arguments that the encoder takes."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    # RoBERTa's one-row table and DistilBERT's missing one cannot take a second segment.
    if token_type_ids is not None and getattr(encoder.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = token_type_ids
    return inputs


def pool_tokens(states_BTH: Tensor, *, mask_BT: Tensor, pooling: str) -> Tensor:
    """One state a text, [B, H]: the first token's ("cls"), or the mean of the valid ones."""
    if pooling == "cls":
        return states_BTH[:, 0]
    weights_BT1 = mask_BT.unsqueeze(-1).to(states_BTH.dtype)
    return (states_BTH * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1.0)


def longest_input(config: PretrainedConfig) -> int | None:
    """How many tokens the position table takes; None if it says nothing."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        # These number positions from the padding id on, so the first rows are never a token's.
        pad_id: int = getattr(config, "pad_token_id", None) or 0
        return positions - pad_id - 1
    return positions


def check_inputs(
    config: PretrainedConfig, *, vocabulary_size: int, max_tokens: int, key: str
) -> None:
    """Refuse texts that do not fit the encoder, before a step is made. Raises PtrainError.

    vocabulary_size  without tokens that are added to the encoder's own
    key              that sets max_tokens
    """
    if vocabulary_size > config.vocab_size:
        raise PtrainError(
            f"the tokenizer knows {vocabulary_size} tokens, the encoder {config.vocab_size}",
            hint="leave out data_settings.tokenizer, so that the encoder's own is used",
        )
    longest = longest_input(config)
    if longest is not None and max_tokens > longest:
        raise PtrainError(
            f"{key} is {max_tokens}, the encoder takes {longest}",
            hint=f"set {key} to {longest} or less",
        )
