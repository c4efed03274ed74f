"""The rows of rivals as they are typed: `ddp`, `ddp:bf16`, `ddp:periodic(every=16)`, `gpipe`, `1f1b`, `plain`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from syngrad.errors import ConfigError, unknown
from syngrad.experiments.experiment import check_count

RIVALS = ("plain", "ddp", "ddp:bf16", "ddp:periodic", "gpipe", "1f1b")
#: steps between two averages of the models where nothing else is said
EVERY = 8


@dataclass(frozen=True)
class Rival:
    """kind: plain, ddp, gpipe or 1f1b. variant: of ddp, "" for none. every: steps from average to average."""

    kind: str
    variant: str = ""
    every: int = EVERY

    @property
    def pipelined(self) -> bool:
        """Whether each process has a part of the model, and not all of it."""
        return self.kind in ("gpipe", "1f1b")

    @property
    def estimator(self) -> str:
        """What stands behind the colon."""
        return f"{self.variant}(every={self.every})" if self.every != EVERY else self.variant

    def __str__(self) -> str:
        return f"{self.kind}:{self.estimator}" if self.variant else self.kind


def parse_rival(text: str) -> Rival:
    """Raises ConfigError for an unknown row (the valid ones listed), and an option that it does not take."""
    match = re.fullmatch(r"([a-z0-9]+(?::[a-z0-9]+)?)(?:\((.*)\))?", text.strip().lower())
    if match is None or match[1] not in RIVALS:
        raise unknown("row", text, RIVALS)
    kind, _, variant = match[1].partition(":")
    if match[2] is None:
        return Rival(kind, variant)
    option = re.fullmatch(r"\s*every\s*=\s*(\d+)\s*", match[2], re.ASCII)
    if variant != "periodic" or option is None:
        remedy = "write ddp:periodic(every=8)" if variant == "periodic" else f"it takes none; write {match[1]}"
        raise ConfigError(f"row {text!r:.60}: cannot read its option; {remedy}")
    return Rival(kind, variant, check_count(f"row {text!r:.60}: every", int(option[1]), 2))


def check_workers(rival: Rival, workers: int) -> None:
    """Refuse a number of processes that the row cannot run in."""
    if rival.kind == "plain" and workers != 1:
        raise ConfigError(f"row 'plain' is one process, got workers={workers}; give workers=1")
    if rival.kind != "plain" and workers < 2:
        raise ConfigError(f"row {str(rival)!r} needs at least 2 workers, got {workers}; give --workers 2")
