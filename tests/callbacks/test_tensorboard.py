"""What TensorBoard shows is what metrics.jsonl says, across resumes too."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plugin_trainer.callbacks import tensorboard as module
from plugin_trainer.errors import MissingExtra


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Every scalar as TensorBoard itself reads it."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def lines(run, name) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


def assert_equal_to_the_lines(run, *names):
    found = scalars(run / "tensorboard")
    for name in names:
        assert found[name] == [(step, pytest.approx(value)) for step, value in lines(run, name)]


def test_every_logged_number_is_written_at_its_step(fit, tmp_path):
    fit(callbacks=["-progress_bar"], log="1 steps", ema={"decay": 0.5})
    assert_equal_to_the_lines(
        tmp_path / "run", "train/loss", "learning_rate", "val/loss", "val_ema/loss"
    )
    assert [step for step, _ in scalars(tmp_path / "run" / "tensorboard")["val/loss"]] == [3, 6]


def test_pictures_and_texts_that_a_callback_adds_are_shown_at_their_steps(fit, tmp_path):
    from matplotlib.figure import Figure

    class Adds:
        def ptrain_evaluation_end(self, run):
            run.log_artifact("curves/loss.png", Figure(figsize=(2, 1), dpi=50))
            run.log_artifact("notes.md", f"step {run.progress.step}")
            run.log_artifact("table.csv", "a,b")
            run.log_artifact("no.png", "no picture")

    fit(callbacks=["-progress_bar", Adds()])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["curves/loss"]
    images = events.Images("curves/loss")
    assert [(image.step, image.width, image.height) for image in images] == [
        (3, 100, 50),
        (6, 100, 50),
    ]
    png = (tmp_path / "run" / "artifacts" / "curves" / "loss.png").read_bytes()
    assert images[-1].encoded_image_string == png
    assert events.Tags()["tensors"] == ["notes/text_summary"]


def test_a_resumed_run_goes_on_in_the_same_curves_without_steps_made_twice(fit, tmp_path):
    class Interrupt:
        def ptrain_step_end(self, run):
            if run.progress.step == 6:
                raise KeyboardInterrupt

    options = {"log": "1 steps", "save": "2 steps"}
    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=["-progress_bar", Interrupt()], **options)
    for path in (tmp_path / "run" / "checkpoints").glob("step-00000006"):
        (path / "manifest.json").unlink()  # as if the process had been killed instead
    fit(callbacks=["-progress_bar"], resume="auto", **options)
    assert_equal_to_the_lines(tmp_path / "run", "train/loss", "val/loss")
    assert [step for step, _ in lines(tmp_path / "run", "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_what_callbacks_given_as_objects_log_is_written_too(fit, tmp_path):
    class Logs:
        def ptrain_log(self, run, metrics):
            metrics["mine"] = 2.0 * run.progress.step

    fit(callbacks=["-progress_bar", Logs()], log="3 steps", validation=None)
    assert scalars(tmp_path / "run" / "tensorboard")["mine"] == [(3, 6.0), (6, 12.0)]


def test_what_is_not_finite_is_left_out_of_the_curves_and_stays_in_the_lines(fit, tmp_path):
    class Logs:
        def ptrain_log(self, run, metrics):
            metrics["mine"] = math.nan

    fit(callbacks=["-progress_bar", Logs()])
    assert "mine" not in scalars(tmp_path / "run" / "tensorboard")
    assert all(value == "nan" for _, value in lines(tmp_path / "run", "mine"))


def test_the_folder_can_be_chosen(fit, tmp_path):
    fit(callbacks=["-progress_bar"], callback_settings={"tensorboard": {"folder": "curves"}})
    assert scalars(tmp_path / "run" / "curves")


def test_asking_for_it_where_it_is_not_installed_says_what_to_install(fit, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="needs the package tensorboard") as caught:
        fit(callbacks=["-progress_bar", "tensorboard"])
    assert caught.value.hint == (
        'install the extra: pip install "plugin-trainer[tensorboard]"',
    )  # fmt: skip
