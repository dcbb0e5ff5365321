"""FusedAdamW beside clip_grad_norm_, torch.optim.AdamW and a moving average, and in their place."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from plugin_trainer.ops import FusedAdamW, ema_update_
from plugin_trainer.ops.step import reference

AdamW = torch.optim.AdamW


def make_model(*, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(9, 33), nn.Tanh(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 3)
    )
    return model.to(dtype)


def groups_of(model):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": decayed, "weight_decay": 0.1, "lr": 3e-3},
        {"params": others, "weight_decay": 0.0, "betas": (0.8, 0.95), "eps": 1e-6},
    ]


def batches(count, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 9, generator=generator), torch.randn(16, 3, generator=generator))
        for _ in range(count)
    ]


def backward(model, batch):
    dtype = next(model.parameters()).dtype
    inputs, targets = (x.to(dtype) for x in batch)
    model.zero_grad()
    loss = 3.0 * (model(inputs) - targets).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, some, *, max_norm=None, shadows=None, decay=0.9):
    """The hand-written loop if max_norm is given, otherwise the optimizer does it all."""
    for step, batch in enumerate(some):
        backward(model, batch)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9 if step % 3 == 0 else 1.05
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if shadows is not None and max_norm is not None:
            ema_update_(shadows, [p.detach() for p in model.parameters()], decay=decay)


def bits(model, optimizer):
    state = optimizer.state_dict()["state"]
    return [p.detach().clone() for p in model.parameters()] + [
        state[i][key].clone() for i in sorted(state) for key in sorted(state[i])
    ]


def equal(one, two):
    return len(one) == len(two) and all(map(torch.equal, one, two))


def distance(model, other):
    return max(
        (p.double() - q.double()).abs().max().item()
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}])
def test_forty_steps_are_those_of_torch(way):
    ours, theirs, exact = make_model(), make_model(), make_model(dtype=torch.float64)
    fused = FusedAdamW(groups_of(ours), 1e-2, max_norm=0.7)
    fused.attach_average({p: p.detach().clone() for p in ours.parameters()})
    fused.average_decay = 0.9
    shadows = [p.detach().clone() for p in theirs.parameters()]
    exact_shadows = [p.detach().clone() for p in exact.parameters()]
    some = batches(40)
    train(ours, fused, some)
    train(theirs, AdamW(groups_of(theirs), 1e-2, **way), some, max_norm=0.7, shadows=shadows)
    train(exact, AdamW(groups_of(exact), 1e-2), some, max_norm=0.7, shadows=exact_shadows)
    # Forty steps of rounding to 24 bits: both are about 1e-6 from float64 and from one another; a
    # wrong term anywhere (another order of decay and update, say) is 1e-4.
    assert distance(ours, exact) < 5e-6 and distance(theirs, exact) < 5e-6
    assert distance(ours, theirs) < 5e-6
    for param, shadow, exact_shadow in zip(ours.parameters(), shadows, exact_shadows, strict=True):
        averaged = fused._shadow_of[param]
        torch.testing.assert_close(averaged, shadow, rtol=1e-5, atol=5e-6)
        torch.testing.assert_close(averaged.double(), exact_shadow, rtol=1e-5, atol=5e-6)


def test_float64_is_torch_to_the_last_digits():
    ours, theirs = make_model(dtype=torch.float64), make_model(dtype=torch.float64)
    some = batches(20)
    train(ours, FusedAdamW(groups_of(ours), max_norm=0.7), some)
    train(theirs, AdamW(groups_of(theirs)), some, max_norm=0.7)
    assert distance(ours, theirs) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_have_float32_moments(dtype):
    model = make_model(dtype=dtype)
    wide = copy.deepcopy(model).float()
    fused, plain = FusedAdamW(model.parameters(), 1e-2), AdamW(wide.parameters(), 1e-2)
    for batch in batches(5):
        backward(model, batch)
        for p, q in zip(model.parameters(), wide.parameters(), strict=True):
            q.data.copy_(p.data)
            q.grad = p.grad.float()
        fused.step()
        plain.step()
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        # The weight is the float32 one, rounded once.
        torch.testing.assert_close(p, q.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
        for key in ("exp_avg", "exp_avg_sq"):
            assert fused.state[p][key].dtype == torch.float32
            torch.testing.assert_close(
                fused.state[p][key], plain.state[q][key], rtol=1e-5, atol=1e-9
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_goes_on_bit_by_bit(dtype):
    some = batches(12)
    whole = make_model(dtype=dtype)
    optimizer = FusedAdamW(groups_of(whole), max_norm=0.7)
    train(whole, optimizer, some)
    first = make_model(dtype=dtype)
    before = FusedAdamW(groups_of(first), max_norm=0.7)
    train(first, before, some[:6])
    file = io.BytesIO()
    torch.save((first.state_dict(), before.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second = make_model(dtype=dtype, seed=9)
    second.load_state_dict(weights)
    after = FusedAdamW(groups_of(second), max_norm=0.7)
    after.load_state_dict(state)
    train(second, after, some[6:])
    assert equal(bits(whole, optimizer), bits(second, after))


@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}])
def test_states_pass_between_torch_and_here(way):
    some = batches(12)
    straight = make_model()
    train(straight, AdamW(groups_of(straight)), some, max_norm=0.7)
    for first_is_ours in (False, True):
        model = make_model()
        halves = [FusedAdamW(groups_of(model), max_norm=0.7), AdamW(groups_of(model), **way)]
        if not first_is_ours:
            halves.reverse()
        for optimizer, part in zip(halves, (some[:6], some[6:]), strict=True):
            if optimizer is halves[1]:
                optimizer.load_state_dict(copy.deepcopy(halves[0].state_dict()))
            train(
                model,
                optimizer,
                part,
                max_norm=0.7 if isinstance(optimizer, FusedAdamW) is False else None,
            )
        assert distance(model, straight) < 5e-6
        state = halves[1].state_dict()["state"]
        assert all(set(state[i]) == {"step", "exp_avg", "exp_avg_sq"} for i in range(6))
        assert all(state[i]["step"].item() == 12 for i in range(6))


def test_a_state_that_does_another_step_is_refused():
    model = make_model()
    for option in ("amsgrad", "maximize"):
        saved = AdamW(groups_of(model), **{option: True}).state_dict()
        with pytest.raises(ValueError, match=rf"cannot do {option}=True \(in group 0\)"):
            FusedAdamW(groups_of(model)).load_state_dict(saved)


def test_a_parameter_without_a_gradient_is_skipped_but_averaged():
    ours, theirs = make_model(), make_model()
    fused, plain = FusedAdamW(ours.parameters()), AdamW(theirs.parameters())
    fused.attach_average({p: torch.zeros_like(p) for p in ours.parameters()})
    fused.average_decay = 0.5
    for step, batch in enumerate(batches(6)):
        for model, optimizer in ((ours, fused), (theirs, plain)):
            backward(model, batch)
            for i, p in enumerate(model.parameters()):
                if (i + step) % 3 == 0 or i == 1:
                    p.grad = None
            optimizer.step()
    assert distance(ours, theirs) < 1e-6
    for (i, p), q in zip(enumerate(ours.parameters()), theirs.parameters(), strict=True):
        mine, its = fused.state.get(p, {}), plain.state.get(q, {})
        assert set(mine) == set(its) and (i == 1) == (not mine)
        if mine:
            assert mine["step"].item() == its["step"].item() == 4
    still = list(ours.parameters())[1]
    torch.testing.assert_close(fused._shadow_of[still], still.detach() * (1 - 0.5**6))


def test_no_gradient_at_all_is_a_norm_of_zero():
    model = make_model()
    optimizer = FusedAdamW(model.parameters(), max_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == 0.0 and not optimizer.state_dict()["state"]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_leaves_every_bit(bad):
    model = make_model()
    optimizer = FusedAdamW(groups_of(model), max_norm=0.7)
    optimizer.attach_average({p: p.detach().clone() for p in model.parameters()})
    optimizer.average_decay = 0.9
    train(model, optimizer, batches(3))
    before = bits(model, optimizer) + [s.clone() for s in optimizer._shadow_of.values()]
    backward(model, batches(1)[0])
    next(model.parameters()).grad[0, 0] = bad
    optimizer.step()
    assert not optimizer.grad_norm.isfinite()
    assert equal(before, bits(model, optimizer) + list(optimizer._shadow_of.values()))
    train(model, optimizer, batches(1))
    assert not equal(before, bits(model, optimizer) + list(optimizer._shadow_of.values()))


def test_the_norm_is_between_measure_and_apply():
    ours, theirs = make_model(), make_model()
    fused = FusedAdamW(ours.parameters())
    plain = FusedAdamW(theirs.parameters(), max_norm=0.7)
    for batch in batches(3):
        backward(ours, batch)
        norm = fused.measure()
        wanted = math.sqrt(sum(p.grad.double().square().sum().item() for p in ours.parameters()))
        assert norm.item() == pytest.approx(wanted, rel=1e-12)
        fused.apply(norm, max_norm=0.7, decay=None)
        backward(theirs, batch)
        plain.step()
    assert equal(bits(ours, fused), bits(theirs, plain))
    with pytest.raises(ValueError, match="call measure"):
        fused.apply(norm)


def test_layouts_other_than_contiguous():
    torch.manual_seed(0)

    def parameters():
        torch.manual_seed(0)
        conv = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
        turned = nn.Parameter(torch.randn(6, 7).T)
        holed = nn.Parameter(torch.randn(10, 4)[::2])
        return [conv, turned, holed, nn.Parameter(torch.randn(())), nn.Parameter(torch.zeros(0, 3))]

    ours, theirs = parameters(), parameters()
    fused, plain = FusedAdamW(ours, max_norm=1.0), AdamW(theirs)
    fused.attach_average({p: torch.zeros(p.shape) for p in ours})  # contiguous, as none of them is
    fused.average_decay = 0.5
    shadows = [torch.zeros(p.shape) for p in theirs]
    for _ in range(4):
        gradients = [torch.randn(p.shape) for p in ours]
        for some in (ours, theirs):
            for p, g in zip(some, gradients, strict=True):
                p.grad = g.clone()  # contiguous
        nn.utils.clip_grad_norm_(theirs, 1.0)
        plain.step()
        fused.step()
        ema_update_(shadows, [p.detach() for p in theirs], decay=0.5)
    for p, q, shadow in zip(ours, theirs, shadows, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fused._shadow_of[p], shadow, rtol=1e-6, atol=1e-6)
        assert fused.state[p]["exp_avg"].stride() == plain.state[q]["exp_avg"].stride()


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_that_are_zeroed_or_kept(keep):
    ours, theirs = make_model(), make_model()
    fused = FusedAdamW(ours.parameters(), max_norm=0.7, zero_grads=True)
    plain = FusedAdamW(theirs.parameters(), max_norm=0.7)
    for batch in batches(5):
        inputs, targets = batch
        for model in (ours, theirs):
            (model(inputs) - targets).square().mean().backward()
        fused.step()
        plain.step()
        assert not any(p.grad.any() for p in ours.parameters())
        if keep:
            fused.zero_grad()
        plain.zero_grad(set_to_none=not keep)
    assert equal(bits(ours, fused), bits(theirs, plain))


def test_gradients_are_let_go_after_the_step():
    import weakref

    model = make_model()
    optimizer = FusedAdamW(model.parameters())
    backward(model, batches(1)[0])
    optimizer.step()
    memory = weakref.ref(next(model.parameters()).grad.untyped_storage())
    model.zero_grad()
    assert memory() is None or next(model.parameters()).grad is None
    assert optimizer._held is None


def test_gradients_that_stay_are_held_until_others_come():
    import weakref

    ours, theirs = make_model(), make_model()
    fused, plain = FusedAdamW(ours.parameters()), AdamW(theirs.parameters())
    held = []
    for step, batch in enumerate(batches(6)):
        for model, optimizer in ((ours, fused), (theirs, plain)):
            model.zero_grad(set_to_none=step == 4)
            inputs, targets = batch
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
        held.append(fused._held is not None)
        if step == 3:
            first = weakref.ref(next(ours.parameters()).grad)
    # The same tensors at steps 0 to 3, and again from 4 on: at the second sight they are held.
    assert held == [False, True, True, True, False, True]
    assert first() is None
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_an_equal_gradient_in_place_of_a_held_one_is_taken():
    single, several = (torch.nn.Parameter(torch.ones(size)) for size in (1, 3))
    optimizer = FusedAdamW([several, single], zero_grads=True)
    for parameter in (several, single):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in (single, several):
        held = parameter.grad.fill_(1.0)
        parameter.grad = held.clone()
        optimizer.step()
        assert not parameter.grad.any()
        assert held.all()


def test_an_equal_state_in_place_of_another_is_taken():
    single, several = (torch.nn.Parameter(torch.ones(size)) for size in (1, 3))
    optimizer = FusedAdamW([several, single])
    for parameter in (several, single):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in (single, several):
        before = optimizer.state[parameter]
        optimizer.state[parameter] = {key: value.clone() for key, value in before.items()}
        optimizer.step()
        assert float(optimizer.state[parameter]["step"]) == float(before["step"]) + 1


def test_an_equal_parameter_in_place_of_another_is_taken():
    single, several = (torch.nn.Parameter(torch.ones(size)) for size in (1, 3))
    optimizer = FusedAdamW([several, single])
    for parameter in (several, single):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    other = torch.nn.Parameter(single.detach().clone())
    other.grad = torch.ones(1)
    optimizer.param_groups[0]["params"][1] = other
    optimizer.state[other] = optimizer.state.pop(single)
    kept = single.detach().clone()
    optimizer.step()
    assert torch.equal(single, kept)
    assert other < kept


def test_a_hook_before_the_step_may_change_its_closure():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = FusedAdamW([parameter])
    parameter.grad = torch.ones(3)
    assert optimizer.step(lambda: 1.0) == 1.0
    optimizer.register_step_pre_hook(lambda *_: ((optimizer, lambda: 2.0), {}))
    assert optimizer.step(lambda: 1.0) == 2.0
    optimizer.register_step_pre_hook(lambda *_: ((optimizer,), {"closure": lambda: 3.0}))
    assert optimizer.step() == 3.0
    optimizer.register_step_pre_hook(lambda *_: 4)
    with pytest.raises(RuntimeError, match="hook before the step"):
        optimizer.step()


def test_other_memory_behind_a_parameter_is_followed():
    ours, theirs = make_model(), make_model()
    fused, plain = FusedAdamW(ours.parameters()), AdamW(theirs.parameters())
    for batch in batches(4):
        for p in ours.parameters():
            p.data = p.data.clone()
        for state in fused.state.values():
            state["exp_avg"].data = state["exp_avg"].data.clone()
        backward(ours, batch)
        backward(theirs, batch)
        fused.step()
        plain.step()
    assert distance(ours, theirs) < 1e-6


def test_a_state_put_in_another_ones_place_is_seen():
    ours, theirs = make_model(), make_model()
    fused, plain = FusedAdamW(ours.parameters()), AdamW(theirs.parameters())
    for step, batch in enumerate(batches(6)):
        backward(ours, batch)
        backward(theirs, batch)
        fused.step()
        plain.step()
        for optimizer in (fused, plain):
            if step == 2:
                for state in optimizer.state.values():
                    state["exp_avg"] = torch.zeros_like(state["exp_avg"])
            if step == 4:
                optimizer.state.clear()
    assert distance(ours, theirs) < 1e-6


def test_groups_can_come_later_and_copies_work():
    model = make_model()
    first, *rest = model.parameters()
    optimizer = FusedAdamW([first], max_norm=0.7)
    backward(model, batches(1)[0])
    optimizer.step()
    optimizer.add_param_group({"params": rest, "lr": 1e-2})
    optimizer.attach_average({p: p.detach().clone() for p in model.parameters()})
    optimizer.average_decay = 0.9
    train(model, optimizer, batches(2))
    for copied_model, copied in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        assert copied.max_norm == 0.7 and copied.average_decay == 0.9
        reference_model, reference_optimizer = copy.deepcopy((model, optimizer))
        train(copied_model, copied, batches(2, seed=5))
        train(reference_model, reference_optimizer, batches(2, seed=5))
        assert equal(bits(copied_model, copied), bits(reference_model, reference_optimizer))
        assert equal(
            list(copied._shadow_of.values()), list(reference_optimizer._shadow_of.values())
        )
        assert not equal(bits(copied_model, copied), bits(model, optimizer))


def test_schedulers_hooks_and_closures():
    model = make_model()
    optimizer = FusedAdamW(model.parameters(), 1e-2)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        backward(model, batches(1)[0])
        optimizer.apply(optimizer.measure())
        scheduler.step()
    assert calls == ["before", "after"] and optimizer.param_groups[0]["lr"] == 5e-3
    loss = optimizer.step(lambda: backward(model, batches(1)[0]))
    assert loss.item() > 0 and len(calls) == 4


def test_a_learning_rate_may_be_a_tensor():
    ours, theirs = make_model(), make_model()
    fused = FusedAdamW(ours.parameters(), torch.tensor(1e-2))
    plain = FusedAdamW(theirs.parameters(), float(torch.tensor(1e-2)))
    for batch in batches(3):
        backward(ours, batch)
        backward(theirs, batch)
        fused.step()
        plain.step()
    assert equal(bits(ours, fused), bits(theirs, plain))


def test_autograd_notices_that_the_weights_have_changed():
    model = make_model()
    optimizer = FusedAdamW(model.parameters())
    loss = model(batches(1)[0][0]).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "option",
    [
        {"amsgrad": True}, {"maximize": True}, {"foreach": True}, {"capturable": True},
        {"differentiable": True}, {"fused": True},
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_at_once(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"FusedAdamW cannot do {name}=True"):
        FusedAdamW(make_model().parameters(), **option)
    with pytest.raises(ValueError, match=rf"FusedAdamW cannot do {name}=True \(in group 0\)"):
        FusedAdamW([{"params": make_model().parameters(), **option}])


def test_bad_parameters_gradients_and_shadows_are_named():
    good, bad = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 is torch.complex64"):
        FusedAdamW([good, bad])
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = FusedAdamW(
        [{"params": [good]}, {"params": [good.detach().clone(), embedding.weight]}]
    )
    embedding(torch.tensor([1])).sum().backward()
    good.grad = torch.ones(3)
    before = [good.detach().clone(), embedding.weight.detach().clone()]
    with pytest.raises(ValueError, match="the gradient of parameter 1 of group 1 is sparse"):
        optimizer.step()
    assert torch.equal(good, before[0]) and torch.equal(embedding.weight, before[1])
    embedding.weight.grad = torch.ones(5, 3)
    optimizer.step()
    embedding.weight.grad = torch.ones(5, 3).to_sparse()
    after = [x.clone() for x in (good.detach(), optimizer.state[good]["step"])]
    with pytest.raises(ValueError, match="the gradient of parameter 1 of group 1 is sparse"):
        optimizer.step()
    assert equal(after, [good.detach(), optimizer.state[good]["step"]])
    with pytest.raises(ValueError, match=r"the shadow of parameter 0 of group 0 is torch.float64"):
        optimizer.attach_average({good: torch.ones(3, dtype=torch.float64)})
    with pytest.raises(ValueError, match="not in this optimizer"):
        optimizer.attach_average({nn.Parameter(torch.ones(2)): torch.ones(2)})
    with pytest.raises(ValueError, match="there is no average; attach_average first"):
        embedding.weight.grad = None
        optimizer.apply(optimizer.measure(), decay=0.9)
    with pytest.raises(ValueError, match="max_norm is -1"):
        FusedAdamW([good], max_norm=-1.0)


def test_the_plan_of_the_reference_is_the_plan_of_the_kernels(monkeypatch):
    ours, theirs = make_model(), make_model()
    fused, plain = (
        FusedAdamW(groups_of(ours), max_norm=0.7),
        FusedAdamW(groups_of(theirs), max_norm=0.7),
    )
    train(ours, fused, batches(6))
    monkeypatch.setattr(FusedAdamW, "_is_for_kernels", lambda self, param: False)
    train(theirs, plain, batches(6))
    assert all(isinstance(plan, reference.Plan) for plan, _ in plain._plans)
    assert distance(ours, theirs) < 1e-6


def one_parameter(*shape, dtype=torch.float32, **options):
    """A parameter with its gradient of ones, stepped once."""
    param = nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = FusedAdamW([nn.Parameter(torch.ones(2)), param], lr=0.1, **options)
    param.grad = torch.ones_like(param)
    optimizer.step()
    return param, optimizer


def guarded(count):
    """A view of a few elements, and the memory around it that nobody may write."""
    around = torch.full((4096,), 7.0)
    return around, around[1024 : 1024 + count]


def refused_twice(optimizer, message):
    for _ in range(2):  # once refused, a step is refused again
        with pytest.raises(ValueError, match=message):
            optimizer.step()


@pytest.mark.parametrize("part", ["param", "exp_avg", "exp_avg_sq", "shadow"])
@pytest.mark.parametrize("zero_grads", [False, True])
def test_memory_that_has_become_smaller_is_never_written_beyond(part, zero_grads):
    param, optimizer = one_parameter(64, zero_grads=zero_grads)
    shadow = torch.zeros(64)
    optimizer.attach_average({param: shadow})
    optimizer.average_decay = 0.5
    optimizer.step()
    around, view = guarded(4)
    state = optimizer.state[param]
    {"param": param, "shadow": shadow, **state}[part].data = view
    if part == "param":
        param.grad = None
        param.grad = torch.ones(4)
    count = state["step"].item()
    refused_twice(optimizer, r"of parameter 1 of group 0 has shape")
    assert torch.equal(around, torch.full_like(around, 7.0)) and state["step"].item() == count


@pytest.mark.parametrize("to", ["smaller", "bfloat16"])
@pytest.mark.parametrize("zero_grads", [False, True])
def test_a_held_gradient_that_no_longer_fits_is_named(to, zero_grads):
    param, optimizer = one_parameter(64, zero_grads=zero_grads)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    around, view = guarded(4)
    param.grad.data = view if to == "smaller" else torch.ones(64, dtype=torch.bfloat16)
    before = param.detach().clone()
    refused_twice(optimizer, r"the gradient of parameter 1 of group 0 (has shape|is torch.bfloat)")
    assert torch.equal(around, torch.full_like(around, 7.0)) and torch.equal(param, before)


def test_a_held_gradient_changed_between_the_halves_is_named():
    param, optimizer = one_parameter(64, zero_grads=True)
    norm = optimizer.measure()
    around, view = guarded(4)
    param.grad.data = view
    with pytest.raises(ValueError, match="the gradient of parameter 1 of group 0 has shape"):
        optimizer.apply(norm)
    assert torch.equal(around, torch.full_like(around, 7.0))


def test_a_held_gradient_that_now_has_gaps_is_zeroed_between_them():
    param, optimizer = one_parameter(64, zero_grads=True)
    around = torch.full((4096,), 7.0)
    param.grad.data = around[::64]
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(56.0)
    assert not around[::64].any() and (around == 7.0).sum() == 4096 - 64


@pytest.mark.parametrize("offset", [0, 16])
@pytest.mark.parametrize("part", ["param", "gradient", "exp_avg", "exp_avg_sq", "step", "shadow"])
def test_memory_that_was_given_back_is_named(part, offset):
    param, optimizer = one_parameter(64, zero_grads=True)
    optimizer.attach_average({param: torch.zeros(64)})
    optimizer.average_decay = 0.5
    optimizer.step()
    things = {"param": param, "gradient": param.grad, "shadow": optimizer._shadow_of[param]}
    tensor = {**things, **optimizer.state[param]}[part]
    tensor.data = torch.ones(offset + tensor.numel())[offset:].view(tensor.shape)
    optimizer.step()
    before = param.detach().clone()
    tensor.untyped_storage().resize_(0)
    refused_twice(optimizer, "parameter 1 of group 0 has lost its memory")
    assert part == "param" or torch.equal(param, before)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.t(),  # the same memory in another order
        lambda x: x.t().contiguous().t(),
    ],
)
def test_another_layout_behind_a_parameter_is_followed(other):
    results = []
    for make in (FusedAdamW, AdamW):
        torch.manual_seed(0)
        param = nn.Parameter(torch.randn(8, 8))
        optimizer = make([param], lr=0.1)
        for step in range(4):
            if step == 2:
                param.data = other(param.data)
            generator = torch.Generator().manual_seed(step)
            param.grad = None
            param.grad = torch.randn(8, 8, generator=generator).to(param.dtype)
            optimizer.step()
        results.append(param.detach().float())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_another_dtype_behind_a_parameter_is_followed():
    param, optimizer = one_parameter(64)
    wide, other = one_parameter(64)
    param.data = param.data.bfloat16()
    param.grad = None
    param.grad = torch.ones(64, dtype=torch.bfloat16)
    optimizer.step()
    other.step()
    torch.testing.assert_close(param, wide.bfloat16(), rtol=1e-2, atol=1e-3)
    state, wanted = optimizer.state[param], other.state[wide]
    assert state["exp_avg"].dtype == torch.float32 and torch.equal(state["step"], wanted["step"])
    torch.testing.assert_close(state["exp_avg"], wanted["exp_avg"])


def test_of_several_plans_none_is_applied_when_one_cannot_be(monkeypatch):
    good, bad = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(10)[::2])
    optimizer = FusedAdamW([good, bad], lr=0.1)
    good.grad, bad.grad = torch.ones(5), torch.ones(5)
    optimizer.step()
    norm = optimizer.measure()
    before = good.detach().clone()
    optimizer.state[bad]["exp_avg"].data = torch.zeros(3)
    with pytest.raises(ValueError, match="the exp_avg of parameter 1 of group 0 has shape"):
        optimizer.apply(norm)
    assert torch.equal(good, before)


def test_a_parameter_put_in_another_ones_place_is_stepped():
    _, optimizer = one_parameter(5)
    old = optimizer.param_groups[0]["params"][1]
    new = nn.Parameter(torch.zeros(5))
    new.grad = torch.ones(5)
    optimizer.param_groups[0]["params"][1] = new
    before = old.detach().clone()
    optimizer.step()
    torch.testing.assert_close(new.detach(), torch.full((5,), -0.1))
    assert torch.equal(old, before)


def test_a_state_that_was_cleared_begins_anew():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = FusedAdamW([first, second], lr=0.1)
    for clear in (
        lambda: optimizer.state.pop(second),
        lambda: optimizer.state.update({second: {}}),
        lambda: None,
    ):
        first.grad, second.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        clear()
    assert optimizer.state[second]["step"].item() == 1.0
    assert optimizer.state[first]["step"].item() == 3.0


def test_shared_memory_is_refused_by_group_and_position():
    first, second = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = FusedAdamW([first, second], lr=0.1, zero_grads=True)
    shadow = torch.zeros(4)
    with pytest.raises(ValueError, match=r"shadow of parameter 1 .* the shadow of parameter 0 "):
        optimizer.attach_average({first: shadow, second: shadow})
    with pytest.raises(ValueError, match="parameter 1 of group 0 shares memory with the shadow of"):
        optimizer.attach_average({first: second.data})
    first.grad, second.grad = torch.ones(4), torch.ones(4)
    optimizer.step()
    first.grad = second.grad
    with pytest.raises(ValueError, match=r"gradient of parameter 1 .* the gradient of parameter 0"):
        optimizer.step()
    first.grad = second.data
    with pytest.raises(
        ValueError, match=r"parameter 1 of .* shares .* the gradient of parameter 0"
    ):
        optimizer.step()
    first.grad = torch.ones(4)
    second.data = first.data
    before = first.detach().clone()
    refused_twice(optimizer, "parameter 1 of group 0 shares memory with parameter 0 of group 0")
    assert torch.equal(first, before)


def test_autograd_notices_that_an_average_has_moved():
    param, optimizer = one_parameter(4)
    shadow = torch.zeros(4)
    optimizer.attach_average({param: shadow})
    optimizer.average_decay = 0.5
    loss = (torch.ones(4, requires_grad=True) * shadow).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.process
@pytest.mark.parametrize("halves", [False, True])
def test_under_torch_compile_a_step_breaks_the_graph(halves):
    def run(optimizer, model, batch):
        backward(model, batch)
        if halves:
            optimizer.apply(optimizer.measure(), max_norm=0.5)
        else:
            optimizer.step()

    results = []
    for once in (run, torch.compile(run, backend="eager")):
        model = make_model()
        optimizer = FusedAdamW(model.parameters(), max_norm=0.5)
        for batch in batches(3):
            once(optimizer, model, batch)
        results.append(bits(model, optimizer))
    assert equal(*results)


@pytest.mark.parametrize("value", [{"count": 1}, 7, [1, 2]], ids=repr)
def test_a_state_that_is_of_no_parameter_is_left_alone(value):
    (model, optimizer), (other, plain) = (
        (model, FusedAdamW(model.parameters())) for model in (make_model(), make_model())
    )
    for place, batch in enumerate(batches(3)):
        if place != 1:
            optimizer.state["mine"] = copy.copy(value)
        backward(model, batch)
        optimizer.step()
        backward(other, batch)
        plain.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state.pop("mine") == value
    assert equal(bits(model, optimizer), bits(other, plain))


def test_a_state_that_is_of_no_parameter_may_come_first():
    model = make_model()
    optimizer = FusedAdamW(model.parameters())
    optimizer.state["mine"] = 7
    for batch in batches(2):
        backward(model, batch)
        optimizer.step()
    assert int(optimizer.state[model[0].weight]["step"]) == 2
