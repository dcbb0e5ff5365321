"""The compiled halting loss against its reference in float64, and what only it can do."""

from __future__ import annotations

import gc
import math

import pytest
import torch

from plugin_trainer.ops import halting_exit, halting_loss, library

from .test_halting_loss import OPTIONS, SHAPES, make_inputs, make_labels, make_options

GRADIENT_ERROR = 5e-7  # relative L2, of float32 logits
WIDE = {
    # name: (N, rows, units, C); from 16 classes on, the kernel's lanes are classes
    "fifteen classes": (6, (37,), (37,), 15),
    "sixteen classes": (6, (37,), (37,), 16),
    "thirty-three classes": (5, (4, 7), (4, 7), 33),
    "sentences of many classes": (4, (5, 9), (5,), 130),
    "one row of a thousand classes": (3, (1,), (1,), 1000),
    "rows too long for one tile": (12, (19,), (19,), 700),
    "two rows more than a tile": (2, (18,), (18,), 2),
    "long sentences": (3, (2, 75), (2,), 5),
    "sixty blocks": (60, (20,), (20,), 4),
}
ALL_SHAPES = SHAPES | WIDE
DTYPES = {
    torch.float32: (2e-7, GRADIENT_ERROR),
    torch.bfloat16: (2e-7, 3e-3),
    torch.float16: (2e-7, 5e-4),
}

pytestmark = pytest.mark.skipif(
    library.find() is None, reason=f"no compiled kernels here: {library.status().reason}"
)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request):
    """Every set of instructions that this processor has, one after the other."""
    before = torch.ops.ptrain.isa()
    used = torch.ops.ptrain.use_isa(request.param)
    yield used
    torch.ops.ptrain.use_isa(before)
    if used != request.param:
        pytest.skip(f"this processor has no {request.param}")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def reference(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setenv("PTRAIN_KERNELS", "off")
        return value_and_gradients(*args, **options)


def value_and_gradients(logits, halting, labels, *, part="loss", scale=1.0, **options):
    """All fields, and the gradients of one of them, times scale, summed."""
    logits, halting = logits.detach().requires_grad_(), halting.detach().requires_grad_()
    out = halting_loss(logits, halting, labels, **options)
    grads = torch.autograd.grad((getattr(out, part) * scale).sum(), (logits, halting))
    return [field.detach() for field in out], grads


def distance(ours, exact):
    """Relative L2."""
    norm = exact.double().norm()
    return float((ours.double() - exact.double()).norm() / norm) if norm > 0 else float(ours.norm())


def double_options(options):
    return {
        key: value.double()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for key, value in options.items()
    }


def in_float32(options):
    """Settings as float32 holds them, so that both sides are given the same."""
    return {
        key: value.float()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for key, value in options.items()
    }


def check(monkeypatch, logits, halting, labels, *, errors, **options):
    ours, our_grads = value_and_gradients(logits, halting, labels, **options)
    exact_labels = labels.double() if labels.is_floating_point() else labels
    exact, exact_grads = reference(
        monkeypatch, logits.double(), halting.double(), exact_labels, **double_options(options)
    )
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.shape == theirs.shape
        gap = (mine.double() - theirs).abs() / theirs.abs().clamp_min(1e-2)
        assert not mine.numel() or gap.max() < 50 * errors[0]
    for mine, theirs, given in zip(our_grads, exact_grads, (logits, halting), strict=True):
        assert mine.dtype == given.dtype and torch.isfinite(mine).all()
        assert distance(mine, theirs) < errors[1]


@pytest.mark.parametrize("names", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", ALL_SHAPES.values(), ids=ALL_SHAPES)
def test_float32_is_the_reference_in_float64_to_rounding(isa, shape, names, monkeypatch):
    logits, halting, labels = make_inputs(shape, dtype=torch.float32)
    for kind, reduction in (
        ("hard", "mean"),
        ("soft", "mean"),
        ("some ignored", "sum"),
        ("hard", "none"),
    ):
        if reduction != "mean" and "normalizer" in names:
            continue
        options = in_float32(make_options(names, shape))
        given = make_labels(kind, labels, shape[-1])
        given = given.float() if kind == "soft" else given
        check(
            monkeypatch,
            logits,
            halting,
            given,
            errors=DTYPES[torch.float32],
            tau=0.3,
            reduction=reduction,
            **options,
        )


@pytest.mark.parametrize(
    "dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b or a.itemsize == 2]
)
@pytest.mark.parametrize(
    "shape", [SHAPES["tokens"], SHAPES["sentences"], WIDE["thirty-three classes"]]
)
def test_every_pair_of_types_is_read_as_it_is(isa, shape, dtypes, monkeypatch):
    logits, halting, labels = make_inputs(shape, dtype=torch.float32)
    coarsest = max(DTYPES[dtype][1] for dtype in dtypes)
    for reduction in ("mean", "none"):
        options = {"tau": 0.3, "eta": 0.2, "label_smoothing": 0.1, "reduction": reduction}
        check(
            monkeypatch,
            logits.to(dtypes[0]),
            halting.to(dtypes[1]),
            labels,
            errors=(2e-7, coarsest),
            **options,
        )


@pytest.mark.parametrize("scale", [1.0, 4.0, 15.0, 80.0, 200.0])
@pytest.mark.parametrize(
    "shape", [(12, (256,), (256,), 3), (12, (16, 32), (16,), 9), (12, (96,), (96,), 32)]
)
@pytest.mark.parametrize("names", [[], ["label_smoothing"], ["eta"]], ids=str)
def test_gradients_are_exact_at_any_scale(isa, shape, scale, names, monkeypatch):
    blocks, rows, units, classes = shape
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(blocks, *rows, classes, generator=generator) * scale
    halting = torch.randn(blocks, *units, generator=generator) * scale
    labels = torch.randint(0, classes, rows, generator=generator)
    options = in_float32(make_options(names, shape))
    _, ours = value_and_gradients(logits, halting, labels, tau=0.01, **options)
    _, exact = reference(
        monkeypatch, logits.double(), halting.double(), labels, tau=0.01, **double_options(options)
    )
    for mine, theirs in zip(ours, exact, strict=True):
        assert distance(mine, theirs) < GRADIENT_ERROR


@pytest.mark.parametrize("scale", [40.0, 1e4, 3e38])
@pytest.mark.parametrize(
    "shape", [(12, (32,), (32,), 3), (12, (32,), (32,), 40), (5, (4, 6), (4,), 3)]
)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "eta": 0.3}, {"outputs": ()}], ids=str
)
def test_finite_inputs_give_finite_results(isa, shape, scale, options):
    blocks, rows, units, classes = shape
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.rand(blocks, *rows, classes, generator=generator).mul(2).sub(1) * scale
        halting = torch.rand(blocks, *units, generator=generator).mul(2).sub(1) * scale
        labels = torch.randint(0, classes, rows, generator=generator)
        fields, grads = value_and_gradients(logits, halting, labels, tau=0.01, beta=0.5, **options)
        if scale < 1e38:  # a gap of 6e38 is no float32, and such is the loss
            assert all(torch.isfinite(field).all() for field in fields)
        assert all(torch.isfinite(grad).all() for grad in grads)


