"""A hook of a run is called past pluggy where nothing wraps it, and as pluggy would call it."""

from __future__ import annotations

from itertools import permutations, product

import pytest

from plugin_trainer import hookimpl
from plugin_trainer.training.hooks import RunHooks, _nothing

OPTIONS = {"plain": {}, "first": {"tryfirst": True}, "last": {"trylast": True}}
GIVEN = {"run": "the run", "batch": "a batch", "device": "a device"}


class Core:
    """The engine's own answers."""

    def __init__(self, log) -> None:
        self.log = log

    @hookimpl(trylast=True)
    def ptrain_move_batch(self, batch):
        self.log.append(("core", batch))
        return "core"


def moving(log, name, *, answer=None, option="plain", arguments=("run", "batch", "device")):
    """An object that notes what it is asked to move, in whatever order it names its arguments."""
    given = ", ".join(arguments)
    made: dict = {"log": log, "name": name, "answer": answer, "hookimpl": hookimpl}
    made["options"] = OPTIONS[option]
    source = f"""
class Moving:
    @hookimpl(**options)
    def ptrain_move_batch({", ".join(("self", *arguments))}):
        log.append((name, {given}))
        return answer

    @hookimpl(**options)
    def ptrain_run_start(self, run):
        log.append((name, run))
        return "ignored"
"""
    exec(source, made)
    return made["Moving"]()


def both(hooks, log, name, **given):
    """What a hook gives, and who was asked with what: directly, and through pluggy."""
    found = []
    for call in (getattr(hooks, name), getattr(hooks._manager.hook, f"ptrain_{name}")):
        log.clear()
        result = call(**given)
        found.append((result, list(log)))
    return found


def hooks_of(log, *, plugins=(), callbacks=()):
    return RunHooks(plugins=plugins, callbacks=callbacks, core=Core(log))


def is_direct(hooks, name):
    return getattr(hooks, name) is not getattr(hooks._manager.hook, f"ptrain_{name}")


def test_the_order_is_that_of_pluggy_whoever_asks_to_be_first_or_last():
    for options in product(OPTIONS, repeat=4):
        log: list = []
        parts = [
            (f"part {number}", moving(log, number, option=option))
            for number, option in enumerate(options)
        ]
        hooks = hooks_of(log, plugins=parts[:2], callbacks=parts[2:])
        assert is_direct(hooks, "move_batch") and is_direct(hooks, "run_start")
        direct, through_pluggy = both(hooks, log, "move_batch", **GIVEN)
        assert direct == through_pluggy, options
        direct, through_pluggy = both(hooks, log, "run_start", run="the run")
        assert direct[1] == through_pluggy[1], options
        assert len(direct[1]) == 4


def test_those_who_do_not_ask_for_a_place_are_called_in_the_order_of_the_list():
    log: list = []
    parts = [(f"part {number}", moving(log, number)) for number in range(4)]
    hooks = hooks_of(log, plugins=parts[:2], callbacks=parts[2:])
    hooks.move_batch(**GIVEN)
    assert [asked[0] for asked in log] == [0, 1, 2, 3, "core"]


def test_core_is_asked_last_even_after_one_who_asks_to_be_last():
    log: list = []
    hooks = hooks_of(log, callbacks=[("part", moving(log, "part", answer="mine", option="last"))])
    assert hooks.move_batch(**GIVEN) == "mine"


@pytest.mark.parametrize("answering", range(3))
@pytest.mark.parametrize("answer", ["moved", 0, False, ""])
def test_the_first_answer_holds_and_nobody_after_it_is_asked(answering, answer):
    log = []
    parts = [
        (f"part {number}", moving(log, number, answer=answer if number == answering else None))
        for number in range(3)
    ]
    hooks = hooks_of(log, plugins=parts[:1], callbacks=parts[1:])
    direct, through_pluggy = both(hooks, log, "move_batch", **GIVEN)
    assert direct == through_pluggy
    assert direct[0] is answer
    assert [asked[0] for asked in direct[1]] == [*range(answering + 1)]


