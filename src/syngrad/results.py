"""The results file: what every command that measures writes with `--json`, and what its tables are made of.

One document is `{schema, environment, experiment, results, aggregate, verdict}`. `results` holds one row a method and
seed, `aggregate` what follows over the seeds. Fields that a run cannot tell are null, never left out.
"""

from __future__ import annotations

import json
import math
import os
import platform
import stat
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from syngrad.errors import ConfigError, SyngradError, first_line

SCHEMA = 1
BACKPROP = "backprop"


@dataclass
class Row:
    """One method, one seed. Times in seconds; `step_s` and `step_ratio` (to backprop) are taken side by side, all else
    while training. `higher_is_better` is None for a metric of the user's own.
    """

    method: str
    estimator: str
    seed: int
    status: str = "ok"
    processes: int = 1
    threads: int = 1
    optimizer: str | None = None
    placement: str | None = None
    queue_depth: int | None = None
    message_dtype: str | None = None
    microbatches: int | None = None
    bytes_sent: int | None = None
    step_split: dict[str, float] | None = None
    step_s: float | None = None
    step_ratio: float | None = None
    metric: str = "loss"
    higher_is_better: bool | None = None
    history: list[tuple[float, float, float]] = field(default_factory=list)
    samples_per_s: float | None = None
    train_s: float | None = None
    time_to_target_s: float | None = None
    peak_memory_bytes: int | None = None
    saved_activation_bytes: int | None = None
    interfaces: list[dict[str, object]] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        """The metric after the last epoch."""
        return self.history[-1][2] if self.history else None

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """As the file has it: the metric's name, value and history in one object."""
        plain = asdict(self)
        history = [list(point) for point in plain.pop("history")]
        better = plain.pop("higher_is_better")
        plain["metric"] = {"name": self.metric, "value": self.value, "higher_is_better": better, "history": history}
        return plain


