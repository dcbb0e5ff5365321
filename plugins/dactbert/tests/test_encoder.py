"""Where an encoder comes from: folders, the Hub, and what is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, T5Config
from transformers import AutoModel as TransformersModel

from plugin_trainer.data.texts import encoders
from plugin_trainer.errors import PtrainError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub that cannot be reached; the names asked of it."""
    asked: list[str] = []

    def refuse(name: str, **_: Any) -> None:
        asked.append(name)
        raise OSError(f"We couldn't connect to 'https://huggingface.co' for {name}\nmore")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    return asked


@pytest.mark.parametrize(
    "name", ["./minilm", "../minilm", "/no/such/minilm", "~/no/such/minilm", "a/b/c", "models/mini"]
)
def test_a_mistyped_folder_is_never_asked_of_the_hub(
    name: str, hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()  # makes models/mini a folder's name, not a Hub id
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PtrainError, match="there is no folder") as caught:
        encoders.pretrained(name)
    assert name in caught.value.message
    assert "model_settings.encoder" in caught.value.message
    assert caught.value.hint
    assert hub == []


@pytest.mark.parametrize("name", ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_hub_that_cannot_be_reached_is_named_with_a_way_out(name: str, hub: list[str]) -> None:
    with pytest.raises(PtrainError, match="could not be had from the Hugging Face Hub") as caught:
        encoders.pretrained(name)
    assert hub == [name]
    assert "folder" in caught.value.hint[-1]
    assert all("\n" not in line for line in caught.value.hint)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PtrainError, match="holds no encoder"):
        encoders.pretrained(str(tmp_path))


def test_damaged_weights_are_refused_and_not_filled_with_random_ones(
    make_encoder: Callable[[str], Path],
) -> None:
    folder = make_encoder("bert")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PtrainError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        encoders.pretrained(str(folder))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    TransformersModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(PtrainError, match="not a BERT-family encoder"):
        encoders.pretrained(str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_the_weights_of_a_folder_arrive_in_float32_without_a_pooler(
    kind: str, make_encoder: Callable[[str], Path]
) -> None:
    folder = make_encoder(kind)
    encoder = encoders.pretrained(str(folder))
    saved = load_file(folder / "model.safetensors")
    state = encoder.state_dict()
    assert not any("pooler" in name for name in state)
    for name, value in state.items():
        assert torch.equal(value, saved[name]), name


def test_loading_prints_nothing(
    make_encoder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_encoder("bert")
    capfd.readouterr()
    encoders.pretrained(str(folder))
    assert capfd.readouterr() == ("", "")


def test_roberta_spends_its_first_positions_on_padding(
    make_encoder: Callable[[str], Path],
) -> None:
    config = AutoConfig.from_pretrained(make_encoder("roberta"))
    longest = encoders.longest_input(config)
    assert longest == 39
    encoder = encoders.from_config(config).eval()
    ids = torch.full((1, longest), 7)
    mask = torch.ones_like(ids)
    encoders.block_states(encoder, input_ids=ids, attention_mask=mask, token_type_ids=None)
    with pytest.raises((IndexError, RuntimeError)):
        ids = torch.full((1, longest + 1), 7)
        mask = torch.ones_like(ids)
        encoders.block_states(encoder, input_ids=ids, attention_mask=mask, token_type_ids=None)


def test_mean_pooling_leaves_padding_out() -> None:
    states_BTH = torch.randn(2, 4, 3)
    mask_BT = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    pooled_BH = encoders.pool_tokens(states_BTH, mask_BT=mask_BT, pooling="mean")
    torch.testing.assert_close(pooled_BH[0], states_BTH[0, :2].mean(0))
    torch.testing.assert_close(pooled_BH[1], states_BTH[1].mean(0))


def test_cls_pooling_reads_the_first_token() -> None:
    states_BTH = torch.randn(2, 4, 3)
    pooled_BH = encoders.pool_tokens(states_BTH, mask_BT=torch.ones(2, 4), pooling="cls")
    assert torch.equal(pooled_BH, states_BTH[:, 0])
