"""What a results file has at least, and whether a document has it.

The kinds are data and the check walks them, so that the first thing that is wrong is named with its place and its
value; a library of typed records would name it without the value, and a key within a mapping not at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from syngrad.errors import SyngradError
from syngrad.results.file import SCHEMA


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
                    "guarded": Since(_number),
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
