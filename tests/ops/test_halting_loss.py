from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from plugin_trainer.ops import HaltingLoss, halting_loss

from .oracle import literal_halting_loss

SHAPES = {
    # name: (N, rows, units, C)
    "one block": (1, (3,), (3,), 2),
    "two blocks": (2, (4,), (4,), 3),
    "six blocks": (6, (5,), (5,), 2),
    "twelve blocks": (12, (7,), (7,), 4),
    "twenty-four blocks": (24, (3,), (3,), 3),
    "tokens": (12, (3, 5), (3, 5), 9),
    "sentences": (12, (3, 5), (3,), 9),
    "sentences of one token": (3, (4, 1), (4,), 2),
}
OPTIONS = {
    "plain": [],
    "smoothing": ["label_smoothing"],
    "class weights": ["class_weight"],
    "class weights and smoothing": ["class_weight", "label_smoothing"],
    "masked": ["reg_mask"],
    "per-block costs": ["alpha", "beta"],
    "sum of p": ["only_p"],
    "deep supervision": ["eta"],
    "everything": ["label_smoothing", "class_weight", "reg_mask", "alpha", "beta", "eta"],
    "normalizer": ["normalizer"],
}
REDUCTIONS = ("mean", "sum", "none")
LABELS_AND_REDUCTIONS = (
    ("hard", "mean"),
    ("soft", "mean"),
    ("some ignored", "mean"),
    ("some ignored", "sum"),
    ("some ignored", "none"),
)


def make_inputs(shape, *, seed=0, dtype=torch.float64, scale=3.0):
    blocks, rows, units, classes = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(blocks, *rows, classes, dtype=torch.float64, generator=generator) * scale
    halting = torch.randn(blocks, *units, dtype=torch.float64, generator=generator) * 2
    labels = torch.randint(0, classes, rows, generator=generator)
    return logits.to(dtype), halting.to(dtype), labels


def make_labels(kind, labels, classes):
    generator = torch.Generator().manual_seed(1)
    if kind == "soft":
        noise = torch.randn(*labels.shape, classes, dtype=torch.float64, generator=generator)
        return noise.softmax(-1)
    labels = labels.clone()
    if kind == "some ignored":
        labels.view(-1)[::3] = -100
    return labels


def make_options(names, shape):
    blocks, rows, _units, classes = shape
    generator = torch.Generator().manual_seed(2)

    def random(*size):
        return torch.rand(*size, dtype=torch.float64, generator=generator) + 0.1

    options = {}
    for name in names:
        if name == "label_smoothing":
            options[name] = 0.15
        elif name == "class_weight":
            options[name] = random(classes)
        elif name == "reg_mask":
            mask = random(*rows) > 0.4
            mask.view(-1)[0] = True
            options[name] = mask
        elif name == "only_p":
            options["alpha"] = torch.zeros(blocks, dtype=torch.float64)
            options["beta"] = torch.ones(blocks, dtype=torch.float64)
        elif name == "normalizer":
            options[name] = 13.0
        else:
            options[name] = random(blocks)
    return options


def value_and_gradients(function, logits, halting, *args, **options):
    """All results, and the gradients of the first, weighted at random and summed."""
    logits, halting = logits.detach().requires_grad_(), halting.detach().requires_grad_()
    out = function(logits, halting, *args, **options)
    weight = torch.rand(out[0].shape, generator=torch.Generator().manual_seed(3)).to(out[0].dtype)
    grads = torch.autograd.grad((out[0] * weight).sum(), (logits, halting))
    return tuple(part.detach() for part in out), grads


def error_of(ours, exact):
    scale = exact.abs().max().clamp_min(1e-12)
    return float((ours.double() - exact).abs().max() / scale)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("names", OPTIONS.values(), ids=OPTIONS)
