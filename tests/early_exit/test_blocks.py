"""An encoder is run block by block by its own loop, whatever family it is of."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModel

from plugin_trainer.early_exit.blocks import find_blocks, keep_first_blocks, run_blocks
from plugin_trainer.errors import PtrainError

# N blocks, B rows, R rows that are left, T tokens, H width of a block

DEPTH = 4
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
FAMILIES = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "electra": SIZES | {"embedding_size": 16},
    "distilbert": {
        "vocab_size": 100,
        "dim": 32,
        "n_layers": DEPTH,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
    },
    "albert": SIZES | {"embedding_size": 16},
    "deberta": SIZES | DEBERTA,
    "deberta-v2": SIZES | DEBERTA | {"position_buckets": 8, "share_att_key": True},
    "mpnet": SIZES,
    "roformer": SIZES | {"embedding_size": 32},
    "mobilebert": SIZES
    | {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "modernbert": SIZES | SPECIAL,
}
EAGER_ONLY = {"deberta", "deberta-v2", "mpnet", "roformer"}
KINDS = [
    (family, attention)
    for family in FAMILIES
    for attention in ("eager", "sdpa")
    if attention == "eager" or family not in EAGER_ONLY
]


def encoder_of(family: str, attention: str = "eager"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    return AutoModel.from_config(config, attn_implementation=attention).eval()


def batch(rows: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, 100, (rows, 9), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    for row in range(rows):
        mask_BT[row, 9 - row :] = 0
    return {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT}


class Recorder:
    """Lets each row leave after its own block, and notes the states that it is shown."""

    def __init__(self, leaves_after: list[int]) -> None:
        self.leaves_after_B = torch.tensor(leaves_after)
        self.seen: dict[tuple[int, int], torch.Tensor] = {}
        self.visited: list[int] = []

    def __call__(self, block, states_RTH, rows_R):
        self.visited.append(block)
        for row, state_TH in zip(rows_R.tolist(), states_RTH, strict=True):
            self.seen[row, block] = state_TH.clone()
        return self.leaves_after_B[rows_R] <= block


@pytest.mark.parametrize(("family", "attention"), KINDS)
@pytest.mark.parametrize("rows_at_once", [None, 2])
def test_the_states_are_those_of_the_whole_encoder(family, attention, rows_at_once):
    encoder, inputs = encoder_of(family, attention), batch()
    with torch.inference_mode():
        states_NBTH = encoder(**inputs, output_hidden_states=True).hidden_states[1:]
    recorder = Recorder([3, 1, 4, 1, 2, 4])
    run_blocks(encoder, inputs, recorder, rows_at_once=rows_at_once)
    expected = [(row, n) for row, last in enumerate([3, 1, 4, 1, 2, 4]) for n in range(1, last + 1)]
    assert sorted(recorder.seen) == expected
    for (row, block), state_TH in recorder.seen.items():
        length = int(inputs["attention_mask"][row].sum())
        valid_TH = states_NBTH[block - 1][row][:length]
        if len(state_TH) == inputs["attention_mask"].shape[1]:
            assert torch.equal(state_TH[:length], valid_TH), (row, block)
        else:  # a part is no longer than its rows, so sums over its tokens round differently
            torch.testing.assert_close(state_TH[:length], valid_TH, atol=2e-6, rtol=2e-6)
    # The encoder is as it was.
    with torch.inference_mode():
        again_NBTH = encoder(**inputs, output_hidden_states=True).hidden_states[1:]
    assert all(map(torch.equal, states_NBTH, again_NBTH))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roformer"])
def test_the_survivors_of_a_window_share_parts_no_longer_than_their_rows(family):
    encoder, inputs, visited = encoder_of(family), batch(), []
    order = inputs["attention_mask"].sum(1).argsort()  # 4, 5, ... 9 tokens
    inputs = {name: values[order] for name, values in inputs.items()}

    def visit(block, states_RTH, rows_R):
        visited.append((block, *states_RTH.shape[:2]))
        return torch.tensor([1, 3, 1, 1, 3, 4])[rows_R] <= block

    run_blocks(encoder, inputs, visit, rows_at_once=2)
    longest = {"roformer": [9] * 7}.get(family, [5, 7, 9, 8, 9, 9, 9])
    assert visited == [
        *[(1, 2, longest[0]), (1, 2, longest[1]), (1, 2, longest[2])],
        *[(2, 2, longest[3]), (2, 1, longest[4])],
        *[(3, 2, longest[3]), (3, 1, longest[5])],
        (4, 1, longest[6]),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_blocks_can_be_all_there_is(family):
    encoder, inputs = encoder_of(family), batch()
    with torch.inference_mode():
        second_BTH = encoder(**inputs, output_hidden_states=True).hidden_states[2]
    keep_first_blocks(encoder, 2)
    recorder = Recorder([2] * 6)
    run_blocks(encoder, inputs, recorder)
    assert recorder.visited == [1, 2]
    if family != "modernbert":  # its last state is behind a norm
        for row, mask_T in enumerate(inputs["attention_mask"].bool()):
            assert torch.equal(recorder.seen[row, 2][mask_T], second_BTH[row][mask_T])
    assert AutoModel.from_config(encoder.config).config.num_hidden_layers == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_no_block_runs_after_all_rows_have_left(family):
    encoder, calls = encoder_of(family), []
    for block in find_blocks(encoder):
        block.register_forward_hook(lambda *_: calls.append(1))
    recorder = Recorder([2] * 6)
    run_blocks(encoder, batch(), recorder)
    # A forward hook of a block whose rows have all left does not run: the loop ends within it.
    assert recorder.visited == [1, 2]
    assert len(calls) == 1


@pytest.mark.parametrize("rows", [1, 6])
def test_a_failure_leaves_the_encoder_as_it_was(rows):
    encoder = encoder_of("bert")

    def fail(block, states_RTH, rows_R):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_blocks(encoder, batch(rows), fail)
    assert all("forward" not in vars(block) for block in find_blocks(encoder))


def test_a_block_whose_arguments_have_no_names_is_refused():
    """Behind a bare wrapper nobody could tell which argument is the mask."""
    encoder = encoder_of("bert")
    block = next(iter(find_blocks(encoder)))
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(PtrainError, match="its blocks take arguments without names"):
        run_blocks(encoder, batch(), Recorder([4] * 6))
    block.forward = wrapper = functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs))
    run_blocks(encoder, batch(), Recorder([4] * 6))
    assert block.forward is wrapper


def test_a_single_row_is_never_gathered():
    encoder, seen = encoder_of("bert"), []

    def visit(block, states_RTH, rows_R):
        seen.append(states_RTH.data_ptr())
        return torch.zeros(1, dtype=torch.bool)

    given = []
    for block in find_blocks(encoder):
        block.register_forward_pre_hook(lambda _, args: given.append(args[0].data_ptr()))
    run_blocks(encoder, batch(1), visit)
    assert seen[:-1] == given[1:]


@pytest.mark.parametrize(
    ("family", "sizes", "reason"),
    [
        (
            "squeezebert",
            SIZES | {"embedding_size": 32},
            "its blocks keep the tokens in the last",
        ),
        (
            "funnel",
            {"vocab_size": 100, "architectures": ["FunnelModel"]},
            "its blocks change the",
        ),
        ("deberta-v2", SIZES | DEBERTA | {"conv_kernel_size": 3}, "a convolution reads the states"),
    ],
)
def test_an_encoder_that_cannot_be_run_block_by_block_is_refused(family, sizes, reason):
    encoder = AutoModel.from_config(AutoConfig.for_model(family, **sizes))
    with pytest.raises(PtrainError, match=f"a {family} encoder cannot be run .*: {reason}"):
        find_blocks(encoder)
