"""The rules of early exit: where each lets a row leave, and that a run does as a replay says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from plugin_trainer.early_exit.agreement import AgreementMap, first_exit, fit_agreement
from plugin_trainer.early_exit.inference import exit_early, replay
from plugin_trainer.early_exit.rules import AgreementLevel, Certificate, Entropy, Patience
from plugin_trainer.ops import halting_exit

# N blocks, B rows, T tokens, H width of a block, C classes


# Blocks of random weights know nothing of each other: a fit would find no slope.
MAP = AgreementMap((-3.0, -2.0, -1.5, -1.0, -0.5), (1.0, 1.2, 1.4, 1.6, 1.8))
RULES = {
    "agreement": AgreementLevel(MAP, 2.0),
    "entropy": Entropy(0.3),
    "patience": Patience(2),
    "lossless": Certificate(agreement_map=MAP, level=2.0),
    "learned": Certificate(),
    "learned, delta 0.5": Certificate(delta=0.5),
}


def test_a_level_leaves_where_the_score_reaches_it(logits):
    logits_NBC = logits(500, classes=3)
    agreement_map = fit_agreement(logits_NBC)
    exits, full_BC = replay(AgreementLevel(agreement_map, 1.5), logits_NBC)
    assert torch.equal(exits.block_B, first_exit(agreement_map.scores(logits_NBC), 1.5))
    assert torch.equal(full_BC, logits_NBC[-1])
    rows = torch.arange(500)
    assert torch.equal(exits.answer_BC, logits_NBC[exits.block_B - 1, rows])


def test_entropy_is_in_nats(logits):
    logits_NBC = logits(200, classes=4)
    exits, _ = replay(Entropy(0.7), logits_NBC)
    for row in range(200):
        expected = 6
        for block in range(6, 0, -1):
            p = torch.softmax(logits_NBC[block - 1, row].double(), -1).tolist()
            if -sum(x * math.log(x) for x in p) <= 0.7:
                expected = block
        assert exits.block_B[row] == expected


def test_patience_counts_blocks_that_repeat_the_one_before():
    # The answers of the blocks: 0 0 0 1 1 1, and 0 1 0 1 1 1
    answers_NB = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 1], [1, 1], [1, 1]])
    logits_NBC = nn.functional.one_hot(answers_NB, 2).float()
    assert replay(Patience(1), logits_NBC)[0].block_B.tolist() == [2, 5]
    assert replay(Patience(2), logits_NBC)[0].block_B.tolist() == [3, 6]
    assert replay(Patience(5), logits_NBC)[0].block_B.tolist() == [6, 6]


@pytest.mark.parametrize("delta", [0.0, 0.3, 0.9])
def test_the_certificate_of_learned_halting_is_that_of_the_op(logits, delta):
    logits_NBC = logits(300, classes=3)
    halting_NB = torch.randn(6, 300, generator=torch.Generator().manual_seed(3)) - 1
    exits, full_BC = replay(Certificate(delta=delta), logits_NBC, halting_NB)
    expected = halting_exit(logits_NBC, halting_NB, delta=delta)
    assert torch.equal(exits.block_B, expected.exit_block)
    assert torch.allclose(exits.answer_BC.float(), expected.log_answer, atol=1e-6)
    assert torch.allclose(full_BC.float(), expected.full_log_answer, atol=1e-6)


@pytest.mark.parametrize("level", [-1.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_lossless_agrees_with_its_own_full_run_on_every_row(logits, level, classes):
    logits_NBC = logits(3000, classes=classes)
    agreement_map = fit_agreement(logits_NBC)
    rule = Certificate(agreement_map=agreement_map, level=level)
    exits, full_BC = replay(rule, logits_NBC)
    assert torch.equal(exits.answer_BC.argmax(-1), full_BC.argmax(-1))
    by_level = first_exit(agreement_map.scores(logits_NBC), level).double().mean()
    # The halting value is near 0 or 1, so that the certificate holds where the rule leaves.
    assert exits.block_B.double().mean() - by_level < 0.25


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_lossless_holds_against_an_adversary(logits, level):
    """Whatever the blocks behind the exit say and however far they halt, the class stays."""
    generator = torch.Generator().manual_seed(5)
    logits_NBC = logits(400, classes=3)
    agreement_map = fit_agreement(logits_NBC)
    rule = Certificate(agreement_map=agreement_map, level=level)
    exits, _ = replay(rule, logits_NBC)
    for _ in range(20):
        other_NBC = 30 * torch.randn(logits_NBC.shape, generator=generator)
        for block in range(1, 6):
            kept_B = exits.block_B >= block
            other_NBC[block - 1, kept_B] = logits_NBC[block - 1, kept_B]
        again, full_BC = replay(rule, other_NBC)
        assert torch.equal(again.block_B, exits.block_B)
        left_B = exits.block_B < 6
        expected_B = exits.answer_BC.argmax(-1)
        assert torch.equal(full_BC.argmax(-1)[left_B], expected_B[left_B])


class Model(nn.Module):
    """A small BERT with a linear unit a block."""

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
        self.units = nn.ModuleList(nn.Linear(32, 3 + 1) for _ in range(6))
        self.eval()

    def unit(self, block, states_RTH, rows_R):
        del rows_R
        # A matrix product may depend on how many rows it has, in the last bit.
        both_RC = (states_RTH[:, 0, None] * self.units[block - 1].weight).sum(-1)
        return 3 * both_RC[:, :3], both_RC[:, 3]

    @torch.inference_mode()
    def all_logits(self, inputs):
        states = self.encoder(**inputs, output_hidden_states=True).hidden_states[1:]
        pairs = [self.unit(n, x_BTH, None) for n, x_BTH in enumerate(states, start=1)]
        return torch.stack([z for z, _ in pairs]), torch.stack([u for _, u in pairs])


def inputs_of(rows: int):
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, 100, (rows, 12), generator=generator)
    lengths_B1 = torch.randint(3, 13, (rows, 1), generator=generator)
    mask_BT = (torch.arange(12) < lengths_B1).long()
    return {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("rows_at_once", [None, 8])
def test_a_run_leaves_where_the_replay_says_and_answers_the_same(name, rows_at_once):
    model, inputs = Model(), inputs_of(40)
    logits_NBC, halting_NB = model.all_logits(inputs)
    rule = RULES[name]
    expected, _ = replay(rule, logits_NBC, halting_NB)
    found = exit_early(
        model.encoder, inputs, model.unit, rule, num_blocks=6, rows_at_once=rows_at_once
    )
    assert torch.equal(found.block_B, expected.block_B)
    assert torch.allclose(found.answer_BC, expected.answer_BC, atol=1e-5)
    assert len(found.block_B.unique()) > 1


@pytest.mark.parametrize("name", RULES)
def test_a_row_is_answered_alike_in_any_batch(name):
    model, inputs = Model(), inputs_of(24)
    rule = RULES[name]

    def answered(rows):
        some = {key: values[rows] for key, values in inputs.items()}
        return exit_early(model.encoder, some, model.unit, rule, num_blocks=6)

    together = answered(torch.arange(24))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    permuted = answered(order)
    assert torch.equal(permuted.block_B, together.block_B[order])
    assert torch.allclose(permuted.answer_BC, together.answer_BC[order], atol=1e-5)
    for row in range(24):
        alone = answered(torch.tensor([row]))
        assert alone.block_B.item() == together.block_B[row]
        assert torch.allclose(alone.answer_BC[0], together.answer_BC[row], atol=1e-5)
