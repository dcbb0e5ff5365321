"""Later settings go over earlier ones, and the origin of each is kept."""

from __future__ import annotations

import pytest

from plugin_trainer.errors import RunFolderError, SettingsError
from plugin_trainer.settings.layers import Layer, from_assignments, merge, read_toml


def layer(where: str, **values) -> Layer:
    return Layer(where, values)


def test_tables_are_merged_and_everything_else_is_replaced():
    merged = merge(
        [
            layer("one", optimizer={"name": "sgd", "settings": {"momentum": 0.9}}, callbacks=["a"]),
            layer("two", optimizer={"learning_rate": 0.1}, callbacks=["b"]),
        ]
    )
    assert merged.values == {
        "optimizer": {"name": "sgd", "settings": {"momentum": 0.9}, "learning_rate": 0.1},
        "callbacks": ["b"],
    }
    assert merged.place_of(("optimizer", "name")) == "one"
    assert merged.place_of(("optimizer", "learning_rate")) == "two"
    assert merged.place_of(("callbacks",)) == "two"
    assert merged.place_of(("callbacks", "0")) == "two"
    assert merged.place_of(("seed",)) == "default"


def test_a_table_is_found_where_its_first_key_was_given():
    assert merge([layer("one", optimizer={"name": "sgd"})]).place_of(("optimizer",)) == "one"


def test_switching_a_table_off_replaces_it_and_giving_it_again_starts_afresh():
    merged = merge([layer("one", ema={"decay": 0.9, "warmup": False}), layer("two", ema=False)])
    assert merged.values == {"ema": False}
    assert merged.origins == {("ema",): "two"}
    merged = merge([layer("one", ema=False), layer("two", ema={"decay": 0.5})])
    assert merged.values == {"ema": {"decay": 0.5}}
    assert merged.origins == {("ema", "decay"): "two"}


@pytest.mark.parametrize(
    ("choice", "table"),
    [
        ({"model": "{}"}, {"model_settings": {"width": 3}}),
        ({"data": "{}"}, {"data_settings": {"train": "x.tsv"}}),
        ({"schedule": {"name": "{}"}}, {"schedule_settings": {"final_factor": 0.1}}),
    ],
)
def test_another_choice_drops_the_settings_of_the_earlier_one(choice, table):
    def choosing(name):
        ((key, value),) = choice.items()
        return {key: {"name": name} if isinstance(value, dict) else name}

    earlier = layer("recipe", **choosing("one"), **table)
    kept = merge([earlier, layer("file", **choosing("one"))])
    dropped = merge([earlier, layer("file", **choosing("two"))])
    ((name, values),) = table.items()
    assert kept.values[name] == values
    assert name not in dropped.values
    assert not any(key[0] == name for key in dropped.origins)


def test_another_optimizer_drops_the_arguments_of_the_earlier_one_but_keeps_the_rest():
    merged = merge(
        [
            layer(
                "one", optimizer={"name": "sgd", "settings": {"momentum": 0.9}, "weight_decay": 0}
            ),
            layer("two", optimizer={"name": "adamw"}),
        ]
    )
    assert merged.values == {"optimizer": {"name": "adamw", "weight_decay": 0}}


def test_the_settings_that_come_with_the_new_choice_stay():
    merged = merge(
        [
            layer("one", model="a", model_settings={"width": 1, "depth": 2}),
            layer("two", model="b", model_settings={"width": 3}),
        ]
    )
    assert merged.values["model_settings"] == {"width": 3}


def test_merging_changes_none_of_the_layers():
    one = layer("one", optimizer={"name": "sgd"}, callbacks=["a"])
    merged = merge([one, layer("two", optimizer={"name": "adam"})])
    merged.values["callbacks"].append("b")
    assert one.values == {"optimizer": {"name": "sgd"}, "callbacks": ["a"]}


