"""What a run tells while it goes on, and what may end it: callbacks, early stopping, TensorBoard.

A callback's `state_dict` is saved in every checkpoint, and given back when the run is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from syngrad.checks import whole
from syngrad.errors import ConfigError
from syngrad.metrics import HIGHER_IS_BETTER, higher_is_better
from syngrad.trainer.history import Epoch

#: what a callback is shown: the :class:`syngrad.Trainer`. Any, since the Trainer itself is made of what this file says
Trainer = Any


class Callback:
    """Derive from it and say what you want to hear of; `trainer.stop()` ends the run after this epoch.

    In a run that goes on, `load_state_dict` is called before `on_start`: what `on_start` makes anew replaces what was
    saved. A run that saves also asks for the `state_dict` once after `on_start`, so that what cannot be kept is told
    then.

    Attributes:
        whole: over several processes, whether the Trainer is to hold all that they have trained when `on_validate` and
            `on_epoch` are called: the model, its optimisers, the samples of quality. It is brought together each time;
            a callback that looks at none of it spares that with `whole = False`. In `on_step` it is never together.
        everywhere: whether every replica calls it, see `syngrad.Replicas`; otherwise the first alone does. All measure
            the same averaged model, so that one which stops the run stops it in all of them.
    """

    whole: bool = True
    everywhere: bool = False

    def on_start(self, trainer: Trainer) -> None:
        """`fit` begins, or goes on from a checkpoint, whose state this callback has by then."""

    def on_step(self, trainer: Trainer, loss: Tensor) -> None:
        """A minibatch was trained on; `trainer.minibatches` counts them. Reading `loss` waits for the device."""

    def on_validate(self, trainer: Trainer, epoch: float, metrics: dict[str, float]) -> None:
        """The model was evaluated, after so many epochs (a fraction within one)."""

    def on_epoch(self, trainer: Trainer, record: Epoch) -> None:
        """An epoch is over, validated and scheduled."""

    def on_end(self, trainer: Trainer) -> None:
        """`fit` ends, also by an error; the model is whole unless by one."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, plain data and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


class EarlyStopping(Callback):
    """Ends a run when the metric has not become better for so many epochs.

    Args:
        patience: epochs.
        least: what counts as better, in the metric's unit.
        metric: which; by default the Trainer's, or the loss.
        higher_is_better: known for metrics that have a name of their own in Syngrad and for functions that carry an
            attribute of this name, to be said for others.

    Raises:
        ConfigError: for a patience that is no count, and a metric of which nobody says which way is better.
    """

    whole = False
    everywhere = True

    def __init__(
        self, patience: int = 5, least: float = 0.0, metric: str | None = None, higher_is_better: bool | None = None
    ) -> None:
        if (count := whole(patience)) is None or count < 1:
            raise ConfigError(f"patience must be a whole number of at least 1, got {patience!r}")
        self.patience, self.least, self.metric, self.higher_is_better = count, least, metric, higher_is_better
        self.best: float | None = None
        self.waited = 0

    def on_start(self, trainer: Trainer) -> None:
        """A run that it has ended, and that is gone on with, is given its patience anew."""
        if self.waited >= self.patience:
            self.waited = 0

    def looks_at(self, trainer: Trainer) -> str:
        """The metric's name."""
        return self.metric or (trainer.metric[0] if trainer.metric else "loss")

    def check(self, trainer: Trainer, measured: Collection[str]) -> tuple[str, bool]:
        """(the metric that it looks at, whether a larger value is better).

        Args:
            trainer: whose metric it is.
            measured: what there is.

        Raises:
            ConfigError: for a metric that is not measured, and one of which nobody says which way is better.
        """
        name = self.looks_at(trainer)
        if name not in measured:
            known = ", ".join(measured) or "nothing was validated"
            raise ConfigError(f"early stopping looks at {name!r}, which was not measured ({known}); give validate=")
        better = self.higher_is_better
        if better is None:
            own = trainer.metric is not None and trainer.metric[0] == name
            better = higher_is_better(trainer.metric) if own else HIGHER_IS_BETTER.get(name)
        if better is None:
            raise ConfigError(f"say EarlyStopping(higher_is_better=…) for the metric {name!r}")
        return name, better

    def on_epoch(self, trainer: Trainer, record: Epoch) -> None:
        """Compare, count, and stop."""
        name, better = self.check(trainer, record.metrics)
        value = record.metrics[name] if better else -record.metrics[name]
        if not math.isnan(value) and (self.best is None or value > self.best + self.least):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and how long ago."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.waited = state["best"], int(state["waited"])


class TensorBoard(Callback):
    """Writes loss, metrics, learning rate, quality of the estimates and skipped updates for TensorBoard.

    It needs `pip install 'syngrad[tensorboard]'`.

    Args:
        folder: of the event files.
        every: minibatches between losses.
    """

    def __init__(self, folder: str | Path, every: int = 20) -> None:
        if (count := whole(every)) is None or count < 1:
            raise ConfigError(f"TensorBoard's every must be a whole number of at least 1, got {every!r}")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("TensorBoard is not installed: pip install 'syngrad[tensorboard]'") from error
        self.folder, self.every = Path(folder).absolute(), count
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._told: list[tuple[int, int]] = []

    def on_start(self, trainer: Trainer) -> None:
        """Open the file; what a resumed run repeats is cut off."""
        try:
            self._writer = self._make(str(self.folder), purge_step=trainer.minibatches + 1)
        except OSError as error:
            raise ConfigError(f"cannot write TensorBoard's files to {str(self.folder)!r}: {error.strerror}") from error

    def on_step(self, trainer: Trainer, loss: Tensor) -> None:
        """The training loss."""
        if trainer.minibatches % self.every == 0:
            self._writer.add_scalar("train/loss", loss.item(), trainer.minibatches)

    def on_validate(self, trainer: Trainer, epoch: float, metrics: dict[str, float]) -> None:
        """The validated metrics."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"validate/{name}", value, trainer.minibatches)

    def on_epoch(self, trainer: Trainer, record: Epoch) -> None:
        """What is known once an epoch: the rate, the quality since the last one, the guard's count."""
        step = trainer.minibatches
        self._writer.add_scalar("train/learning rate", record.learning_rate, step)
        self._writer.add_scalar("train/skipped updates", sum(trainer.guarded.values()), step)
        self._told = self._told or [(0, 0)] * len(trainer.quality)
        for index, quality in enumerate(trainer.quality):
            received, true = self._told[index]
            for sample in quality.history[received:]:
                self._quality(f"estimate {quality.cut} against received", sample)
            for true_sample in quality.true[true:]:
                self._quality(f"estimate {quality.cut} against true", true_sample)
            self._told[index] = len(quality.history), len(quality.true)

    def on_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _quality(self, where: str, sample: Any) -> None:
        for name in ("cosine", "norm_ratio", "explained_variance"):
            if math.isfinite(value := getattr(sample, name)):
                self._writer.add_scalar(f"{where}/{name.replace('_', ' ')}", value, sample.step)

    def state_dict(self) -> dict[str, Any]:
        """How much of the quality's samples has been written."""
        return {"told": [list(pair) for pair in self._told]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._told = [(a, b) for a, b in state["told"]]
