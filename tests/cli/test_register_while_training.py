"""A run is registered while it trains and keeps one checkpoint."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

from plugin_trainer.cli.main import main

RUN = Path("runs/first")


def test_retention_does_not_take_a_checkpoint_from_under_a_registration(trained):
    checkpoints = (RUN / "checkpoints").absolute()
    current = max(checkpoints.glob("step-*"))
    done = threading.Event()

    def save(current):
        """As a writer does: a new checkpoint takes its place, the pointers follow, the old go."""
        step = int(current.name[5:])
        while not done.is_set():
            step += 1
            newer = checkpoints / f"step-{step:08d}"
            beside = shutil.copytree(current, checkpoints / f".step-{step:08d}")
            beside.rename(newer)
            for pointer in checkpoints.glob("*.json"):
                value = {**json.loads(pointer.read_text()), "checkpoint": newer.name}
                pointer.with_suffix(".new").write_text(json.dumps(value))
                pointer.with_suffix(".new").replace(pointer)
            current.rename(checkpoints / f".{current.name}.gone")
            shutil.rmtree(checkpoints / f".{current.name}.gone")
            current = newer

    thread = threading.Thread(target=save, args=(current,))
    thread.start()
    try:
        codes = [main(["models", "register", str(RUN), "--name", "m"]) for _ in range(5)]
    finally:
        done.set()
        thread.join()
    assert codes == [0] * 5
