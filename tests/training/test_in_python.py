"""What a hint would type on the command line, for those who call from Python."""

from __future__ import annotations

import pytest

from plugin_trainer.training.in_python import in_python


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("to go on: --allow code", 'to go on: allow=["code"]'),
        ("--allow ema.decay --allow code", 'allow=["ema.decay", "code"]'),
        ("--allow 'a.\"b/c\".d' --allow code", 'allow=[\'a."b/c".d\', "code"]'),
        ("make room, then --resume auto", 'make room, then resume="auto"'),
        ("choose another with --out", "choose another with out="),
        ("give it --out DIR or --set name=NAME", 'give it out=DIR or name="NAME"'),
        ('--set length="20_000 steps" --allow length', 'length="20_000 steps" allow=["length"]'),
        ("--set optimizer.learning_rate=1e-4", 'optimizer={"learning_rate": 1e-4}'),
        ("--set data_settings.test=FILE", 'data_settings={"test": "FILE"}'),
        ("start a new run: --set init_from=runs/a", 'start a new run: init_from="runs/a"'),
        ("delete it: --overwrite", "delete it: overwrite=True"),
        ("a plugin with --plugin NAME", 'a plugin with plugins=["NAME"]'),
        ("start them with torchrun, one --rdzv-endpoint", None),
    ],
)
def test_options_become_arguments_and_the_rest_stays(typed, written):
    assert in_python(typed) == (written or typed)
