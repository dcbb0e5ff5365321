"""A sentence leaves when all of its valid tokens may, and padding never matters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from plugin_trainer.early_exit.agreement import (
    AgreementMap,
    at_block,
    differs_from_last,
    first_exit,
    fit_agreement,
)
from plugin_trainer.early_exit.fitting import BlockAnswers, fit, join
from plugin_trainer.early_exit.inference import exit_early, replay
from plugin_trainer.early_exit.rules import AgreementLevel, Certificate, Entropy, Patience
from plugin_trainer.ops import halting_exit

# N blocks, B sentences, T tokens, H width of a block, C classes

MAP = AgreementMap((-3.0, -2.0, -1.5, -1.0, -0.5), (1.0, 1.2, 1.4, 1.6, 1.8))
RULES = {
    "agreement": AgreementLevel(MAP, 2.0),
    "entropy": Entropy(0.3),
    "patience": Patience(2),
    "lossless": Certificate(agreement_map=MAP, level=2.0),
    "learned": Certificate(),
}


@pytest.fixture
def sentences(logits):
    """Makes logits [N, B, T, C] and which tokens are valid; the first sentence has none."""

    def make(count: int = 300, *, tokens: int = 5, seed: int = 0):
        logits_NBTC = logits(count * tokens, classes=3, seed=seed).view(6, count, tokens, 3)
        generator = torch.Generator().manual_seed(seed)
        valid_BT = torch.rand(count, tokens, generator=generator) < 0.6
        valid_BT[0] = False
        return logits_NBTC, valid_BT

    return make


def test_the_score_of_a_sentence_is_that_of_its_least_sure_valid_token(sentences):
    logits_NBTC, valid_BT = sentences()
    scores_NB = MAP.scores(logits_NBTC, valid_BT)
    for block in range(1, 6):
        for row in range(300):
            tokens = [
                MAP.score(block, logits_NBTC[block - 1, row, at][None]).item()
                for at in range(5)
                if valid_BT[row, at]
            ]
            assert scores_NB[block - 1, row].item() == min(tokens, default=torch.inf)


def test_a_sentence_disagrees_if_any_valid_token_does(sentences):
    logits_NBTC, valid_BT = sentences()
    block_B = torch.randint(1, 7, (300,), generator=torch.Generator().manual_seed(1))
    found_B = at_block(differs_from_last(logits_NBTC, valid_BT), block_B)
    for row, block in enumerate(block_B.tolist()):
        answers_T = logits_NBTC[block - 1, row].argmax(-1)
        last_T = logits_NBTC[-1, row].argmax(-1)
        assert found_B[row] == any(
            valid_BT[row, at] and answers_T[at] != last_T[at] for at in range(5)
        )
    assert 0 < found_B.sum() < 300


@pytest.mark.parametrize("name", RULES)
def test_padding_never_matters(sentences, name):
    logits_NBTC, valid_BT = sentences()
    halting_NB = torch.randn(6, 300, generator=torch.Generator().manual_seed(3)) - 1
    exits, full_BTC = replay(RULES[name], logits_NBTC, halting_NB, valid_BT)
    # Whatever stands where nothing counts, numbers that are none among it.
    other_NBTC = logits_NBTC.clone()
    other_NBTC[:, ~valid_BT] = torch.nan
    other_NBTC = torch.cat([other_NBTC, torch.full_like(other_NBTC[:, :, :2], 50.0)], 2)
    longer_BT = torch.cat([valid_BT, torch.zeros(300, 2, dtype=torch.bool)], 1)
    again, full_again_BTC = replay(RULES[name], other_NBTC, halting_NB, longer_BT)
    assert torch.equal(again.block_B, exits.block_B)
    assert torch.equal(again.answer_BC[longer_BT], exits.answer_BC[valid_BT])
    assert torch.equal(full_again_BTC[longer_BT], full_BTC[valid_BT])
    assert len(exits.block_B.unique()) > 2


@pytest.mark.parametrize("name", RULES)
def test_a_sentence_of_one_token_leaves_as_a_row_does(logits, name):
    logits_NBC = logits(500, classes=3)
    halting_NB = torch.randn(6, 500, generator=torch.Generator().manual_seed(3)) - 1
    rows, full_BC = replay(RULES[name], logits_NBC, halting_NB)
    sentences, full_BTC = replay(RULES[name], logits_NBC.unsqueeze(2), halting_NB)
    assert torch.equal(sentences.block_B, rows.block_B)
    assert torch.equal(sentences.answer_BC.squeeze(1), rows.answer_BC)
    assert torch.equal(full_BTC.squeeze(1), full_BC)


@pytest.mark.parametrize("name", ["agreement", "entropy", "lossless"])
def test_a_sentence_without_a_valid_token_leaves_at_once(sentences, name):
    logits_NBTC, valid_BT = sentences(seed=4)
    exits, _ = replay(RULES[name], logits_NBTC, None, valid_BT)
    assert exits.block_B[0] == 1
    everything = AgreementLevel(MAP, 1e300)
    assert replay(everything, logits_NBTC, None, valid_BT)[0].block_B[:2].tolist() == [1, 6]


def test_the_certificate_of_learned_halting_is_that_of_the_op(sentences):
    logits_NBTC, valid_BT = sentences()
    halting_NB = 3 * torch.randn(6, 300, generator=torch.Generator().manual_seed(3)) - 2
    exits, full_BTC = replay(Certificate(), logits_NBTC, halting_NB, valid_BT)
    expected = halting_exit(logits_NBTC, halting_NB, valid=valid_BT, delta=0.0)
    assert torch.equal(exits.block_B, expected.exit_block)
    assert torch.allclose(full_BTC.float()[valid_BT], expected.full_log_answer[valid_BT], atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_lossless_holds_against_an_adversary_for_every_valid_token(sentences, level):
    """Whatever the blocks behind the exit say and however far they halt, the tags stay."""
    logits_NBTC, valid_BT = sentences(200)
    rule = Certificate(agreement_map=fit_agreement(logits_NBTC[:, valid_BT]), level=level)
    exits, _ = replay(rule, logits_NBTC, None, valid_BT)
    assert len(exits.block_B.unique()) > 2
    tags_BT = exits.answer_BC.argmax(-1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        other_NBTC = 30 * torch.randn(logits_NBTC.shape, generator=generator)
        for block in range(1, 6):
            kept_B = exits.block_B >= block
            other_NBTC[block - 1, kept_B] = logits_NBTC[block - 1, kept_B]
        again, full_BTC = replay(rule, other_NBTC, None, valid_BT)
        assert torch.equal(again.block_B, exits.block_B)
        sure_BT = valid_BT & (exits.block_B < 6)[:, None]
        assert torch.equal(full_BTC.argmax(-1)[sure_BT], tags_BT[sure_BT])


# ----------------------------------------------------------------------------------- calibration


def test_the_map_is_fitted_on_tokens_and_sentences_are_counted(sentences):
    logits_NBTC, valid_BT = sentences(600)
    answers = BlockAnswers(logits_NBTC.double(), valid_BT)
    calibration, refused = fit(answers, precision="fp32", rows_sha256="", promises=(0.02, 0.05))
    assert not refused
    assert calibration.agreement_map == fit_agreement(logits_NBTC.double()[:, valid_BT])
    assert calibration.rows == 600
    for item in calibration.certified:
        scores_NB = calibration.agreement_map.scores(logits_NBTC.double(), valid_BT)
        block_B = first_exit(scores_NB, item.level)
        wrong = int(at_block(differs_from_last(logits_NBTC, valid_BT), block_B).sum())
        assert (item.rows, item.disagreeing) == (600, wrong)
        assert item.mean_block < 6


def test_apart_fits_on_a_third_of_the_sentences(sentences):
    logits_NBTC, valid_BT = sentences(600)
    answers = BlockAnswers(logits_NBTC.double(), valid_BT)
    calibration, _ = fit(answers, precision="fp32", rows_sha256="", promises=(0.05,), apart=True)
    third = answers.rows(torch.arange(600) % 3 == 0)
    assert calibration.agreement_map == third.fitted()
    assert (calibration.rows, calibration.certified[0].rows) == (600, 400)


def test_batches_of_other_lengths_are_joined(sentences):
    logits_NBTC, valid_BT = sentences(40)
    valid_BT[:10, 3:] = False
    parts = [
        BlockAnswers(logits_NBTC[:, :10, :3], valid_BT[:10, :3]),
        BlockAnswers(logits_NBTC[:, 10:], valid_BT[10:]),
    ]
    joined, whole = join(parts), BlockAnswers(logits_NBTC, valid_BT)
    assert torch.equal(joined.valid_BT, valid_BT)
    assert joined.fitted() == whole.fitted()
    assert torch.equal(joined.scores(MAP), whole.scores(MAP))
    assert torch.equal(joined.differs(), whole.differs())


# -------------------------------------------------------------------------------- with an encoder


class Tagger(nn.Module):
    """A small BERT with a linear unit a block that answers every token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.units = nn.ModuleList(nn.Linear(32, 3) for _ in range(6))
        self.eval()

    def unit(self, block, states_RTH, rows_R):
        del rows_R
        return 8 * self.units[block - 1](states_RTH), None


