"""The tables of what recurrent networks cost."""

from __future__ import annotations

from collections.abc import Callable

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


TABLES: dict[str, Callable[[], str]] = {"recurrent_time": recurrent_time, "recurrent_memory": recurrent_memory}
