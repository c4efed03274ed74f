"""What is lost on the way, and what must not be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syngrad.links.codec import pack, unpack


def through(tensor: torch.Tensor, how: str) -> torch.Tensor:
    (back,) = unpack(pack([tensor], how), how, [tensor.dtype])
    return back


@given(st.integers(0, 2**31), st.floats(-20, 20))
def test_8_bits_are_off_by_half_a_step_at_most(seed: int, power: float) -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)) * 2**power
    back = through(x, "int8")
    step = x.abs().amax(1, keepdim=True) / 127
    assert bool(((back - x).abs() <= step * 0.5001).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_does_not_become_finite(bad: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = bad
    back = through(x, "int8")
    assert not back[1].isfinite().any()
    assert torch.allclose(back[[0, 2]], x[[0, 2]])


@pytest.mark.parametrize("how", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(), (0, 5), (4,), (3, 0), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_zeros_are_kept(how: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    back = through(torch.zeros(shape, dtype=dtype), how)
    assert (back.shape, back.dtype) == (torch.Size(shape), dtype)
    assert not back.any()


def test_float32_leaves_everything_as_it_is() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(through(x, "float32"), x)


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_integers_are_never_touched(how: str) -> None:
    labels = torch.tensor([1000003, -5])
    assert torch.equal(through(labels, how), labels)
