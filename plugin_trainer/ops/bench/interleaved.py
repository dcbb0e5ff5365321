"""Times several ways of doing the same work in turns, and only those that do it right.

A memory's bandwidth and a shared machine's speed drift within seconds by more than what is to be
measured. So the variants take turns, A B C A B C..., and what is compared is a ratio of two times
of the same round: the median of these ratios stands still where times do not.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from plugin_trainer.ops import library

# A turn is as many calls as fill this: a clock and a cold start must not show in it.
TURN_S = 0.004
WARM_UP_S = 0.2
PIECE = 1 << 15  # elements: torch gives a second thread only to more, and waiting for one costs


@dataclass(frozen=True)
class Variant:
    """One way of doing the work.

    name       its row
    run        does it once, and may be called again and again
    error      how far what `run` makes lies from the truth; called once, before any timing
    tolerance  the largest error with which a time counts
    """

    name: str
    run: Callable[[], object]
    error: Callable[[], float] = lambda: 0.0
    tolerance: float = 0.0


@dataclass(frozen=True)
class Probe:
    """The machine's own limit for work that is bound by memory, measured among the variants.

    run          moves `moved_bytes` in the same pattern and does nothing else
    moved_bytes  per call
    ideal_bytes  what one call of a variant cannot avoid to move
    """

    run: Callable[[], object]
    moved_bytes: float
    ideal_bytes: float


def flat_probe(elements: int, *, ideal_bytes: float, device: str = "cpu") -> Probe:
    """The bandwidth of one flat float32 array that is updated in place from another.

    On a CPU 12 bytes an element, by the loop of the moving average without its arithmetic; on a GPU
    torch's copy, 8 bytes an element, which is what its vendors quote.
    """
    target, source = (torch.zeros(elements, device=device) for _ in range(2))
    if device != "cpu":
        return Probe(lambda: target.copy_(source), 8.0 * elements, ideal_bytes)
    if library.find() is not None and hasattr(torch.ops.ptrain, "probe_update"):
        return Probe(
            lambda: torch.ops.ptrain.probe_update(target, source), 12.0 * elements, ideal_bytes
        )
    return Probe(lambda: target.lerp_(source, 0.001), 12.0 * elements, ideal_bytes)


@dataclass
class Timed:
    """What was measured of one variant.

    error    its error, NaN if its result was not finite
    refused  why it has no time, in words; empty if it has
    times_s  seconds per call, one a round
    probe    of the probe's bandwidth in the same round, one a round; empty without a probe
    """

    name: str
    error: float = 0.0
    refused: str = ""
    times_s: list[float] = field(default_factory=list)
    probe: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """The median time per call; NaN if it was refused."""
        return statistics.median(self.times_s) if self.times_s else math.nan

    @property
    def of_probe(self) -> float:
        """The median share of the probe's bandwidth; NaN if there is none."""
        return statistics.median(self.probe) if self.probe else math.nan

    def over(self, other: Timed) -> float:
        """How many times as long as `other` it takes: the median over the rounds."""
        if not self.times_s or not other.times_s:
            return math.nan
        return statistics.median(
            mine / theirs for mine, theirs in zip(self.times_s, other.times_s, strict=True)
        )