def test_value_and_gradients_are_those_of_the_literal_equations(shape, names):
    logits, halting, labels = make_inputs(shape)
    for kind, reduction in LABELS_AND_REDUCTIONS:
        if reduction != "mean" and "normalizer" in names:
            continue
        options = dict(make_options(names, shape), tau=0.3, reduction=reduction)
        args = (logits, halting, make_labels(kind, labels, shape[-1]))
        ours, our_grads = value_and_gradients(halting_loss, *args, **options)
        exact, exact_grads = value_and_gradients(literal_halting_loss, *args, **options)
        for field, mine, theirs in zip(HaltingLoss._fields, ours, exact, strict=False):
            assert mine.shape == theirs.shape, (field, kind, reduction)
            assert error_of(mine, theirs) < 1e-11, (field, kind, reduction)
        for mine, theirs in zip(our_grads, exact_grads, strict=True):
            assert error_of(mine, theirs) < 1e-11, (kind, reduction)


@pytest.mark.parametrize("shape", [(4, (3,), (3,), 3), (3, (2, 2), (2,), 3)])
def test_gradcheck_passes(shape):
    logits, halting, labels = make_inputs(shape)
    labels.view(-1)[-1] = -100
    eta = [0.1, 0.2, 0.3, 0.4][: shape[0]]

    def loss(z, u):
        return halting_loss(z, u, labels, tau=0.3, beta=0.5, eta=eta, label_smoothing=0.1).loss

    inputs = logits.requires_grad_(), halting.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_one_block_is_plain_cross_entropy():
    logits, halting, labels = make_inputs((1, (5,), (5,), 3))
    out = halting_loss(logits, halting, labels, tau=0.0)
    torch.testing.assert_close(out.loss, F.cross_entropy(logits[0], labels))


def test_the_by_products_are_what_they_are_called():
    logits, halting, labels = make_inputs(SHAPES["sentences"])
    out = halting_loss(logits.requires_grad_(), halting.requires_grad_(), labels, tau=0.1)
    torch.testing.assert_close(out.halting_p, halting.sigmoid().cumprod(0))
    torch.testing.assert_close(out.exit_weights.sum(0), torch.ones(3, dtype=torch.float64))
    weighted = out.exit_weights[..., None, None] * logits.softmax(-1)
    torch.testing.assert_close(out.log_answer.exp(), weighted.sum(0))
    torch.testing.assert_close(
        out.loss, out.task_loss + out.supervision + 0.1 * out.regulariser, rtol=0, atol=0
    )
    assert not (out.log_answer.requires_grad or out.halting_p.requires_grad)
    assert not out.exit_weights.requires_grad


def test_the_task_loss_alone_has_no_deep_supervision_in_it():
    logits, halting, labels = make_inputs(SHAPES["six blocks"])
    plain = halting_loss(logits, halting, labels, tau=0.1)
    deep = halting_loss(logits, halting, labels, tau=0.1, eta=0.5)
    assert deep.task_loss == plain.task_loss and plain.supervision == 0
    exits = sum(F.cross_entropy(z, labels) for z in logits)
    torch.testing.assert_close(deep.supervision, 0.5 * exits)


