"""Hooks are found by their names and held to their signatures."""

import functools

import pytest

from plugin_trainer import hookimpl
from plugin_trainer.errors import PluginBroken
from plugin_trainer.registry.manager import culprit, new_manager


def refusal(plugin):
    with pytest.raises(PluginBroken) as caught:
        new_manager().register(plugin, "it")
    return str(caught.value)


def test_a_name_is_enough_and_unused_arguments_may_be_left_out():
    calls = []

    class Callback:
        def ptrain_step_end(self, outcome):
            calls.append(outcome)

        @staticmethod
        def ptrain_run_start():
            calls.append("start")

        @hookimpl
        def ptrain_epoch_end(self, run):
            calls.append(run)

    manager = new_manager()
    manager.register(Callback(), "callback")
    manager.hook.ptrain_step_end(run="run", outcome="outcome")
    manager.hook.ptrain_run_start(run="run")
    manager.hook.ptrain_epoch_end(run="run")
    assert calls == ["outcome", "start", "run"]


def test_a_wrapper_surrounds_the_hook():
    class Default:
        def ptrain_forward(self, batch):
            return batch

    class Doubling:
        @hookimpl(wrapper=True)
        def ptrain_forward(self, run):
            return 2 * (yield)

    manager = new_manager()
    manager.register(Doubling(), "doubling")
    manager.register(Default(), "default")
    assert manager.hook.ptrain_forward(run=None, batch=4) == 8


def test_a_hook_for_a_newer_api_may_be_marked_as_optional():
    class Modern:
        @hookimpl(optionalhook=True)
        def ptrain_not_yet_known(self, run): ...

    new_manager().register(Modern(), "modern")


def test_helpers_and_modules_in_a_namespace_are_no_hooks():
    class Callback:
        ptrain_helper_package = functools  # as `import ptrain_x.settings` leaves behind

        def helper(self, anything): ...
        def ptrain_run_start(self, run): ...

    new_manager().register(Callback(), "callback")


def with_hook(name, function):
    return type("Callback", (), {name: function})()


def generator(self, run):
    yield


async def coroutine(self, run): ...


@pytest.mark.parametrize(
    ("name", "function", "text"),
    [
        ("ptrain_run_start", generator, "with a `yield`, so calling it does nothing"),
        ("ptrain_run_start", coroutine, "as `async`, but hooks are plain functions"),
        ("ptrain_run_start", lambda self, *run: None, "but hooks take plain arguments, by name"),
        ("ptrain_run_start", lambda self, **run: None, "but hooks take plain arguments, by name"),
        ("ptrain_run_start", lambda self, *, run: None, "but hooks take plain arguments, by name"),
        ("ptrain_models", lambda self, run: [], "but ptrain_models offers: no arguments"),
        ("ptrain_models", ["base"], "which is not a function but of type list"),
        (
            "ptrain_models",
            hookimpl(wrapper=True)(lambda self: (yield)),
            "but it is called for one plugin at a time",
        ),
        (
            "step_end",
            hookimpl(lambda self, run: None),
            "marks step_end with @hookimpl, but hooks are named ptrain_...",
        ),
    ],
)
def test_what_would_silently_do_nothing_is_refused(name, function, text):
    assert text in refusal(with_hook(name, function))


def test_a_class_is_refused_where_an_object_is_meant():
    class Callback:
        def ptrain_run_start(self, run): ...

    assert refusal(Callback) == "plugin 'it' is the class Callback, not an object of it"


def test_one_name_is_registered_once():
    manager = new_manager()
    manager.register(with_hook("ptrain_run_start", lambda self: None), "it")
    with pytest.raises(PluginBroken, match="two callbacks are called 'it'"):
        manager.register(with_hook("ptrain_run_start", lambda self: None), "it", noun="callback")


def test_the_culprit_is_told_from_another_object_of_its_class():
    class Callback:
        def __init__(self, fails):
            self.fails = fails

        def ptrain_run_start(self, run):
            if self.fails:
                raise ValueError

    manager = new_manager()
    manager.register_in_order([("a", Callback(False)), ("b", Callback(True))])
    with pytest.raises(ValueError) as caught:
        manager.hook.ptrain_run_start(run=None)
    assert culprit(caught.value, manager.hook.ptrain_run_start) == "b"


def test_a_wrapper_that_an_error_passes_through_is_not_the_culprit():
    class Wrapper:
        @hookimpl(wrapper=True)
        def ptrain_forward(self):
            return (yield)

    class Failing:
        def ptrain_forward(self, batch):
            raise ValueError

    manager = new_manager()
    manager.register(Wrapper(), "wrapper")
    manager.register(Failing(), "failing")
    with pytest.raises(ValueError) as caught:
        manager.hook.ptrain_forward(run=None, batch=None)
    assert culprit(caught.value, manager.hook.ptrain_forward) == "failing"


def test_a_decorated_hook_is_found_to_be_the_culprit():
    def noted(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    class Failing:
        @noted
        def ptrain_run_start(self, run):
            raise ValueError

    manager = new_manager()
    manager.register(Failing(), "failing")
    with pytest.raises(ValueError) as caught:
        manager.hook.ptrain_run_start(run=None)
    assert culprit(caught.value, manager.hook.ptrain_run_start.get_hookimpls()) == "failing"


def test_an_error_from_elsewhere_has_no_culprit():
    manager = new_manager()
    manager.register(with_hook("ptrain_run_start", lambda self: None), "it")
    assert culprit(ValueError(), manager.hook.ptrain_run_start) is None


def test_each_hook_call_is_printed_on_request(monkeypatch, capsys):
    monkeypatch.setenv("PTRAIN_TRACE_HOOKS", "1")
    manager = new_manager()
    manager.register(with_hook("ptrain_run_start", lambda self: None), "it")
    manager.hook.ptrain_run_start(run=None)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "ptrain_run_start(run) -> it"
    assert second.startswith("ptrain_run_start took ")
    assert second.endswith(" ms")
