"""What the contract suite puts estimators through: their specifications, and a problem for each kind of message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.estimators import Binding, Context, GradientEstimator, make, zero_
from syngrad.estimators.registry import EstimatorSpec

N, CLASSES, TIME = 6, 3, 4
SHAPES = {"vector": (5,), "sequence": (TIME, 5), "image": (2, 4, 3)}


class OwnWithContext(nn.Module):
    """A user's own module, sized from the binding by the factory that makes it."""

    def __init__(self, binding: Binding) -> None:
        super().__init__()
        self.map = nn.Linear(binding.features, binding.features)
        self.shift = nn.Parameter(torch.randn(binding.features))

    def forward(self, h: Tensor, context: Any) -> Tensor:
        level = h.new_zeros(len(h), 1)
        if context is not None:
            level = context.reshape(len(h), -1).clamp_min(0).to(h.dtype).mean(1, keepdim=True)
        return (self.map(h.flatten(1)) + level * self.shift).view(h.shape)


class OwnWithoutContext(nn.Module):
    def __init__(self, binding: Binding) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(binding.features, binding.features))

    def forward(self, h: Tensor) -> Tensor:
        return self.body(h).view(h.shape)


class OwnEstimator(GradientEstimator):
    """A user's own class in the library's protocol."""

    def build(self, binding: Binding) -> None:
        self.map = zero_(nn.Linear(binding.shape[-1], binding.shape[-1]))

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        return self.map(h)


def own_with_context(binding: Binding) -> nn.Module:
    return OwnWithContext(binding)


def own_without_context(binding: Binding) -> nn.Module:
    return OwnWithoutContext(binding)


HEADS = (
    "default",
    *(f"{name}(hidden={n}, width=8)" for name in ("local", "sobolev") for n in range(3)),
    *(f"{name}(hidden={n}, width=8, norm=False)" for name in ("local", "sobolev") for n in range(2)),
    "local(channels=0, pool=2)",
)
NAMED = (
    *("zero", "linear", "linear(context=False)", "low_rank", "low_rank(rank=2, context=False)"),
    *(f"mlp(hidden={n}, width=8, batch_norm=False)" for n in (0, 1, 3)),
    *("mlp(hidden=2, width=8, batch_norm=True)", "mlp(hidden=2, context=False, batch_norm=False)", "mlp"),
    *(f"conv(hidden={n}, batch_norm=False)" for n in (0, 1, 3)),
    *("conv", "conv(hidden=1, width=4, kernel=1, batch_norm=False, context=False)"),
    *HEADS,
)
OWN: dict[str, EstimatorSpec] = {
    "own(h, context)": own_with_context,
    "own(h)": own_without_context,
    "own GradientEstimator": OwnEstimator,
}
SPECS: dict[str, EstimatorSpec] = {**{name: name for name in NAMED}, **OWN}
#: those that fit the gradient that comes back beside their own loss
SOBOLEV = [name for name in HEADS if not name.startswith("local")]
NO_CONV = [name for name in SPECS if not name.startswith("conv")]


@dataclass(frozen=True)
class Problem:
    """A message, its context, a loss, and the gradient a teacher network would send back."""

    binding: Binding
    h: Tensor
    context: Any
    received: Tensor
    scale: float

    def part(self, rows: slice) -> Problem:
        context = None if self.context is None else self.context[rows]
        return replace(self, h=self.h[rows], context=context, received=self.received[rows])

    def times(self, factor: float) -> Problem:
        return replace(self, received=self.received * factor, scale=self.scale * factor)

    def twice(self) -> Problem:
        """Every sample two times; the loss is a mean, so each counts half as much."""
        context = None if self.context is None else torch.cat([self.context] * 2)
        received = torch.cat([self.received] * 2) / 2
        return replace(self, h=torch.cat([self.h] * 2), context=context, received=received, scale=self.scale / 2)


def free_loss(output: Tensor, _: Any) -> Tensor:
    return (output - 1).square().mean()


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.reshape(-1, CLASSES), target.reshape(-1))


def token_count(target: Tensor) -> float:
    return float((target != -100).sum())


class Teacher(nn.Module):
    def __init__(self, kind: str, context: str) -> None:
        super().__init__()
        shape = SHAPES[kind]
        self.by_token = context == "tokens"
        self.map = nn.Linear(shape[-1] if self.by_token else torch.Size(shape).numel(), CLASSES)

    def forward(self, h: Tensor) -> Tensor:
        return self.map(h if self.by_token else h.flatten(1))


