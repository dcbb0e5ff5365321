"""`ptrain` answers at once, imports nothing it does not need, and fails in few words."""

import json
import os
import signal
import sys

import click
import pytest

from plugin_trainer.cli import main as cli
from plugin_trainer.cli.printing import table
from plugin_trainer.errors import PtrainError, TrainingFailed
from plugin_trainer.registry.names import RESERVED_NAMES

MODULES = """
import json, sys
from plugin_trainer.cli.main import main
code = main(sys.argv[1:])
print("MODULES", json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


def modules_after(installed, *args):
    done = installed.run("-c", MODULES, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(done.stdout.partition("MODULES ")[2]))


@pytest.mark.process
def test_P03_help_with_ten_plugins_imports_no_plugin_and_nothing_heavy(installed):
    for number in range(10):
        installed.install(
            f"fake{number}",
            hooks="raise SystemExit('a plugin was imported')",
            command=f"ptrain_fake{number}.cli:command",
            version="0.3.0",
        )
    out, modules = modules_after(installed, "--help")
    assert "fake7 from ptrain-fake7 0.3.0" in " ".join(out.split())
    assert not {"torch", "pydantic", "numpy"} & modules
    assert not [name for name in modules if name.startswith("ptrain_")]
    commands = {target.partition(":")[0] for target, _ in cli.COMMANDS.values()}
    assert not commands & modules
    assert len(modules) < 250


@pytest.mark.process
@pytest.mark.parametrize("args", [["--version"], ["run", "--help"], ["config", "--help"]])
def test_P03_help_and_version_import_no_torch(installed, args):
    _, modules = modules_after(installed, *args)
    assert not {"torch", "pydantic", "numpy"} & modules


COMPLETION = """
import json, sys
from plugin_trainer.cli.main import main
try:
    main([])
finally:
    print("MODULES", json.dumps(sorted(sys.modules)))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("ptrain ", {"run", "config", "plugins"}), ("ptrain r", {"run", "runs"}),
     ("ptrain run --pl", {"--plugin"}), ("ptrain config s", {"show", "schema"})],
)  # fmt: skip
def test_P03_completion_imports_no_torch(installed, typed, offered):
    words = typed.split(" ")
    done = installed.run(
        "-c", COMPLETION, _PTRAIN_COMPLETE="bash_complete", COMP_WORDS=typed,
        COMP_CWORD=str(len(words) - 1),
    )  # fmt: skip
    answers, _, modules = done.stdout.partition("MODULES ")
    assert offered <= {line.partition(",")[2] for line in answers.splitlines()}, done.stderr
    assert not {"torch", "pydantic", "numpy"} & set(json.loads(modules))


@pytest.mark.process
def test_listing_plugins_imports_nothing_heavy_either(installed):
    installed.install("vision")
    _, modules = modules_after(installed, "plugins", "list")
    assert not {"torch", "pydantic", "numpy"} & modules
    assert "ptrain_vision.hooks" in modules
    assert "ptrain_vision.model" not in modules


@pytest.mark.process
def test_it_also_runs_as_a_module(installed):
    done = installed.run("-m", "plugin_trainer", "--version")
    assert (done.returncode, done.stdout) == (0, "ptrain 0.1.0\n")


def test_without_a_command_it_shows_its_help(ptrain):
    typed = ptrain()
    assert typed.code == 0
    assert typed.out == ptrain("--help").out
    assert "  run        Train a model.\n" in typed.out


def test_the_names_of_commands_are_kept_from_plugins(installed, ptrain):
    assert set(cli.COMMANDS) <= RESERVED_NAMES
    installed.install("run", package="ptrain_taken", command="ptrain_taken.cli:command")
    assert "Commands of plugins" not in ptrain("--help").out


def test_a_plugins_command_is_imported_when_it_is_called(installed, ptrain):
    installed.install(
        "vision",
        command="ptrain_vision.cli:look",
        files={"cli.py": "import click\n@click.command()\ndef look(): click.echo('seen')\n"},
    )
    assert "ptrain_vision" not in sys.modules
    assert ptrain("vision").out == "seen\n"


def test_a_plugins_command_that_is_none_says_so(installed, ptrain):
    installed.install("vision", command="ptrain_vision.cli:look", files={"cli.py": "look = 3\n"})
    typed = ptrain("vision")
    assert typed.code == 2
    assert typed.err == (
        "error: plugin 'vision' names ptrain_vision.cli:look, which is not a click command\n"
    )