def test_a_key_in_a_list_of_tables_is_found_on_its_line(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[[rows]]\nx = 1\n[[rows]]\nx = 2\n")
    merged = merge([read_toml(file)])
    assert merged.place_of(("rows", "1", "x")) == f"{file}:4"
    assert merged.place_of(("rows", "1", "y")) == f"{file}:3"
    again = merge([read_toml(file), layer("two", rows=[])])
    assert again.place_of(("rows", "1", "x")) == "two"


def test_what_was_typed_is_kept_until_something_goes_over_it():
    typed = from_assignments(["name=007", "best.watch=1e3"])
    assert merge([typed]).texts == {("name",): "007", ("best", "watch"): "1e3"}
    assert merge([typed, layer("two", best={"watch": "x"})]).texts == {("name",): "007"}


# ------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("seed=3", 3),
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("ema=false", False),
        ("length=3 epochs", "3 epochs"),
        ("length='3 epochs'", "3 epochs"),
        ('length="3 epochs"', "3 epochs"),
        ("data_settings.train=../data/train.tsv", "../data/train.tsv"),
        ("data_settings.train=C:\\data\\train.tsv", "C:\\data\\train.tsv"),
        ("data_settings.train=a=b.tsv", "a=b.tsv"),
        ("data_settings.train=notes #3.txt", "notes #3.txt"),
        ("callbacks=['early_stopping', \"-tensorboard\"]", ["early_stopping", "-tensorboard"]),
        ("optimizer.settings.betas=[0.9, 0.98]", [0.9, 0.98]),
        ("model_settings.labels={a = 1}", {"a": 1}),
        ("name=", ""),
        ("name=007", "007"),
        ("name=2026-01-02", "2026-01-02"),
        ("name=run 😀", "run 😀"),
        ("name=del\x7f", "del\x7f"),
        ("name=two\nlines = 1", "two\nlines = 1"),
        ("seed=1\nmodel = 2", "1\nmodel = 2"),
    ],
)
def test_set_reads_toml_where_it_is_toml_and_text_otherwise(typed, value):
    found = from_assignments([typed]).values
    for part in typed.partition("=")[0].split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_set_takes_quoted_keys():
    typed = 'callback_settings."dactbert/exit_statistics".file=x'
    assert from_assignments([typed]).values == {
        "callback_settings": {"dactbert/exit_statistics": {"file": "x"}}
    }


def test_several_assignments_make_one_layer_and_the_last_of_a_key_counts():
    assert from_assignments(["a.b=1", "a.c=2", "a.b=3"]).values == {"a": {"b": 3, "c": 2}}


def test_every_malformed_assignment_is_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        from_assignments(["seed", "=3", "a..b=1", "a=1", "a.b=2", "ok=1"])
    assert [str(problem) for problem in caught.value.problems] == [
        "--set seed: write it as KEY=VALUE, such as optimizer.learning_rate=1e-4",
        "--set =3: write it as KEY=VALUE, such as optimizer.learning_rate=1e-4",
        "--set a..b=1: write it as KEY=VALUE, such as optimizer.learning_rate=1e-4",
        "--set a.b=2: another --set gives this key another shape",
    ]


# ------------------------------------------------------------------------------------------- files


def test_a_run_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"there is no run file .*gone\.toml"):
        read_toml(tmp_path / "gone.toml")
    with pytest.raises(RunFolderError, match="a plugin is run with --plugin waves"):
        read_toml(tmp_path / "waves")


@pytest.mark.parametrize("name", ["run.toml", "best.toml", ""])
def test_a_folder_in_place_of_a_run_file_names_the_file_in_it(tmp_path, name):
    if name:
        (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match="is a folder") as caught:
        read_toml(tmp_path)
    assert caught.value.hint == ((f"give the file in it: {tmp_path / name}",) if name else ())


def test_a_run_file_that_is_not_toml_is_named_with_the_line(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('a = 1\nb = "open\n')
    with pytest.raises(SettingsError, match=r"one mistake") as caught:
        read_toml(file)
    assert str(caught.value.problems[0]).startswith(f"{file}: not TOML: ")
    assert "line 2" in str(caught.value.problems[0])


def test_a_run_file_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderError, match=r"the run file .* cannot be read"):
        read_toml(file)


@pytest.mark.parametrize(
    "text",
    [f"seed = {'9' * 5000}", f"a = [{{b = 0x{'f' * 5000}}}]", f"a = {'[' * 5000}", "seed = ["],
)
def test_a_file_that_is_no_toml_is_one_mistake(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(SettingsError, match="not TOML"):
        read_toml(tmp_path / "run.toml")


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, str(2**63)])
def test_a_number_that_is_too_long_is_text(number):
    assert from_assignments([f"seed={number}"]).values == {"seed": number}
