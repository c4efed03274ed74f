"""Whether it pays, and why, in plain words: a pure function of what was measured.

In one process there are three answers: "yes" (clearly faster at no clear loss), "memory" (not faster, but much less is
kept for the backward passes, at a bearable price), "no", and then the sentence says *meh*.

Over several workers it speaks of the fastest of Syngrad's own rows that loses no more of the metric than is bearable,
and holds it against the fastest of each other kind: those that share every minibatch's update, those that average their
models now and then, and one process alone, with one thread and with all. "yes": faster than each of them; "partly":
than some; "no": than none, or at too high a price.

The reasons come after the sentence, a sentence each, where there is something to say: the time to the target, the
quality of the estimates where it explains a gap, updates that were skipped, seeds that are too few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from syngrad.report import phrasing
from syngrad.report.measured import ALL_THREADS, Line, Measured
from syngrad.report.phrasing import ending, feedback_gain, join, lost, noise, share, signed, size, small, to_target
from syngrad.results import BACKPROP, TOO_LARGE, Aggregate

#: a step time within this of backprop's is the same
SAME_SPEED = 0.03
#: rates over workers within this of one another are the same: two runs of one program differ by as much
SAME_RATE = 0.05
#: from here on less memory is worth something, and up to here the time that it costs is bearable
LESS_MEMORY = 0.75
BEARABLE_TIME = 1.5
#: of a bearable loss: as much has to be gained before longer steps are worth it
GAIN = 0.2
#: a worker that waits for more of its time than this is told of
MUCH_IDLE = 0.1


@dataclass
class Verdict:
    """Whether it pays, and by how much.

    Args:
        text: the sentence.
        row: which row it speaks of.
        faster_by: steps in the time of one of backprop's (below 1 is slower); over workers, samples a second over those
            of the fastest row that is not Syngrad's.
        metric_gap: to backprop, in the metric's unit.
        memory_ratio: saved activations × backprop's.
        feedback_gain: the metric above `synthetic:local`'s.
        pays: "yes", "memory", "partly", "no", or None where that cannot be told.
        reasons: what else bears on it, a sentence each.
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


def verdict(m: Measured) -> Verdict:
    """The verdict on a comparison.

    In one process it is on the first row that estimates gradients (or, without one, the first beside the baseline),
    with the same method's `local` beside it. Of a recurrent net what is sought is a better metric from windows as
    short, at a bearable price.
    """
    return _over_workers(m) if m.workers > 1 else _in_one_process(m)


# In one process: what a step costs, and what it buys.


def _in_one_process(m: Measured) -> Verdict:
    done = [line.row for line in m.done]
    base = next((row for row in done if row.is_base), None)
    others = [row for row in done if not row.is_base]
    subject = next((row for row in others if row.estimator), others[0] if others else None)
    if base is None:
        return Verdict(f"No verdict: there is no finished {m.base_label} row to compare with.")
    if subject is None:
        return Verdict(f"No verdict: no row to hold against {base.label} has finished.")
    made = Verdict("", subject.label, metric_gap=subject.metric_difference, memory_ratio=subject.saved_ratio)
    made.faster_by = 1 / subject.step_ratio if subject.step_ratio else None
    made.feedback_gain, gained = feedback_gain(subject, done)
    made.pays = _pays_in_one_process(made, subject, base, recurrent=m.baseline is not None)
    kept = None if made.memory_ratio is None else f"keeps {made.memory_ratio:.2f} × the activations"
    parts = [part for part in (_step(made.faster_by, base), ending(subject, base), kept) if part]
    lead = "" if m.baseline is not None else "In one process "
    answers = {
        "yes": ": it pays",
        "memory": ": it pays only where memory is short, otherwise meh",
        "no": ": meh, it does not pay",
        None: "",
    }
    text = f"{lead}{subject.label} {join(parts)}" if parts else f"{subject.label} has no figures"
    made.text = f"{text}{answers[made.pays]}{gained and '; '}{gained}."
    alone = subject.metric_difference_interval is None and subject.metric_difference is not None
    made.reasons = [
        *([] if m.target is None else phrasing.race(subject, base, m.goal)),
        *phrasing.estimates(subject, base),
        *phrasing.guarded(done),
        *phrasing.missing_seeds(done),
        *(["With one seed there is no interval; --seeds 3 gives one."] if alone else []),
    ]
    return made


