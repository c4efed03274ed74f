"""The only file that knows how the public API differs between two trees: flat keywords here, option objects there.

A scenario names its options flat, as the Trainer took them at first. Where a tree has option objects
(`syngrad.Feedback`, `syngrad.Distributed`), GROUPED says which keyword goes to which object, and under which field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import syngrad
from torch import nn

#: flat keyword → (the Trainer's keyword, the option object's class, its field); the rest stays flat
GROUPED: dict[str, tuple[str, str, str]] = {
    "feedback": ("feedback", "Feedback", "kind"),
    "feedback_every": ("feedback", "Feedback", "every"),
    "feedback_delay": ("feedback", "Feedback", "delay"),
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


def options(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's keywords, in the tree that runs."""
    flat = dict(flat)
    if flat.get("replay") is not None:
        flat["replay"] = record(flat["replay"])
    made: dict[str, Any] = {}
    grouped: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, value in flat.items():
        keyword, kind, field = GROUPED.get(name, ("", "", ""))
        if kind and hasattr(syngrad, kind):
            grouped.setdefault(keyword, (kind, {}))[1][field] = value
        else:
            made[name] = value
    return {**made, **{keyword: getattr(syngrad, kind)(**fields) for keyword, (kind, fields) in grouped.items()}}


def trainer(net: Any, flat: Mapping[str, Any]) -> syngrad.Trainer:
    """The tree's own Trainer for these flat keywords."""
    return syngrad.Trainer(net, **options(flat))


def record(applied: Any) -> Any:
    """What a Trainer is told to replay, from `history.record` as it was written to a file."""
    by_minibatch = [{int(a): int(b) for a, b in each} for each in applied]
    try:
        from syngrad.execution.pending import Record
    except ImportError:
        try:
            from syngrad.runtime.feedback import Record  # where it has moved to
        except ImportError:
            return applied
    return Record(applied=by_minibatch)


def modules(trainer: syngrad.Trainer) -> dict[str, nn.Module]:
    """Everything of a Trainer that has parameters."""
    return {"model": trainer.model, "estimators": trainer.net.estimators, "inputs": trainer.net.inputs}


def optimizers(trained: Any) -> list[Any]:
    """The optimisers of whatever trains."""
    found = trained.optimizers
    return [found[name] for name in found] if isinstance(found, dict) else list(found)
