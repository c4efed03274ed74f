"""One sentence that says whether it pays, computed from the figures: a pure function of the aggregated rows.

The three answers: "yes" (clearly faster at no clear loss), "memory" (not faster, but much less is kept for the backward
passes, at a bearable price), "no", and then the sentence says *meh*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from syngrad.results import BACKPROP, Aggregate

#: a step time within this of backprop's is the same
SAME_SPEED = 0.03
#: where the metric is accuracy: what one seed moves by itself, and what is lost at most where it still pays
NOISE = 0.01
#: for other metrics, as a share of backprop's value
RELATIVE_NOISE = 0.05
#: 97.5 % quantiles of Student's t, by the number of seeds
STUDENT = {2: 12.7, 3: 4.3, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
#: from here on less memory is worth something, and up to here the time that it costs is bearable
LESS_MEMORY = 0.75
BEARABLE_TIME = 1.5


@dataclass
class Verdict:
    """text: the sentence. row: which row it speaks of. faster_by: steps in the time of one of backprop's (below 1 is
    slower). metric_gap: to backprop, in the metric's unit. memory_ratio: saved activations × backprop's. feedback_gain:
    the metric above `synthetic:local`'s. pays: "yes", "memory", "no", or None where that cannot be told.
    """

    text: str
    row: str | None = None
    faster_by: float | None = None
    metric_gap: float | None = None
    memory_ratio: float | None = None
    feedback_gain: float | None = None
    pays: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the results file has it."""
        return asdict(self)


def verdict(rows: Sequence[Aggregate]) -> Verdict:
    """The verdict on the first row that estimates gradients (or, without one, on the first beside `backprop`), against
    `backprop`, with the same method's `local` beside it.
    """
    done = [row for row in rows if row.ok]
    base = next((row for row in done if row.method == BACKPROP), None)
    others = [row for row in done if row.method != BACKPROP]
    subject = next((row for row in others if row.estimator), others[0] if others else None)
    if base is None:
        return Verdict("No verdict: there is no finished backprop row to compare with.")
    if subject is None:
        return Verdict("No verdict: no row to hold against backprop has finished.")
    made = Verdict("", subject.label, metric_gap=subject.metric_difference, memory_ratio=subject.saved_ratio)
    made.faster_by = 1 / subject.step_ratio if subject.step_ratio else None
    gap = subject.metric_difference
    made.pays = _pays(made, None if gap is None else _loss(gap, subject.higher_is_better), noise(subject, base))
    parts = [part for part in (_speed(made.faster_by), _quality(subject, base), _memory(made.memory_ratio)) if part]
    text = f"In one process {subject.label} {_join(parts)}" if parts else f"{subject.label} has no figures"
    made.text = text + _so(made.pays) + _feedback(made, done, subject) + "."
    return made


def noise(row: Aggregate, base: Aggregate) -> float:
    """Differences of the metric up to this say nothing: half the 95 % interval of the paired differences over the
    seeds; for one seed a point of accuracy, or a twentieth of another metric's value.
    """
    if row.metric_difference_spread is not None:
        return STUDENT.get(row.seeds, 2.0) * row.metric_difference_spread / math.sqrt(row.seeds)
    return NOISE if row.metric == "accuracy" else RELATIVE_NOISE * abs(base.value or 0.0)


def _pays(made: Verdict, loss: float | None, tolerance: float) -> str | None:
    if made.faster_by is None or loss is None:
        return None
    affordable = loss <= max(tolerance, NOISE)
    if affordable and made.faster_by > 1 + SAME_SPEED:
        return "yes"
    less = made.memory_ratio is not None and made.memory_ratio <= LESS_MEMORY
    return "memory" if affordable and less and 1 / made.faster_by <= BEARABLE_TIME else "no"


def _loss(gap: float, higher_is_better: bool | None) -> float | None:
    """How much worse, above 0, or better, below; None where nobody said which way is better."""
    return None if higher_is_better is None else -gap if higher_is_better else gap


def _amount(difference: float, metric: str) -> str:
    return f"{abs(difference) * 100:.1f} points" if metric == "accuracy" else f"{abs(difference):.4g}"


def _speed(faster_by: float | None) -> str | None:
    if faster_by is None:
        return None
    took = f"a step takes {1 / faster_by:.2f} × backprop's time"
    if faster_by > 1 + SAME_SPEED:
        return f"is faster ({took})"
    return f"is slower ({took})" if 1 / faster_by > 1 + SAME_SPEED else f"is as fast ({took})"


def _quality(row: Aggregate, base: Aggregate) -> str | None:
    gap = row.metric_difference
    if gap is None:
        return None
    amount = _amount(gap, row.metric)
    seeds = "one seed" if row.seeds == 1 else f"{row.seeds} seeds"
    if abs(gap) <= noise(row, base):
        return f"ends with the same {row.metric} within noise ({'+' if gap >= 0 else '−'}{amount}, {seeds})"
    return f"ends {amount} {'higher' if gap > 0 else 'lower'} in {row.metric} ({seeds})"


def _memory(ratio: float | None) -> str | None:
    return None if ratio is None else f"keeps {ratio:.2f} × the activations"


def _so(pays: str | None) -> str:
    answers = {
        "yes": ": it pays",
        "memory": ": it pays only where memory is short, otherwise meh",
        "no": ": meh, it does not pay",
    }
    return answers[pays] if pays is not None else ""


def _feedback(made: Verdict, done: Sequence[Aggregate], subject: Aggregate) -> str:
    """What the gradient that comes back adds over a head that learns from the labels alone."""
    local = next((row for row in done if row.method == subject.method and row.estimator == "local"), None)
    if local is None or local is subject or local.value is None or subject.value is None:
        return ""
    made.feedback_gain = subject.value - local.value
    better = subject.higher_is_better
    if abs(made.feedback_gain) <= noise(subject, local):
        return "; the gradient that comes back adds nothing clear over local"
    amount = _amount(made.feedback_gain, subject.metric)
    if better is None:
        return f"; against local its {subject.metric} differs by {amount}"
    gained = (made.feedback_gain > 0) == better
    return f"; the gradient that comes back {'gains' if gained else 'loses'} {amount} over local"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
