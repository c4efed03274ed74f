"""Eligibility traces, and the Jacobians they move by: what every past state has to hear of an error found now.

With ĝ = B·W·φ (see traceable.py), P_{r→t} = J_t·…·J_{r+1} and decay d = γλ, the trace of one sample is

    e_t = Σ_{r ≤ t} d^{t−r}·(P_{r→t}·B) ⊗ φ(s_r)      (F, q, k)
        = d·J_t·e_{t−1} + B ⊗ φ(s_t)

and the error δ (F,) of the step from t to t + 1 moves W by δ·e_t. Memory: (F, q, k) a sample, and a scratch for a few
samples, whatever the sequence's length. One step costs F·F·q·k multiply-adds a sample. Where d = 0 only φ(s_t) is kept.

The rows of J_t = ∂s_t/∂s_{t−1} are pulled back through the step's own graph, as many at once as autograd can batch, so
that any core does: PyTorch's fused layers, its cells, modules of the user's own. Where a core's backward cannot be
batched (an `autograd.Function` without a rule for `vmap`), they are pulled back one by one, slower and no less exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import ConfigError, TrainingError, warn
from syngrad.recurrent.layout import Layout
from syngrad.recurrent.traceable import LowRank, Traceable

#: numbers that move on at once, beside the trace itself
SCRATCH = 2**22
#: rows that go back at once; bounds the memory of a step's backward at so many times a plain one
ROWS = 64


class Traces:
    """The traces of n samples.

    Args:
        estimator: what they are of.
        decay: d = γλ, a step.
        limit: of their memory, in bytes.
    """

    def __init__(self, estimator: Traceable, decay: float, limit: int) -> None:
        self.estimator, self.decay, self.limit = estimator, decay, limit
        #: φ of the last state, (n, k), zero for samples that take no part; None before the first
        self.features: Tensor | None = None
        #: e, (n, F, q·k), None where the decay is 0 or nothing has begun
        self.held: Tensor | None = None
        # room for e, kept from one sequence to the next, and for a part of it while it moves on
        self._room: Tensor | None = None
        self._scratch: Tensor | None = None
        self._warned = False

    def clear(self) -> None:
        """Begin new sequences."""
        self.features = self.held = None

    def prepare(self, n: int) -> None:
        """Make room for the traces of so many samples.

        Raises:
            ConfigError: where they would not fit; it names the memory, and what to do.
        """
        weight, basis = self.estimator.weight, self.estimator.basis
        wanted = (n, self._state, weight.numel())
        if self.decay == 0.0 or (self._room is not None and self._room.shape == wanted):
            return
        size = n * self._state * weight.numel() * weight.element_size()
        self._room = None
        if size <= self.limit:
            try:
                self._room = weight.new_empty(wanted)
            except (RuntimeError, MemoryError) as error:
                raise TrainingError(
                    f"there is no memory for traces of {n} × {self._state} × {weight.numel()} numbers; use "
                    "'low_rank(rank=16)', a smaller batch, or lam=0"
                ) from error
            return
        shorter = "'low_rank(rank=16)' or 'low_rank(rank=16, outputs=16)'"
        if basis is not None:
            shorter = "fewer outputs"
        elif isinstance(self.estimator, LowRank):
            shorter = f"'low_rank(rank={self.estimator.rank}, outputs=16)'"
        if self.estimator.context_size:
            shorter += f", context=False in place of the {self.estimator.context_size} numbers that it sees"
        shape = " × ".join(map(str, (self._state, *weight.shape)))
        raise ConfigError(
            f"the traces of {type(self.estimator).__name__} take {size / 2**20:,.0f} MiB ({n} samples × {shape} "
            f"numbers), more than trace_limit={self.limit / 2**20:,.0f} MiB; use "
            f"{shorter}, a smaller batch, lam=0, or a higher trace_limit (in bytes)"
        )

    def gradient(self, delta: Tensor) -> Tensor:
        """Σ over samples of δ·e, in the shape of W; `delta` is (n, F)."""
        assert self.features is not None
        weight = self.estimator.weight
        if self.held is None:
            basis = self.estimator.basis
            return (delta if basis is None else delta @ basis).t() @ self.features
        made = self._product(delta)
        # one check of the sum is enough: only traces that have outgrown their dtype spoil it where δ is finite
        if not bool(torch.isfinite(made).all()) and bool(torch.isfinite(delta).all()):
            self._drop()
            made = self._product(delta)
        return made.view_as(weight)

    def advance(self, jacobian: Tensor | None, features: Tensor, gone: Tensor | None) -> None:
        """From s_{t−1} to s_t.

        Args:
            jacobian: J_t, (n, F, F); None where nothing came before.
            features: φ(s_t), (n, k).
            gone: (n,) of bool, samples whose sequences have ended: their traces are zero afterwards.
        """
        if gone is not None:
            features = features.masked_fill(gone.unsqueeze(1), 0.0)
        if self.decay > 0.0:
            if self.held is None or jacobian is None:
                self.prepare(features.shape[0])
                assert self._room is not None
                self.held = self._room.zero_()
            else:
                self._move(self.held, jacobian, gone)
            self._add(features)
        self.features = features

    def state_dict(self) -> dict[str, Any]:
        """φ and e as they are, not copied: they change in place with the next step."""
        return {"features": self.features, "held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: for traces of another estimator or decay.
        """
        features, held = state["features"], state["held"]
        wished = self.decay > 0.0 and features is not None
        if (held is not None) != wished:
            raise ValueError("it has traces and λ·γ = 0, or the other way round")
        weight = self.estimator.weight
        if held is not None and held.shape[1:] != (self._state, weight.numel()):
            raise ValueError(f"its traces are of shape {tuple(held.shape[1:])} a sample")
        self.features = None if features is None else features.to(weight)
        self.held = None if held is None else held.to(weight, copy=True)

    @property
    def _state(self) -> int:
        basis = self.estimator.basis
        return self.estimator.weight.shape[0] if basis is None else basis.shape[0]

    def _product(self, delta: Tensor) -> Tensor:
        assert self.held is not None
        return delta.reshape(1, -1) @ self.held.view(delta.numel(), -1)

    def _move(self, held: Tensor, jacobian: Tensor, gone: Tensor | None) -> None:
        """d·J·e, in place and some samples at a time."""
        steps = jacobian.to(held.dtype) * self.decay
        if gone is not None:
            held[gone] = 0.0
        some = max(1, SCRATCH // held[0].numel())
        first = held[:some]
        if self._scratch is None or self._scratch.shape != first.shape:
            self._scratch = torch.empty_like(first)
        for start in range(0, held.shape[0], some):
            part = held[start : start + some]
            part.copy_(torch.bmm(steps[start : start + some], part, out=self._scratch[: part.shape[0]]))

    def _add(self, features: Tensor) -> None:
        """Plus B ⊗ φ."""
        assert self.held is not None
        weight, basis = self.estimator.weight, self.estimator.basis
        shaped = self.held.view(features.shape[0], self._state, *weight.shape)
        if basis is None:
            shaped.diagonal(dim1=1, dim2=2).add_(features.unsqueeze(2))
        else:
            shaped.addcmul_(basis.view(1, *basis.shape, 1), features.view(features.shape[0], 1, 1, -1))

    def _drop(self) -> None:
        """Let those samples begin anew whose traces are no numbers any more."""
        assert self.held is not None
        bad = ~torch.isfinite(self.held).flatten(1).all(1)
        self.held[bad] = 0.0
        if not self._warned and bool(bad.any()):
            self._warned = True
            warn(
                f"the traces of {int(bad.sum())} samples outgrew {self.held.dtype} and begin anew: the core's Jacobian "
                "lengthens them step by step; use a smaller gamma or lam"
            )


@contextmanager
def unfused() -> Iterator[None]:
    """Inside it, on a CPU, `nn.LSTM` runs as operations whose backward can be batched.

    oneDNN's fused backward takes one row at a time, which costs many times as much; forwards, over one step, the two
    cost about the same.
    """
    backend = torch.backends.mkldnn
    was = backend.enabled
    backend.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        backend.enabled = was


class Jacobian:
    """Makes J_t of shape (n, F, F), [sample, component of s_t, component of s_{t−1}], for states of one layout."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        #: whether autograd batches this core's backward; found by trying
        self.batched = True
        self._ones: list[Tensor] = []
        offset = 0
        for i, size in zip(layout.moved, layout.sizes, strict=True):
            one = torch.zeros(layout.features, size, device=device)
            one[offset : offset + size] = torch.eye(size, device=device)
            offset += size
            self._ones.append(one.view(layout.features, *(layout.shapes[i] or ())))

    def __call__(self, after: list[Tensor], before: list[Tensor]) -> Tensor:
        """J_t; what does not depend on s_{t−1}, as the state of samples that start anew, has rows of zeros.

        Args:
            after: the leaves of s_t with their graph, which is kept.
            before: the leaves of s_{t−1} that it was made from.
        """
        n = self.layout.vector([leaf.detach() for leaf in before]).shape[0]
        reached = [k for k, leaf in enumerate(after) if leaf.requires_grad]
        total = self.layout.features
        if not reached:
            return before[0].new_zeros(n, total, total)
        parts = []
        for start in range(0, total, ROWS):
            stop = min(start + ROWS, total)
            wanted = [self._cotangent(k, after[k], start, stop, n) for k in reached]
            parts.append(self._rows([after[k] for k in reached], before, wanted, stop - start))
        return torch.cat(parts).transpose(0, 1)

    def _cotangent(self, k: int, leaf: Tensor, start: int, stop: int, n: int) -> Tensor:
        """One-hot rows in the layout of a leaf, the same for every sample, without memory for the samples."""
        row = (self.layout.rows[self.layout.moved[k]] or 0) + 1
        one = self._ones[k][start:stop].to(leaf.dtype).unsqueeze(row)
        return one.expand(*one.shape[:row], n, *one.shape[row + 1 :])

    def _rows(self, after: list[Tensor], before: list[Tensor], wanted: list[Tensor], count: int) -> Tensor:
        """(rows, n, F)."""
        if self.batched:
            try:
                found = torch.autograd.grad(
                    after, before, wanted, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
                return self._vectors(found, before, count)
            except RuntimeError:
                self.batched = False
        rows = []
        for i in range(count):
            found = torch.autograd.grad(after, before, [w[i] for w in wanted], retain_graph=True, allow_unused=True)
            rows.append(self._vectors([None if g is None else g.unsqueeze(0) for g in found], before, 1))
        return torch.cat(rows)

    def _vectors(
        self, found: tuple[Tensor | None, ...] | list[Tensor | None], before: list[Tensor], count: int
    ) -> Tensor:
        parts = []
        for i, g, leaf in zip(self.layout.moved, found, before, strict=True):
            made = leaf.new_zeros(count, *leaf.shape) if g is None else g
            made = made.movedim((self.layout.rows[i] or 0) + 1, 1)
            parts.append(made.reshape(count, made.shape[1], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