@pytest.mark.parametrize("name", ["agreement", "entropy", "patience", "lossless"])
def test_a_run_leaves_where_the_replay_says_in_any_batch(name):
    model = Tagger()
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, 100, (24, 6), generator=generator)
    mask_BT = (torch.arange(6) < torch.randint(2, 7, (24, 1), generator=generator)).long()
    inputs = {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT}
    valid_BT = mask_BT.bool() & (ids_BT % 3 > 0)

    def answered(rows):
        some = {key: values[rows] for key, values in inputs.items()}
        valid = valid_BT[rows]
        return exit_early(
            model.encoder, some, model.unit, RULES[name], num_blocks=6, valid_BT=valid
        )

    with torch.inference_mode():
        states = model.encoder(**inputs, output_hidden_states=True).hidden_states[1:]
        logits_NBTC = torch.stack(
            [model.unit(n, states_BTH, None)[0] for n, states_BTH in enumerate(states, start=1)]
        )
    expected, _ = replay(RULES[name], logits_NBTC, None, valid_BT)
    assert len(expected.block_B.unique()) > 2
    order = torch.randperm(24, generator=generator)
    for rows in (torch.arange(24), order, *torch.arange(24)[:, None]):
        found = answered(rows)
        assert torch.equal(found.block_B, expected.block_B[rows])
        valid = valid_BT[rows]
        assert torch.allclose(found.answer_BC[valid], expected.answer_BC[rows][valid], atol=1e-5)
