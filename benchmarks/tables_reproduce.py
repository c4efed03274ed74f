"""Tables of the published experiments: of each the longest scale that has been run, ours beside what was published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from cells import ROOT, MissingError, table

from syngrad.report.reproduction import duration, gap, ours, place
from syngrad.reproduce import SCALES, Study, summary
from syngrad.reproduce.studies.registry import STUDIES

RESULTS = ROOT / "benchmarks" / "reproduce" / "results"


def documents() -> Iterator[tuple[Study, dict[str, Any]]]:
    """Every study of which there are results, with those of its longest scale; raises MissingError where none has."""
    found = False
    for study in STUDIES.values():
        files = [RESULTS / f"{study.name}-{scale}.json" for scale in reversed(SCALES)]
        file = next((each for each in files if each.exists()), None)
        if file is not None:
            found = True
            yield study, json.loads(file.read_text(encoding="utf-8"))
    if not found:
        raise MissingError(str(RESULTS))


def beside() -> str:
    """Of all that can be quoted, ours beside it."""
    rows: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for study, document in documents():
        for point in summary(study, document):
            for each in point.published:
                said = each.said if each.value is None else f"{each.value:{study.metric.form}}"
                mine = ours(point, study) if document["scale"]["name"] != "quick" else "runs (quick)"
                if not point.seeds:
                    mine = "–"
                note = f"{each.source} ({each.grade})" + (f"; {each.said}" if each.said and each.value else "")
                key = f"`{study.name}`", point.row, study.axis, study.metric.name, said, note
                rows.setdefault(key, []).append((place(point, study), mine))
    made = []
    for (name, row, axis, metric, said, note), found in rows.items():
        where = f"{axis} {', '.join(at for at, _ in found)}" if axis else "–"
        made.append([name, row, where, metric, ", ".join(dict.fromkeys(mine for _, mine in found)), said, note])
    return table(["", "row", "at", "metric", "here", "published", "source"], made)


def runs() -> str:
    """Which have been run, at which scale, and how far each row of a study is from its base."""
    rows = []
    for study, document in documents():
        scale, seeds = document["scale"]["name"], len({run["seed"] for run in document["runs"]})
        failed = sum(run["status"] != "ok" for run in document["runs"])
        trained = duration(sum(run["seconds"] or 0.0 for run in document["runs"]))
        said = "a smoke test" if scale == "quick" else _gaps(study, document)
        count = f"{len(document['runs'])} ({failed} failed)" if failed else str(len(document["runs"]))
        rows.append([f"`{study.name}`", study.title, scale, count, str(seeds), trained, said])
    return table(["", "what", "scale", "runs", "seeds", "training", "gap to the base, at each place"], rows)


def _gaps(study: Study, document: dict[str, Any]) -> str:
    """Row by row."""
    told: dict[str, list[str]] = {}
    for point in summary(study, document):
        if point.gap is not None:
            where = f" at {place(point, study)}" if study.axis and study.axis != "time" else ""
            told.setdefault(point.row, []).append(gap(point, study) + where)
    return "; ".join(f"{row}: {', '.join(each)}" for row, each in told.items())


TABLES: dict[str, Callable[[], str]] = {"reproduce_published": beside, "reproduce_runs": runs}
