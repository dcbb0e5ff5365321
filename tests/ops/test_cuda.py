"""The kernels on a GPU, against the same arithmetic on the CPU: results, graphs, no waiting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from plugin_trainer.ops import FusedAdamW, grad_norm, halting_exit, halting_loss, library
from plugin_trainer.ops.ema import PreparedEma, ema_update_


def _why_not() -> str:
    if not torch.cuda.is_available():
        return "there is no GPU"
    compiled = library.find()
    if compiled is None or not compiled.cuda:
        return f"the library has no CUDA kernels: {library.status().reason}"
    return ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Around a pack of 16 bytes, a block's turn, a chunk of 4096 and one of 16384; and none.
SHAPES = ((1,), (3,), (0,), (5, 7), (), (255,), (4097,), (129, 131), (1 << 14,), (70_001,))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


@pytest.fixture
def never_waits() -> Iterator[Callable[[bool], None]]:
    """Call with True: from there on it is an error that the host waits for the device."""

    def switch(on: bool) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield switch
    torch.cuda.set_sync_debug_mode("default")


def cuda_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().cuda()


# -------------------------------------------------------------------------------------- the average


def pairs() -> tuple[list[Tensor], list[Tensor]]:
    weights = [torch.randn(shape).to(dtype) for dtype in DTYPES for shape in SHAPES]
    weights += [
        torch.arange(5000),
        torch.randn(33) > 0,
        torch.randn(6, 8, 3, 3).to(memory_format=torch.channels_last),
    ]
    weights.append(torch.randn(1000)[1:])  # not aligned to 16 bytes
    shadows = []
    for weight in weights:
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        dtype = wide if weight.is_floating_point() else weight.dtype
        shadows.append(torch.zeros_like(weight, dtype=dtype))
    return shadows, weights


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999, 1.0])
def test_the_average_is_that_of_the_cpu_to_the_last_bit(decay: float) -> None:
    shadows, weights = pairs()
    on_gpu = [cuda_copy(shadow) for shadow in shadows]
    weights_on_gpu = [cuda_copy(weight) for weight in weights]
    weights_on_gpu[-1] = torch.cat([weights_on_gpu[-1][:1], weights_on_gpu[-1]])[1:]
    for _ in range(2):
        ema_update_(shadows, weights, decay=decay)
        ema_update_(on_gpu, weights_on_gpu, decay=decay)
    for index, (ours, expected) in enumerate(zip(on_gpu, shadows, strict=True)):
        assert torch.equal(ours.cpu(), expected), index


def test_an_average_of_thousands_of_tensors() -> None:
    weights = [torch.randn(256, device="cuda") for _ in range(2500)]
    shadows = [torch.zeros_like(weight) for weight in weights]
    PreparedEma(shadows, weights)(0.75)
    for shadow, weight in zip(shadows, weights, strict=True):
        torch.testing.assert_close(shadow, 0.25 * weight)


def test_the_average_in_a_graph_takes_a_new_decay_and_never_waits(
    never_waits: Callable[[bool], None],
) -> None:
    shadows, weights = pairs()
    shadows = [
        cuda_copy(s) for s, w in zip(shadows, weights, strict=True) if w.dtype.is_floating_point
    ]
    weights = [cuda_copy(w) for w in weights if w.dtype.is_floating_point]
    expected = [shadow.clone() for shadow in shadows]
    decay = torch.tensor(0.9, dtype=torch.float64, device="cuda")
    update = PreparedEma(shadows, weights)
    update(1.0)  # loads the kernels, changes nothing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(decay)
    assert all(map(torch.equal, shadows, expected))
    never_waits(True)
    for value in (0.9, 0.5, 0.999):
        decay.fill_(value)
        graph.replay()
        ema_update_(expected, weights, decay=value)
    never_waits(False)
    for ours, wanted in zip(shadows, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


# ----------------------------------------------------------------------------------------- the norm


def test_the_norm_is_exact_and_has_the_same_bits_each_time() -> None:
    gradients = [torch.randn(shape).to(dtype) for dtype in DTYPES for shape in SHAPES]
    on_gpu = [cuda_copy(gradient) for gradient in gradients]
    exact = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    norms = [grad_norm(on_gpu) for _ in range(5)]
    assert norms[0].device == on_gpu[0].device
    assert norms[0].dtype == torch.float64
    assert norms[0].item() == pytest.approx(exact, rel=1e-12)
    assert len({norm.item() for norm in norms}) == 1
    on_gpu[7].view(-1)[3] = math.nan
    assert math.isnan(grad_norm(on_gpu).item())


# ----------------------------------------------------------------------------------------- the step


def parameters(dtype: torch.dtype, device: str) -> list[torch.nn.Parameter]:
    torch.manual_seed(3)
    some = [torch.randn(shape) * 0.1 for shape in SHAPES if 0 not in shape]
    return [torch.nn.Parameter(one.to(device=device, dtype=dtype)) for one in some]


def give_gradients(params: list[torch.nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for index, param in enumerate(params):
        gradient = torch.randn(param.shape).to(device=param.device, dtype=param.dtype)
        param.grad = None if index == 2 and seed == 1 else gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_steps_are_those_of_the_cpu(dtype: torch.dtype, max_norm: float) -> None:
    results = []
    for device in ("cpu", "cuda"):
        params = parameters(dtype, device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        shadows = {param: param.detach().to(wide, copy=True) for param in params}
        groups = [{"params": params[:4]}, {"params": params[4:], "lr": 3e-3, "weight_decay": 0.1}]
        optimizer = FusedAdamW(groups, lr=1e-2, max_norm=max_norm)
        optimizer.attach_average(shadows)
        optimizer.average_decay = 0.9
        for seed in range(4):
            give_gradients(params, seed)
            optimizer.step()
        state = [optimizer.state[param] for param in params]
        results.append((params, list(shadows.values()), state))
    (params, shadows, states), (ours, our_shadows, our_states) = results
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}.get(dtype, 1e-12)
    for one, expected in zip([*ours, *our_shadows], [*params, *shadows], strict=True):
        torch.testing.assert_close(one.cpu(), expected, rtol=tolerance, atol=tolerance / 10)
    for state, expected_state in zip(our_states, states, strict=True):
        assert state["step"].is_cuda
        assert state["step"].item() == expected_state["step"].item()
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                state[key].cpu(), expected_state[key], rtol=max(tolerance, 1e-5), atol=1e-7
            )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_changes_nothing_and_is_not_counted(
    bad: float, never_waits: Callable[[bool], None]
) -> None:
    params = parameters(torch.float32, "cuda")
    optimizer = FusedAdamW(params, lr=1e-2, max_norm=1.0)
    give_gradients(params, 0)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    moments = [optimizer.state[param]["exp_avg"].clone() for param in params]
    give_gradients(params, 2)
    gradient = params[5].grad
    assert gradient is not None
    gradient.view(-1)[0] = bad
    never_waits(True)
    optimizer.step()
    never_waits(False)
    assert not math.isfinite(optimizer.grad_norm.item())
    assert all(map(torch.equal, params, before))
    for param, moment in zip(params, moments, strict=True):
        assert torch.equal(optimizer.state[param]["exp_avg"], moment)
        assert optimizer.state[param]["step"].item() == 1


def test_a_step_in_a_graph_takes_new_settings() -> None:
    count, size = 40, 5000
    torch.manual_seed(0)
    start = [torch.randn(size, device="cuda") for _ in range(count)]
    gradients = [torch.randn(size, device="cuda") for _ in range(count)]
    shadow_start = [torch.zeros_like(one) for one in start]
    hyper = torch.tensor([[1e-2, 0.9, 0.999, 1e-8, 0.01, 0.9]], dtype=torch.float64, device="cuda")

    def fresh() -> tuple[list[Tensor], ...]:
        moments = [torch.zeros_like(one) for one in start]
        squares = [torch.zeros_like(one) for one in start]
        steps = [torch.zeros((), device="cuda") for _ in start]
        weights = [one.clone() for one in start]
        return weights, moments, squares, steps, [one.clone() for one in shadow_start]

    def step(lists: tuple[list[Tensor], ...]) -> None:
        weights, moments, squares, steps, shadows = lists
        norm = torch.ops.ptrain.grad_norm(gradients)
        torch.ops.ptrain.fused_step_(
            weights,
            gradients,
            moments,
            squares,
            steps,
            shadows,
            [0] * count,
            hyper,
            norm,
            1.0,
            False,
        )

    rates = (1e-2, 5e-3, 1e-4)
    eager, captured = fresh(), fresh()
    for rate in rates:
        hyper[0, 0] = rate
        step(eager)
    step(fresh())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    # What is allocated and freed in between must not be what the graph reads.
    rubbish = [torch.full((100_000,), math.nan, device="cuda") for _ in range(20)]
    for rate in rates:
        hyper[0, 0] = rate
        graph.replay()
    del rubbish
    for some, others in zip(captured, eager, strict=True):
        assert all(map(torch.equal, some, others))
    assert captured[3][0].item() == len(rates)


# --------------------------------------------------------------------------------- the halting loss

CASES = {
    "rows": {"shape": (12, 257), "classes": 2},
    "tokens": {"shape": (6, 5, 33), "classes": 9},
    "sentences": {"shape": (6, 5, 33), "classes": 9, "sentences": True},
    "many classes": {"shape": (3, 40), "classes": 1000},
    "many blocks": {"shape": (100, 17), "classes": 3},
    "empty": {"shape": (4, 0), "classes": 3},
}
SETTINGS = {
    "plain": {},
    "weighted": {"class_weight": True, "eta": 0.3},
    "smooth": {"label_smoothing": 0.1, "beta": 0.2},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "normalizer": {"normalizer": (17.0, 5.0)},
    "soft": {"soft": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_the_halting_loss_is_that_of_the_cpu(case: str, settings: str, dtype: torch.dtype) -> None:
    shape, classes = CASES[case]["shape"], CASES[case]["classes"]
    logits = (torch.randn(*shape, classes) * 4).to(dtype)
    halting = (torch.randn(shape[:2] if CASES[case].get("sentences") else shape) * 2).to(dtype)
    labels = torch.randint(0, classes, shape[1:])
    labels[..., ::3] = -100
    options = dict(SETTINGS[settings])
    if options.pop("soft", False):
        labels = torch.rand(*shape[1:], classes).softmax(-1)
    weight = torch.rand(classes) + 0.1 if options.pop("class_weight", False) else None
    results = []
    for device in ("cpu", "cuda"):
        z = logits.detach().clone().to(device).requires_grad_()
        u = halting.detach().clone().to(device).requires_grad_()
        if weight is not None:
            options["class_weight"] = weight.to(device)
        out = halting_loss(z, u, labels.to(device), tau=0.3, **options)
        torch.manual_seed(1)
        out.loss.backward(torch.rand(out.loss.shape, dtype=out.loss.dtype).to(device))
        assert z.grad is not None
        assert u.grad is not None
        results.append([*(field.detach() for field in out), z.grad, u.grad])
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}.get(dtype, 1e-9)
    for index, (expected, ours) in enumerate(zip(*results, strict=True)):
        rounded = index >= 7  # only the gradients have the logits' own precision
        rtol = tolerance if rounded else max(min(tolerance, 1e-5), 1e-9)
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        atol = 0.0 if math.isnan(scale) else rtol * min(scale, 1.0)
        torch.testing.assert_close(ours.cpu(), expected, rtol=rtol, atol=atol, equal_nan=True)


def test_the_halting_loss_has_the_same_bits_each_time_and_never_waits(
    never_waits: Callable[[bool], None],
) -> None:
    z = torch.randn(12, 4096, 9, device="cuda", requires_grad=True)
    u = torch.randn(12, 4096, device="cuda", requires_grad=True)
    labels = torch.randint(0, 9, (4096,), device="cuda")
    halting_loss(z, u, labels, tau=0.1).loss.backward()
    runs = []
    never_waits(True)
    for _ in range(3):
        z.grad = u.grad = None
        loss = halting_loss(z, u, labels, tau=0.1).loss
        loss.backward()
        runs.append((loss.detach(), z.grad, u.grad))
    never_waits(False)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [-7, 4, 1 << 40])
def test_a_label_that_is_no_class_makes_the_loss_nan_and_no_other_rows_gradient(
    label: int, smoothing: float
) -> None:
    z = torch.randn(3, 50, 4, device="cuda", requires_grad=True)
    u = torch.randn(3, 50, device="cuda", requires_grad=True)
    labels = torch.randint(0, 4, (50,), device="cuda")
    labels[17] = label
    out = halting_loss(z, u, labels, tau=0.1, label_smoothing=smoothing)
    out.loss.backward()
    assert z.grad is not None
    assert u.grad is not None
    assert math.isnan(out.loss.item())
    bad = z.grad.isnan().any(-1).any(0)
    assert bad.nonzero().flatten().tolist() == [17]
    assert u.grad.isnan().any(0).nonzero().flatten().tolist() == [17]


@pytest.mark.parametrize("case", ["rows", "tokens", "sentences", "many classes"])
def test_exits_are_those_of_the_cpu(case: str) -> None:
    shape, classes = CASES[case]["shape"], CASES[case]["classes"]
    logits = torch.randn(*shape, classes) * 8
    halting = torch.randn(shape[:2] if CASES[case].get("sentences") else shape) * 2 - 4
    valid = torch.rand(shape[1:]) > 0.2
    for delta in (0.0, 0.2):
        expected = halting_exit(logits, halting, delta=delta, valid=valid)
        ours = halting_exit(logits.cuda(), halting.cuda(), delta=delta, valid=valid.cuda())
        assert torch.equal(ours.exit_block.cpu(), expected.exit_block)
        torch.testing.assert_close(ours.log_answer.cpu(), expected.log_answer)
        torch.testing.assert_close(ours.full_log_answer.cpu(), expected.full_log_answer)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU, or none")
def test_kernels_run_on_the_device_of_their_tensors() -> None:
    weights = [torch.randn(1000, device="cuda:1")]
    shadows = [torch.zeros(1000, device="cuda:1")]
    assert torch.cuda.current_device() == 0
    ema_update_(shadows, weights, decay=0.5)
    torch.testing.assert_close(shadows[0], weights[0] / 2)
    assert grad_norm(weights).device == weights[0].device
