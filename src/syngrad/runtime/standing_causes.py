"""A stage that stands still is named once, with what was found to be the cause and nothing that was not looked at."""

from __future__ import annotations

import math

from syngrad.core.interface import Interface
from syngrad.core.stage import Stage
from syngrad.errors import warn
from syngrad.estimators.regressors import Zero
from syngrad.methods.policy import Policy
from syngrad.optim.standing import Standing, StandingStages
from syngrad.runtime.quality import AnySample, Quality

#: updates after which a stage that has not moved is named, beside those that estimates take to come through
PATIENCE = 20


def watch(standing: StandingStages, own: list[Stage], policy: Policy, stages: int) -> None:
    """Have the stages of this process looked at that estimates are to train: not those that are left out on purpose.

    Args:
        standing: what notices them.
        own: the stages that run here.
        policy: of the run.
        stages: how many there are in all. Estimators that learn from what comes back begin one after the other.
    """
    names = [
        stage.name
        for stage in own
        if policy.method.estimates
        and (stage.interface is None or _estimates(stage.interface))
        and any(p.requires_grad for p in stage.parameters)
    ]
    late = stages * (policy.feedback_every + policy.feedback_delay)
    standing.watch(names, math.ceil((PATIENCE + late) / policy.update_probability))


def _estimates(interface: Interface) -> bool:
    """Whether a stage is to learn by this interface: not where all of its estimators are zero on purpose."""
    return not interface.heads or not all(isinstance(head, Zero) for head in interface.heads)


def tell(standing: StandingStages, stages: list[Stage], quality: list[Quality]) -> None:
    """Warn of those that were found; of one that the user has frozen meanwhile there is nothing to say.

    Args:
        standing: what has noticed them.
        stages: of the whole network, in order.
        quality: one an interface.
    """
    found, standing.found = standing.found, []
    for each in found:
        index = next(k for k, stage in enumerate(stages) if stage.name == each.name)
        if any(p.requires_grad for p in stages[index].parameters):
            interface = quality[index] if index < len(quality) else None
            warn(f"stage {each.name!r} has not moved in {each.updates} updates: {_cause(each, interface)}")


def _cause(each: Standing, quality: Quality | None) -> str:
    estimates: list[AnySample] = [] if quality is None else [*quality.history, *quality.true]
    if each.nonfinite:
        said = f"{each.nonfinite} of them were skipped, as the gradient of its weights was not finite"
        if quality is not None and any(math.isnan(sample.cosine) for sample in estimates):
            said += f", and neither was the estimate at {quality.cut!r} that it is made from"
        return f"{said}; check what the loss makes of an output near zero, or use another estimator"
    if each.skipped:
        return f"{each.skipped} of them were skipped, as the gradient of its weights was too long for the guard"
    if not each.zero:
        return "no gradient has come to any of its weights; what it sends must depend on them, without detach()"
    said = "the gradient of its weights is exactly zero"
    if quality is None or not estimates:
        return f"{said}; check what it computes"
    # a ratio of zero to zero is no number, and its cosine is 0
    silent = [s.norm_ratio == 0.0 or (math.isnan(s.norm_ratio) and s.cosine == 0.0) for s in estimates]
    if all(silent):
        return f"{said}, as is the estimate at {quality.cut!r} that it is made from; use another estimator, as 'linear'"
    return f"{said}, though the estimate at {quality.cut!r} is not: what it computes passes no gradient on to them"
