"""Running the user's model without leaving a trace on it."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end: buffers (running statistics), training flags, plain attributes, and the state of
    every random generator. Parameters and ``.grad`` are the caller's part: use ``torch.autograd.grad``.
    """
    attributes = {module: dict(vars(module)) for module in model.modules()}
    registries = {module: dict(module._buffers) for module in attributes}
    tensors = {value: value.detach().clone() for value in _state_tensors(model)}
    with _generators(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in tensors.items():
                    tensor.copy_(value)
            for module, saved in attributes.items():
                vars(module).clear()
                vars(module).update(saved)
                module._buffers.clear()
                module._buffers.update(registries[module])


@contextlib.contextmanager
def _generators(model: nn.Module) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state: Any = numpy.random.get_state() if numpy is not None else None
    used = {value.device for value in model.parameters() if value.device.type not in ("cpu", "meta")}
    kind = next(iter(used)).type if used else "cuda"
    indices = [device.index or 0 for device in used if device.type == kind]
    try:
        with torch.random.fork_rng(devices=indices, device_type=kind):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _state_tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.buffers()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.requires_grad:
                yield value
