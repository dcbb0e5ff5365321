"""A callback adds files to a run, and looks at the gradients of a step before they are applied."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from plugin_trainer.errors import PtrainError, TrainingFailed


class Drawing:
    """Draws itself, as a figure of matplotlib does."""

    def savefig(self, file, *, format):
        file.write(b"drawn as " + format.encode())


class Adds:
    """Adds some files at the first evaluation, and notes what the others hear."""

    def __init__(self, *files):
        self.files, self.heard = files, []

    def ptrain_evaluation_end(self, run):
        for name, content in self.files:
            run.log_artifact(name, content)

    def ptrain_artifact(self, run, name, path):
        self.heard.append((run.progress.step, name, path.read_bytes()))


def test_files_of_every_kind_are_in_the_run_folder_and_told_to_loggers(fit, toy, tmp_path):
    (tmp_path / "table.csv").write_text("a,b")
    adds = Adds(
        ("notes.md", "é"),
        ("raw/bytes.bin", b"\0"),
        ("copied.csv", tmp_path / "table.csv"),
        ("picture.svg", Drawing()),
    )
    fit(validation=toy.loader(4), callbacks=[adds], length="1 epochs")
    contents = {"notes.md": "é".encode(), "raw/bytes.bin": b"\0", "copied.csv": b"a,b"}
    contents["picture.svg"] = b"drawn as svg"
    folder = tmp_path / "run" / "artifacts"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == contents.keys()
    assert adds.heard == [(3, name, content) for name, content in contents.items()]


@pytest.mark.parametrize(
    "name", ["../x.txt", "/x.txt", "noending", ".hidden.txt", "a/../../x.txt", ""]
)
def test_a_name_that_leaves_the_folder_or_says_no_format_is_refused(fit, toy, tmp_path, name):
    with pytest.raises(PtrainError, match="is no name for a file of the run"):
        fit(validation=toy.loader(4), callbacks=[Adds((name, "text"))])
    assert not (tmp_path / "run" / "artifacts").exists()


def test_content_that_is_none_is_refused(fit, toy, tmp_path):
    with pytest.raises(PtrainError, match=r"'x\.txt' was given a int"):
        fit(validation=toy.loader(4), callbacks=[Adds(("x.txt", 3))])
    assert list((tmp_path / "run" / "artifacts").iterdir()) == []


# ------------------------------------------------------------------------ before the optimizer


class Sees:
    """Notes the gradients of each step, and multiplies them."""

    def __init__(self, factor=1.0):
        self.factor, self.seen = factor, []

    def ptrain_before_optimizer_step(self, run):
        gradients = [p.grad for group in run.optimizer.param_groups for p in group["params"]]
        self.seen.append([gradient.clone() for gradient in gradients])
        for gradient in gradients:
            gradient.mul_(self.factor)


SGD = {
    "optimizer": {"name": "SGD", "learning_rate": 0.5, "weight_decay": 0.0},
    "schedule": {"name": "constant"},
}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_whole_and_those_of_the_step(fit, toy, accumulate):
    sees = Sees()
    before = toy.net().state_dict()
    result = fit(callbacks=[sees], length="1 steps", accumulate=accumulate, **SGD)
    (gradients,) = sees.seen
    for (name, tensor), gradient in zip(before.items(), gradients, strict=True):
        after = result.model.state_dict()[name]
        assert torch.allclose(tensor - 0.5 * gradient, after), name


@pytest.mark.parametrize("optimizer", ["SGD", "adamw"])
def test_what_is_left_there_is_clipped_logged_and_applied(fit, tmp_path, optimizer):
    options = {"length": "2 steps", "log": "1 steps", "schedule": {"name": "constant"}}
    norms = {}
    for factor in (1.0, 100.0):
        sees = Sees(factor)
        fit(
            callbacks=[sees],
            out=f"by {factor}",
            optimizer={"name": optimizer, "max_grad_norm": 1e9},
            **options,
        )
        lines = (tmp_path / f"by {factor}" / "metrics.jsonl").read_text().splitlines()
        norms[factor] = json.loads(lines[0])["train/grad_norm"]
        whole = nn.utils.get_total_norm(sees.seen[0])
        assert norms[factor] == pytest.approx(factor * whole.item(), rel=1e-5)


def test_gradients_that_are_made_nan_there_are_noticed(fit):
    with pytest.raises(TrainingFailed, match="gradient norm nan"):
        fit(callbacks=[Sees(float("nan"))])
