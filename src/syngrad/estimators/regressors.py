"""Estimators that predict the received gradient itself, from h and, if wished, the labels.

`linear` with labels is the paper's cDNI, without labels its plain DNI; `mlp` and `conv` are the paper's deeper models.
All are fitted by squared error to what comes back. Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from syngrad import checks
from syngrad.errors import ConfigError, MessageError
from syngrad.estimators.base import Binding, Context, GradientEstimator, add_grad, bad_label, exact, zero_
from syngrad.estimators.closed_form import label_grads, linear_regressor_grads


class Zero(GradientEstimator):
    """δ̂ = 0: nothing comes. The floor under every other estimator; stages before the last one stand still."""

    wants_feedback = False

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """Zeros in the shape of h."""
        return torch.zeros_like(h)

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """Zeros; `fit` will want none of this run."""
        return torch.zeros_like(h), None

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        """What has no parameters learns from no gradient."""


class LabelTable(nn.Module):
    """The part of a regressor that the context gives: C[y] for labels, a linear map of a vector; starts at zero.

    One row more than there are classes, the first, takes labels that do not count (−100, padding).
    """

    def __init__(self, context: Context, features: int) -> None:
        super().__init__()
        self.kind, self.size = context.kind, context.size
        rows = context.size + 1 if context.kind in ("labels", "tokens") else context.size
        self.weight = nn.Parameter(torch.zeros(rows, features))

    def rows(self, context: Any, n: int) -> Tensor:
        """The context as (n,) rows of the table, or (n, size) vectors, one for each row of the flattened message."""
        if not isinstance(context, Tensor):
            raise MessageError(
                f"the estimator was bound with {self.kind} as context, but now got {type(context).__name__}"
            )
        flat = context.reshape(context.shape[0], -1) if self.kind == "vector" else context.reshape(-1)
        if self.kind == "vector" and flat.shape[1] != self.size:
            raise MessageError(f"the context had {self.size} numbers a sample, and {flat.shape[1]} now; keep it alike")
        if flat.shape[0] != n and self.kind == "tokens" and context.dim() > 1 and not n % context.shape[0]:
            # another sequence than the target's, an encoder's say: none of its tokens has a label of its own
            return torch.zeros(n, dtype=torch.int64, device=flat.device)
        if flat.shape[0] != n:
            if flat.shape[0] == 0 or n % flat.shape[0]:
                raise MessageError(f"a context of shape {tuple(context.shape)} does not fit a message of {n} rows")
            flat = flat.repeat_interleave(n // flat.shape[0], 0)
        return flat if self.kind == "vector" else (flat.long() + 1).clamp_min_(0)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, features)."""
        if self.kind == "vector":
            return rows.to(self.weight.dtype) @ self.weight
        try:
            return self.weight.index_select(0, rows)
        except (IndexError, RuntimeError) as error:
            raise bad_label(rows - 1, self.size) or error from error

    def add_grads(self, rows: Tensor, residual: Tensor) -> None:
        """Accumulate ∂C for the gradient `residual` (n, features)."""
        if self.kind == "vector":
            add_grad(self.weight, rows.to(residual.dtype).t() @ residual)
        else:
            add_grad(self.weight, label_grads(rows, residual, self.weight.shape[0]))


class Regressor(GradientEstimator):
    """What the regressors share: whether they see labels, and the rows they work on.

    Vectors and sequences are flattened to rows of one width, (n, f) or (n·t, f): a sequence's tokens share weights.
    Images are rows of all their features where the estimator mixes everything, and stay images for convolutions.
    """

    def __init__(self, context: bool = True) -> None:
        super().__init__()
        self.context = context
        self.labels: LabelTable | None = None

    def label_table(self, binding: Binding, features: int) -> LabelTable | None:
        """The table for this binding's context, or None when there is none or it is not wanted."""
        kinds = ("labels", "tokens", "vector") if binding.kind == "sequence" else ("labels", "vector")
        if not self.context or binding.context.kind not in kinds:
            return None
        return LabelTable(binding.context, features)

    def row_width(self, binding: Binding) -> int:
        """The width of a row: a token's features in a sequence, all features otherwise."""
        return binding.width if binding.kind == "sequence" else binding.features


