"""The compiled moving average: every instruction set, layout and way to call it."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from plugin_trainer.ops import ema_update_, library
from plugin_trainer.ops.ema import PreparedEma, native, reference

if library.status().compiled is None:
    pytest.skip(library.status().reason, allow_module_level=True)

PAIRS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
]
SIZES = [0, 1, 3, 63, 64, 65, 255, 256, 40_000, 1_000]


@pytest.fixture(autouse=True)
def best_isa():
    best = torch.ops.ptrain.isa()
    yield
    torch.ops.ptrain.use_isa(best)


def instruction_sets():
    best = torch.ops.ptrain.isa()
    found = [
        name for name in ("baseline", "avx2", "avx512") if torch.ops.ptrain.use_isa(name) == name
    ]
    torch.ops.ptrain.use_isa(best)
    return found


def bits(dtype, size, *, seed):
    """Any values of the dtype: subnormals, infinities and NaN among the 16-bit ones."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.itemsize == 2:
        some = torch.randint(-(2**15), 2**15, (size,), generator=generator, dtype=torch.int16)
        return some.view(dtype)
    return torch.randn(size, dtype=dtype, generator=generator)


def model(*, seed=0):
    """Shadows and weights of every dtype and size, the large ones cut among threads."""
    weights = [bits(dtype, size, seed=seed + size) for dtype, _ in PAIRS for size in SIZES]
    shadows = [
        torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed + 1))
        for _, dtype in PAIRS
        for size in SIZES
    ]
    return shadows, weights


def same_bits(one, other):
    return all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("decay", [0.25, 0.999])
def test_neither_instruction_sets_nor_threads_change_a_bit(isa, decay):
    wanted, weights = model()
    torch.ops.ptrain.use_isa("baseline")
    torch.ops.ptrain.ema_update_(wanted, weights, decay)
    assert torch.ops.ptrain.use_isa(isa) == isa
    for threads in (1, 2):
        torch.set_num_threads(threads)
        shadows, _ = model()
        torch.ops.ptrain.ema_update_(shadows, weights, decay)
        assert same_bits(shadows, wanted)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.9999])
def test_it_agrees_with_the_reference_whatever_the_bits(isa, decay):
    torch.ops.ptrain.use_isa(isa)
    shadows, weights = model()
    wanted = [shadow.clone() for shadow in shadows]
    reference.ema_update_(reference.grouped(list(zip(wanted, weights, strict=True))), decay=decay)
    torch.ops.ptrain.ema_update_(shadows, weights, decay)
    for shadow, want in zip(shadows, wanted, strict=True):
        torch.testing.assert_close(shadow, want, equal_nan=True, rtol=2e-6, atol=1e-6)


def many_layouts():
    base = torch.arange(240.0)
    return {
        "channels_last": base.view(2, 4, 5, 6).to(memory_format=torch.channels_last),
        "transposed": base.view(40, 6).T,
        "permuted": base.view(4, 6, 10).permute(2, 0, 1),
        "every second": base[::2],
        "columns": base.view(20, 12)[:, 3:7],
        "expanded": base[:12].view(12, 1).expand(12, 5),
        "scalar": base[7],
        "one column": base.view(240, 1)[:, :1],
        "empty": base.view(20, 12)[:, :0],
        "into a buffer": base[3:203],
        "seven dimensions": base.view(2, 2, 2, 2, 3, 5, 1).permute(6, 0, 2, 4, 1, 5, 3),
    }