def test_tau_zero_reports_the_regulariser_and_adds_nothing():
    logits, halting, labels = make_inputs(SHAPES["six blocks"], dtype=torch.float32)
    args = (logits, halting, labels)
    off, off_grads = value_and_gradients(halting_loss, *args, tau=0.0, alpha=1e30)
    free, free_grads = value_and_gradients(halting_loss, *args, tau=0.5, alpha=0.0, beta=0.0)
    assert HaltingLoss(*off).regulariser > 1e29
    assert off[0] == free[0]
    for mine, theirs in zip(off_grads, free_grads, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.all(off_grads[1][-1] == 0)


def test_tau_zero_is_off_even_where_the_regulariser_is_a_mean_over_nothing():
    logits, halting, labels = make_inputs(SHAPES["six blocks"])
    nobody = torch.zeros(5, dtype=torch.bool)
    out, grads = value_and_gradients(
        halting_loss, logits, halting, labels, tau=0.0, reg_mask=nobody
    )
    assert HaltingLoss(*out).regulariser.isnan() and torch.isfinite(out[0])
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("going_on", [5.0, 20.0, 60.0])
def test_an_early_answer_of_tiny_weight_outweighs_a_late_one_that_is_surely_wrong(going_on):
    logits = torch.tensor([[[0.0, 300.0]], [[300.0, 0.0]]])
    halting = torch.tensor([[going_on], [0.0]])
    out, (_, grad_u) = value_and_gradients(
        halting_loss, logits, halting, torch.tensor([1]), tau=0.0, reduction="none"
    )
    assert out[0].item() == pytest.approx(going_on, rel=1e-2 if going_on < 6 else 1e-6)
    weight = torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    assert grad_u[0].item() == pytest.approx(weight, rel=1e-2)


def test_halting_probabilities_of_exactly_zero_and_one_have_their_limits():
    blocks, classes = 12, 3
    logits, halting, _ = make_inputs((blocks, (6,), (6,), classes), dtype=torch.float32)
    inf = math.inf
    halting[3, 0], halting[5, 0], halting[0, 1] = inf, -inf, -inf
    halting[:, 2], halting[:, 3], halting[:, 4], halting[:, 5] = inf, -inf, 300.0, -300.0
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    out, grads = value_and_gradients(halting_loss, logits, halting, labels, tau=0.1, beta=1.0)
    assert all(torch.isfinite(grad).all() for grad in grads)
    result = HaltingLoss(*out)
    assert torch.isfinite(result.loss)
    last, first = logits[-1].log_softmax(-1), logits[0].log_softmax(-1)
    torch.testing.assert_close(result.log_answer[[2, 4]], last[[2, 4]])
    torch.testing.assert_close(result.log_answer[[1, 3, 5]], first[[1, 3, 5]])


@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_a_label_of_vanishing_probability_keeps_its_loss_and_its_gradient(gap):
    logits = torch.zeros(12, 1, 2)
    logits[..., 0] = gap
    out, (grad_z, grad_u) = value_and_gradients(
        halting_loss, logits, torch.zeros(12, 1), torch.tensor([1]), tau=0.0, reduction="none"
    )
    assert out[0].item() == pytest.approx(gap, rel=1e-5)
    assert torch.isfinite(grad_z).all() and torch.isfinite(grad_u).all()
    weight = torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    # float32 knows a logarithm of -10000 to 1e-3, and a responsibility is the exponential of it.
    assert grad_z[..., 1].sum().item() == pytest.approx(-weight, rel=1e-7 * gap + 1e-5)


def test_masked_classes_at_minus_infinity_get_no_gradient():
    logits, halting, _ = make_inputs((4, (3,), (3,), 5), dtype=torch.float32)
    logits[..., 4] = -math.inf
    labels = torch.tensor([0, 1, 3])
    out, (grad_z, grad_u) = value_and_gradients(halting_loss, logits, halting, labels, tau=0.1)
    assert torch.isfinite(out[0]) and torch.isfinite(grad_u).all()
    assert torch.isfinite(grad_z).all() and torch.all(grad_z[..., 4] == 0)


@pytest.mark.parametrize("units", [(0,), (0, 3)], ids=["rows", "tokens"])
def test_an_empty_batch_is_as_in_cross_entropy(units):
    logits, halting = torch.zeros(4, *units, 3), torch.zeros(4, *units)
    labels = torch.zeros(units, dtype=torch.long)
    for reduction in REDUCTIONS:
        out, grads = value_and_gradients(
            halting_loss, logits, halting, labels, tau=0.1, reduction=reduction
        )
        assert [grad.shape for grad in grads] == [logits.shape, halting.shape]
        loss = F.cross_entropy(logits[0].reshape(-1, 3), labels.reshape(-1), reduction=reduction)
        assert torch.equal(out[0].reshape(-1).isnan(), loss.reshape(-1).isnan())
    assert halting_loss(logits, halting, labels, tau=0.1, empty="zero").loss == 0


def test_rows_that_are_all_ignored_give_no_gradient():
    logits, halting, _ = make_inputs((4, (2,), (2,), 3), dtype=torch.float32)
    labels = torch.full((2,), -100)
    for options in ({"reduction": "sum"}, {"normalizer": 8.0}, {"empty": "zero"}, {}):
        out, grads = value_and_gradients(
            halting_loss, logits, halting, labels, tau=0.1, eta=1.0, **options
        )
        assert torch.isnan(out[0]) if options == {} else out[0] == 0
        assert all(torch.all(grad == 0) for grad in grads), options


@pytest.mark.parametrize("level", ["tokens", "sentences"])
def test_nan_in_padding_reaches_neither_the_loss_nor_the_gradient(level):
    shape = SHAPES[level]
    logits, halting, labels = make_inputs(shape, dtype=torch.float32)
    labels[1, 2:] = -100
    logits[:, 1, 2:] = math.nan
    if level == "tokens":
        halting[:, 1, 2:] = math.nan
    out, grads = value_and_gradients(
        halting_loss, logits, halting, labels, tau=0.1, eta=0.1, label_smoothing=0.1
    )
    assert torch.isfinite(out[0])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert torch.all(grads[0][:, 1, 2:] == 0)


def test_a_soft_target_of_zeros_is_an_ignored_row():
    logits, halting, labels = make_inputs((4, (3,), (3,), 3))
    soft = F.one_hot(labels, 3).double()
    soft[1], labels[1] = 0.0, -100
    for options in ({}, {"label_smoothing": 0.1}):
        mine = halting_loss(logits, halting, soft, tau=0.1, **options)
        hard = halting_loss(logits, halting, labels, tau=0.1, **options)
        torch.testing.assert_close(mine.loss, hard.loss)


def test_gradients_stay_within_their_bounds_for_any_logits():
    for seed in range(60):
        torch.manual_seed(seed)
        blocks = int(torch.randint(2, 25, ()))
        scale = 10 ** float(torch.rand(()) * 5 - 1)
        logits, halting = torch.randn(blocks, 8, 4) * scale, torch.randn(blocks, 8) * scale
        logits.requires_grad_(), halting.requires_grad_()
        labels = torch.randint(0, 4, (8,))
        halting_loss(logits, halting, labels, tau=0.0, reduction="sum").loss.backward()
        blocks_after = torch.arange(blocks - 1, -1, -1)[:, None]
        assert logits.grad.abs().max() <= 1.00001
        assert torch.all(halting.grad.abs() <= 1.00001 * blocks_after)


@pytest.mark.parametrize("scale", [2.0, 8.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-6), (torch.float16, 2e-3), (torch.bfloat16, 8e-3)],
)
def test_low_precision_costs_no_more_than_rounding_the_gradient(dtype, tolerance, scale):
    logits, halting, labels = make_inputs((12, (256,), (256,), 3), dtype=dtype, scale=scale)
    options = {"tau": 0.1, "reduction": "sum"}
    ours, our_grads = value_and_gradients(halting_loss, logits, halting, labels, **options)
    exact, exact_grads = value_and_gradients(
        literal_halting_loss, logits.double(), halting.double(), labels, **options
    )
    assert ours[0].dtype == torch.float32
    assert error_of(ours[0], exact[0]) < 1e-6
    assert [grad.dtype for grad in our_grads] == [dtype, dtype]
    assert (our_grads[0] - exact_grads[0]).abs().max() < tolerance
    assert (our_grads[1] - exact_grads[1]).abs().max() < 4 * tolerance


