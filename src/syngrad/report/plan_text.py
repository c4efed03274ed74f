"""A plan as text: what to do, what decides it, how near the next one is, what would change it, what it cannot tell."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from syngrad.planner.aim import FARTHEST
from syngrad.planner.layouts import EXACT
from syngrad.planner.pilot import Aim, Pilot, Piloted, Race
from syngrad.planner.prediction import Prediction
from syngrad.planner.ranking import TOLERANCE, Change, Plan

WIDTH = 80
#: of a layout's name
NAME = 30
#: layouts that are named as too near to tell apart
NAMED = 4


def plan_text(plan: Plan) -> list[str]:
    """Lines of at most 80 characters."""
    lines = [_line(heading(plan)), _line(model_line(plan)), ""]
    lines += [
        f"{'layout':<{NAME}} {'samples/s':>10} {'ms':>8} {'MiB':>6} {'KiB':>8} {'idle':>5} {'late':>5}",
        "─" * WIDTH,
    ]
    lines += [_row(each) for each in plan.ranked]
    if plan.rare:
        lines += ["workers apart, averaged now and then: fewer updates a sample", "─" * WIDTH]
        lines += [_row(each) for each in plan.rare]
    lines += [
        "of a minibatch: ms, and KiB that cross. MiB: the most that a worker holds.",
        "idle: % of the slowest worker's time. late: minibatches, of what comes back.",
        "",
    ]
    return [*lines, *(line for each in paragraphs(plan) for line in _wrapped(each))]


def paragraphs(plan: Plan) -> list[str]:
    """The verdict, what would change it, and what a plan cannot tell; a sentence or two each."""
    return [*_verdict(plan), *map(change_said, plan.changes), *_unknown(plan)]


def _wrapped(paragraph: str) -> list[str]:
    return textwrap.wrap(paragraph, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _line(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def heading(plan: Plan) -> str:
    """What was planned, and where."""
    workers, link = plan.cluster.workers, plan.cluster.link
    if plan.cluster.hosts == 1:
        where = "on this machine" if workers > 1 else "alone"
    else:
        where = (
            f"on {plan.cluster.hosts} hosts, {delay_said(link.delay_s)} and {rate_said(link.bytes_per_s)} between them"
        )
    return f"{plan.profile.name}: {workers} worker{'s' if workers > 1 else ''} {where}"


def model_line(plan: Plan) -> str:
    """What it was planned of."""
    profile = plan.profile
    size, units = profile.parameter_bytes / 2**20, len(profile.units)
    places = f"{units - 1} place{'s' if units != 2 else ''} for a cut measured"
    return f"batch {profile.batch_size}, {size:,.1f} MiB of weights, {places}, nothing trained"


def _row(each: Prediction) -> str:
    name = str(each.layout)
    name = name if len(name) <= NAME else name[: NAME - 1] + "…"
    late = f"{max(each.staleness):.0f}" if each.staleness else "–"
    idle = f"{100 * min(each.idle):.0f}"
    return (
        f"{name:<{NAME}} {each.samples_per_s:>10,.0f} {1e3 * each.seconds:>8,.1f} {each.peak_bytes / 2**20:>6,.0f} "
        f"{each.bytes_sent / 1024:>8,.0f} {idle:>5} {late:>5}"
    )


def _verdict(plan: Plan) -> Iterator[str]:
    best, exact = plan.best, plan.exact
    near = [each for each in plan.near if each.layout.kind != best.layout.kind]
    yield f"Fastest: {_said(plan, best)}"
    yield f"What decides it: {_bound(plan, best)}."
    if near:
        names = ", ".join(f"{each.layout} ({_behind(best, each)})" for each in near[:NAMED])
        names += f" and {len(near) - NAMED} more" if len(near) > NAMED else ""
        yield (
            f"Cannot tell it from {names}: a plan is off by {100 * TOLERANCE:.0f} % now and then. Compare them: "
            f"{_command(plan, [best, *near])}"
        )
    elif len(plan.ranked) > 1:
        following = next(each for each in plan.ranked if each is not best)
        yield f"Next: {following.layout}, {_behind(best, following)}."
    if exact is not None and exact is not best:
        yield (
            f"Fastest with back-propagation's own updates: {_said(plan, exact)} {best.layout.kind} would take in "
            f"{_gain(best, exact)} the samples a second; its updates are {best.layout.updates}, and what that costs of "
            "the metric is not in a plan: it pays if it needs less than that many times the samples."
        )
    if plan.rare and plan.rare[0].samples_per_s > best.samples_per_s:
        first = plan.rare[0]
        yield (
            f"{first.layout} would take in {_gain(first, best)} the samples a second of {best.layout.kind}; its "
            "workers train apart, so that an update sees a part of them alone: it pays if the model learns as much "
            "from them."
        )


def _said(plan: Plan, each: Prediction) -> str:
    """A layout with what had to be chosen for it, as one would type it."""
    layout, units = each.layout, plan.profile.units
    options = []
    if layout.cuts:
        options.append("--cuts " + ",".join(units[cut].name for cut in layout.cuts))
    if layout.family == "stages":
        if layout.message_dtype != "float32":
            options.append(f"--message-dtype {layout.message_dtype}")
        if layout.queue_depth != 8 and not (layout.kind == "delayed" and layout.queue_depth == 2):
            options.append(f"--queue-depth {layout.queue_depth}")
    if layout.replicas > 1:
        options.append(f"--replicas {layout.replicas} --replicas-every {layout.averaged_every}")
    chosen = f" ({' '.join(options)})" if options else ""
    return f"{layout}{chosen}, {each.samples_per_s:,.0f} samples/s."


def _bound(plan: Plan, each: Prediction) -> str:
    bound, seconds = each.bound, f"{1e3 * each.bound.seconds:,.1f} ms of {1e3 * each.seconds:,.1f}"
    if each.layout.family == "alone":
        return "one process has nobody to wait for, and the others lose more by waiting than they share"
    if each.layout.family == "data" and bound.why == "link":
        return f"the all-reduce of gradients, {seconds} that no computing hides"
    if bound.why == "worker":
        return f"worker {bound.where}'s own computing, {seconds}"
    if bound.why == "link":
        return f"the link after worker {bound.where}, which a minibatch's message holds for {seconds}"
    return f"the round trips after worker {bound.where}, {seconds}"


def _behind(best: Prediction, each: Prediction) -> str:
    slower = 100 * (1 - each.samples_per_s / best.samples_per_s)
    return f"{slower:.0f} % slower" if slower >= 0.5 else "as fast"


def _gain(one: Prediction, other: Prediction) -> str:
    return f"{one.samples_per_s / other.samples_per_s:.2f} times"


def _command(plan: Plan, rows: Sequence[Prediction]) -> str:
    """How to measure them."""
    names = [each.layout.row for each in rows]
    link = plan.cluster.link
    over = f" --link {delay_said(link.delay_s)},{8 * link.bytes_per_s / 1e6:g}mbit" if plan.cluster.hosts > 1 else ""
    cuts = next((each.layout.cuts for each in rows if each.layout.cuts), ())
    where = f" --cuts {','.join(plan.profile.units[cut].name for cut in cuts)}" if cuts else ""
    return f"syngrad compare {plan.typed} --workers {plan.cluster.workers}{over}{where} --methods {','.join(names)}"


def change_said(change: Change) -> str:
    """From where on another layout is the fastest."""
    lead, after = "On hosts of their own: from", f"{change.after} is the fastest, and {change.before}"
    if change.rate is not None:
        return f"{lead} {rate_said(change.rate)} down {after} with more."
    assert change.delay_s is not None
    return f"{lead} {delay_said(change.delay_s)} up {after} with less."


def _unknown(plan: Plan) -> Iterator[str]:
    if plan.restless:
        yield (
            f"Others used this machine: {100 * plan.profile.others:.0f} % of it before, and steps differed by "
            f"{100 * plan.profile.spread:.0f} %. Plan again when it is idle."
        )
    if any(each.layout.updates != EXACT for each in plan.ranked):
        yield "Samples a second are not seconds to a loss: how many samples a way of updating needs is not in a plan."
    refused = dict.fromkeys(why for _, why in plan.left_out)
    for why in refused:
        kinds = [kind for kind, each in plan.left_out if each == why]
        yield f"Left out: {', '.join(kinds)}: {why.removeprefix(kinds[0] + ': ')}"


def delay_said(seconds: float) -> str:
    """A delay, as one would type it."""
    if seconds <= 0:
        return "0ms"
    return f"{1e3 * seconds:.3g}ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g}us"


def rate_said(bytes_per_s: float) -> str:
    """A rate in words."""
    if bytes_per_s == float("inf"):
        return "no limit of the rate"
    bits = 8 * bytes_per_s
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"


def pilot_text(pilot: Pilot) -> list[str]:
    """What a short training adds to a plan; in 80 columns."""
    return [line for each in pilot_paragraphs(pilot) for line in _wrapped(each)]


def pilot_paragraphs(pilot: Pilot) -> list[str]:
    """Seconds to a loss, or to a value of the metric, and whether that pays."""
    exact = pilot.exact
    layout = exact.prediction.layout
    seeds = len(exact.samples)
    said = [f"Pilot: {pilot.steps} steps or more with {seeds} seeds."]
    if pilot.others:
        said[0] += f" To a loss of {pilot.target:.4g}, which all of them reached: {layout} {exact.seconds:.3g} s."
        said += [_raced(pilot, other, "that loss") for other in pilot.others]
    if pilot.aim is None:
        said.append("A loss this early says little of the metric at the end.")
    else:
        said += aim_paragraphs(pilot.aim)
    return said


def aim_paragraphs(aim: Aim) -> Iterator[str]:
    """Seconds to a value of the metric, or why that cannot be told."""
    goal = f"{aim.metric} {aim.value:g}"
    if aim.race is not None:
        exact = aim.race.exact
        yield (
            f"To {goal}, on held-out data: {exact.prediction.layout} {exact.seconds:.3g} s, and so all whose updates "
            "are back-propagation's own, at their pace."
        )
        for other in aim.race.others:
            yield _raced(aim.race, other, goal)
        if aim.computed:
            yield (
                "Where a run did not get so far, what it lacks of the best is taken to go on falling as a power of the "
                f"samples, as it did before, up to {FARTHEST:g} times as many; the intervals hold what that leaves."
            )
    for missed in aim.missed:
        ended = next(value for each, value in aim.ended if each is missed)
        yield (
            f"To {goal} {missed.layout}: cannot tell: the pilot ended at {ended:.3g}; give --pilot {aim.longer_s} or "
            "a nearer target."
        )


def _raced(race: Race, other: Piloted, goal: str) -> str:
    least, most = race.gain(other)
    low, high = other.interval
    return (
        f"{other.prediction.layout}: {other.seconds:.3g} s. It needs {low:.2f} to {high:.2f} times the samples "
        f"(95 %), and is {least:.2f} to {most:.2f} times as fast to {goal}: {race.verdict(other)}."
    )
