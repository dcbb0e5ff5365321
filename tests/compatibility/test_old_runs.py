"""Run folders that an older ptrain began are resumed: the format of a checkpoint is a promise.

Each folder here holds a run that was killed behind step 8 of 12, the plugin that it is of, and the
weights of a run that was not killed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plugin_trainer.cli.main import main

HERE = Path(__file__).parent
# Another machine rounds otherwise, in the last digits.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("version", ["before-0.1.0"])
def test_a_run_of_an_older_version_is_resumed_to_the_same_weights(
    version, tmp_path, monkeypatch, capsys
):
    shutil.copytree(HERE / version, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # Its plugin had another path, and it is nobody's here.
    allowed = ["--trust", "--allow", "packages", "--allow", "plugins"]
    assert main(["run", "--resume", "run", *allowed]) == 0
    assert "going on from run/checkpoints/step-00000006" in capsys.readouterr().err
    last = Path("run/checkpoints/step-00000012")
    expected = load_file("weights_at_step_12.safetensors")
    found = load_file(last / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, **CLOSE)
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert [line["steps_seen"] for line in lines] == list(range(1, 13))