class Linear(Regressor):
    """δ̂ = W·h + C[y] + b, all starting at zero: one linear layer on [h, one-hot y], fitted in closed form.

    On sequences it works token by token, on images pixel by pixel: W mixes channels, and each class has a picture C[y].
    """

    rowwise = True
    map: nn.Linear

    def build(self, binding: Binding) -> None:
        """W (width, width), b (width,), C (classes, features of a row)."""
        width = binding.width
        self.image = binding.kind in ("image", "volume")
        self.map = zero_(nn.Linear(width, width))
        self.labels = self.label_table(binding, binding.features if self.image else width)

    def rows(self, h: Tensor) -> Tensor:
        """(rows, width): channels last for images, so that one matrix serves every kind of message."""
        return (h.movedim(1, -1) if self.image else h).reshape(-1, self.map.in_features)

    def shaped(self, rows: Tensor, h: Tensor) -> Tensor:
        """Rows back in the shape of h."""
        if not self.image:
            return rows.view(h.shape)
        return rows.view(h.shape[0], *h.shape[2:], h.shape[1]).movedim(-1, 1)

    def label_rows(self, context: Any, h: Tensor) -> Tensor | None:
        """The context's rows: one a sample for images, one a row otherwise."""
        if self.labels is None:
            return None
        n = h.shape[0] if self.image else h.numel() // self.map.in_features
        return self.labels.rows(context, n)

    def bare(self, h: Tensor) -> bool:
        """Whether the estimate of h is one matrix product: rows, in the weights' own dtype, without labels."""
        return h.dim() == 2 and not self.image and self.labels is None and h.dtype == self.map.weight.dtype

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """(n, …) → (n, …)."""
        predicted = self.shaped(self.map(self.rows(h.to(self.map.weight.dtype))), h)
        labels = self.label_rows(context, h)
        if labels is None or self.labels is None:
            return predicted
        by_label: Tensor = self.labels(labels)
        return predicted + by_label.view(h.shape)

    @torch.no_grad()
    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """scale·δ̂ without a graph; what is kept is the estimate itself."""
        with exact(h):
            if self.bare(h):
                scaled = torch.addmm(self.map.bias, h, self.map.weight.t(), beta=scale, alpha=scale)
            else:
                scaled = self(h, context).mul_(scale).to(h.dtype)
        return scaled, scaled if keep else None

    @torch.no_grad()
    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        """2·(scale·δ̂ − g) through the linear map, in closed form."""
        with exact(h):
            if kept is None and self.bare(h) and received.dtype == h.dtype:
                residual = torch.addmm(received, h, self.map.weight.t(), beta=-2.0, alpha=2.0 * scale)
                residual.add_(self.map.bias, alpha=2.0 * scale)
            else:
                scaled = kept if kept is not None else self(h, context) * scale
                residual = scaled.sub(received).mul_(2).to(self.map.weight.dtype)
            grad_weight, grad_bias = linear_regressor_grads(self.rows(h.to(self.map.weight.dtype)), self.rows(residual))
            add_grad(self.map.weight, grad_weight)
            add_grad(self.map.bias, grad_bias)
            labels = self.label_rows(context, h)
            if labels is not None and self.labels is not None:
                self.labels.add_grads(labels, residual.reshape(labels.shape[0], -1))


class Deep(Regressor):
    """What `mlp` and `conv` share: hidden × (layer, batch norm, ReLU), then a layer that starts at zero."""

    def __init__(self, hidden: int, width: int | None, batch_norm: bool, context: bool) -> None:
        super().__init__(context)
        check_hidden(hidden)
        self.hidden, self.batch_norm = hidden, batch_norm
        self.hidden_width = None if width is None else whole("width", width, 1)

    def stack(
        self, binding: Binding, width: int, layer: Callable[[int, int], nn.Module], norm: Callable[[int], nn.Module]
    ) -> None:
        """Make the layers, from `width` to `width`: `first`, after which labels are added, `rest` and `last`."""
        sizes = [width] + [self.hidden_width or width] * self.hidden
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [layer(a, b), *([norm(b)] if self.batch_norm else []), nn.ReLU()]
        self.labels = self.label_table(binding, sizes[1] if self.hidden else width)
        self.first = layers[0] if self.hidden else None
        self.rest = nn.Sequential(*layers[1:])
        self.last = zero_(layer(sizes[-1], width))

    def through(self, x: Tensor, added: Tensor | float | None) -> Tensor:
        """The layers on x, in their dtype; what the labels give is added after the first one."""
        x = x.to(next(self.last.parameters()).dtype)
        if self.first is None:
            x = self.last(x)
            return x if added is None else x + added
        x = self.first(x)
        x = self.last(self.rest(x if added is None else x + added))
        return x


class MLP(Deep):
    """hidden × (Linear, batch norm, ReLU), then a Linear that starts at zero; 0 to 3 hidden layers, labels joined to h.

    The paper's plain estimator is `MLP(hidden=2, width=1024, context=False)`. Without hidden layers it is the linear
    estimator, fitted through autograd.

    Args:
        hidden: layers before the last, 0 to 3.
        width: of those; None: that of a row.
        batch_norm: whether each of them is batch-normalised.
        context: whether it sees labels.
    """

    def __init__(
        self, hidden: int = 1, width: int | None = None, batch_norm: bool = True, context: bool = True
    ) -> None:
        super().__init__(hidden, width, batch_norm, context)

    def build(self, binding: Binding) -> None:
        """Layers from the width of a row; an image's row is all its features."""
        self.features = self.row_width(binding)
        self.stack(binding, self.features, nn.Linear, nn.BatchNorm1d)

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """(n, …) → (n, …)."""
        rows = h.reshape(-1, self.features)
        added = None if self.labels is None else self.labels(self.labels.rows(context, rows.shape[0]))
        return self.through(rows, added).view(h.shape)


