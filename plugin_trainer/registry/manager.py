"""A pluggy manager that refuses what pluggy would accept in silence.

One class serves the loading of hook modules and the callbacks of a run. A function or method is a
hook because its name begins with `ptrain_`; its arguments must be the hook's own, by name, without
defaults. A refused plugin leaves nothing behind.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType, FunctionType, MethodType, TracebackType
from typing import Any

import pluggy

from plugin_trainer import hookspecs
from plugin_trainer.errors import PluginBroken
from plugin_trainer.hookspecs import PROJECT, REGISTRATION_HOOKS
from plugin_trainer.registry.names import closest

PREFIX = f"{PROJECT}_"
MARK = f"{PROJECT}_impl"
TRACE = "PTRAIN_TRACE_HOOKS"

_BY_NAME = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PluginManager(pluggy.PluginManager):
    """Registers plugins and callbacks, strictly."""

    def __init__(self) -> None:
        super().__init__(PROJECT)

    def register(self, plugin: Any, name: str | None = None, *, noun: str = "plugin") -> str | None:
        """Add a plugin's hooks, all of them or, with an error, none.

        noun  what the error calls it: "plugin" or "callback"

        Raises PluginBroken.
        """
        label = name or self.get_canonical_name(plugin)
        if self.is_blocked(label):
            return None
        self._refuse_equal(plugin, label, noun)
        self.check_hooks(plugin, label, noun=noun)
        try:
            registered = super().register(plugin, label)
            self.check_pending()
        except Exception as error:
            self.unregister(name=label)
            raise PluginBroken(
                f"{noun} '{label}' cannot be registered", plugin=label, hint=str(error)
            ) from error
        return registered

    def check_hooks(self, plugin: Any, label: str, *, noun: str = "plugin") -> None:
        """Raise PluginBroken for hooks that are none, or ask for what they are not given, and for a
        callback that has none.
        """
        hooks = list(self._hooks_of(plugin, label, noun))
        for hook, function in hooks:
            self._check_arguments(hook, function, label, noun)
        if noun == "callback" and not hooks:
            raise PluginBroken(
                f"callback '{label}' has no hook, so nothing would call it",
                plugin=label,
                hint="write a method for a moment of a run: ptrain_step_end, ptrain_epoch_end, ...",
            )

    def register_in_order(self, named: Sequence[tuple[str, Any]], *, noun: str = "plugin") -> None:
        """Register so that the first of the list is called first; pluggy calls the last first."""
        for name, plugin in reversed(named):
            self.register(plugin, name, noun=noun)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Take a function for a hook if its name says so, with or without `@hookimpl`."""
        if not name.startswith(PREFIX):
            return None
        static = inspect.getattr_static(plugin, name, None)
        if _function(static) is None:
            return None
        return dict(_options(static) or {})

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        """Look at what may be a hook only."""
        if not name.startswith(PREFIX):
            return None
        return super().parse_hookspec_opts(module_or_class, name)

    # Everything below only looks, so that an error finds nothing to undo.

    def _refuse_equal(self, plugin: Any, label: str, noun: str) -> None:
        """pluggy tells plugins apart by ==, so of two equal ones it knows only one."""
        if inspect.isclass(plugin):
            raise PluginBroken(
                f"{noun} '{label}' is the class {plugin.__name__}, not an object of it",
                plugin=label,
            )
        for other, registered in self.list_name_plugin():
            if other == label:
                raise PluginBroken(f"two {noun}s are called '{label}'", plugin=label)
            if registered is plugin:
                raise PluginBroken(f"{noun} '{label}' is registered as '{other}'", plugin=label)
            if registered is not None and (same := _sameness(registered, plugin)):
                raise PluginBroken(
                    f"{noun} '{label}' {same} '{other}', so only one would be called",
                    plugin=label,
                    hint=f"write @dataclass(eq=False) above class {type(plugin).__name__}",
                )

    def _hooks_of(self, plugin: Any, label: str, noun: str) -> Iterator[tuple[str, Any]]:
        """Each hook that the plugin implements, as (name of the hook, bound function)."""
        known = self._known()
        for name in dir(plugin):
            if name.startswith("__"):
                continue
            static = inspect.getattr_static(plugin, name, None)
            function = _function(static)
            options = _options(static)
            if not name.startswith(PREFIX):
                if options is not None:
                    raise PluginBroken(
                        f"{noun} '{label}' marks {name} with @hookimpl, but hooks are named "
                        f"{PREFIX}...",
                        plugin=label,
                        hint=_did_you_mean(PREFIX + name, known),
                    )
                continue
            hook = (options or {}).get("specname") or name
            if hook in known:
                if function is None:
                    raise PluginBroken(
                        f"{noun} '{label}' has {name}, which is not a function but of type "
                        f"{type(static).__name__}",
                        plugin=label,
                    )
                yield hook, getattr(plugin, name)
            elif function is not None and not (options or {}).get("optionalhook"):
                raise PluginBroken(
                    f"{noun} '{label}' implements {hook}, which is not a hook",
                    plugin=label,
                    hint=_did_you_mean(hook, known),
                )

    def _check_arguments(self, hook: str, function: Any, label: str, noun: str) -> None:
        offered = list(inspect.signature(getattr(hookspecs, hook)).parameters)
        parameters = list(inspect.signature(function).parameters.values())
        written = f"{hook}({', '.join(map(str, _bare(parameters)))})"
        says = f"{noun} '{label}' implements {written}"
        for parameter in parameters:
            if parameter.kind not in _BY_NAME:
                raise PluginBroken(
                    f"{says}, but hooks take plain arguments, by name",
                    plugin=label,
                    hint=f"write those it uses of: {', '.join(offered) or 'none'}",
                )
            if parameter.name not in offered:
                raise PluginBroken(
                    f"{says}, but {hook} offers: {', '.join(offered) or 'no arguments'}",
                    plugin=label,
                    hint=_did_you_mean(parameter.name, offered),
                )
            if parameter.default is not parameter.empty:
                raise PluginBroken(
                    f"{says}, but an argument of a hook has no default: pluggy may never pass it",
                    plugin=label,
                    hint=f"write '{parameter.name}' alone",
                )
        self._check_kind(hook, function, says=says, label=label)

    def _check_kind(self, hook: str, function: Any, *, says: str, label: str) -> None:
        """A coroutine or a generator does nothing when it is called, and nobody would notice."""
        options = _options(function) or {}
        wraps = bool(options.get("wrapper") or options.get("hookwrapper"))
        registers = hook in REGISTRATION_HOOKS
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PluginBroken(f"{says} as `async`, but hooks are plain functions", plugin=label)
        if wraps and registers:
            raise PluginBroken(
                f"{says} as a wrapper, but it is called for one plugin at a time", plugin=label
            )
        if inspect.isgeneratorfunction(function) and not wraps and not registers:
            raise PluginBroken(
                f"{says} with a `yield`, so calling it does nothing",
                plugin=label,
                hint="to wrap the hook, write @hookimpl(wrapper=True) above it",
            )

    def _known(self) -> list[str]:
        return [name for name, hook in vars(self.hook).items() if hook.has_spec()]


