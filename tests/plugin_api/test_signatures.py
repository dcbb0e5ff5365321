"""The hooks of one plugin API version never change: plugins were written against hooks.json.

Adding a hook, or an argument to one, breaks no plugin: update the file. Taking one away, renaming
it or changing `firstresult` does: raise API_VERSION, keep the version before loading, then update
the file:

    python tests/plugin_api/test_signatures.py
"""

import inspect
import json
from pathlib import Path

from plugin_trainer import hookspecs
from plugin_trainer.registry.loading import SUPPORTED_API
from plugin_trainer.specs import API_VERSION

FILE = Path(__file__).with_name("hooks.json")


def current():
    """Every hook with its arguments and whether the first answer counts."""
    hooks = {}
    for name, function in vars(hookspecs).items():
        options = getattr(function, f"{hookspecs.PROJECT}_spec", None)
        if options is not None:
            hooks[name] = {
                "arguments": list(inspect.signature(function).parameters),
                "firstresult": options["firstresult"],
            }
    return {"api_version": API_VERSION, "hooks": hooks}


def frozen():
    return json.loads(FILE.read_text(encoding="utf-8"))


def test_the_hooks_are_those_of_the_frozen_file():
    assert current() == frozen()


def test_the_frozen_file_belongs_to_this_api_version():
    assert frozen()["api_version"] == API_VERSION


def test_this_version_and_the_one_before_load():
    assert API_VERSION in SUPPORTED_API
    assert set(SUPPORTED_API) <= {API_VERSION - 1, API_VERSION}


def test_every_hook_says_when_it_is_called():
    for name in current()["hooks"]:
        assert inspect.getdoc(getattr(hookspecs, name)), name


def test_the_map_of_a_run_names_every_hook():
    for name in current()["hooks"]:
        assert name in hookspecs.__doc__, name


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=2) + "\n", encoding="utf-8")
