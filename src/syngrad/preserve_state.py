"""Running modules without leaving a trace on them: for shapes, for measuring, for a look at the true gradient."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: attributes of these very kinds get their contents back; a subclass may not like to be filled from outside
MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
CONTAINERS = (*MAPPINGS, list, set, deque)


@contextlib.contextmanager
def preserve_state(*parts: nn.Module) -> Iterator[None]:
    """Put everything of these modules back at the end.

    That is buffers (the same tensors with the same values, also where one was replaced, registered or removed),
    training flags, plain attributes (counters, caches, averages; of lists, dicts, sets and deques what they held), and
    the state of every random generator. Parameters and ``.grad`` are the caller's part: use ``torch.autograd.grad``.

    What lies outside the modules cannot be put back: what hooks do elsewhere, files, globals, the insides of objects of
    other kinds that an attribute refers to.
    """
    modules = list(dict.fromkeys(module for part in parts for module in part.modules()))
    attributes = [dict(vars(module)) for module in modules]
    containers = [
        (value, value.copy() if value else ())
        for saved in attributes
        for value in saved.values()
        if type(value) in CONTAINERS
    ]
    tensors = {value: value.detach().clone() for value in _state_tensors(modules)}
    with generators_preserved(*parts):
        try:
            yield
        finally:
            for tensor, values in tensors.items():
                # through .data: a graph that is alive, of a minibatch in flight, may have saved it as it is again
                tensor.data.copy_(values)
            for container, contents in containers:
                if container or contents:
                    _refill(container, contents)
            for module, saved in zip(modules, attributes, strict=True):
                vars(module).clear()
                vars(module).update(saved)


class Buffers:
    """The buffers of some modules as they were, for a minibatch that fails; to be noted before every minibatch.

    Copies go into tensors that are kept from one time to the next, which costs less than 1 µs a buffer; they take as
    much memory as the buffers.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self._modules = list(dict.fromkeys(module for part in parts for module in part.modules()))
        self._registered: list[dict[str, Tensor | None]] = []
        self._tensors: list[Tensor] = []
        self._values: list[Tensor] = []

    def note(self) -> None:
        """Remember them as they are now."""
        self._registered = [dict(module._buffers) if module._buffers else {} for module in self._modules]
        found = [value for held in self._registered for value in held.values() if value is not None]
        if len(found) != len(self._tensors) or any(a is not b for a, b in zip(found, self._tensors, strict=True)):
            self._tensors, self._values = found, [value.detach().clone() for value in found]
        elif found:
            with torch.no_grad():
                torch._foreach_copy_(self._values, [value.detach() for value in found])

    def put_back(self) -> None:
        """Make them again what they were when last noted; what has been registered since goes."""
        for module, held in zip(self._modules, self._registered, strict=True):
            if held or module._buffers:
                module._buffers.clear()
                module._buffers.update(held)
        for tensor, values in zip(self._tensors, self._values, strict=True):
            tensor.data.copy_(values)


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if type(container) in (list, deque):
        container.extend(contents)
    else:
        container.update(contents)


@contextlib.contextmanager
def generators_preserved(*parts: nn.Module) -> Iterator[None]:
    """Put every default generator back at the end: PyTorch's, also of the devices of `parts`, NumPy's and Python's."""
    numpy = sys.modules.get("numpy")
    modules = list(dict.fromkeys(module for part in parts for module in part.modules()))
    python_state = random.getstate()
    numpy_state: Any = numpy.random.get_state() if numpy is not None else None
    used = {p.device for module in modules for p in module._parameters.values() if p is not None}
    used = {device for device in used if device.type not in ("cpu", "meta")}
    kind = next(iter(used)).type if used else "cuda"
    indices = [device.index or 0 for device in used if device.type == kind]
    try:
        with torch.random.fork_rng(devices=indices, device_type=kind):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _state_tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        for value in module._buffers.values():
            if value is not None:
                yield value
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.requires_grad:
                yield value
