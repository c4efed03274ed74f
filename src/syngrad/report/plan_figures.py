"""A plan in pictures: who would wait, what more workers and other links would change, what every worker would hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syngrad.planner import sweeps
from syngrad.planner.expected_spans import accounts
from syngrad.planner.prediction import Prediction
from syngrad.planner.ranking import Plan
from syngrad.planner.sweeps import Sweep
from syngrad.report import bars, tracks
from syngrad.report.figures import Figure, Panel
from syngrad.report.phrasing import size
from syngrad.report.style import Key, css, styles_for
from syngrad.report.template import Section

#: kinds that are drawn: one of every way to use workers, beside the one that the plan would take
SHOWN = ("alone", "ddp", "diloco", "gpipe", "1f1b", "delayed", "synthetic")
#: those whose workers are drawn moment by moment; minibatches of the fastest of them, and the most workers
TRACKED, MINIBATCHES, MOST = ("synthetic", "delayed", "1f1b", "ddp"), 8, 8
NO_FIGURE = "One worker waits for nobody, and has nothing to gain from a link."


def legend(plan: Plan, first: int = 0) -> list[Key]:
    """The kinds that are drawn, with their looks; counted from `first` on in a page that has other rows too."""
    there = {each.layout.kind for each in (*plan.ranked, *plan.rare)}
    kinds = list(dict.fromkeys([*SHOWN, plan.best.layout.kind]))
    drawn = [kind for kind in kinds if kind in there]
    looks = styles_for([kind == "alone" for kind in drawn], first)
    return [Key(kind, look) for kind, look in zip(drawn, looks, strict=True)]


def plan_sections(plan: Plan, first: int = 0) -> list[Section]:
    """The figures of a plan."""
    keys = legend(plan, first)
    waiting = timeline(plan)
    spans = [said for _, _, _, said in tracks.SPANS if said != tracks.SPANS[-1][3]] if waiting else []
    curves = speedups(plan, keys)
    return [
        Section("waiting", "Who waits", "Who would wait", NO_FIGURE, [waiting] if waiting else [], "span", spans),
        Section("speedup", "Workers and links", "More workers, other links", NO_FIGURE, curves, "rows", keys),
        Section("memory", "Memory", "Memory of a worker", "", [memory(plan, keys)]),
    ]


def timeline(plan: Plan) -> Figure | None:
    """Some minibatches of a few layouts as they are expected, a track a worker."""
    if not 2 <= plan.cluster.workers <= MOST:
        return None
    kinds = list(dict.fromkeys([plan.best.layout.kind, *TRACKED]))
    rows = [each for kind in kinds for each in plan.ranked if each.layout.kind == kind and kind in (*TRACKED, kinds[0])]
    rows = [each for each in rows if each.layout.family != "alone" and each.layout.replicas == 1]
    if not rows:
        return None
    seconds = max(MINIBATCHES * min(each.seconds for each in rows), 2 * max(each.seconds for each in rows))
    panels = []
    for each in rows:
        told = accounts(plan.profile, plan.cluster, each.layout)
        last = max(span[3] for account in told for span in account["spans"])
        begin = min(last / 2, max(last - seconds, 0.0))
        panels.append(tracks.drawn_tracks(str(each.layout), told, begin, begin + seconds, seconds))
    caption = (
        f"{1e3 * seconds:.3g} ms once the queues have filled, computed and not measured; as long for every layout. The "
        "numbers are those of the minibatches. Of data parallelism what is handed over is the all-reduce; where "
        "nothing is drawn a process waits for the slowest."
    )
    return Figure("timeline", "what every process would do, moment by moment", caption, panels)


def speedups(plan: Plan, keys: Sequence[Key]) -> list[Figure]:
    """Speed-up over one process alone, against the number of workers, the rate and the delay of the link."""
    alone = next((each for each in plan.ranked if each.layout.kind == "alone"), None)
    base = alone.samples_per_s if alone is not None else plan.ranked[0].samples_per_s
    of = "one process alone" if alone is not None else str(plan.ranked[0].layout)
    if plan.cluster.workers < 2:
        return []
    link = plan.cluster.link
    where = "on one machine" if plan.cluster.hosts == 1 else "each on a host of its own"
    delay, rate = f"{1e3 * link.delay_s:.3g} ms", f"{8 * link.bytes_per_s / 1e6:,.4g} Mbit/s"
    rate = "no limit of the rate" if link.bytes_per_s == float("inf") else rate
    apart = "Every worker on a host of its own"
    drawn = [
        ("workers", "number of workers", sweeps.over_workers(plan), 1.0, False, f"Workers {where}"),
        ("rate", "rate of the link, Mbit/s", sweeps.over_rate(plan), 8e-6, True, f"{apart}, {delay} between them"),
        ("delay", "delay of the link, ms", sweeps.over_delay(plan), 1e3, True, f"{apart}, {rate} between them"),
    ]
    made = []
    for name, axis, sweep, unit, log, said in drawn:
        panel = _curves(sweep, keys, base, axis, unit, log)
        if panel is not None:
            made.append(Figure(f"speedup-{name}", f"speed-up against {axis.partition(',')[0]}",
                               f"{said}. 1 is {of}, with one thread.", [panel]))  # fmt: skip
    return made


def _curves(sweep: Sweep, keys: Sequence[Key], base: float, axis: str, unit: float, log: bool) -> Panel | None:
    x = [round(unit * point, 6) for point in sweep.points]
    data: list[dict[str, Any]] = []
    said = []
    for key in keys:
        rates = sweep.rates.get(key.label)
        if rates is None:
            continue
        y = [None if rate is None else round(rate / base, 4) for rate in rates]
        hover = "%{fullData.name}: %{y:.2f} × at %{x:.4g}<extra></extra>"
        data.append(key.style.trace(x=x, y=y, name=key.label, hovertemplate=hover))
        known = [value for value in y if value is not None]
        said.append(f"{key.label} {known[0]:.2f} to {known[-1]:.2f}")
    if not data:
        return None
    across: dict[str, Any] = {"title": {"text": axis}}
    across |= {"type": "log", "dtick": 1} if log else {"tickvals": x, "rangemode": "tozero"}
    one = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    layout = {
        "xaxis": across,
        "yaxis": {"title": {"text": "× one process"}, "rangemode": "tozero"},
        "hovermode": "closest",
        "shapes": [{**one, "line": {"color": css("--muted"), "dash": "dot", "width": 1}}],
    }
    return Panel(f"speed-up against {axis}: {', '.join(said)}", data, layout)


def memory(plan: Plan, keys: Sequence[Key]) -> Figure:
    """What the worker holds that holds most, a bar a layout."""
    shown = [(key, each) for key in keys for each in _of_kind(plan, key.label)]
    panel = bars.horizontal(
        [key for key, _ in shown],
        [each.peak_bytes / 2**20 for _, each in shown],
        [size(each.peak_bytes) for _, each in shown],
        "MiB",
        "memory of the largest worker",
    )
    base = size(plan.profile.base_bytes)
    caption = f"Of the worker that holds most. {base} of it are the process itself, PyTorch included."
    return Figure("memory", "memory of a worker", caption, [panel])


def _of_kind(plan: Plan, kind: str) -> list[Prediction]:
    found = [each for each in (*plan.ranked, *plan.rare) if each.layout.kind == kind and each.layout.replicas == 1]
    return found[:1]
