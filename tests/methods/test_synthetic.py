"""Synthetic training against a twin written plainly by hand from the equations."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import pytest
import torch
from tests._support.models import CASES, CLASSES, assert_same, tensors_of
from tests._support.training import Descent, momentum_trainer
from torch import Tensor, nn
from torch.nn import functional as F

CASE = CASES["mlp"]


class Naive:
    """Synthetic training as one writes it without any thought of cost: everything kept, everything by autograd."""

    def __init__(self, model: nn.Sequential, starts: list[int], kind: str, delay: int, every: int, true: bool) -> None:
        bounds = [0, *starts, len(model)]
        self.pieces = [model[a:b] for a, b in itertools.pairwise(bounds)]
        widths = [piece[0].out_features for piece in self.pieces[:-1]]
        self.kind, self.delay, self.every, self.true = kind, delay, every, true
        shapes = {"linear": lambda w: [(w, w), (w,), (CLASSES + 1, w)], "head": lambda w: [(CLASSES, w), (CLASSES,)]}
        shape = "linear" if kind == "linear" else "head"
        self.estimators = [
            [torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in shapes[shape](w)] for w in widths
        ]
        self.weight = {"linear": 1.0, "local": 0.0, "sobolev": 0.001, "normalised": 0.03}[kind]
        self.power = [torch.zeros((), dtype=torch.float64) for _ in widths]
        self.waiting: list[deque[Any]] = [deque() for _ in widths]
        self.descent = Descent()
        self.t = 0

    def estimate(self, k: int, h: Tensor, y: Tensor) -> Tensor:
        """δ̂ for h, per sample."""
        if self.kind == "linear":
            W, b, C = self.estimators[k]
            return h @ W.T + b + C[y + 1]
        h = h.detach().requires_grad_()
        loss = F.cross_entropy(self.scores(k, h), y, reduction="sum")
        return torch.autograd.grad(loss, h, create_graph=True)[0]

    def scores(self, k: int, h: Tensor) -> Tensor:
        """What head k says of h."""
        V, c = self.estimators[k]
        if self.kind == "normalised":
            h = h / (h.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return h @ V.T + c

    def unit(self, k: int, wanted: Tensor) -> Tensor | float:
        """ρ of a head's derivative fit: a running mean of the power of what came back, slow downwards, at once up."""
        if self.kind == "linear":
            return 1.0
        now = wanted.square().sum() / len(wanted)
        self.power[k] = max(0.9 * self.power[k] + 0.1 * now, now)
        return self.power[k]

    def step(self, x: Tensor, y: Tensor) -> float:
        n, K = len(y), len(self.pieces)
        ms, hs, out = [], [], x
        for piece in self.pieces:
            ms.append(out.detach().requires_grad_())
            out = piece(ms[-1])
            hs.append(out)
        loss = F.cross_entropy(out, y)
        parameters: list[Tensor] = []
        gradients: list[Tensor | None] = []
        received: list[Tensor] = []
        for k, piece in enumerate(self.pieces):
            own = list(piece.parameters())
            top = loss if k == K - 1 else (hs[k] * (self.estimate(k, hs[k].detach(), y) / n).detach()).sum()
            *mine, down = torch.autograd.grad(top, [*own, ms[k]])
            parameters += own
            gradients += mine
            received.append(down)
        received = received[1:]
        if self.true:
            through, whole = [], x
            for piece in self.pieces:
                whole = piece(whole)
                through.append(whole)
            received = list(torch.autograd.grad(F.cross_entropy(whole, y), through[:-1]))
        for k in range(K - 1):
            if self.t % self.every == 0:
                self.waiting[k].append((self.t, hs[k].detach(), y, received[k]))
            fits = []
            if self.kind != "linear":
                fits.append(F.cross_entropy(self.scores(k, hs[k].detach()), y))
            while self.waiting[k] and self.waiting[k][0][0] <= self.t - self.delay:
                _, h, labels, g = self.waiting[k].popleft()
                if self.weight:
                    error = self.estimate(k, h, labels) - len(h) * g
                    unit = self.unit(k, len(h) * g)
                    if unit > 0:  # nothing has come back yet: there is nothing to fit to
                        fits.append(self.weight * error.square().sum() / len(h) / unit)
            found = torch.autograd.grad(sum(fits), self.estimators[k]) if fits else [None] * len(self.estimators[k])
            parameters += self.estimators[k]
            gradients += found
        self.descent.step(parameters, gradients)
        self.t += 1
        return loss.item()


NAMES = {
    "linear": "linear",
    "local": "local(norm=False)",
    "sobolev": "sobolev(norm=False, derivative=0.001)",
    "normalised": "sobolev(norm=True, derivative=0.03)",
}


@pytest.mark.parametrize("feedback", ["bootstrapped", "true"])
@pytest.mark.parametrize(("delay", "every"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("kind", NAMES)
def test_synthetic_is_what_one_writes_by_hand(kind: str, delay: int, every: int, feedback: str) -> None:
    model, twin = CASE.model(), CASE.model()
    naive = Naive(twin, [2, 4, 6], kind, delay, every, feedback == "true")
    options = {"feedback": feedback, "feedback_delay": delay, "feedback_every": every, "quality_every": 3}
    trainer = momentum_trainer(model, method="synthetic", estimator=NAMES[kind], **options)
    for x, y in CASE.batches(14, last=3):
        assert trainer.step((x, y)).item() == pytest.approx(naive.step(x, y), rel=1e-9)
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)
    for interface, theirs in zip(trainer.net.interfaces, naive.estimators, strict=True):
        ours = [p.detach() for p in interface.heads[0].parameters()]
        assert [p.shape for p in ours] == [p.shape for p in theirs]
        assert any(bool(p.any()) for p in ours)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-12)
            assert a.abs().max() < 1, "a run that diverges compares nothing but rounding"


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "backprop", "delayed(1)", "zero"])
def test_weights_change_at_the_end_of_a_minibatch_and_not_before(method: str, scope: str) -> None:
    model = CASE.model()
    seen: list[dict[str, Tensor]] = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if output.requires_grad:  # at the last stage, when every previous one has run
            seen.append(tensors_of(model))
        return F.cross_entropy(output, y)

    trainer = momentum_trainer(model, method=method, estimator="linear", loss=loss, optimizer_scope=scope)
    batches = CASE.batches(8)
    trainer.bind(batches[0])
    for batch in batches:
        seen.clear()
        before = tensors_of(model)
        trainer.step(batch)
        assert len(seen) == 1
        assert_same(seen[0], before)
        assert any(not torch.equal(before[name], value) for name, value in tensors_of(model).items())
