"""The whole encoder and its last unit, for plain transformers; an export has a copy of this file.

AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

# B rows, T tokens, H width of a block, C classes


class Unit(nn.Module):  # type: ignore[misc]
    """Pool the states, a hidden layer, the logits."""

    def __init__(self, width: int, *, unit_size: int, num_labels: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        if pooling == "attention":
            self.attention = nn.Module()
            self.attention.query = nn.Linear(width, 1, bias=False)
        self.trunk = nn.Linear(width, unit_size)
        self.answer = nn.Linear(unit_size, num_labels)

    def forward(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """The logits, [B, C]."""
        if self.pooling == "cls":
            pooled_BH = states_BTH[:, 0]
        else:
            scores_BT = torch.zeros_like(mask_BT, dtype=states_BTH.dtype)
            if self.pooling == "attention":
                scores_BT = self.attention.query(states_BTH).squeeze(-1)
            lowest = torch.finfo(scores_BT.dtype).min
            weights_BT = scores_BT.masked_fill(mask_BT == 0, lowest).softmax(-1)
            pooled_BH = torch.bmm(weights_BT.unsqueeze(1), states_BTH).squeeze(1)
        logits_BC: Tensor = self.answer(torch.tanh(self.trunk(pooled_BH)))
        return logits_BC


class FullDepthClassifier(PreTrainedModel):  # type: ignore[misc]
    """An encoder with one unit behind its last block. The encoder has the name that its own
    architecture gives it, so that AutoModel loads the same file.
    """

    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        encoder = AutoModel.from_config(config)
        if hasattr(encoder, "pooler"):
            encoder.pooler = None
        self.encoder_name: str = encoder.base_model_prefix
        self.add_module(self.encoder_name, encoder)
        self.unit = Unit(
            config.hidden_size,
            unit_size=config.unit_size,
            num_labels=config.num_labels,
            pooling=config.unit_pooling,
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits, and the cross-entropy where there are labels."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and getattr(self.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = token_type_ids
        encoder = self.get_submodule(self.encoder_name)
        states_BTH = encoder(**inputs, return_dict=True).last_hidden_state
        logits_BC = self.unit(states_BTH, attention_mask)
        loss = None if labels is None else nn.functional.cross_entropy(logits_BC, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)
