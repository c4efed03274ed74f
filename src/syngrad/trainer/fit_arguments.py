"""What `fit` was asked for, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from syngrad.checks import check_whole
from syngrad.errors import CheckpointError, ConfigError, TrainingError
from syngrad.runtime import checkpoint
from syngrad.trainer.callbacks import Callback
from syngrad.trainer.history import Epoch
from syngrad.trainer.loaders import length, readable_once

AUTO = "auto"


@dataclass(frozen=True)
class FitArguments:
    """What `fit` was asked for, which :meth:`syngrad.Trainer.fit` explains; checked, and counts in Python's own kind.

    Raises:
        ConfigError: for what cannot be used, or does not go together.
    """

    loader: Iterable[Any]
    epochs: int
    validate: Iterable[Any] | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    validate_every: int | None = None
    save: str | Path | None = None
    save_every: int | None = None
    keep: int = 2
    resume: bool | str | Path = False
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("validate_every", 1), ("save_every", 1), ("keep", 1)):
            value = getattr(self, name)
            if value is None and name in ("validate_every", "save_every"):
                continue
            object.__setattr__(self, name, check_whole(name, value, least))
        if self.validate_every is not None and self.validate is None:
            raise ConfigError(f"validate_every={self.validate_every} needs validate=, a loader to evaluate on")
        self._check_validation()
        for name in ("save", "resume"):
            value = getattr(self, name)
            folder = isinstance(value, str | PathLike) and "\0" not in str(value) and str(value) != ""
            if not folder and not (value is None if name == "save" else isinstance(value, bool)):
                also = "None" if name == "save" else "True, False or 'auto'"
                raise ConfigError(f"{name} must be a folder or {also}, got {value!r:.60}")
            if folder and not (name == "resume" and value == AUTO):
                # there it is, wherever the working directory may be when it is time to write
                object.__setattr__(self, name, _absolute(str(value)))
        if self.save is None and (self.save_every is not None or self.resume in (True, AUTO)):
            what = "save_every" if self.save_every is not None else f"resume={self.resume!r}"
            raise ConfigError(f"{what} needs save=, the folder of the checkpoints")
        if not isinstance(self.callbacks, Sequence):
            raise ConfigError(f"callbacks must be a list, got {type(self.callbacks).__name__}; write callbacks=[…]")
        for each in self.callbacks:
            if not isinstance(each, Callback):
                raise ConfigError(f"a callback must derive from syngrad.callbacks.Callback, got {type(each).__name__}")

    def _check_validation(self) -> None:
        """Refuse now what could not be validated on after an epoch."""
        if self.validate is None:
            return
        if length(self.validate) == 0:
            raise TrainingError("the loader to evaluate on yielded no batch; check its length")
        if readable_once(self.validate) and (self.epochs > 1 or self.validate_every is not None):
            raise ConfigError(
                f"validate= is a {type(self.validate).__name__}, which can be read once only, and it is read after "
                "every epoch; give a list or a DataLoader"
            )

    def start(self) -> Path | None:
        """The checkpoint to go on from, None to begin anew.

        Raises:
            CheckpointError: where there is none, or where a new run would mix with what an earlier one has left.
        """
        there = checkpoint.found(self.save) if self.save is not None else []
        if not isinstance(self.resume, bool) and self.resume != AUTO:
            path = checkpoint.newest(self.resume)
            beside = self.save is not None and path.parent.resolve() == Path(self.save).resolve()
            if there and not beside and path.resolve() not in [each.resolve() for each in there]:
                raise CheckpointError(
                    f"{str(self.save)!r} holds checkpoints of another run than {str(path)!r}; name another folder"
                )
            return path
        if self.save is None:
            return None
        if self.resume is False and there:
            raise CheckpointError(
                f"{str(self.save)!r} holds checkpoints of an earlier run; go on with resume=True, or name another"
            )
        return checkpoint.newest(self.save) if self.resume is True or there else None

    def saved(self) -> Path | None:
        """The checkpoint that this very run, started again, goes on from, whatever `resume` says: its own newest one,
        or the one that it was begun from; None where there is neither.
        """
        if self.save is not None and checkpoint.found(self.save):
            return checkpoint.newest(self.save)
        return None if isinstance(self.resume, bool) or self.resume == AUTO else checkpoint.newest(self.resume)

    def boundary(self, minibatches: int, done: int, whole: int | None) -> int:
        """The minibatch that all have to be done with before the next thing is due that is no minibatch.

        Args:
            minibatches: that there have been.
            done: of the epoch.
            whole: minibatches of an epoch, None where nobody knows.
        """
        if whole is None:
            return minibatches + 1
        left = [whole - done]
        if self.validate_every is not None:
            left.append(self.validate_every - done % self.validate_every)
        if self.save_every is not None:
            left.append(self.save_every - minibatches % self.save_every)
        return minibatches + max(min(left), 1)


def _absolute(path: str) -> Path:
    try:
        return Path(path).absolute()
    except OSError as error:
        raise ConfigError(
            f"{path!r:.60} is a folder below the working directory, which is gone; name it from the root on"
        ) from error
