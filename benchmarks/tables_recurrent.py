"""The tables of recurrent networks: what they cost, and what they learn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from cells import mebibytes, part, quartiles, table

CLAIM = "recurrent_cost"
BARS = {"synthetic": "1.2", "synthetic + auxiliary": "1.35"}


def recurrent_time() -> str:
    """Processor time of a window, by itself and against the two references; before what was made faster, and now."""
    rows = []
    for setting, now in part(CLAIM, "results", "after").items():
        before = (
            part(CLAIM, "results", "before")[setting]["rows"] if setting in part(CLAIM, "results", "before") else {}
        )
        for name, row in now["rows"].items():
            found = row["processor"]
            old = before.get(name, {}).get("processor")
            rows.append(
                [
                    f"{name}, {setting}",
                    f"{found['ms']['median']:.2f} ms",
                    quartiles(found["to plain"]),
                    quartiles(row["clock"]["to plain"]),
                    BARS.get(name, "–"),
                    quartiles(found["to hand-written"]),
                    f"{row['faults']['median']:,.0f}" if "faults" in row else "–",
                    "–" if old is None else f"{old['to plain']['median']:.2f}; {old['to hand-written']['median']:.2f}",
                ]
            )
    head = [
        "",
        "a window",
        "× plain",
        "by the clock",
        "bar",
        "× hand-written",
        "page faults",
        "before: × plain; × hand-written",
    ]
    return table(head, rows)


def recurrent_memory() -> str:
    """Peaks at both lengths, fed window by window or given whole, and the shares of plain."""
    rows = []
    for name, found in part(CLAIM, "results", "memory").items():
        how, steps = name.split()
        plain = found.get("plain")
        if plain is None:
            continue
        for row, figures in sorted(found.items(), key=lambda item: item[0] != "plain"):
            shares = [figures[key] / plain[key] for key in ("saved_bytes", "process_bytes", "grown_bytes")]
            cells = [mebibytes(figures[key]) for key in ("saved_bytes", "process_bytes", "grown_bytes")]
            rows.append(
                [
                    f"{row}, {int(steps):,} steps, {'window by window' if how == 'stream' else 'whole'}",
                    *(f"{cell} (×{share:.3f})" for cell, share in zip(cells, shares, strict=True)),
                    mebibytes(16 * figures["parameters"]),
                ]
            )
    head = ["", "kept for the backward pass", "peak of the process", "of it grown", "weights, gradients, Adam"]
    return table(head, rows)


def two_clocks() -> str:
    medians = part("two_clocks", "summary", "medians")
    head = ["", "images", "seconds", "error, slow net", "error, fast net", "slow, × the first", "to it, s"]
    rows = []
    for name, r in medians.items():
        there, goal = r["seconds_to_goal"], r["whole_seconds_to_goal"]
        soon = "–" if there is None else f"{there:.0f}" if name == "back-propagation" else f"{there:.0f} of {goal:.0f}"
        errors = [f"{r[f'final_{net}']:.3f}" for net in ("slow", "fast")]
        seen = f"{r['images'] / 1e6:.1f} M"
        rows.append([name, seen, f"{r['seconds']:.0f}", *errors, f"{r['slow_of_whole']:.2f}", soon])
    return table(head, rows)


def two_clocks_alike() -> str:
    """Each row's slow error beside back-propagation's after as many images, and after as many seconds."""
    head = ["", "its error", "back-propagation's at as many images", "at as many seconds", "µs an image"]
    rows = []
    for name, r in part("two_clocks", "summary", "medians").items():
        cells = [r["final_slow"], r["whole_at_its_images"], r["whole_at_its_seconds"]]
        rows.append([name, *(f"{cell:.3f}" for cell in cells), f"{r['us_an_image']:.1f}"])
    return table(head, rows)


def lessons(claim: str, heads: list[str]) -> str:
    """Every group and row: the median over seeds, each seed, and the cosine with the true gradient."""
    rows = []
    for group, found in part(claim, "medians").items():
        for row, values in found.items():
            cosine = values["true_cosine"]
            each = ", ".join(f"{value:.4g}" for value in values["values"])
            rows.append(
                [group, f"`{row}`", f"{values['median']:.4g}", each, "–" if cosine is None else f"{cosine:.2f}"]
            )
    return table(heads, rows)


def copying() -> str:
    """Longest outputs by task and window: medians of the ways side by side, and the ratios."""
    rows = []
    for group, found in part("copying", "medians").items():
        window = group.rpartition(" ")[2]
        plain, *ours = [found.get(f"{kind}({window})") for kind in ("bptt", "synthetic", "auxiliary")]
        ratios = [None if way is None or plain is None else way["median"] / plain["median"] for way in ours]
        cosine = ours[0]["true_cosine"] if ours[0] is not None else None
        cells = [_with_seeds(way) for way in (plain, *ours)]
        rows.append([group, *cells, *("–" if each is None else f"{each:.2f}" for each in (*ratios, cosine))])
    head = ["task, T", "plain", "synthetic", "+ auxiliary", "× plain", "+ auxiliary, × plain", "true cosine"]
    return table(head, rows)


def copying_blind() -> str:
    """What the state alone is worth to the estimator."""
    found = part("copying", "medians", "copy 3")
    shown = {
        "bptt(3)": "no estimate",
        "synthetic(3)": "sees what is to come",
        "synthetic(3):linear(context=False)": "sees the state alone",
    }
    rows = [[f"`{row}`", said, _with_seeds(found[row])] for row, said in shown.items() if row in found]
    return table(["copy, T = 3", "the estimator", "length solved"], rows)


def _with_seeds(way: dict[str, Any] | None) -> str:
    return "–" if way is None else f"{way['median']:g} ({', '.join(f'{value:g}' for value in way['values'])})"


def char_lm() -> str:
    """Bits per character in the end, and at equal seconds."""
    found, runs = part("char_lm", "medians")["char-lm"], part("char_lm", "runs")
    least = min(run["train_s"] for run in runs)
    marks = [least / 4, least / 2, least]
    rows = []
    for row, values in found.items():
        own = [run["history"] for run in runs if run["row"] == row]
        at = [statistics.median(interpolated(history, mark) for history in own) for mark in marks]
        cosine = values["true_cosine"]
        rows.append(
            [
                f"`{row}`",
                f"{values['median']:.3f}",
                ", ".join(f"{value:.3f}" for value in values["values"]),
                *(f"{value:.3f}" for value in at),
                f"{values['train_s']:.0f} s",
                "–" if cosine is None else f"{cosine:.2f}",
            ]
        )
    head = ["", "bits, median", "seeds", *(f"after {mark:.0f} s" for mark in marks), "all", "true cosine"]
    return table(head, rows)


def interpolated(history: list[list[float]], seconds: float) -> float:
    """The metric after so many seconds, in a straight line between two examinations."""
    before = history[0]
    for point in history:
        if point[1] >= seconds:
            span = point[1] - before[1]
            return before[2] + (point[2] - before[2]) * ((seconds - before[1]) / span if span > 0 else 1.0)
        before = point
    return before[2]


def online() -> str:
    return lessons("online", ["task", "row", "median", "seeds", "true cosine"])


TABLES: dict[str, Callable[[], str]] = {
    "recurrent_time": recurrent_time,
    "recurrent_memory": recurrent_memory,
    "two_clocks": two_clocks,
    "two_clocks_alike": two_clocks_alike,
    "copying": copying,
    "copying_blind": copying_blind,
    "char_lm": char_lm,
    "online": online,
}
