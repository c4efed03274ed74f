"""What the pictures made from results files share: how they look, in light and in dark, and what stands around them."""

from __future__ import annotations

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; } .small { font-size: 12px; } .tiny { font-size: 11px; }
  .title { font-weight: 600; } .grid { stroke: #d0d7de; stroke-width: 0.6; } .empty { fill: none; stroke: #8c959f;
  stroke-dasharray: 3 3; } .edge { stroke: #24292f; stroke-width: 3.2; } .on { fill: #24292f; }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .grid { stroke: #30363d; } .edge { stroke: #e6edf3; }
  text.on { fill: #24292f; } }
"""


def text(x: float, y: float, said: str, kind: str = "small", anchor: str = "start") -> str:
    escaped = said.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped}</text>'


def page(title: str, width: float, height: float, parts: list[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{title}">\n<title>{title}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )
