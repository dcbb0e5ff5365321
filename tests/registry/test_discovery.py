"""What is installed is known from metadata, and nothing is imported to know it."""

import sys

import pytest

from plugin_trainer.registry.discovery import hidden_plugins, installed_commands, installed_plugins


def names():
    return [plugin.name for plugin in installed_plugins()]


def test_plugins_are_listed_by_name_with_where_they_come_from(installed):
    installed.install("vision", version="2.0")
    installed.install("audio")
    audio, vision = installed_plugins()
    assert (audio.name, vision.name) == ("audio", "vision")
    assert (vision.distribution, vision.version) == ("ptrain-vision", "2.0")
    assert vision.target == "ptrain_vision.hooks"
    assert vision.location == str(installed.folder / "ptrain_vision")
    assert not vision.editable


def test_listing_imports_no_plugin(installed):
    installed.install("vision", hooks="raise SystemExit('imported')", command="ptrain_vision.cli:x")
    assert names() == ["vision"]
    assert installed_commands()[0].target == "ptrain_vision.cli:x"
    assert not [name for name in sys.modules if name.startswith("ptrain_vision")]


def test_what_is_installed_changed_or_removed_while_a_process_runs_is_seen(installed):
    installed.install("vision")
    assert [plugin.target for plugin in installed_plugins()] == ["ptrain_vision.hooks"]
    installed.install("vision", target="ptrain_vision.other")
    assert [plugin.target for plugin in installed_plugins()] == ["ptrain_vision.other"]
    installed.install("audio", command="ptrain_audio.cli:x")
    assert names() == ["audio", "vision"]
    assert [command.name for command in installed_commands()] == ["audio"]
    (installed.folder / "ptrain_vision-0.1.0.dist-info" / "entry_points.txt").unlink()
    assert names() == ["audio"]


def test_two_packages_that_claim_one_name_are_both_listed(installed):
    installed.install("vision")
    installed.install("vision", distribution="ptrain-other", package="other")
    assert [plugin.distribution for plugin in installed_plugins()] == [
        "ptrain-other",
        "ptrain-vision",
    ]


def test_a_folder_that_is_on_the_path_twice_gives_its_plugins_once(installed, monkeypatch):
    installed.install("vision")
    monkeypatch.syspath_prepend(str(installed.folder))
    assert names() == ["vision"]


def test_an_editable_install_is_located_at_its_project(installed):
    installed.install("vision")
    info = installed.folder / "ptrain_vision-0.1.0.dist-info"
    installed.write(
        info / "direct_url.json",
        '{"url": "file:///src/my%20vision", "dir_info": {"editable": true}}',
    )
    [vision] = installed_plugins()
    assert vision.editable
    assert vision.location == "/src/my vision"


def test_unreadable_install_records_are_no_reason_to_fail(installed):
    installed.install("vision")
    info = installed.folder / "ptrain_vision-0.1.0.dist-info"
    installed.write(info / "direct_url.json", "{not json")
    (info / "METADATA").unlink()
    [vision] = installed_plugins()
    assert (vision.name, vision.version, vision.editable) == ("vision", "", False)


def test_unreadable_install_records_are_none_to_importlib_metadata_either(installed, monkeypatch):
    """The package takes the place of the standard library's in a process that imports it."""
    importlib_metadata = pytest.importorskip("importlib_metadata")
    monkeypatch.setattr(sys, "meta_path", [importlib_metadata.MetadataPathFinder(), *sys.meta_path])
    installed.install("vision")
    (installed.folder / "ptrain_vision-0.1.0.dist-info" / "METADATA").unlink()
    [vision] = installed_plugins()
    assert (vision.name, vision.version) == ("vision", "")


def test_the_allow_list_hides_all_other_plugins_and_commands(installed, monkeypatch):
    for name in ("audio", "text", "vision"):
        installed.install(name, command=f"ptrain_{name}.cli:x")
    monkeypatch.setenv("PTRAIN_PLUGINS", "vision, audio")
    assert names() == ["audio", "vision"]
    assert [plugin.name for plugin in hidden_plugins()] == ["text"]
    assert [command.name for command in installed_commands()] == ["audio", "vision"]


def test_an_empty_allow_list_hides_every_plugin(installed, monkeypatch):
    installed.install("vision")
    monkeypatch.setenv("PTRAIN_PLUGINS", "")
    assert names() == []
