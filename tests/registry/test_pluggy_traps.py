"""Eight things that pluggy does in silence, and what this package does instead."""

from dataclasses import dataclass

import pytest
import torch

from plugin_trainer.errors import PluginBroken, PluginDuplicate
from plugin_trainer.registry.manager import culprit, new_manager
from plugin_trainer.registry.resolution import resolve


def test_trap_1_a_plugin_that_is_refused_leaves_no_hook_behind():
    class HalfWrong:
        def ptrain_run_start(self, run): ...
        def ptrain_step_end(self, outcom): ...

    manager = new_manager()
    with pytest.raises(PluginBroken):
        manager.register(HalfWrong(), "half")
    assert manager.hook.ptrain_run_start.get_hookimpls() == []
    assert manager.list_name_plugin() == []
    assert manager.get_plugin("half") is None


def test_trap_1_holds_for_an_error_that_only_pluggy_finds(monkeypatch):
    class Sound:
        def ptrain_run_start(self, run): ...

    manager = new_manager()

    def refuse():
        raise RuntimeError("pending")

    monkeypatch.setattr(manager, "check_pending", refuse)
    with pytest.raises(PluginBroken, match="plugin 'sound' cannot be registered"):
        manager.register(Sound(), "sound")
    assert manager.hook.ptrain_run_start.get_hookimpls() == []


def test_trap_2_two_equal_callbacks_are_refused_with_the_remedy():
    @dataclass
    class Stop:
        patience: int

        def ptrain_run_start(self, run): ...

    manager = new_manager()
    manager.register(Stop(3), "first", noun="callback")
    with pytest.raises(PluginBroken) as caught:
        manager.register(Stop(3), "second", noun="callback")
    assert str(caught.value).splitlines() == [
        "callback 'second' compares equal to 'first', so only one would be called",
        "  write @dataclass(eq=False) above class Stop",
    ]


def test_trap_2_callbacks_that_cannot_be_compared_are_refused_with_the_remedy():
    @dataclass
    class Weights:
        values: torch.Tensor

        def ptrain_run_start(self, run): ...

    manager = new_manager()
    manager.register(Weights(torch.ones(2)), "first", noun="callback")
    with pytest.raises(PluginBroken) as caught:
        manager.register(Weights(torch.ones(2)), "second", noun="callback")
    assert str(caught.value).splitlines() == [
        "callback 'second' cannot be compared with 'first', so only one would be called",
        "  write @dataclass(eq=False) above class Weights",
    ]


def test_a_blocked_name_is_not_registered():
    class Plugin:
        def ptrain_run_start(self, run): ...

    manager = new_manager()
    manager.set_blocked("first")
    assert manager.register(Plugin(), "first") is None
    assert manager.register(Plugin(), "second") == "second"
    assert manager.get_plugin("first") is None
    manager.unblock("first")
    assert manager.register(Plugin(), "first") == "first"


def test_trap_3_a_callback_that_is_false_is_called_like_any_other():
    class Empty:
        def __init__(self):
            self.calls = 0

        def __len__(self):
            return 0

        def ptrain_run_start(self, run):
            self.calls += 1

    manager, callback = new_manager(), Empty()
    manager.register(callback, "empty")
    manager.hook.ptrain_run_start(run=None)
    assert callback.calls == 1


def test_trap_4_the_order_of_the_list_is_the_order_of_the_calls():
    calls = []

    class Callback:
        def __init__(self, name):
            self.name = name

        def ptrain_run_start(self, run):
            calls.append(self.name)

    manager = new_manager()
    manager.register_in_order([(name, Callback(name)) for name in "abc"])
    manager.hook.ptrain_run_start(run=None)
    assert calls == ["a", "b", "c"]


def test_trap_5_an_error_in_one_of_many_names_its_owner():
    class Fine:
        def ptrain_run_start(self, run): ...

    class Failing:
        def ptrain_run_start(self, run):
            return {}["halting"]

    manager = new_manager()
    manager.register_in_order([("fine", Fine()), ("failing", Failing()), ("late", Fine())])
    with pytest.raises(KeyError) as caught:
        manager.hook.ptrain_run_start(run=None)
    assert culprit(caught.value, manager.hook.ptrain_run_start) == "failing"


def test_trap_6_an_argument_with_a_default_is_refused():
    class Defaulted:
        def ptrain_step_end(self, run, outcome=None): ...

    with pytest.raises(PluginBroken) as caught:
        new_manager().register(Defaulted(), "defaulted")
    assert str(caught.value).splitlines() == [
        "plugin 'defaulted' implements ptrain_step_end(run, outcome=None), but an argument of a "
        "hook has no default: pluggy may never pass it",
        "  write 'outcome' alone",
    ]


def test_trap_7_P05_of_two_packages_with_one_name_neither_is_taken(installed):
    installed.install("vision")
    installed.install("vision", distribution="ptrain-dup", package="dup")
    with pytest.raises(PluginDuplicate):
        resolve("vision")


def test_trap_8_registering_evaluates_no_property():
    class Costly:
        @property
        def weights(self):
            raise AssertionError("evaluated")

        @property
        def ptrain_like(self):
            raise AssertionError("evaluated")

        def ptrain_run_start(self, run): ...

    new_manager().register(Costly(), "costly")


def test_a_hook_that_no_spec_knows_is_refused_at_once():
    class Unknown:
        def ptrain_modles(self): ...

    with pytest.raises(PluginBroken, match="implements ptrain_modles, which is not a hook"):
        new_manager().register(Unknown(), "unknown")
