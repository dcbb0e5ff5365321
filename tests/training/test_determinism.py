"""`deterministic = true`: torch refuses what differs from one time to the next, inside a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.training.seeding import determinism


class Unpools(nn.Module):
    """Has an operation of which torch has no deterministic form."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)

    def forward(self, features):
        pooled, indices = nn.functional.max_pool1d(features, 2, return_indices=True)
        return self.linear(nn.functional.max_unpool1d(pooled, indices, 2))


def flags() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
    )


@pytest.fixture(params=["off", "warns", "on"])
def before(request):
    """How torch is set when the run starts: left alone, or otherwise by the user."""
    was = flags()
    torch.use_deterministic_algorithms(request.param != "off", warn_only=request.param == "warns")
    torch.backends.cudnn.benchmark = request.param == "off"
    yield flags()
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = was[2:]


class Looks:
    """Notes the flags at every moment of a run, and may fail at one."""

    def __init__(self, *, fails: type[BaseException] | None = None) -> None:
        self.seen: set[tuple[bool, ...]] = set()
        self.fails = fails

    def ptrain_run_start(self, run):
        self.seen.add(flags())

    def ptrain_step_end(self, run):
        self.seen.add(flags())
        if self.fails:
            raise self.fails

    def ptrain_evaluation_batch_end(self, run):
        self.seen.add(flags())

    def ptrain_run_end(self, run):
        self.seen.add(flags())


INSIDE = (True, False, False, True)


def test_an_operation_that_has_no_deterministic_form_stops_the_run_by_its_name(fit):
    assert fit(Unpools()).step == 6
    with pytest.raises(PtrainError) as caught:
        fit(Unpools(), deterministic=True, out="other")
    assert "max_unpool" in caught.value.hint[0]
    assert "does not have a deterministic implementation" in caught.value.hint[0]


@pytest.mark.parametrize("fails", [None, ValueError, KeyboardInterrupt])
def test_it_holds_from_the_first_moment_to_the_last_and_torch_is_as_before_afterwards(
    fit, toy, before, fails
):
    looks = Looks(fails=fails)
    options = {"validation": toy.loader(4), "callbacks": [looks], "deterministic": True}
    if fails is None:
        fit(**options)
    else:
        with pytest.raises(PtrainError if fails is ValueError else fails):
            fit(**options)
    assert looks.seen == {INSIDE}
    assert flags() == before


def test_a_run_that_does_not_ask_for_it_changes_nothing(fit, toy, before):
    looks = Looks()
    fit(validation=toy.loader(4), callbacks=[looks])
    assert looks.seen == {before}
    assert flags() == before


def test_it_is_put_back_where_what_is_inside_fails(before):
    with pytest.raises(ZeroDivisionError), determinism(True):
        assert flags() == INSIDE
        1 / 0  # noqa: B018
    assert flags() == before


def test_the_weights_are_the_same_with_it_where_nothing_was_left_to_chance(fit, toy):
    weights = []
    for deterministic in (False, True):
        model = toy.net()
        fit(model, deterministic=deterministic, out=str(deterministic))
        weights.append(model.weight.detach())
    assert torch.equal(*weights)
