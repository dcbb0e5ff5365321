"""Words become pieces; the label of a word goes to its first piece, and -100 to all others.

A text is tokenised whole and then cut to a window of it, so that what is asked about is in the
window, and what is not in it can be counted and said.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugin_trainer.data.batches import IGNORED_LABEL

# Positions of pieces count from 0 in the whole text, without the special tokens around it.


@dataclass(frozen=True, slots=True)
class Pieces:
    """A text as pieces, with the special tokens that the tokenizer puts around it.

    ids       the token ids of all pieces
    segments  their token types, or None if the tokenizer gives none
    ends      where in the text each piece ends, and `starts` where it begins
    before    how many of them are special tokens before the text, and `after` behind it
    """

    ids: list[int]
    segments: list[int] | None
    starts: list[int]
    ends: list[int]
    before: int
    after: int

    def __len__(self) -> int:
        """How many pieces the text itself has."""
        return len(self.ids) - self.before - self.after

    def window(self, start: int, *, max_tokens: int) -> tuple[list[int], list[int] | None]:
        """Ids and token types of the special tokens and what fits between them, from a piece on."""
        first = self.before + start
        last = min(first + self.room(max_tokens), len(self.ids) - self.after)
        end = len(self.ids) - self.after
        chosen = [*range(self.before), *range(first, last), *range(end, len(self.ids))]
        segments = None if self.segments is None else [self.segments[at] for at in chosen]
        return [self.ids[at] for at in chosen], segments

    def room(self, max_tokens: int) -> int:
        """How many pieces of the text fit."""
        return max(0, max_tokens - self.before - self.after)


def to_pieces(texts: Sequence[str], *, tokenizer: Any) -> Iterator[Pieces]:
    """Each text as pieces, whatever its length."""
    encoded: Mapping[str, Any] = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # else it warns of texts that are longer than the encoder takes
    )
    types = encoded.get("token_type_ids")
    for row, ids in enumerate(encoded["input_ids"]):
        special = encoded["special_tokens_mask"][row]
        before = next((at for at, one in enumerate(special) if not one), len(special))
        after = next((at for at, one in enumerate(reversed(special)) if not one), 0)
        starts = [start for start, _ in encoded["offset_mapping"][row]]
        ends = [end for _, end in encoded["offset_mapping"][row]]
        yield Pieces(ids, types[row] if types else None, starts, ends, before, after)


@dataclass(frozen=True, slots=True)
class Aligned:
    """The words of a sentence in the window of what is read.

    ids       the token ids, special tokens included
    segments  their token types, or None
    words     for each of these: the position of the word whose first piece it is, else -100
    read      how many words have their first piece in the window
    longest   the word with the most pieces, and how many: (position, pieces)
    room      how many pieces fit
    """

    ids: list[int]
    segments: list[int] | None
    words: list[int]
    read: int
    longest: tuple[int, int]
    room: int


def align(
    sentences: Sequence[Sequence[str]], *, tokenizer: Any, max_tokens: int
) -> Iterator[Aligned]:
    """The words of each sentence as pieces, from the first word on, as far as they fit.

    The words are put together with spaces between them: that is what all tokenizers are made for,
    while a word on its own lacks what some of them (RoBERTa's) write for the space before it.
    """
    texts = [" ".join(words) for words in sentences]
    for words, pieces in zip(sentences, to_pieces(texts, tokenizer=tokenizer), strict=True):
        first = first_pieces(words, pieces)
        if len(first) < len(words):
            # A word of nothing but characters that the tokenizer drops, such as a variation
            # selector, would take its label with it.
            stand_in = tokenizer.unk_token or tokenizer.mask_token
            words = [word if at in first else stand_in for at, word in enumerate(words)]
            pieces = next(to_pieces([" ".join(words)], tokenizer=tokenizer))
            first = first_pieces(words, pieces)
        yield aligned(first, pieces, max_tokens=max_tokens)


def first_pieces(words: Sequence[str], pieces: Pieces) -> dict[int, int]:
    """The first piece of each word, by the word's position, for words that have one."""
    begins, at = [], 0
    for word in words:
        begins.append(at)
        at += len(word) + 1
    first: dict[int, int] = {}
    for piece in range(len(pieces)):
        start, end = pieces.starts[pieces.before + piece], pieces.ends[pieces.before + piece]
        # By its last character: some tokenizers count the space before a word to its first piece.
        position = bisect_right(begins, end - 1) - 1
        if end > start and position >= 0 and end <= begins[position] + len(words[position]):
            first.setdefault(position, piece)
    return first


def aligned(first: Mapping[int, int], pieces: Pieces, *, max_tokens: int) -> Aligned:
    """What is read of a sentence whose words have these first pieces."""
    ids, segments = pieces.window(0, max_tokens=max_tokens)
    room = pieces.room(max_tokens)
    words = [IGNORED_LABEL] * len(ids)
    sizes = {}
    order = sorted(first, key=first.__getitem__)
    ends = [*(first[word] for word in order[1:]), len(pieces)]
    for word, end in zip(order, ends, strict=False):  # without a word there is an end too many
        sizes[word] = end - first[word]
        if first[word] < room:
            words[pieces.before + first[word]] = word
    longest = max(sizes, key=sizes.__getitem__, default=0)
    read = sum(start < room for start in first.values())
    return Aligned(ids, segments, words, read, (longest, sizes.get(longest, 0)), room)
