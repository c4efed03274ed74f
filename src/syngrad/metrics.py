"""How good an estimate is, and how good a model is.

The three figures of quality compare an estimate with the gradient that was received for the same message. They are
taken over the whole minibatch as one vector, and all are unchanged when both arguments are multiplied by one number,
so it does not matter whether they come per sample or scaled. A run takes its own samples by four scalar products in one
wait for the device (runtime/quality.py: compare); the last digits of those and of these may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from syngrad.errors import ConfigError, SyngradError, unknown


def cosine(estimate: Tensor, received: Tensor) -> Tensor:
    """⟨δ̂, δ⟩ / (‖δ̂‖·‖δ‖), a scalar in [−1, 1]; 0 where either is zero. Any shape, the same for both."""
    dtype = torch.promote_types(torch.promote_types(estimate.dtype, received.dtype), torch.float32)
    a, b = (t.detach().reshape(-1).to(dtype) for t in (estimate, received))
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return torch.where(norms > 0, torch.dot(a, b) / norms.clamp_min(torch.finfo(dtype).tiny), 0.0)


def norm_ratio(estimate: Tensor, received: Tensor) -> Tensor:
    """‖δ̂‖ / ‖δ‖, a scalar ≥ 0; 1 is right, 0 is an estimator that has not begun, inf a received gradient of zero."""
    norm: Tensor = torch.linalg.vector_norm(estimate.detach().float())
    reference: Tensor = torch.linalg.vector_norm(received.detach().float())
    return norm / reference


def explained_variance(estimate: Tensor, received: Tensor) -> Tensor:
    """1 − ‖δ − δ̂‖² / ‖δ‖², a scalar ≤ 1: the part of the received gradient's power that the estimate accounts for."""
    a, b = estimate.detach().float(), received.detach().float()
    return 1 - (b - a).square().sum() / b.square().sum()


Metric = Callable[[object, object], object]


def scores(output: object) -> object:
    """What a metric with a name measures: the output, or its `logits` where a library returns them among others."""
    if isinstance(output, Tensor):
        return output
    return output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)


def check_scores(metric: tuple[str, Metric], output: object) -> None:
    """Refuse an output that a metric with a name cannot measure, whatever numbers are in it.

    Raises:
        ConfigError: naming what it is.
    """
    name, function = metric
    if function in NAMED.values() and not isinstance(scores(output), Tensor):
        raise ConfigError(
            f"metric {name!r} needs one tensor of scores, or an output with one under 'logits', and the model returns "
            f"{type(output).__name__}; give metric= a function of (output, target)"
        )


def accuracy(output: object, target: object) -> float:
    """The share of `target`'s labels that `output`'s largest score names; labels of −100 do not count.

    `output` is (n, classes) with `target` (n,), or (n, …, classes) or (n, classes, …) with `target` (n, …).
    """
    output = scores(output)
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
    output = scores(output)
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape != target.shape:
        raise SyngradError("metric 'mse' needs an output and a target of the same shape; give metric= a function")
    return (output - target).square().mean().item()


BITS = "bits per character"


def bits_per_character(output: object, target: object) -> float:
    """Mean cross-entropy / ln 2; `output` (n, t, characters), `target` (n, t), of which −100 does not count."""
    output = scores(output)
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape[:-1] != target.shape:
        raise SyngradError(
            f"metric {BITS!r} needs scores (n, t, characters) and labels (n, t); give metric= a function"
        )
    return cross_entropy(output.flatten(0, -2), target.flatten()).item() / math.log(2)


NAMED: dict[str, Callable[[object, object], float]] = {
    "accuracy": accuracy,
    "mse": mean_squared_error,
    BITS: bits_per_character,
}
#: whether a larger value is better, by the metric's name
HIGHER_IS_BETTER = {"accuracy": True, "mse": False, BITS: False, "loss": False}


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


def higher_is_better(metric: tuple[str, Metric] | None) -> bool | None:
    """Whether a larger value of a resolved metric is better; None where nobody says.

    Known for those that have a name here and for the loss (no metric), and for a function of the user's that carries
    `function.higher_is_better = True` or `False`.
    """
    name, function = metric if metric is not None else ("loss", None)
    said: bool | None = HIGHER_IS_BETTER.get(name, getattr(function, "higher_is_better", None))
    return said
