"""Plain words that say whether it pays, and why: a pure function of the aggregated rows.

The three answers: "yes" (clearly faster at no clear loss), "memory" (not faster, but much less is kept for the backward
passes, at a bearable price), "no", and then the sentence says *meh*. The reasons come after it, a sentence each, where
there is something to say: the time to the target, the quality of the estimates where it explains a gap, updates that
were skipped, seeds that are too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from syngrad.report import reasons
from syngrad.report.words import amount, join, loss, noise, signed, small
from syngrad.results import BACKPROP, Aggregate

#: a step time within this of backprop's is the same
SAME_SPEED = 0.03
#: from here on less memory is worth something, and up to here the time that it costs is bearable
LESS_MEMORY = 0.75
BEARABLE_TIME = 1.5
#: of a bearable loss: as much has to be gained before longer steps are worth it
GAIN = 0.2


@dataclass
class Verdict:
    """text: the sentence. row: which row it speaks of. faster_by: steps in the time of one of backprop's (below 1 is
    slower). metric_gap: to backprop, in the metric's unit. memory_ratio: saved activations × backprop's. feedback_gain:
    the metric above `synthetic:local`'s. pays: "yes", "memory", "no", or None where that cannot be told. reasons: what
    else bears on it, a sentence each.
    """

    text: str
    row: str | None = None
    faster_by: float | None = None
    metric_gap: float | None = None
    memory_ratio: float | None = None
    feedback_gain: float | None = None
    pays: str | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The sentence and its reasons."""
        return " ".join([self.text, *self.reasons])

    def to_dict(self) -> dict[str, Any]:
        """As the results file has it."""
        return asdict(self)


def verdict(rows: Sequence[Aggregate], target: float | None = None, *, baseline: str | None = None) -> Verdict:
    """The verdict on the first row that estimates gradients (or, without one, the first beside the baseline), against
    the baseline, `backprop`, with the same method's `local` beside it. target: the metric's value whose crossing was
    timed. baseline: another one's name, of a recurrent net: what is sought there is a better metric from windows as
    short, at a bearable price.
    """
    recurrent = baseline is not None
    done = [row for row in rows if row.ok]
    base = next((row for row in done if row.is_base), None)
    others = [row for row in done if not row.is_base]
    subject = next((row for row in others if row.estimator), others[0] if others else None)
    if base is None:
        missing = next((row.label for row in rows if row.is_base), baseline or BACKPROP)
        return Verdict(f"No verdict: there is no finished {missing} row to compare with.")
    if subject is None:
        return Verdict(f"No verdict: no row to hold against {base.label} has finished.")
    lead = "" if recurrent else "In one process "
    made = Verdict("", subject.label, metric_gap=subject.metric_difference, memory_ratio=subject.saved_ratio)
    made.faster_by = 1 / subject.step_ratio if subject.step_ratio else None
    gap = subject.metric_difference
    lost = None if gap is None else loss(gap, subject.higher_is_better)
    made.pays = _pays(made, lost, small(subject, base))
    if (
        recurrent
        and made.faster_by is not None
        and lost is not None
        and -lost > max(noise(subject, base), GAIN * small(subject, base))
    ):
        made.pays = "yes" if 1 / made.faster_by <= BEARABLE_TIME else made.pays
    parts = [part for part in (_speed(made.faster_by, base), ending(subject, base), _memory(made.memory_ratio)) if part]
    text = f"{lead}{subject.label} {join(parts)}" if parts else f"{subject.label} has no figures"
    made.text = text + _so(made.pays) + feedback(made, done, subject) + "."
    made.reasons = [
        *reasons.to_target(subject, base, target),
        *reasons.estimates(subject, base),
        *reasons.guarded(done),
        *reasons.failures(done),
        *reasons.seeds(subject),
    ]
    return made


def _pays(made: Verdict, lost: float | None, bearable: float) -> str | None:
    if made.faster_by is None or lost is None:
        return None
    affordable = lost <= bearable
    if affordable and made.faster_by > 1 + SAME_SPEED:
        return "yes"
    less = made.memory_ratio is not None and made.memory_ratio <= LESS_MEMORY
    return "memory" if affordable and less and 1 / made.faster_by <= BEARABLE_TIME else "no"


def _speed(faster_by: float | None, base: Aggregate) -> str | None:
    if faster_by is None:
        return None
    took = f"a step takes {1 / faster_by:.2f} × {base.label}'s time"
    if faster_by > 1 + SAME_SPEED:
        return f"is faster ({took})"
    return f"is slower ({took})" if 1 / faster_by > 1 + SAME_SPEED else f"is as fast ({took})"


def ending(row: Aggregate, base: Aggregate) -> str | None:
    """How its metric ends against another row's, as a verb phrase; None where that is not known."""
    gap = row.metric_difference
    if gap is None:
        return None
    by, over = amount(gap, row.metric), _over(row)
    if abs(gap) > small(row, base) and abs(gap) <= noise(row, base):
        return f"ends {by} {_way(gap)} in {row.metric}, which the seeds cannot tell from chance ({over})"
    if abs(gap) <= noise(row, base):
        return f"ends with the same {row.metric} within noise ({'+' if gap >= 0 else '−'}{by}, {over})"
    return f"ends {by} {_way(gap)} in {row.metric} ({over})"


def _way(gap: float) -> str:
    return "higher" if gap > 0 else "lower"


def _over(row: Aggregate) -> str:
    """How many seeds it rests on, and between which differences the true one lies."""
    if row.metric_difference_interval is None:
        return "one seed" if row.seeds == 1 else f"{row.seeds} seeds"
    low, high = (signed(bound, row.metric) for bound in row.metric_difference_interval)
    return f"{row.seeds} seeds, 95 % interval {low} to {high}"


def _memory(ratio: float | None) -> str | None:
    return None if ratio is None else f"keeps {ratio:.2f} × the activations"


def _so(pays: str | None) -> str:
    answers = {
        "yes": ": it pays",
        "memory": ": it pays only where memory is short, otherwise meh",
        "no": ": meh, it does not pay",
    }
    return answers[pays] if pays is not None else ""


def feedback(made: Verdict, done: Sequence[Aggregate], subject: Aggregate) -> str:
    """What the gradient that comes back adds over a head that learns from the labels alone."""
    local = next((row for row in done if row.method == subject.method and row.estimator == "local"), None)
    if local is None or local is subject or local.value is None or subject.value is None:
        return ""
    made.feedback_gain = subject.value - local.value
    better = subject.higher_is_better
    if abs(made.feedback_gain) <= noise(subject, local):
        return "; the gradient that comes back adds nothing clear over local"
    by = amount(made.feedback_gain, subject.metric)
    if better is None:
        return f"; against local its {subject.metric} differs by {by}"
    gained = (made.feedback_gain > 0) == better
    return f"; the gradient that comes back {'gains' if gained else 'loses'} {by} over local"
