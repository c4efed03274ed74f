"""How long the reference execution keeps activations."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tests._support.models import CASES, mlp
from tests._support.training import momentum_trainer
from torch import Tensor, nn

from syngrad.core.memory import SavedBytes

CASE = CASES["mlp"]


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def alive_before_stages(model: nn.Sequential, starts: list[int], batches: Any, **options: Any) -> list[int]:
    """How many tensors saved by autograd are still there whenever a stage but the first begins."""
    alive: weakref.WeakSet[Holder] = weakref.WeakSet()
    counts: list[int] = []

    def pack(tensor: Tensor) -> Holder:
        holder = Holder(tensor)
        alive.add(holder)
        return holder

    trainer = momentum_trainer(model, list(map(str, starts)), **options)
    trainer.bind(batches[0])
    hooks = [model[i].register_forward_pre_hook(lambda *_: counts.append(len(alive))) for i in starts]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        for batch in batches:
            trainer.step(batch)
    for hook in hooks:
        hook.remove()
    assert len(counts) == len(starts) * len(batches)
    return counts


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("estimator", ["default", "linear", "local", "sobolev", "zero"])
def test_activations_are_gone_before_the_next_stage_runs(estimator: str, delay: int, scope: str) -> None:
    options = {"estimator": estimator, "feedback_delay": delay, "optimizer_scope": scope, "quality_every": 2}
    assert set(alive_before_stages(CASE.model(), [2, 4, 6], CASE.batches(6), method="synthetic", **options)) == {0}


@pytest.mark.parametrize(
    "options", [{"method": "backprop"}, {"method": "mixed(0.5)"}, {"feedback": "true", "estimator": "linear"}]
)
def test_where_the_gradient_is_waited_for_activations_are_kept(options: dict[str, Any]) -> None:
    assert min(alive_before_stages(CASE.model(), [2, 4, 6], CASE.batches(4), **options)) > 0


@pytest.mark.parametrize("stages", [2, 4])
def test_the_peak_of_saved_activations_falls_with_the_number_of_stages(stages: int) -> None:
    depth = 17  # 16 hidden layers and the classifier
    per_stage = 16 // stages
    cuts = [str(2 * per_stage * k) for k in range(1, stages)]
    batch = CASE.batches(1, last=64)[0]

    def peak(**options: Any) -> int:
        torch.manual_seed(0)
        model = mlp(48, depth)
        trainer = momentum_trainer(model, cuts, **options)
        trainer.step(batch)
        with SavedBytes(model, trainer.net.estimators, but=list(batch)) as meter:
            trainer.step(batch)
        assert meter.peak_bytes > 0
        return meter.peak_bytes

    whole = peak(method="backprop")
    assert peak(method="synthetic", estimator="local") < 1.35 * whole / stages
    assert peak(method="synthetic", estimator="linear", feedback_every=2) < 1.35 * whole / stages
