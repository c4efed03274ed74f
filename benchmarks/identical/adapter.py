"""The only file that knows how the public API differs between two trees: flat keywords here, option objects there.

A scenario names its options flat, as the Trainer took them at first. Where a tree has option objects
(`syngrad.Feedback`, `syngrad.Distributed`) with such a field, GROUPED says where a keyword goes; elsewhere it is flat.
What a Trainer holds after a run, and is read under another name in another tree, is read here too.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import syngrad

#: flat keyword → (the Trainer's keyword, the option object's class, its field)
GROUPED: dict[str, tuple[str, str, str]] = {
    "feedback": ("feedback", "Feedback", "kind"),
    "feedback_every": ("feedback", "Feedback", "every"),
    "feedback_delay": ("feedback", "Feedback", "delay"),
    "warmup": ("feedback", "Feedback", "warmup"),
    "quality_every": ("feedback", "Feedback", "quality_every"),
    "true_every": ("feedback", "Feedback", "true_every"),
    "queue_depth": ("distributed", "Distributed", "queue_depth"),
    "message_dtype": ("distributed", "Distributed", "message_dtype"),
    "place": ("distributed", "Distributed", "place"),
    "link": ("distributed", "Distributed", "link"),
    "link_key": ("distributed", "Distributed", "link_key"),
    "timeout_s": ("distributed", "Distributed", "timeout_s"),
    "trace": ("distributed", "Distributed", "trace"),
    "record": ("distributed", "Distributed", "record"),
    "replay": ("distributed", "Distributed", "replay"),
}
#: where a record's class is, in one tree or another; in none of them `history.record` itself is taken
RECORDS = ("syngrad.execution.pending", "syngrad.core.pending", "syngrad.core.staleness", "syngrad.core.message")


def options(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's keywords, in the tree that runs."""
    made: dict[str, Any] = {}
    grouped: dict[str, tuple[type, dict[str, Any]]] = {}
    for name, value in flat.items():
        keyword, kind, field = GROUPED.get(name, ("", "", ""))
        group = getattr(syngrad, kind, None) if kind else None
        given = record(value) if name == "replay" and value is not None else value
        if group is not None and field in {each.name for each in dataclasses.fields(group)}:
            grouped.setdefault(keyword, (group, {}))[1][field] = given
        else:
            made[name] = given
    return {**made, **{keyword: group(**fields) for keyword, (group, fields) in grouped.items()}}


def trainer(net: Any, flat: Mapping[str, Any]) -> syngrad.Trainer:
    """The tree's own Trainer for these flat keywords."""
    return syngrad.Trainer(net, **options(flat))


def record(applied: Any) -> Any:
    """What a Trainer is told to replay, from `history.record` as it was written to a file."""
    for name in RECORDS:
        try:
            kind = importlib.import_module(name).Record
        except (ImportError, AttributeError):
            continue
        return kind(applied=[{int(a): int(b) for a, b in each} for each in applied])
    return applied


def held(trainer: syngrad.Trainer) -> dict[str, Any]:
    """Everything that a Trainer of the whole network has changed, beside the model."""
    return {
        "estimators": trainer.net.estimators.state_dict(),
        "inputs": trainer.net.inputs.state_dict(),
        "optimizers": [each.state_dict() for each in optimizers(trainer)],
        "schedulers": [each.state_dict() for each in trainer.schedulers],
    }


def optimizers(trained: Any) -> list[Any]:
    """The optimisers of whatever trains."""
    found = trained.optimizers
    return [found[name] for name in found] if isinstance(found, dict) else list(found)
