"""Whatever a file or an argument holds: words, and never an internal error or a traceback."""

from __future__ import annotations

import json
import os
import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plugin_trainer.cli.main import main
from plugin_trainer.data.texts.columns import Columns
from plugin_trainer.data.texts.reading import read_rows
from plugin_trainer.errors import PtrainError
from plugin_trainer.settings.layers import from_assignments
from plugin_trainer.settings.toml_lines import join_key, key_lines, split_key

EXAMPLES = int(os.environ.get("FUZZ", "0"))
"""How many new ones; 0: a few, the same each time."""

hostile = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

KEYS = (
    "model", "data", "model_settings", "data_settings", "length", "seed", "optimizer", "schedule",
    "callbacks", "loss", "best", "ema", "save", "evaluate", "device", "x", "a.b", 'a"b', "",
)  # fmt: skip
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["1 epoch", "9" * 5000, "toy/net", "\x1b[2J", "a" * 9000, "1e999 steps"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=8,
)
TABLES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)
# Pieces that mean something to a format, beside any bytes.
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b",", b'"', b"text", b"label", b"0", b"{", b"}", b"[", b"]", b":",
     b'{"text": "a", "label": 1}\n', b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\x00", b"\xc2\xa0",
     b"\t", b"9" * 5000, b" = ", b"#", b"'", b"a"]
)  # fmt: skip
CONTENTS = st.lists(PIECES | st.binary(max_size=6), max_size=24).map(b"".join)

RAW = st.sampled_from(["9" * 5000, "[" * 5000, "0x" + "f" * 5000, "1979-05-27"]) | st.text(
    max_size=20
)


def toml(value: object) -> str:
    """A value as TOML, of whatever is TOML and not only of what a writer of TOML makes."""
    if isinstance(value, dict):
        return (
            f"{{{', '.join(f'{join_key((key,))} = {toml(item)}' for key, item in value.items())}}}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return str(value) if str(value).strip("-")[0] in "in" else f"{value:.6e}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check(
    capsys: pytest.CaptureFixture[str], *arguments: str, codes: tuple[int, ...] = (0, 2)
) -> None:
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code in codes, (code, err)
    assert "internal error" not in err and "Traceback" not in err
    assert "\x1b" not in out + err and max(map(len, err.split("\n"))) < 1200


@hostile
@given(CONTENTS)
@example(f"seed = {'9' * 5000}".encode())
@example(b"data = 5")
@example(b"[data]\ntrain = 1")
def test_a_run_file_of_any_bytes(toy, capsys, content):
    Path("run.toml").write_bytes(content)
    check(capsys, "config", "check", "run.toml", "--plugin", "./toy.py")


@hostile
@given(TABLES)
def test_a_run_file_of_any_values(toy, capsys, table):
    lines = [f"{join_key((key,))} = {toml(value)}\n" for key, value in table.items()]
    text = "".join(lines).encode("utf-8", "replace").decode()
    Path("run.toml").write_text(text, encoding="utf-8")
    check(capsys, "config", "check", "run.toml", "--plugin", "./toy.py")


@hostile
@given(st.sampled_from(KEYS) | st.text(max_size=8), VALUES.map(toml) | RAW)
@example("model_settings", "0x" + "f" * 5000)
def test_any_assignment(toy, capsys, key, value):
    check(capsys, "config", "check", "--plugin", "./toy.py", f"--set={key}={value}")


@hostile
@given(st.lists(st.text(string.printable, max_size=30), max_size=3))
def test_assignments_are_read_or_refused(assignments):
    with suppress(PtrainError):
        from_assignments(assignments)


@hostile
@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_a_key_is_joined_and_split(parts):
    parts = [part.encode("utf-8", "replace").decode().replace("\x7f", "") for part in parts]
    assert split_key(join_key(tuple(parts))) == tuple(parts)
    assert key_lines(f"{join_key(tuple(parts))} = 1") == {tuple(parts): 1}


@hostile
@given(
    CONTENTS, st.sampled_from([".csv", ".tsv", ".jsonl"]), st.sampled_from(["auto", True, False])
)
@example(b'text,label\n"a","1"\n,2\n', ".csv", "auto")
@example(b"text,text\na,b\n", ".csv", True)
@example(b'{"text": "\\ud800", "label": 1}\n', ".jsonl", "auto")
def test_a_data_file_of_any_bytes(tmp_path, content, ending, header):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content)
    try:
        rows = read_rows(path, key="data_settings.train", columns=Columns(), header=header)
    except PtrainError as error:
        assert path.name in str(error)
    else:
        assert all(row.text.strip() for row in rows)


@hostile
@given(st.lists(PIECES | st.sampled_from([b"1 2 3\n", b" "]), max_size=12).map(b"".join))
def test_predict_on_any_bytes(trained, capsys, content):
    Path("input.txt").write_bytes(content)
    check(capsys, "predict", "runs/first", "input.txt", codes=(0, 1, 2))
