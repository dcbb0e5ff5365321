"""Optimizers and schedules given as torch has them: by name, as a class, as an object."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import plugin_trainer
from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import from_assignments, merge
from plugin_trainer.training.optim.given_optimizer import optimizer_settings

QUIET = {"callbacks": ["-progress_bar", "-tensorboard"], "notify": lambda line: None}
CONSTANT = {"schedule": "constant", "length": "6 steps"}


@pytest.fixture
def trained(toy, tmp_path):
    def train(optimizer, *, model=None, out="run", **settings):
        return plugin_trainer.fit(
            model if model is not None else toy.net(), toy.loader(), loss=nn.CrossEntropyLoss(),
            optimizer=optimizer, out=tmp_path / out, **{**QUIET, **CONSTANT, **settings},
        )  # fmt: skip

    return train


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
         {"name": "SGD", "learning_rate": 0.1, "weight_decay": 0.0,
          "settings": {"momentum": 0.9, "nesterov": True}}),
        (lambda p: torch.optim.AdamW(p, betas=(0.8, 0.99)),
         {"name": "AdamW", "learning_rate": 1e-3, "weight_decay": 0.01,
          "settings": {"betas": [0.8, 0.99]}}),
        (torch.optim.RMSprop, {"name": "RMSprop", "learning_rate": 0.01, "weight_decay": 0.0}),
    ],
)  # fmt: skip
def test_an_object_is_taken_for_its_settings(toy, trained, make, expected):
    model = toy.net()
    optimizer = make(model.parameters())
    assert optimizer_settings(optimizer, model) == {"no_decay": "none", **expected}
    # The steps are those of the object itself.
    by_hand = toy.net()
    own = make(by_hand.parameters())
    seen = []

    class Sees:
        def ptrain_forward(self, batch):
            seen.append(batch)

    trained(optimizer, model=model, callbacks=[*QUIET["callbacks"], Sees()])
    for features, labels in seen:
        own.zero_grad()
        nn.functional.cross_entropy(by_hand(features), labels).backward()
        own.step()
    torch.testing.assert_close(model.weight, by_hand.weight)


def test_it_resumes_exactly(toy, trained):
    class Interrupts:
        def ptrain_step_end(self, run):
            if run.progress.step == 2:
                run.interrupt("enough", signal=15)

    def go(out, *callbacks):
        model = toy.net()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trained(
            sgd, model=model, out=out, resume="auto", callbacks=[*QUIET["callbacks"], *callbacks]
        )
        return model.weight.detach().clone()

    whole, _, resumed = go("whole"), go("parts", Interrupts()), go("parts")
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_what_an_optimizer_keeps_beside_its_parameters_resumes(trained, optimizer):
    kept = {}

    class Keeps:
        def ptrain_step_end(self, run):
            state = run.optimizer.state.setdefault("mine", {"steps": 0, "sum": torch.zeros(2)})
            state["steps"] += 1
            state["sum"] += 1
            kept.update(state)
            if run.progress.step == 2 and not run.disk.read_about().get("resumed"):
                run.interrupt("enough", signal=15)

    for steps in (2, 6):
        trained(optimizer, resume="auto", callbacks=[*QUIET["callbacks"], Keeps()])
        assert kept["steps"] == steps and kept["sum"].tolist() == [steps, steps]


ODD = {
    "name": "ab",
    "count": torch.tensor(2**24 + 1),
    "sum": torch.full((3,), 1 / 3, dtype=torch.float64),
    "mask": torch.tensor([True, False]),
    "nested": {"words": ["a", "b"], "half": torch.tensor(0.5, dtype=torch.float16)},
}


def test_the_state_of_a_parameter_comes_back_as_it_was_saved(trained):
    """torch's load_state_dict makes float32 of every tensor, and a generator of a text."""
    seen = []

    class Keeps:
        def ptrain_run_start(self, run):
            seen.extend(map(dict, run.optimizer.state.values()))

        def ptrain_step_end(self, run):
            for entries in run.optimizer.state.values():
                entries.update(ODD)
            if run.progress.step == 2:
                run.interrupt("enough", signal=15)

    momentum = {"name": "SGD", "settings": {"momentum": 0.9}}
    for _ in range(2):
        trained(momentum, resume="auto", callbacks=[*QUIET["callbacks"], Keeps()])
    assert len(seen) == 2
    for entries in seen:
        assert entries["name"] == "ab" and entries["nested"]["words"] == ["a", "b"]
        for name in ("count", "sum", "mask"):
            assert entries[name].dtype == ODD[name].dtype and torch.equal(entries[name], ODD[name])
        assert entries["nested"]["half"].dtype == torch.float16


def test_what_settings_cannot_describe_is_refused(toy, trained):
    model, other = toy.net(), toy.net(1)
    two = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}]
    with pytest.raises(PtrainError, match="several parameter groups"):
        trained(torch.optim.SGD(two, lr=0.2), model=model)
    with pytest.raises(PtrainError, match="other parameters than the model trains"):
        trained(torch.optim.SGD(other.parameters(), lr=0.2), model=model)
    schedule = StepLR(torch.optim.SGD(model.parameters(), lr=0.2), 3)
    with pytest.raises(PtrainError, match="a StepLR object moves the rates of another") as caught:
        trained("SGD", schedule=schedule)
    assert caught.value.hint[0].startswith('describe it: schedule="StepLR"')


def test_a_class_and_a_name_are_the_optimizer_with_its_defaults(trained):
    weights = [
        trained(optimizer, out=str(number)).model.weight
        for number, optimizer in enumerate([torch.optim.SGD, "SGD", {"name": "sgd"}])
    ]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


def test_a_name_keeps_the_settings_below_it():
    merged = merge(
        [
            from_assignments(["optimizer.learning_rate=0.1", "optimizer.settings.eps=1e-6"]),
            from_assignments(["optimizer=SGD", "schedule=cosine"]),
        ]
    )
    assert merged.values == {
        "optimizer": {"learning_rate": 0.1, "name": "SGD", "settings": {"eps": 1e-6}},
        "schedule": {"name": "cosine"},
    }


def test_an_assertion_of_an_optimizer_is_a_refusal(trained):
    class Asserts(torch.optim.SGD):
        def __init__(self, params, lr, weight_decay=0.0):
            assert lr < 1e-9, "too fast"

    plugin_trainer.Asserts = Asserts
    with pytest.raises(PtrainError, match="refuses its settings: too fast"):
        trained({"name": "plugin_trainer:Asserts"})


def test_rows_of_unlike_shapes_name_the_remedy(toy, tmp_path):
    rows = [(torch.zeros(3 + number % 2), number % 2) for number in range(8)]
    with pytest.raises(PtrainError) as caught:
        plugin_trainer.fit(
            toy.net(), DataLoader(rows, 4), loss="CrossEntropyLoss", out=tmp_path / "r", **QUIET
        )
    assert any("a collate_fn that pads them" in line for line in caught.value.hint)


def test_a_tuple_for_a_model_that_takes_less_names_the_missing_loss(toy, tmp_path):
    with pytest.raises(PtrainError, match=r"the batch has 2 entries, .* takes no more than 1"):
        plugin_trainer.fit(toy.net(), toy.loader(), out=tmp_path / "r", **QUIET)
