"""What an optimiser keeps of a parameter: held against what comes out of a file, or from another worker.

A fused optimiser walks over the memory of its moments as far as its parameter goes. One of another shape would be read
and written past its end, so none is put in its place before its name, shape and dtype are known to be right.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: how PyTorch runs an optimiser, which says nothing of what it keeps
_PLAIN = {"fused": False, "foreach": False, "capturable": False}
#: elements of a parameter that a trial on the CPU may take
_LARGEST_TRIAL = 1 << 24

#: name → an example of what is kept under it
Kept = dict[str, Any]


class Moments:
    """Knows what optimisers keep, found once for each shape by letting one of the same kind take a step."""

    def __init__(self) -> None:
        self._known: dict[Any, Kept | None] = {}

    def check(
        self,
        optimizer: torch.optim.Optimizer,
        group: Mapping[str, Any],
        parameter: nn.Parameter,
        name: str,
        moments: Mapping[str, Any],
    ) -> None:
        """Refuse moments that are not this parameter's.

        Args:
            optimizer: whose they are to be.
            group: the options that it has for this parameter.
            parameter: what they are moments of.
            name: the parameter's, for the error.
            moments: by their names; none at all where it was not trained yet.

        Raises:
            ValueError: naming the first that has another shape or dtype, or that is missing.
        """
        if not moments:
            return
        own = type(optimizer).__module__.startswith("torch.")
        kept = self._kept(type(optimizer), group, parameter)
        for key, value in moments.items():
            said = f"{key!r} of {name!r}"
            expected = (kept or {}).get(key)
            if not isinstance(value, Tensor):
                if isinstance(expected, Tensor):
                    raise ValueError(f"{said} is {value!r:.20}, and has to be a tensor of {_described(expected)}")
                continue
            if value.layout != torch.strided and group.get("fused"):
                raise ValueError(f"{said} is sparse, and a fused {type(optimizer).__name__} takes dense ones alone")
            if isinstance(expected, Tensor):
                # another class than PyTorch's may choose other shapes as it goes, but for the parameter's own
                fixed = own or expected.shape == parameter.shape
                if fixed and not _alike(value, expected):
                    raise ValueError(f"{said} is {_described(value)}, and has to be {_described(expected)}")
            elif (own or group.get("fused")) and value.dim() and not _alike(value, parameter):
                raise ValueError(f"{said} is {_described(value)}, and the parameter {_described(parameter)}")
        missing = [key for key in kept or {} if key not in moments]
        if own and missing:
            raise ValueError(f"{missing[0]!r} of {name!r} is missing")

    def _kept(
        self, kind: type[torch.optim.Optimizer], group: Mapping[str, Any], parameter: nn.Parameter
    ) -> Kept | None:
        made: Any = kind
        taken = _taken(made)
        given = {key: value for key, value in group.items() if key in taken and not isinstance(value, Tensor)}
        given |= {key: value for key, value in _PLAIN.items() if key in taken}
        key = kind, parameter.shape, parameter.dtype, tuple(sorted((name, bool(v)) for name, v in given.items()))
        if key not in self._known:
            kept = _trial(kind, given, parameter, "meta")
            if kept is None and parameter.numel() <= _LARGEST_TRIAL:
                kept = _trial(kind, given, parameter, "cpu")
            self._known[key] = kept
        return self._known[key]


@functools.cache
def _taken(kind: Any) -> Mapping[str, inspect.Parameter]:
    return {name: each for name, each in inspect.signature(kind).parameters.items() if name != "params"}


def _trial(
    kind: type[torch.optim.Optimizer], options: Mapping[str, Any], parameter: nn.Parameter, device: str
) -> Kept | None:
    """What an optimiser of this kind keeps after a step; None where it cannot take one there."""
    like = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype, device=device))
    like.grad = torch.zeros_like(like)
    made: Any = kind
    try:
        with torch.random.fork_rng(devices=[]):
            optimizer = made([like], **options)
            optimizer.step()
        return dict(optimizer.state[like])
    except Exception:
        return None


def _alike(value: Tensor, expected: Tensor) -> bool:
    if expected.dim() == 0 and {value.dtype, expected.dtype} == {torch.float32, torch.float64}:
        return value.dim() == 0  # a count, whose dtype depends on how the optimiser is run
    return value.shape == expected.shape and value.dtype == expected.dtype


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