def make_batch(shape, *, seed=0, scale=6.0):
    logits, halting, labels = make_inputs(shape, dtype=torch.float32, seed=seed, scale=scale)
    labels.view(-1)[::7] = -100
    return logits, halting, labels


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "eta": 0.1}], ids=str)
@pytest.mark.parametrize(
    "shape", [(12, (3001,), (3001,), 3), (12, (64, 40), (64,), 9), (6, (300,), (300,), 200)]
)
def test_threads_change_no_bit(shape, options, two_threads):
    batch = make_batch(shape)
    shared, shared_grads = value_and_gradients(*batch, tau=0.1, **options)
    torch.set_num_threads(1)
    alone, alone_grads = value_and_gradients(*batch, tau=0.1, **options)
    for mine, theirs in zip((*shared, *shared_grads), (*alone, *alone_grads), strict=True):
        assert torch.equal(mine, theirs)


PARTS = ("task_loss", "supervision", "regulariser")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [SHAPES["sentences"], WIDE["thirty-three classes"]])
def test_each_part_can_be_differentiated_alone(shape, reduction, monkeypatch):
    logits, halting, labels = make_inputs(shape, dtype=torch.float32)
    options = {"tau": 0.3, "eta": 0.2, "beta": 0.5, "reduction": reduction}
    for part in PARTS:
        _, our_grads = value_and_gradients(logits, halting, labels, part=part, **options)
        _, exact = reference(
            monkeypatch, logits.double(), halting.double(), labels, part=part, **options
        )
        for mine, theirs in zip(our_grads, exact, strict=True):
            assert distance(mine, theirs) < GRADIENT_ERROR


