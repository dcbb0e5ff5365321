from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from plugin_trainer.errors import PtrainError
from plugin_trainer.ops import ema_update_, halting_exit, halting_loss, library
from plugin_trainer.ops.ema import reference as ema_reference
from plugin_trainer.ops.halting import reference as halting_reference


@pytest.fixture
def compiled(monkeypatch):
    """A stand-in for a compiled library: counts its calls, and computes as the references do."""
    calls = []

    def counted(function):
        def call(*args, **options):
            calls.append(function.__name__)
            return function(*args, **options)

        return call

    found = SimpleNamespace(
        calls=calls,
        ema_update_=counted(ema_reference.ema_update_),
        halting_forward=counted(halting_reference.halting_forward),
        halting_backward=counted(halting_reference.halting_backward),
        halting_exit=counted(halting_reference.halting_exit),
    )
    monkeypatch.setattr(library, "_locate", lambda: (found, "found for the test"))
    forget()
    yield found
    forget()


def forget():
    library._find.cache_clear()
    library._status.cache_clear()


def use_all():
    ema_update_([torch.zeros(1)], [torch.ones(1)], decay=0.5)
    logits, halting = torch.zeros(2, 3, 2, requires_grad=True), torch.zeros(2, 3)
    halting_loss(logits, halting, torch.zeros(3, dtype=torch.long), tau=0.1).loss.backward()
    halting_exit(logits, halting)


ALL = ["ema_update_", "halting_forward", "halting_backward", "halting_exit"]


def test_without_a_library_the_references_are_used_and_the_reason_is_known(monkeypatch):
    monkeypatch.delenv("PTRAIN_KERNELS", raising=False)
    assert library.find() is None
    assert "no compiled" in library.status().reason
    use_all()


@pytest.mark.parametrize("value", ["auto", "require", ""])
def test_every_public_function_uses_the_compiled_library(compiled, monkeypatch, value):
    monkeypatch.setenv("PTRAIN_KERNELS", value)
    use_all()
    assert compiled.calls == ALL


def test_off_uses_the_references_though_there_is_a_library(compiled, monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "off")
    use_all()
    assert compiled.calls == []
    assert library.status().reason == "PTRAIN_KERNELS=off"


def test_require_without_a_library_is_an_error_that_says_why_and_what_to_do(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "require")
    with pytest.raises(PtrainError, match=r"no compiled kernels: .*no compiled torch library") as e:
        use_all()
    assert "unset PTRAIN_KERNELS" in str(e.value)
    assert library.status().compiled is None


def test_an_unknown_choice_is_an_error_that_lists_the_choices(monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS", "on")
    with pytest.raises(PtrainError, match="PTRAIN_KERNELS is 'on'") as e:
        library.find()
    assert "auto, off, require" in str(e.value)


def test_nothing_happens_at_import():
    code = """
import os
os.environ["PTRAIN_KERNELS"] = "nonsense"
from plugin_trainer.ops import library
assert library._find.cache_info().currsize == library._locate.cache_info().currsize == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