def new_manager() -> PluginManager:
    """A manager that knows the hooks; PTRAIN_TRACE_HOOKS=1 makes it print each call to stderr."""
    manager = PluginManager()
    manager.add_hookspecs(hookspecs)
    if is_tracing():
        _trace(manager)
    return manager


def is_tracing() -> bool:
    """Whether every call of a hook is to be printed."""
    return os.environ.get(TRACE, "") not in ("", "0")


def culprit(
    error: BaseException, hooks: pluggy.HookCaller | Iterable[pluggy.HookImpl]
) -> str | None:
    """The name of the plugin whose implementation raised the error, or None.

    The deepest frame that belongs to one of the implementations decides: a wrapper that an error
    only passes through has a frame too, further out.
    """
    impls = hooks.get_hookimpls() if isinstance(hooks, pluggy.HookCaller) else list(hooks)
    by_code: dict[CodeType, list[pluggy.HookImpl]] = {}
    for impl in impls:
        for code in _codes(impl.function):
            by_code.setdefault(code, []).append(impl)
    name = None
    for frame in _frames(error.__traceback__):
        for impl in by_code.get(frame.f_code, ()):
            if _runs_for(impl, frame):
                name = impl.plugin_name
    return name


def _codes(function: Any) -> Iterator[CodeType]:
    """The function's own code, and that of the one it decorates."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None:
            yield code
        function = getattr(function, "__wrapped__", None)


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _runs_for(impl: pluggy.HookImpl, frame: FrameType) -> bool:
    """Two callbacks of one class share their code; the frame's `self` tells them apart."""
    owner = getattr(impl.function, "__self__", None)
    names = frame.f_code.co_varnames
    if owner is None or not frame.f_code.co_argcount or names[0] not in frame.f_locals:
        return True
    return frame.f_locals[names[0]] is owner


def _function(static: Any) -> Any | None:
    """The plain function behind an attribute, looked at without evaluating any property."""
    if isinstance(static, (staticmethod, classmethod)):
        static = static.__func__
    return static if inspect.isfunction(static) or inspect.ismethod(static) else None


def _sameness(one: Any, other: Any) -> str:
    """Why pluggy could not tell two plugins apart; empty if it can."""
    try:
        return "compares equal to" if one == other else ""
    except Exception:  # of tensors among the fields of a dataclass, say
        return "cannot be compared with"


def _options(static: Any) -> Mapping[str, Any] | None:
    """What @hookimpl noted, above or below @staticmethod."""
    if not isinstance(static, (FunctionType, MethodType, staticmethod, classmethod)):
        return None  # a proxy may do anything when it is asked for an attribute
    for holder in (static, getattr(static, "__func__", None)):
        options = vars(holder).get(MARK) if hasattr(holder, "__dict__") else None
        if isinstance(options, dict):
            return options
    return None


def _bare(parameters: Iterable[inspect.Parameter]) -> Iterator[inspect.Parameter]:
    """The parameters as their author wrote them, without the annotations."""
    return (parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters)


def _did_you_mean(word: str, candidates: Iterable[str]) -> tuple[str, ...]:
    near = closest(word, candidates)
    return (f"did you mean '{near}'?",) if near else ()


def _trace(manager: PluginManager) -> None:
    started: list[float] = []

    def before(hook: str, impls: Sequence[pluggy.HookImpl], kwargs: Mapping[str, Any]) -> None:
        owners = ", ".join(impl.plugin_name for impl in reversed(impls)) or "nobody"
        print(f"{'  ' * len(started)}{hook}({', '.join(kwargs)}) -> {owners}", file=sys.stderr)
        started.append(time.perf_counter())

    def after(
        outcome: pluggy.Result[Any],
        hook: str,
        impls: Sequence[pluggy.HookImpl],
        kwargs: Mapping[str, Any],
    ) -> None:
        elapsed_ms = 1000 * (time.perf_counter() - started.pop())
        failed = f", raised {type(outcome.exception).__name__}" if outcome.exception else ""
        print(f"{'  ' * len(started)}{hook} took {elapsed_ms:.2f} ms{failed}", file=sys.stderr)

    manager.add_hookcall_monitoring(before, after)