def test_gradients_of_several_parts_add_up():
    logits, halting, labels = make_inputs(SHAPES["sentences"], dtype=torch.float32)
    logits.requires_grad_(), halting.requires_grad_()
    out = halting_loss(logits, halting, labels, tau=0.3, eta=0.2)
    total = 2 * out.loss - out.task_loss + 3 * out.regulariser
    both = torch.autograd.grad(total, (logits, halting), retain_graph=True)
    single = [
        torch.autograd.grad(part, (logits, halting), retain_graph=True, allow_unused=True)
        for part in (out.loss, out.task_loss, out.regulariser)
    ]
    for k in range(2):
        expected = 2 * single[0][k] - single[1][k] + 3 * single[2][k]
        assert distance(both[k], expected) < 1e-6


def test_a_graph_that_is_retained_gives_the_same_gradient_twice():
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    logits.requires_grad_(), halting.requires_grad_()
    hidden = logits * 1.0
    loss = halting_loss(hidden, halting, labels, tau=0.3).loss
    first = torch.autograd.grad(loss, (logits, halting), torch.tensor(3.0), retain_graph=True)
    second = torch.autograd.grad(loss, (logits, halting), retain_graph=True)
    third = torch.autograd.grad(loss, (logits, halting))
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, 3 * b)


def test_gradients_pile_up_in_a_leaf_over_two_backward_passes():
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    logits.requires_grad_()
    loss = halting_loss(logits, halting, labels, tau=0.3).loss
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_float16_keeps_what_the_loss_scale_is_there_to_keep(kind, monkeypatch):
    logits, halting, labels = make_inputs((4, (4096,), (4096,), 3), dtype=torch.float16)
    given = make_labels(kind, labels, 3)
    given = given.float() if kind == "soft" else given
    _, ours = value_and_gradients(logits, halting, given, tau=0.1, scale=8192.0)
    exact_labels = given.double() if kind == "soft" else given
    _, exact = reference(
        monkeypatch, logits.double(), halting.double(), exact_labels, tau=0.1, scale=8192.0
    )
    for mine, theirs in zip(ours, exact, strict=True):
        assert distance(mine, theirs) < DTYPES[torch.float16][1]


@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_any_integers_are_labels(labels_dtype):
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    plain, plain_grads = value_and_gradients(logits, halting, labels, tau=0.1)
    cast, cast_grads = value_and_gradients(logits, halting, labels.to(labels_dtype), tau=0.1)
    for mine, theirs in zip((*cast, *cast_grads), (*plain, *plain_grads), strict=True):
        assert torch.equal(mine, theirs)


STRIDES = {
    "blocks apart": lambda z: torch.stack([z, z], 1)[:, 0],
    "rows apart": lambda z: torch.stack([z, z], 2)[:, :, 0],
    "classes apart": lambda z: torch.stack([z, z], -1)[..., 0],
    "classes first": lambda z: z.movedim(-1, 0).contiguous().movedim(0, -1),
    "every block the same": lambda z: z[:1].expand_as(z),
}


@pytest.mark.parametrize("lay_out", STRIDES.values(), ids=STRIDES)
def test_any_strides_of_any_input_are_right(lay_out):
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    strided, strided_u = lay_out(logits), lay_out(halting)
    same = strided.contiguous(), strided_u.contiguous()
    spread = torch.stack([labels, labels], -1)[..., 0]
    mine, my_grads = value_and_gradients(strided, strided_u, spread, tau=0.1)
    theirs, their_grads = value_and_gradients(*same, labels, tau=0.1)
    for a, b in zip((*mine, *my_grads), (*theirs, *their_grads), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("outputs", [(), ("halting_p",), ("log_answer", "exit_weights")])
def test_only_the_by_products_asked_for_are_made(outputs, monkeypatch):
    batch = make_batch(SHAPES["sentences"])
    every, every_grads = value_and_gradients(*batch, tau=0.1)
    for kernels in ("require", "off"):
        monkeypatch.setenv("PTRAIN_KERNELS", kernels)
        out = halting_loss(*batch, tau=0.1, outputs=outputs)
        for name in ("log_answer", "halting_p", "exit_weights"):
            field = getattr(out, name)
            if name in outputs:
                assert field.shape == getattr(halting_loss(*batch, tau=0.1), name).shape
            else:
                assert field.shape == (0,)
    monkeypatch.undo()
    some, some_grads = value_and_gradients(*batch, tau=0.1, outputs=outputs)
    assert torch.equal(some[0], every[0])
    for mine, theirs in zip(some_grads, every_grads, strict=True):
        assert torch.equal(mine, theirs)


def test_an_output_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="outputs names 'answer'; there are log_answer, halting_p"):
        halting_loss(*make_batch(SHAPES["tokens"]), tau=0.1, outputs=("answer",))


