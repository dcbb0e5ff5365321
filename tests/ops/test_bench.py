"""The measurements: who is wrong gets no time, who is right is compared within each round."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from plugin_trainer.ops.bench import ema, halting, interleaved, run_short_bench, step
from plugin_trainer.ops.bench.interleaved import Probe, Timed, Variant, measure, relative_error
from plugin_trainer.ops.bench.shapes import BERT_BASE, LISTS, MINILM, bert_shapes, elements
from plugin_trainer.ops.bench.short import Case

SHAPES = [(3, 5), (7,), (2, 2, 2)]


def variant(name: str, *, error: float = 0.0) -> Variant:
    return Variant(name, lambda: None, lambda: error, 1e-3)


def test_a_variant_that_is_wrong_gets_no_time():
    right, wrong, infinite = measure(
        [variant("right"), variant("wrong", error=0.1), variant("infinite", error=math.nan)],
        rounds=3,
    )
    assert len(right.times_s) == 3 and not right.refused
    assert wrong.refused == "wrong: its error is 1.0e-01, allowed are 1e-03"
    assert infinite.refused and not wrong.times_s and not infinite.times_s
    assert math.isnan(wrong.over(right)) and math.isnan(wrong.median_s)


def test_a_variant_that_raises_is_reported_and_the_others_are_timed():
    def broken() -> float:
        raise ValueError("no such form\nand more")

    first, second = measure([Variant("broken", lambda: None, broken), variant("right")], rounds=3)
    assert first.refused == "failed: ValueError: no such form"
    assert len(second.times_s) == 3


def test_the_variants_take_turns():
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)
        time.sleep(0.005)  # a turn is one call

    measure([Variant(name, lambda name=name: run(name)) for name in "ABC"], rounds=4)
    assert "".join(calls[-12:]) == "ABCBCACABABC"


def test_ratios_are_of_the_same_round():
    # A machine that becomes ten times slower halfway: the medians would say anything.
    ours = Timed("ours", times_s=[1.0, 1.0, 10.0, 10.0, 10.0])
    peer = Timed("peer", times_s=[2.0, 2.0, 20.0, 20.0, 20.0])
    assert peer.over(ours) == 2.0


def test_the_share_of_the_probe_is_of_bandwidths(monkeypatch):
    now = 0.0

    def take_5_ms() -> None:
        nonlocal now
        now += 0.005

    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: now)
    probe = Probe(take_5_ms, moved_bytes=100.0, ideal_bytes=50.0)
    (timed,) = measure([Variant("ours", take_5_ms)], rounds=3, probe=probe)
    assert timed.of_probe == pytest.approx(0.5)
    assert len(timed.probe) == 3


def test_an_error_is_relative_and_nan_where_anything_is_not_finite():
    ones = torch.ones(4)
    assert relative_error([(ones * 1.5, ones), (ones * 1.5, ones)]) == pytest.approx(0.5)
    assert math.isnan(relative_error([(ones / 0, ones)]))


def test_the_lists_are_of_the_models_sizes():
    assert len(LISTS["BERT-base"]) == 199 and elements(bert_shapes(BERT_BASE)) == 109_482_240
    assert len(LISTS["MiniLM"]) == 103 and elements(bert_shapes(MINILM)) == 22_713_216


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_form_of_the_average_does_the_same(dtype):
    work = ema.Work(SHAPES, dtype=dtype)
    peers = ema.peers if dtype == torch.float32 else ema.peers_16_bit
    for one in (ema.ours(work), *peers(work)):
        assert one.error() <= one.tolerance, one.name
    # Once too often is noticed.
    once = ema.ours(work).run
    assert work.error(lambda: (once(), once())) > ema.TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_form_of_the_step_does_the_same(dtype):
    work = step.Work([(40, 30), (50,), (7, 8, 9)], dtype=dtype)
    variants = (step.ours(work), *step.peers(work))
    for one in variants:
        assert one.error() <= one.tolerance, one.name

    def clipped_twice_as_hard() -> None:
        torch._foreach_mul_(work.gradients, 0.25)
        variants[0].run()

    assert work.error(clipped_twice_as_hard, [torch.zeros(())]) > 0.4


def test_every_form_of_the_halting_loss_does_the_same():
    work = halting.Work((4, 6, 3))
    for one in (halting.ours(work), halting.ours_with_outputs(work), *halting.peers(work)):
        assert one.error() <= one.tolerance, one.name
    assert work.error(work.gradients(lambda z, u, y: halting.log_space(2 * z, u, y))) > 0.1


def small_cases():
    averages, weights = ema.Work(SHAPES), step.Work(SHAPES)
    yield Case("EMA", "small", [ema.ours(averages), ema.foreach_lerp(averages)], averages.probe())
    yield Case("step", "small", [step.ours(weights), variant("a bad peer", error=1.0)])


def test_the_short_table_fits_a_terminal_and_says_who_was_refused():
    lines: list[str] = []
    run_short_bench(lines.append, cases=small_cases(), rounds=3)
    text = "\n".join(lines)
    assert max(map(len, text.splitlines())) <= 80
    assert "_foreach_lerp_" in text and "a bad peer: wrong: its error is 1.0e+00" in text
    assert "kernels:" in text


def test_the_short_table_as_json():
    lines: list[str] = []
    run_short_bench(lines.append, as_json=True, cases=small_cases(), rounds=3)
    (document,) = lines
    values = json.loads(document)
    ours, peer, _, bad = values["rows"]
    assert ours["variant"] == "ours" and ours["over_ours"] == 1.0 and ours["of_limit"] > 0
    assert peer["op"] == "EMA" and peer["ms"] > 0 and peer["error"] < 1e-6
    assert bad["ms"] is None and bad["refused"].startswith("wrong")
    assert "torch" in values["machine"]
