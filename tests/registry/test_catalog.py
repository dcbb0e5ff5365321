"""Offers are found by plugin/name, by a bare name that is unique, or by the path of any class."""

import pytest

from plugin_trainer.errors import PluginDuplicate, UnknownOffer
from plugin_trainer.registry.catalog import Catalog, open_catalog, plugins_named_in
from plugin_trainer.registry.loading import LoadedPlugin
from plugin_trainer.registry.resolution import core_source
from plugin_trainer.specs import CallbackSpec, ModelSpec

HOOKS = """
    from plugin_trainer.specs import DataSpec, ModelSpec

    PTRAIN_API = 1

    def ptrain_models():
        return [ModelSpec(name=n, target="a:b", default=n == "{default}") for n in {models}]

    def ptrain_data():
        return [DataSpec(name="text", target="a:b")]
"""


def install(installed, name, *models, default=""):
    hooks = HOOKS.replace("{models}", repr(models)).replace("{default}", default)
    installed.install(name, hooks=hooks)


def unknown(catalog, kind, name):
    with pytest.raises(UnknownOffer) as caught:
        catalog.find(kind, name)
    return str(caught.value)


def test_an_offer_is_found_by_its_address_and_by_a_name_that_is_unique(installed):
    install(installed, "alpha", "base", "large")
    catalog = open_catalog(["alpha"])
    assert catalog.find("model", "alpha/large").address == "alpha/large"
    assert catalog.find("model", "large").address == "alpha/large"
    assert catalog.find("model", "large").owner == "alpha"


def test_a_name_that_two_plugins_have_needs_its_plugin(installed):
    install(installed, "alpha", "base")
    install(installed, "beta", "base")
    told = unknown(open_catalog(["alpha", "beta"]), "model", "base")
    assert told == (
        "several plugins offer a model called 'base'\n  write one of: alpha/base, beta/base"
    )


def test_only_named_plugins_take_part(installed):
    install(installed, "alpha", "base")
    install(installed, "beta", "base")
    catalog = open_catalog(["alpha"])
    assert [plugin.name for plugin in catalog.plugins] == ["core", "alpha"]
    assert unknown(catalog, "model", "beta/base").splitlines() == [
        "no plugin 'beta' takes part in this run, so there is no model 'beta/base'",
        "  taking part: core, alpha",
    ]


def test_any_class_works_without_a_plugin(installed):
    offer = open_catalog([]).find("model", "torch.nn:Linear")
    assert offer.plugin is None
    assert offer.address == "torch.nn:Linear"
    assert isinstance(offer.spec, ModelSpec)
    assert isinstance(open_catalog([]).find("callback", "pkg:C").spec, CallbackSpec)


def test_a_path_that_is_none_is_refused(installed):
    assert unknown(open_catalog([]), "model", "torch.nn:") == (
        "'torch.nn:' is not the path of a class\n  write it as package.module:Class"
    )


def test_a_thing_of_another_kind_is_recognised(installed):
    install(installed, "alpha", "base")
    told = unknown(open_catalog(["alpha"]), "model", "alpha/text")
    assert "'alpha/text' is a data module" in told


def test_an_unknown_bare_name_lists_addresses(installed):
    install(installed, "alpha", "base", "large")
    told = unknown(open_catalog(["alpha"]), "model", "larg")
    assert told.splitlines() == [
        "no model 'larg'",
        "  did you mean 'alpha/large'?   (there are: alpha/base, alpha/large)",
        "  any class works too: --set model=package.module:Class",
    ]


@pytest.mark.parametrize(
    ("models", "default", "chosen"),
    [(("a",), "", "alpha/a"), (("a", "b"), "b", "alpha/b"), (("a", "b"), "", None)],
)
def test_the_default_is_the_marked_one_or_the_only_one(installed, models, default, chosen):
    install(installed, "alpha", *models, default=default)
    offer = open_catalog(["alpha"]).default("model")
    assert (offer and offer.address) == chosen


def test_of_two_plugins_with_a_default_neither_wins(installed):
    install(installed, "alpha", "a", default="a")
    install(installed, "beta", "b", default="b")
    assert open_catalog(["alpha", "beta"]).default("model") is None


def test_core_has_no_default(installed):
    only = ModelSpec(name="a", target="a:b", default=True)
    core = LoadedPlugin(core_source(), module=None, models=(only,))
    catalog = Catalog((core,))
    assert catalog.find("model", "a").address == "core/a"
    assert catalog.default("model") is None


def test_a_plugin_named_twice_is_loaded_once(installed):
    install(installed, "alpha", "base")
    catalog = open_catalog(["alpha", "ptrain_alpha.hooks", "alpha", "core"])
    assert [plugin.name for plugin in catalog.plugins] == ["core", "alpha"]


def test_a_path_wins_over_the_installed_plugin_of_its_name_and_says_so(installed):
    install(installed, "alpha", "installed_one")
    installed.write(
        "alpha/pyproject.toml",
        """
        [project.entry-points."plugin_trainer.plugins"]
        alpha = "ptrain_alpha.hooks"
        """,
    )
    installed.write("alpha/ptrain_alpha/__init__.py", "")
    installed.write(
        "alpha/ptrain_alpha/hooks.py",
        HOOKS.replace("{models}", "['local_one']").replace("{default}", ""),
    )
    catalog = open_catalog(["alpha", "./alpha"])
    assert [offer.address for offer in catalog.offers("model")] == ["alpha/local_one"]
    assert catalog.notices == (
        f"plugin 'alpha' is taken from {installed.cwd}/alpha, "
        "not from the installed ptrain-alpha 0.1.0",
    )


def test_two_paths_to_plugins_of_one_name_are_refused(installed):
    for folder in ("one", "two"):
        installed.write(f"{folder}/toy.py", "")
    with pytest.raises(PluginDuplicate, match="two of the plugins named are called 'toy'"):
        open_catalog(["one/toy.py", "two/toy.py"])


def test_addresses_imply_their_plugins():
    addresses = ["dactbert/base", "linear", "core/linear", "a.b:C", "x/y", "dactbert/text", "./z"]
    assert plugins_named_in([*addresses, "-other/bar"]) == ["dactbert", "x"]
