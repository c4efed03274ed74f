"""What moves from epoch to epoch in a loader of the user's own, and decides the order of the data: numbers and lists.

A sampler counts its epochs, a loader shuffles its own list once more each time. Such attributes of a loader, its
samplers and its data set are noted where they are no longer what they were when the run began, and put back to go on.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syngrad.errors import warn

#: where a loader keeps what decides its order
_PARTS = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset", "dataset.dataset", "collate_fn")
#: numbers of a list or tensor that is an order; longer ones are data
_LONGEST = 1 << 20


def parts_of(loader: Any) -> Iterator[tuple[str, Any]]:
    """(where it is, the part) for all parts of a loader that have attributes."""
    for path in _PARTS:
        part = loader
        for name in filter(None, path.split(".")):
            part = getattr(part, name, None)
        if hasattr(part, "__dict__"):
            yield path, part


def attributes(loader: Any) -> dict[str, int | Tensor]:
    """The whole numbers, and the lists of them, in a loader's parts, by where they are."""
    found: dict[str, int | Tensor] = {}
    for path, part in parts_of(loader):
        for name, value in vars(part).items():
            kept = _kept(value)
            if kept is not None:
                found[f"{path}.{name}".lstrip(".")] = kept
    return found


def moved(loader: Any, made: dict[str, int | Tensor]) -> dict[str, int | Tensor]:
    """Those that are not what they were made as."""
    return {path: now for path, now in attributes(loader).items() if path in made and not _equal(now, made[path])}


def put_back(loader: Any, values: dict[str, int | Tensor]) -> None:
    """Put them where they were found; what is not there any more, or may not be set, is warned of."""
    parts = dict(parts_of(loader))
    for path, value in values.items():
        where, _, name = path.rpartition(".")
        part: Any = parts.get(where)
        now = vars(part).get(name) if part is not None else None
        try:
            if isinstance(value, int) and name in ("epoch", "_epoch") and hasattr(part, "set_epoch"):
                part.set_epoch(value)
            elif isinstance(value, int) and isinstance(now, int):
                setattr(part, name, value)
            elif isinstance(now, list) and isinstance(value, Tensor):
                now[:] = value.tolist()
            elif isinstance(now, np.ndarray) and isinstance(value, Tensor):
                now[...] = value.numpy()
            elif isinstance(now, Tensor) and isinstance(value, Tensor):
                now.copy_(value)
            else:
                raise TypeError
        except (AttributeError, TypeError, ValueError, RuntimeError):
            warn(
                f"the loader's {path!r:.40} had moved when the run was saved and cannot be put back; the order of the "
                "data may differ"
            )


def _kept(value: Any) -> int | Tensor | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1 << 63 else None
    if isinstance(value, list) and 0 < len(value) <= _LONGEST and type(value[0]) is int:
        try:
            return torch.frombuffer(array("q", value), dtype=torch.int64).clone()
        except (TypeError, OverflowError):
            return None
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "i" and 0 < value.size <= _LONGEST:
        return torch.from_numpy(value.astype(np.int64))
    if isinstance(value, Tensor) and value.dim() == 1 and value.dtype == torch.int64 and value.is_cpu:
        return value.detach().clone() if 0 < value.numel() <= _LONGEST else None
    return None


def _equal(now: int | Tensor, before: int | Tensor) -> bool:
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        return torch.equal(now, before)
    return type(now) is type(before) and bool(now == before)
