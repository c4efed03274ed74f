"""What benchmarks/where_it_pays sweeps, as data: the cells of every map, ordered so that a prefix is a map too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

DEPTH = 6
#: none: two processes of one host
NO_LINK = "one host"
LINKS = (NO_LINK, "5ms,1gbit", "20ms,100mbit", "50ms,20mbit")
SLOW = "20ms,100mbit"
WIDTHS, BATCHES = (256, 512, 1024, 2048), (32, 128, 512)
DELAYS, RATES = ("1ms", "20ms", "100ms"), ("1gbit", "100mbit", "10mbit")
#: name → the cuts of six hidden layers and an output: the worker's own first, and those of more stages
CUTS = {"even": "3", "uneven": "1"}
FOUR_STAGES = "2_3_5"
MIDDLE = "3"


@dataclass(frozen=True)
class Cell:
    """One configuration: an MLP of 784-width×6-10 over two workers."""

    width: int = 1024
    batch_size: int = 128
    link: str = NO_LINK
    dtype: str = "float32"
    balance: str = "even"
    stages: int = 2

    @property
    def name(self) -> str:
        more = [self.dtype] if self.dtype != "float32" else []
        more += [self.balance] if self.balance != "even" else []
        more += [f"{self.stages} stages"] if self.stages != 2 else []
        return ", ".join([f"width {self.width}", f"batch {self.batch_size}", self.link, *more])

    @property
    def experiment(self) -> str:
        """Of planner/drawn.py."""
        cuts = FOUR_STAGES if self.stages == 4 else CUTS[self.balance]
        return f"mlp_{self.width}_{DEPTH}_cut{cuts}"

    @property
    def place(self) -> str:
        """The layer that starts the second worker's part."""
        return MIDDLE if self.stages == 4 else CUTS[self.balance]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Map:
    """A heat map: what its rows and columns are, and the cell of each."""

    title: str
    down: tuple[str, ...]
    across: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


def _map(title: str, down: tuple[Any, ...], across: tuple[Any, ...], cell: Any, label: str = "{}") -> Map:
    rows = tuple(tuple(cell(a, b) for b in across) for a in down)
    return Map(title, tuple(label.format(each) for each in down), tuple(map(str, across)), rows)


_BASES = (NO_LINK, SLOW)
_VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "uneven": {"balance": "uneven"},
    "4 stages": {"stages": 4},
}
MAPS: tuple[Map, ...] = (
    _map("width and link, batch 128", WIDTHS, LINKS, lambda w, link: Cell(width=w, link=link), "width {}"),
    _map("batch and link, width 512", BATCHES, LINKS, lambda b, link: Cell(512, b, link), "batch {}"),
    _map("delay and rate, width 1024", DELAYS, RATES, lambda d, rate: Cell(link=f"{d},{rate}")),
    _map(
        "what else, width 1024", tuple(_VARIANTS), _BASES, lambda name, link: Cell(link=link, **_VARIANTS[name])
    ),
)  # fmt: skip
#: a map of every question, its corners first
COARSE = (
    *(Cell(width, link=link) for link, width in product((NO_LINK, SLOW, "5ms,1gbit"), (1024, 256))),
    *(Cell(link=SLOW, **_VARIANTS[name]) for name in ("bfloat16", "uneven", "int8", "4 stages")),
    *(Cell(link=f"{delay},{rate}") for rate, delay in product(("1gbit", "10mbit"), ("100ms", "1ms"))),
    *(Cell(512, batch, link) for batch, link in product((32, 512, 128), _BASES)),
    *(Cell(width, link="50ms,20mbit") for width in (1024, 256)),
    Cell(2048, link=SLOW),
)


def cells() -> list[Cell]:
    """All of them, each once: the coarse grid, and then what lies between."""
    return list(dict.fromkeys([*COARSE, *(cell for each in MAPS for row in each.cells for cell in row)]))
