"""Loaders from the Trainer's side: what they yield, and where in the data a run stands.

A loader with `state_dict` and `load_state_dict` tells its place itself. For any other, the generators that may decide
its order are noted as an epoch begins; to go on, they are put back, and the minibatches that were seen are drawn again
and thrown away. For data with a length that is exact. A stream may yield something else the second time: that is said.
"""

from __future__ import annotations

import hashlib
import random
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syngrad.core.batch import batches
from syngrad.errors import CheckpointError, TrainingError, clean, warn
from syngrad.replicas.shares import Share
from syngrad.trainer.interrupts import let_processes_end
from syngrad.trainer.loader_attributes import attributes, moved, parts_of, put_back
from syngrad.tree import tensors

#: elements of a tensor that tell one minibatch from another
_SAMPLE = 256


def length(loader: Iterable[Any]) -> int | None:
    """Minibatches an epoch, None where the loader does not tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def readable_once(loader: Any) -> bool:
    """Whether it is one of Python's or PyTorch's own iterators, of which nothing is left once they were read."""
    return isinstance(loader, Iterator) and type(loader).__module__ in (
        "builtins",
        "itertools",
        "torch.utils.data.dataloader",
    )


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Inside it the death of a loader's worker process, which PyTorch raises wherever the program is, is one line."""
    try:
        yield
    except (RuntimeError, TrainingError) as error:
        cause = error if isinstance(error, RuntimeError) else error.__cause__
        cut = isinstance(cause, ConnectionError | EOFError) and _received(cause)
        if not cut and not str(cause).startswith("DataLoader worker (pid"):
            raise
        let_processes_end()
        raise TrainingError(
            f"the loader has lost one of its worker processes: {clean(str(cause), 300)}; if nobody did that, the "
            "machine may be out of memory: give the loader fewer num_workers"
        ) from error