def test_a_command_that_two_packages_claim_is_not_guessed(installed, ptrain):
    installed.install("vision", command="ptrain_vision.cli:look")
    installed.install(
        "vision", command="other.cli:look", package="other", distribution="ptrain-other"
    )
    typed = ptrain("vision")
    assert typed.code == 2
    assert "two installed packages claim the command 'vision'" in typed.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rnu"], "error: no such command 'rnu'; did you mean 'run'?\n  see: ptrain --help\n"),
        (["xyzzy"], "error: no such command 'xyzzy'\n  see: ptrain --help\n"),
        (
            ["plugins", "show"],
            "error: missing argument 'NAME'\n  see: ptrain plugins show --help\n",
        ),
    ],
)
def test_a_usage_mistake_exits_with_2(installed, ptrain, args, said):
    typed = ptrain(*args)
    assert (typed.code, typed.err) == (2, said)


def failing(monkeypatch, error):
    """Make `ptrain runs` a command that raises."""

    @click.command()
    def runs():
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: runs)


def test_an_error_is_a_message_and_its_hints(monkeypatch, ptrain):
    failing(monkeypatch, PtrainError("the disk is full", hint=["make room", "or use --out"]))
    typed = ptrain("runs")
    assert typed.code == 2
    assert typed.err == "error: the disk is full\n  make room\n  or use --out\n"
    assert typed.out == ""


def test_training_that_failed_exits_with_1(monkeypatch, ptrain):
    failing(monkeypatch, TrainingFailed("the loss is NaN at step 3"))
    assert ptrain("runs").code == 1


@pytest.mark.parametrize("args", [("--debug", "runs"), ("runs", "--debug")])
def test_P02_debug_shows_the_traceback_wherever_it_stands(monkeypatch, ptrain, args):
    failing(monkeypatch, PtrainError("the disk is full"))
    typed = ptrain(*args)
    assert typed.code == 2
    assert "Traceback (most recent call last)" in typed.err
    assert typed.err.endswith("error: the disk is full\n")


def test_debug_may_come_from_the_environment(monkeypatch, ptrain):
    failing(monkeypatch, PtrainError("the disk is full"))
    monkeypatch.setenv("PTRAIN_DEBUG", "1")
    assert "Traceback" in ptrain("runs").err


def test_a_mistake_of_ours_is_one_line_with_its_place(monkeypatch, ptrain):
    failing(monkeypatch, KeyError("halting"))
    typed = ptrain("runs")
    assert typed.code == 1
    first, *rest = typed.err.splitlines()
    assert first.startswith("internal error: KeyError: 'halting' at ")
    assert "test_help.py:" in first
    assert "--debug" in rest[-1]
    assert "Traceback" not in typed.err


def test_ctrl_c_that_a_library_made_an_error_of_its_own_is_still_ctrl_c(monkeypatch, ptrain):
    failing(monkeypatch, ValueError('Error building "definitions" validator: KeyboardInterrupt'))
    typed = ptrain("runs")
    assert (typed.code, typed.err) == (130, "error: interrupted\n")


def test_ctrl_c_that_a_library_swallowed_whole_is_still_ctrl_c(monkeypatch, ptrain):
    """Reading a tensor, safetensors makes a ValueError of it that does not name it."""

    def swallow(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of an object") from None

    monkeypatch.setattr("plugin_trainer.cli.main.ptrain.main", swallow)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    typed = ptrain("runs")
    assert (typed.code, typed.err) == (130, "error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_exits_with_130(monkeypatch, ptrain):
    failing(monkeypatch, KeyboardInterrupt())
    typed = ptrain("runs")
    assert typed.code == 130
    assert "Traceback" not in typed.err


@pytest.mark.process
def test_a_reader_that_goes_away_is_no_error(installed):
    script = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'plugin_trainer', '--help'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close()\n"
        "sys.stdout.write(p.stderr.read().decode())\n"
    )
    assert installed.run("-c", script).stdout == ""


def test_a_table_is_wrapped_to_its_width():
    rows = [("a", "short"), ("b", "word " * 30)]
    lines = table(rows, ("name", "text"), width=40).splitlines()
    assert lines[0] == "name  text"
    assert lines[1] == "a     short"
    assert max(map(len, lines)) <= 40
    assert " ".join(" ".join(lines[2:]).split()).count("word") == 30


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize(
    ("command", "hint"),
    [("evaluate runs/a", "without torchrun: ptrain evaluate"), ("tune", "ptrain tune --workers N")],
)
def test_torchrun_does_not_start_what_works_in_one_process(
    command, hint, rank, said, monkeypatch, capsys
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert cli.main(command.split()) == 2
    errors = capsys.readouterr().err
    assert errors.count("works in one process, and torchrun has started 2") == said
    assert errors.count(hint) == said


@pytest.mark.parametrize("size", ["2", "", "many"])
def test_a_variable_of_another_launcher_is_no_concern_of_ours(size, monkeypatch, capsys):
    """Some cluster managers set WORLD_SIZE in every container."""
    monkeypatch.setenv("WORLD_SIZE", size)
    assert cli.main(["evaluate", "runs/none"]) == 2
    assert "torchrun" not in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert cli.main(["plugins"]) == 0