def _pays_in_one_process(made: Verdict, row: Aggregate, base: Aggregate, recurrent: bool) -> str | None:
    loss = lost(row)
    if made.faster_by is None or loss is None:
        return None
    bearable, in_time = small(row, base), 1 / made.faster_by <= BEARABLE_TIME
    if recurrent and in_time and -loss > max(noise(row, base), GAIN * bearable):
        return "yes"
    if loss <= bearable and made.faster_by > 1 + SAME_SPEED:
        return "yes"
    less = made.memory_ratio is not None and made.memory_ratio <= LESS_MEMORY
    return "memory" if loss <= bearable and less and in_time else "no"


def _step(faster_by: float | None, base: Aggregate) -> str | None:
    if faster_by is None:
        return None
    took = f"a step takes {1 / faster_by:.2f} × {base.label}'s time"
    if faster_by > 1 + SAME_SPEED:
        return f"is faster ({took})"
    return f"is slower ({took})" if 1 / faster_by > 1 + SAME_SPEED else f"is as fast ({took})"


# Over several workers: who is fastest, and where Syngrad does not pay.


def _over_workers(m: Measured) -> Verdict:
    timed = [line for line in m.done if line.rate]
    own = [line for line in timed if line.own and line.row.method != "zero"]
    others = [line for line in timed if not line.own]
    if not own:
        return Verdict("No verdict: no row of Syngrad's over several processes has finished.", reasons=_failed(m))
    subject = _fastest([line for line in own if bearable(line, m)] or own)
    made = Verdict("", subject.label, metric_gap=subject.row.metric_difference)
    against = _against(others)
    if not against:
        made.text = f"{subject.label} trains {subject.rate:,.0f} samples a second, and there is no other row beside it."
    else:
        best = _fastest(others)
        made.faster_by = _times(subject, best)
        made.text = _rates(subject, best, against)
        made.pays = _pays_over_workers(subject, m, against.values())
    rows = [line.row for line in m.done]
    made.reasons = [
        *_losing(subject, against),
        *_metric(subject, m),
        *_faster_but_worse(subject, own, m),
        *_target(own, others, m, made),
        *_returning(own, rows, made),
        *_waiting(subject),
        *phrasing.guarded(rows),
        *_failed(m),
        *phrasing.missing_seeds(rows),
        *([] if subject.row.seeds > 1 else ["One seed: a few per cent of speed say nothing; --seeds 3 says more."]),
    ]
    return made


def _against(others: list[Line]) -> dict[str, Line]:
    """What it is held against: the fastest of each kind, with what is said of it."""
    several = [line for line in others if not line.single]
    kinds = {
        "the fastest that shares every minibatch's update": [line for line in several if not line.rare],
        "the fastest that averages models now and then": [line for line in several if line.rare],
        "one process with all threads": [line for line in others if line.row.method == ALL_THREADS],
        "one process alone": [line for line in others if line.single and line.row.method != ALL_THREADS],
    }
    return {said: _fastest(lines) for said, lines in kinds.items() if lines}


