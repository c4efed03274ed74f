"""Draws docs/images/which-method.svg from the results of benchmarks/corrected: bits lost against arithmetic added."""

from __future__ import annotations

import sys
from pathlib import Path

from tables import ROOT, load

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 60, 230, 40, 52
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; } .small { font-size: 12px; } .title { font-weight: 600; }
  .grid { stroke: #d0d7de; stroke-width: 0.6; } @media (prefers-color-scheme: dark) { text { fill: #e6edf3; }
  .grid { stroke: #30363d; } }
"""
COLOURS = {
    "backprop": "#6e7781",
    "local": "#1a7f37",
    "default": "#0969da",
    "delayed": "#9a6700",
    "corrected": "#cf222e",
}


def points() -> list[tuple[str, float, float]]:
    """(row, operations as a multiple of back-propagation's, bits lost), of all rows that have both."""
    document = load("corrected")
    operations = document["arithmetic"]
    rows = {row["row"]: row for row in document["aggregate"]}
    found = [(name, operations[name], row["gap"]) for name, row in rows.items() if name in operations]
    return [(name, x, 0.0 if name == "backprop" else gap) for name, x, gap in found if gap is not None]


def svg() -> str:
    """The picture; labels stand beside it, in the order of their points."""
    found = sorted(points(), key=lambda point: -point[2])
    low, high = 0.98, max(x for _, x, _ in found) * 1.02
    bottom, top = min(0.0, *(y for *_, y in found)) - 0.005, max(y for *_, y in found) * 1.1

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - low) / (high - low)

    def along(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - y) / (top - bottom)

    parts = [f'<text class="title" x="{LEFT}" y="20">Bits lost to back-propagation, against its arithmetic</text>']
    step = 0.02 if top < 0.15 else 0.1
    for k in range(int(top / step) + 1):
        y = along(k * step)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{k * step:.2f}</text>')
    for k in range(10, int(high * 10) + 1, 2):
        x = across(k / 10)
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">× {k / 10:.1f}</text>'
        )
    at = TOP + 6.0
    for name, x, y in found:
        colour = COLOURS[next(kind for kind in COLOURS if name.startswith(kind))]
        spot = across(x), along(y)
        at = max(at + 17, spot[1] + 4)
        parts.append(f'<circle cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="4.2" fill="{colour}"/>')
        parts.append(
            f'<path d="M{spot[0] + 5:.1f} {spot[1]:.1f} L{WIDTH - RIGHT + 8} {at - 4:.1f}" stroke="{colour}" '
            'stroke-width="0.6" fill="none" opacity="0.6"/>'
        )
        parts.append(f'<text class="small" x="{WIDTH - RIGHT + 12}" y="{at:.1f}">{name}: {y:+.3f}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Bits lost against arithmetic">\n<title>Bits lost, against arithmetic</title>\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "which-method.svg"
    path.write_text(svg())
    print(f"wrote {path}")
