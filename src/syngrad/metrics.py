"""How good an estimate is, and what a step keeps in memory.

The three figures of quality compare an estimate with the gradient that was received for the same message. They are
taken over the whole minibatch as one vector, and all are unchanged when both arguments are multiplied by one number,
so it does not matter whether they come per sample or scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from syngrad.errors import ConfigError, SyngradError, unknown


def cosine(estimate: Tensor, received: Tensor) -> Tensor:
    """⟨δ̂, δ⟩ / (‖δ̂‖·‖δ‖), a scalar in [−1, 1]; 0 where either is zero. Any shape, the same for both."""
    dtype = torch.promote_types(torch.promote_types(estimate.dtype, received.dtype), torch.float32)
    a, b = (t.detach().reshape(-1).to(dtype) for t in (estimate, received))
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return torch.where(norms > 0, torch.dot(a, b) / norms.clamp_min(torch.finfo(dtype).tiny), 0.0)


def norm_ratio(estimate: Tensor, received: Tensor) -> Tensor:
    """‖δ̂‖ / ‖δ‖, a scalar ≥ 0; 1 is right, 0 is an estimator that has not begun, inf a received gradient of zero."""
    above: Tensor = torch.linalg.vector_norm(estimate.detach().float())
    below: Tensor = torch.linalg.vector_norm(received.detach().float())
    return above / below


def explained_variance(estimate: Tensor, received: Tensor) -> Tensor:
    """1 − ‖δ − δ̂‖² / ‖δ‖², a scalar ≤ 1: the part of the received gradient's power that the estimate accounts for."""
    a, b = estimate.detach().float(), received.detach().float()
    return 1 - (b - a).square().sum() / b.square().sum()


class Sample(NamedTuple):
    """The quality of one minibatch's estimate; estimator_loss is the squared error per sample."""

    step: int
    cosine: float
    norm_ratio: float
    estimator_loss: float


@dataclass
class Quality:
    """The quality of one interface's estimates on the minibatches on which it was sampled."""

    cut: str
    history: list[Sample] = field(default_factory=list)

    def add(self, step: int, estimate: Tensor, received: Tensor, scale: float) -> None:
        """Take one sample at minibatch `step`, from an estimate and a received gradient both multiplied by `scale`."""
        value, ratio = cosine(estimate, received).item(), norm_ratio(estimate, received).item()
        error = (estimate - received).float().square().sum().item() / (scale * scale * max(received.shape[0], 1))
        self.history.append(Sample(step, value, ratio, error))

    def forget(self, step: int) -> None:
        """Drop the samples of a minibatch that failed."""
        while self.history and self.history[-1].step == step:
            self.history.pop()

    def mean(self, figure: str, since: int = 0) -> float | None:
        """Mean of one figure over the last half of the samples from the `since`-th on, past an estimator's first steps.

        Samples count where there was an estimate and something came back; a gradient of exactly zero, as an estimator
        gives that has not begun, has no direction. None if nothing was sampled.
        """
        said = [sample for sample in self.history[since:] if 0 < sample.norm_ratio < math.inf]
        tail = [getattr(sample, figure) for sample in said[len(said) // 2 :]]
        return sum(tail) / len(tail) if tail else None

    def summary(self, staleness: float = 0.0, since: int = 0) -> dict[str, object]:
        """The row of the results file: cut, cosine, norm_ratio, estimator_loss, staleness."""
        return {
            "cut": self.cut,
            "cosine": self.mean("cosine", since),
            "norm_ratio": self.mean("norm_ratio", since),
            "estimator_loss": self.mean("estimator_loss", since),
            "staleness": staleness,
        }


Metric = Callable[[object, object], object]


def accuracy(output: object, target: object) -> float:
    """The share of `target`'s labels that `output`'s largest score names; labels of −100 do not count.

    `output` is (n, classes) with `target` (n,), or (n, …, classes) or (n, classes, …) with `target` (n, …).
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        raise SyngradError("metric 'accuracy' needs one tensor of scores and one of labels; give metric= a function")
    if output.shape[:-1] == target.shape:
        predicted = output.argmax(-1)
    elif output.dim() == target.dim() + 1 and output.shape[0] == target.shape[0]:
        predicted = output.argmax(1)
    else:
        raise SyngradError(
            f"metric 'accuracy' cannot match scores {tuple(output.shape)} to labels {tuple(target.shape)}; "
            "give metric= a function of (output, target)"
        )
    counted = target != -100
    return ((predicted == target) & counted).sum().item() / max(int(counted.sum().item()), 1)


def mean_squared_error(output: object, target: object) -> float:
    """Mean of (output − target)² over all elements; both of one shape."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape != target.shape:
        raise SyngradError("metric 'mse' needs an output and a target of the same shape; give metric= a function")
    return (output - target).square().mean().item()


NAMED: dict[str, Callable[[object, object], float]] = {"accuracy": accuracy, "mse": mean_squared_error}
#: whether a larger value is better, by the metric's name
HIGHER_IS_BETTER = {"accuracy": True, "mse": False, "loss": False}


def resolve(metric: str | Metric | None) -> tuple[str, Metric] | None:
    """A metric's name and function, from a name, a function of (output, target), or None."""
    if metric is None:
        return None
    if not isinstance(metric, str) and not callable(metric):
        raise ConfigError(f"metric must be a name or a function of (output, target), got {type(metric).__name__}")
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if metric not in NAMED:
        raise unknown("metric", metric, NAMED)
    return metric, NAMED[metric]
