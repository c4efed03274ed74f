"""A study's runs at a scale, in one results file that is written after each, so that a run goes on where it stopped."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from syngrad.checks import check_whole
from syngrad.compare.base import SEEDS, Observer, Silent
from syngrad.compare.step_costs import THREADS
from syngrad.compare.step_costs import threads as with_threads
from syngrad.errors import ConfigError, first_line
from syngrad.reproduce.one_run import train
from syngrad.reproduce.study import Case, Scale, Study
from syngrad.results import environment, finite, write
from syngrad.runtime.option_fields import check_device

SCHEMA = 1


class Runs:
    """All runs of a study; `document` is the content of its file, with those that are done.

    Args:
        study: what is run.
        scale: how much of it.
        folder: where the file is, or will be; it is made where it is missing.
        seeds: from 0 on; the scale's own number where None.
        threads: PyTorch's.
        device: of feed-forward nets, as the Trainer has it.
        observer: told how far it is.

    Raises:
        ConfigError: a file there that is none of this study, or holds runs of other settings.
    """

    def __init__(
        self,
        study: Study,
        scale: Scale,
        folder: str | Path,
        seeds: int | None = None,
        threads: int = 1,
        device: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.study, self.scale = study, scale
        self.seeds = check_whole("seeds", scale.seeds if seeds is None else seeds, 1, SEEDS)
        self.threads = check_whole("threads", threads, 1, THREADS)
        self.device = check_device(device)
        self.observer = observer or Silent()
        self.file = Path(folder) / f"{study.name}-{scale.name}.json"
        self.cases = study.cases(scale)
        self.document = self._read() if self.file.exists() else self._fresh()
        self._check()

    @property
    def missing(self) -> list[tuple[Case, int]]:
        """What is still to be run, seed by seed, so that all cases of a seed are there before the next one begins."""
        there = {(run["row"], run["x"], run["seed"]) for run in self.document["runs"]}
        every = [(case, seed) for seed in range(self.seeds) for case in self.cases]
        return [(case, seed) for case, seed in every if (case.row, case.x, seed) not in there]

    def check_data(self) -> None:
        """Read the data of what is missing.

        Raises:
            ConfigError: one line, how to fetch what is not there.
        """
        for recipe in dict.fromkeys(case.recipe for case, _ in self.missing):
            recipe.read()

    def run(self) -> dict[str, Any]:
        """Make the runs that are missing; whatever ends it, those that are done are in the file.

        Raises:
            ConfigError: what cannot be used, data that is not there before all.
        """
        todo = self.missing
        self.observer.begin(len(todo))
        if todo:
            self._make_folder()
        with with_threads(self.threads):
            for case, seed in todo:
                at = "" if case.x is None else f", {self.study.axis} {case.x:g}"
                self.observer.note(f"{self.study.name}: {case.row}{at}, seed {seed}")
                self._keep(case, seed)
                self.observer.advance()
        return self.document

    def _keep(self, case: Case, seed: int) -> None:
        row = train(case, seed, self.threads, self.device)
        value = self.study.metric.made(row.value) if row.ok and row.value is not None else None
        if value is not None and not math.isfinite(value):
            value = None
        made = {"row": case.row, "x": case.x, "seed": seed, "value": value, "seconds": row.train_s}
        self.document["runs"].append({**made, "status": row.status, "settings": case.settings()})
        self.document |= {"environment": environment(self.threads), "created": _now()}
        write(self.file, self.document)

    def _fresh(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "created": _now(),
            "study": self.study.name,
            "metric": self.study.metric.name,
            "scale": asdict(self.scale),
            "environment": environment(self.threads),
            "runs": [],
        }

    def _read(self) -> dict[str, Any]:
        """The file's content, checked as far as it is used here."""
        remedy = "remove the file, or name another folder with --out"
        try:
            document = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{str(self.file)!r} cannot be read ({first_line(error)}); {remedy}") from error
        if not _is_one(document) or document["study"] != self.study.name:
            raise ConfigError(f"{str(self.file)!r} holds no runs of {self.study.name!r}; {remedy}")
        return document  # type: ignore[no-any-return]

    def _check(self) -> None:
        """Refuse runs that were made with other settings: figures of two kinds would stand in one table."""
        now = {(case.row, case.x): case for case in self.cases}
        for run in self.document["runs"]:
            case = now.get((run["row"], run["x"]))
            settings = None if case is None else finite(case.settings())
            if settings != run["settings"]:
                at = "" if run["x"] is None else f" at {run['x']:g}"
                said = "is no longer a case" if settings is None else f"had {_difference(run['settings'], settings)}"
                raise ConfigError(
                    f"{str(self.file)!r} was made with other settings ({run['row']}{at} {said}); remove the file, or "
                    "name another folder with --out"
                )

    def _make_folder(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"folder {str(self.file.parent)!r} cannot be made: {error.strerror}; name another"
            ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_one(document: Any) -> bool:
    """Whether this is a file of runs."""
    runs = document.get("runs") if isinstance(document, dict) else None
    keys = {"row", "x", "seed", "value", "seconds", "status", "settings"}
    told = isinstance(runs, list) and all(isinstance(run, dict) and keys <= run.keys() for run in runs)
    return told and document.get("schema") == SCHEMA and isinstance(document.get("environment"), dict)


def _difference(before: Any, now: Any) -> str:
    """The first setting that is another, as "steps 30, here 40"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *before]:
            one, other = before.get(key), now.get(key)
            if one != other:
                nested = isinstance(one, dict) and isinstance(other, dict)
                return _difference(one, other) if nested else f"{key} {one!r:.40}, here {other!r:.40}"
    return f"{before!r:.40}, here {now!r:.40}"
