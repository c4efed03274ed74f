"""Draws docs/figure.svg from the results files: accuracy against depth, and step time against back-propagation."""

from __future__ import annotations

import sys
from pathlib import Path

from tables import ROOT, load

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 330, 52, 54, 50
PANEL = 350
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; } .small { font-size: 12px; } .title { font-weight: 600; }
  .axis { stroke: #8c959f; stroke-width: 1; } .grid { stroke: #d0d7de; stroke-width: 0.6; } .one { stroke: #57606a;
  stroke-dasharray: 4 3; } @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .grid { stroke: #30363d; } }
"""
#: row → (label, colour)
LINES = {
    "backprop": ("back-propagation", "#6e7781"),
    "default": ("synthetic (default)", "#0969da"),
    "local": ("synthetic: local", "#1a7f37"),
    "linear": ("synthetic: linear cDNI", "#cf222e"),
    "zero": ("zero (the floor)", "#9a6700"),
}
BARS = {
    "hand-written": "hand-written loop",
    "backprop": "Trainer, backprop",
    "default": "synthetic (default)",
    "local, linear head": "synthetic: local",
    "linear cDNI, every 4th": "linear cDNI, every 4th",
    "linear cDNI": "linear cDNI",
    "mlp, hidden 256": "mlp",
}


def accuracy_panel(x0: int) -> list[str]:
    rows = [row for row in load("accuracy")["aggregate"] if not row["he"] and row["method"] in LINES]
    depths = sorted({row["layers"] for row in rows})
    low, high = 0.0, 1.0
    across = {d: x0 + 30 + i * (PANEL - 60) / (len(depths) - 1) for i, d in enumerate(depths)}

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - max(value, low)) / (high - low)

    parts = [f'<text class="title" x="{x0}" y="20">Test accuracy, an interface at every layer</text>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{x0}" x2="{x0 + PANEL - 30}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="small" x="{x0 - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    parts += [
        f'<text class="small" x="{across[d]:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{d} layers</text>'
        for d in depths
    ]
    for i, (name, (label, colour)) in enumerate(LINES.items()):
        values = {row["layers"]: row["mean"] for row in rows if row["method"] == name}
        points = " ".join(f"{across[d]:.1f},{y(values[d]):.1f}" for d in depths if d in values)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        parts += [
            f'<circle cx="{across[d]:.1f}" cy="{y(values[d]):.1f}" r="3.4" fill="{colour}"/>'
            for d in depths
            if values.get(d, 0) >= low
        ]
        at = x0 + 4, HEIGHT - BOTTOM - 70 + i * 15
        parts.append(f'<rect x="{at[0]}" y="{at[1] - 9}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text class="small" x="{at[0] + 17}" y="{at[1] - 2}">{label}</text>')
    return parts


def step_panel(x0: int) -> list[str]:
    rows = load("step_time")["results"]["256"]
    longest = max(rows[name]["ratio"]["median"] for name in BARS) * 1.12
    left, room = x0 + 150, PANEL - 130
    parts = [f'<text class="title" x="{x0}" y="20">Step time, × a hand-written loop</text>']
    for i, (name, label) in enumerate(BARS.items()):
        ratio = rows[name]["ratio"]["median"]
        y = TOP + i * 31
        colour = "#0969da" if name == "default" else "#8c959f"
        length = room * ratio / longest
        parts.append(f'<text class="small" x="{left - 8}" y="{y + 14}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="20" fill="{colour}"/>')
        parts.append(f'<text class="small" x="{left + length + 6:.1f}" y="{y + 14}">{ratio:.2f}</text>')
    one = left + room / longest
    parts.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 8}" y2="{TOP + len(BARS) * 31}"/>')
    return parts


def svg() -> str:
    body = "\n".join(accuracy_panel(LEFT) + step_panel(LEFT + PANEL + 40))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Accuracy against depth and step time">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figure.svg"
    path.write_text(svg())
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
