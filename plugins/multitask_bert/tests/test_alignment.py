"""Words and pieces: one label a word, at its first piece, whatever the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ptrain_multitask_bert.alignment import Aligned, align, to_pieces
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from plugin_trainer.data.texts.tokenizers import trained_tokenizer

WORDS = ("New", "York", "isn't", "unbelievable", "!")


def bert(folder: Path) -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "new", "york", "isn", "'", "t", "un",
              "##believ", "##able", "!"]  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    return BertTokenizerFast.from_pretrained(folder)


def roberta(folder: Path) -> Any:
    """One whose pieces are single bytes: the space before a word is a piece of the word."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *sorted(ByteLevel.alphabet())]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    for file, values in (
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}),
        ("config.json", {"model_type": "roberta"}),
    ):
        (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def trained(folder: Path) -> Any:
    del folder
    return trained_tokenizer([" ".join(WORDS)], vocabulary_size=300)


def untrimmed(folder: Path) -> Any:
    """One that counts the space before a word to the place of its first piece."""
    del folder
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        initial_alphabet=ByteLevel.alphabet(), special_tokens=special, show_progress=False
    )
    pieces.train_from_iterator([" ".join(WORDS)], trainer=trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]"
    )


TOKENIZERS = [bert, roberta, trained, untrimmed]


def aligned(words: tuple[str, ...], tokenizer: Any, *, max_tokens: int = 100) -> Aligned:
    (one,) = align([words], tokenizer=tokenizer, max_tokens=max_tokens)
    return one


@pytest.mark.parametrize("make", TOKENIZERS, ids=lambda make: make.__name__)
def test_every_word_has_one_place_and_the_pieces_after_it_are_ignored(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    tokenizer = make(tmp_path)
    one = aligned(WORDS, tokenizer)
    places = [at for at, word in enumerate(one.words) if word != -100]
    assert [one.words[at] for at in places] == [0, 1, 2, 3, 4]
    for number, (start, end) in enumerate(zip(places, [*places[1:], -1], strict=True)):
        pieces = tokenizer.decode(one.ids[start:end], clean_up_tokenization_spaces=False)
        assert pieces.replace(" ", "") == WORDS[number].lower() or pieces.strip() == WORDS[number]
    assert one.words[0] == one.words[-1] == -100


def test_places_are_those_of_the_pieces(tmp_path: Path) -> None:
    one = aligned(WORDS, bert(tmp_path))
    assert one.words == [-100, 0, 1, 2, -100, -100, 3, -100, -100, 4, -100]
    assert one.longest == (2, 3)


def test_a_space_before_a_word_belongs_to_the_word_as_in_a_text(tmp_path: Path) -> None:
    tokenizer = roberta(tmp_path)
    assert aligned(("New", "York"), tokenizer).ids == tokenizer("New York")["input_ids"]


@pytest.mark.parametrize("make", TOKENIZERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("odd", ["", "\u200d", "\ufe0f", " ", "two words", "\U0001f600"])
def test_a_word_of_odd_characters_keeps_its_place(
    odd: str, make: Callable[[Path], Any], tmp_path: Path
) -> None:
    one = aligned(("New", odd, "York"), make(tmp_path))
    assert [word for word in one.words if word != -100] == [0, 1, 2]


def test_a_long_sentence_is_cut_and_says_what_was_read(tmp_path: Path) -> None:
    tokenizer = bert(tmp_path)
    one = aligned(WORDS, tokenizer, max_tokens=6)
    assert len(one.ids) == 6 and one.ids[-1] == tokenizer.sep_token_id
    assert one.words == [-100, 0, 1, 2, -100, -100]
    assert (one.read, one.room) == (3, 4)


def test_an_empty_sentence(tmp_path: Path) -> None:
    one = aligned((), bert(tmp_path))
    assert (one.words, one.read, one.longest) == ([-100, -100], 0, (0, 0))


def test_a_window_in_the_middle_keeps_the_special_tokens(tmp_path: Path) -> None:
    tokenizer = bert(tmp_path)
    (pieces,) = to_pieces(["new york isn't !"], tokenizer=tokenizer)
    ids, segments = pieces.window(2, max_tokens=4)
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "isn", "'", "[SEP]"]
    assert segments == [0, 0, 0, 0]
