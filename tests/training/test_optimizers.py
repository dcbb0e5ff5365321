"""Which parameters decay, which optimizer it is, and its state by the names of parameters."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings import GroupSettings, OptimizerSettings
from plugin_trainer.training.optim.optimizers import (
    build_optimizer,
    load_optimizer_state,
    optimizer_class,
    optimizer_state,
    split_by_decay,
)


class T5LayerNorm(nn.Module):
    """A normalisation of a library of its own, known by its class's name."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class NormalisedHead(nn.Module):
    """Has "norm" in its name and holds a matrix: no normalisation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class Block(nn.Module):
    """What the blocks of BERT, DistilBERT, GPT-2 and T5 call their parts."""

    def __init__(self):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(4)
        self.sa_layer_norm = nn.LayerNorm(4)
        self.ln_1 = nn.LayerNorm(4)
        self.layer_norm = T5LayerNorm()
        self.rms = nn.RMSNorm(4)
        self.batch = nn.BatchNorm1d(4)
        self.group = nn.GroupNorm(2, 4)
        self.q_lin = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.relative_attention_bias = nn.Embedding(8, 2)
        self.bias_free = nn.Linear(4, 4, bias=False)
        self.lstm = nn.LSTM(4, 4)
        self.head = NormalisedHead()


DECAYED = {
    "q_lin.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "relative_attention_bias.weight",
    "bias_free.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "head.weight",
}


def names(pairs):
    return {name for name, _ in pairs}


def test_biases_and_normalisations_do_not_decay_whatever_they_are_called():
    decayed, exempt = split_by_decay(Block(), "auto")
    assert names(decayed) == DECAYED
    assert names(exempt) == {name for name, _ in Block().named_parameters()} - DECAYED
    assert {"attention.in_proj_bias", "lstm.bias_ih_l0", "attention.bias_k"} <= names(exempt)


def test_none_lets_everything_decay():
    decayed, exempt = split_by_decay(Block(), "none")
    assert exempt == [] and len(decayed) == len(list(Block().parameters()))


def test_patterns_choose_what_does_not_decay():
    _, exempt = split_by_decay(Block(), ("*.bias", "head.*"))
    assert "head.weight" in names(exempt) and "q_lin.bias" in names(exempt)
    assert "LayerNorm.weight" not in names(exempt)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(PtrainError, match=r"the pattern 'LayerNorm\.wieght' matches no parameter"):
        split_by_decay(Block(), ("LayerNorm.wieght",))


def test_frozen_and_tied_parameters_are_trained_not_at_all_and_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    model[2].weight = model[1].weight
    decayed, exempt = split_by_decay(model, "auto")
    assert names(decayed) == {"1.weight"} and names(exempt) == {"1.bias", "2.bias"}


def test_a_model_with_nothing_to_train_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(PtrainError, match="the model Linear has no parameter to train"):
        build_optimizer(model, OptimizerSettings())


def test_the_groups_have_the_weight_decay_they_should():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerSettings(weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_weight_decay_leaves_biases_alone():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = build_optimizer(model, OptimizerSettings(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, before[0] * 0.95)
    assert torch.equal(model.bias, before[1])


# ------------------------------------------------------------------------------------------ classes


@pytest.mark.parametrize(
    "name",
    [
        *("adamw", "AdamW", "SGD", "sgd", "Adam", "Adagrad", "Adadelta", "Adafactor", "Adamax"),
        *("ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "torch.optim:SGD"),
    ],
)
def test_an_optimizer_of_torch_trains_and_its_state_comes_back(name):
    def trained(steps, state=None):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = build_optimizer(model, OptimizerSettings(name=name, learning_rate=0.01))
        if state is not None:
            model.load_state_dict(state[0])
            load_optimizer_state(optimizer, model, *state[1])
        for step in steps:
            optimizer.zero_grad()
            (model(torch.ones(4, 3) * step) ** 2).mean().backward()
            optimizer.step()
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        tensors, rest = optimizer_state(optimizer, model)
        return weights, ({key: value.clone() for key, value in tensors.items()}, rest)

    whole = trained([1, 2, 3, 4])[0]
    resumed = trained([3, 4], state=trained([1, 2]))[0]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(whole["weight"], trained([])[0]["weight"])


def test_an_unknown_optimizer_is_named_with_the_nearest():
    with pytest.raises(PtrainError, match=r"torch\.optim has no optimizer 'adamaxx'") as caught:
        optimizer_class("adamaxx")
    assert caught.value.hint[0] == "did you mean 'Adamax'?"
    assert "SGD" in caught.value.hint[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentun": 0.9}, r"optimizer.settings.momentun: it takes no 'momentun'; did you mean"),
        ({"momentum": -1}, "the optimizer SGD refuses its settings: "),
        ({"foreach": True, "fused": True}, "the optimizer SGD refuses its settings: .*fused"),
    ],
)
def test_settings_that_the_optimizer_refuses_are_the_users_to_change(settings, message):
    with pytest.raises(PtrainError, match=message):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(name="sgd", settings=settings))


def test_further_settings_reach_the_optimizer():
    settings = OptimizerSettings(settings={"betas": [0.5, 0.6], "eps": 1e-4})
    optimizer = build_optimizer(nn.Linear(2, 2), settings)
    assert list(optimizer.param_groups[0]["betas"]) == [0.5, 0.6]
    assert optimizer.param_groups[0]["eps"] == 1e-4


def test_without_the_kernels_adamw_takes_torchs_fused_way(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "off")
    assert build_optimizer(nn.Linear(2, 2), OptimizerSettings()).defaults["fused"]


def test_another_way_of_stepping_than_the_fused_one_can_be_chosen(fit):
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerSettings(settings={"foreach": True}))
    assert optimizer.defaults["foreach"] and not optimizer.defaults["fused"]
    assert fit(optimizer={"settings": {"foreach": True}}).step == 6


def test_an_optimizer_that_is_to_be_differentiated_is_refused_in_words():
    with pytest.raises(PtrainError, match=r"settings\.differentiable: a run's step changes the"):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(settings={"differentiable": True}))


# -------------------------------------------------------------------------------------------- state


def test_the_state_is_kept_by_the_names_of_parameters():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimizerSettings())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors, rest = optimizer_state(optimizer, model)
    assert set(tensors) == {
        f"{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert [group["params"] for group in rest["groups"]] == [["weight"], ["bias"]]


def test_the_state_of_another_model_is_refused():
    model, other = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
    tensors, rest = optimizer_state(build_optimizer(model, OptimizerSettings()), model)
    with pytest.raises(PtrainError, match="holds other parameters than this model") as caught:
        load_optimizer_state(
            build_optimizer(other, OptimizerSettings()), other, tensors, rest
        )  # fmt: skip
    assert caught.value.hint[0] == "these are on one side only: 0.bias, 0.weight, bias, weight"


@pytest.mark.parametrize("frozen", [True, False])
def test_other_groups_on_a_resume_are_refused_with_what_to_change(frozen):
    def built(**groups):
        model = Encoder()
        return build_optimizer(model, OptimizerSettings(groups=groups)), model

    tensors, rest = optimizer_state(*built())
    with pytest.raises(PtrainError, match="the checkpoint's optimizer h") as caught:
        group = GroupSettings(frozen=True) if frozen else GroupSettings(learning_rate=0.1)
        load_optimizer_state(*built(**{"encoder.*": group}), tensors, rest)
    assert caught.value.hint[1:] == (
        "optimizer.groups and optimizer.no_decay must be what the run was started with",
        "to start a new run from its weights: init_from",
    )


def test_the_state_split_into_other_groups_is_refused_in_words():
    model = nn.Linear(2, 2)
    tensors, rest = optimizer_state(build_optimizer(model, OptimizerSettings()), model)
    together = build_optimizer(model, OptimizerSettings(no_decay="none"))
    with pytest.raises(PtrainError, match="parameter groups"):
        load_optimizer_state(together, model, tensors, rest)


# ------------------------------------------------------------------------------------------ groups


class Encoder(nn.Module):
    """An encoder of two blocks with a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)

    def forward(self, features):
        return self.head(self.encoder(features))


