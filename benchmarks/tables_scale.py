"""The tables of what was simulated at scale, and of where it pays."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pays_grid
from cells import load, part, table

#: place → where its figures are from
SOURCES = {
    "rack": "Llama 3, [2407.21783](https://arxiv.org/abs/2407.21783): its network, and 419 "
    "failures in 54 days of 16,384 GPUs",
    "site": "rate: Ethernet, IEEE 802.3ae; failures: as in the rack",
    "between sites": "rate: DiLoCoX, [2506.21263](https://arxiv.org/abs/2506.21263); failures: as in the rack",
    "internet": "rate: SWARM's bound, [2301.11913](https://arxiv.org/abs/2301.11913); failures: an assumption",
}


def _share(cell: dict[str, Any]) -> str:
    if cell["share"] is None:
        return f"does not fit: {cell['peak_gb']:.0f} GB" if "peak_gb" in cell else "–"
    percent = 100 * cell["share"]
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"


def places() -> str:
    rows = []
    for name, each in load("scale")["places"].items():
        link, varied = each["link"], each["variation"]
        rate = 8 * link["bytes_per_s"]
        shown = f"{rate / 1e9:g} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:g} Mbit/s"
        delay = link["delay_s"] * 1e3
        hours = each["mean_hours"]
        fails = f"{hours / 24 / 365:.1f} years" if hours > 8760 else f"{hours:g} h"
        parts = f"{varied['jitter']:g}; {varied['stragglers']:.1%} × {varied['slower']:g}; {varied['unequal']:g}"
        rows.append([name, shown, f"{delay:g} ms", fails, parts, SOURCES[name]])
    head = ["", "rate", "delay, one way", "a worker fails every", "jitter; stragglers; unequal devices", "from"]
    return table(head, rows)


def at_scale() -> str:
    document = load("scale")
    at, columns = str(document["at"]), [(m, p) for m, places in document["sizes"].items() for p in places]
    names = list(document["sizes"][columns[0][0]][columns[0][1]][at])
    rows = [[row, *(_share(document["sizes"][m][p][at][row]) for m, p in columns)] for row in names]
    return table([f"{int(at):,} workers, simulated", *(f"{m}, {p}" for m, p in columns)], rows)


def sizes() -> str:
    """How shares change with the number of workers, over one link."""
    found = part("scale", "sizes", "1.3B", "site")
    counts = sorted(found, key=int)
    rows = [[row, *(_share(found[n][row]) for n in counts)] for row in found[counts[0]]]
    return table(["1.3B, site, simulated", *(f"{int(n):,} workers" for n in counts)], rows)


def racks() -> str:
    document = load("scale")
    columns = [(m, p) for m, places in document["racks"].items() for p in places]
    names = list(document["racks"][columns[0][0]][columns[0][1]])
    rows = [[row, *(_share(document["racks"][m][p][row]) for m, p in columns)] for row in names]
    return table(
        [f"{document['at']:,} workers, a rack a pipeline, simulated", *(f"{m}, {p}" for m, p in columns)], rows
    )


def longer() -> str:
    document = load("scale")
    found = document["longer"]
    rows = [[row, *(_share(found[n][row]) for n in found)] for row in next(iter(found.values()))]
    return table(
        [f"13B, site, {document['at']:,} workers, simulated", *(f"{n} sequences a worker" for n in found)], rows
    )


def disturbed() -> str:
    found = part("scale", "disturbed")
    rows = []
    for row, calm in found["none"].items():
        if calm["share"] is None:
            continue
        rest = [f"− {100 * (1 - each[row]['share'] / calm['share']):.1f} %" for each in list(found.values())[1:]]
        rows.append([row, _share(calm), *rest])
    return table(["1.3B, site, simulated", "nothing varies", *list(found)[1:]], rows)


def checked() -> str:
    rows = [
        [f"{each['workers']:,}", f"{each['failures']:,}", f"{each['simulated']:.3f}", f"{each['closed']:.3f}"]
        for each in part("scale", "checked")
    ]
    return table(["workers", "simulated failures", "share not lost, simulated", "in closed form"], rows)


def _cells() -> tuple[dict[str, dict[str, Any]], int]:
    """Cells that have been run to the end, in the order of the sweep, and how many there are."""
    every, entries = pays_grid.cells(), load("where_it_pays")["entries"]
    names = [cell.name for cell in every if cell.name in entries]
    return {name: entries[name] for name in names if entries[name].get("summary", {}).get("complete")}, len(every)


def where_it_pays() -> str:
    found, count = _cells()
    rows = []

    def ratio(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    for name, entry in found.items():
        s = entry["summary"]
        best, rival = s["best"], s["rival"]
        peaks = " / ".join(f"{s['peaks'][each] / 2**20:.0f}" for each in (best, rival))
        rows.append(
            [
                name,
                f"{best}: {s['rates'][best]:,.0f}",
                f"{rival}: {s['rates'][rival]:,.0f}",
                f"**{s['ratio']:.2f}**",
                ratio(s["planned_ratio"]),
                ratio(s["ratio_exact"]),
                ratio(s["ratio_memory"]),
                peaks,
                f"{entry['busy']:.0%}",
            ]
        )
    pays = sum(entry["summary"]["ratio"] >= 1 for entry in found.values())
    rows.append([f"run: {len(found)} of {count} cells", "", "", f"pays in {pays}", "", "", "", "", ""])
    head = ["", "Syngrad's best, samples/s", "best rival, samples/s", "ratio", "planned", "over the best exact rival"]
    return table([*head, "over rivals that hold no more", "peak of a worker, MiB", "used by others"], rows)


def where_planned() -> str:
    """Whether a plan would have said the same."""
    found, _ = _cells()
    summaries = [entry["summary"] for entry in found.values()]
    errors = [abs(error) for each in summaries for error in each["planned_errors"].values()]
    if not errors:
        return table(["rows", "throughput off by, median", "verdict right"], [["none yet", "–", "–"]])
    right = sum((each["ratio"] >= 1) == (each["planned_ratio"] >= 1) for each in summaries)
    median = f"{100 * statistics.median(errors):.0f} %, {100 * max(errors):.0f} % at worst"
    return table(
        ["rows", "throughput off by, median", "verdict right"],
        [[str(len(errors)), median, f"in {right} of {len(summaries)} cells"]],
    )


TABLES: dict[str, Callable[[], str]] = {
    "scale_places": places,
    "scale": at_scale,
    "scale_sizes": sizes,
    "scale_racks": racks,
    "scale_longer": longer,
    "scale_disturbed": disturbed,
    "scale_checked": checked,
    "where_it_pays": where_it_pays,
    "where_it_pays_planned": where_planned,
}
