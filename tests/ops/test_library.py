"""Which kernels are used is asked once, answered in words, and nobody's work at import."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from plugin_trainer.errors import PtrainError
from plugin_trainer.ops import ema_update_, grad_norm, halting_exit, halting_loss, library

compiled_only = pytest.mark.skipif(
    library.status().compiled is None, reason=library.status().reason
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Every test asks anew. The library itself stays loaded: a process has one."""
    monkeypatch.setattr(library, "_known", {})
    monkeypatch.setattr(library, "_located", [])
    monkeypatch.setattr(library, "_register", lambda: None)


def nothing_found(*, build):
    return None, "there is none for the test"


def use_all():
    """Every public function, and what came out."""
    torch.manual_seed(0)
    shadow = torch.randn(5)
    ema_update_([shadow], [torch.ones(5)], decay=0.5)
    logits = torch.randn(2, 3, 2, requires_grad=True)
    halting = torch.randn(2, 3)
    loss = halting_loss(logits, halting, torch.zeros(3, dtype=torch.long), tau=0.1).loss
    loss.backward()
    return [
        shadow,
        loss.detach(),
        logits.grad,
        halting_exit(logits, halting).exit_block,
        grad_norm([torch.ones(4)]),
    ]


def test_without_a_library_the_references_are_used_and_the_reason_is_known(monkeypatch):
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    monkeypatch.setattr(library, "_look", nothing_found)
    assert library.find() is None
    assert library.status().reason == "there is none for the test"
    assert library.status().used == "reference"
    use_all()


def test_off_uses_the_references_though_there_is_a_library(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "off")
    assert library.find() is None
    assert library.status().reason == "PTRAIN_KERNELS=off"
    assert library.status().used == "off"


@compiled_only
@pytest.mark.parametrize("value", ["auto", "require", ""])
def test_with_a_library_the_answers_are_those_of_the_references(monkeypatch, value):
    monkeypatch.setenv("PTRAIN_KERNELS", value)
    assert library.find() is not None
    fast = use_all()
    monkeypatch.setenv("PTRAIN_KERNELS", "off")
    torch.testing.assert_close(fast, use_all())


def test_require_without_a_library_is_an_error_that_says_why_and_what_to_do(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "require")
    monkeypatch.setattr(library, "_look", nothing_found)
    with pytest.raises(PtrainError, match=r"no compiled kernels: there is none for the test") as e:
        use_all()
    assert "unset PTRAIN_KERNELS" in str(e.value)
    assert library.status().compiled is None


def test_an_unknown_choice_is_an_error_that_lists_the_choices(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "on")
    with pytest.raises(PtrainError, match="PTRAIN_KERNELS is 'on'") as e:
        library.find()
    assert "auto, off, require" in str(e.value)


def test_many_threads_look_once(monkeypatch):
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    looks = []

    def look(*, build):
        looks.append(threading.current_thread())
        return nothing_found(build=build)

    monkeypatch.setattr(library, "_look", look)
    threads = [threading.Thread(target=library.find) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks) == 1


def test_looking_without_building_does_not_settle_the_question(monkeypatch):
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    builds = []

    def look(*, build):
        builds.append(build)
        return nothing_found(build=build)

    monkeypatch.setattr(library, "_look", look)
    library.status(build=False)
    library.find()
    library.find()
    assert builds == [False, True]


def run(code: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.process
def test_nothing_happens_at_import():
    code = """
import os, sys
os.environ["PTRAIN_KERNELS"] = "nonsense"
from plugin_trainer.ops import library
import torch
assert not library._known and not library._located
assert not hasattr(torch.ops.ptrain, "has_cuda")
assert "torch.utils.cpp_extension" not in sys.modules
assert "plugin_trainer.ops.building.builder" not in sys.modules
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@compiled_only
def test_a_library_may_be_named():
    code = """
import sys
from plugin_trainer.ops import library
found = library.find()
assert (found.origin, str(found.path)) == ("given", sys.argv[1])
print(library.status().reason)
"""
    path = str(library.find().path)
    done = run(code, path, PTRAIN_KERNELS_LIBRARY=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compiled kernels that PTRAIN_KERNELS_LIBRARY names\n"


def test_a_named_library_that_is_none_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    path = tmp_path / "libptrain.so"
    path.write_text("no library")
    monkeypatch.setenv("PTRAIN_KERNELS_LIBRARY", str(path))
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    with pytest.raises(PtrainError, match="PTRAIN_KERNELS_LIBRARY names a library that cannot be"):
        library.find()


class Asks(Dataset):
    """Items that say what a worker of a loader uses."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return library.status().reason


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the workers are forked")
def test_a_worker_of_a_loader_never_builds(tmp_path, monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    monkeypatch.setattr(library, "_is_loaded", lambda: False)
    loader = DataLoader(Asks(), num_workers=1, batch_size=None, multiprocessing_context="fork")
    (reason,) = list(loader)
    assert reason.startswith(("the kernels have not been built yet", "there is no C++ compiler"))
    assert not list(Path(tmp_path).rglob("*.so"))


@compiled_only
def test_asking_does_not_break_a_compiled_graph(monkeypatch):
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    library.find()

    @torch.compile(fullgraph=True, backend="eager")
    def asked(x):
        return x * 2 if library.find() is not None else x * 3

    assert asked(torch.ones(1)).item() == 2


@compiled_only
def test_the_library_says_what_it_is():
    found = library.find()
    assert found.instruction_set in ("baseline", "avx2", "avx512")
    assert found.cuda is torch.ops.ptrain.has_cuda()
    assert found.path.is_file()


def test_a_named_library_of_somebody_else_is_refused_in_words(monkeypatch):
    other = next(iter(sorted(Path(np.__file__).parent.rglob("_multiarray_umath*.so"))))
    monkeypatch.setenv("PTRAIN_KERNELS", "auto")
    monkeypatch.setenv("PTRAIN_KERNELS_LIBRARY", str(other))
    monkeypatch.setattr(library, "_is_loaded", lambda: False)
    with pytest.raises(PtrainError, match="names a library that holds none of these kernels"):
        library.find()


@pytest.mark.process
@compiled_only
def test_loading_does_not_go_through_all_modules_of_the_process():
    """`inspect` notes every module it passes: those that torch has imported, or none of them."""
    done = run(
        "import inspect, torch; from plugin_trainer.ops import library;"
        " inspect.modulesbyfile.clear(); inspect._filesbymodname.clear(); library.find();"
        " assert len(inspect.modulesbyfile) < 10, len(inspect.modulesbyfile)"
    )
    assert done.returncode == 0, done.stderr
