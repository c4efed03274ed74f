"""The form in which numbers travel between replicas: how many bytes they take, and how far off they may be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syngrad.replicas.encoding import BLOCK, DTYPES, decode, encode, encoded_bytes


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_eight_bits_are_off_by_half_a_step_at_most(values: list[float], blocks: int, own: torch.dtype) -> None:
    repeated = (values * (blocks * BLOCK))[: blocks * BLOCK]
    x = torch.tensor(repeated, dtype=own)
    data = encode(x, "int8")
    assert data.dtype == torch.uint8
    assert data.numel() == encoded_bytes(x.numel(), "int8", own)
    back = decode(data, "int8", own)
    assert back.dtype == own
    step = x.view(-1, BLOCK).abs().amax(1, keepdim=True) / 127
    off = (back - x).view(-1, BLOCK).abs()
    assert bool((off <= step * 0.5001 + 1e-37).all())


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_can_be_told_exactly_is(dtype: str, own: torch.dtype) -> None:
    x = (torch.arange(2 * BLOCK) % 255 - 127).to(own)
    x[BLOCK:] = 0.0
    data = encode(x, dtype)
    assert data.numel() == encoded_bytes(x.numel(), dtype, own)
    assert torch.equal(decode(data, dtype, own), x)


def test_as_they_are_every_dtype_stays_what_it_is() -> None:
    x = torch.randn(BLOCK, dtype=torch.float64)
    assert torch.equal(decode(encode(x, "float32"), "float32", torch.float64), x)


def test_eight_bits_are_a_quarter() -> None:
    assert encoded_bytes(100 * BLOCK, "int8", torch.float32) == pytest.approx(0.25 * 400 * BLOCK, rel=0.02)
