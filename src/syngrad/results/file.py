"""The results file: its content, its writing, and what a document has at least.

It is written whole or not at all, and so is any other file that a run leaves. The kinds of its entries are data and the
check walks them, so that the first thing that is wrong is named with its place and its value; a library of typed
records would name it without the value, and a key within a mapping not at all.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from syngrad.errors import ConfigError, SyngradError, first_line
from syngrad.results.aggregate import aggregate
from syngrad.results.rows import BACKPROP, Row

SCHEMA = 1


def document(
    environment: dict[str, Any],
    experiment: dict[str, Any],
    rows: Sequence[Row],
    verdict: dict[str, Any] | None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The results file's content.

    Args:
        environment: the machine and the software, see :func:`syngrad.results.environment`.
        experiment: what was trained; its "baseline", where it has one, is what the rows are held against.
        rows: one a method and seed.
        verdict: whether it pays, where that is told.
        config: every option as resolved, from which it can be run again.
    """
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment,
        "experiment": experiment,
        "config": dict(config) if config is not None else None,
        "results": [row.to_dict() for row in rows],
        "aggregate": [asdict(each) for each in aggregate(rows, experiment.get("baseline", BACKPROP))],
        "verdict": verdict,
    }


def check_writable(path: str | Path) -> Path:
    """Where the file will really stand, once it is sure that one can be written there; to be called *before* training.

    Raises:
        ConfigError: for a folder, a missing parent, what may not be written, and what is no ordinary file.
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
    write_text(path, json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        SyngradError: where that fails; what stood there is untouched then.
    """
    target = check_writable(path)
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
    """A value as JSON can hold it: None for every number that is not finite, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


class Since(NamedTuple):
    """A kind that older files do not have: looked at only where it is there."""

    kind: Any


_number = (int, float, type(None))
_text = (str, type(None))
STRUCTURE: dict[str, Any] = {
    "schema": int,
    "created": Since(str),
    "config": Since((dict, type(None))),
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
            "train_loss": Since([[_number]]),
            "guarded": Since(dict),
            "trainer": Since((dict, type(None))),
            "interfaces": [
                {
                    "cut": str,
                    **dict.fromkeys(("cosine", "norm_ratio", "estimator_loss", "staleness"), _number),
                    **dict.fromkeys(("explained_variance", "true_cosine", "true_norm_ratio"), Since(_number)),
                    "true_explained_variance": Since(_number),
                    **dict.fromkeys(("guarded", "in_flight"), Since(_number)),
                    **dict.fromkeys(("history", "true_history"), Since([[_number]])),
                }
            ],
        }
    ],
    "aggregate": [
        {
            "method": str,
            "estimator": str,
            "status": str,
            "seeds": int,
            "metric": str,
            "cosines": dict,
            "metric_difference_interval": Since((list, type(None))),
            "reached": Since(int),
        }
    ],
    "verdict": (dict, type(None)),
}
"""What every results file has at least (a mapping's keys with their kinds, a list's one kind of element), and
what it has since later versions of Syngrad."""


def validate(document: Any) -> None:
    """Refuse a document that does not have what :data:`STRUCTURE` asks for.

    Raises:
        SyngradError: naming the place.
    """
    _check(document, STRUCTURE, "document")
    if document["schema"] != SCHEMA:
        raise SyngradError(f"results of schema {document['schema']} cannot be read here; this version knows {SCHEMA}")


def _check(value: Any, expected: Any, where: str) -> None:
    if isinstance(expected, Since):
        expected = expected.kind
    kind: Any = type(expected) if isinstance(expected, dict | list) else expected
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SyngradError(f"results: {where} is {value!r:.40}, which it must not be")
    if isinstance(expected, dict):
        for key, part in expected.items():
            if key not in value and isinstance(part, Since):
                continue
            if key not in value:
                raise SyngradError(f"results: {where} has no {key!r}")
            _check(value[key], part, f"{where}.{key}")
    elif isinstance(expected, list):
        for index, each in enumerate(value):
            _check(each, expected[0], f"{where}[{index}]")
