"""Evaluation through the pipeline: minibatches go through the stages where they are, and nothing learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import Batch, batches
from syngrad.core.message import InFlight
from syngrad.errors import MessageError, SyngradError, TrainingError, first_line
from syngrad.links.link import Frame, Kind
from syngrad.metrics import Metric
from syngrad.pipeline.control import ControlChannel
from syngrad.preserve_state import generators_preserved
from syngrad.runtime.evaluation import Totals
from syngrad.runtime.part_checks import check_tensors
from syngrad.runtime.runner import Runner


class PipelineEvaluation:
    """One worker's part in it. Between `begin` and `end` the model is in evaluation mode."""

    def __init__(self, runner: Runner, control: ControlChannel, metric: tuple[str, Metric] | None) -> None:
        self.runner, self.control, self.metric = runner, control, metric
        self.totals = Totals()
        self._modes: list[tuple[nn.Module, bool]] = []
        #: (parameter, this worker's own value) of what other workers' stages use too
        self._own: list[tuple[Tensor, Tensor]] = []
        self._outside = ExitStack()

    def lead(self, loader: Iterable[Any], read: Callable[[Any], Batch], shared: dict[str, Tensor]) -> dict[str, float]:
        """Send every minibatch through, as the first worker; mean loss and metric, as the last one has them.

        Args:
            loader: of the minibatches.
            read: a minibatch of it, taken apart.
            shared: what stages of several workers share, by name, with the values that are evaluated.
        """
        following = self.control.next
        assert following is not None
        self.control.tell("evaluating", shared)
        self.begin(shared)
        try:
            with following.trace.span("evaluate"):
                for raw in batches(loader):
                    self._forward(read(raw))
        finally:
            self.end(None)
        parts = self.control.order("evaluated")
        return Totals(**parts[-1]).means()

    def begin(self, shared: dict[str, Tensor]) -> None:
        """Go into evaluation mode; it changes nothing that training would notice."""
        model = self.runner.net.model
        parameters = {each.name: each.parameter for each in self.runner.shared}
        try:
            check_tensors({name: parameters[name] for name in shared if name in parameters}, shared, "what is shared")
        except ValueError as error:
            raise MessageError(f"{error}; run one script and one version everywhere") from error
        self._own = [(parameters[name], parameters[name].detach().clone()) for name in shared]
        put(zip((parameter for parameter, _ in self._own), shared.values(), strict=True))
        self._modes = [(module, module.training) for module in model.modules()]
        self._outside.enter_context(generators_preserved(model))
        self.totals = Totals()
        model.eval()

    def end(self, _: Any) -> dict[str, Any]:
        """Back as it was; the sums, which only the last worker has."""
        put(self._own)
        for module, training in self._modes:
            module.training = training
        self._outside.close()
        self._own, self._modes = [], []
        return vars(self.totals)

    def close(self) -> None:
        """Be back as it was, also where it is broken off."""
        self.end(None)

    def pass_on(self, frame: Frame) -> None:
        """A minibatch that came from the previous worker."""
        previous, first = self.control.previous, self.runner.own[0]
        assert previous is not None
        message, context = previous.message(frame, first.arriving, self.runner.device)
        with previous.trace.span("evaluate"):
            self._forward(Batch((message,), {}, context, frame.scale, -frame.minibatch))
        previous.answer(frame.minibatch)

    def _forward(self, batch: Batch) -> None:
        runner, following = self.runner, self.control.next
        if following is not None:
            following.room(Kind.EVALUATE)
        try:
            with torch.no_grad(), runner.autocast():
                out: Any = None
                for actor in runner.own:
                    segment = actor.stage.segment
                    out = segment(*batch.args, **batch.kwargs) if actor is runner.own[0] else segment(out)
                if following is None:
                    self.totals.add(out, batch, runner.loss, self.metric)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"evaluation failed: {first_line(error)}") from error
        if following is not None:
            # the number of samples, negative, stands where a minibatch to train on has its number
            flight = InFlight(-batch.size, scale=batch.scale)
            following.send(flight, out, batch.target, runner.own[-1].leaving, Kind.EVALUATE)


def put(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Have parameters take these values."""
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(value)
