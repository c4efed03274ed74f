"""How a row is drawn wherever it is: its colour, its dash and its marker, so that no figure rests on colour alone.

Colours are names of CSS variables, resolved in the page, because they change with its colour scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from syngrad.results import Aggregate

#: how many colours the style sheet has beside backprop's: --row-1 to --row-9
COLOURS = 9
DASHES = ("dash", "dashdot", "dot", "longdash", "longdashdot", "solid", "5px,2px", "12px,3px", "8px,2px,2px,2px")
MARKERS = (
    "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "triangle-down", "hexagon"
)  # fmt: skip


def css(name: str) -> dict[str, str]:
    """A colour of the style sheet, to be resolved in the page."""
    return {"$css": name}


@dataclass(frozen=True)
class Style:
    """The style of one row; `index` counts the rows, `colour` is 0 for backprop."""

    index: int
    colour: int
    dash: str
    marker: str

    @property
    def line(self) -> dict[str, str]:
        """Its colour."""
        return css(f"--row-{self.colour}")

    @property
    def band(self) -> dict[str, str]:
        """Its colour, thin enough to lie behind lines."""
        return css(f"--band-{self.colour}")

    def trace(self, **more: Any) -> dict[str, Any]:
        """A line with markers in this style, as Plotly has it. `meta` says which row it belongs to."""
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "line": {"color": self.line, "dash": self.dash, "width": 2.5 if self.colour == 0 else 2},
            "marker": {"color": self.line, "symbol": self.marker, "size": 7, "maxdisplayed": 8},
            "meta": {"row": self.index},
            "showlegend": False,
            **more,
        }


class Labelled(Protocol):
    """What has a name and a look: a row of a comparison, a layout of a plan."""

    @property
    def label(self) -> str:
        """As it is typed."""

    @property
    def style(self) -> Style:
        """As it is drawn."""


@dataclass(frozen=True)
class Key:
    """A row as the legend has it."""

    label: str
    style: Style


def styles(rows: Sequence[Aggregate], first: int = 0) -> list[Style]:
    """One style a row: the baseline in the colour of ink, the others in turn; counted from `first` on."""
    return styles_for([row.is_base for row in rows], first)


def styles_for(bases: Sequence[bool], first: int = 0) -> list[Style]:
    """As :func:`styles`, of rows of which it is only known whether each is the baseline; counted from `first` on."""
    made, others = [], 0
    for index, base in enumerate(bases, first):
        if base:
            made.append(Style(index, 0, "solid", "circle"))
        else:
            k = others % COLOURS
            # after a round of colours the markers move on by one, so that no two styles are the same for 81 rows
            made.append(Style(index, k + 1, DASHES[k], MARKERS[(k + others // COLOURS) % len(MARKERS)]))
            others += 1
    return made


def hatched(colour: str, pattern: str) -> dict[str, Any]:
    """A bar's marker in a colour of the style sheet; without hatching where the pattern is ""."""
    shape = {"shape": pattern, "bgcolor": css(colour), "fgcolor": css("--card"), "size": 6, "solidity": 0.25}
    return {"color": css(colour), "pattern": shape}
