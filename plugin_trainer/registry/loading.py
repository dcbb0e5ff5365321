"""Import one plugin's hook module, check it against the plugin API, and keep what it offers.

The plugin is registered in a manager of its own, so that whatever is wrong with it has one owner
and hurts nobody else.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from plugin_trainer.errors import PluginBroken, PluginIncompatible, PtrainError
from plugin_trainer.registry.blame import in_words, raised_at
from plugin_trainer.registry.containment import contained, was_interrupted
from plugin_trainer.registry.manager import PREFIX, PluginManager, new_manager
from plugin_trainer.registry.names import LOCAL_MODULE, NAME, NAME_RULE, RESERVED_NAMES
from plugin_trainer.registry.offers import collect
from plugin_trainer.registry.resolution import PluginSource
from plugin_trainer.specs import (
    API_VERSION,
    CallbackSpec,
    DataSpec,
    FileSpec,
    ModelSpec,
    RecipeSpec,
    SchedulerSpec,
    SpaceSpec,
)

SUPPORTED_API = tuple(version for version in (API_VERSION - 1, API_VERSION) if version >= 1)
"""A plugin written for the version before still loads."""


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin whose hooks are sound, and its offers.

    module     the hook module, or the object that the source's target names: what a run registers
    import_ms  what importing it cost; next to nothing if it was imported before
    """

    source: PluginSource
    module: object
    models: tuple[ModelSpec, ...] = ()
    data: tuple[DataSpec, ...] = ()
    callbacks: tuple[CallbackSpec, ...] = ()
    schedulers: tuple[SchedulerSpec, ...] = ()
    recipes: tuple[RecipeSpec, ...] = ()
    spaces: tuple[SpaceSpec, ...] = ()
    import_ms: float = 0.0

    @property
    def name(self) -> str:
        """The plugin's one name."""
        return self.source.name


def load(source: PluginSource) -> LoadedPlugin:
    """Import the plugin and collect its offers. Raises PluginBroken and PluginIncompatible."""
    _check_name(source)
    with contained():
        return _load(source)


def _load(source: PluginSource) -> LoadedPlugin:
    started = time.perf_counter()
    module = _import(source)
    import_ms = 1000 * (time.perf_counter() - started)

    plugin = _object_in(module, source)
    try:
        _check_api(plugin, module, source)
        manager = new_manager()
        manager.register(plugin, source.name)
    except PtrainError:
        raise
    except Exception as error:  # of an object that lets nobody look at it
        raise could_not_be_imported(source, error) from error
    _refuse_hookless(manager, plugin, source)
    return LoadedPlugin(
        source=source if source.path else replace(source, path=module.__file__ or ""),
        module=plugin,
        models=collect(manager, "ptrain_models", ModelSpec, source=source),
        data=collect(manager, "ptrain_data", DataSpec, source=source),
        callbacks=collect(manager, "ptrain_callbacks", CallbackSpec, source=source),
        schedulers=collect(manager, "ptrain_schedulers", SchedulerSpec, source=source),
        recipes=collect(manager, "ptrain_recipes", RecipeSpec, source=source),
        spaces=collect(manager, "ptrain_spaces", SpaceSpec, source=source),
        import_ms=import_ms,
    )


def path_of(plugin: LoadedPlugin, spec: FileSpec) -> Path:
    """Where a recipe's or a search space's file lies: beside the plugin's hook module."""
    module = sys.modules[_module_name(plugin.source)]
    return Path(module.__file__ or "").parent / spec.file


def _module_name(source: PluginSource) -> str:
    return source.target.partition(":")[0].strip()


# Importing.


def _check_name(source: PluginSource) -> None:
    if source.origin == "core":
        return
    if not NAME.fullmatch(source.name):
        raise PluginBroken(
            f"'{source.name}' cannot be the name of a plugin",
            plugin=source.name,
            hint=f"a name is {NAME_RULE}",
        )
    if source.name in RESERVED_NAMES:
        raise PluginBroken(
            f"'{source.name}' cannot be the name of a plugin: ptrain itself uses it",
            plugin=source.name,
        )


def _import(source: PluginSource) -> ModuleType:
    name = _module_name(source)
    try:
        if name.startswith(LOCAL_MODULE):
            return _import_file(name, Path(source.path))
        if source.origin == "path":
            _put_on_path(Path(source.path))
        module = importlib.import_module(name)
    except BaseException as error:
        if was_interrupted():
            raise
        raise could_not_be_imported(source, error) from error
    if source.origin == "path":
        _refuse_another(module, source)
    return module


def could_not_be_imported(source: PluginSource, error: BaseException) -> PluginBroken:
    """The error for a hook module that fails while it is imported, or exits."""
    hint = [in_words(error)]
    name = _module_name(source)
    place = raised_at(error, target=name)
    if place:
        hint.append(f"raised at {place}")
    elif isinstance(error, ModuleNotFoundError):
        hint.append(f"its entry point says: {source.target}")
    hint.append(
        f"see everything with --debug; check it with: ptrain plugins check {source.spelling}"
    )
    return PluginBroken(f"plugin {source} could not be imported", plugin=source.name, hint=hint)


class _SourceLoader(SourceFileLoader):
    """Compiles anew each time: bytecode of a file edited within the same second may be stale."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file as it is now."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _import_file(name: str, file: Path) -> ModuleType:
    """Import a file that is on no path under a name that cannot be another module's."""
    loader = _SourceLoader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: a dataclass looks its own module up while it is being made.
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _put_on_path(root: Path) -> None:
    """First on sys.path, so that a path wins over an installed plugin of the same name."""
    for folder in (root, root / "src"):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _refuse_another(module: ModuleType, source: PluginSource) -> None:
    """A module that was imported before, from elsewhere, would be used in silence."""
    file = Path(module.__file__ or "").resolve()
    if not file.is_relative_to(source.path):
        raise PluginBroken(
            f"plugin {source} was asked for at {source.path}, but its module came from elsewhere",
            plugin=source.name,
            hint=f"{module.__name__} was found at {file}",
        )


def _object_in(module: ModuleType, source: PluginSource) -> object:
    """The module itself, or the object after the colon; a class is called without arguments."""
    path = source.target.partition(":")[2].strip()
    found: Any = module
    try:
        for part in filter(None, path.split(".")):
            found = getattr(found, part)
        return found() if isinstance(found, type) else found
    except BaseException as error:
        if was_interrupted():
            raise
        raise could_not_be_imported(source, error) from error


# Checking.


def _check_api(plugin: object, module: ModuleType, source: PluginSource) -> None:
    version = getattr(plugin, "PTRAIN_API", getattr(module, "PTRAIN_API", None))
    if version is None:
        raise PluginBroken(
            f"plugin {source} does not say which plugin API it was written for",
            plugin=source.name,
            hint=f"write PTRAIN_API = {API_VERSION} in {_module_name(source)}",
        )
    if not isinstance(version, int) or isinstance(version, bool):
        raise PluginBroken(
            f"plugin {source} has PTRAIN_API = {version!r}, which is not a whole number",
            plugin=source.name,
            hint=f"write PTRAIN_API = {API_VERSION} in {_module_name(source)}",
        )
    if version in SUPPORTED_API:
        return
    from plugin_trainer import __version__

    speaks = " and ".join(map(str, SUPPORTED_API))
    package = source.distribution or f"version of '{source.name}'"
    older, newer = f"an older {package}", f"a newer {package}"
    raise PluginIncompatible(
        f"plugin {source} needs plugin API {version}; this ptrain ({__version__}) speaks {speaks}",
        plugin=source.name,
        hint=f"upgrade plugin-trainer, or install {older}"
        if version > API_VERSION
        else f"install {newer}, or an older plugin-trainer",
    )


def _refuse_hookless(manager: PluginManager, plugin: object, source: PluginSource) -> None:
    """The wrong module would otherwise be taken for a plugin that offers nothing."""
    if not manager.get_hookcallers(plugin):
        raise PluginBroken(
            f"plugin {source} implements no hook",
            plugin=source.name,
            hint=f"{source.target} has no function named {PREFIX}models, {PREFIX}data, ...",
        )
