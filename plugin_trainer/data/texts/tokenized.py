"""Texts become token ids once, before training; a batch is padded to its own longest text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from plugin_trainer.data.batches import IGNORED_LABEL

# B rows, T tokens, K tokens of all rows together


@dataclass(frozen=True)
class TokenizedTexts(Dataset[dict[str, Any]]):
    """All texts of a split as one run of token ids, so that worker processes share a few arrays.

    ids        the token ids of all texts, one after the other: [K]
    starts     where each text begins in them, and where the last one ends
    segments   the token type of each id, if the tokenizer gives them
    per_row    what each text has one of, by name: [rows] or [rows, ...]
    per_token  what each of its tokens has one of, by name: [K]
    """

    ids: Tensor
    starts: Tensor
    segments: Tensor | None = None
    per_row: Mapping[str, Tensor] = field(default_factory=dict)
    per_token: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        tokens = slice(int(self.starts[row]), int(self.starts[row + 1]))
        item: dict[str, Any] = {"input_ids": self.ids[tokens], "row": row}
        if self.segments is not None:
            item["token_type_ids"] = self.segments[tokens]
        item.update({name: values[tokens] for name, values in self.per_token.items()})
        item.update({name: values[row] for name, values in self.per_row.items()})
        return item

    def lengths(self) -> Tensor:
        """How many tokens each text has."""
        return self.starts.diff()


def joined(
    rows: Iterable[Sequence[int]],
    segments: Sequence[Sequence[int]] | None,
    *,
    pad_id: int,
    per_row: Mapping[str, Tensor] | None = None,
    per_token: Mapping[str, Iterable[Sequence[int]]] | None = None,
) -> TokenizedTexts:
    """The token ids of each text as one data set; a text without a token gets a padding one.

    segments   the token types of each text, if the tokenizer gives them
    per_token  one value for each token, by name
    """
    ids, types, starts = array("q"), array("q"), array("q", [0])
    for row, tokens in enumerate(rows):
        # Attention over no token at all is a division by zero.
        ids.extend(tokens or [pad_id])
        types.extend((segments[row] if segments else []) or [0] * max(1, len(tokens)))
        starts.append(len(ids))
    return TokenizedTexts(
        ids=torch.tensor(ids),
        starts=torch.tensor(starts),
        segments=torch.tensor(types) if segments else None,
        per_row=per_row or {},
        per_token={
            name: torch.tensor([one for row in values for one in (row or [IGNORED_LABEL])])
            for name, values in (per_token or {}).items()
        },
    )


def tokenize(
    texts: Sequence[str],
    *,
    tokenizer: Any,
    max_tokens: int,
    text_pairs: Sequence[str] | None = None,
    per_row: Mapping[str, Tensor] | None = None,
) -> TokenizedTexts:
    """Texts, with what is known of them, as a data set.

    text_pairs  the second text of each. Of two texts that are too long together, the longer one
                is cut until they fit.
    """
    encoded: Mapping[str, list[list[int]]] = tokenizer(
        list(texts),
        None if text_pairs is None else list(text_pairs),
        truncation="longest_first",
        max_length=max_tokens,
        return_attention_mask=False,
    )
    return joined(
        encoded["input_ids"],
        encoded.get("token_type_ids"),
        pad_id=tokenizer.pad_token_id,
        per_row=per_row,
    )


@dataclass(frozen=True)
class Padding:
    """Puts rows of different lengths into one batch. A class, not a closure: workers pickle it.

    pad_id     fills up the token ids
    per_token  what else has a value per token, filled up with the label that losses ignore
    """

    pad_id: int
    per_token: tuple[str, ...] = ()

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One tensor per key: [B, T] for what has a value per token, [B, ...] for the rest."""
        lengths_B = torch.tensor([len(item["input_ids"]) for item in items])
        positions_T = torch.arange(int(lengths_B.max()))
        batch = {"attention_mask": (positions_T < lengths_B.unsqueeze(-1)).long()}
        fillers = {"input_ids": self.pad_id, "token_type_ids": 0}
        fillers.update(dict.fromkeys(self.per_token, IGNORED_LABEL))
        for key in items[0]:
            values = [item[key] for item in items]
            if key in fillers:
                batch[key] = torch.nn.utils.rnn.pad_sequence(
                    values, batch_first=True, padding_value=fillers[key]
                )
            else:
                batch[key] = torch.stack([torch.as_tensor(value) for value in values])
        return batch
