"""The kernels beside what they replace, in one run each, and whether they are as fast as they must.

python -m benchmarks.kernels [--only NAME ...] [--rounds N] [--device cuda] [--markdown]
                             [--json FILE] [--into docs/kernels.md]
"""
