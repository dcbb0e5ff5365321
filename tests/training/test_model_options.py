"""Compiled models and recomputed activations train as the plain model does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from plugin_trainer.errors import PtrainError
from plugin_trainer.settings import CompileSettings
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_snapshot
from plugin_trainer.training.model.model_options import checkpoint_activations, compiled


class Blocks(nn.Module):
    """Three blocks with dropout; counts how often each is computed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, features):
        for layer in self.layers:
            features = layer(features)
        return self.head(features)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.3)
        self.parts = nn.ModuleList([nn.Tanh()])
        self.calls = 0

    def forward(self, features):
        self.calls += 1
        return features + self.dropout(self.parts[0](self.linear(features)))


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("which", [True, ["layers.*"], ["layers.0", "layers.2"]])
def test_recomputed_activations_give_the_same_weights_bit_by_bit(fit, which):
    plain, recomputed = Blocks(), Blocks()
    fit(plain, out="plain")
    fit(recomputed, out="recomputed", activation_checkpointing=which)
    assert all(map(torch.equal, weights(plain), weights(recomputed)))
    calls = [block.calls for block in recomputed.layers]
    twice = [block.calls * 2 for block in plain.layers]
    assert calls == (
        [twice[0], twice[1] // 2, twice[2]] if which == ["layers.0", "layers.2"] else twice
    )


def test_an_evaluation_recomputes_nothing_and_the_checkpoint_keeps_its_names(fit, toy, tmp_path):
    model = Blocks()
    fit(model, None, toy.loader(8), activation_checkpointing=True, length="1 steps")
    # One batch of the rehearsal, the step twice, two batches of the evaluation.
    assert model.layers[0].calls == 1 + 2 + 2
    saved = read_snapshot(CheckpointStore(tmp_path / "run").find("last").path).model
    assert saved.keys() == Blocks().state_dict().keys()


class Counting(nn.Module):
    """A block with running statistics, and a buffer that it assigns anew."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, features):
        if self.training:
            self.seen = self.seen + len(features)
        return torch.tanh(self.norm(self.linear(features)) * self.scale)


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Counting() for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, features):
        for layer in self.layers:
            features = layer(features)
        return self.head(features)


@pytest.mark.parametrize(
    "compile", [False, pytest.param({"backend": "aot_eager"}, marks=pytest.mark.process)]
)
def test_what_is_recomputed_changes_the_buffers_once(fit, toy, compile):
    plain, recomputed = Counted(), Counted()
    scale = recomputed.layers[0].scale
    expected = fit(plain, None, toy.loader(8), out="plain", compile=compile)
    found = fit(
        recomputed, None, toy.loader(8), out="recomputed", compile=compile,
        activation_checkpointing=True,
    )  # fmt: skip
    state = plain.state_dict()
    assert state["layers.0.norm.num_batches_tracked"] == 6 and state["layers.1.seen"] == 24
    for name, tensor in recomputed.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=0, atol=1e-6 if compile else 0), name
    assert found.metrics["val/loss"] == pytest.approx(expected.metrics["val/loss"], abs=1e-6)
    assert recomputed.layers[0].scale is scale


def test_a_second_run_with_the_model_recomputes_once_and_one_without_not_at_all(fit, tmp_path):
    model = Blocks()
    own = model.layers[2].forward = model.layers[2].forward  # an own one, as a patch leaves it
    for number, which in enumerate((True, True, ["layers.2"], False)):
        before = [block.calls for block in model.layers]
        fit(model, out=str(number), length="1 steps", activation_checkpointing=which)
        calls = [block.calls - n for block, n in zip(model.layers, before, strict=True)]
        assert calls == {0: [2, 2, 2], 1: [2, 2, 2], 2: [1, 1, 2], 3: [1, 1, 1]}[number]
    assert "forward" not in vars(model.layers[0]) and model.layers[2].forward == own


def test_a_model_that_fills_a_cache_can_be_recomputed(fit):
    transformers = pytest.importorskip("transformers")

    def model():
        torch.manual_seed(0)
        config = transformers.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
            decoder_start_token_id=0, dropout_rate=0.1,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)

    ids = torch.randint(1, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    data = DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=4)
    plain, recomputed = model(), model()
    fit(plain, data, loss=None, length="2 steps", out="plain")
    fit(
        recomputed, data, loss=None, length="2 steps", out="recomputed",
        activation_checkpointing=True,
    )  # fmt: skip
    assert all(map(torch.equal, weights(plain), weights(recomputed)))


def test_blocks_are_the_entries_of_the_outermost_lists():
    assert checkpoint_activations(Blocks(), True) == ["layers.0", "layers.1", "layers.2"]
    assert checkpoint_activations(Blocks(), ("layers.1", "layers.1.*")) == ["layers.1"]
    assert checkpoint_activations(Blocks(), False) == []


def test_a_pattern_that_matches_nothing_and_a_model_without_blocks_are_refused():
    with pytest.raises(PtrainError, match=r"the pattern 'layer\.\*' matches no module") as caught:
        checkpoint_activations(Blocks(), ("layer.*",))
    assert "layers" in caught.value.hint[0]
    with pytest.raises(PtrainError, match="has no ModuleList"):
        checkpoint_activations(nn.Linear(2, 2), True)


@pytest.mark.process
@pytest.mark.slow
def test_a_compiled_model_trains_and_keeps_its_names(fit, toy, tmp_path):
    plain, one = toy.net(), toy.net()
    fit(plain, None, toy.loader(8), out="plain", ema={"decay": 0.9})
    result = fit(one, None, toy.loader(8), out="one", compile=True, ema={"decay": 0.9})
    assert torch.allclose(plain.weight, one.weight, atol=1e-6)
    saved = read_snapshot(CheckpointStore(tmp_path / "one").find("last").path)
    assert saved.model.keys() == plain.state_dict().keys() == saved.ema.keys()
    assert result.metrics["val_ema/loss"] != result.metrics["val/loss"]


def test_compiling_is_really_done():
    model = nn.Linear(2, 2)
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch._dynamo.register_backend(backend, name="ptrain_test_backend")
    run = compiled(model, CompileSettings(backend="ptrain_test_backend"))
    assert torch.equal(run(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert len(calls) == 1
    assert compiled(model, None) is None


def test_an_unknown_compiler_is_named_beside_the_known_ones():
    with pytest.raises(PtrainError, match="torch has no compiler 'inducter'") as caught:
        compiled(nn.Linear(2, 2), CompileSettings(backend="inducter"))
    assert "inductor" in caught.value.hint[0]