def grouped(**groups):
    """Name, rate, decay and the names of the parameters of each group of the optimizer."""
    model = Encoder()
    names = {id(p): name for name, p in model.named_parameters()}
    settings = OptimizerSettings(learning_rate=0.1, weight_decay=0.2, groups=groups)
    optimizer = build_optimizer(model, settings)
    return [
        (g["name"], g["lr"], g["weight_decay"], [names[id(p)] for p in g["params"]])
        for g in optimizer.param_groups
    ]


def test_a_parameter_belongs_to_the_first_pattern_that_matches_it():
    found = grouped(
        **{
            "encoder.0.*": GroupSettings(learning_rate=0.001),
            "encoder.*": GroupSettings(learning_rate=0.01, weight_decay=0.5),
        }
    )
    assert found == [
        ("encoder.0.*", 0.001, 0.2, ["encoder.0.weight"]),
        ("encoder.0.*", 0.001, 0.0, ["encoder.0.bias"]),
        ("encoder.*", 0.01, 0.5, ["encoder.1.weight"]),
        ("encoder.*", 0.01, 0.0, ["encoder.1.bias", "encoder.2.weight", "encoder.2.bias"]),
        ("others", 0.1, 0.2, ["head.weight"]),
        ("others", 0.1, 0.0, ["head.bias"]),
    ]