def measure(
    variants: Sequence[Variant],
    *,
    rounds: int,
    probe: Probe | None = None,
    budget_s: float = math.inf,
    synchronize: Callable[[], object] = lambda: None,
) -> list[Timed]:
    """Check every variant, warm up those that are right, and let them take turns.

    A variant whose error is beyond its tolerance, or that raises, is reported as refused and takes
    no part. After `budget_s` no further round begins, but three are made. `synchronize` waits for
    the device, at both ends of a turn.
    """
    timed = [_checked(variant) for variant in variants]
    runs = [v.run for v, t in zip(variants, timed, strict=True) if not t.refused]
    taking_part = [t for t in timed if not t.refused]
    probe_times: list[float] = []
    if probe is not None:
        runs.append(probe.run)
    calls = [_warm_up(run, synchronize) for run in runs]
    until_s = time.monotonic() + budget_s
    with _no_garbage_collection():
        for number in range(rounds):
            if number >= 3 and time.monotonic() > until_s:
                break
            # Each round begins with another, so that nobody always follows the same neighbour.
            order = list(range(len(runs)))
            first = number % max(1, len(runs))
            for index in [*order[first:], *order[:first]]:
                took_s = _turn(runs[index], calls[index], synchronize)
                own = taking_part[index].times_s if index < len(taking_part) else probe_times
                own.append(took_s)
    if probe is not None:
        for one in taking_part:
            one.probe = [
                (probe.ideal_bytes / mine) / (probe.moved_bytes / theirs)
                for mine, theirs in zip(one.times_s, probe_times, strict=True)
            ]
    return timed


def _checked(variant: Variant) -> Timed:
    try:
        error = variant.error()
    except Exception as problem:
        text = str(problem).strip().partition("\n")[0]
        return Timed(variant.name, math.nan, f"failed: {type(problem).__name__}: {text}")
    if error <= variant.tolerance:  # not so if it is NaN
        return Timed(variant.name, error)
    return Timed(
        variant.name, error, f"wrong: its error is {error:.1e}, allowed are {variant.tolerance:.0e}"
    )


def _warm_up(run: Callable[[], object], synchronize: Callable[[], object]) -> int:
    """How many calls make a turn, once the variant runs at its speed."""
    run()
    synchronize()
    calls, spent_s = 1, 0.0
    while True:
        took_s = _turn(run, calls, synchronize) * calls
        spent_s += took_s
        if took_s >= TURN_S and spent_s >= min(WARM_UP_S, 2 * took_s):
            return calls
        if took_s < TURN_S:
            calls = max(calls + 1, math.ceil(calls * 1.2 * TURN_S / max(took_s, TURN_S / 100)))


def _turn(run: Callable[[], object], calls: int, synchronize: Callable[[], object]) -> float:
    synchronize()
    began_s = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize()
    return (time.perf_counter() - began_s) / calls


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class RelativeError:
    """||value - truth|| / ||truth|| over all tensors that are added.

    Differences are in the wider of the two dtypes; the tensors should be no larger than `in_pieces`
    gives them, for torch's norm adds up in its dtype.
    """

    def __init__(self) -> None:
        self._wrong = self._whole = 0.0

    def add(self, value: torch.Tensor, truth: torch.Tensor) -> None:
        """Take in one tensor."""
        self._wrong += float(torch.linalg.vector_norm(value - truth)) ** 2
        self._whole += float(torch.linalg.vector_norm(truth)) ** 2

    @property
    def value(self) -> float:
        """NaN if a value was not finite."""
        return math.sqrt(self._wrong / self._whole) if math.isfinite(self._wrong) else math.nan


def in_pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape as flat pieces that stay in a core's cache, side by side.

    A truth in float64 has many temporaries: of 110 M elements at once each is 0.9 GB of new pages.
    """
    flat = [tensor.detach().reshape(-1).split(PIECE) for tensor in tensors]
    return zip(*flat, strict=True)


def relative_error(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The relative error of values over their truths."""
    error = RelativeError()
    for value, truth in pairs:
        error.add(value, truth)
    return error.value


def machine(device: str = "cpu") -> str:
    """What it ran on: processor, instruction set, threads, torch, and which kernels."""
    if device != "cpu":
        where = f"{torch.cuda.get_device_name()}, host {_processor()}"
    else:
        where = f"{_processor()}, {os.cpu_count()} cores"
    return (
        f"{where}; {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}; kernels: {kernels()}"
    )


def kernels() -> str:
    """Which kernels are ours here: compiled, for which instruction set, or the references."""
    if library.find() is None:
        return f"the references ({library.status().reason.splitlines()[0]})"
    return f"compiled, {torch.ops.ptrain.isa()}"


def _processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in about.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
