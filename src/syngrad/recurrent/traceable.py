"""Estimators whose updates can be traced forward in time: linear in all that they learn.

    ĝ(s) = B·W·φ(s, context)        W (q, k) is learnt; B (F, q), or the identity, and φ are fixed

φ gives k features of the state (F numbers a sample), of which the last is 1 and those before it are the context's.
∂ĝ/∂W = B ⊗ φ does not depend on W, so an eligibility trace of shape (F, q, k) a sample is all that has to be kept:

    linear                        B = 1, φ = [s, context, 1]              F·F·(F+1) numbers
    low_rank(rank=r)              B = 1, φ = [V·s, context, 1]            F·F·(r+1)
    low_rank(rank=r, outputs=q)   B orthonormal, φ = [V·s, context, 1]    F·q·(r+1)
    features(width=r)             B = 1, φ = [relu(V·s + v), context, 1]  F·F·(r+1)

V has orthonormal rows in `low_rank`. A trace is a sum of P ⊗ φ over the past, where P is what the Jacobians have made
of B. A sum of such products has no shorter form, so that what shortens it is fewer features, or fewer directions in
which an estimate may point. Of the two, `rank` is the one to begin with: all directions stay open.

Source: Pemberton & Costa 2024 (arXiv 2401.07044) for `linear`, and for a fixed hidden layer, of which only what follows
is learnt (`features`). `low_rank` is not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.checks import whole
from syngrad.errors import ConfigError, MessageError, unknown
from syngrad.estimators.base import Binding, GradientEstimator, bad_label
from syngrad.estimators.registry import NAMED
from syngrad.estimators.regressors import Zero
from syngrad.parse_call import parse_call


class Traceable(GradientEstimator):
    """ĝ = B·W·φ, with W from zero. For an estimator of your own give :meth:`describe`, and `width`, what it makes.

    Args:
        outputs: q, the columns of B, fewer than the state's numbers; None for the identity.
        context: whether it looks at one, where one is given; a wide one lengthens the traces by as much.
    """

    #: features that `describe` makes of a state
    width: int = 0
    basis: Tensor | None

    def __init__(self, outputs: int | None = None, context: bool = True) -> None:
        super().__init__()
        if not isinstance(context, bool):
            raise ConfigError(f"an estimator's context must be True or False, got {context!r:.40}")
        if not context:  # a class may say so too
            self.context = False
        self.outputs = outputs if outputs is None else _least("outputs", outputs)

    def build(self, binding: Binding) -> None:
        """W (q, k) and, with `outputs`, B (F, q) with orthonormal columns."""
        features = binding.features
        kind, size = binding.context.kind, binding.context.size
        if kind not in ("none", "vector", "labels"):
            raise ConfigError(f"an online estimator's context is numbers or labels, one or more a sample, got {kind}")
        self.sees = kind if self.context else "none"
        self.context_size = size if self.sees != "none" else 0
        self.prepare(features)
        if self.outputs is not None and self.outputs > features:
            raise ConfigError(f"outputs={self.outputs} is more than the state's {features} numbers; leave it out")
        self.register_buffer(
            "basis", None if self.outputs is None else _orthonormal(self.outputs, features).t().contiguous()
        )
        rows = features if self.outputs is None else self.outputs
        self.weight = nn.Parameter(torch.zeros(rows, self.width + self.context_size + 1))

    def prepare(self, features: int) -> None:
        """Make what is fixed, for a state of so many numbers; sets `width`."""

    def describe(self, h: Tensor) -> Tensor:
        """(n, F) → (n, width): fixed features of the state."""
        raise ConfigError(f"{type(self).__name__} has no describe(h); a traceable estimator needs one")

    def features(self, h: Tensor, context: Any) -> Tensor:
        """φ, (n, k), detached."""
        with torch.no_grad():
            own = self.own(h)
            parts = [self.describe(own)]
            if self.sees != "none":
                parts.append(self._context(context, own))
            parts.append(own.new_ones(own.shape[0], 1))
            return torch.cat(parts, 1)

    def predict(self, features: Tensor) -> Tensor:
        """ĝ, (n, F), from φ."""
        made = features @ self.weight.t()
        return made if self.basis is None else made @ self.basis.t()

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """(n, F) → (n, F)."""
        return self.predict(self.features(h, context))

    def _context(self, context: Any, h: Tensor) -> Tensor:
        if not isinstance(context, Tensor) or context.shape[:1] != h.shape[:1]:
            got = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise MessageError(f"the estimator was bound with {self.sees} as context for each sample, got {got}")
        if self.sees == "vector":
            made = context.detach().reshape(h.shape[0], -1).to(h.dtype)
            if made.shape[1] != self.context_size:
                raise MessageError(f"the context had {self.context_size} numbers a sample, and {made.shape[1]} now")
            return made
        if context.dtype == torch.bool or context.is_floating_point() or context.dim() != 1:
            raise MessageError(f"the context was labels (n,) and is {context.dtype} {tuple(context.shape)} now")
        if (error := bad_label(context, self.context_size)) is not None:
            raise error
        counts = (context >= 0).unsqueeze(1)
        return F.one_hot(context.clamp_min(0).long(), self.context_size).to(h.dtype) * counts


class Linear(Traceable):
    """ĝ = W·[s, context, 1]: the paper's."""

    def prepare(self, features: int) -> None:
        """All of the state's numbers are features."""
        self.width = features

    def describe(self, h: Tensor) -> Tensor:
        """The state itself."""
        return h