def test_a_pattern_that_matches_nothing_or_comes_too_late_is_refused():
    with pytest.raises(
        PtrainError, match=r"the pattern 'encodr\.\*' matches no parameter"
    ) as caught:
        grouped(**{"encodr.*": GroupSettings()})
    assert "encoder.0.weight" in caught.value.hint[0]
    with pytest.raises(
        PtrainError, match=r"'encoder\.0\.\*' matches no parameter that 'encoder\.\*'"
    ):
        grouped(**{"encoder.*": GroupSettings(), "encoder.0.*": GroupSettings()})


class Tied(nn.Module):
    """An output layer with the weight of the input layer, as language models have them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)
        self.out.weight = self.inner.weight
        self.shared = nn.ModuleDict({"again": self.inner})


def test_a_tied_parameter_belongs_to_a_group_by_any_of_its_names():
    def rates(*patterns):
        groups = {p: GroupSettings(learning_rate=n) for n, p in enumerate(patterns, 2)}
        model = Tied()
        optimizer = build_optimizer(model, OptimizerSettings(learning_rate=1.0, groups=groups))
        rate_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        return {name: rate_of[id(p)] for name, p in model.named_parameters()}

    assert rates("out.weight") == {"inner.weight": 2, "inner.bias": 1, "out.bias": 1}
    assert rates("out.*", "inner.*") == {"inner.weight": 2, "inner.bias": 3, "out.bias": 2}
    assert rates("inner.*", "out.*") == {"inner.weight": 2, "inner.bias": 2, "out.bias": 3}
    assert rates("shared.*") == {"inner.weight": 2, "inner.bias": 2, "out.bias": 1}
    with pytest.raises(PtrainError, match=r"'out\.weight' matches no parameter that 'inner"):
        rates("inner.*", "out.weight")


def test_a_tied_parameter_is_frozen_and_exempt_from_decay_by_any_of_its_names():
    model = Tied()
    build_optimizer(model, OptimizerSettings(groups={"out.*": GroupSettings(frozen=True)}))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"inner.bias"}
    decayed, exempt = split_by_decay(Tied(), ("out.weight",))
    assert names(exempt) == {"inner.weight"} and names(decayed) == {"inner.bias", "out.bias"}


def test_frozen_parameters_do_not_move_and_are_not_averaged(fit, tmp_path):
    torch.manual_seed(0)
    model = Encoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(
        model,
        optimizer={"learning_rate": 0.1, "groups": {"encoder.*": {"frozen": True}}},
        ema={"decay": 0.9},
    )
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["parameters"], about["trainable"]) == (58, 10)


def test_the_schedule_moves_each_group_by_its_own_rate_and_the_log_says_so(
    fit, tmp_path, metrics_of
):
    fit(
        Encoder(),
        log="1 steps",
        optimizer={"learning_rate": 0.1, "groups": {"encoder.*": {"learning_rate": 0.02}}},
        schedule={"name": "linear"},
    )
    lines = metrics_of(tmp_path / "run")
    for step, line in enumerate(lines[:5], 1):
        assert line["learning_rate/encoder.*"] == pytest.approx(0.02 * (1 - step / 6))
        assert line["learning_rate/others"] == pytest.approx(0.1 * (1 - step / 6))


def test_groups_are_resumed_and_a_changed_rate_of_one_holds_when_it_is_allowed(fit):
    def settings(rate):
        groups = {"encoder.*": {"learning_rate": rate}}
        return {"save": "1 steps", "optimizer": {"learning_rate": 0.1, "groups": groups}}

    class Rates:
        def ptrain_step_end(self, run):
            self.rates = [g["lr"] for g in run.optimizer.param_groups]
            if run.progress.step == 3:
                run.interrupt("enough", signal=15)

    seen = Rates()
    fit(Encoder(), callbacks=[seen], schedule={"name": "constant"}, **settings(0.02))
    assert seen.rates == [0.02, 0.02, 0.1, 0.1]
    fit(
        Encoder(), callbacks=[seen], schedule={"name": "constant"}, resume="auto",
        allow=["optimizer"], **settings(0.04),
    )  # fmt: skip
    assert seen.rates == [0.04, 0.04, 0.1, 0.1]


def test_an_optimizer_that_wants_the_loss_again_is_refused_in_words(fit):
    with pytest.raises(PtrainError, match="LBFGS computes the loss several times in a step"):
        fit(optimizer={"name": "LBFGS", "learning_rate": 1.0})
