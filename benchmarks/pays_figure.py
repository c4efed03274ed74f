"""Draws docs/images/where-it-pays.svg from its results: heat maps with a line at break-even.

A cell that has not been run is drawn empty; what has been run is counted.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from cells import ROOT, load
from drawing import page, text
from pays_grid import MAPS, Cell, Map, cells

WIDE, HIGH, LABEL, TOP, COLUMN = 86, 40, 84, 66, 470
#: a ratio of so much, or its inverse, has the full colour
FULL = 4.0
PAYS, DOES_NOT = (31, 136, 61), (188, 76, 0)


def known() -> dict[Cell, dict[str, Any]]:
    """What has been run to the end."""
    entries = load("where_it_pays")["entries"]
    found = {cell: entries[cell.name]["summary"] for cell in cells() if cell.name in entries}
    return {cell: each for cell, each in found.items() if each.get("complete")}


def colour(ratio: float) -> str:
    strength = min(abs(math.log(ratio)) / math.log(FULL), 1.0) * 0.75
    towards = PAYS if ratio >= 1 else DOES_NOT
    return "#" + "".join(f"{round(255 + strength * (each - 255)):02x}" for each in towards)


def heat(made: Map, found: dict[Cell, dict[str, Any]], x0: float, y0: float) -> list[str]:
    parts = [text(x0, y0 - 30, made.title, "title")]
    parts += [text(x0 + LABEL + (k + 0.5) * WIDE, y0 - 8, each, "tiny", "middle") for k, each in enumerate(made.across)]
    ratio = {
        (i, k): found[cell]["ratio"] for i, row in enumerate(made.cells) for k, cell in enumerate(row) if cell in found
    }
    for i, row in enumerate(made.cells):
        parts.append(text(x0 + LABEL - 8, y0 + (i + 0.6) * HIGH, made.down[i], "small", "end"))
        for k, cell in enumerate(row):
            x, y = x0 + LABEL + k * WIDE, y0 + i * HIGH
            box = f'x="{x + 1}" y="{y + 1}" width="{WIDE - 2}" height="{HIGH - 2}"'
            if (i, k) not in ratio:
                parts.append(f'<rect class="empty" {box}/>')
                continue
            parts.append(f'<rect {box} fill="{colour(ratio[i, k])}"/>')
            parts.append(text(x + WIDE / 2, y + 17, f"{ratio[i, k]:.2f}", "small on", "middle"))
            planned = found[cell]["planned_ratio"]
            parts.append(text(x + WIDE / 2, y + 32, f"planned {planned:.2f}", "tiny on", "middle"))
    for (i, k), each in ratio.items():  # break-even: between a cell where it pays and one where it does not
        x, y = x0 + LABEL + k * WIDE, y0 + i * HIGH
        for (j, m), line in (
            ((i, k + 1), (x + WIDE, y, x + WIDE, y + HIGH)),
            ((i + 1, k), (x, y + HIGH, x + WIDE, y + HIGH)),
        ):
            if (j, m) in ratio and (each >= 1) != (ratio[j, m] >= 1):
                parts.append('<line class="edge" x1="{}" y1="{}" x2="{}" y2="{}"/>'.format(*line))
    return parts


def svg() -> str:
    found = known()
    count = (
        f"{len(found)} of {len(cells())} cells have been run; it pays in {sum(e['ratio'] >= 1 for e in found.values())}"
    )
    title = "Samples a second: the best of Syngrad's rows over the best rival of any kind"
    parts = [text(8, 18, f"{title}. {count}.", "small")]
    heights = [0.0, 0.0]
    for n, made in enumerate(MAPS):
        column = n % 2
        y0 = TOP + heights[column]
        parts += heat(made, found, 8 + column * COLUMN, y0)
        heights[column] += len(made.down) * HIGH + 62
    return page(title, 2 * COLUMN, TOP + max(heights) - 40, parts)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "where-it-pays.svg"
    path.write_text(svg())
    print(f"wrote {path}")
