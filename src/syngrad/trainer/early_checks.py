"""What would go wrong after the first epoch, and can be told before it: a typing error should not cost an hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from syngrad.errors import CheckpointError
from syngrad.metrics import NAMED, check_scores
from syngrad.partition.example import without_data
from syngrad.tagged_json import PlainError, encode
from syngrad.trainer.callbacks import Callback, EarlyStopping
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.session import Session


def check_measured(session: Session, plan: FitArguments) -> None:
    """Refuse an early stopping that looks at what nobody will measure, or does not know which way is better.

    Raises:
        ConfigError: as after the epoch. Where the user's own callbacks may add a metric, it is left until then.
    """
    measured = [] if plan.validate is None else ["loss", *([session.metric[0]] if session.metric else [])]
    for index, callback in enumerate(plan.callbacks):
        if isinstance(callback, EarlyStopping):
            others = [*plan.callbacks[:index], *plan.callbacks[index + 1 :]]
            added = plan.on_epoch is not None or any(map(_may_measure, others))
            if not added or callback.looks_at(session) in measured:
                callback.check(session, measured)


def check_metric(session: Session, plan: FitArguments, raw: Any) -> None:
    """Refuse a metric that cannot measure what the model returns in evaluation mode, found on tensors without data.

    Raises:
        ConfigError: as validation would after the epoch.
    """
    if plan.validate is None or session.metric is None or session.metric[1] not in NAMED.values():
        return
    batch, model = session.read(raw), session.model

    def evaluated(args: Any, kwargs: Any) -> Any:
        model.eval()
        return model(*args, **kwargs)

    try:
        output = without_data([model], (batch.args, batch.kwargs), evaluated, bare=True)
    except Exception:  # what evaluation cannot do at all it says itself, on its own data
        return
    check_scores(session.metric, output)


def _may_measure(callback: Callback) -> bool:
    kind = type(callback)
    known = kind.__module__ == Callback.__module__
    return not known and (kind.on_epoch is not Callback.on_epoch or kind.on_validate is not Callback.on_validate)


def check_states(callbacks: Sequence[Callback]) -> None:
    """Refuse a callback whose state no checkpoint can hold; one that has none yet is asked again at the first save.

    Raises:
        CheckpointError: naming what it is.
    """
    states = []
    for callback in callbacks:
        try:
            states.append([type(callback).__name__, callback.state_dict()])
        except Exception:
            states.append([type(callback).__name__, {}])
    try:
        encode({"fit": {"callbacks": states}}, {})
    except PlainError as error:
        raise CheckpointError(f"this run cannot be saved: {error}") from error
