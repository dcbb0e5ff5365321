from __future__ import annotations

import math

import pytest
import torch

from plugin_trainer.ops import ema_decay, ema_update_
from plugin_trainer.ops.ema import PreparedEma, reference

AVERAGED = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
    (torch.complex64, torch.complex64),
]
SIZES = [(0,), (1,), (63,), (64,), (65,), (), (3, 5, 7), (100_003,)]


def make(sizes, dtype, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.complex128 if dtype.is_complex else torch.float64
    return [torch.randn(size, dtype=base, generator=generator).to(dtype) for size in sizes]


def exact_update(shadow, weight, decay):
    wide = torch.complex128 if shadow.is_complex() else torch.float64
    return decay * shadow.to(wide) + (1 - decay) * weight.to(wide)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize(("dtype", "shadow_dtype"), AVERAGED)
def test_every_dtype_and_shape_is_averaged(dtype, shadow_dtype, decay):
    weights, shadows = make(SIZES, dtype), make(SIZES, shadow_dtype, seed=1)
    wanted = [exact_update(*pair, decay) for pair in zip(shadows, weights, strict=True)]
    ema_update_(shadows, weights, decay=decay)
    for shadow, want in zip(shadows, wanted, strict=True):
        assert shadow.dtype == shadow_dtype
        torch.testing.assert_close(shadow.to(want.dtype), want, rtol=1e-6, atol=1e-6)


def test_mixed_dtypes_share_a_call():
    dtypes = [pair for pair in AVERAGED for _ in range(2)]
    weights = [make([(9,)], dtype, seed=i)[0] for i, (dtype, _) in enumerate(dtypes)]
    shadows = [torch.zeros(9, dtype=shadow) for _, shadow in dtypes]
    ema_update_(shadows, weights, decay=0.75)
    for shadow, weight in zip(shadows, weights, strict=True):
        torch.testing.assert_close(shadow, 0.25 * weight.to(shadow.dtype))


def test_any_strides_are_right():
    weights = [torch.randn(4, 6).T, torch.randn(10)[::2], torch.randn(3, 1).expand(3, 4)]
    shadows = [torch.zeros(6, 4), torch.zeros(10)[1::2], torch.zeros(4, 3).T]
    ema_update_(shadows, weights, decay=0.5)
    for shadow, weight in zip(shadows, weights, strict=True):
        torch.testing.assert_close(shadow, 0.5 * weight)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integer_and_bool_tensors_are_copied(dtype):
    weight = torch.tensor([0, 1, 1, 3]).to(dtype)
    shadow = torch.zeros(4, dtype=dtype)
    ema_update_([shadow], [weight], decay=0.999)
    assert torch.equal(shadow, weight)


def test_a_large_model_in_bfloat16_is_converted_in_groups(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "off")
    converted, copy = [], torch._foreach_copy_

    def spy(targets, sources):
        converted.append(sum(target.numel() for target in targets))
        return copy(targets, sources)

    monkeypatch.setattr(torch, "_foreach_copy_", spy)
    monkeypatch.setattr(reference, "CPU_GROUP_ELEMENTS", 100)
    weights = make([(64,), (64,), (5, 50), (1,), (99,)], torch.bfloat16)
    weights.append(torch.randn(30, 20).bfloat16().T)  # cannot be cut: one group of 600
    shadows = [torch.zeros(weight.shape) for weight in weights]
    ema_update_(shadows, weights, decay=0.75)
    for shadow, weight in zip(shadows, weights, strict=True):
        torch.testing.assert_close(shadow, 0.25 * weight.float())
    assert sorted(converted)[-1] == 600 and sorted(converted)[-2] <= 100
    assert sum(converted) == sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_may_give_the_decay(dtype):
    shadow, weight = torch.zeros(3), torch.ones(3)
    ema_update_([shadow], [weight], decay=torch.tensor(0.75, dtype=dtype))
    assert torch.equal(shadow, torch.full((3,), 0.25))


def test_small_steps_are_not_lost():
    shadow, weight = torch.full((1,), 0.5), torch.ones(1, dtype=torch.bfloat16)
    for _ in range(1000):
        ema_update_([shadow], [weight], decay=0.999)
    assert shadow.item() == pytest.approx(1 - 0.5 * 0.999**1000, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_shadow_that_would_stand_still_is_refused(dtype):
    with pytest.raises(ValueError, match=r"shadow 1 is .*must be torch.float32: .* stands still"):
        ema_update_(
            [torch.zeros(2), torch.zeros(2, dtype=dtype)],
            [torch.ones(2), torch.ones(2, dtype=dtype)],
            decay=0.999,
        )


def test_tied_weights_are_updated_once():
    weight, shadow = torch.ones(4, 4), torch.zeros(4, 4)
    ema_update_([shadow, shadow], [weight, weight.detach()], decay=0.5)
    assert torch.equal(shadow, torch.full((4, 4), 0.5))


def test_a_part_of_a_tensor_is_not_taken_for_the_whole():
    flat = torch.zeros(6)
    ema_update_([flat[:2], flat[2:]], [torch.ones(2), torch.ones(4)], decay=0.5)
    assert torch.equal(flat, torch.full((6,), 0.5))


def test_weights_that_require_a_gradient_are_only_read():
    weight = torch.nn.Parameter(torch.ones(3))
    shadow = torch.zeros(3)
    ema_update_([shadow], [weight], decay=0.5)
    assert not shadow.requires_grad
    assert torch.equal(weight, torch.ones(3))


def test_what_is_not_finite_stays_so():
    shadow = torch.tensor([1.0, 1.0, math.nan])
    ema_update_([shadow], [torch.tensor([math.nan, math.inf, 1.0])], decay=0.999)
    assert shadow[0].isnan() and shadow[1] == math.inf and shadow[2].isnan()


def test_no_tensors_at_all_are_allowed():
    ema_update_([], [], decay=0.999)


SHARED = torch.ones(2)
FLAT, WEIGHTS = torch.zeros(8), torch.ones(8)
REFUSED = {
    "length": ([torch.zeros(2)], [], "1 shadows for 0 weights"),
    "shape": (
        [torch.zeros(2), torch.zeros(3)],
        [torch.ones(2), torch.ones(2)],
        r"shadow 1 has shape \(3,\)",
    ),
    "device": ([torch.zeros(2, device="meta")], [torch.ones(2)], "shadow 0 .* on meta"),
    "dtype": ([torch.zeros(2).double()], [torch.ones(2)], "shadow 0 is torch.float64"),
    "integer": ([torch.zeros(2)], [torch.ones(2).long()], "shadow 0 is torch.float32"),
    "itself": ([SHARED.detach()], [SHARED], r"weight.clone\(\)"),
    "twice": ([SHARED, SHARED], [torch.ones(2), torch.ones(2)], "shadow 1 was already given"),
    "part": (
        [FLAT[:4], FLAT[:2]],
        [WEIGHTS[:4], WEIGHTS[:2]],
        "shadow 1 was already given",
    ),
    "shadows": (
        [torch.zeros(2), FLAT[:4], FLAT[3:6]],
        [torch.ones(2), torch.ones(4), torch.ones(3)],
        "shadow 2 overlaps shadow 1",
    ),
    "weight": ([FLAT[:4], FLAT[4:6]], [torch.ones(4), FLAT[1:3]], "weight 1 overlaps shadow 0"),
    "transposed": (
        [FLAT[:6].view(2, 3).T, FLAT[5:7]],
        [torch.ones(3, 2), torch.ones(2)],
        "shadow 1 overlaps shadow 0",
    ),
    "expanded": ([torch.zeros(1).expand(3)], [torch.ones(3)], "shadow 0 .*contiguous"),
}


@pytest.mark.parametrize(("shadows", "weights", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_match_is_refused_with_its_index(shadows, weights, message):
    before = [shadow.clone() for shadow in shadows]
    with pytest.raises(ValueError, match=message):
        ema_update_(shadows, weights, decay=0.5)
    if all(shadow.device.type == "cpu" for shadow in shadows):
        for shadow, was in zip(shadows, before, strict=True):
            assert torch.equal(shadow, was)


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan, math.inf])
def test_a_decay_outside_of_zero_to_one_is_refused(decay):
    with pytest.raises(ValueError, match="it must be between 0 and 1"):
        ema_update_([torch.zeros(1)], [torch.ones(1)], decay=decay)


@pytest.mark.parametrize(
    ("updates", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (8989, 8990 / 8999), (8990, 0.999)]
)
def test_warm_up_raises_the_decay_to_its_value(updates, decay):
    assert ema_decay(updates, decay=0.999, warmup=True) == pytest.approx(decay, rel=1e-12)
    assert ema_decay(updates, decay=0.999, warmup=False) == 0.999


def test_updates_count_from_zero():
    with pytest.raises(ValueError, match="updates is -1"):
        ema_decay(-1, decay=0.999, warmup=True)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: torch.ones(3, 3).to_sparse(), "weight 1 is sparse"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "weight 1 is torch.float8_e4m3fn, which"),
        (lambda: torch.ones(3).to(torch.complex32), "weight 1 is torch.complex32, which cannot"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_averaged_is_named_before_anything_is_written(bad, message, prepared):
    weight = bad()
    shadows = [torch.zeros(3), torch.zeros(weight.shape, dtype=weight.dtype)]
    with pytest.raises(ValueError, match=message):
        if prepared:
            PreparedEma(shadows, [torch.ones(3), weight])(0.5)
        else:
            ema_update_(shadows, [torch.ones(3), weight], decay=0.5)
    assert not shadows[0].any()


@pytest.mark.parametrize("which", ["shadow", "weight"])
@pytest.mark.parametrize("offset", [0, 16])
def test_memory_that_was_given_back_is_named(which, offset):
    shadows = [torch.zeros(3), torch.zeros(20)[offset : offset + 4]]
    weights = [torch.ones(3), torch.ones(20)[offset : offset + 4]]
    update = PreparedEma(shadows, weights)
    {"shadow": shadows, "weight": weights}[which][1].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"{which} 1 has lost its memory"):
        ema_update_(shadows, weights, decay=0.5)
    with pytest.raises(ValueError, match=f"{which} 1 has lost its memory"):
        update(0.5)
    assert not shadows[0].any()


@pytest.mark.parametrize("prepared", [False, True])
def test_autograd_notices_that_an_average_has_moved(prepared):
    shadow = torch.ones(4)
    loss = (torch.ones(4, requires_grad=True) * shadow).sum()
    if prepared:
        PreparedEma([shadow], [torch.zeros(4)])(0.5)
    else:
        ema_update_([shadow], [torch.zeros(4)], decay=0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