@pytest.mark.parametrize("level", ["tokens", "sentences"])
def test_micro_batches_with_the_whole_steps_counts_equal_the_big_batch(level):
    logits, halting, labels = make_inputs(SHAPES[level])
    labels[0, 1:] = -100
    options = {"tau": 0.2, "eta": 0.1}
    big, big_grads = value_and_gradients(halting_loss, logits, halting, labels, **options)
    counts = (labels != -100).sum(), torch.tensor(halting[0].numel())
    if level == "tokens":
        counts = (counts[0], counts[0])
    total, grads = torch.zeros((), dtype=torch.float64), ([], [])
    for rows in (slice(0, 1), slice(1, 3)):
        part, part_grads = value_and_gradients(
            halting_loss,
            logits[:, rows],
            halting[:, rows],
            labels[rows],
            normalizer=counts,
            **options,
        )
        total += part[0]
        grads[0].append(part_grads[0]), grads[1].append(part_grads[1])
    torch.testing.assert_close(total, big[0])
    for pieces, whole in zip(grads, big_grads, strict=True):
        torch.testing.assert_close(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    logits, halting, labels = make_inputs(SHAPES["sentences"], dtype=dtype)
    args = (halting_loss, logits, halting, labels)
    plain, plain_grads = value_and_gradients(*args, tau=0.1, eta=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_grads = value_and_gradients(*args, tau=0.1, eta=0.1)
    for mine, theirs in zip((*cast, *cast_grads), (*plain, *plain_grads), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_evaluation_needs_no_gradient():
    logits, halting, labels = make_inputs(SHAPES["six blocks"], dtype=torch.float32)
    plain = halting_loss(logits, halting, labels, tau=0.1)
    with torch.inference_mode():
        assert torch.equal(halting_loss(logits, halting, labels, tau=0.1).loss, plain.loss)
    assert not plain.loss.requires_grad


def test_a_frozen_input_costs_the_other_no_gradient():
    logits, halting, labels = make_inputs(SHAPES["six blocks"])
    _, both = value_and_gradients(halting_loss, logits, halting, labels, tau=0.1, reduction="sum")
    halting.requires_grad_()
    halting_loss(logits, halting, labels, tau=0.1, reduction="sum").loss.backward()
    weight = torch.rand((), generator=torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(halting.grad * weight, both[1])
    assert logits.grad is None


def test_a_second_derivative_is_refused_not_wrong():
    logits, halting, labels = make_inputs(SHAPES["two blocks"])
    logits.requires_grad_()
    loss = halting_loss(logits, halting, labels, tau=0.1).loss
    with pytest.raises(RuntimeError, match="halting_loss has no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_any_strides_are_right():
    logits, halting, labels = make_inputs(SHAPES["tokens"])
    turned = logits.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    one, one_grads = value_and_gradients(halting_loss, logits, halting, labels, tau=0.1)
    two, two_grads = value_and_gradients(halting_loss, turned, halting, labels, tau=0.1)
    torch.testing.assert_close(two[0], one[0])
    torch.testing.assert_close(two_grads[0], one_grads[0])


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_named(label):
    logits, halting, _ = make_inputs((2, (2,), (2,), 3))
    with pytest.raises(IndexError, match=f"label {label} is out of range: there are 3 classes"):
        halting_loss(logits, halting, torch.tensor([0, label]), tau=0.1)


REFUSED = {
    "tau": ({"tau": -1.0}, "tau is -1.0"),
    "tau nan": ({"tau": math.nan}, "tau is nan"),
    "smoothing": ({"label_smoothing": 2.0}, "label_smoothing is 2.0"),
    "reduction": ({"reduction": "avg"}, "reduction is 'avg'"),
    "empty": ({"empty": "one"}, "empty is 'one'"),
    "normalizer": ({"normalizer": 3.0, "reduction": "sum"}, "normalizer replaces"),
    "blocks": ({"eta": [1.0]}, r"eta has shape \(1,\); there are 4 blocks"),
    "class weight": ({"class_weight": torch.ones(4)}, r"class_weight has shape \(4,\)"),
    "mask": ({"reg_mask": torch.ones(5)}, "reg_mask is torch.float32"),
    "labels": ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels have shape \(3,\)"),
    "soft labels": ({"labels": torch.zeros(5)}, "as probabilities"),
    "halting": ({"halting_logits": torch.zeros(4, 6)}, r"they must have \(4, 5\)"),
    "one class": ({"logits": torch.zeros(4, 5, 1)}, "1 classes, not 2 or more"),
    "integers": ({"logits": torch.zeros(4, 5, 2).long()}, "both must be float"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_its_value(change, message):
    logits, halting, labels = make_inputs((4, (5,), (5,), 3))
    good = {"logits": logits, "halting_logits": halting, "labels": labels, "tau": 0.1}
    with pytest.raises(ValueError, match=message):
        halting_loss(**{**good, **change})


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap"])
def test_transforms_of_functions_are_refused_in_words(transform):
    z, u, y = torch.randn(3, 5, 4), torch.randn(3, 5), torch.zeros(5, dtype=torch.int64)

    def loss(logits):
        return halting_loss(logits, u, y, tau=0.1).loss

    with pytest.raises(RuntimeError, match=r"cannot be used inside the transforms of torch\.func"):
        if transform == "jvp":
            torch.func.jvp(loss, (z,), (torch.ones_like(z),))
        elif transform == "grad":
            torch.func.grad(loss)(z)
        else:
            torch.func.vmap(loss)(z.expand(2, -1, -1, -1))


def test_a_tangent_is_refused_and_not_dropped():
    z, u, y = torch.randn(3, 5, 4), torch.randn(3, 5), torch.zeros(5, dtype=torch.int64)
    with forward_ad.dual_level():
        halting_loss(z, u, y, tau=0.1)  # nothing to differentiate
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            halting_loss(forward_ad.make_dual(z, torch.ones_like(z)), u, y, tau=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": torch.ones(3, 1)}, r"alpha has shape \(3, 1\); there are 3 blocks"),
        ({"beta": [1.0, 2.0]}, r"beta has shape \(2,\); there are 3 blocks"),
        ({"class_weight": torch.ones(2, 2)}, r"class_weight has shape \(2, 2\).*must be a float"),
        ({"class_weight": [1.0] * 4}, r"class_weight is a list; it must be a float tensor of \(4,"),
        ({"class_weight": torch.ones(4, dtype=torch.bool)}, "torch.bool; it must be a float"),
        ({"normalizer": torch.tensor([7.0])}, "normalizer is .* a number or a 0-dim tensor"),
        ({"normalizer": (1, 2, 3)}, "a pair of them"),
        ({"normalizer": [7, 5]}, "a pair of them"),
    ],
)
def test_a_weight_or_count_of_another_form_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        halting_loss(
            torch.randn(3, 5, 4), torch.randn(3, 5), torch.zeros(5).long(), tau=0.1, **options
        )


def test_the_gradient_is_not_written_over_logits_with_gaps_nor_over_a_parameter():
    u, y = torch.randn(3, 5), torch.zeros(5, dtype=torch.int64)
    split = (torch.randn(3, 5, 6, requires_grad=True) * 1)[..., :4]
    with pytest.raises(ValueError, match=r"inplace needs each block's logits without gaps"):
        halting_loss(split, u, y, tau=0.1, inplace=True)
    parameter = torch.randn(3, 5, 4, requires_grad=True)
    before = parameter.detach().clone()
    with torch.no_grad(), pytest.raises(ValueError, match="over a leaf that requires grad"):
        halting_loss(parameter, u, y, tau=0.1, inplace=True)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("logit", [-1e2, -1e6, -1e8, -1e12, -1e30, -3e38])
def test_a_label_that_no_block_gives_a_chance_is_still_shared_out_among_them(logit):
    """By r_n, which w_n and the other classes' logits settle when the label's are all the same."""
    torch.manual_seed(0)
    z, u = torch.randn(3, 5, 4), torch.randn(3, 5)
    z[:, 2, 0] = logit
    h = u[:, 2].double().sigmoid()
    w = torch.stack([(1 - h[0]) * (1 - h[0] * h[1]), h[0] * (1 - h[0] * h[1]), h[0] * h[1]])
    share = w * (-z[:, 2, 1:].double().logsumexp(-1)).exp()
    z.requires_grad_()
    halting_loss(z, u, torch.zeros(5, dtype=torch.int64), tau=0.0, reduction="sum").loss.backward()
    torch.testing.assert_close(z.grad[:, 2, 0].double(), -share / share.sum(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("logit", [1e6, 1e12, 1e30, 3e38])
def test_a_label_beneath_others_that_are_certain_is_shared_out_too(logit):
    """The other classes' logits are huge, and how many of them there are tells the blocks apart."""
    z, u = torch.zeros(2, 1, 4), torch.zeros(2, 1)
    z[0, 0, 1], z[1, 0, 1:3] = logit, logit
    z.requires_grad_()
    loss = halting_loss(z, u, torch.zeros(1, dtype=torch.int64), tau=0.0).loss
    loss.backward()
    share = torch.tensor([0.5 * 1.0, 0.5 * 0.5])  # w_n / (how many share the probability)
    torch.testing.assert_close(z.grad[:, 0, 0], -share / share.sum())
