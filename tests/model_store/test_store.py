"""Versions are registered, found, named, exported, loaded, checked and removed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
import torch

import plugin_trainer
from plugin_trainer.errors import CheckpointError, RunFolderError
from plugin_trainer.model_store import Store, StoreError
from plugin_trainer.training.checkpointing.store import read_weights


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# -------------------------------------------------------------------------------- registering


def test_the_best_checkpoint_becomes_the_first_version(store, assert_sound, assert_tidy):
    registered = store.register(
        "first", name="signs", tags={"owner": "ann"}, aliases=["production"]
    )
    version = registered.version
    best = json.loads(Path("runs/first/checkpoints/best.json").read_text())
    assert (str(version), version.step, version.weights) == ("signs:1", best["step"], "raw")
    assert version.aliases == ("production",) and version.tags == {"owner": "ann"}
    assert registered.moved == {"production": None}
    assert version.value == best["value"] == version.metrics["val/accuracy"]
    assert store.get("signs") == store.get("signs:1") == store.get("signs@production") == version
    assert_sound(store)
    assert_tidy(store)


def test_a_version_says_what_it_is_made_of(store):
    about = json.loads(Path("runs/first/run.json").read_text())
    version = store.register(Path("runs/first"), name="signs").version
    assert version.run == str(Path("runs/first").absolute())
    assert version.settings["model"] == "toy/net"
    assert version.settings["optimizer"]["learning_rate"] == 0.05
    assert [plugin["name"] for plugin in version.about["plugins"]] == ["core", "toy"]
    assert version.about["packages"] == about["packages"] and "torch" in about["packages"]
    assert version.about["git"] == about["git"]
    assert version.created.endswith("Z")
    json.dumps(version.as_json())


def test_each_registration_is_a_version_and_the_same_files_are_kept_once(store):
    one = store.register("first", name="signs").version
    size = sum(path.stat().st_size for path in store.folder.glob("artifacts/*/*"))
    two = store.register("first", name="signs").version
    other = store.register("first", name="other").version
    assert [str(one), str(two), str(other)] == ["signs:1", "signs:2", "other:1"]
    assert one.files == two.files == other.files
    assert sum(path.stat().st_size for path in store.folder.glob("artifacts/*/*")) == size


def test_once_registers_a_checkpoint_once_and_then_changes_nothing(store):
    one = store.register("first", name="signs", once=True)
    again = store.register("first", name="signs", once=True, aliases=["x"], tags={"a": "b"})
    assert one.is_new and not again.is_new
    assert again.version == one.version
    for changed in ({"checkpoint": "step-3"}, {"weights": "ema"}, {"name": "other"}):
        assert store.register("first", **{"name": "signs", **changed}, once=True).is_new
    assert len(store.versions("signs")) == 3


def test_a_run_that_was_moved_is_the_same_once(store):
    store.register("first", name="signs", once=True)
    Path("runs/first").rename("runs/second")
    assert not store.register("second", name="signs", once=True).is_new


@pytest.mark.parametrize("which", ["last", "step-3"])
def test_another_checkpoint_is_registered_if_it_is_named(store, which):
    version = store.register("first", name="signs", checkpoint=which).version
    assert version.step == {"last": 12, "step-3": 3}[which]
    line = next(
        entry
        for entry in map(json.loads, Path("runs/first/metrics.jsonl").read_text().splitlines())
        if entry["step"] == version.step and "val/loss" in entry
    )
    assert version.metrics == {name: line[name] for name in ("val/loss", "val/accuracy")}


def test_a_run_that_is_not_there_makes_no_store(store):
    with pytest.raises(RunFolderError, match="there is no run 'frist'"):
        store.register("frist", name="signs")
    assert not store.folder.exists()


def test_a_checkpoint_that_is_not_there_or_not_whole_makes_no_version(store, assert_tidy):
    store.register("first", name="signs")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        store.register("first", name="signs", checkpoint="step-5")
    with Path("runs/first/checkpoints/step-00000003/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(CheckpointError, match=r"the hash of model.safetensors does not fit"):
        store.register("first", name="signs", checkpoint="step-3")
    assert len(store.versions()) == 1
    assert_tidy(store)


def test_numbers_are_never_given_again(store):
    for _ in range(3):
        store.register("first", name="signs")
    store.remove("signs:3")
    assert str(store.register("first", name="signs").version) == "signs:4"
    store.remove_all("signs")
    assert store.versions() == []
    assert str(store.register("first", name="signs").version) == "signs:5"


# ------------------------------------------------------------------------------ aliases and tags


def test_an_alias_means_one_version_and_says_what_it_meant_before(store):
    for _ in range(2):
        store.register("first", name="signs")
    assert store.set_alias("signs:1", "production")[1] is None
    version, before = store.set_alias("signs:2", "production")
    assert (before, version.aliases) == (1, ("production",))
    assert store.get("signs:1").aliases == ()
    assert store.register("first", name="signs", aliases=["production"]).moved == {"production": 2}
    store.register("first", name="other", aliases=["production"])
    assert str(store.get("signs@production")) == "signs:3"  # another model's is another


def test_an_alias_is_taken_away_from_the_version_that_has_it(store):
    for _ in range(2):
        store.register("first", name="signs", aliases=["production"])
    with pytest.raises(StoreError, match="signs:1 is not @production: signs:2 is"):
        store.remove_alias("signs:1", "production")
    assert store.remove_alias("signs", "production") == 2
    with pytest.raises(StoreError, match="has no alias 'production'"):
        store.get("signs@production")


def test_best_is_given_only_to_a_better_version(store):
    """Step 3 has the worse loss, step 12 the better one."""
    watch_loss = Path("runs/first/run.toml")
    text = watch_loss.read_text().replace('watch = "val/accuracy"', 'watch = "val/loss"')
    watch_loss.write_text(text.replace('mode = "max"', 'mode = "min"'))
    first = store.register("first", name="signs", checkpoint="step-3", aliases=["best"])
    better = store.register("first", name="signs", checkpoint="step-12", aliases=["best"])
    worse = store.register("first", name="signs", checkpoint="step-3", aliases=["best", "x"])
    equal = store.register("first", name="signs", checkpoint="step-12", aliases=["best"])
    assert first.moved == {"best": None} and better.moved == {"best": 1}
    assert better.version.value < first.version.value
    assert worse.moved == {"x": None} and str(worse.not_best) == "signs:2"
    assert equal.moved == {} and str(store.get("signs@best")) == "signs:2"


def test_best_stays_where_two_versions_cannot_be_compared(store):
    store.register("first", name="signs", aliases=["best"])
    path = Path("runs/first/run.toml")
    path.write_text(path.read_text().replace('watch = "val/accuracy"', 'watch = "val/loss"'))
    registered = store.register("first", name="signs", aliases=["best"])
    assert str(registered.not_best) == "signs:1"
    store.set_alias("signs:2", "best")  # whoever says so by hand is believed
    assert str(store.get("signs@best")) == "signs:2"


def test_tags_are_set_replaced_and_taken_away(store):
    store.register("first", name="signs", tags={"a": "1", "b": "2"})
    assert store.set_tags("signs:1", {"b": "3", "c": "4=5"}, remove=["a"]).tags == {
        "b": "3",
        "c": "4=5",
    }
    with pytest.raises(StoreError, match="signs:1 has no tag 'a'"):
        store.set_tags("signs:1", {"d": "6"}, remove=["a"])
    assert store.get("signs").tags == {"b": "3", "c": "4=5"}


# ------------------------------------------------------------------------------- what is not there


def test_what_is_not_there_is_answered_with_what_is(store):
    with pytest.raises(StoreError, match="there is no model 'signs'") as caught:
        store.get("signs")
    assert caught.value.hint == ("there is none at all",)
    assert not store.folder.exists()
    store.register("first", name="signs", aliases=["production"])
    for reference, hint in {
        "sings": "did you mean 'signs'?",
        "xyz": "there are: signs",
        "signs:2": "its versions are: 1",
        "signs@best": "its aliases are: production; its versions: 1",
    }.items():
        with pytest.raises(StoreError) as caught:
            store.get(reference)
        assert caught.value.hint == (hint,)


def test_looking_and_mistakes_make_no_store(store):
    assert store.versions() == []
    for attempt in (
        lambda: store.set_alias("signs:1", "x"),
        lambda: store.set_tags("signs:1", {}),
        lambda: store.remove("signs:1"),
        lambda: store.remove_all("signs"),
        lambda: store.export("signs:1", "out"),
        lambda: store.verify("signs"),
    ):
        with pytest.raises(StoreError, match="there is no model"):
            attempt()
    assert store.verify() == ([], [])
    assert not store.folder.exists() and not Path("out").exists()


# -------------------------------------------------------------------------------- export and load


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_an_export_is_a_run_that_gives_the_same_weights_metrics_and_answers(store, weights):
    lines = ["1 2 3", "-1 -2 -3", "0.1 0.2 -0.5"]
    original = plugin_trainer.load_run("first", weights=weights)
    version = store.register("first", name="signs", weights=weights).version
    measured, answers = original.evaluate(), list(original.predict(lines))
    shutil.rmtree("runs")
    store.export("signs:1", "deep/out")
    shutil.rmtree("models")
    Path("deep").rename("elsewhere")
    again = plugin_trainer.load_run("elsewhere/out")
    assert_same(weights_of(again.model), weights_of(original.model))
    assert list(again.predict(lines)) == answers
    assert again.evaluate() == {name.replace("_ema/", "/"): v for name, v in measured.items()}
    assert {name: pytest.approx(v) for name, v in version.metrics.items()} == again.evaluate()
    for which in ("best", "last", f"step-{version.step}"):
        assert plugin_trainer.load_run("elsewhere/out", checkpoint=which).weights == "raw"


def test_raw_and_ema_weights_differ_so_that_the_test_above_means_something(store):
    raw = plugin_trainer.load_run("first", weights="raw", checkpoint="step-12")
    ema = plugin_trainer.load_run("first", weights="ema", checkpoint="step-12")
    assert not torch.equal(raw.model[0].weight, ema.model[0].weight)


def test_an_export_says_what_it_is(store):
    store.register("first", name="signs", aliases=["production"])
    version = store.export("signs@production", "out")
    card = json.loads(Path("out/model.json").read_text())
    assert (card["name"], card["version"], card["aliases"]) == ("signs", 1, ["production"])
    assert card["metrics"] == version.metrics and card["settings"]["model"] == "toy/net"
    assert set(card["files"]) == {
        str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()
    } - {"model.json"}


def test_an_export_may_be_registered_in_another_store(store):
    store.register("first", name="signs", weights="ema")
    one = store.export("signs", "out")
    other = Store("other").register("out", name="signs").version
    assert other.metrics == one.metrics and other.step == one.step
    Store("other").export("signs", "again")
    assert_same(
        weights_of(plugin_trainer.load_run("out").model),
        weights_of(plugin_trainer.load_run("again").model),
    )


def test_an_export_goes_into_a_new_or_empty_folder_only(store):
    store.register("first", name="signs")
    Path("empty").mkdir()
    store.export("signs", "empty")
    with pytest.raises(StoreError, match="empty is there already"):
        store.export("signs", "empty")
    Path("file").touch()
    with pytest.raises(StoreError, match="file is there already"):
        store.export("signs", "file")


def test_an_export_of_damaged_files_leaves_nothing(store):
    version = store.register("first", name="signs").version
    damage(store, version, "assets/toy.json")
    before = set(Path().iterdir())
    with pytest.raises(StoreError, match="is damaged: its hash does not fit"):
        store.export("signs", "out")
    assert set(Path().iterdir()) == before


def test_a_version_is_loaded_by_its_alias(store):
    store.register("first", name="signs", aliases=["production"], checkpoint="step-3")
    store.register("first", name="signs")
    shutil.rmtree("runs/first/checkpoints/step-00000012")
    loaded = store.load("signs@production")
    state = read_weights(Path("runs/first/checkpoints/step-00000003"), weights="raw")
    assert_same(weights_of(loaded.model), state)
    assert loaded.evaluate() == {
        name: pytest.approx(v) for name, v in store.get("signs:1").metrics.items()
    }
    assert [set(answer) for answer in loaded.predict(["1 2 3"])] == [{"sign"}]


def test_what_a_loaded_version_needs_on_the_disk_goes_with_it(store):
    store.register("first", name="signs")
    loaded = store.load("signs")
    folder = loaded.folder
    assert (folder / "assets" / "toy.json").is_file()
    del loaded
    assert not folder.exists()


def test_loading_damaged_weights_is_refused(store):
    version = store.register("first", name="signs").version
    damage(store, version, "checkpoints/step-00000006/model.safetensors")
    with pytest.raises(CheckpointError, match="not sound"):
        store.load("signs")


# ------------------------------------------------------------------------------ verify and remove


def damage(store: Store, version, path: str) -> Path:
    """Turn one byte of a kept file around."""
    found = next(name for name in version.files if name.endswith(path.rpartition("/")[2]))
    artifact = version.files[path] if path in version.files else version.files[found]
    place = store.folder / "artifacts" / artifact.sha256[:2] / artifact.sha256
    place.chmod(0o644)
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(bytes(content))
    return place


def test_verify_finds_what_is_missing_cut_short_or_changed(store):
    version = store.register("first", name="signs").version
    store.register("first", name="other", checkpoint="step-3")
    assert [len(part) for part in store.verify()] == [2, 0]
    model = next(path for path in version.files if path.endswith("model.safetensors"))
    place = damage(store, version, model)
    assert [str(found) for found in store.verify()[1]] == [
        f"signs:1: {model}: its hash does not fit"
    ]
    place.write_bytes(b"short")
    assert "it has 5 bytes in place of" in str(store.verify("signs:1")[1][0])
    place.unlink()
    assert "it is missing" in str(store.verify("signs")[1][0])
    assert store.verify("other") == ([store.get("other")], [])


def test_registering_again_mends_what_was_damaged(store, assert_sound):
    version = store.register("first", name="signs").version
    model = next(path for path in version.files if path.endswith("model.safetensors"))
    damage(store, version, model)
    store.register("first", name="signs")
    assert_sound(store)


def test_kept_files_are_read_only(store):
    store.register("first", name="signs")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in store.folder.glob("artifacts/*/*")}
    assert modes == {0o444}


def test_removing_deletes_the_files_that_no_other_version_has(store, assert_sound, assert_tidy):
    one = store.register("first", name="signs").version
    store.register("first", name="signs")
    store.register("first", name="other", checkpoint="step-3")
    removed, cleaned = store.remove("signs:1")
    assert str(removed) == "signs:1" and cleaned.files == 0
    assert_sound(store)
    _, cleaned = store.remove("signs:2")
    shared = set(one.files.values()) & set(store.get("other").files.values())
    assert cleaned.files == len(set(one.files.values())) - len(shared) and shared
    assert_sound(store)
    assert_tidy(store)


def test_a_name_alone_is_not_enough_to_remove_a_version(store):
    store.register("first", name="signs")
    with pytest.raises(StoreError, match=r"which version of signs\?"):
        store.remove("signs")
    assert len(store.versions()) == 1


def test_a_version_that_somebody_counts_on_is_not_removed(store):
    store.register("first", name="signs", aliases=["production"])
    store.register("first", name="signs")
    with pytest.raises(StoreError, match="signs:1 is @production"):
        store.remove("signs:1")
    store.set_alias("signs:2", "production")
    store.remove("signs:1")
    removed, _ = store.remove_all("signs")
    assert [str(version) for version in removed] == ["signs:2"]
    assert list(store.folder.glob("artifacts/*")) == []


def test_cleaning_leaves_alone_what_is_not_the_stores(store):
    store.register("first", name="signs")
    foreign = store.folder / "artifacts" / "ab" / "notes.txt"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    store.remove("signs:1")
    assert foreign.read_text() == "mine"


# ----------------------------------------------------------------------------------- odd stores


def test_a_file_that_is_no_registry_is_named_and_left_alone(store):
    path = store.folder / "registry.sqlite"
    store.folder.mkdir()
    path.write_text("this is not a database, but a text" * 100)
    with pytest.raises(
        StoreError, match=r"registry\.sqlite cannot be used: file is not a database"
    ):
        store.versions()
    path.unlink()
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("CREATE TABLE recipes (name TEXT)")
    before = path.read_bytes()
    for attempt in (store.versions, lambda: store.register("first", name="signs")):
        with pytest.raises(StoreError, match="is not the registry of a model store"):
            attempt()
    assert path.read_bytes() == before


def test_a_store_of_a_newer_ptrain_is_refused(store):
    store.register("first", name="signs")
    connection = sqlite3.connect(store.folder / "registry.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    for attempt in (store.versions, lambda: store.register("first", name="signs")):
        with pytest.raises(StoreError, match="has format 2; this ptrain reads 1"):
            attempt()


def test_a_store_that_is_a_file_is_refused(here):
    Path("models").write_text("")
    with pytest.raises(StoreError, match="the model store models cannot be written"):
        Store().register("first", name="signs")


def test_another_process_that_holds_the_registry_is_waited_for_and_then_named(store, monkeypatch):
    store.register("first", name="signs")
    monkeypatch.setattr("plugin_trainer.model_store.database._BUSY_S", 0.05)
    other = sqlite3.connect(store.folder / "registry.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="in use by another process"):
        store.set_alias("signs:1", "x")
    other.execute("ROLLBACK")
    other.close()
    store.set_alias("signs:1", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_only_be_read_is_read(store):
    store.register("first", name="signs", aliases=["production"])
    folders = [store.folder, *(p for p in store.folder.rglob("*") if p.is_dir())]
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o444)
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert str(store.get("signs@production")) == "signs:1"
        assert store.verify()[1] == []
        store.export("signs", "out")
        store.load("signs")
        with pytest.raises(StoreError, match=r"cannot be (written|used)"):
            store.register("first", name="signs")
    finally:
        for folder in folders:
            folder.chmod(0o755)


# ---------------------------------------------------------------------- a registry others write

HOSTILE = {
    "outside": "UPDATE files SET path = '../../it-is-there' WHERE path = 'run.toml'",
    "absolute": "UPDATE files SET path = '/tmp/it-is-there' WHERE path = 'run.toml'",
    "backslash": "UPDATE files SET path = '..\\it-is-there' WHERE path = 'run.toml'",
    "dots": "UPDATE files SET path = 'assets/./x' WHERE path = 'run.toml'",
    "no hash": "UPDATE files SET sha256 = '../../../etc/passwd' WHERE path = 'run.toml'",
    "short hash": "UPDATE files SET sha256 = 'ab' WHERE path = 'run.toml'",
    "size": "UPDATE files SET size = -1 WHERE path = 'run.toml'",
    "text for a size": "UPDATE files SET size = 'many' WHERE path = 'run.toml'",
    "bytes for a path": "UPDATE files SET path = x'ff' WHERE path = 'run.toml'",
    "step": "UPDATE versions SET step = 'many'",
    "metrics": "UPDATE versions SET metrics = '[1]'",
    "no json": "UPDATE versions SET about = '{'",
    "settings": "UPDATE versions SET settings = '5'",
    "bytes for a run": "UPDATE versions SET run = x'ff'",
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_entry_that_nobody_here_wrote_is_refused_and_hides_no_other(store, tmp_path, change):
    store.register("first", name="good")
    store.register("first", name="bad")
    path = Path("models/registry.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        where = "AND" if "WHERE" in change else "WHERE"
        connection.execute(f"{change} {where} name = 'bad'")
    before = sorted(tmp_path.rglob("*it-is-there*"))
    for use in (
        lambda: store.get("bad"),
        lambda: store.export("bad", "out"),
        lambda: store.load("bad"),
        lambda: store.verify("bad"),
    ):
        with pytest.raises(StoreError, match="the registry's entry bad:1 cannot be used"):
            use()
    damaged = []
    assert [str(version) for version in store.versions(damaged=damaged)] == ["good:1"]
    assert len(damaged) == 1
    assert not Path("out").exists() and sorted(tmp_path.rglob("*it-is-there*")) == before
    assert not Path("/tmp/it-is-there").exists()
