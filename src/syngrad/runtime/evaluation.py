"""Evaluation: the user's own model, in evaluation mode, over a loader; nothing of it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import Batch, batches, finite
from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.metrics import Metric
from syngrad.preserve_state import generators_preserved
from syngrad.runtime.precision import Precision

Loss = Callable[[Any, Any], Tensor]


@dataclass
class Totals:
    """Sums over minibatches of the loss and the metric, each weighted by what the loss averages over."""

    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    weight: float = 0.0

    def add(self, output: Any, batch: Batch, loss: Loss, metric: tuple[str, Metric] | None) -> None:
        """One minibatch more."""
        value = finite(loss(output, batch.target), batch, "in evaluation").item()
        self.sums["loss"] = self.sums.get("loss", 0.0) + value / batch.scale
        if metric is not None:
            name, function = metric
            measured: Any = function(output, batch.target)
            self.sums[name] = self.sums.get(name, 0.0) + float(measured) / batch.scale
        self.samples += batch.size
        self.weight += 1.0 / batch.scale

    def means(self) -> dict[str, float]:
        """The sums over what they weigh; a TrainingError where there was no sample."""
        if self.samples == 0:
            raise TrainingError("the loader to evaluate on yielded no batch; check its length")
        return {name: total / self.weight for name, total in self.sums.items()}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    read: Callable[[Any], Batch],
    loss: Loss,
    metric: tuple[str, Metric] | None,
    precision: Precision,
) -> dict[str, float]:
    """Mean loss and metric over a loader, weighted by what the loss averages over.

    Raises:
        TrainingError: for a model, loss or metric that raises, a loss that is not finite, and an empty loader.
    """
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    model.eval()
    totals = Totals()
    try:
        with generators_preserved(model):
            for raw in batches(loader):
                batch = read(raw)
                try:
                    with precision.autocast(device):
                        totals.add(model(*batch.args, **batch.kwargs), batch, loss, metric)
                except SyngradError:
                    raise
                except Exception as error:
                    raise TrainingError(f"evaluation failed: {first_line(error)}") from error
    finally:
        for module, training in modes:
            module.training = training
    return totals.means()
