"""Jacobians of a step of any core, batched or row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.recurrent.stepwise import CORES, IN, N, data, made, samples
from torch import Tensor, nn

from syngrad.errors import MessageError
from syngrad.recurrent import traces as module
from syngrad.recurrent.core import Core
from syngrad.recurrent.layout import find_layout
from syngrad.recurrent.traces import Jacobian, unfused


def step(core: nn.Module, inputs: Tensor) -> tuple[Jacobian, list[Tensor], list[Tensor], Tensor]:
    """(Jacobian, leaves after, leaves before, the states before as vectors)."""
    wrapped = Core(core)
    found = find_layout(wrapped, inputs)
    with torch.no_grad():
        state = wrapped.run(wrapped.part(inputs, 0, 1), None)[1]
    state, before = found.cut(state, True)
    after = found.leaves(wrapped.run(wrapped.part(inputs, 1, 2), state)[1])
    return Jacobian(found, inputs.device), after, before, found.vector([leaf.detach() for leaf in before])


@pytest.mark.parametrize("rows", [64, 2])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", CORES)
def test_it_is_the_jacobian(name: str, batched: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    core, readout, first = made(name)
    inputs, targets = data(first)
    jacobian, after, before, vectors = step(core, inputs)
    jacobian.batched = batched
    found = jacobian(after, before)
    assert jacobian.batched is batched
    for i, sample in enumerate(samples(core, readout, first, inputs, targets)):
        wished = torch.autograd.functional.jacobian(lambda v, s=sample: s.step(1, v)[1], vectors[i])
        torch.testing.assert_close(found[i], wished, rtol=0, atol=1e-12)
    again = jacobian(after, before)  # the graph is still there
    assert torch.equal(found, again)


class Stubborn(torch.autograd.Function):
    """A backward that cannot be batched: it looks at the numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x.cos() if g.abs().sum().item() > 0 else g * 0


class Own(nn.Module):
    def forward(self, inputs: Tensor, state: Any) -> Any:
        outputs = []
        state = inputs.new_zeros(len(inputs), IN) if state is None else state
        for x in inputs.unbind(1):
            state = Stubborn.apply(state + x)  # type: ignore[no-untyped-call]
            outputs.append(state)
        return torch.stack(outputs, 1), state


def test_a_backward_that_cannot_be_batched_goes_row_by_row() -> None:
    inputs, _ = data(True)
    jacobian, after, before, vectors = step(Own(), inputs)
    found = jacobian(after, before)
    assert not jacobian.batched
    torch.testing.assert_close(found, torch.diag_embed((vectors + inputs[:, 1]).cos()))


def test_a_state_that_depends_on_nothing_has_a_jacobian_of_zeros() -> None:
    inputs, _ = data(True)
    jacobian, after, before, _ = step(made("gru")[0], inputs)
    constant = [torch.zeros_like(leaf) for leaf in after]
    assert torch.equal(jacobian(constant, before), torch.zeros(N, 3, 3, dtype=torch.float64))
    assert torch.equal(jacobian([leaf.requires_grad_() for leaf in constant], before), torch.zeros(N, 3, 3).double())


@pytest.mark.parametrize("name", CORES)
def test_in_float32_too(name: str) -> None:
    core, _, first = made(name)
    wished = step(core, data(first)[0])
    wished = wished[0](wished[1], wished[2])
    with unfused():
        jacobian, after, before, _ = step(core.float(), data(first)[0].float())
    found = jacobian(after, before)
    assert jacobian.batched
    torch.testing.assert_close(found.double(), wished, rtol=1e-4, atol=1e-5)


def test_the_fused_kernels_come_back() -> None:
    was = torch.backends.mkldnn.enabled
    with unfused():
        assert torch.backends.mkldnn.enabled is False
    with pytest.raises(MessageError), unfused():
        raise MessageError("for instance")
    assert torch.backends.mkldnn.enabled == was