def _rates(subject: Line, best: Line, against: Mapping[str, Line]) -> str:
    named = {said if line.single else f"{said} ({line.label})": line for said, line in against.items()}
    ratios = join([f"{_times(subject, line):.2f} × {said}" for said, line in named.items()])
    if _times(subject, best) > 1 + SAME_RATE:
        return f"{subject.label} is the fastest. It trains {subject.rate:,.0f} samples a second: {ratios}."
    own = f"{subject.label} trains {subject.rate:,.0f} samples a second: {ratios}."
    if _times(subject, best) >= 1 - SAME_RATE:
        return f"{subject.label} and {best.label} are as fast as each other. {own}"
    return f"{best.label} is the fastest, with {best.rate:,.0f} samples a second. {own}"


def _pays_over_workers(subject: Line, m: Measured, against: Iterable[Line]) -> str:
    if not bearable(subject, m):
        return "no"
    faster = [_times(subject, line) > 1 + SAME_RATE for line in against]
    return "yes" if all(faster) else "partly" if any(faster) else "no"


def _losing(subject: Line, against: Mapping[str, Line]) -> list[str]:
    """Against whom it does not pay."""
    rows = {said: line for said, line in against.items() if _times(subject, line) <= 1 + SAME_RATE}
    told = [f"{said if line.single else line.label} ({_times(subject, line):.2f} ×)" for said, line in rows.items()]
    return [f"In samples a second Syngrad does not pay against {join(told)}."] if told else []


def _metric(subject: Line, m: Measured) -> list[str]:
    if m.alone is None:
        return ["There is no row 'alone', so nothing is said of what it costs in the metric."]
    said = ending(subject.row, m.alone.row)
    price = "" if bearable(subject, m) else ", which is too much"
    return [f"Against one process alone {subject.label} {said}{price}."] if said else []


def _faster_but_worse(subject: Line, own: list[Line], m: Measured) -> list[str]:
    worse = [line for line in own if _times(line, subject) > 1 + SAME_RATE and not bearable(line, m)]
    if not worse or m.alone is None:
        return []
    told = [f"{line.label}, with {line.rate:,.0f}, {ending(line.row, m.alone.row)}" for line in worse]
    return [f"Faster, but at too high a price: {'; '.join(told)}."]


def _target(own: list[Line], others: list[Line], m: Measured, made: Verdict) -> list[str]:
    """Who reaches the target first. Where somebody else is clearly first, it does not pay in every respect."""
    if m.target is None:
        return []
    goal = f"{m.metric} {m.goal}"
    ours, theirs = (
        min((line for line in lines if line.row.reached == line.row.seeds), key=_seconds, default=None)
        for lines in (own, others)
    )
    if ours is None and theirs is None:
        return [f"No row reaches {goal} with every seed."]
    won = theirs is None or (ours is not None and _seconds(ours) * (1 + SAME_RATE) < _seconds(theirs))
    if made.pays == "yes" and not won:
        made.pays = "partly"
    if ours is None or theirs is None:
        there = ours or theirs
        assert there is not None
        whose = "other" if ours is not None else "of Syngrad's"
        return [f"To {goal} {there.label} takes {_seconds(there):.3g} s; no {whose} row gets there."]
    said = f"To {goal} {ours.label} takes {_seconds(ours):.3g} s, {theirs.label}, the first of the others, "
    said += f"{_seconds(theirs):.3g} s: "
    ratio = _seconds(ours) / _seconds(theirs) if won else None
    return [said + ("in time to the target Syngrad does not pay." if ratio is None else f"{ratio:.2f} × the time.")]


def _returning(own: list[Line], done: Sequence[Aggregate], made: Verdict) -> list[str]:
    """What the gradient that comes back adds over a head that learns from labels alone."""
    full = next((line.row for line in own if line.row.method == "synthetic" and line.row.estimator != "local"), None)
    if full is None:
        return []
    made.feedback_gain, said = feedback_gain(full, done)
    return [f"{full.label}: {said}."] if said else []


def _waiting(subject: Line) -> list[str]:
    if subject.idle is None or subject.idle <= MUCH_IDLE:
        return []
    return [f"Even the busiest process of {subject.label} waits {share(subject.idle)} of its time for others."]


