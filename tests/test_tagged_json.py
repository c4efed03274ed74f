"""Plain data and tensors as JSON and back."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from syngrad.tagged_json import PlainError, decode, encode

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
KEYS = st.text(max_size=6) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["tensor", "tuple", "map", "float"]), inner, max_size=1)
        | st.builds(deque, st.lists(inner, max_size=3))
        | st.sets(st.integers(), max_size=3)
        | st.builds(Counter, st.dictionaries(st.integers(), st.integers(1, 9), max_size=3))
    ),
    max_leaves=12,
)


def through(value: Any) -> Any:
    tensors: dict[str, Tensor] = {}
    return decode(json.loads(json.dumps(encode(value, tensors), allow_nan=False)), tensors)


@given(TREES)
def test_what_goes_in_comes_out(tree: Any) -> None:
    back = through(tree)
    assert back == tree
    assert type(back) is type(tree)


def test_tensors_numbers_and_names_of_types() -> None:
    tensor = torch.randn(2, 3)
    value = {
        "t": tensor,
        "pair": (tensor[0], [torch.tensor(1), torch.zeros(0)]),
        "inf": [math.inf, -math.inf],
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "array": np.arange(3),
        "number": np.float32(0.5),
        "ordered": OrderedDict(a=1),
    }
    back = through(value)
    assert torch.equal(back["t"], tensor)
    assert torch.equal(back["pair"][0], tensor[0])
    assert isinstance(back["pair"], tuple)
    assert back["array"].tolist() == [0, 1, 2]
    for key in ("inf", "dtype", "device", "complex", "bytes", "number", "ordered"):
        assert back[key] == value[key]
    assert math.isnan(through(math.nan))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [0, {"b": object()}]}, r"a\.1\.b is a object"),
        ([lambda: 0], "0 is a function"),
        ({"w": torch.eye(2).to_mkldnn()}, r"w is a tensor of layout torch\._mkldnn"),
        (np.array([object()]), "it is a ndarray"),
    ],
)
def test_anything_else_is_refused_by_its_place(value: Any, said: str) -> None:
    with pytest.raises(PlainError, match=said) as caught:
        encode(value, {})
    assert "\n" not in str(caught.value)


def coo(places: list[list[int]], values: Tensor, shape: tuple[int, ...]) -> Tensor:
    indices = torch.tensor(places, dtype=torch.int64)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


SPARSE: dict[str, Callable[[], Tensor]] = {
    "coalesced": lambda: torch.eye(3).to_sparse(),
    "with a place twice": lambda: coo([[2, 0, 2]], torch.tensor([1.0, 2.0, 3.0]), (4,)),
    "hybrid": lambda: coo([[3, 1]], torch.randn(2, 5), (6, 5)),
    "empty": lambda: coo([[]], torch.zeros(0, 5), (6, 5)),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "csc": lambda: torch.eye(3).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
}


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_tensors_come_back_as_they_were(kind: str) -> None:
    tensor = SPARSE[kind]()
    back = through([tensor.requires_grad_() if tensor.layout == torch.sparse_coo else tensor])[0]
    assert back.layout == tensor.layout
    assert torch.equal(back.to_dense(), tensor.detach().to_dense())
    if tensor.layout == torch.sparse_coo:
        assert back.is_coalesced() == tensor.is_coalesced()
        assert torch.equal(back._indices(), tensor.detach()._indices())
        assert torch.equal(back._values(), tensor.detach()._values())


@pytest.mark.parametrize(
    "content",
    [
        ["sparse_coo", ["i", "v"], [3], True],
        ["sparse_coo", ["i", "v"], [4, 4], True],
        ["sparse_coo", ["v", "i"], [9], True],
        ["sparse_coo", ["i"], [9], True],
        ["strided", ["i", "v"], [9], True],
        ["sparse_csr", ["i", "i", "v"], [9, 9], False],
        ["sparse_coo", ["i", "v"], ["9"], True],
        [],
    ],
    ids=str,
)
def test_a_sparse_tensor_that_cannot_be_is_refused(content: Any) -> None:
    tensors = {"i": torch.tensor([[2, 8]]), "v": torch.ones(2)}
    with pytest.raises(PlainError) as caught:
        decode({"sparse": content}, tensors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        {"tensor": "t7"},
        {"tensor": ["t0"]},
        {"dtype": "nn"},
        {"dtype": "no such"},
        {"device": "nowhere"},
        {"map": [1, 2]},
        {"map": [[{"map": []}, 1]]},
        {"tuple": 3},
        {"float": "one"},
        {"bytes": "zz"},
        {"counter": [[1, "x"]]},
        {"complex": ["x"]},
        {"set": [[1]]},
    ],
)
def test_what_was_never_written_is_refused(value: Any) -> None:
    with pytest.raises(PlainError) as caught:
        decode([value], {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strides", [[1], [0, 1], [1, 1], [-1, 3], [1, 10**18], ["1", 3], [3, True, 1], None], ids=str)
def test_a_layout_that_a_tensor_cannot_have_is_refused(strides: Any) -> None:
    with pytest.raises(PlainError):
        decode({"laid out": ["t0", strides]}, {"t0": torch.ones(3, 2)})
