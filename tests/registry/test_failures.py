"""What goes wrong with a plugin is told word for word as a person can use it, and stays its own."""

import sys
import textwrap

import pytest

from plugin_trainer import __version__
from plugin_trainer.errors import (
    PluginBroken,
    PluginDuplicate,
    PluginIncompatible,
    PluginNotFound,
    UnknownOffer,
)
from plugin_trainer.registry.catalog import open_catalog
from plugin_trainer.registry.loading import load
from plugin_trainer.registry.resolution import resolve

BROKEN = {
    "exits": "raise SystemExit('bye')\n",
    "absent": "import a_package_that_is_not_there\n",
    "future": "PTRAIN_API = 3\ndef ptrain_models(): return []\n",
    "badarg": "PTRAIN_API = 1\ndef ptrain_step_end(run, outcom): ...\n",
    "unknown": "PTRAIN_API = 1\ndef ptrain_modles(): return []\n",
    "syntax": "def (:\n",
}


def told(error, typed):
    with pytest.raises(error) as caught:
        load(resolve(typed))
    return str(caught.value)


def text(lines):
    return textwrap.dedent(lines).strip()


def test_P06_a_plugin_that_is_not_installed_is_named_with_the_nearest(installed):
    installed.install("dactbert")
    installed.install("toyvision")
    assert told(PluginNotFound, "dactbrt") == text(
        f"""
        no installed plugin is called 'dactbrt'
          did you mean 'dactbert'?
          installed here: dactbert, toyvision
          this is {sys.executable}
        """
    )


def test_P04_a_broken_plugin_is_named_with_its_package_and_version(installed):
    hooks = '"""Hooks."""\n\nimport torchvision_is_not_here\n'
    installed.install("toyvision", package="toyvision", hooks=hooks)
    assert told(PluginBroken, "toyvision") == text(
        """
        plugin 'toyvision' (ptrain-toyvision 0.1.0) could not be imported
          ModuleNotFoundError: No module named 'torchvision_is_not_here'
          raised at toyvision/hooks.py:3
          see everything with --debug; check it with: ptrain plugins check toyvision
        """
    )


def test_P05_a_name_that_two_packages_claim_names_both(installed):
    installed.install("dactbert", version="0.3.0")
    installed.install("dactbert", distribution="ptrain-dup", package="dup")
    folder = installed.folder
    assert told(PluginDuplicate, "dactbert") == text(
        f"""
        two installed packages claim the plugin name 'dactbert'
          ptrain-dactbert 0.3.0   {folder}/ptrain_dactbert
          ptrain-dup 0.1.0        {folder}/dup
          uninstall one, or point at a module: --plugin ptrain_dactbert.hooks
        """
    )


def test_incompatible(installed):
    installed.install("future", version="2.0", hooks=BROKEN["future"])
    assert told(PluginIncompatible, "future") == text(
        f"""
        plugin 'future' (ptrain-future 2.0) needs plugin API 3; this ptrain ({__version__}) speaks 1
          upgrade plugin-trainer, or install an older ptrain-future
        """
    )


def test_misspelt(installed):
    installed.install("badarg", hooks=BROKEN["badarg"])
    assert told(PluginBroken, "badarg") == (
        "plugin 'badarg' implements ptrain_step_end(run, outcom), "
        "but ptrain_step_end offers: run, outcome\n"
        "  did you mean 'outcome'?"
    )


def test_unknown_hook(installed):
    installed.install("unknown", hooks=BROKEN["unknown"])
    assert told(PluginBroken, "unknown") == text(
        """
        plugin 'unknown' implements ptrain_modles, which is not a hook
          did you mean 'ptrain_models'?
        """
    )


def test_unknown_model(installed):
    installed.install("dactbert")
    with pytest.raises(UnknownOffer) as caught:
        open_catalog(["dactbert"]).find("model", "dactbert/large")
    assert str(caught.value) == text(
        """
        no model 'large' in plugin 'dactbert'
          did you mean 'dactbert/base'?   (it offers: base)
          any class works too: --set model=package.module:Class
        """
    )


def test_a_plugin_that_exits_is_broken_and_nothing_more(installed):
    installed.install("exits", hooks=BROKEN["exits"])
    assert told(PluginBroken, "exits").splitlines()[1:3] == [
        "  SystemExit: bye",
        "  raised at ptrain_exits/hooks.py:1",
    ]


def test_a_syntax_error_is_told_with_its_line(installed):
    installed.install("syntax", hooks=BROKEN["syntax"])
    assert "raised at ptrain_syntax/hooks.py:1" in told(PluginBroken, "syntax")


def test_an_entry_point_to_a_module_that_is_not_there_says_what_it_names(installed):
    installed.install("moved", target="ptrain_moved.elsewhere")
    assert "its entry point says: ptrain_moved.elsewhere" in told(PluginBroken, "moved")


def test_an_entry_point_to_an_object_that_is_not_there_says_so(installed):
    installed.install("moved", target="ptrain_moved.hooks:Plugin")
    assert "has no attribute 'Plugin'" in told(PluginBroken, "moved")


def test_ctrl_c_while_a_plugin_is_imported_is_not_swallowed(installed):
    press = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)"
    installed.install("slow", hooks=press)
    with pytest.raises(KeyboardInterrupt):
        load(resolve("slow"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "does not say which plugin API it was written for\n  write PTRAIN_API = 1 in"),
        ("PTRAIN_API = '1'", "has PTRAIN_API = '1', which is not a whole number"),
        ("PTRAIN_API = True", "has PTRAIN_API = True, which is not a whole number"),
        ("PTRAIN_API = 0", "needs plugin API 0"),
    ],
)
def test_the_api_version_is_a_number_that_we_speak(installed, line, message):
    installed.install("versioned", hooks=f"{line}\ndef ptrain_models(): return []\n")
    assert message in told((PluginBroken, PluginIncompatible), "versioned")


def test_a_module_without_a_hook_is_the_wrong_module(installed):
    installed.install("wrong", hooks="PTRAIN_API = 1\n")
    assert "plugin 'wrong' (ptrain-wrong 0.1.0) implements no hook" in told(PluginBroken, "wrong")


@pytest.mark.parametrize("name", ["run", "plugins", "core", "My-Plugin", "2d"])
def test_some_names_no_plugin_may_have(installed, name):
    installed.install(name, package="ptrain_any", distribution="ptrain-any")
    typed = "ptrain_any.hooks" if name == "core" else name
    assert f"'{name}' cannot be the name of a plugin" in told(PluginBroken, typed)


@pytest.mark.parametrize("broken", BROKEN)
def test_P04_a_broken_plugin_does_not_hide_its_neighbours(installed, broken):
    installed.install(broken, hooks=BROKEN[broken])
    installed.install("sound")
    assert open_catalog(["sound"]).find("model", "sound/base").spec.name == "base"
    with pytest.raises((PluginBroken, PluginIncompatible)):
        open_catalog(["sound", broken])
    assert open_catalog(["sound"]).find("model", "sound/base").spec.name == "base"
