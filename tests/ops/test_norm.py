"""The norm against float64, its independence of threads and instruction sets, and its errors."""

from __future__ import annotations

import math

import pytest
import torch

from plugin_trainer.ops import grad_norm, library

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [(0,), (1,), (), (63,), (64,), (65,), (3, 5, 7), (40_003,)]

needs_kernels = pytest.mark.skipif(
    library.find() is None, reason="there are no compiled kernels here"
)


def make(sizes, dtype, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def exact(gradients):
    return math.sqrt(math.fsum(g.double().square().sum().item() for g in gradients))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape(dtype):
    gradients = make(SIZES, dtype)
    norm = grad_norm(gradients)
    assert norm.dtype == torch.float64 and norm.shape == () and not norm.requires_grad
    assert norm.item() == pytest.approx(exact(gradients), rel=1e-12)


def test_mixed_dtypes_and_strides():
    gradients = [make([(9, 4)], dtype, seed=i)[0] for i, dtype in enumerate(DTYPES)]
    gradients += [torch.randn(6, 4).T, torch.randn(10)[::2], torch.randn(3, 1).expand(3, 4)]
    assert grad_norm(gradients).item() == pytest.approx(exact(gradients), rel=1e-12)


def test_nothing_has_a_norm_of_zero():
    assert grad_norm([]).item() == 0.0
    assert grad_norm([torch.zeros(0)]).item() == 0.0


def test_one_tensor_of_23_million_elements_is_exact_where_torch_is_not():
    gradient = torch.randn(23_000_000, generator=torch.Generator().manual_seed(1)) * 1e-3
    wanted = gradient.double().norm().item()
    assert grad_norm([gradient]).item() == pytest.approx(wanted, rel=1e-8)
    assert abs(torch.linalg.vector_norm(gradient).item() / wanted - 1) > 1e-4


def test_a_list_of_a_models_sizes_is_exact():
    gradients = make([(384, 384), (1536, 384), (384,)] * 6 + [(30_522, 32)], torch.float32)
    assert grad_norm(gradients).item() == pytest.approx(exact(gradients), rel=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_instruction_sets_change_no_bit(dtype, threads, every_isa):
    gradients = make([(70_001,), (255,), (33,), (3, 50_000)] * 3, dtype)
    norms = set()
    for use in every_isa:
        use()
        for count in (1, 2, 3):
            threads(count)
            norms.add(grad_norm(gradients).item())
    assert len(norms) == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_comes_through(dtype, bad):
    for place in (0, 40_000):
        gradients = make(SIZES, dtype)
        gradients[-1][place] = bad
        assert not grad_norm(gradients).isfinite()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.eye(3).to_sparse(), r"gradient 1 is sparse"),
        (torch.ones(3, dtype=torch.int64), r"gradient 1 is torch.int64; it must be one of"),
        (torch.ones(3, dtype=torch.complex64), r"gradient 1 is torch.complex64"),
    ],
)
def test_bad_input_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        grad_norm([torch.ones(3), bad])


@pytest.mark.process
def test_torch_compile_takes_it_whole():
    gradients = make([(5,), (40_000,)], torch.float32)
    compiled = torch.compile(lambda some: grad_norm(some) * 2, fullgraph=True, backend="aot_eager")
    assert compiled(gradients).item() == pytest.approx(2 * exact(gradients), rel=1e-12)


@needs_kernels
def test_opcheck():
    torch.library.opcheck(torch.ops.ptrain.grad_norm, (make(SIZES, torch.float32),))


@needs_kernels
def test_the_op_itself_refuses_too():
    with pytest.raises(RuntimeError, match=r"gradients\[1\] is torch.int64"):
        torch.ops.ptrain.grad_norm([torch.ones(2), torch.ones(2, dtype=torch.int64)])


def test_memory_that_was_given_back_is_named():
    gradients = [torch.ones(4), torch.ones(20)[16:]]
    gradients[1].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="gradient 1 has lost its memory"):
        grad_norm(gradients)