class LowRank(Traceable):
    """ĝ = W·[V·s, context, 1] with `rank` fixed orthonormal directions V, or B·W·[…] with `outputs` of them."""

    project: Tensor

    def __init__(self, rank: int = 16, outputs: int | None = None, context: bool = True) -> None:
        super().__init__(outputs, context)
        self.rank = _least("rank", rank)

    def prepare(self, features: int) -> None:
        """V (rank, F)."""
        if self.rank > features:
            raise ConfigError(f"rank={self.rank} is more than the state's {features} numbers; use 'linear'")
        self.width = self.rank
        self.register_buffer("project", _orthonormal(self.rank, features))

    def describe(self, h: Tensor) -> Tensor:
        """V·s."""
        return h @ self.project.t()


class Features(Traceable):
    """ĝ = W·[relu(V·s + v), context, 1]: a hidden layer that stays as it was drawn, not linear in the state."""

    def __init__(self, width: int = 64, outputs: int | None = None, context: bool = True) -> None:
        super().__init__(outputs, context)
        self.width = _least("width", width)

    def prepare(self, features: int) -> None:
        """V (width, F) and v, as `nn.Linear` draws them."""
        self.hidden = nn.Linear(features, self.width).requires_grad_(False)

    def describe(self, h: Tensor) -> Tensor:
        """relu(V·s + v)."""
        return torch.relu(self.hidden(h))


#: the estimators that the online trainer knows by name
ONLINE: dict[str, Callable[..., GradientEstimator]] = {
    "linear": Linear,
    "low_rank": LowRank,
    "features": Features,
    "zero": Zero,
}


def template(spec: Any) -> GradientEstimator:
    """An unbound estimator from a name with options, or an instance or a class of one's own.

    Raises:
        ConfigError: for what cannot be traced.
    """
    if isinstance(spec, str):
        return _parse(spec)
    made = spec() if isinstance(spec, type) and issubclass(spec, Traceable) else spec
    if not isinstance(made, Traceable | Zero):
        raise ConfigError(
            f"{type(made).__name__} cannot be traced; online, an estimator is one of {', '.join(ONLINE)}, or a "
            "Traceable of your own"
        )
    return made


def _parse(text: str) -> GradientEstimator:
    try:
        name, options = parse_call(text)
    except ValueError:
        raise ConfigError(
            f"cannot read estimator {text!r:.60}; write a name, or a name with options: low_rank(rank=16)"
        ) from None
    if name not in ONLINE and name in NAMED:
        raise ConfigError(
            f"estimator {name!r} cannot be traced, as it is not linear in what it learns; online use one of "
            f"{', '.join(ONLINE)}"
        )
    if name not in ONLINE:
        raise unknown("online estimator", name, ONLINE)
    try:
        return ONLINE[name](**options)
    except TypeError:
        raise ConfigError(
            f"estimator {text!r:.60} has an option that {name!r} does not take; low_rank takes rank and outputs, "
            "features takes width and outputs, linear takes outputs, and all take context"
        ) from None


def _least(name: str, value: Any) -> int:
    count = whole(value)
    if count is None or count < 1:
        raise ConfigError(f"an estimator's {name} must be a whole number of at least 1, got {name}={value!r:.40}")
    return count


def _orthonormal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))
