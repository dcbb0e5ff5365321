"""What a training loop costs per step beyond the work itself: by hand, with the engine, with peers.

python -m benchmarks.loop [--rounds N] [--only NAME ...] [--json FILE] [--markdown]
"""
