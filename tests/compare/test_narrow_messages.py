"""What crosses in fewer bits is what Syngrad's own messages hold, in both directions."""

from __future__ import annotations

import pytest
import torch

from syngrad.compare.rivals.narrow_messages import Narrow
from syngrad.links.message_dtype import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 8), (3, 1), (4, 2, 5, 6)])
@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_it_arrives_as_a_message_of_syngrads_does(form: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    h = torch.randn(shape, dtype=dtype, requires_grad=True)
    g = torch.randn(shape, dtype=dtype)
    narrow = Narrow(h, form)
    crosses = narrow.packed(h)
    assert narrow.bytes(h) == crosses.numel() * crosses.element_size()
    came = crosses.detach().requires_grad_()
    m = narrow.unpacked(came)
    assert torch.equal(m, unpack(pack([h.detach()], form), form, [dtype])[0])
    m.backward(g)
    assert came.grad is not None
    assert came.grad.dtype == crosses.dtype
    crosses.backward(came.grad)
    assert h.grad is not None
    assert torch.equal(h.grad, unpack(pack([g], form), form, [dtype])[0])


@pytest.mark.parametrize("leaf", [torch.arange(6).view(2, 3), torch.randn(4), torch.randn(())])
def test_what_has_no_rows_or_no_fractions_stays_as_it_is(leaf: torch.Tensor) -> None:
    narrow = Narrow(leaf, "int8")
    assert narrow.packed(leaf) is leaf
    assert narrow.unpacked(leaf) is leaf
    assert narrow.bytes(leaf) == leaf.numel() * leaf.element_size()
