"""Evaluation down the pipeline: minibatches go through the stages where they are, and nothing learns from them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import Batch
from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.control import Process
from syngrad.pipeline.neighbours import Sent
from syngrad.trainer.evaluation import Totals
from syngrad.trainer.loaders import batches

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer


class Evaluation:
    """One process's part in it. Between `begin` and `end` the model is in evaluation mode."""

    def __init__(self, trainer: Trainer, process: Process) -> None:
        self.trainer, self.process = trainer, process
        self.totals = Totals()
        self._modes: list[tuple[nn.Module, bool]] = []
        self._randomness: Tensor | None = None

    def lead(self, loader: Iterable[Any]) -> dict[str, float]:
        """Process 0: send every minibatch through; mean loss and metric, as the top has them."""
        above = self.process.ends.above
        assert above is not None
        self.process.tell("evaluating")
        self.begin(None)
        try:
            with above.trace.span("evaluate"):
                for raw in batches(loader):
                    self._forward(self.trainer.read(raw), 0)
        finally:
            self.end(None)
        parts = self.process.order("evaluated")
        return Totals(**parts[-1]).means()

    def begin(self, _: Any) -> None:
        """Evaluation mode; it changes nothing that training would notice."""
        self._modes = [(module, module.training) for module in self.trainer.model.modules()]
        self._randomness = torch.default_generator.get_state()
        self.totals = Totals()
        self.trainer.model.eval()

    def end(self, _: Any) -> dict[str, Any]:
        """Back as it was; the sums, which only the top has."""
        for module, training in self._modes:
            module.training = training
        if self._randomness is not None:
            torch.default_generator.set_state(self._randomness)
        return vars(self.totals)

    def pass_on(self, frame: Frame) -> None:
        """Any other process: a minibatch that came from below."""
        below, trainer = self.process.ends.below, self.trainer
        assert below is not None
        lo = self.process.ends.lo
        message, context = below.message(frame, trainer.net.interfaces[lo - 1].positions, trainer.device)
        with below.trace.span("evaluate"):
            self._forward(Batch((message,), {}, context, frame.scale, -frame.minibatch), lo)
        below.done(frame.minibatch)

    def _forward(self, batch: Batch, lo: int) -> None:
        trainer, ends = self.trainer, self.process.ends
        if ends.above is not None:
            ends.above.room(Kind.EVALUATE)
        try:
            with torch.no_grad(), self._autocast():
                out: Any = batch.args[0] if lo else None
                for k in range(lo, ends.hi):
                    segment = trainer.stages[k].segment
                    out = segment(out) if k else segment(*batch.args, **batch.kwargs)
                if ends.above is None:
                    self.totals.add(out, batch, trainer.loss, trainer.metric)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"evaluation failed: {first_line(error)}") from error
        interface = trainer.stages[ends.hi - 1].interface
        if ends.above is not None and interface is not None:
            # the number of samples, negative, stands where a minibatch to train on has its number
            sent = Sent(-batch.size, scale=batch.scale)
            ends.above.send(sent, out, batch.target, interface.positions, Kind.EVALUATE)

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.trainer.precision.autocast(self.trainer.where())
