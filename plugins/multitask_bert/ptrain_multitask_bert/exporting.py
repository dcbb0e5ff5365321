"""A trained model as files that need no ptrain: Hugging Face format, and the heads beside it.

encoder/            config.json, model.safetensors and the tokenizer: AutoModel.from_pretrained
heads.safetensors   "<task>/<head>.weight" [C, H] (of a relation [C, 2H]) and ".bias" [C]
heads.json          {"pooling": ..., "heads": [{"task", "name", "kind", "labels", ...}]}
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from plugin_trainer import PtrainError, load_run
from plugin_trainer.data.texts.pretrained import quiet_transformers
from ptrain_multitask_bert.model import SharedEncoder
from ptrain_multitask_bert.settings import ExportSettings, Which


def export(model: SharedEncoder, tokenizer: Any, *, to: Path) -> None:
    """Write the model as it is now, in place of what was there. Raises OSError."""
    beside = to.with_name(f".{to.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    encoder: Any = model.encoder
    with quiet_transformers():
        encoder.save_pretrained(beside / "encoder")
    tokenizer.save_pretrained(beside / "encoder")
    tensors = {
        f"{address}.{name}": tensor.detach().contiguous()
        for address, answer in model.heads.items()
        for name, tensor in answer.linear.state_dict().items()
    }
    save_file(tensors, beside / "heads.safetensors")
    heads = [dataclasses.asdict(answer.head) for answer in model.heads.values()]
    about = {"pooling": model.settings.pooling, "heads": heads}
    text = json.dumps(about, ensure_ascii=False, indent=2) + "\n"
    (beside / "heads.json").write_text(text, encoding="utf-8")
    if to.exists():
        shutil.rmtree(to)
    beside.rename(to)


class Export:
    """The callback. It writes when a run has ended by itself; training costs nothing.

    A run that is interrupted is to be resumed, and writes nothing.
    """

    def __init__(self, settings: ExportSettings) -> None:
        self.settings = settings

    def ptrain_run_end(self, run: Any, result: Any) -> None:
        """Write the weights that were asked for, as far as the run has them.

        What cannot be written is said at the end of the run and does not fail it: its checkpoints
        hold the same weights.
        """
        if result.status == "interrupted" or not isinstance(run.model, SharedEncoder):
            return
        there = {"last": True, "last_ema": run.ema is not None}
        there |= {"best": "raw" in result.best, "best_ema": "ema" in result.best}
        written = [which for which in dict.fromkeys(self.settings.weights) if there[which]]
        lines = [self._write(run, which) for which in written]
        if lines:
            run.report("in Hugging Face format", "\n".join(lines))

    def _write(self, run: Any, which: Which) -> str:
        """Write one folder; what to tell the user of it."""
        checkpoint, _, average = which.partition("_")
        to = Path(run.folder) / self.settings.folder / which
        try:
            trained = load_run(
                run.folder,
                checkpoint=checkpoint,
                weights="ema" if average else "raw",
                device="cpu",
                trust=True,  # its code is loaded already
            )
            export(trained.model, trained.data.tokenizer, to=to)
        except (PtrainError, OSError) as error:
            return f"{to} was not written: {error}"
        return f"{to}"
