"""Whatever a callback logs as a number is written as one, and anything else is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plugin_trainer.callbacks.early_stopping import EarlyStopping
from plugin_trainer.callbacks.settings import EarlyStoppingSettings
from plugin_trainer.errors import PtrainError


class Gives:
    """Adds a metric to every evaluation and to every log line."""

    def __init__(self, value, hook: str) -> None:
        self.value, self.hook = value, hook

    def ptrain_evaluation_end(self, metrics) -> None:
        if self.hook == "evaluation_end":
            metrics["val/score"] = self.value

    def ptrain_log(self, metrics) -> None:
        if self.hook == "log":
            metrics["val/score"] = self.value


NUMBERS = [np.float32(1.5), np.int64(3), torch.tensor(1.5), np.array(2.0), True, 7]


@pytest.mark.parametrize("hook", ["evaluation_end", "log"])
@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: type(value).__name__)
def test_a_number_of_any_library_is_written_as_a_number(fit, toy, metrics_of, value, hook):
    result = fit(validation=toy.loader(4), callbacks=[Gives(value, hook)])
    assert metrics_of(result.folder)[-1]["val/score"] == float(value)


def test_a_number_of_numpy_can_be_the_best_and_is_kept_over_a_resume(fit, toy):
    watch = {"best": {"watch": "val/score", "mode": "max"}, "validation": toy.loader(4)}
    stopping = EarlyStopping(EarlyStoppingSettings(watch="val/score", mode="max"))
    callbacks = [Gives(np.float32(1.5), "evaluation_end"), stopping]
    fit(callbacks=callbacks, **watch)
    result = fit(callbacks=callbacks, resume="auto", allow=["length"], length="3 epochs", **watch)
    assert result.best["raw"].value == 1.5


NO_NUMBERS = ["good", "3", torch.ones(2), torch.tensor(1j), [1.0], None]


@pytest.mark.parametrize("hook", ["evaluation_end", "log"])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
def test_what_is_no_number_is_named_with_where_it_was_given(fit, toy, hook, value):
    kind = type(value).__name__
    with pytest.raises(PtrainError, match=f"ptrain_{hook}: 'val/score' is not a number but {kind}"):
        fit(validation=toy.loader(4), callbacks=[Gives(value, hook)])