# ----------------------------------------------------------------------------------------- in place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [SHAPES["sentences"], WIDE["rows too long for one tile"]])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_in_place_the_gradient_lies_where_the_logits_were(isa, shape, dtype, scale):
    for logit_scale in (2.0, 300.0):  # the second: rows in log space
        logits, halting, labels = make_inputs(shape, dtype=dtype, scale=logit_scale)
        wanted, grads = value_and_gradients(logits, halting, labels, tau=0.2, scale=scale)
        logits.requires_grad_(), halting.requires_grad_()
        hidden = logits * 1.0
        out = halting_loss(hidden, halting, labels, tau=0.2, inplace=True)
        address = hidden.data_ptr()
        seen: list[int] = []
        hidden.register_hook(lambda grad, seen=seen: seen.append(grad.data_ptr()))
        (out.loss * scale).backward()
        for mine, theirs in zip(out, wanted, strict=True):
            assert torch.equal(mine, theirs)
        assert seen == [address]
        torch.testing.assert_close(logits.grad, grads[0])
        torch.testing.assert_close(halting.grad, grads[1])


def test_in_place_logits_that_need_no_gradient_hold_it_after_the_call():
    logits, halting, labels = make_batch(SHAPES["tokens"])
    _, grads = value_and_gradients(logits, halting, labels, tau=0.2)
    halting_loss(logits, halting, labels, tau=0.2, inplace=True)
    assert torch.equal(logits, grads[0])


def test_in_place_blocks_may_lie_apart():
    logits, halting, labels = make_batch(SHAPES["tokens"])
    _, grads = value_and_gradients(logits, halting, labels, tau=0.2)
    both = torch.stack([logits, logits], 1)
    halting_loss(both[:, 0], halting, labels, tau=0.2, inplace=True)
    assert torch.equal(both[:, 0], grads[0]) and torch.equal(both[:, 1], logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_in_place_backward_works_once(dtype):
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=dtype)
    hidden = logits.requires_grad_() * 1.0
    loss = halting_loss(hidden, halting, labels, tau=0.2, inplace=True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"gives its gradient once|modified by an inplace"):
        loss.backward()


def test_in_place_a_part_alone_cannot_be_differentiated():
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    hidden = logits.requires_grad_() * 1.0
    out = halting_loss(hidden, halting, labels, tau=0.2, inplace=True)
    with pytest.raises(RuntimeError, match="knows the gradient of `loss` only"):
        out.task_loss.backward()


def test_in_place_whoever_saved_the_logits_is_told():
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    hidden = logits.requires_grad_() * 1.0
    square = (hidden**2).sum()
    loss = halting_loss(hidden, halting, labels, tau=0.2, inplace=True).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + square).backward()


def test_in_place_is_refused_where_it_would_destroy_something():
    logits, halting, labels = make_batch(SHAPES["tokens"])
    leaf = logits.clone().requires_grad_()
    for given in (leaf, leaf[:]):
        with pytest.raises(ValueError, match="over a leaf that requires grad"):
            halting_loss(given, halting, labels, tau=0.2, inplace=True)
    with pytest.raises(ValueError, match="reduction is 'none'"):
        halting_loss(logits, halting, labels, tau=0.2, inplace=True, reduction="none")
    before = logits.clone()
    with pytest.raises(ValueError, match="without gaps"):
        halting_loss(STRIDES["classes first"](logits), halting, labels, tau=0.2, inplace=True)
    wrong = labels.clone()
    wrong.view(-1)[-1] = 9
    with pytest.raises(IndexError, match="label 9 is out of range"):
        halting_loss(logits, halting, wrong, tau=0.2, inplace=True)
    assert torch.equal(logits, before)


# ------------------------------------------------------------------------------------------- memory


def allocated_bytes(function):
    """The most that lives at once of what function allocates through torch's allocator."""
    profile = torch.autograd.profiler.profile(profile_memory=True, use_cpu=True)
    gc.collect()  # what earlier tests left in cycles would, if collected now, count as given back
    with profile:
        kept = function()
    alive = most = 0
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    del kept
    return most


