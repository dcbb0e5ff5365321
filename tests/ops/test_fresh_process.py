"""The ops work in a compiled graph though nothing has loaded the kernels before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import forkserver

pytestmark = pytest.mark.process

BEGIN = """
import torch
from plugin_trainer import ops
def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")
"""

CASES = {
    "halting_loss": """
z, u = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 5)
y = torch.tensor([0, 1, 2, 3, 0])
loss = lambda z: ops.halting_loss(z, u, y, tau=0.1).loss
(graph,) = torch.autograd.grad(compiled(loss)(z), z)
(eager,) = torch.autograd.grad(loss(z), z)
torch.testing.assert_close(graph, eager)
""",
    "halting_exit": """
z, u = torch.randn(3, 5, 4), torch.randn(3, 5)
graph = compiled(lambda z: ops.halting_exit(z, u).exit_block)(z)
assert torch.equal(graph, ops.halting_exit(z, u).exit_block)
""",
    "grad_norm": """
g = [torch.randn(7), torch.randn(2, 3)]
assert torch.equal(compiled(lambda: ops.grad_norm(g))(), ops.grad_norm(g))
""",
    "ema_update_": """
shadow, weight = torch.zeros(5), torch.ones(5)
compiled(lambda: ops.ema_update_([shadow], [weight], decay=0.75))()
torch.testing.assert_close(shadow, torch.full((5,), 0.25))
""",
    "fused_step_": """
p, g, m, v, s = torch.ones(5), torch.ones(5), torch.zeros(5), torch.zeros(5), torch.zeros(())
hyper = torch.tensor([[0.1, 0.9, 0.999, 1e-8, 0.0, 1.0]], dtype=torch.float64)
compiled(lambda: ops.fused_step_([p], [g], [m], [v], [s], hyper=hyper))()
torch.testing.assert_close(p, torch.full((5,), 0.9))
assert s == 1
""",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_op_may_be_used_first_inside_a_compiled_graph(case):
    done = forkserver.run([sys.executable, "-c", BEGIN + case], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_using_the_ops_does_not_import_the_compiler():
    use = """
shadow, weight = torch.zeros(5), torch.ones(5)
ops.ema_update_([shadow], [weight], decay=0.75)
ops.grad_norm([weight])
ops.halting_loss(torch.randn(3, 5, 4), torch.randn(3, 5), torch.tensor([0, 1, 2, 3, 0]), tau=0.1)
import sys
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", BEGIN + use], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
