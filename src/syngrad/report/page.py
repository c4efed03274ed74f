"""The report of a comparison: one page that holds all it needs and asks no network for anything.

It is made from a results document alone, so that an old file gives the same page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from syngrad import __version__
from syngrad.report import bars, figures, gradient_quality, tracks
from syngrad.report.figures import Figure
from syngrad.report.measured import Accounts, Line, Measured, finite_numbers, measured
from syngrad.report.phrasing import NONE, number, share, signed, size, to_target
from syngrad.report.table import environment_line
from syngrad.report.template import Row, Section, Table, an_option_a_line, facts, rendered
from syngrad.report.verdict import tiles
from syngrad.results import finite

#: the verdict's answer → what the page says of it in large letters
ANSWERS = {
    "yes": "Yes: it pays here.",
    "memory": "Only where memory is short.",
    "partly": "Against some, not against all.",
    "no": "Meh: it does not pay here.",
}
UNDECIDED = "No answer."
UNFINISHED = "No row has finished."
UNSAMPLED = "No row estimates gradients, or nothing was sampled."
UNTIMED = "Step times and memory were not taken."
UNTRACED = "No row of Syngrad's over several processes has told where its time went; results files do not hold it."


def page(document: Mapping[str, Any], command: str | None = None, accounts: Accounts | None = None) -> str:
    """The whole page.

    Args:
        document: a results file's content.
        command: what to type to repeat the run.
        accounts: of a comparison over workers, their own, which are in no file, for the timeline.
    """
    told: dict[str, Any] = finite(dict(document))
    m = measured(told, accounts)
    experiment, environment, verdict = told["experiment"], told["environment"], told.get("verdict") or {}
    over = f"{experiment['name']} over {m.workers} processes: does it pay?" if m.workers > 1 else ""
    sections = sections_of(m)
    created = f" on {told['created']}" if told.get("created") else ""
    pays = str(verdict.get("pays"))
    return rendered(
        "page.html.j2",
        sections,
        title=over or f"{experiment['name']}: does it pay?",
        question=over or f"{experiment['name']}: do synthetic gradients pay?",
        subtitle=_subtitle(told, m),
        ran=(told.get("config") or {}).get("command", "compare"),
        answer=(pays if pays in ANSWERS else "none", ANSWERS.get(pays, UNDECIDED)),
        verdict={"text": "", "reasons": [], **verdict},
        tiles=tiles(m, verdict.get("row")),
        summary=summary(m),
        seeds=by_seed(m),
        filed=True,
        command=None if command is None else an_option_a_line(command),
        environment=facts(named_environment(environment)),
        experiment=facts({key.replace("_", " "): value for key, value in experiment.items()}),
        configuration=json.dumps(_configuration(told), indent=2, ensure_ascii=False),
        made=f"Made by Syngrad {__version__}{created}",
        line=environment_line(environment, experiment),
    )


def sections_of(m: Measured) -> list[Section]:
    """The figures of a comparison."""
    return _sections_over_workers(m) if m.workers > 1 else _sections_in_one_process(m)


def _subtitle(document: Mapping[str, Any], m: Measured) -> str:
    """What was trained, in half a line."""
    experiment, link = document["experiment"], document["environment"].get("link")
    seeds, steps, stages = experiment.get("seeds", 1), experiment.get("steps"), experiment["stages"]
    cut = f"{stages} stages" if stages != 1 else "one stage"
    parts = [
        experiment["dataset"],
        f"{experiment['parameters']:,} parameters",
        cut if steps is None else f"{steps:,} steps of time an epoch",
        f"batch {experiment['batch_size']}",
        f"{experiment['epochs']} epochs" if experiment["epochs"] != 1 else "one epoch",
        f"{seeds} seeds" if seeds != 1 else f"seed {experiment['seed']}",
        f"{m.workers} processes" if m.workers > 1 else "",
        f"two emulated hosts, {link}" if m.workers > 1 and link else "",
    ]
    return " · ".join(part for part in parts if part)


# The sections of figures.


def _sections_in_one_process(m: Measured) -> list[Section]:
    split = bars.step_split(m)
    estimating = [line for line in m.done if finite_numbers(line.row.cosines.values())]
    learning = _drawn(*figures.learning(m), bars.target_time(m), figures.tradeoff(m))
    quality = _drawn(gradient_quality.by_interface(m), gradient_quality.over_time(m))
    parts = [name for name, _, _ in bars.PARTS] if split is not None else []
    return [
        Section("learning", "Learning", "Learning", UNFINISHED, learning, "rows", m.done),
        Section("gradients", "Gradients", "Gradient quality", UNSAMPLED, quality, "rows", estimating),
        Section("cost", "Cost", "Cost of a step", UNTIMED, _drawn(split, bars.memory(m)), "part", parts),
    ]


def _sections_over_workers(m: Measured) -> list[Section]:
    waiting = _drawn(tracks.timeline(m), tracks.shares(m))
    spans = [said for _, _, _, said in tracks.SPANS] if waiting else []
    curves = {figure.name: figure for figure in figures.learning(m)}
    if "metric-seconds" in curves:
        figures.shorten(curves["metric-seconds"], m)
    learning = _drawn(curves.get("metric-seconds"), curves.get("metric-epoch"), bars.target_time(m))
    return [
        Section("waiting", "Who waits", "Who waits", UNTRACED, waiting, "span", spans),
        Section("speed", "Speed", "Speed", UNFINISHED, _drawn(bars.rates(m), bars.sent(m))),
        Section("learning", "Learning", "Learning", UNFINISHED, learning, "rows", m.done),
    ]


def _drawn(*found: Figure | None) -> list[Figure]:
    return [figure for figure in found if figure is not None]


# The tables.

Columns = list[tuple[str, Callable[[Line], str]]]


def summary(m: Measured) -> Table:
    """Every row with what it costs and what it gains."""
    columns = _columns_over_workers(m) if m.workers > 1 else _columns_in_one_process(m)
    rows = []
    for line in m.lines:
        row = line.row
        of = f", {row.seeds} of {row.seeds + row.failed} seeds" if row.ok and row.failed else ""
        cells = [cell(line) for _, cell in columns] if row.ok else row.status
        rows.append(Row(row.label + of, cells, line.style))
    seeds = max((row.seeds for row in m.rows), default=1)
    means = f"Means over {seeds} seeds, ± the standard deviation"
    if m.workers > 1:
        said = f"{means}." if seeds > 1 else "One seed: no spread can be given."
        said += (
            " Sent: by all processes, for training. Staleness: minibatches between a message and the use of what came "
            "back for it, at the stalest interface. Peak memory: of the largest process, PyTorch itself included."
        )
    else:
        said = f"{means}; gaps are paired by seed, with their 95 % interval."
        said = said if seeds > 1 else "One seed: no spread and no interval can be given."
        said += f" Kept: for backward passes, at most. ×: of {m.base_label}'s. Training: seconds, evaluation left out."
    if _in_flight(m):
        said += " In flight: minibatches that one stage has kept at once until their true gradient came, at most."
    return Table(["row", *(head for head, _ in columns)], rows, said)


def _columns_in_one_process(m: Measured) -> Columns:
    def gap(line: Line) -> str:
        shown, interval = _gap(line), line.row.metric_difference_interval
        if shown == NONE or interval is None:
            return shown
        low, high = (signed(bound, line.row.metric) for bound in interval)
        return f"{shown} [{low}, {high}]"

    def step(line: Line) -> str:
        step_s = line.row.step_s
        return _times(NONE if step_s is None else f"{step_s * 1000:.3g} ms", line.row.step_ratio)

    def cosine(line: Line) -> str:
        told = [value for value in line.row.cosines.values() if value is not None]
        return number(sum(told) / len(told) if told else None, ".2f")

    columns: Columns = [
        (m.unit, lambda line: _value(m, line)),
        (f"gap to {m.base_label}", gap),
        ("step", step),
        ("kept", lambda line: _times(size(line.row.saved_activation_bytes), line.row.saved_ratio)),
        *_in_flight(m),
        ("cosine", cosine),
        ("training", lambda line: _seconds(line.row.train_s)),
    ]
    if any(row.peak_memory_bytes is not None for row in m.rows):
        columns.append(("peak memory", lambda line: size(line.row.peak_memory_bytes)))
    columns += _target(m)
    if any(row.guarded for row in m.rows):
        columns.append(("skipped updates", lambda line: str(line.row.guarded)))
    return columns


def _columns_over_workers(m: Measured) -> Columns:
    def rate(line: Line) -> str:
        spread = f" ± {line.rate_spread:,.0f}" if line.rate_spread is not None else ""
        return number(line.rate, ",.0f") + spread

    return [
        (m.unit, lambda line: _value(m, line)),
        ("gap to alone", _gap),
        ("samples a second", rate),
        ("× alone", lambda line: number(m.ratio(line), ".2f")),
        *_target(m),
        ("sent a minibatch", lambda line: size(line.sent_bytes)),
        ("staleness", lambda line: number(line.staleness, ".1f")),
        ("busiest waits", lambda line: share(line.idle)),
        ("peak memory", lambda line: size(line.row.peak_memory_bytes)),
        *_in_flight(m),
    ]


def _in_flight(m: Measured) -> Columns:
    """Only where anything was."""
    return [("in flight", lambda line: str(line.in_flight))] if any(line.in_flight for line in m.lines) else []


def _target(m: Measured) -> Columns:
    return [] if m.target is None else [(f"to {m.goal}", lambda line: to_target(line.row))]


def _value(m: Measured, line: Line) -> str:
    row, form = line.row, ".1f" if m.percent else ".4g"
    shown = number(None if row.value is None else row.value * m.factor, form)
    if row.value is not None and row.value_spread is not None:
        shown += f" ± {number(row.value_spread * m.factor, form if m.percent else '.2g')}"
    return shown


def _gap(line: Line) -> str:
    row = line.row
    return NONE if row.metric_difference is None or row.is_base else signed(row.metric_difference, row.metric)


def _times(shown: str, ratio: float | None) -> str:
    return shown if ratio is None else f"{shown} ({ratio:.2f} ×)"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g} s"


def by_seed(m: Measured) -> Table:
    """Every row with every seed."""
    heads = ["row", "seed", m.unit, "training", "samples a second", "optimizer"]
    heads += [f"to {m.goal}"] * (m.target is not None)
    rows = []
    for line in m.lines:
        for seed in line.seeds:
            if seed["status"] != "ok":
                rows.append(Row(line.label, f"seed {seed['seed']}: {seed['status']}"))
                continue
            cells = [
                str(seed["seed"]),
                m.shown(seed["metric"]["value"]),
                _seconds(seed["train_s"]),
                number(seed["samples_per_s"], ",.0f"),
                seed.get("optimizer") or NONE,
                *([_seconds(seed.get("time_to_target_s"))] * (m.target is not None)),
            ]
            rows.append(Row(line.label, cells))
    return Table(heads, rows, "Every row with every seed.")


# What was run, and on what.


def named_environment(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a results file says of the machine, in words."""
    memory = told.get("memory_bytes")
    return {
        "processor": told.get("cpu"),
        "cores": told.get("cores"),
        "threads used": told.get("threads"),
        "GPU": told.get("gpu") or "none",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else None,
        "system": told.get("os"),
        "Python": told.get("python"),
        "PyTorch": told.get("torch"),
        "link": told.get("link"),
    }


def _configuration(document: Mapping[str, Any]) -> dict[str, Any]:
    """Every option as it was resolved, and each row's Trainer as it was configured."""
    trainers: dict[str, Any] = {}
    for row in document["results"]:
        if row.get("trainer"):
            name = row["method"] + (f":{row['estimator']}" if row["estimator"] else "")
            trainers.setdefault(name, row["trainer"])
    return {"config": document.get("config"), **({"trainers": trainers} if trainers else {})}
