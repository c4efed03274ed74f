"""Draws docs/images/at-scale.svg from the results of benchmarks/scale: shares of the ideal, against the workers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from cells import ROOT, load
from drawing import page, text

PANEL, HEIGHT, LEFT, TOP, GAP = 172, 210, 56, 44, 14
LOW = 1e-3
#: row → (colour, dashes)
LINES = {
    "ddp": ("#6e7781", ""),
    "diloco": ("#24292f", ""),
    "gpipe": ("#bf8700", "2 3"),
    "1f1b": ("#bf8700", ""),
    "1f1b, averaged rarely": ("#bf8700", "7 3"),
    "delayed": ("#8250df", ""),
    "corrected": ("#cf222e", ""),
    "synthetic": ("#0969da", ""),
    "synthetic:local": ("#1a7f37", ""),
}


def panel(model: str, place: str, x0: float, y0: float, first: bool) -> list[str]:
    sizes = load("scale")["sizes"][model][place]
    counts = sorted(map(int, sizes))
    low, high = math.log(counts[0]), math.log(counts[-1])

    def across(workers: int) -> float:
        return x0 + (PANEL - 10) * (math.log(workers) - low) / (high - low)

    def along(share: float) -> float:
        return y0 + HEIGHT * math.log(max(share, LOW)) / math.log(LOW)

    parts = [text(x0, y0 - 10, f"{model}, {place}", "title")]
    for tick in (1.0, 0.1, 0.01, LOW):
        y = along(tick)
        parts.append(f'<line class="grid" x1="{x0}" x2="{x0 + PANEL - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if first:
            parts.append(text(x0 - 6, y + 4, f"{100 * tick:g} %", "small", "end"))
    anchors = {counts[0]: "start", counts[-1]: "end"}
    parts += [text(across(n), y0 + HEIGHT + 16, f"{n:,}", "tiny", anchors.get(n, "middle")) for n in counts]
    for row, (colour, dashes) in LINES.items():
        points = [(n, sizes[str(n)][row]["share"]) for n in counts]
        drawn = " ".join(f"{across(n):.1f},{along(share):.1f}" for n, share in points if share is not None)
        if drawn:
            more = f' stroke-dasharray="{dashes}"' if dashes else ""
            kind = ' class="edge" style="stroke-width: 2"' if row == "diloco" else f' stroke="{colour}"'
            parts.append(f'<polyline points="{drawn}" fill="none"{kind} stroke-width="2"{more}/>')
    return parts


def svg() -> str:
    document = load("scale")
    models, places = list(document["sizes"]), list(document["places"])
    parts: list[str] = []
    for i, model in enumerate(models):
        for k, place in enumerate(places):
            parts += panel(model, place, LEFT + k * (PANEL + GAP), TOP + i * (HEIGHT + 62), k == 0)
    below = TOP + len(models) * (HEIGHT + 62) - 8
    for k, (row, (colour, dashes)) in enumerate(LINES.items()):
        x, y = LEFT + (k % 5) * 148, below + (k // 5) * 19
        more = f' stroke-dasharray="{dashes}"' if dashes else ""
        kind = ' class="edge" style="stroke-width: 2"' if row == "diloco" else f' stroke="{colour}"'
        parts.append(f'<line x1="{x}" x2="{x + 20}" y1="{y}" y2="{y}"{kind} stroke-width="2"{more}/>')
        parts.append(text(x + 25, y + 4, row))
    title = "Simulated: share of the ideal throughput, against the number of workers"
    parts.insert(0, text(LEFT, 16, f"{title}. What is missing does not fit into 80 GB.", "small"))
    return page(title, LEFT + len(places) * (PANEL + GAP), below + 32, parts)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "at-scale.svg"
    path.write_text(svg())
    print(f"wrote {path}")