@pytest.mark.parametrize(
    "arguments", [order for count in range(4) for order in permutations(GIVEN, count)], ids="-".join
)
def test_each_gets_the_arguments_that_it_names_wherever_it_names_them(arguments):
    log = []
    part = moving(log, "part", answer="moved", arguments=arguments)
    hooks = hooks_of(log, callbacks=[("part", part)])
    direct, through_pluggy = both(hooks, log, "move_batch", **GIVEN)
    assert direct == through_pluggy
    assert direct[1] == [("part", *(GIVEN[name] for name in arguments))]


class Alone:
    """Implements hooks that nobody else does, with all their arguments and with a part of them."""

    def __init__(self) -> None:
        self.log: list = []

    def ptrain_step_end(self, outcome, run):
        self.log.append((run, outcome))

    def ptrain_log(self, metrics):
        self.log.append(metrics)


class AloneByPosition(Alone):
    """The same, with arguments that cannot be passed by name."""

    def ptrain_step_end(self, outcome, run, /):
        self.log.append((run, outcome))


@pytest.mark.parametrize(
    "part",
    [
        Alone,
        pytest.param(
            AloneByPosition,
        ),
    ],
)
def test_one_alone_gets_what_it_names(part):
    alone = part()
    hooks = hooks_of([], callbacks=[("alone", alone)])
    hooks.step_end(run="the run", outcome="an outcome")
    hooks.log(run="the run", metrics="metrics")
    assert alone.log == [("the run", "an outcome"), "metrics"]


def test_a_hook_that_nobody_implements_does_nothing():
    hooks = hooks_of([])
    assert hooks.epoch_end is _nothing and hooks.epoch_end(run="the run") is None


class NewWrapper:
    """Wraps in the new style."""

    def __init__(self, log) -> None:
        self.log = log

    @hookimpl(wrapper=True)
    def ptrain_move_batch(self, batch):
        self.log.append("before")
        moved = yield
        self.log.append("after")
        return f"({moved} of {batch})"


class OldWrapper:
    """Wraps in the old style."""

    def __init__(self, log) -> None:
        self.log = log

    @hookimpl(hookwrapper=True)
    def ptrain_move_batch(self, batch):
        self.log.append("before")
        outcome = yield
        self.log.append("after")
        outcome.force_result(f"({outcome.get_result()} of {batch})")


@pytest.mark.parametrize("wrapper", [NewWrapper, OldWrapper])
@pytest.mark.parametrize("place", ["plugins", "callbacks"])
def test_a_wrapper_is_called_around_all_others_and_only_its_hook_goes_through_pluggy(
    wrapper, place
):
    log = []
    parts = [("part", moving(log, "part", arguments=())), ("wrapper", wrapper(log))]
    hooks = hooks_of(log, **{place: parts})
    assert not is_direct(hooks, "move_batch")
    assert is_direct(hooks, "run_start")
    assert hooks.move_batch(**GIVEN) == "(core of a batch)"
    assert log == ["before", ("part",), ("core", "a batch"), "after"]


def test_an_error_comes_out_as_it_is_and_names_its_owner():
    class Broken:
        def ptrain_step_end(self, run):
            raise ValueError("broken")

    hooks = hooks_of([], callbacks=[("harmless", Harmless()), ("broken", Broken())])
    with pytest.raises(ValueError, match="broken") as caught:
        hooks.step_end(run=None, outcome=None)
    assert hooks.blame(caught.value) == ("broken", "ptrain_step_end")


class Harmless:
    """Does nothing."""

    def ptrain_step_end(self, run):
        """Nothing."""


def test_each_call_of_a_run_is_printed_on_request(monkeypatch, capsys):
    monkeypatch.setenv("PTRAIN_TRACE_HOOKS", "1")
    log = []
    hooks = hooks_of(log, callbacks=[("part", moving(log, "part"))])
    capsys.readouterr()
    hooks.move_batch(**GIVEN)
    assert "ptrain_move_batch(run, batch, device) -> part, the engine" in capsys.readouterr().err
