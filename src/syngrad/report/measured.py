"""What is told of a comparison, in one process or over several: its rows over their seeds, from a results document.

The workers' own accounts of their time are no part of a results file. They come beside it; without them, as for a file
that is read again, nothing is said of idle time, and everything else is as it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from syngrad.report.style import Style, styles
from syngrad.results import BACKPROP, Aggregate

#: by the row's label and its seed: what every worker says of itself, see :class:`syngrad.trainer.history.History`
Accounts = Mapping[tuple[str, int], Sequence[dict[str, Any]]]

#: what a worker waits for while it trains: its previous one, its next one
PREVIOUS, NEXT = WAITS = ("wait for previous", "wait for next")
#: what a worker does while it trains, as it is called in its trace
KINDS = ("work", "send", *WAITS)

ALONE, ALL_THREADS = "alone", "alone(threads)"
#: Syngrad's own methods; `zero` is the floor and competes with nobody
OWN = ("synthetic", "mixed", "delayed", "corrected", "zero")


class OverWorkers(Aggregate):
    """A row under the name that it has beside rows over several workers, where backprop is "alone"."""

    @property
    def label(self) -> str:
        """As it is typed."""
        return ALONE if self.method == BACKPROP else super().label


@dataclass
class Line:
    """A row over its seeds with its style.

    Args:
        seeds: their own rows, those that failed too.
        rate, rate_spread: samples a second over several workers, and its deviation; this and what follows over the
            seeds that ran to their end.
        sent_bytes: over the links, a minibatch.
        staleness: minibatches, of the interface that is stalest.
        in_flight: the most minibatches that a stage has kept at once until their true gradient came; 0 where none has.
        idle: the share of its time that the busiest worker waited.
        accounts: the workers' own, of the first of the seeds.
    """

    row: Aggregate
    style: Style
    seeds: list[dict[str, Any]] = field(default_factory=list)
    rate: float | None = None
    rate_spread: float | None = None
    sent_bytes: float | None = None
    staleness: float | None = None
    in_flight: int = 0
    idle: float | None = None
    accounts: Sequence[dict[str, Any]] = ()

    @property
    def label(self) -> str:
        """The row as it is typed."""
        return self.row.label

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The seeds that ran to their end."""
        return [seed for seed in self.seeds if seed["status"] == "ok"]

    @property
    def own(self) -> bool:
        """Whether it is Syngrad's over several workers."""
        return self.row.method.partition("(")[0] in OWN

    @property
    def single(self) -> bool:
        """Whether it is one process alone."""
        return self.row.method in (BACKPROP, ALL_THREADS, "plain")

    @property
    def rare(self) -> bool:
        """Whether its workers do not share every minibatch's update, but average their models now and then."""
        periodic = self.row.method == "ddp" and self.row.estimator.startswith("periodic")
        return periodic or self.row.method.startswith("diloco")