def problem(kind: str, context: str, dtype: torch.dtype = torch.float64) -> Problem:
    """A deterministic example for a kind of message and of context."""
    torch.manual_seed(1)
    h = torch.randn(N, *SHAPES[kind], dtype=dtype)
    teacher = Teacher(kind, context).to(dtype)
    with torch.no_grad():
        scores = teacher(h)
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    count, target, seen = None, None, Context()
    if context == "labels":
        target, seen = scores.argmax(-1), Context("labels", CLASSES)
    elif context == "tokens":
        target, seen = scores.argmax(-1), Context("tokens", CLASSES)
        target[0, 1] = target[3, 0] = -100
        loss, count = token_loss, token_count
    elif context == "vector":
        target, loss, seen = scores + torch.randn_like(scores), F.mse_loss, Context("vector", CLASSES)
    else:
        loss = free_loss
    output = torch.Size((TIME, CLASSES) if context == "tokens" else (CLASSES,))
    scale = 1.0 / (count(target) if count is not None else N)
    leaf = h.clone().requires_grad_()
    (received,) = torch.autograd.grad(loss(teacher(leaf), target), leaf)
    binding = Binding(torch.Size(SHAPES[kind]), dtype, torch.device("cpu"), seen, output, loss, count)
    return Problem(binding, h, target, received, scale)


class Case(NamedTuple):
    name: str
    kind: str
    context: str


CONTEXTS = {
    "vector": ("labels", "vector", "none"),
    "sequence": ("labels", "tokens", "vector", "none"),
    "image": ("labels", "vector", "none"),
}
#: those that are taken through every context where a test asks for it
CORE = (
    *("zero", "linear", "low_rank", "mlp", "mlp(hidden=1, width=8, batch_norm=False)", "conv", "default"),
    *("local(hidden=0, width=8)", "sobolev(hidden=0, width=8)", "sobolev(hidden=1, width=8)"),
    *("sobolev(hidden=0, width=8, norm=False)", "own(h, context)"),
)


def cases(core: tuple[str, ...] = ()) -> list[Case]:
    """Every name with every kind of message; contexts in turn from name to name, or all for the names in `core`.

    A head on vectors with labels is there always: this is where its closed form serves.
    """
    found = []
    for i, name in enumerate(SPECS):
        for kind, contexts in CONTEXTS.items():
            if name.startswith("conv") and kind == "vector":
                continue
            chosen = set(contexts) if name in core else {contexts[i % len(contexts)]}
            if name in HEADS and kind == "vector":
                chosen.add("labels")
            found += [Case(name, kind, context) for context in contexts if context in chosen]
    return found


Check = Callable[[str, str, str], None]


def over(chosen: Iterable[Case]) -> Callable[[Check], Callable[[str], None]]:
    """A test of (name, kind, context) as one test a name, which goes through that name's cases one after another."""
    by_name: dict[str, list[Case]] = {}
    for case in chosen:
        by_name.setdefault(case.name, []).append(case)

    def decorate(check: Check) -> Callable[[str], None]:
        def run(name: str) -> None:
            for case in by_name[name]:
                try:
                    check(*case)
                except BaseException as error:
                    error.add_note(f"in the case {case}")
                    raise

        run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
        return pytest.mark.parametrize("name", list(by_name))(run)

    return decorate


every = over(cases(CORE))
in_turn = over(cases())
#: batch normalisation ties the samples of a batch together
sample_by_sample = over(c for c in cases() if c.name not in ("mlp", "conv") and "batch_norm=True" not in c.name)
#: a user's own module starts where the user likes
from_zero = over(c for c in cases() if c.name not in ("own(h, context)", "own(h)"))


def made(name: str, p: Problem, random: bool = True) -> GradientEstimator:
    """A bound estimator; with `random`, at weights where nothing is zero any more."""
    torch.manual_seed(2)
    estimator = make(SPECS.get(name, name), p.binding)
    if random:
        with torch.no_grad():
            for parameter in estimator.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return estimator


def learn(estimator: GradientEstimator, p: Problem, keep: bool = True) -> Tensor:
    """One estimate and one fit, as a step makes them; what was estimated."""
    estimate, kept = estimator.estimate(p.h, p.context, p.scale, keep and estimator.wants_feedback)
    if estimator.wants_feedback:
        estimator.fit(p.h, p.context, p.received, p.scale, kept)
    return estimate


def gradients(estimator: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in estimator.named_parameters() if p.grad is not None}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, grad in a.items():
        torch.testing.assert_close(grad, b[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
