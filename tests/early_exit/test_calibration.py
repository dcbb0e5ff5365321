"""A run remembers its exits, and --exit finds the rule that was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plugin_trainer.early_exit.agreement import AgreementMap
from plugin_trainer.early_exit.calibration import (
    FILE,
    Calibration,
    read_calibration,
    write_calibration,
)
from plugin_trainer.early_exit.certify import Certified
from plugin_trainer.early_exit.choice import use_exit
from plugin_trainer.early_exit.rules import AgreementLevel, Certificate
from plugin_trainer.errors import PtrainError

MAP = AgreementMap((-1.0, 0.5), (1.25, 2.0))


def certified(level: float, share: float) -> Certified:
    return Certified(level, share, 0.95, rows=872, disagreeing=3, mean_block=2.5)


CALIBRATION = Calibration(
    MAP, "fp32", rows=872, rows_sha256="ab", certified=(certified(3.0, 0.01), certified(2.0, 0.02))
)


class Model:
    """Keeps the rule that it is given."""

    learns_halting = False
    rule: object = "none yet"

    def exit_by(self, rule):
        self.rule = rule


def chosen(exit_, calibration=CALIBRATION, *, learns_halting=False):
    model = Model()
    model.learns_halting = learns_halting
    use_exit(model, exit_, calibration, precision="fp32")
    return model.rule


def test_what_is_written_is_read(tmp_path):
    write_calibration(tmp_path, "step-3/raw", CALIBRATION)
    write_calibration(tmp_path, "step-3/ema", replace(CALIBRATION, precision="bf16"))
    assert read_calibration(tmp_path, "step-3/raw") == CALIBRATION
    assert read_calibration(tmp_path, "step-3/ema") == replace(CALIBRATION, precision="bf16")
    assert read_calibration(tmp_path, "step-4/raw") is None
    (tmp_path / FILE).unlink()
    assert read_calibration(tmp_path, "step-3/raw") is None


def test_promises_of_the_same_rows_add_up(tmp_path):
    write_calibration(tmp_path, "a", CALIBRATION)
    more = replace(CALIBRATION, certified=(certified(1.0, 0.05), certified(2.5, 0.02)))
    write_calibration(tmp_path, "a", more)
    found = read_calibration(tmp_path, "a")
    assert [(item.max_disagreement, item.level) for item in found.certified] == [
        (0.01, 3.0),
        (0.02, 2.5),
        (0.05, 1.0),
    ]
    other = replace(more, rows_sha256="cd")
    assert write_calibration(tmp_path, "a", other) == other
    assert read_calibration(tmp_path, "a") == other


def test_the_knob_chooses_a_rule():
    assert chosen("off") is None
    assert chosen("1%") == AgreementLevel(MAP, 3.0)
    assert chosen("2%") == AgreementLevel(MAP, 2.0)
    assert chosen("4.5") == AgreementLevel(MAP, 4.5)
    assert chosen("-1") == AgreementLevel(MAP, -1.0)
    assert chosen("lossless") == Certificate(agreement_map=MAP, level=2.0)
    assert chosen("lossless", None, learns_halting=True) == Certificate()
    assert chosen("off", None, learns_halting=True) is None


@pytest.mark.parametrize("exit_", ["fast", "", "0%", "100%", "nan", "inf", "1 %%", "-2%"])
def test_what_is_no_choice_says_what_is(exit_):
    with pytest.raises(PtrainError, match="is not a choice") as caught:
        chosen(exit_)
    assert "a promise such as 1%" in str(caught.value)


@pytest.mark.parametrize("exit_", ["1%", "4.5", "lossless"])
def test_without_a_calibration_the_error_says_how_to_make_one(exit_):
    with pytest.raises(PtrainError, match="needs a calibration of these weights") as caught:
        chosen(exit_, None)
    assert "ptrain calibrate RUN" in str(caught.value)


def test_a_promise_that_was_not_certified():
    with pytest.raises(PtrainError, match="no level is certified for at most 5% disagreement"):
        chosen("5%")
    only = replace(CALIBRATION, certified=(certified(1.0, 0.05),))
    with pytest.raises(PtrainError, match="certified for at most 2% disagreement"):
        chosen("lossless", only)


def test_another_precision_is_refused():
    with pytest.raises(PtrainError, match="calibrated in bf16, and this is fp32"):
        chosen("1%", replace(CALIBRATION, precision="bf16"))


def test_a_model_without_exits_is_refused():
    with pytest.raises(PtrainError, match="object has no early exit"):
        use_exit(object(), "1%", CALIBRATION, precision="fp32")
