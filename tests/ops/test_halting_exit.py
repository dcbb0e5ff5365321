from __future__ import annotations

import math

import pytest
import torch

from plugin_trainer.ops import halting_exit, halting_loss
from plugin_trainer.ops.halting.reference import may_stop

from .oracle import after_the_adversary, exit_by_published_rule

STATES = 4000


def random_states(blocks_left, *, classes, seed):
    """Answers and p of many rows, from undecided to certain."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(STATES // 5, classes, dtype=torch.float64, generator=generator) * 3
    p = torch.rand(STATES // 5, dtype=torch.float64, generator=generator) ** (2 + blocks_left / 3)
    return logits.softmax(-1), p


def stops(answer, p, blocks_left, *, delta=0.0):
    log_answer = answer.log()[:, None]
    return may_stop(log_answer, p.log(), None, blocks_left=blocks_left, delta=delta)


def random_batch(blocks=12, rows=64, classes=3, *, seed=0, halting_bias=-1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(blocks, rows, classes, generator=generator) * 3
    halting = torch.randn(blocks, rows, generator=generator) * 2 + halting_bias
    return logits, halting


@pytest.mark.parametrize(("blocks_left", "classes"), [(1, 2), (3, 3), (6, 2), (11, 5), (23, 4)])
def test_the_rule_stops_exactly_where_the_worst_case_cannot_win(blocks_left, classes):
    answer, p = random_states(blocks_left, classes=classes, seed=blocks_left)
    decided = stops(answer, p, blocks_left)
    worst = after_the_adversary(answer, p, blocks_left)
    best, runner_up = answer.topk(2, -1).indices.unbind(-1)
    margin = (worst.gather(1, best[:, None]) - worst.gather(1, runner_up[:, None])).squeeze(1)
    clear = (margin - 1e-6).abs() > 1e-9  # a margin of the slack itself may fall on either side
    assert torch.equal(decided[clear], (margin > 1e-6)[clear])
    assert 0.1 < decided.double().mean() < 0.9


@pytest.mark.parametrize("blocks_left", [1, 3, 6, 11, 23])
def test_the_published_rule_implies_this_one(blocks_left):
    answer, p = random_states(blocks_left, classes=3, seed=blocks_left)
    published = exit_by_published_rule(answer, p, blocks_left)
    # The published rule holds with equality where this one asks for 1e-6 more.
    margin = (1 - p) ** blocks_left * (
        1 + answer.topk(2).values @ torch.tensor([1.0, -1.0]).double()
    )
    decided = stops(answer, p, blocks_left)
    assert torch.all(decided[published & (margin > 1 + 1e-6)])
    assert decided.sum() >= published.sum()


@pytest.mark.parametrize("seed", range(6))
def test_at_delta_zero_the_answer_is_that_of_full_depth(seed):
    logits, halting = random_batch(seed=seed, rows=500, classes=2 + seed % 4, halting_bias=seed - 3)
    out = halting_exit(logits, halting)
    assert torch.equal(out.log_answer.argmax(-1), out.full_log_answer.argmax(-1))
    assert out.exit_block.min() < 12


def test_rows_stop_before_the_last_block_but_not_all_of_them():
    out = halting_exit(*random_batch(rows=500, halting_bias=-1.0))
    assert out.exit_block.dtype == torch.int64
    assert out.exit_block.min() >= 1 and out.exit_block.max() <= 12
    assert 1 < out.exit_block.double().mean() < 11


def test_the_answer_at_the_exit_is_the_answer_accumulated_until_there():
    logits, halting = random_batch(rows=50)
    out = halting_exit(logits, halting)
    for row, block in enumerate(out.exit_block.tolist()):
        until = halting_loss(
            logits[:block, row : row + 1],
            halting[:block, row : row + 1],
            torch.zeros(1, dtype=torch.long),
            tau=0.0,
        )
        torch.testing.assert_close(out.log_answer[row], until.log_answer[0])


def test_the_full_answer_is_that_of_the_loss():
    logits, halting = random_batch(rows=50)
    labels = torch.zeros(50, dtype=torch.long)
    full = halting_loss(logits, halting, labels, tau=0.0).log_answer
    torch.testing.assert_close(halting_exit(logits, halting).full_log_answer, full)


def test_a_larger_delta_never_stops_later():
    batch = random_batch(rows=300, halting_bias=0.0)
    blocks = [halting_exit(*batch, delta=delta).exit_block for delta in (0.0, 0.1, 0.5, 1.0)]
    for earlier, later in zip(blocks[1:], blocks, strict=False):
        assert torch.all(earlier <= later)
    assert blocks[-1].sum() < blocks[0].sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [2, 9])
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(dtype, classes):
    logits, halting = (x.to(dtype) for x in random_batch(rows=131, classes=classes))
    whole = halting_exit(logits, halting)
    order = torch.randperm(131, generator=torch.Generator().manual_seed(1))
    shuffled = halting_exit(logits[:, order], halting[:, order])
    for mine, theirs in zip(shuffled, whole, strict=True):
        assert torch.equal(mine, theirs[order])
    for start, size in ((0, 1), (5, 1), (1, 7), (3, 16), (17, 33), (130, 1)):
        rows = slice(start, start + size)
        part = halting_exit(logits[:, rows], halting[:, rows])
        for mine, theirs in zip(part, whole, strict=True):
            assert torch.equal(mine, theirs[rows]), (start, size)


def test_a_row_is_the_same_to_the_last_bit_however_many_threads_share_the_batch():
    logits, halting = random_batch(blocks=3, rows=20_011, classes=5)
    alone = halting_exit(logits, halting)
    torch.set_num_threads(2)
    try:
        shared = halting_exit(logits, halting)
    finally:
        torch.set_num_threads(1)
    for mine, theirs in zip(shared, alone, strict=True):
        assert torch.equal(mine, theirs)


def test_a_sentence_stops_when_its_last_valid_token_may():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 20, 7, 3, generator=generator) * 4
    halting = torch.randn(12, 20, generator=generator) - 1
    valid = torch.rand(20, 7, generator=generator) > 0.4
    valid[:, 0] = True
    out = halting_exit(logits, halting, valid=valid)
    per_token = halting_exit(logits, halting[..., None].expand(12, 20, 7).contiguous())
    expected = torch.where(valid, per_token.exit_block, 0).amax(-1)
    assert torch.equal(out.exit_block, expected)
    assert out.log_answer.shape == (20, 7, 3)
    agrees = out.log_answer.argmax(-1) == out.full_log_answer.argmax(-1)
    assert torch.all(agrees[valid])
    assert torch.any(out.exit_block < halting_exit(logits, halting).exit_block)


def test_padding_may_hold_nan():
    logits, halting = torch.randn(4, 2, 3, 2), torch.full((4, 2), -9.0)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    logits[:, ~valid] = math.nan
    assert halting_exit(logits, halting, valid=valid).exit_block.tolist()[1] == 1
    assert halting_exit(logits, halting).exit_block.tolist() == [4, 4]


def test_halting_probabilities_of_exactly_zero_and_one():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])[:, None].expand(3, 3, 2)
    inf = math.inf
    halting = torch.tensor([[-inf, inf, inf], [0.0, -inf, inf], [0.0, 0.0, inf]])
    out = halting_exit(logits, halting)
    assert out.exit_block.tolist() == [1, 2, 3]
    for row, block in enumerate((1, 2, 3)):
        torch.testing.assert_close(out.log_answer[row], logits[block - 1, row].log_softmax(-1))
        torch.testing.assert_close(out.full_log_answer[row], out.log_answer[row])


def test_a_row_with_nan_runs_to_the_end():
    logits, halting = random_batch(rows=3, halting_bias=-20.0)
    logits[4, 1, 0] = math.nan
    logits[0, 2, 0] = math.nan
    assert halting_exit(logits, halting).exit_block.tolist()[2] == 12


def test_an_empty_batch_has_no_exits():
    out = halting_exit(torch.zeros(3, 0, 2), torch.zeros(3, 0))
    assert out.exit_block.shape == (0,) and out.log_answer.shape == (0, 2)


@pytest.mark.parametrize("delta", [-0.1, 1.5, math.nan])
def test_a_delta_outside_of_zero_to_one_is_refused(delta):
    with pytest.raises(ValueError, match="it goes from 0"):
        halting_exit(*random_batch(), delta=delta)


def test_one_class_and_a_wrong_mask_are_refused():
    with pytest.raises(ValueError, match="1 classes"):
        halting_exit(torch.zeros(3, 2, 1), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="valid is"):
        halting_exit(*random_batch(), valid=torch.ones(3, dtype=torch.bool))