@pytest.mark.parametrize("dtype", [*(pair[0] for pair in PAIRS), torch.int64, torch.uint8])
@pytest.mark.parametrize("shadow_is", ["like the weight", "contiguous", "transposed"])
def test_any_layout_is_averaged_in_place(dtype, shadow_is):
    weights = [weight.to(dtype) for weight in many_layouts().values()]
    shadow_dtype = torch.float32 if dtype.itemsize == 2 else dtype
    shadows = {
        "like the weight": lambda w: torch.empty_like(w, dtype=shadow_dtype).zero_(),
        "contiguous": lambda w: torch.zeros(w.shape, dtype=shadow_dtype),
        "transposed": lambda w: torch.zeros(w.shape[::-1], dtype=shadow_dtype).permute(
            tuple(range(w.dim()))[::-1]
        ),
    }[shadow_is]
    shadows = [shadows(weight) for weight in weights]
    prepared = [shadow.clone() for shadow in shadows]
    torch.ops.ptrain.ema_update_(shadows, weights, 0.75)
    PreparedEma(prepared, weights)(0.75)
    for shadow, other, weight in zip(shadows, prepared, weights, strict=True):
        want = weight if not dtype.is_floating_point else 0.25 * weight.to(shadow_dtype)
        assert torch.equal(shadow, want)
        assert torch.equal(other, want)


def test_between_the_elements_of_a_view_nothing_is_written():
    flat = torch.full((20,), 5.0)
    torch.ops.ptrain.ema_update_([flat[1:19:3]], [torch.ones(6)], 0.5)
    assert torch.equal(flat[1:19:3], torch.full((6,), 3.0))
    flat[1:19:3] = 5.0
    assert torch.equal(flat, torch.full((20,), 5.0))


def test_a_large_tensor_in_another_layout_is_shared_among_threads():
    torch.set_num_threads(2)
    weight, shadow = torch.randn(300, 500).T, torch.zeros(500, 300)
    torch.ops.ptrain.ema_update_([shadow], [weight], 0.75)
    assert torch.equal(shadow, 0.25 * weight)


@pytest.mark.parametrize("count", [3, 2000])
def test_a_plan_follows_the_memory_of_its_tensors(count):
    torch.set_num_threads(2)
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(count)]
    shadows = [torch.zeros(4) for _ in range(count)]
    update = PreparedEma(shadows, weights)
    update(0.5)
    for weight in weights:
        weight.data = torch.full((4,), 3.0)
    shadows[-1].data = torch.ones(4)
    update(0.5)
    assert all(torch.equal(shadow, torch.full((4,), 1.75)) for shadow in shadows[:-1])
    assert torch.equal(shadows[-1], torch.full((4,), 2.0))


def test_a_plan_takes_another_layout_of_the_same_shape():
    weight = torch.nn.Parameter(torch.randn(3, 5))
    shadow = torch.zeros(3, 5)
    update = PreparedEma([shadow], [weight])
    weight.data = torch.randn(5, 3).T
    update(0.75)
    assert torch.equal(shadow, 0.25 * weight)


CHANGES = {
    "shorter": (torch.ones(3), r"shadow 1 has shape \(4,\) .* its weight has shape \(3,\)"),
    "another dtype": (torch.ones(4).double(), "shadow 1 is torch.float32 for a torch.float64"),
    "more dimensions": (torch.ones(2, 2), "shadow 1 has shape"),
    "the shadow itself": (None, "shadow 1 shares its memory"),
}


@pytest.mark.parametrize(("to", "message"), CHANGES.values(), ids=CHANGES)
def test_a_tensor_that_no_longer_fits_is_an_error_before_anything_is_written(to, message):
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    shadows = [torch.zeros(4) for _ in range(3)]
    update = PreparedEma(shadows, weights)
    update(0.5)
    weights[1].data = shadows[1] if to is None else to
    with pytest.raises(ValueError, match=message):
        update(0.5)
    assert all(torch.equal(shadow, torch.full((4,), 0.5)) for shadow in shadows)


def test_the_plan_itself_refuses_what_has_changed_and_names_it():
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    shadows = [torch.zeros(4), torch.zeros(4)]
    plan = native.Plan(shadows, weights)
    weights[1].data = torch.ones(4, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"weight 1 has .* another .*dtype"):
        plan.update(0.5)
    assert not shadows[0].any()
    weights[1].data = torch.ones(4)
    shadows[0].data = shadows[1].data  # one memory for two weights
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shadow 1 was already given"):
            plan.update(0.5)
    assert not shadows[1].any()


