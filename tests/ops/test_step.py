"""The step on lists of tensors: arithmetic, layouts, threads, instruction sets, errors, compile."""

from __future__ import annotations

import math

import pytest
import torch

from plugin_trainer.ops import fused_step_, grad_norm, library
from plugin_trainer.ops.step import reference

needs_kernels = pytest.mark.skipif(
    library.find() is None, reason="there are no compiled kernels here"
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [(0,), (1,), (), (63,), (64,), (65,), (3, 5, 7), (70_001,)]
# lr, beta1, beta2, eps, weight decay, decay of the average
HYPER = [[1e-2, 0.9, 0.999, 1e-8, 0.1, 0.99], [3e-3, 0.0, 0.9, 1e-6, 0.0, 0.2]]


def state_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def make(dtype, *, sizes=SIZES, seed=0):
    """The arguments of one step, in the middle of a training."""
    generator = torch.Generator().manual_seed(seed)

    def some(scale, kind):
        return [(torch.randn(s, generator=generator) * scale).to(kind) for s in sizes]

    wide = state_dtype(dtype)
    return {
        "params": some(1.0, dtype),
        "grads": some(0.1, dtype),
        "exp_avgs": some(0.01, wide),
        "exp_avg_sqs": [x.square() for x in some(0.1, wide)],
        "steps": [torch.tensor(float(7 + i % 2)) for i in range(len(sizes))],
        "shadows": some(1.0, wide),
        "groups": [i % 2 for i in range(len(sizes))],
        "hyper": torch.tensor(HYPER, dtype=torch.float64),
    }


def copied(arguments):
    return {
        name: [x.clone() if isinstance(x, torch.Tensor) else x for x in value]
        if isinstance(value, list)
        else value.clone()
        for name, value in arguments.items()
    }


def tensors(arguments):
    return [
        x
        for name in ("params", "exp_avgs", "exp_avg_sqs", "steps", "shadows", "grads")
        for x in arguments[name]
    ]


def same_bits(one, other):
    return all(
        torch.equal(a.nan_to_num(7e4), b.nan_to_num(7e4)) for a, b in zip(one, other, strict=True)
    )


def in_float64(arguments, *, clip):
    """The formulas of the docstring, one tensor at a time, in double."""
    made = {name: [] for name in ("params", "exp_avgs", "exp_avg_sqs", "shadows")}
    for i, param in enumerate(arguments["params"]):
        lr, beta1, beta2, eps, weight_decay, decay = HYPER[arguments["groups"][i]]
        t = arguments["steps"][i].item() + 1
        g = arguments["grads"][i].double() * clip
        m = beta1 * arguments["exp_avgs"][i].double() + (1 - beta1) * g
        v = beta2 * arguments["exp_avg_sqs"][i].double() + (1 - beta2) * g * g
        update = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        w = param.double() * (1 - lr * weight_decay) - lr * update
        made["params"].append(w)
        made["exp_avgs"].append(m)
        made["exp_avg_sqs"].append(v)
        stored = w.to(param.dtype).double()
        made["shadows"].append(decay * arguments["shadows"][i].double() + (1 - decay) * stored)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_it_is_the_formula(dtype, max_norm, every_isa):
    for use in every_isa:
        use()
        arguments = make(dtype)
        norm = grad_norm(arguments["grads"])
        clip = min(1.0, max_norm / (norm.item() + 1e-6)) if max_norm else 1.0
        wanted = in_float64(arguments, clip=clip)
        grads = [g.clone() for g in arguments["grads"]]
        counts = [step.item() for step in arguments["steps"]]
        fused_step_(**arguments, norm=norm, max_norm=max_norm)
        # Half an ulp of what is stored, and a few of the arithmetic. A rounded weight that falls
        # just beside a tie moves its average by a whole ulp of 16 bits.
        few = 16 * torch.finfo(state_dtype(dtype)).eps
        stored = max(few, 0.51 * torch.finfo(dtype).eps)
        for name, rtol in (
            ("params", stored), ("exp_avgs", few), ("exp_avg_sqs", few), ("shadows", 2 * stored),
        ):  # fmt: skip
            for got, want in zip(arguments[name], wanted[name], strict=True):
                torch.testing.assert_close(got.double(), want, rtol=rtol, atol=rtol)
        assert [step.item() for step in arguments["steps"]] == [count + 1 for count in counts]
        assert same_bits(grads, arguments["grads"])


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_same_arithmetic(dtype):
    arguments = make(dtype)
    norm = grad_norm(arguments["grads"])
    other = copied(arguments)
    fused_step_(**arguments, norm=norm, max_norm=0.5)
    reference.fused_step_(**other, norm=norm, max_norm=0.5, zero_grads=False)
    # The compiler joins multiplications and additions, torch rounds between them.
    few = 8 * torch.finfo(state_dtype(dtype)).eps
    ulp = torch.finfo(dtype).eps
    for name in ("params", "exp_avgs", "exp_avg_sqs", "shadows"):
        rtol = few if name.startswith("exp") else max(few, ulp)
        for one, two in zip(arguments[name], other[name], strict=True):
            torch.testing.assert_close(one, two, rtol=rtol, atol=rtol)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_rounded_as_torch_rounds(dtype, every_isa):
    # Without a learning rate a weight is only read and written; halfway values come from the decay.
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for use in every_isa:
        use()
        for keep in (1.0, 1.5, 0.75, 1e-3, 3.0):
            weight = bits.view(dtype).clone()
            wanted = (weight.float() * torch.tensor(keep)).to(dtype)
            zeros = [torch.zeros(weight.shape) for _ in range(2)]
            hyper = torch.tensor([[1.0 - keep, 0.9, 0.99, 1.0, 1.0, 0.0]], dtype=torch.float64)
            hyper[0, 0] = 1.0 if keep == 1.0 else 1.0 - keep
            hyper[0, 4] = 0.0 if keep == 1.0 else 1.0
            fused_step_(
                [weight], [torch.zeros_like(weight)], [zeros[0]], [zeros[1]], [torch.zeros(())],
                hyper=hyper,
            )  # fmt: skip
            nan = wanted.isnan()
            assert torch.equal(weight.isnan(), nan)
            assert torch.equal(weight[~nan], wanted[~nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            arguments = make(dtype, sizes=[(70_001,), (255,), (33,), (3, 50_000), (64,)])
            fused_step_(**arguments, zero_grads=True)
            results.append(tensors(arguments))
        finally:
            torch.set_num_threads(threads)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_zeroed_in_the_same_pass(dtype):
    arguments, plain = make(dtype), make(dtype)
    fused_step_(**arguments, zero_grads=True)
    fused_step_(**plain)
    assert not any(grad.any() for grad in arguments["grads"])
    assert same_bits(tensors(arguments)[: -len(SIZES)], tensors(plain)[: -len(SIZES)])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("zero_grads", [False, True])
def test_a_norm_that_is_not_finite_leaves_every_bit(bad, zero_grads):
    arguments = make(torch.float32)
    arguments["grads"][3][5] = bad
    before = [x.clone() for x in tensors(arguments)]
    norm = grad_norm(arguments["grads"])
    fused_step_(**arguments, norm=norm, max_norm=1.0, zero_grads=zero_grads)
    after = tensors(arguments)
    assert same_bits(before[: -len(SIZES)], after[: -len(SIZES)])
    if zero_grads:
        assert not any(grad.any() for grad in arguments["grads"])
    else:
        assert same_bits(before, after)


def test_the_masked_way_of_devices_gives_the_same(monkeypatch):
    # What runs where the host must not look at the norm.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for bad in (False, True):
        arguments, other = make(torch.float32), make(torch.float32)
        for some in (arguments, other):
            if bad:
                some["grads"][3][5] = math.nan
        norm = grad_norm(arguments["grads"])
        reference.fused_step_(**arguments, norm=norm, max_norm=0.5, zero_grads=False)
        if not bad:
            monkeypatch.undo()
            reference.fused_step_(**other, norm=norm, max_norm=0.5, zero_grads=False)
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        for one, two in zip(tensors(arguments), tensors(other), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_shadows_are_optional_one_by_one():
    arguments, plain = make(torch.float32), make(torch.float32)
    arguments["shadows"][3] = torch.empty(0)
    fused_step_(**arguments)
    fused_step_(**plain)
    for i, (one, two) in enumerate(zip(arguments["shadows"], plain["shadows"], strict=True)):
        assert i == 3 or torch.equal(one, two)
    assert same_bits(arguments["params"], plain["params"])


def test_any_order_of_dimensions():
    size = (6, 4, 3, 5)
    plain = make(torch.float32, sizes=[size])
    wanted = copied(plain)
    fused_step_(**wanted)
    last = copied(plain)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "shadows"):
        last[name] = [x.to(memory_format=torch.channels_last) for x in last[name]]
    fused_step_(**last)  # the gradient is still contiguous
    assert same_bits(tensors(wanted), tensors(last))
    fused_step_(**last, zero_grads=True)
    assert not last["grads"][0].any()


def broken(name, value, index=2):
    arguments = make(torch.float32, sizes=[(4,), (5,), (4, 3)])
    if index is None:
        arguments[name] = value(arguments[name])
    else:
        arguments[name][index] = value(arguments[name][index])
    return arguments


BAD = [
    ("grads", lambda g: g.to_sparse(), r"grads\[2\] is sparse|from the 'SparseCPU' backend"),
    ("grads", lambda g: g.T, r"grads\[2\] has shape \(3, 4\)"),
    ("grads", lambda g: g.double(), r"grads\[2\] is torch.float64 for a torch.float32 parameter"),
    ("params", lambda p: p.to(torch.complex64), r"params\[2\] is (torch.complex64|another type)"),
    ("params", lambda p: torch.zeros(8, 3)[::2], r"params\[2\] has gaps or overlaps"),
    ("params", lambda p: torch.zeros(1, 3).expand(4, 3), r"params\[2\] has gaps or overlaps"),
    ("exp_avgs", lambda m: m[:2], r"exp_avgs\[2\] has shape \(2, 3\)"),
    ("exp_avgs", lambda m: m.bfloat16(), r"exp_avgs\[2\] is torch.bfloat16"),
    ("exp_avg_sqs", lambda v: v.T.contiguous().T, r"exp_avg_sqs\[2\] has (other )?strides"),
    ("steps", lambda s: s.double(), r"steps\[2\] (is|has shape \(\) and is) torch.float64"),
    ("shadows", lambda s: s.half(), r"shadows\[2\] is torch.float16"),
    ("groups", lambda g: 2, r"groups\[2\] is 2, but hyper has 2 rows"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_input_is_named_before_anything_is_written(name, value, message):
    arguments = broken(name, value)
    before = [x.clone() for x in tensors(arguments)]
    with pytest.raises(ValueError, match=message):
        fused_step_(**arguments)
    for one, two in zip(before, tensors(arguments), strict=True):
        assert torch.equal(one.to_dense(), two.to_dense())


@needs_kernels
@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_the_op_itself_refuses_too(name, value, message):
    arguments = broken(name, value)
    before = [x.clone() for x in tensors(arguments)]
    with pytest.raises(RuntimeError, match=message.replace(" for a torch.float32 parameter", "")):
        torch.ops.ptrain.fused_step_(**arguments, norm=None, max_norm=0.0, zero_grads=True)
    for one, two in zip(before, tensors(arguments), strict=True):
        assert torch.equal(one.to_dense(), two.to_dense())


def test_lists_of_other_lengths_and_shared_memory_are_refused():
    with pytest.raises(ValueError, match="2 grads for 3 params"):
        fused_step_(**broken("grads", lambda g: g[:2], None))
    with pytest.raises(ValueError, match=r"hyper is torch.float32 of shape \(2, 6\)"):
        fused_step_(**broken("hyper", lambda h: h.float(), None))
    arguments = make(torch.float32)
    arguments["shadows"][4] = arguments["params"][4]
    with pytest.raises(ValueError, match=r"shadows\[4\] shares its memory with its parameter"):
        fused_step_(**arguments)
    with pytest.raises(ValueError, match=r"max_norm is -1"):
        fused_step_(**make(torch.float32), max_norm=-1.0)
    with pytest.raises(ValueError, match=r"there is no norm; give grad_norm"):
        fused_step_(**make(torch.float32), max_norm=1.0)


@pytest.mark.process
def test_torch_compile_takes_it_whole_and_no_new_value_compiles_again():
    compiles = []

    def backend(graph, inputs):
        compiles.append(graph)
        return graph.forward

    def step(arguments, hyper):
        norm = grad_norm(arguments["grads"])
        fused_step_(**{**arguments, "hyper": hyper}, norm=norm, max_norm=0.5)
        return norm

    arguments, plain = (make(torch.float32, sizes=[(5,), (40_000,)]) for _ in range(2))
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for lr in (1e-2, 2e-2, 5e-3):
        hyper = torch.tensor(HYPER, dtype=torch.float64)
        hyper[:, 0] = lr
        compiled(arguments, hyper)
        step(plain, hyper)
    assert len(compiles) == 1
    for one, two in zip(tensors(arguments), tensors(plain), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@needs_kernels
@pytest.mark.parametrize("shadowed", [True, False])
def test_opcheck(shadowed):
    arguments = make(torch.float32)
    if not shadowed:
        arguments["shadows"] = []
    norm = grad_norm(arguments["grads"])
    kwargs = {**arguments, "norm": norm, "max_norm": 0.5, "zero_grads": True}
    torch.library.opcheck(torch.ops.ptrain.fused_step_, (), kwargs)


def shared(name, value):
    """Two tensors of each kind, of which one is another of them."""
    arguments = make(torch.float32, sizes=[(4,), (4,)])
    arguments[name][1] = value(arguments)
    return arguments


SHARED = [
    ("params", lambda a: a["params"][0], r"params\[1\] shares .*params\[0\]"),
    ("exp_avg_sqs", lambda a: a["exp_avgs"][1], r"exp_avg_sqs\[1\] shares .*exp_avgs\[1\]"),
    ("grads", lambda a: a["params"][1], r"grads\[1\] shares .*params\[1\]"),
    ("grads", lambda a: a["grads"][0], r"grads\[1\] shares .*grads\[0\]"),
    ("steps", lambda a: a["steps"][0], r"steps\[1\] shares .*steps\[0\]"),
    ("shadows", lambda a: a["shadows"][0], r"shadows\[1\] shares .*shadows\[0\]"),
    ("shadows", lambda a: a["params"][0], r"shadows\[1\] shares .*params\[0\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), SHARED)
@pytest.mark.parametrize("op", [False, pytest.param(True, marks=needs_kernels)])
def test_tensors_that_share_memory_are_named_before_anything_is_written(name, value, message, op):
    arguments = shared(name, value)
    before = [x.clone() for x in tensors(arguments)]
    with pytest.raises(RuntimeError if op else ValueError, match=message):
        if op:
            torch.ops.ptrain.fused_step_(**arguments, norm=None, max_norm=0.0, zero_grads=True)
        else:
            fused_step_(**arguments, zero_grads=True)
    assert same_bits(before, tensors(arguments))


def test_parts_of_one_memory_that_overlap_are_refused_and_neighbours_are_not():
    flat = torch.zeros(8)
    arguments = make(torch.float32, sizes=[(4,), (4,)])
    arguments["params"] = [flat[:4], flat[4:]]
    fused_step_(**arguments)
    arguments["params"] = [flat[:4], flat[3:7]]
    with pytest.raises(ValueError, match=r"params\[1\] shares memory with params\[0\]"):
        fused_step_(**arguments)
    shared_gradient = shared("grads", lambda a: a["grads"][0])
    fused_step_(**shared_gradient)  # only read


@pytest.mark.parametrize("name", ["params", "grads", "exp_avgs", "exp_avg_sqs", "shadows"])
@pytest.mark.parametrize("op", [False, pytest.param(True, marks=needs_kernels)])
def test_memory_that_was_given_back_is_named(name, op):
    arguments = make(torch.float32, sizes=[(4,), (4,)])
    arguments[name][1] = torch.ones(20)[16:]
    arguments[name][1].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError if op else ValueError, match=rf"{name}\[1\] has (no|lost)"):
        if op:
            torch.ops.ptrain.fused_step_(**arguments, norm=None, max_norm=0.0, zero_grads=True)
        else:
            fused_step_(**arguments)


@pytest.mark.parametrize("name", ["params", "shadows"])
def test_autograd_notices_what_has_changed(name):
    arguments = make(torch.float32, sizes=[(4,)])
    loss = (torch.ones(4, requires_grad=True) * arguments[name][0]).sum()
    fused_step_(**arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