@pytest.mark.parametrize("shape", [(12, (256,), (256,), 3), (4, (8, 32), (8,), 40)])
def test_only_the_gradients_and_the_results_take_memory(shape):
    logits, halting, labels = make_inputs(shape, dtype=torch.float32)
    logits.requires_grad_(), halting.requires_grad_()
    few = 16 * 64  # four numbers, empty results, and one made by backward(), each rounded up

    def step(**options):
        hidden = step.hidden
        out = halting_loss(hidden, halting, labels, tau=0.1, **options)
        return torch.autograd.grad(out.loss, (hidden, halting)), out

    step.hidden = logits * 1.0
    gradients = logits.nbytes + halting.nbytes
    by_products = logits[0].nbytes + 2 * halting.nbytes
    assert gradients <= allocated_bytes(lambda: step(outputs=())) <= gradients + few
    assert allocated_bytes(step) <= gradients + by_products + few
    step.hidden = logits * 1.0
    in_place = allocated_bytes(lambda: step(outputs=(), inplace=True))
    assert in_place <= halting.nbytes + few
    with torch.no_grad():
        assert (
            allocated_bytes(lambda: halting_loss(logits, halting, labels, tau=0.1, outputs=()))
            <= few
        )


# ------------------------------------------------------------------------------------ torch.compile


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()


COMPILED = {
    "plain": {},
    "everything": {"eta": 0.2, "beta": 0.1, "label_smoothing": 0.1, "empty": "zero"},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "no by-products": {"outputs": ()},
}


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torch_compile_takes_it_whole(options, dtype, fresh_compiler):
    logits, halting, labels = make_inputs(SHAPES["sentences"], dtype=dtype)

    def step(z, u):
        out = halting_loss(z * 2, u, labels, tau=0.1, **options)
        return (out.loss * 1.5).sum(), out.task_loss.detach(), out.halting_p

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        z, u = logits.clone().requires_grad_(), halting.clone().requires_grad_()
        out = function(z, u)
        out[0].backward()
        results.append((*(part.detach() for part in out), z.grad, u.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(compiled(logits, halting)[0], step(logits, halting)[0])


def test_torch_compile_differentiates_the_parts(fresh_compiler):
    logits, halting, labels = make_inputs(SHAPES["sentences"], dtype=torch.float32)

    def step(z, u):
        out = halting_loss(z, u, labels, tau=0.1, normalizer=torch.tensor(7.0))
        return out.loss + out.regulariser

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        z, u = logits.clone().requires_grad_(), halting.clone().requires_grad_()
        function(z, u).backward()
        results.append((z.grad, u.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_torch_compile_takes_the_exit_rule_whole():
    logits, halting, _ = make_inputs(SHAPES["sentences"], dtype=torch.float32)
    compiled = torch.compile(halting_exit, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(logits, halting), halting_exit(logits, halting), strict=True):
        assert torch.equal(mine, theirs)


def op_arguments(*, reduction=0, wanted=31):
    none = (None,) * 7
    return *none, 0.1, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, -100, reduction, False, wanted


def test_opcheck_passes():
    logits, halting, labels = make_inputs(SHAPES["sentences"], dtype=torch.float32)
    logits.requires_grad_(), halting.requires_grad_()
    ops = torch.ops.ptrain
    torch.library.opcheck(ops.halting_loss, (logits, halting, labels, *op_arguments()))
    with torch.no_grad():
        z, u = logits.detach(), halting.detach()
        arguments = op_arguments()
        upstream = (torch.tensor(1.0), None, None, None)
        torch.library.opcheck(ops.halting_loss_unrecorded, (z, u, labels, *arguments))
        torch.library.opcheck(ops.halting_loss_, (z.clone(), u, labels, *arguments))
        torch.library.opcheck(ops.halting_loss_backward, (z, u, labels, *upstream, *arguments))
        torch.library.opcheck(
            ops.halting_loss_backward_, (z.clone(), u, labels, *upstream, *arguments)
        )
        torch.library.opcheck(ops.halting_exit, (z, u, None, 0.0))


# ------------------------------------------------------------------------------------------- errors


def test_an_op_called_by_itself_refuses_what_does_not_fit():
    logits, halting, labels = make_inputs(SHAPES["sentences"], dtype=torch.float32)
    op, arguments = torch.ops.ptrain.halting_loss, op_arguments()
    wrong = labels.clone()
    wrong[0, 0] = 9
    ten = torch.ones(10)
    for bad in (
        (logits[..., :1], halting, labels, *arguments),
        (logits[0], halting, labels, *arguments),
        (logits, halting[:, :2], labels, *arguments),
        (logits, halting[:4], labels, *arguments),
        (logits, halting, labels[:2], *arguments),
        (logits, halting, wrong, *arguments),
        (logits, halting, labels.to(torch.int8), *arguments),
        (logits.long(), halting, labels, *arguments),
        (logits, halting, labels, ten, *arguments[1:]),
        (logits, halting, labels, None, ten, *arguments[2:]),
        (logits, halting, labels, None, ten > 0, *arguments[2:]),
        (logits, halting, labels, None, None, ten, *arguments[3:]),
        (logits, halting, labels, *op_arguments(reduction=2)),
    ):
        with pytest.raises(RuntimeError):
            op(*bad)


def test_the_compiled_graph_has_no_second_derivative_either():
    logits, halting, labels = make_inputs(SHAPES["two blocks"], dtype=torch.float32)
    logits.requires_grad_()
    out = torch.ops.ptrain.halting_loss(logits, halting, labels, *op_arguments())
    with pytest.raises(RuntimeError, match="halting_loss has no second derivative"):
        torch.autograd.grad(out[0], logits, create_graph=True)


def test_counts_that_need_a_gradient_get_it():
    logits, halting, labels = make_inputs(SHAPES["tokens"], dtype=torch.float32)
    count = torch.tensor(5.0, requires_grad=True)
    out = halting_loss(logits, halting, labels, tau=0.0, normalizer=count)
    out.loss.backward()
    torch.testing.assert_close(count.grad, -out.loss.detach() / 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32])
def test_counts_may_be_tensors_of_any_type(dtype):
    batch = make_batch(SHAPES["sentences"])
    pair = torch.tensor(7).to(dtype), torch.tensor(3).to(dtype)
    mine = halting_loss(*batch, tau=0.1, normalizer=pair).loss
    assert torch.equal(mine, halting_loss(*batch, tau=0.1, normalizer=(7.0, 3)).loss)


# ----------------------------------------------------------------------------------------- the exit


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.5])
@pytest.mark.parametrize(
    "shape", [(12, (900,), (900,), 3), (6, (60, 9), (60,), 17), (1, (9,), (9,), 2)]
)
def test_the_exit_is_that_of_the_reference(isa, shape, delta, monkeypatch):
    for seed in range(4):
        logits, halting, _ = make_inputs(shape, dtype=torch.float32, seed=seed)
        halting -= seed
        valid = torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) > 0.3
        ours = halting_exit(logits, halting, delta=delta, valid=valid)
        monkeypatch.setenv("PTRAIN_KERNELS", "off")
        theirs = halting_exit(logits, halting, delta=delta, valid=valid)
        monkeypatch.undo()
        assert torch.equal(ours.exit_block, theirs.exit_block)
        torch.testing.assert_close(ours.log_answer, theirs.log_answer, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            ours.full_log_answer, theirs.full_log_answer, rtol=1e-6, atol=1e-6
        )


