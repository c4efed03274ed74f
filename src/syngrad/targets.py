"""What an estimator is fitted to, and what a stage hands back: pure functions of gradients.

In all of them `g` is a gradient as back-propagation carries it, ∂loss/∂h, and `scale` = ∂loss/∂(sum of sample
losses), 1/len(batch) by default. An estimator speaks of one sample, δ̂ = ∂(sum of sample losses)/∂h, so that it does
not move with the batch size; the two are tied by g = scale · δ.
"""

from __future__ import annotations

from torch import Tensor

from syngrad.checks import real
from syngrad.errors import ConfigError, TrainingError


def per_sample(g: Tensor, scale: float) -> Tensor:
    """δ = g / scale: a received gradient, of any shape, in the units in which estimators speak."""
    return g / scale


def mixed(received: Tensor, estimate: Tensor, lam: float) -> Tensor:
    """λ·received + (1−λ)·estimate: what a stage updates from, and what goes further backward, in BP(λ).

    Source: Jaderberg et al. 2016 (arXiv 1608.05343), BP(λ).

    Args:
        received: the gradient that came back, of the shape of `h`.
        estimate: in the same shape and units.
        lam: λ in [0, 1].

    Returns:
        For λ=1 `received` itself and for λ=0 `estimate` itself, bit for bit, so that the ends of the range *are*
        back-propagation and synthetic gradients.
    """
    if lam == 1.0:
        return received
    if lam == 0.0:
        return estimate
    return estimate.lerp(received, lam)


def scalar(loss: object) -> Tensor:
    """The loss itself when it is a scalar tensor; otherwise a TrainingError that says what it is."""
    if isinstance(loss, Tensor) and loss.dim() == 0:
        return loss
    got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TrainingError(f"the loss must be a scalar tensor, got {got}; average it, as in loss.mean()")


def check_lambda(lam: float) -> float:
    """`lam` itself when it lies in [0, 1]; otherwise a ConfigError that names it."""
    number = real(lam)
    if number is None or not 0.0 <= number <= 1.0:
        raise ConfigError(f"λ must lie in [0, 1], got {lam!r}: 0 is synthetic only, 1 is back-propagation")
    return float(number)
