"""Everything a state may hold comes back as it was, without pickling."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from plugin_trainer.training.checkpointing.state_codec import decode, encode


def through(value):
    """The value as it comes back from a file."""
    tensors: dict[str, torch.Tensor] = {}
    return decode(json.loads(json.dumps(encode(value, tensors), allow_nan=False)), tensors)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -3, 10**30, 0.1, 1e-300, "", "text", "$tensor", "ü\u2028\n"),
        *([], [1, [2, []]], (), (1, (2,)), [(), ((),)], {1, 2}, frozenset(), set()),
        *({}, {"a": {"b": (1, 2)}}, {1: "a", (2, "b"): "c"}, {"$tensor": 1}, {"$tuple": [1]}),
        *({"": 0}, {None: 1, True: 2, 2.5: 3}, {"a/b": 1, "a": {"b": 2}}),
        OrderedDict(b=1, a=2),
        [math.inf, -math.inf],
        {"deep": [{"deeper": ({"deepest": {1: math.inf}},)}]},
    ],
    ids=repr,
)
def test_plain_values_come_back_equal_and_of_the_same_type(value):
    back = through(value)
    assert back == value
    if not isinstance(value, (frozenset, OrderedDict)):
        assert type(back) is type(value)


def test_a_counter_comes_back_as_a_counter():
    back = through({"seen": Counter("aab")})
    assert back == {"seen": Counter("aab")} and type(back["seen"]) is Counter


def test_the_order_of_a_mapping_is_kept():
    assert list(through({"b": 1, "a": 2})) == ["b", "a"]
    assert list(through({2: 1, 1: 2})) == [2, 1]


def test_nan_comes_back_as_nan():
    assert math.isnan(through([math.nan])[0])


@pytest.mark.parametrize("value", [np.float64(0.1), np.int64(3), np.bool_(True), np.float32(0.5)])
def test_numpy_scalars_come_back_as_numbers(value):
    back = through({"score": value})["score"]
    assert back == value and type(back) in (float, int, bool)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.array([0.1, math.nan, -math.inf]),
        np.zeros((0, 3), dtype=np.float32),
        np.array(3.5),
        np.array([True, False]),
        np.array(["ab", "c"]),
        np.array([2**63 + 1], dtype=np.uint64),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_with_dtype_and_shape(array):
    back = through({"array": array})["array"]
    assert back.dtype == array.dtype and back.shape == array.shape
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


def test_tensors_stand_beside_the_json_under_their_paths():
    tensors: dict[str, torch.Tensor] = {}
    value = {"a": [torch.ones(2), {"b": (torch.zeros(()),)}], 3: torch.ones(1)}
    text = json.dumps(encode(value, tensors))
    assert len(tensors) == 3
    back = decode(json.loads(text), tensors)
    assert torch.equal(back["a"][0], torch.ones(2))
    assert torch.equal(back["a"][1]["b"][0], torch.zeros(()))
    assert torch.equal(back[3], torch.ones(1))


def test_tensors_whose_paths_look_alike_are_kept_apart():
    value = {"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1), 1: torch.full((1,), 2.0)}
    value["1"] = torch.full((1,), 3.0)
    back = through(value)
    assert [float(tensor) for tensor in (back["a"]["b"], back["a/b"], back[1], back["1"])] == [
        *(1.0, 0.0, 2.0, 3.0),
    ]


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, b"bytes", 1j, range(3), torch.device("cpu")]
)
def test_what_would_need_pickle_is_refused_with_its_path(value):
    with pytest.raises(
        TypeError, match=rf"the state at '/a/0/b' is a {type(value).__name__}: only"
    ):
        encode({"a": [{"b": value}]}, {})


def test_a_tensor_that_is_missing_is_noticed():
    with pytest.raises(KeyError):
        decode({"$tensor": "/gone"}, {})