def test_close_to_the_margin_the_exit_is_still_that_of_the_reference(isa, monkeypatch):
    """Halting logits set so that (1 - p)^d (1 + a* - a_ru) is the bound times 1 +- 1e-12."""
    rows, blocks = 400, 4
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(blocks, rows, 3, dtype=torch.float64, generator=generator) * 2
    best = logits[0].softmax(-1).topk(2).values
    nudge = torch.where(torch.arange(rows) % 2 == 0, 1e-12, -1e-12).double()
    kept = (1 + 1e-6) / (1 + best[:, 0] - best[:, 1]) * (1 + nudge)
    p = 1 - kept ** (1 / (blocks - 1))
    halting = torch.zeros(blocks, rows, dtype=torch.float64)
    halting[0] = p.logit()
    ours = halting_exit(logits, halting).exit_block
    monkeypatch.setenv("PTRAIN_KERNELS", "off")
    theirs = halting_exit(logits, halting).exit_block
    assert torch.equal(ours, theirs)
    assert torch.equal(ours == 1, torch.arange(rows) % 2 == 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_a_row_that_learns_is_not_hidden(isa, bad):
    for shape in ((4, (20,), (20,), 3), (4, (20,), (20,), 40)):
        logits, halting, labels = make_inputs(shape, dtype=torch.float32)
        logits[2, 5, 1] = bad
        _fields, grads = value_and_gradients(logits, halting, labels, tau=0.1, reduction="none")
        out = halting_loss(logits, halting, labels, tau=0.1, reduction="none")
        assert out.task_loss.isnan().nonzero().flatten().tolist() == [5]
        assert grads[0][:, 5].isnan().any() and torch.isfinite(grads[0][:, :5]).all()
