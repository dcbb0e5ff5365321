"""What `ptrain plugins check` asks of a plugin, each answer a sentence when it is no."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.building import import_target, settings_class
from plugin_trainer.registry.catalog import Offer
from plugin_trainer.registry.discovery import installed_commands
from plugin_trainer.registry.loading import LoadedPlugin, path_of
from plugin_trainer.registry.manager import new_manager
from plugin_trainer.registry.names import LOCAL_MODULE
from plugin_trainer.registry.resolution import PluginSource
from plugin_trainer.specs import CallbackSpec, DataSpec

# Imports argv[1] with argv[2] for sys.path. An import of torch ends it, and says who asked.
_WITHOUT_TORCH = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[2])
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        frame, importing = sys._getframe(), False
        while frame.f_code.co_filename.startswith("<"):
            importing = importing or frame.f_code.co_name == "_find_and_load"
            frame = frame.f_back
        if importing:
            print(f"TORCH {frame.f_code.co_filename}:{frame.f_lineno}", flush=True)
            os._exit(3)
sys.meta_path.insert(0, Watch())
__import__(sys.argv[1])
"""

_TIMEOUT_S = 60


def problems_of(plugin: LoadedPlugin) -> list[str]:
    """Everything wrong with a plugin that loads; imports all it offers, so usually torch."""
    return [
        *_name_problems(plugin.source),
        *_torch_problems(plugin.source),
        *_offer_problems(plugin),
        *_file_problems(plugin),
    ]


def _name_problems(source: PluginSource) -> Iterator[str]:
    """One name everywhere: what is installed is what is typed."""
    expected = f"ptrain-{source.name}"
    if source.origin == "core" or not source.distribution:
        return
    if _normal(source.distribution) != _normal(expected):
        yield f"its distribution is {source.distribution}; by its name it would be {expected}"
    for command in installed_commands():
        if command.distribution == source.distribution and command.name != source.name:
            yield f"its command is '{command.name}'; by its name it would be '{source.name}'"


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _torch_problems(source: PluginSource) -> Iterator[str]:
    """Listing must stay cheap. A one-file plugin holds everything, so it is let off."""
    module = source.target.partition(":")[0].strip()
    if module.startswith(LOCAL_MODULE):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_TORCH, module, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield f"importing {module} takes more than {_TIMEOUT_S} seconds"
        return
    who = re.search(r"^TORCH (.*)$", done.stdout, flags=re.MULTILINE)
    if who:
        yield f"importing {module} imports torch, at {who[1]}; name targets as strings instead"
    elif done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        yield f"importing {module} by itself fails: {last}"


def _offer_problems(plugin: LoadedPlugin) -> Iterator[str]:
    specs = (*plugin.models, *plugin.data, *plugin.callbacks, *plugin.schedulers)
    for spec in specs:
        if not all(map(find_spec, getattr(spec, "requires", ()))):
            continue  # it says itself that it cannot be had here
        try:
            target = import_target(spec.target, plugin=plugin.name)
            settings_class(Offer(plugin, spec))
            if isinstance(spec, CallbackSpec) and inspect.isclass(target):
                with suppress(TypeError):  # of a class that is not made by __new__ alone
                    bare = target.__new__(target)
                    new_manager().check_hooks(bare, spec.name, noun="callback")
        except PtrainError as error:
            yield "; ".join((error.message, *error.hint[:2]))
        else:
            if not callable(target):
                yield f"{spec.target}, offered as '{spec.name}', cannot be called"
            elif isinstance(spec, DataSpec) and _has_no_train(target):
                yield f"{spec.target}, offered as '{spec.name}', has no train()"


def _has_no_train(target: Any) -> bool:
    """Whether a class gives no training data; what a function makes is not known."""
    return inspect.isclass(target) and not callable(getattr(target, "train", None))


def _file_problems(plugin: LoadedPlugin) -> Iterator[str]:
    for noun, specs in (("recipe", plugin.recipes), ("search space", plugin.spaces)):
        for spec in specs:
            file = path_of(plugin, spec)
            try:
                tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                yield f"{noun} '{spec.name}': {file}: {error}"