def _received(error: BaseException) -> bool:
    """Whether it was raised where PyTorch's loader receives what a worker process sends."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(code.co_name == "_try_get_data" and code.co_filename.endswith("dataloader.py") for code in frames)


class LoaderPosition:
    """Where a run stands in the training loader, and how to get back there.

    Args:
        loader: as the user gives it.
        share: the part of it that this process trains on, where replicas divide it.
    """

    def __init__(self, loader: Iterable[Any], share: Share | None = None) -> None:
        self.loader, self.share = loader, share
        self.delivered = 0
        self._start: dict[str, Any] | None = None
        #: minibatches of the next epoch that were seen before, and whether they have to be drawn again
        self._seen, self._again = 0, False
        self._after: dict[str, Any] | None = None
        #: what the loader's attributes were before anything was read
        self._made = attributes(loader)
        #: the minibatch that was handed out last, and what tells the last one of the run that was saved
        self._last: Any = None
        self._mark = ""
        #: what was loaded, until it is used: a run may be saved once more before it goes on
        self._loaded: dict[str, Any] | None = None

    def epoch(self) -> Iterator[Any]:
        """One epoch's minibatches, or what is left of it after :meth:`load`."""
        seen, again, self._seen, self._again = self._seen, self._again, 0, False
        self._loaded = None
        if not self._tells():
            self._start = self._now()
        self.delivered = seen
        iterator = self._batches()
        if again:
            for index in range(seen):
                self._last = next(iterator, self)
                if self._last is self:
                    raise CheckpointError(
                        f"the loader ended at minibatch {index}, before {seen}, where the run was saved; give it the "
                        "same data"
                    )
            if self._mark and fingerprint(self._last) != self._mark:
                warn(
                    f"the data comes in another order than before: minibatch {seen} of the epoch is not the one that "
                    "was trained on; what its order hangs on could not be put back, and a loader with state_dict can"
                )
            if self._after is not None:
                self._put(self._after)
                self._after = None
        for batch in iterator:
            self.delivered += 1
            self._last = batch
            yield batch
        self.delivered, self._start, self._last = 0, None, None

    @property
    def length(self) -> int | None:
        """Minibatches an epoch, None where the loader does not tell."""
        whole = length(self.loader)
        return whole if whole is None or self.share is None else whole // self.share.count

    def peek(self) -> Any:
        """An epoch's first minibatch, without a step in the data; None where there is none."""
        loader: Any = self.loader
        before, place = self._now(), loader.state_dict() if self._tells() else None
        first = next(self._batches(), None)
        self._put(before)
        if place is not None:
            loader.load_state_dict(place)
        return first

    def _batches(self) -> Iterator[Any]:
        return batches(self.loader if self.share is None else self.share)

    def _now(self) -> dict[str, Any]:
        return {**generators(self.loader), "moved": moved(self.loader, self._made)}

    def _put(self, state: dict[str, Any]) -> None:
        set_generators(self.loader, state)
        put_back(self.loader, state["moved"])

    def state_dict(self) -> dict[str, Any]:
        """Plain data: how far the epoch is, and what it takes to get there again."""
        if self._loaded is not None:
            return self._loaded
        loader: Any = self.loader
        again = self._after is not None  # what was seen is being drawn again
        return {
            "length": length(self.loader),
            "delivered": self.delivered,
            "loader": loader.state_dict() if self._tells() else None,
            "start": self._start,
            "now": self._after if again else self._now(),
            "mark": self._mark if again or self._tells() or streams(self.loader) else fingerprint(self._last),
            **({} if self.share is None else {"replicas": self.share.count}),
        }

    def check(self, state: dict[str, Any]) -> None:
        """Refuse what :meth:`load` could not put in its place, before anything is.

        Raises:
            CheckpointError: for a loader of another length, or one that cannot tell its place where it could before.
        """
        for states in (state["start"], state["now"]):
            if states is not None:
                _set_state(torch.Generator(), states["torch"])
                _set_state(random.Random(), states["python"])
                _set_numpy(np.random.RandomState(), states["numpy"])
        if state["length"] != length(self.loader):
            raise CheckpointError(
                f"the loader has {length(self.loader)} minibatches an epoch, and the run was saved with one of "
                f"{state['length']}; give it the same data and batch size"
            )
        if state["loader"] is not None and not self._tells():
            raise CheckpointError("the run was saved with a loader that has state_dict, and this one has none")

    def load(self, state: dict[str, Any]) -> None:
        """The next :meth:`epoch` goes on from there; :meth:`check` comes first."""
        self.check(state)
        self._seen = self.delivered = int(state["delivered"])
        self._mark, self._loaded = str(state["mark"]), state
        then, now = int(state.get("replicas", 1)), 1 if self.share is None else self.share.count
        if then != now:  # each goes on after what all have seen together
            self._seen = self.delivered = -(-self._seen * then // now)
            self._mark = ""
        if state["loader"] is not None:
            self._put(state["now"])
            loader: Any = self.loader
            loader.load_state_dict(state["loader"])
            return
        self._again = self._seen > 0
        if state["start"] is not None:  # also before the first minibatch has come: it is for this order that was drawn
            self._put(state["start"])
            self._after = state["now"] if self._again else None
        else:
            self._put(state["now"])
        parts = [(path, part) for path, part in parts_of(self.loader) if hasattr(part, "set_epoch")]
        samplers = {id(part): (path, part) for path, part in reversed(parts)}  # each once, where it is found first
        for path, part in samplers.values():
            if not any(name in vars(part) for name in ("epoch", "_epoch")):
                warn(
                    f"the order of the loader's {path or 'data'} hangs on set_epoch, and it does not tell which epoch "
                    "it is at; call set_epoch in a callback's on_start, or the order may differ"
                )
        if getattr(self.loader, "persistent_workers", False) and getattr(self.loader, "num_workers", 0):
            warn(
                "the loader's worker processes live on from epoch to epoch, and what they draw at random cannot be put "
                "back; persistent_workers=False is exact"
            )
        if self._seen and (state["length"] is None or streams(self.loader)):
            warn(
                f"the data is a stream that cannot be put back where it stood: its first {self._seen} minibatches are "
                "read again and skipped, which is exact only if it yields the same; a loader with state_dict is"
            )

    def _tells(self) -> bool:
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")


def streams(loader: Any) -> bool:
    """Whether it is an iterator, or a DataLoader over iterable data."""
    if isinstance(loader, Iterator):
        return True
    return isinstance(getattr(loader, "dataset", None), torch.utils.data.IterableDataset)


def generators(loader: Any) -> dict[str, Any]:
    """The states of the global generators, and of those that the loader and its parts hold."""
    return {
        "torch": _state(torch.default_generator),
        "python": _state(random),
        "numpy": _numpy_state(),
        "loader": {path: _state(generator) for path, generator in _held(loader).items()},
    }


def set_generators(loader: Any, states: dict[str, Any]) -> None:
    """Put all of them back."""
    _set_state(torch.default_generator, states["torch"])
    _set_state(random, states["python"])
    _set_numpy(np.random, states["numpy"])
    held = _held(loader)
    for path, saved in states["loader"].items():
        if path not in held:
            raise CheckpointError(f"the loader has no generator at {path!r}, where one was saved; give it the same one")
        _set_state(held[path], saved)


def _numpy_state() -> list[Any]:
    name, state, position, has_gauss, cached = np.random.get_state()
    return [name, torch.from_numpy(np.asarray(state, dtype=np.int64)), position, has_gauss, cached]


def _set_numpy(generator: Any, saved: Any) -> None:
    name, state, position, has_gauss, cached = saved
    generator.set_state((name, state.numpy().astype(np.uint32), position, has_gauss, cached))


def _state(generator: Any) -> Any:
    """Where a generator of PyTorch, NumPy or Python stands, as plain data."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    version, keys, gauss = generator.getstate()
    return [version, torch.tensor(keys, dtype=torch.int64), gauss]


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        version, keys, gauss = state
        generator.setstate((version, tuple(keys.tolist()), gauss))


def _held(loader: Any) -> dict[str, Any]:
    """The generators in the attributes of a loader, its samplers and its data set, each once, by where they are."""
    found: dict[str, Any] = {}
    for path, part in parts_of(loader):
        for name, value in vars(part).items():
            known = isinstance(value, torch.Generator | np.random.Generator | random.Random)
            if known and all(value is not one for one in found.values()):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def fingerprint(batch: Any) -> str:
    """What tells a minibatch from others, of its whole numbers if it has any: a model may write into the others."""
    found = [t.detach() for t in tensors(batch) if isinstance(t, Tensor) and t.layout == torch.strided and t.numel()]
    exact = [t for t in found if not t.is_floating_point() and not t.is_complex()]
    made = hashlib.sha256()
    for tensor in exact or found:
        flat = tensor.reshape(-1)
        flat = flat[:: max(flat.numel() // _SAMPLE, 1)][:_SAMPLE].cpu().contiguous()
        made.update(flat.view(torch.uint8).numpy().tobytes())
    return made.hexdigest() if found else ""
