"""Words for figures, shared by the verdict and its reasons."""

from __future__ import annotations

from collections.abc import Sequence

from syngrad.results import Aggregate

#: where the metric is accuracy: what one seed moves by itself, and what is lost at most where it still pays
NOISE = 0.01
#: for other metrics, as a share of backprop's value
RELATIVE_NOISE = 0.05


def small(row: Aggregate, base: Aggregate) -> float:
    """A loss of the metric that is bearable: a point of accuracy, or a twentieth of another metric's value."""
    return NOISE if row.metric == "accuracy" else RELATIVE_NOISE * abs(base.value or 0.0)


def noise(row: Aggregate, base: Aggregate) -> float:
    """Differences of the metric up to this say nothing: half the 95 % interval of the paired differences over the
    seeds; for one seed what is small.
    """
    if row.metric_difference_interval is not None:
        low, high = row.metric_difference_interval
        return (high - low) / 2
    return small(row, base)


def loss(gap: float, higher_is_better: bool | None) -> float | None:
    """How much worse, above 0, or better, below; None where nobody said which way is better."""
    return None if higher_is_better is None else -gap if higher_is_better else gap


def amount(difference: float, metric: str) -> str:
    """The size of a difference, in points for an accuracy."""
    return f"{abs(difference) * 100:.1f} points" if metric == "accuracy" else f"{abs(difference):.4g}"


def signed(difference: float, metric: str) -> str:
    """A difference with its sign, in points for an accuracy."""
    shown = f"{difference * 100:+.1f}" if metric == "accuracy" else f"{difference:+.3g}"
    return shown.replace("-", "−")


def join(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