def test_memory_that_was_given_back_is_not_touched():
    weight, shadow = torch.ones(4), torch.zeros(4)
    plan = native.Plan([shadow], [weight])
    weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="weight 0 has lost its memory"):
        plan.update(0.5)
    with pytest.raises(RuntimeError, match="weight 0 has no memory"):
        torch.ops.ptrain.ema_update_([shadow], [weight], 0.5)
    assert not shadow.any()


def test_weights_that_were_tied_and_no_longer_are():
    one, other = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.zeros(4))
    other.data = one.data
    first, second = torch.zeros(4), torch.zeros(4)
    update = PreparedEma([first, first, second], [one, one, other])
    update(0.5)
    assert torch.equal(first, torch.full((4,), 0.5)) and torch.equal(second, first)
    other.data = torch.full((4,), 3.0)
    update(0.5)
    assert torch.equal(first, torch.full((4,), 0.75))
    assert torch.equal(second, torch.full((4,), 1.75))


def test_copies_and_pickles_average_their_own_tensors():
    update = PreparedEma([torch.zeros(3)], [torch.ones(3)])
    update(0.5)
    for again in (copy.deepcopy(update), pickle.loads(pickle.dumps(update))):
        again(0.5)
        assert torch.equal(again._shadows[0], torch.full((3,), 0.75))
    assert torch.equal(update._shadows[0], torch.full((3,), 0.5))


def test_a_plan_ends_with_its_owner():
    update = PreparedEma([torch.zeros(3)], [torch.ones(3)])
    number = update._plan._number
    torch.ops.ptrain.ema_update_plan_(number, 0.5)
    del update
    gc.collect()
    with pytest.raises(RuntimeError, match=f"no average's plan {number}"):
        torch.ops.ptrain.ema_update_plan_(number, 0.5)
    torch.ops.ptrain.ema_free_plan(number)  # once more does no harm


def test_what_the_kernels_do_not_take_is_averaged_beside_it():
    weights = [torch.ones(3), torch.ones(3, dtype=torch.complex64), torch._neg_view(torch.ones(3))]
    weights += [torch.ones(3, device="meta")]
    shadows = [torch.zeros(w.shape, dtype=w.dtype, device=w.device) for w in weights]
    update = PreparedEma(shadows, weights)
    assert update._plan is not None and len(update._groups) == 2  # nothing of meta
    update(0.5)
    ema_update_(shadows, weights, decay=0.5)
    assert torch.equal(shadows[0], torch.full((3,), 0.75))
    assert torch.equal(shadows[1], torch.full((3,), 0.75, dtype=torch.complex64))
    assert torch.equal(shadows[2], torch.full((3,), -0.75))


def test_the_kernels_are_really_called(monkeypatch):
    monkeypatch.setattr(reference, "ema_update_", None)
    weights, shadows = [torch.ones(3), torch.ones(2).bfloat16()], [torch.zeros(3), torch.zeros(2)]
    ema_update_(shadows, weights, decay=0.5)
    PreparedEma(shadows, weights)(torch.tensor(0.5, dtype=torch.float64))
    assert torch.equal(shadows[1], torch.full((2,), 0.75))


REFUSED = {
    "count": ([torch.zeros(2)], [], "1 shadows for 0 weights"),
    "shape": ([torch.zeros(2)], [torch.ones(3)], r"shadow 0 has shape \(2,\)"),
    "dtype": (
        [torch.zeros(2).bfloat16()],
        [torch.ones(2).bfloat16()],
        "shadow 0 is torch.bfloat16",
    ),
    "complex": ([torch.zeros(2).cfloat()], [torch.ones(2).cfloat()], "shadow 0 is another type"),
    "itself": ([torch.zeros(4)[:2]], [None], "shadow 0 shares its memory with its weight"),
    "expanded": ([torch.zeros(1).expand(2)], [torch.ones(2)], "shadow 0 has elements that share"),
}


