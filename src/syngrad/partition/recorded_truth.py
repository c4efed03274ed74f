"""What a recording has taken for granted of the user's modules, to be seen when it no longer holds.

An exported graph has every module's mode and rates in it as constants. Put a norm into evaluation mode or change a
dropout rate after the first batch, and the graph would go on as before, in silence.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from syngrad.errors import TrainingError


class RecordedTruth:
    """Modes and plain numbers of all modules as they were when the model was recorded.

    Args:
        model: the user's, in the mode that was recorded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = list(model.named_modules())
        self._seen = {model.training: self._now()}

    def note(self) -> None:
        """Remember them for the mode that the model is in now, too."""
        self._seen[self._model.training] = self._now()

    def check(self) -> None:
        """Raise a TrainingError that names what has changed since."""
        now, then = self._now(), self._seen.get(self._model.training)
        if then is None or now == then:
            return
        for (name, _), before, after in zip(self._modules, then, now, strict=True):
            for key in before.keys() | after.keys():
                if before.get(key) != after.get(key):
                    changed = f"{name or 'the model'}.{key} is {after.get(key)!r} and was {before.get(key)!r}"
                    raise TrainingError(
                        f"{changed} when the model was recorded as for several workers: set it before the first batch, "
                        "or train in one process without Feedback(delay=…)"
                    )

    def _now(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float)}
            for _, module in self._modules
        ]
