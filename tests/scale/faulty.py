"""Runs in which one process meets a fault, one after the other: `python faulty.py FOLDER ddp`.

What each process met is in FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from plugin_trainer.configuration import configure
from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import Layer
from plugin_trainer.training.execution import execute
from plugin_trainer.training.setup.assemble import assemble

STRATEGY = "ddp"
FAULTS = (
    "1 step 5",
    "1 step_end 6",
    "0 step_end 6",
    "1 evaluation 8",
    "1 save 8",
    "0 log 6",
    "0 run_start 0",
)

# Before a sharded model's first pass, and in the middle of one, the others find a process gone.
FAULTS_SHARDED = ("1 step_end 6", "0 step_end 6", "1 save 8", "0 log 6")


def settings(**changed: Any) -> dict[str, Any]:
    return {
        "plugins": [str(Path(__file__).with_name("plugin.py"))],
        "length": "3 epochs",
        "evaluate": "4 steps",
        "save": "4 steps",
        "log": "2 steps",
        "parallel": {"strategy": STRATEGY},
        "callbacks": ["-tensorboard", "-progress_bar", "fault"],
        **changed,
    }


def end_of(out: Path, **changed: Any) -> dict[str, str]:
    """How such a run ends."""
    try:
        execute(assemble(configure(Layer("faulty", settings(**changed))), out=out))
    except PtrainError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": "", "text": ""}


def main(folder: Path) -> None:
    report = {}
    for fault in FAULTS if STRATEGY == "ddp" else FAULTS_SHARDED:
        rank, at, step = fault.split()
        met = {"rank": int(rank), "step": int(step), "at": at, "do": "raise"}
        os.environ["PTRAIN_FAULT"] = json.dumps(met)
        report[fault] = end_of(folder / fault)
    os.environ.pop("PTRAIN_FAULT")
    report["poisoned"] = end_of(folder / "poisoned", data_settings={"poisoned": 17})
    report["uneven"] = end_of(folder / "uneven", data_settings={"batch": 7})
    too_fast = {"learning_rate": 1e30}
    report["not finite"] = end_of(folder / "not finite", optimizer=too_fast)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    STRATEGY = sys.argv[2]
    main(Path(sys.argv[1]))