def _failed(m: Measured) -> list[str]:
    large = [line.label for line in m.lines if line.row.status.startswith(TOO_LARGE)]
    rows = [line.label for line in m.lines if not line.row.ok and line.label not in large]
    said = [f"{join(large)} {'does' if len(large) == 1 else 'do'} not fit."] if large else []
    return said + ([f"{join(rows)} failed and {'says' if len(rows) == 1 else 'say'} nothing here."] if rows else [])


def bearable(line: Line, m: Measured) -> bool:
    """Whether what it loses of the metric is small, or such as the seeds cannot tell from chance."""
    loss, base = lost(line.row), m.alone
    if loss is None or base is None:
        return True
    return loss <= max(small(line.row, base.row), noise(line.row, base.row))


def _fastest(lines: list[Line]) -> Line:
    return max(lines, key=lambda line: line.rate or 0.0)


def _times(line: Line, other: Line) -> float:
    return (line.rate or 0.0) / (other.rate or 1.0)


def _seconds(line: Line) -> float:
    return line.row.time_to_target_s or 0.0


# The few figures that it rests on.

#: of which row, and each figure: its value, what it is, a note
Tiles = tuple[str, list[tuple[str, str, str]]]


def tiles(m: Measured, subject: str | None) -> Tiles | None:
    """The few figures that a verdict on the row `subject` rests on; None where there is nothing to hold it against."""
    return _tiles_over_workers(m, subject) if m.workers > 1 else _tiles_in_one_process(m, subject)


def _tiles_in_one_process(m: Measured, subject: str | None) -> Tiles | None:
    row = next((line.row for line in m.done if line.label == subject), None)
    base = next((line.row for line in m.done if line.row.is_base), None)
    if row is None or base is None:
        return None
    named = "back-propagation" if base.method == BACKPROP else base.label
    found: list[tuple[str, str, str]] = []
    if row.step_ratio is not None:
        found.append((f"{row.step_ratio:.2f} ×", "time of a step", f"of {named}'s"))
    found += _difference(m, row, "one seed, no interval")
    if row.saved_ratio is not None:
        kept = f"{size(row.saved_activation_bytes)} at most"
        found.append((f"{row.saved_ratio:.2f} ×", "kept for backward passes", kept))
    if m.target is not None:
        found.append((to_target(row), f"to {m.metric} {m.goal}", f"{named}: {to_target(base)}"))
    return f"{row.label} against {base.label}", found


def _tiles_over_workers(m: Measured, subject: str | None) -> Tiles | None:
    line = next((line for line in m.done if line.own and line.label == subject), None)
    if line is None:
        return None
    found: list[tuple[str, str, str]] = []
    rivals = [each.rate for each in m.done if each.rate and not each.own and not each.single]
    if line.rate and rivals:
        found.append((f"{line.rate / max(rivals):.2f} ×", "samples a second", "of the fastest rival over processes"))
    ratio = m.ratio(line)
    if ratio is not None:
        found.append((f"{ratio:.2f} ×", "samples a second", "of one process alone"))
    found += _difference(m, line.row, "to one process alone")
    if m.target is not None:
        note = "" if m.alone is None else f"one process alone: {to_target(m.alone.row)}"
        found.append((to_target(line.row), f"to {m.metric} {m.goal}", note))
    if line.idle is not None:
        found.append((share(line.idle), "waiting", "of the busiest process's time"))
    return f"{line.label}, over {m.workers} processes", found


def _difference(m: Measured, row: Aggregate, note: str) -> list[tuple[str, str, str]]:
    if row.metric_difference is None:
        return []
    if row.metric_difference_interval is not None:
        low, high = (signed(bound, row.metric) for bound in row.metric_difference_interval)
        note = f"95 % interval {low} to {high}, {row.seeds} seeds"
    return [(signed(row.metric_difference, row.metric) + (" points" if m.percent else ""), m.metric, note)]
