"""Corners of following a forward: what must not be baked in, and what must not cross."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.errors import TrainingError
from syngrad.partition import compose, split

X = torch.randn(4, 6)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))


class NoGrad(Base):
    """The context around a call is no call: torch.fx would lose it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.no_grad():
            z = self.b(x)
        return self.c(z) + y


class KeepsState(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.a(x)
        return self.b(self.seen)


class Kinds(Base):
    """Device and dtype are asked for at the start and used behind two cuts."""

    def forward(self, x: Tensor) -> Tensor:
        device, dtype, n = x.device, x.dtype, len(x.shape)
        y = self.c(self.b(self.a(x)))
        return y + torch.ones(6, device=device).to(dtype) * n if isinstance(n, int) else y


class MakesTensors(Base):
    """Factories must run at every call, with that call's sizes and random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(6) + torch.tensor([1.0])
        y = self.a(x) * noise
        return self.b(y) + torch.zeros(x.shape[0], 6) + torch.full((6,), 2.0)


class WritesMessage(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(-1, 2, 3)
        y = y.relu_() if self.c is None else y
        return self.b(F.relu(y.flatten(1), True))


class Mode(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return y * 2 if self.training else y


class Looks(Base):
    """A stand-in is no Tensor, and a forward that asks takes the other branch without a sound."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y if isinstance(y, Tensor) else y * 2)


class Odd:
    def __init__(self, value: Any) -> None:
        self.value = value


class OddOutput(Base):
    def forward(self, x: Tensor) -> Odd:
        return Odd(self.b(self.a(x)))


def same(model: nn.Module, segments: Any, x: Tensor) -> bool:
    torch.manual_seed(1)
    whole = model(x)
    torch.manual_seed(1)
    return torch.equal(whole, compose(segments, (x,), {}))


@pytest.mark.parametrize(
    ("model", "cuts", "route"),
    [
        (NoGrad(), ["c"], "torch.export"),
        (NoGrad(), ["b", "c"], "torch.export"),
        (KeepsState(), ["b"], "torch.export"),
        (MakesTensors(), ["b"], "torch.fx"),
        (WritesMessage(), ["b"], "torch.fx"),
        (Mode(), ["b"], "torch.fx"),
        (Looks(), ["b"], "torch.export"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_takes_the_route_that_computes_the_same(model: nn.Module, cuts: list[str], route: str) -> None:
    segments = split(model, cuts=cuts, example=((X,), {}))
    assert {segment.route for segment in segments} == {route}
    for training in (True, False):
        model.train(training)
        assert same(model, segments, X)
        assert same(model, segments, torch.randn(3, 6))


def test_gradients_stop_where_the_model_stops_them() -> None:
    model = NoGrad()
    segments = split(model, cuts=["c"], example=((X,), {}))
    compose(segments, (X,), {}).sum().backward()
    assert model.b.weight.grad is None
    assert model.a.weight.grad is not None


def test_an_unknown_output_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="it returns a Odd"):
        split(OddOutput(), cuts=["b"], example=((X,), {}))


def test_only_tensors_and_integers_cross() -> None:
    class Asks(Base):
        def forward(self, x: Tensor) -> Tensor:
            device, dtype, shape = x.device, x.dtype, x.shape
            y = self.c(self.b(self.a(x)))
            return (y + torch.ones(6, device=device, dtype=dtype)).reshape(shape)

    model = Asks()
    segments = split(model, cuts=["b", "c"])
    message = segments[0](X)
    assert {type(leaf) for leaf in pytree.tree_leaves(message)} == {Tensor, int}
    sizes = [leaf.numel() for leaf in pytree.tree_leaves(message) if isinstance(leaf, Tensor)]
    assert sorted(sizes) == [0, 0, 24]
    assert same(model, segments, torch.randn(3, 6))


def test_a_message_is_not_written_to() -> None:
    model = WritesMessage()
    first, second = split(model, cuts=["b"])
    message = first(X)
    kept = message.clone()
    second(message.detach().requires_grad_()).sum().backward()
    assert torch.equal(message, kept)


def test_a_model_of_transformer_layers_is_cut_between_them() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    segments = split(model, cuts=["layers.1", "layers.2"], example=((torch.randn(4, 5, 8),), {}))
    assert same(model, segments, torch.randn(3, 5, 8))


def test_importing_loads_no_tracer() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import syngrad.partition; "
        "print([m for m in set(sys.modules) - before if m.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Branching(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.b = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            x = x * 1
        return self.b(self.d(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["a.1.training is False and was True", "d.p is 0.0 and was 0.5"])
def test_what_an_exported_graph_has_taken_for_granted_is_held_to(what: str) -> None:
    model, x = Branching(), torch.randn(4, 6)
    segments = split(model, cuts=["b"], example=((x,), {}))
    assert segments[0].route == "torch.export"
    compose(segments, (x,), {})
    model.eval()
    compose(segments, (x,), {})
    model.train()
    if what.startswith("a"):
        model.a[1].eval()
    else:
        model.d.p = 0.0
    with pytest.raises(TrainingError, match=f"{re.escape(what)} when the model was recorded"):
        compose(segments, (x,), {})


def test_arguments_without_names_of_their_own_are_recorded() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, **given: Tensor) -> Tensor:
            x = given["x"]
            if x.shape[0] > 2:
                x = x * given["factor"]
            return self.b(self.a(x))  # type: ignore[no-any-return]

    model, given = ByName(), {"x": torch.randn(4, 6), "factor": torch.randn(4, 1)}
    segments = split(model, cuts=["b"], example=((), given))
    assert segments[0].route == "torch.export"
    other = {"factor": torch.randn(5, 1), "x": torch.randn(5, 6)}
    assert torch.allclose(compose(segments, (), other), model(**other))
