"""N01 Nothing that is not finite reaches the weights, whichever guard watches; L06 what is read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plugin_trainer.errors import NonFiniteError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.checkpointing.store import CheckpointStore
from plugin_trainer.training.optim import guard as guards
from plugin_trainer.training.optim.guard import AtOnce, Latched, Scaled, build_guard

CPU = torch.device("cpu")


class Poison:
    """Makes the loss, or a gradient alone, not finite at one step."""

    def __init__(self, step, value=math.nan, *, gradient=False):
        self.step, self.value, self.gradient = step, value, gradient

    def ptrain_forward(self, run, batch):
        if run.model.training and run.progress.step + 1 == self.step:
            loss = run.forward(batch).loss
            if self.gradient:
                loss.register_hook(lambda grad: grad * self.value)
                return StepOutcome(loss)
            return StepOutcome(loss * self.value)
        return None


@pytest.fixture
def latched(monkeypatch):
    """The guard of a device, on the CPU: its fused optimizers take the same flag."""
    monkeypatch.setattr(
        "plugin_trainer.training.setup.assemble.build_guard",
        lambda optimizer, device, scaler: Latched(optimizer, device),
    )


class Watch:
    """Keeps the weights and the average after every step."""

    def __init__(self):
        self.weights, self.averages = [], []

    def ptrain_step_end(self, run):
        self.weights.append([p.detach().clone() for p in run.model.parameters()])
        self.averages.append([t.clone() for t in run.ema.shadow.values()])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_N01_the_latched_guard_names_the_step_and_masks_it_and_all_after_it(
    fit, latched, tmp_path, metrics_of, value, gradient
):
    watch = Watch()
    with pytest.raises(NonFiniteError, match=r"^step 6: the loss is") as caught:
        fit(
            length="4 epochs",
            save="2 steps",
            log="4 steps",
            evaluate="never",
            ema={"decay": 0.9},
            callbacks=[watch, Poison(6, value, gradient=gradient)],
        )
    assert caught.value.step == 6
    assert len(watch.weights) == 6  # the save after step 6 would have written it: it looked
    assert same(watch.weights[5], watch.weights[4])
    store = CheckpointStore(tmp_path / "run")
    assert store.newest_sound()[0].step == 4
    assert not (tmp_path / "run" / "checkpoints" / "step-00000006").exists()
    last = metrics_of(tmp_path / "run")[-1]
    assert last["step"] == 6
    assert not all(math.isfinite(float(last[f"train/{name}"])) for name in ("loss", "grad_norm"))


def test_N01_the_latched_guard_looks_at_a_log_line_and_at_least_every_so_often(
    fit, latched, monkeypatch
):
    quiet = {"save": "never", "evaluate": "never", "length": "4 epochs", "ema": {"decay": 0.9}}
    watch = Watch()
    with pytest.raises(NonFiniteError, match=r"^step 2:"):
        fit(log="5 steps", callbacks=[watch, Poison(2)], out="a", **quiet)
    assert len(watch.weights) == 5 and same(watch.weights[4], watch.weights[0])
    monkeypatch.setattr(guards, "_AT_MOST", 7)
    watch = Watch()
    with pytest.raises(NonFiniteError, match=r"^step 2:"):
        fit(log="never", callbacks=[watch, Poison(2)], out="b", **quiet)
    assert len(watch.weights) == 6  # the seventh step did not come to its end


def test_the_latched_guard_trains_as_the_other_one_does(fit, latched, monkeypatch):
    settings = {"ema": {"decay": 0.9}, "optimizer": {"max_grad_norm": 0.5}}
    one = Watch()
    fit(callbacks=[one], out="a", **settings)
    monkeypatch.undo()
    other = Watch()
    fit(callbacks=[other], out="b", **settings)
    assert same(one.weights[-1], other.weights[-1]) and same(one.averages[-1], other.averages[-1])


def test_each_guard_where_it_costs_least():
    parameters = [nn.Parameter(torch.ones(2))]
    fused = torch.optim.AdamW(parameters, fused=True)
    plain = torch.optim.RMSprop(parameters)
    meta = torch.device("meta")
    assert isinstance(build_guard(fused, CPU, None), AtOnce)
    assert isinstance(build_guard(plain, meta, None), AtOnce)
    assert isinstance(build_guard(fused, meta, None), Latched)
    assert isinstance(build_guard(fused, CPU, torch.amp.GradScaler("cpu")), Scaled)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait: a tensor's value becoming a Python number."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


class CountReads:
    """Counts host reads from one step's end to another's."""

    def __init__(self, first, last):
        self.first, self.last = first, last
        self.mode = Reads()

    def ptrain_step_end(self, run):
        if run.progress.step == self.first:
            self.mode.__enter__()
        if run.progress.step == self.last:
            self.mode.__exit__(None, None, None)


def reads_by_hand(optimizer_of, toy, steps):
    """The reads of a loop as anyone would write it, with the same features."""
    model = toy.net()
    optimizer = optimizer_of(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    shadow = [p.detach().clone() for p in model.parameters()]
    total = torch.zeros(())
    batches = iter(toy.loader(4 * steps))
    with Reads() as mode:
        for features, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            torch._foreach_lerp_(shadow, [p.detach() for p in model.parameters()], 0.1)
            total += loss.detach()
    return mode.count / steps


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "SGD": torch.optim.SGD,
    "RMSprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("latch", [False, True], ids=["at-once", "latched"])
def test_L06_between_log_lines_no_more_is_read_than_by_hand(fit, toy, request, name, latch):
    if latch:
        if name != "adamw":
            pytest.skip("a latch needs an optimizer that takes the flag")
        request.getfixturevalue("latched")
    counting = CountReads(11, 49)
    fit(
        train=toy.loader(4 * 60),
        length="60 steps",
        log="50 steps",
        evaluate="never",
        save="never",
        ema={"decay": 0.9},
        optimizer={"name": name, "learning_rate": 0.01, "max_grad_norm": 1.0},
        schedule={"name": "linear", "warmup": "2 steps"},
        callbacks=["progress_bar", "tensorboard", "learning_rate_monitor", counting],
        callback_settings={"progress_bar": {"mode": "lines"}},
    )
    per_step = counting.mode.count / (counting.last - counting.first)
    assert per_step <= reads_by_hand(OPTIMIZERS[name], toy, 30)
    assert per_step == 0 or name != "adamw"


def test_the_counter_of_reads_sees_a_read():
    with Reads() as mode:
        torch.ones(()).item()
        bool(torch.ones(()))
    assert mode.count == 2
