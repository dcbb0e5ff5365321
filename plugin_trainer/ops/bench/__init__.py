"""Times the kernels beside what they replace: the same work, checked first, taken in turns.

`ptrain kernels bench` prints the short table; `python -m benchmarks.kernels` in the repository the
long one, of the same parts.
"""

from plugin_trainer.ops.bench.short import run_short_bench

__all__ = ["run_short_bench"]
