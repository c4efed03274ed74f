"""Plain words on a comparison over processes: who is fastest, and where Syngrad does not pay.

It speaks of the fastest of Syngrad's own rows that loses no more of the metric than is bearable, and holds it against
the fastest of each other kind: those that share every minibatch's update, those that average their models now and then,
and one process alone, with one thread and with all. "yes": faster than each of them; "partly": than some; "no": than
none, or at too high a price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from syngrad.report import reasons
from syngrad.report.processes.measured import ALL_THREADS, Line, Over
from syngrad.report.processes.table import share
from syngrad.report.verdict import Verdict, ending, feedback
from syngrad.report.words import join, loss, noise, small

#: rates within this of one another are the same: two runs of one program differ by as much
SAME = 0.05
#: a process that waits for more of its time than this is told of
MUCH_IDLE = 0.1


def verdict(compared: Over) -> Verdict:
    """The verdict; its `faster_by`: samples a second over those of the fastest row that is not Syngrad's."""
    timed = [line for line in compared.done if line.rate]
    own = [line for line in timed if line.own and line.row.method != "zero"]
    others = [line for line in timed if not line.own]
    if not own:
        return Verdict(
            "No verdict: no row of Syngrad's over several processes has finished.", reasons=_failed(compared)
        )
    subject = _fastest([line for line in own if _bearable(line, compared)] or own)
    made = Verdict("", subject.label, metric_gap=subject.row.metric_difference)
    against = _against(others)
    if not against:
        made.text = f"{subject.label} trains {subject.rate:,.0f} samples a second, and there is no other row beside it."
    else:
        best = _fastest(others)
        made.faster_by = _times(subject, best)
        made.text = _speed(subject, best, against)
        made.pays = _pays(subject, compared, against.values())
    made.reasons = [
        *_losing(subject, against),
        *_metric(subject, compared),
        *_faster_but_worse(subject, own, compared),
        *_target(own, others, compared, made),
        *_returning(own, compared, made),
        *_waiting(subject),
        *reasons.guarded([line.row for line in compared.done]),
        *_failed(compared),
        *reasons.failures([line.row for line in compared.done]),
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


def _named(said: str, line: Line) -> str:
    return said if line.single else f"{said} ({line.label})"


def _speed(subject: Line, best: Line, against: Mapping[str, Line]) -> str:
    ratios = join([f"{_times(subject, line):.2f} × {_named(said, line)}" for said, line in against.items()])
    own = f"{subject.label} trains {subject.rate:,.0f} samples a second: {ratios}."
    if _times(subject, best) > 1 + SAME:
        return f"{subject.label} is the fastest. It trains {subject.rate:,.0f} samples a second: {ratios}."
    if _times(subject, best) >= 1 - SAME:
        return f"{subject.label} and {best.label} are as fast as each other. {own}"
    return f"{best.label} is the fastest, with {best.rate:,.0f} samples a second. {own}"


def _pays(subject: Line, compared: Over, against: Iterable[Line]) -> str:
    if not _bearable(subject, compared):
        return "no"
    faster = [_times(subject, line) > 1 + SAME for line in against]
    return "yes" if all(faster) else "partly" if any(faster) else "no"


def _losing(subject: Line, against: Mapping[str, Line]) -> list[str]:
    """Against whom it does not pay."""
    rows = {said: _times(subject, line) for said, line in against.items() if _times(subject, line) <= 1 + SAME}
    if not rows:
        return []
    told = [f"{said if against[said].single else against[said].label} ({ratio:.2f} ×)" for said, ratio in rows.items()]
    return [f"In samples a second Syngrad does not pay against {join(told)}."]


def _metric(subject: Line, compared: Over) -> list[str]:
    base = compared.alone
    if base is None:
        return ["There is no row 'alone', so nothing is said of what it costs in the metric."]
    said = ending(subject.row, base.row)
    price = "" if _bearable(subject, compared) else ", which is too much"
    return [f"Against one process alone {subject.label} {said}{price}."] if said else []


def _faster_but_worse(subject: Line, own: list[Line], compared: Over) -> list[str]:
    worse = [line for line in own if _times(line, subject) > 1 + SAME and not _bearable(line, compared)]
    if not worse or compared.alone is None:
        return []
    base = compared.alone.row
    told = [f"{line.label}, with {line.rate:,.0f}, {ending(line.row, base)}" for line in worse]
    return [f"Faster, but at too high a price: {'; '.join(told)}."]


def _target(own: list[Line], others: list[Line], compared: Over, made: Verdict) -> list[str]:
    """Who reaches the target first. Where somebody else is clearly first, it does not pay in every respect."""
    target = compared.target
    if target is None:
        return []
    metric = own[0].row.metric
    goal = f"{metric} {target * 100:g} %" if metric == "accuracy" else f"{metric} {target:g}"
    ours, theirs = (
        min(lines, key=_seconds, default=None)
        for lines in ([line for line in rows if line.row.reached == line.row.seeds] for rows in (own, others))
    )
    if ours is None and theirs is None:
        return [f"No row reaches {goal} with every seed."]
    if ours is None or theirs is None:
        there = ours or theirs
        assert there is not None
        if ours is None and made.pays == "yes":
            made.pays = "partly"
        whose = "other" if ours is not None else "of Syngrad's"
        return [f"To {goal} {there.label} takes {_seconds(there):.3g} s; no {whose} row gets there."]
    said = f"To {goal} {ours.label} takes {_seconds(ours):.3g} s, {theirs.label}, the first of the others, "
    said += f"{_seconds(theirs):.3g} s"
    if _seconds(ours) * (1 + SAME) >= _seconds(theirs):
        if made.pays == "yes":
            made.pays = "partly"
        return [f"{said}: in time to the target Syngrad does not pay."]
    return [f"{said}: {_seconds(ours) / _seconds(theirs):.2f} × the time."]


def _returning(own: list[Line], compared: Over, made: Verdict) -> list[str]:
    """What the gradient that comes back adds over a head that learns from labels alone."""
    rows = [line.row for line in compared.done]
    full = next((line.row for line in own if line.row.method == "synthetic" and line.row.estimator != "local"), None)
    said = feedback(made, rows, full) if full is not None else ""
    return [f"{full.label}: {said.removeprefix('; ')}."] if full is not None and said else []


def _waiting(subject: Line) -> list[str]:
    if subject.idle is None or subject.idle <= MUCH_IDLE:
        return []
    return [f"Even the busiest process of {subject.label} waits {share(subject.idle)} of its time for others."]


def _failed(compared: Over) -> list[str]:
    rows = [line.label for line in compared.lines if not line.row.ok]
    if not rows:
        return []
    return [f"{join(rows)} failed and {'says' if len(rows) == 1 else 'say'} nothing here."]


def _bearable(line: Line, compared: Over) -> bool:
    """Whether what it loses of the metric is small, or such as the seeds cannot tell from chance."""
    gap, base = line.row.metric_difference, compared.alone
    lost = None if gap is None else loss(gap, line.row.higher_is_better)
    if lost is None or base is None:
        return True
    return lost <= max(small(line.row, base.row), noise(line.row, base.row))


def _fastest(lines: list[Line]) -> Line:
    return max(lines, key=lambda line: line.rate or 0.0)


def _times(line: Line, other: Line) -> float:
    return (line.rate or 0.0) / (other.rate or 1.0)


def _seconds(line: Line) -> float:
    return line.row.time_to_target_s or 0.0