class Conv(Deep):
    """hidden × (conv, batch norm, ReLU), then a conv that starts at zero; labels enter as constant planes.

    For images and, with one dimension, sequences. The paper's App. C.1 estimator is `Conv(hidden=2, width=128,
    kernel=5, context=False)`.

    Args:
        hidden: convolutions before the last, 0 to 3.
        width: their channels; None: those of the message.
        kernel: the side of each; odd, so that the picture keeps its size.
        batch_norm: whether each of them is batch-normalised.
        context: whether it sees labels.
    """

    def __init__(
        self, hidden: int = 1, width: int | None = None, kernel: int = 3, batch_norm: bool = True, context: bool = True
    ) -> None:
        super().__init__(hidden, width, batch_norm, context)
        if whole("kernel", kernel, 1) % 2 == 0:
            raise ConfigError(f"conv takes an odd kernel size, got kernel={kernel!r}")
        self.kernel = kernel

    def build(self, binding: Binding) -> None:
        """Convolutions of the message's own dimension."""
        if binding.kind not in ("image", "sequence"):
            raise ConfigError(
                f"estimator 'conv' needs images or sequences, but the message is a {binding.kind} of shape "
                f"{tuple(binding.shape)}; use 'linear', 'mlp' or 'low_rank'"
            )
        self.sequence = binding.kind == "sequence"
        conv = partial(nn.Conv1d if self.sequence else nn.Conv2d, kernel_size=self.kernel, padding=self.kernel // 2)
        self.stack(binding, binding.width, conv, nn.BatchNorm1d if self.sequence else nn.BatchNorm2d)

    def planes(self, h: Tensor, context: Any) -> Tensor | float:
        """The labels' part, (n, channels, 1, …) or, for token labels, (n, channels, t)."""
        if self.labels is None:
            return 0.0
        if self.labels.kind == "tokens" and self.sequence:
            tokens: Tensor = self.labels(self.labels.rows(context, h.shape[0] * h.shape[2]))
            return tokens.view(h.shape[0], h.shape[2], -1).movedim(1, 2)
        rows: Tensor = self.labels(self.labels.rows(context, h.shape[0]))
        return rows.view(*rows.shape, *(1 for _ in h.shape[2:]))

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """(n, c, y, x) or (n, t, f) → the same."""
        x = h.movedim(-1, 1) if self.sequence else h
        x = self.through(x, self.planes(x, context))
        return x.movedim(1, -1) if self.sequence else x


class LowRank(Regressor):
    """δ̂ = V·(U·h + E[y]) + C[y] + b with `rank` numbers in the middle; V, C and b start at zero.

    For messages where a full matrix would cost as much as a layer: 2·rank multiply-adds a feature instead of `width`.
    Images are taken whole, so that it sees every pixel.

    Args:
        rank: numbers in the middle.
        context: whether it sees labels.
    """

    def __init__(self, rank: int = 16, context: bool = True) -> None:
        super().__init__(context)
        self.rank = whole("rank", rank, 1)

    def build(self, binding: Binding) -> None:
        """U (rank, f), V (f, rank)."""
        self.features = self.row_width(binding)
        self.down = nn.Linear(self.features, self.rank, bias=False)
        self.up = zero_(nn.Linear(self.rank, self.features))
        self.labels = self.label_table(binding, self.features)
        self.inner = self.label_table(binding, self.rank)
        if self.inner is not None:
            nn.init.normal_(self.inner.weight, std=0.1)

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """(n, …) → (n, …)."""
        x = h.reshape(-1, self.features).to(self.up.weight.dtype)
        inner = self.down(x)
        if self.labels is None or self.inner is None:
            return self.up(inner).view(h.shape)  # type: ignore[no-any-return]
        rows = self.labels.rows(context, x.shape[0])
        return (self.up(inner + self.inner(rows)) + self.labels(rows)).view(h.shape)  # type: ignore[no-any-return]


def whole(name: str, value: Any, least: int) -> int:
    """`value` if it is a whole number of at least `least`."""
    count = checks.whole(value)
    if count is None or count < least:
        raise ConfigError(f"an estimator's {name} must be a whole number of at least {least}, got {name}={value!r}")
    return count


def check_hidden(hidden: Any) -> None:
    """0 to 3 hidden layers, as the paper has them."""
    if whole("hidden", hidden, 0) > 3:
        raise ConfigError(f"an estimator takes 0 to 3 hidden layers, got hidden={hidden!r}")