@dataclass
class Measured:
    """All rows.

    Args:
        target: the metric's value that was timed, if one was.
        baseline: what a recurrent net's rows are held against; None where that is backprop.
        workers: processes of the rows over several; 1 for a comparison in one.
    """

    lines: list[Line]
    target: float | None = None
    baseline: str | None = None
    workers: int = 1

    @property
    def rows(self) -> list[Aggregate]:
        """Every row over its seeds."""
        return [line.row for line in self.lines]

    @property
    def done(self) -> list[Line]:
        """Those that ran to their end with at least one seed."""
        return [line for line in self.lines if line.row.ok]

    @property
    def base_label(self) -> str:
        """The name of what the others are held against, also where it is not among the rows."""
        return next((row.label for row in self.rows if row.is_base), self.baseline or BACKPROP)

    @property
    def alone(self) -> Line | None:
        """One process alone, with as many threads as each of several has."""
        return next((line for line in self.done if line.row.method == BACKPROP), None)

    def ratio(self, line: Line) -> float | None:
        """Its samples a second as a multiple of one process's alone."""
        base = self.alone.rate if self.alone is not None else None
        return line.rate / base if line.rate and base else None

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.lines[0].row.metric if self.lines else "loss"

    @property
    def percent(self) -> bool:
        """Whether the metric is shown in per cent."""
        return self.metric == "accuracy"

    @property
    def factor(self) -> float:
        """What the metric is multiplied by where it is shown."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """The metric with its unit."""
        return f"{self.metric}, %" if self.percent else self.metric

    def shown(self, value: float | None) -> str:
        """A value of the metric in words."""
        if value is None:
            return "unknown"
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    @property
    def goal(self) -> str:
        """The target in words; "" without one."""
        if self.target is None:
            return ""
        return f"{100 * self.target:g} %" if self.percent else f"{self.target:g}"


def measured(document: Mapping[str, Any], accounts: Accounts | None = None, first: int = 0) -> Measured:
    """The rows of a results document; older files' aggregates have fewer fields.

    Args:
        document: a results file's content.
        accounts: of a comparison over workers, their own.
        first: rows that stand before these in a page of several parts.
    """
    experiment, results = document["experiment"], document["results"]
    asked = (document.get("config") or {}).get("workers")
    workers = asked if isinstance(asked, int) else max((int(one["processes"]) for one in results), default=1)
    known = {each.name for each in fields(Aggregate)}
    kind = OverWorkers if workers > 1 else Aggregate
    rows = [
        kind(**{"higher_is_better": None, **{name: value for name, value in each.items() if name in known}})
        for each in document["aggregate"]
    ]
    lines = []
    for row, style in zip(rows, styles(rows, first), strict=True):
        seeds = [one for one in results if (one["method"], one["estimator"]) == (row.method, row.estimator)]
        lines.append(Line(row, style, seeds))
        kept = _told(each.get("in_flight") for one in lines[-1].finished for each in one["interfaces"])
        lines[-1].in_flight = int(max(kept, default=0))
        if workers > 1:
            _over_workers(lines[-1], int(experiment["batch_size"]), accounts or {})
    return Measured(lines, experiment.get("target"), experiment.get("baseline"), workers)


def _over_workers(line: Line, batch_size: int, accounts: Accounts) -> None:
    """Fill in what only rows over several workers have."""
    row, done = line.row, line.finished
    rates = _told(one["samples_per_s"] for one in done)
    line.rate, line.rate_spread = _mean(rates), statistics.stdev(rates) if len(rates) > 1 else None
    line.sent_bytes = _mean(_told(_a_minibatch(one, batch_size) for one in done))
    if line.own:
        stalest = (max(_told(each["staleness"] for each in one["interfaces"]), default=None) for one in done)
        line.staleness = _mean(_told(stalest))
    # under the label that was typed, which here may be another: an estimator's name is never left out of it
    typed = f"{row.method}:{row.estimator}" if row.estimator else row.method
    told = [found for one in done if (found := accounts.get((typed, one["seed"])))]
    line.accounts = told[0] if told else ()
    line.idle = _mean(_told(min(_told(idle(account) for account in found), default=None) for found in told))


def _a_minibatch(one: Mapping[str, Any], batch_size: int) -> float | None:
    sent, rate, train_s = one["bytes_sent"], one["samples_per_s"], one["train_s"]
    return sent / (rate * train_s / batch_size) if sent is not None and rate and train_s else None


def _told(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def training(account: Mapping[str, Any]) -> dict[str, float]:
    """A worker's seconds of training by what they went into: evaluation and orders, such as the end of an epoch, are
    left out.
    """
    return {name: seconds for name, seconds in account["seconds"].items() if name in KINDS}


def idle(account: Mapping[str, Any]) -> float | None:
    """The share of its training in which a worker waited for another one; None where it was never timed."""
    seconds = training(account)
    total = sum(seconds.values())
    return sum(seconds.get(name, 0.0) for name in WAITS) / total if total else None


def finite_numbers(values: Iterable[Any]) -> list[float]:
    """Those that are finite numbers."""
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
