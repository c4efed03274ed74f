"""How activations and gradients are packed for the way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syngrad.errors import LinkError
from syngrad.links.message_dtype import pack, unpack

SHAPES = [(4, 8), (3, 5, 8), (2, 3, 4, 4), (7,), (), (0, 8), (4, 0), (1, 1)]
HOWS = ["float32", "bfloat16", "int8"]


def through(tensor: torch.Tensor, how: str) -> torch.Tensor:
    (back,) = unpack(pack([tensor], how), how, [tensor.dtype])
    return back


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_shapes_and_dtypes_come_back(how: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    h = torch.randn(shape).to(dtype)
    back = through(h, how)
    assert (back.shape, back.dtype) == (h.shape, h.dtype)
    if how == "float32":
        assert back is h
    elif h.numel():
        largest = h.float().abs().amax(-1, keepdim=True) if h.dim() else h.float().abs()
        step = 2**-8 if how == "bfloat16" else 0.5 / 127 + 2**-8 * (dtype in (torch.bfloat16, torch.float16))
        assert ((back.float() - h.float()).abs() <= largest * (step + 1e-6)).all()


ROWS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)


@given(st.lists(ROWS, max_size=5))
def test_eight_bits_are_off_by_half_a_step_at_most(rows: list[list[float]]) -> None:
    h = torch.tensor(rows, dtype=torch.float32).view(-1, 3)
    back = through(h, "int8")
    assert back.isfinite().all()
    step = h.double().abs().amax(-1, keepdim=True) / 127
    # beside the rounding of the arithmetic itself, which below the smallest normal numbers is all there is
    assert ((back.double() - h.double()).abs() <= step * 0.50001 + 1e-38).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", HOWS)
def test_what_is_not_finite_does_not_become_finite(bad: float, how: str) -> None:
    h = torch.randn(3, 8)
    h[1, 2] = bad
    back = through(h, how)
    assert not back[1].isfinite().all()
    assert not back[1, 2].isfinite()
    assert back[[0, 2]].isfinite().all()


@pytest.mark.parametrize("how", HOWS)
def test_zeros_stay_zeros(how: str) -> None:
    h = torch.zeros(3, 8)
    h[1] = torch.linspace(-1, 1, 8)
    back = through(h, how)
    assert back[[0, 2]].eq(0).all()


@pytest.mark.parametrize("how", HOWS)
def test_what_has_no_floats_is_left_alone(how: str) -> None:
    for tensor in (torch.arange(4), torch.tensor([True, False]), torch.randn(2, dtype=torch.complex64)):
        assert through(tensor, how) is tensor


def test_eight_bits_take_a_quarter() -> None:
    h = torch.randn(128, 1024)
    ((steps, scale),) = pack([h], "int8")
    assert (steps.dtype, scale.dtype, tuple(scale.shape)) == (torch.int8, torch.float32, (128, 1))
    assert steps.nbytes + scale.nbytes == h.nbytes // 4 + 512


@pytest.mark.parametrize(
    "packed",
    [
        [torch.zeros(2, 3, dtype=torch.int8)],
        [torch.zeros(2, 3, dtype=torch.int8), torch.zeros(3, 1)],
        [torch.zeros(2, 3), torch.zeros(2, 1)],
        [torch.zeros(2, 3, dtype=torch.int8), 1.0],
        "int8",
        None,
    ],
)
def test_what_was_not_packed_is_refused(packed: object) -> None:
    with pytest.raises(LinkError, match="not packed as int8"):
        unpack([packed], "int8", [torch.float32])
