"""The report's text: verdict, tables, environment and configuration, as HTML. Whatever is not ours is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from syngrad.report.bars import PARTS
from syngrad.report.curves import known
from syngrad.report.figures import Measured
from syngrad.report.looks import Look
from syngrad.report.table import NONE, size, to_target
from syngrad.report.words import signed
from syngrad.results import BACKPROP, Aggregate

#: the verdict's answer → what the page says of it in large letters
ANSWERS = {
    "yes": "Yes: it pays here.",
    "memory": "Only where memory is short.",
    "no": "Meh: it does not pay here.",
}
UNDECIDED = "No answer."


def answer(verdict: Mapping[str, Any], answers: Mapping[str, str] = ANSWERS) -> str:
    """The verdict in large letters, its sentence, and the reasons."""
    pays = verdict.get("pays")
    kind = pays if pays in answers else "none"
    reasons = "".join(f"<li>{escape(str(reason))}</li>" for reason in verdict.get("reasons") or [])
    listed = f'<ul class="reasons">{reasons}</ul>' if reasons else ""
    return (
        f'<p class="answer answer-{kind}">{escape(answers.get(str(pays), UNDECIDED))}</p>'
        f'<p class="sentence">{escape(str(verdict.get("text", "")))}</p>{listed}'
    )


def tiles(m: Measured, verdict: Mapping[str, Any]) -> str:
    """The few figures that the verdict rests on."""
    row = next((row for row in m.rows if row.ok and row.label == verdict.get("row")), None)
    base = next((row for row in m.rows if row.ok and row.is_base), None)
    if row is None or base is None:
        return ""
    found: list[tuple[str, str, str]] = []
    if row.step_ratio is not None:
        found.append((f"{row.step_ratio:.2f} ×", "time of a step", f"of {_named(base)}'s"))
    if row.metric_difference is not None:
        unit = " points" if m.percent else ""
        note = "one seed, no interval"
        if row.metric_difference_interval is not None:
            low, high = (signed(bound, row.metric) for bound in row.metric_difference_interval)
            note = f"95 % interval {low} to {high}, {row.seeds} seeds"
        found.append((signed(row.metric_difference, row.metric) + unit, m.metric, note))
    if row.saved_ratio is not None:
        found.append(
            (f"{row.saved_ratio:.2f} ×", "kept for backward passes", f"{size(row.saved_activation_bytes)} at most")
        )
    if m.target is not None:
        found.append((to_target(row), f"to {m.metric} {m.goal}", f"{_named(base)}: {to_target(base)}"))
    return tiled(f"{row.label} against {base.label}", found)


def tiled(subject: str, found: Sequence[tuple[str, str, str]]) -> str:
    """A few figures in large letters: each with what it is, and a note."""
    cells = "".join(
        f"<div class=tile><dt>{escape(what)}</dt><dd><strong>{escape(value)}</strong>"
        f"<span>{escape(note)}</span></dd></div>"
        for value, what, note in found
    )
    return f'<p class="subject">{escape(subject)}</p><dl class="tiles">{cells}</dl>'


def swatch(look: Look) -> str:
    """The look of a row, drawn small: its line and its marker."""
    known = {"solid": "", "dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3", "longdash": "10 4",
             "longdashdot": "9 3 2 3"}  # fmt: skip
    dash = known.get(look.dash, look.dash.replace("px", "").replace(",", " "))
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    shapes = {
        "circle": '<circle cx="14" cy="7" r="4"/>',
        "square": '<rect x="10" y="3" width="8" height="8"/>',
        "diamond": '<path d="M14 2l5 5-5 5-5-5z"/>',
        "triangle-up": '<path d="M14 2l5 9h-10z"/>',
        "cross": '<path d="M12 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
        "x": '<path d="M10 3l8 8M18 3l-8 8" stroke-width="3"/>',
        "star": '<path d="M14 1l2 4 4 .5-3 3 1 4.500-4-2-4 2 1-4.500-3-3 4-.5z"/>',
        "triangle-down": '<path d="M14 12l5-9h-10z"/>',
        "hexagon": '<path d="M14 1.500l5 3v5l-5 3-5-3v-5z"/>',
        "pentagon": '<path d="M14 2l5 4-2 6h-6l-2-6z"/>',
    }
    return (
        f'<svg class="swatch row-{look.colour}" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">'
        f'<path d="M0 7h28" fill="none"{dashed}/>{shapes[look.marker]}</svg>'
    )


def legend(m: Measured, estimating: bool = False) -> str:
    """The rows with their looks, as buttons that hide and show their lines; or only those that estimate."""
    rows = [(row, look) for row, look, _ in m.each() if not estimating or known(list(row.cosines.values()))]
    keys = "".join(
        f'<li><button type="button" aria-pressed="true" data-row="{look.index}">{swatch(look)} '
        f"{escape(row.label)}</button></li>"
        for row, look in rows
    )
    said = "Rows; press one to hide its lines in the figures or to show them again"
    return keys and f'<ul class="legend" aria-label="{said}">{keys}</ul>'


def parts_legend() -> str:
    """The parts of a step with their colours."""
    keys = "".join(f'<li><span class="part part-{k}"></span> {name}</li>' for k, (name, _, _) in enumerate(PARTS, 1))
    return f'<ul class="legend parts" aria-label="Parts of a step">{keys}</ul>'


def tabled(
    heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, whole: Mapping[int, str] | None = None
) -> str:
    """A table that a phone shows as one card a row. Cells come as HTML; `whole` holds, by row, one cell for all but the
    first column. Roles are spelt out because cards take the table's own away.
    """
    top = "".join(f'<th role="columnheader" scope="col">{head}</th>' for head in heads)
    lines = []
    for index, row in enumerate(rows):
        cells = f'<th role="rowheader" scope="row">{row[0]}</th>'
        if whole and index in whole:
            cells += f'<td role="cell" class="whole" colspan="{len(heads) - 1}">{whole[index]}</td>'
        else:
            cells += "".join(
                f'<td role="cell" data-head="{head}">{cell}</td>' for head, cell in zip(heads[1:], row[1:], strict=True)
            )
        lines.append(f'<tr role="row">{cells}</tr>')
    return (
        f'<table role="table"><caption>{caption}</caption><thead role="rowgroup"><tr role="row">{top}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table>'
    )


def summary(m: Measured) -> str:
    """Every row with what it costs and what it gains."""
    rows: list[list[str]] = []
    whole: dict[int, str] = {}
    guarded, peak = any(row.guarded for row in m.rows), any(row.peak_memory_bytes is not None for row in m.rows)
    base = next((row.label for row in m.rows if row.is_base), m.baseline)
    heads = ["row", escape(m.unit), f"gap to {escape(base)}", "step", "kept", "cosine", "training"]
    heads += ["peak memory"] * peak + [f"to {escape(m.goal)}"] * (m.target is not None)
    heads += ["skipped updates"] * guarded
    for index, (row, look) in enumerate(zip(m.rows, m.looks, strict=True)):
        of = f", {row.seeds} of {row.seeds + row.failed} seeds" if row.ok and row.failed else ""
        name = f"{swatch(look)} <span>{escape(row.label)}{of}</span>"
        if not row.ok:
            rows.append([name])
            whole[index] = escape(row.status)
            continue
        cells = _cells(m, row)
        cells += [size(row.peak_memory_bytes)] * peak + [to_target(row)] * (m.target is not None)
        cells += [str(row.guarded)] * guarded
        rows.append([name, *map(escape, cells)])
    seeds = max((row.seeds for row in m.rows), default=1)
    said = "One seed: no spread and no interval can be given."
    if seeds > 1:
        said = f"Means over {seeds} seeds, ± the standard deviation; gaps are paired by seed, with their 95 % interval."
    said += f" Kept: for backward passes, at most. ×: of {escape(base)}'s. Training: seconds, evaluation left out."
    return tabled(heads, rows, said, whole)


def _cells(m: Measured, row: Aggregate) -> list[str]:
    factor, form = (100.0, ".1f") if m.percent else (1.0, ".4g")
    value = NONE if row.value is None else f"{row.value * factor:{form}}"
    if row.value is not None and row.value_spread is not None:
        value += f" ± {row.value_spread * factor:{form if m.percent else '.2g'}}"
    gap = NONE
    if row.metric_difference is not None and not row.is_base:
        gap = signed(row.metric_difference, row.metric)
        if row.metric_difference_interval is not None:
            low, high = (signed(bound, row.metric) for bound in row.metric_difference_interval)
            gap += f" [{low}, {high}]"
    told = [value for value in row.cosines.values() if value is not None]
    return [
        value.replace("-", "−"),
        gap,
        _times(NONE if row.step_s is None else f"{row.step_s * 1000:.3g} ms", row.step_ratio),
        _times(size(row.saved_activation_bytes), row.saved_ratio),
        NONE if not told else f"{sum(told) / len(told):.2f}".replace("-", "−"),
        NONE if row.train_s is None else f"{row.train_s:.3g} s",
    ]


def _named(base: Aggregate) -> str:
    return "back-propagation" if base.method == BACKPROP else base.label


def _times(shown: str, ratio: float | None) -> str:
    return shown if ratio is None else f"{shown} ({ratio:.2f} ×)"


def by_seed(m: Measured) -> str:
    """Every row with every seed."""
    heads = ["row", "seed", escape(m.unit), "training", "samples a second", "optimizer"]
    heads += [f"to {escape(m.goal)}"] * (m.target is not None)
    rows: list[list[str]] = []
    whole: dict[int, str] = {}
    for row, seeds in zip(m.rows, m.seeds, strict=True):
        for seed in seeds:
            name = escape(row.label)
            if seed["status"] != "ok":
                whole[len(rows)] = f"seed {escape(str(seed['seed']))}: {escape(str(seed['status']))}"
                rows.append([name])
                continue
            value, took, rate = seed["metric"]["value"], seed["train_s"], seed["samples_per_s"]
            reached = seed.get("time_to_target_s")
            cells = [
                str(seed["seed"]),
                m.shown(value),
                NONE if took is None else f"{took:.3g} s",
                NONE if rate is None else f"{rate:,.0f}",
                seed.get("optimizer") or NONE,
                *([NONE if reached is None else f"{reached:.3g} s"] * (m.target is not None)),
            ]
            rows.append([name, *map(escape, cells)])
    return tabled(heads, rows, "Every row with every seed.", whole)


def facts(pairs: Mapping[str, Any]) -> str:
    """Names and values, those that are unknown left out."""
    told = {key: value for key, value in pairs.items() if value not in (None, "", [])}
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(_plain(value))}</dd></div>" for key, value in told.items())
    return f'<dl class="facts">{items}</dl>'


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def environment(told: Mapping[str, Any]) -> str:
    """The machine and the software."""
    memory = told.get("memory_bytes")
    return facts(
        {
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
    )


def configuration(document: Mapping[str, Any]) -> str:
    """Every option as it was resolved, and each row's Trainer as it was configured."""
    shown: dict[str, Any] = {"config": document.get("config")}
    trainers: dict[str, Any] = {}
    for row in document["results"]:
        if row.get("trainer"):
            name = row["method"] + (f":{row['estimator']}" if row["estimator"] else "")
            trainers.setdefault(name, row["trainer"])
    if trainers:
        shown["trainers"] = trainers
    return f"<pre><code>{escape(json.dumps(shown, indent=2, ensure_ascii=False))}</code></pre>"
