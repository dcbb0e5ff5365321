"""A model of several tasks: each has its calibration under the key of the weights, and its rule."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.calibration import (
    FILE,
    Calibration,
    key_of_task,
    read_calibration,
    write_calibration,
)
from plugin_trainer.early_exit.certify import Certified
from plugin_trainer.early_exit.choice import use_exit
from plugin_trainer.early_exit.rules import AgreementLevel, Certificate
from plugin_trainer.early_exit.tolerance import ToleranceLevel, ToleranceMap
from plugin_trainer.errors import PtrainError

MAP = AgreementMap((-1.0, 0.5), (1.25, 2.0))
NEAR = ToleranceMap((-1.0, 0.5), (0.0, 2.0), 0.1)


def calibration(of=MAP, level=3.0):
    promise = Certified(level, 0.01, 0.95, rows=872, disagreeing=3, mean_block=2.5)
    return Calibration(of, "fp32", rows=872, rows_sha256="ab", certified=(promise,))


class Model:
    """Keeps the rules that it is given."""

    learns_halting = False

    def __init__(self, *tasks: str) -> None:
        self.exit_tasks = tasks
        self.rules: dict[str, object] = {}

    def exit_by(self, rule, *, task):
        self.rules[task] = rule


def test_tasks_are_written_beside_the_entry_of_a_model_of_one_task(tmp_path):
    for key, one in [("a", calibration()), ("b/tags", calibration(NEAR)), ("b", calibration())]:
        write_calibration(tmp_path, key, one)
    assert read_calibration(tmp_path, key_of_task("a", "")) == calibration()
    assert read_calibration(tmp_path, key_of_task("b", "tags")) == calibration(NEAR)
    assert read_calibration(tmp_path, key_of_task("a", "tags")) is None
    # The entry of a model of one task is what it always was.
    entry = json.loads((tmp_path / FILE).read_text())["a"]
    assert entry == json.loads(json.dumps(asdict(calibration())))
    assert set(entry["agreement_map"]) == {"intercepts", "slopes"}


def test_each_task_gets_the_rule_of_its_own_calibration():
    model = Model("label", "tags", "score")
    known = {"label": calibration(), "tags": calibration(level=1.0), "score": calibration(NEAR)}
    use_exit(model, "1%", known, precision="fp32")
    assert model.rules == {
        "label": AgreementLevel(MAP, 3.0),
        "tags": AgreementLevel(MAP, 1.0),
        "score": ToleranceLevel(NEAR, 3.0),
    }
    use_exit(model, "2.5", known, precision="fp32")
    assert model.rules["score"] == ToleranceLevel(NEAR, 2.5)
    use_exit(model, "lossless", known, precision="fp32")
    assert model.rules["tags"] == Certificate(agreement_map=MAP, level=1.0)
    assert model.rules["score"] is None  # numbers have no certificate: all blocks run
    use_exit(model, "off", {}, precision="fp32")
    assert set(model.rules.values()) == {None}


def test_a_task_without_a_calibration_is_named_and_nothing_is_set():
    model = Model("label", "tags")
    with pytest.raises(PtrainError, match=r"of these weights \(task 'tags'\)") as caught:
        use_exit(model, "1%", {"label": calibration()}, precision="fp32", where="RUN --weights ema")
    assert "ptrain calibrate RUN --weights ema" in str(caught.value)
    assert not model.rules


def test_a_model_none_of_whose_tasks_has_exits_is_refused():
    with pytest.raises(PtrainError, match="Model has no early exit"):
        use_exit(Model(), "off", {}, precision="fp32")
