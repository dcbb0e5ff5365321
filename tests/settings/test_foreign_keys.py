"""A key of another trainer is answered with ours, which exists."""

from __future__ import annotations

import pytest

from plugin_trainer.configuration import configure
from plugin_trainer.errors import SettingsError
from plugin_trainer.settings.foreign_keys import WRITE
from plugin_trainer.settings.layers import Layer, from_assignments


@pytest.mark.parametrize("key", WRITE)
def test_a_key_of_another_trainer_is_answered_with_ours(key):
    with pytest.raises(SettingsError) as caught:
        configure(Layer("fit", {key: 3}), parts=False)
    assert f"{key}: no such key; write {WRITE[key]}" in str(caught.value)


@pytest.mark.parametrize("text", sorted({*WRITE.values()}))
def test_what_to_write_is_right(text):
    settings = [part for part in text.split(" and ") if " = " in part]
    assert settings or "ptrain run" in text or text.startswith("fit(")
    assignments = [part.replace(" = ", "=", 1) for part in settings]
    configure(from_assignments(assignments), parts=False)


def test_a_key_within_its_table_is_answered_too():
    with pytest.raises(SettingsError, match=r"optimizer\.lr: no such key; write optimizer\.learn"):
        configure(Layer("fit", {"optimizer": {"lr": 0.1}}), parts=False)