@dataclass
class Aggregate:
    """A compared row over its seeds: means, and the spread (standard deviation; None for one seed).

    metric_difference: to backprop with the same seed, in the metric's own unit, paired seed by seed. saved_ratio,
    step_ratio: × backprop. cosines: one a cut. status: "ok", or the first seed's failure.
    """

    method: str
    estimator: str
    status: str
    seeds: int
    metric: str
    higher_is_better: bool | None
    value: float | None = None
    value_spread: float | None = None
    metric_difference: float | None = None
    metric_difference_spread: float | None = None
    step_s: float | None = None
    step_ratio: float | None = None
    saved_activation_bytes: float | None = None
    saved_ratio: float | None = None
    samples_per_s: float | None = None
    train_s: float | None = None
    cosines: dict[str, float | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`method` or `method:estimator`, as it is typed."""
        return self.method if self.estimator in ("", "default") else f"{self.method}:{self.estimator}"

    @property
    def ok(self) -> bool:
        """Whether at least one seed ran to its end."""
        return self.status == "ok"


def aggregate(rows: Sequence[Row]) -> list[Aggregate]:
    """Every method's rows taken together, in the order in which the methods first appear."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.estimator), []).append(row)
    base = {row.seed: row for row in rows if row.method == BACKPROP and row.ok}
    return [_over_seeds(group, base) for group in groups.values()]


def _over_seeds(group: list[Row], base: dict[int, Row]) -> Aggregate:
    done = [row for row in group if row.ok]
    first = done[0] if done else group[0]
    made = Aggregate(
        first.method, first.estimator, "ok" if done else first.status, len(done), first.metric, first.higher_is_better
    )
    made.value, made.value_spread = mean_spread([row.value for row in done])
    differences = [
        row.value - base[row.seed].value  # type: ignore[operator]
        for row in done
        if row.seed in base and row.value is not None and base[row.seed].value is not None
    ]
    made.metric_difference, made.metric_difference_spread = mean_spread(differences)
    for name in ("step_s", "step_ratio", "saved_activation_bytes", "samples_per_s", "train_s"):
        setattr(made, name, mean_spread([getattr(row, name) for row in done])[0])
    saved, _ = mean_spread([row.saved_activation_bytes for row in base.values()])
    if saved and made.saved_activation_bytes is not None:
        made.saved_ratio = made.saved_activation_bytes / saved
    cosines: dict[str, list[Any]] = {}
    for row in done:
        for interface in row.interfaces:
            cosines.setdefault(str(interface["cut"]), []).append(interface["cosine"])
    made.cosines = {cut: mean_spread(values)[0] for cut, values in cosines.items()}
    return made


def mean_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what is known; None for what cannot be said."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def environment(threads: int) -> dict[str, Any]:
    """The machine and the software that figures were taken on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_bytes": _memory_bytes(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
        "link": None,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return None


def document(
    environment: dict[str, Any], experiment: dict[str, Any], rows: Sequence[Row], verdict: dict[str, Any] | None
) -> dict[str, Any]:
    """The results file's content."""
    return {
        "schema": SCHEMA,
        "environment": environment,
        "experiment": experiment,
        "results": [row.to_dict() for row in rows],
        "aggregate": [asdict(each) for each in aggregate(rows)],
        "verdict": verdict,
    }


def check_writable(path: str | Path) -> Path:
    """Where the file will really stand, once it is sure that one can be written there; to be called *before* training.

    Raises ConfigError for a folder, a missing parent, what may not be written, and what is no ordinary file.
    """
    target = Path(os.path.realpath(path))
    refused = f"cannot write results to {str(path)!r}"
    try:
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and stat.S_ISDIR(mode):
            raise ConfigError(f"{refused}: it is a folder; name a file in it")
        if not target.parent.is_dir():
            raise ConfigError(f"{refused}: there is no folder {str(target.parent)!r}; make it first")
        if mode is not None and not stat.S_ISREG(mode):
            raise ConfigError(f"{refused}: it is no ordinary file; name one")
        if mode is not None and not os.access(target, os.W_OK):
            raise ConfigError(f"{refused}: the file may not be written; name another")
        handle, name = tempfile.mkstemp(prefix=".results-", dir=target.parent)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise ConfigError(f"{refused}: {error.strerror}; name another file") from error
    return target


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write a document, whole or not at all: what stood there is replaced only once the new file is complete.

    NaN and infinities, which JSON does not have, become null.
    """
    target = check_writable(path)
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=".results-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SyngradError(f"results could not be written to {str(path)!r}: {first_line(error)}") from error
        raise


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


_number = (int, float, type(None))
_text = (str, type(None))
STRUCTURE: dict[str, Any] = {
    "schema": int,
    "environment": {
        **dict.fromkeys(("cpu", "os", "python", "torch"), str),
        "gpu": _text,
        "cores": (int, type(None)),
        "memory_bytes": (int, type(None)),
        "threads": int,
        "link": (str, dict, type(None)),
    },
    "experiment": {
        **dict.fromkeys(("name", "model", "dataset"), str),
        **dict.fromkeys(("parameters", "batch_size", "epochs", "stages", "seed"), int),
        "samples": (int, type(None)),
    },
    "results": [
        {
            **dict.fromkeys(("method", "estimator", "status"), str),
            **dict.fromkeys(("seed", "processes", "threads"), int),
            **dict.fromkeys(("optimizer", "placement", "message_dtype"), _text),
            **dict.fromkeys(("queue_depth", "microbatches", "bytes_sent"), _number),
            **dict.fromkeys(("step_s", "step_ratio", "samples_per_s", "train_s", "time_to_target_s"), _number),
            **dict.fromkeys(("peak_memory_bytes", "saved_activation_bytes"), _number),
            "step_split": (dict, type(None)),
            "metric": {"name": str, "value": _number, "history": [[_number]]},
            "interfaces": [
                {"cut": str, **dict.fromkeys(("cosine", "norm_ratio", "estimator_loss", "staleness"), _number)}
            ],
        }
    ],
    "aggregate": [{"method": str, "estimator": str, "status": str, "seeds": int, "metric": str, "cosines": dict}],
    "verdict": (dict, type(None)),
}
"""What every results file has at least: a mapping's keys with their kinds, a list's one kind of element."""


def validate(document: Any) -> None:
    """Raises SyngradError, naming the place, where a document does not have what :data:`STRUCTURE` asks for."""
    _check(document, STRUCTURE, "document")
    if document["schema"] != SCHEMA:
        raise SyngradError(f"results of schema {document['schema']} cannot be read here; this version knows {SCHEMA}")


def _check(value: Any, expected: Any, where: str) -> None:
    kind: Any = type(expected) if isinstance(expected, dict | list) else expected
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SyngradError(f"results: {where} is {value!r:.40}, which it must not be")
    if isinstance(expected, dict):
        for key, part in expected.items():
            if key not in value:
                raise SyngradError(f"results: {where} has no {key!r}")
            _check(value[key], part, f"{where}.{key}")
    elif isinstance(expected, list):
        for index, each in enumerate(value):
            _check(each, expected[0], f"{where}[{index}]")
