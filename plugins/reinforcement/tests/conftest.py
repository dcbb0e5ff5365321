"""What the tests share: small environments of their own kinds, and the parts made around them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ptrain_reinforcement.data import Environment
from ptrain_reinforcement.q_network import QNetwork
from ptrain_reinforcement.settings import EnvironmentSettings, QNetworkSettings

from plugin_trainer.training.optim.precision import pick_precision

WORLDS = Path(__file__).with_name("worlds.py")


@pytest.fixture(autouse=True)
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `worlds` can be imported, here and by processes started in the same folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (tmp_path / "worlds.py").write_text(WORLDS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.modules.pop("worlds", None)
    import worlds as module

    yield module
    sys.modules.pop("worlds", None)


@pytest.fixture
def make_data() -> Callable[..., Environment]:
    """The data module over a corridor of five places, its settings changed as asked."""

    def build(**changes: Any) -> Environment:
        settings: dict[str, Any] = {
            "environment": "worlds:Corridor",
            "max_episode_steps": 20,
            "copies": 2,
            "first_acts": 10,
            "replay_capacity": 100,
            "batch_size": 8,
            "evaluation_episodes": 3,
        }
        return Environment(EnvironmentSettings(**(settings | changes)))

    return build


@pytest.fixture
def make_model(make_data: Callable[..., Environment]) -> Callable[..., QNetwork]:
    """A small Q-network for the corridor, its settings changed as asked."""

    def build(data: Any = None, **changes: Any) -> QNetwork:
        settings = {"hidden_sizes": (16,)} | changes
        return QNetwork(QNetworkSettings(**settings), data or make_data())

    return build


@pytest.fixture
def make_run() -> Callable[..., Any]:
    """As much of a run as the agent acts by."""

    def build(model: Any, *, step: int = 0) -> Any:
        device = torch.device("cpu")
        return SimpleNamespace(
            model=model,
            device=device,
            precision=pick_precision("fp32", device),
            progress=SimpleNamespace(step=step),
        )

    return build
