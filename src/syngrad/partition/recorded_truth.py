"""What a recording has taken for granted of the user's modules, to be seen when it no longer holds.

An exported graph has every module's mode and rates in it as constants, and one of torch.fx what Python read in the
forwards that it followed. Put a norm into evaluation mode, change a dropout rate or a temperature after the first
batch, and the graph would go on as before, in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from syngrad.errors import TrainingError

#: what every module has
_OF_ALL = frozenset(vars(nn.Module())) - {"training"}
#: elements of a list or mapping that are looked at
_MOST = 64
EXPORTED = "set it before the first batch, or train in one process without Feedback(delay=…)"
FOLLOWED = "set it before the first batch, or keep it in a buffer, whose value is read every time"


class RecordedTruth:
    """Modes and plain values of modules as they were when the model was recorded.

    Args:
        model: the user's, in the mode that was recorded.
        followed: the names of the modules whose forward was followed, of all modules the only ones to look at, and at
            their texts, lists, mappings, hooks and forward too; None for the modes and numbers of all.
        holds: whether a recording made anew is the one there is: asked before an error, as what has changed may have
            nothing to do with the forward.
    """

    def __init__(
        self, model: nn.Module, followed: Sequence[str] | None = None, holds: Callable[[], bool] | None = None
    ) -> None:
        self._model, self._holds = model, holds
        self._look = _numbers if followed is None else _values
        self._remedy = EXPORTED if followed is None else FOLLOWED
        named = dict(model.named_modules())
        self._modules = (
            list(named.items()) if followed is None else [(name, named[name]) for name in dict.fromkeys(followed)]
        )
        self._seen = {model.training: self._now()}

    def note(self) -> None:
        """Remember them for the mode that the model is in now, too."""
        self._seen[self._model.training] = self._now()

    def check(self) -> None:
        """Raise a TrainingError that names what has changed since."""
        now, then = self._now(), self._seen.get(self._model.training)
        if then is None or now == then:
            return
        # what a recording made anew does not run itself is not to be asked of it
        called = any(one.get(key) != other.get(key) for one, other in zip(then, now, strict=True) for key in _CALLABLE)
        if self._holds is not None and not called and self._holds():
            self.note()
            return
        for (name, _), before, after in zip(self._modules, then, now, strict=True):
            for key in sorted(before.keys() | after.keys()):
                if before.get(key) != after.get(key):
                    what = f"{name or 'the model'}.{key}"
                    said = f"{what} is {after.get(key)!r} and was {before.get(key)!r}"
                    if key in _CALLABLE:
                        said = f"{what} is not what it was"
                    raise TrainingError(f"{said} when the model was recorded{self._how()}: {self._remedy}")

    def _how(self) -> str:
        return " as for several workers" if self._remedy is EXPORTED else ""

    def _now(self) -> list[dict[str, Any]]:
        return [self._look(module) for _, module in self._modules]


_CALLABLE = ("forward", "_forward_hooks", "_forward_pre_hooks")


def _numbers(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float)}


def _values(module: nn.Module) -> dict[str, Any]:
    """All that a forward could read of it without asking a module or a tensor."""
    found = {key: _plain(value) for key, value in vars(module).items() if key not in _OF_ALL}
    found["forward"] = id(vars(module).get("forward"))
    found["_forward_hooks"], found["_forward_pre_hooks"] = len(module._forward_hooks), len(module._forward_pre_hooks)
    return found


def _plain(value: Any, depth: int = 2) -> Any:
    """Something to compare that later changes leave alone; of what is neither plain nor small, which object it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth and isinstance(value, dict | list | tuple) and len(value) <= _MOST:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: _plain(each, depth - 1) for key, each in items}
    return id(value)
