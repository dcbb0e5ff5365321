"""A run's hooks: its plugins and callbacks registered once, each hook resolved to one callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pluggy

from plugin_trainer.errors import PtrainError, TrainingFailed
from plugin_trainer.registry.blame import what_and_where
from plugin_trainer.registry.manager import culprit, is_tracing, new_manager

Call = Callable[..., Any]

_CORE = "the engine"
_PACKAGE = __name__.partition(".")[0]


class RunHooks:
    """What the loop calls. A hook that nobody implements costs one empty call.

    plugins    (name, module) of the active plugins
    callbacks  (address, object) in calling order
    core       the engine's own answers to the behaviour hooks, asked last
    """

    move_batch: Call
    forward: Call
    train_step: Call
    run_start: Call
    epoch_start: Call
    before_optimizer_step: Call
    step_end: Call
    log: Call
    evaluation_start: Call
    evaluation_batch_end: Call
    evaluation_end: Call
    epoch_end: Call
    checkpoint_save: Call
    checkpoint_load: Call
    checkpoint_committed: Call
    artifact: Call
    run_end: Call
    run_failed: Call

    def __init__(
        self,
        *,
        plugins: Sequence[tuple[str, object]],
        callbacks: Sequence[tuple[str, object]],
        core: object,
    ) -> None:
        self._manager = new_manager()
        # The last registered is called first: plugins, then callbacks, then core's own answers.
        self._manager.register(core, name=_CORE)
        self._manager.register_in_order(callbacks, noun="callback")
        self._manager.register_in_order(plugins)
        self._noun = {name: "callback" for name, _ in callbacks}
        for name in self.__class__.__annotations__:
            setattr(self, name, self._resolve(f"ptrain_{name}"))

    def _resolve(self, hook_name: str) -> Call:
        caller = getattr(self._manager.hook, hook_name)
        # Core comes after those, too, that ask to be the last: the list is called from its end.
        caller._hookimpls.sort(key=lambda impl: impl.plugin_name != _CORE)
        impls = caller.get_hookimpls()
        if not impls:
            return _nothing
        if is_tracing() or any(impl.wrapper or impl.hookwrapper for impl in impls):
            return caller
        return _directly(impls, caller.spec)

    @property
    def makes_steps(self) -> str:
        """The plugin or callback that makes the training step itself; empty if the engine does."""
        for impl in self._manager.hook.ptrain_train_step.get_hookimpls():
            if impl.plugin_name != _CORE:
                return f"{self._noun.get(impl.plugin_name, 'plugin')} '{impl.plugin_name}'"
        return ""

    @property
    def sees_gradients(self) -> bool:
        """Whether a plugin or callback looks at the gradients of a step, and may change them."""
        return self.before_optimizer_step is not _nothing

    @property
    def may_add_metrics(self) -> bool:
        """Whether a plugin or callback may add to what an evaluation gives. This package's own
        callbacks do not.
        """
        return any(
            "metrics" in impl.argnames
            and (getattr(impl.function, "__module__", "") or "").partition(".")[0] != _PACKAGE
            for impl in self._manager.hook.ptrain_evaluation_end.get_hookimpls()
        )

    def blame(self, error: BaseException) -> tuple[str, str] | None:
        """The plugin or callback, and its hook, out of which an error came; None if it is the
        engine's.
        """
        for name in self.__class__.__annotations__:
            caller = getattr(self._manager.hook, f"ptrain_{name}")
            plugin = culprit(error, caller.get_hookimpls())
            if plugin is not None and plugin != _CORE:
                return plugin, f"ptrain_{name}"
        return None

    def explain(self, error: Exception, *, step: int) -> PtrainError | None:
        """An error out of a plugin's hook as a message that names it; None if it is not one."""
        if isinstance(error, PtrainError):
            return None
        blamed = self.blame(error)
        if blamed is None:
            return None
        plugin, hook = blamed
        return TrainingFailed(
            f"{self._noun.get(plugin, 'plugin')} '{plugin}' failed in {hook} at step {step}",
            hint=what_and_where(error),
        )


def _directly(impls: Sequence[pluggy.HookImpl], spec: Any) -> Call:
    """What pluggy's call comes to where nothing wraps it: each implementation with the arguments it
    names, the last registered first. Found once a run, because a call through pluggy costs some
    3 us and a step makes several.
    """
    if len(impls) == 1 and _takes_keywords(impls[0].function, spec.argnames):
        return impls[0].function
    calls = [(impl.function, impl.argnames) for impl in reversed(impls)]

    def each(**given: Any) -> None:
        for function, names in calls:
            function(*[given[name] for name in names])

    def first_answer(**given: Any) -> Any:
        for function, names in calls:
            answer = function(*[given[name] for name in names])
            if answer is not None:
                return answer
        return None

    return first_answer if spec.opts["firstresult"] else each


def _takes_keywords(function: Call, names: Sequence[str]) -> bool:
    kinds = {name: p.kind for name, p in inspect.signature(function).parameters.items()}
    return kinds.keys() == set(names) and inspect.Parameter.POSITIONAL_ONLY not in kinds.values()


def _nothing(**_: Any) -> None:
    """Stand in for a hook that nobody implements."""