@pytest.mark.parametrize(("shadows", "weights", "message"), REFUSED.values(), ids=REFUSED)
def test_the_op_itself_checks_what_would_corrupt_memory(shadows, weights, message):
    weights = [shadows[0] if weight is None else weight for weight in weights]
    good, one = torch.zeros(2), torch.ones(2)
    for op in (
        lambda: torch.ops.ptrain.ema_update_([*shadows, good], [*weights, one], 0.5),
        lambda: torch.ops.ptrain.ema_plan([*shadows, good], [*weights, one]),
    ):
        with pytest.raises(
            RuntimeError, match=message.replace("1 shadows for 0", "2 shadows for 1")
        ):
            op()
    assert not good.any()


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_the_op_itself_checks_the_decay(decay):
    shadow = torch.zeros(2)
    with pytest.raises(RuntimeError, match="must be between 0 and 1"):
        torch.ops.ptrain.ema_update_([shadow], [torch.ones(2)], decay)
    plan = native.Plan([shadow], [torch.ones(2)])
    with pytest.raises(RuntimeError, match="must be between 0 and 1"):
        plan.update(decay)
    assert not shadow.any()


def test_opcheck():
    shadows = [torch.randn(3), torch.randn(4, 2), torch.zeros(2, dtype=torch.int64)]
    weights = [torch.randn(3).bfloat16(), torch.randn(4, 2), torch.ones(2, dtype=torch.int64)]
    torch.library.opcheck(torch.ops.ptrain.ema_update_.default, (shadows, weights, 0.9))


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
@pytest.mark.parametrize("decay", [0.75, torch.tensor(0.75, dtype=torch.float64)])
def test_a_compiled_function_averages(backend, decay):
    @torch.compile(fullgraph=True, backend=backend)
    def step(shadows, weights, decay):
        doubled = [weight * 2 for weight in weights]
        ema_update_(shadows, doubled, decay=decay)
        return shadows[0] + 1

    shadows = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(4), torch.zeros(2).cfloat()]
    weights = [torch.ones(3), torch.ones(2, 2), torch.ones(4).bfloat16(), torch.ones(2).cfloat()]
    out = step(shadows, weights, decay)
    assert torch.equal(out, torch.full((3,), 1.5))
    for shadow in shadows:
        torch.testing.assert_close(shadow, torch.full_like(shadow, 0.5))


def test_tied_weights_are_averaged_once_in_a_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(shadows, weights):
        ema_update_(shadows, weights, decay=0.5)

    shadow, weight = torch.zeros(3), torch.ones(3)
    step([shadow, shadow], [weight, weight])
    assert torch.equal(shadow, torch.full((3,), 0.5))


def test_a_decay_that_changes_as_a_tensor_is_not_compiled_again():
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(shadow, weight, decay):
        ema_update_([shadow], [weight], decay=decay)

    shadow, weight, want = torch.zeros(3), torch.ones(3), torch.zeros(3)
    frames = []
    for decay in (0.1, 0.2, 0.3, 0.7, 0.8):
        step(shadow, weight, torch.tensor(decay, dtype=torch.float64))
        want = decay * want + (1 - decay)
        torch.testing.assert_close(shadow, want)
        frames.append(counter.frame_count)
    assert frames == frames[:1] * 5


def test_a_shape_that_does_not_fit_is_refused_while_compiling():
    @torch.compile(fullgraph=True, backend="eager")
    def step(shadow, weight):
        torch.ops.ptrain.ema_update_([shadow], [weight], 0.5)

    with pytest.raises(Exception, match="shadow 0 differs from its weight"):
        step(torch.zeros(3), torch.ones(4))


def test_the_probe_updates_in_place():
    x, y = torch.full((100_003,), 2.0), torch.full((100_003,), 3.0)
    torch.ops.ptrain.probe_update(x, y)
    assert torch.equal(x, torch.full((100_003,), 4.0))
    with pytest.raises(RuntimeError, match="differ in size"):
        torch.ops.ptrain.probe_update(x, y[:-1].contiguous())
