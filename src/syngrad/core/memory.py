"""What a training step keeps for its backward passes, counted exactly, on any device.

Counted: every storage that autograd has saved or that waits for feedback, each once, parameters and buffers excluded.
The peak over the step is what a machine must have room for beside the model and its optimiser.
"""

from __future__ import annotations

import sys
import weakref
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.tree import tensors


class SavedBytes:
    """A meter of saved activations: `with SavedBytes(model) as meter: trainer.step(batch)`, then `meter.peak_bytes`.

    It hears of saved tensors through autograd's own hooks, and of what interfaces keep through :func:`hold`.

    Args:
        exclude: modules whose parameters and buffers do not count.
        but: tensors that do not count either.
    """

    active: SavedBytes | None = None

    def __init__(self, *exclude: nn.Module, but: list[Tensor] | None = None) -> None:
        kept = [t for module in exclude for t in (*module.parameters(), *module.buffers())]
        self._excluded = {_key(t) for t in [*kept, *(but or [])]}
        self._counts: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self.live_bytes = 0
        self.peak_bytes = 0
        self._hooks: Any = None
        self._outer: SavedBytes | None = None

    def __enter__(self) -> SavedBytes:
        self._outer, SavedBytes.active = SavedBytes.active, self
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        SavedBytes.active = self._outer

    def hold(self, tensor: Tensor, owner: object) -> None:
        """Count `tensor`'s storage for as long as `owner` lives."""
        if hasattr(tensor, "fake_mode") or tensor.is_meta:  # a run for shapes alone holds nothing
            return
        key = _key(tensor)
        base = tensor if tensor._base is None else tensor._base
        if key in self._excluded or tensor.numel() == 0 or isinstance(base, nn.Parameter):
            return
        if self._counts.get(key, 0) == 0:
            self._bytes[key] = tensor.untyped_storage().nbytes()
            self.live_bytes += self._bytes[key]
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._counts[key] = self._counts.get(key, 0) + 1
        weakref.finalize(owner, self._release, key)

    def _release(self, key: int) -> None:
        self._counts[key] -= 1
        if self._counts[key] == 0:
            self.live_bytes -= self._bytes[key]

    def _pack(self, tensor: Tensor) -> _Saved:
        # without its graph: a saved output would lead back to the node that saved it, and neither would ever go
        saved = _Saved(tensor.detach() if tensor.grad_fn is not None else tensor)
        self.hold(tensor, saved)
        return saved


class _Saved:
    """What stands in the graph for a saved tensor: when the graph goes, so does this."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def hold(tree: Any, owner: object) -> None:
    """Tell the meter, if one is running, of tensors kept outside the graph for as long as `owner` lives."""
    if SavedBytes.active is not None:
        for tensor in tensors(tree):
            SavedBytes.active.hold(tensor, owner)


def peak_memory_bytes() -> int | None:
    """The most memory this process has had; None where the system does not tell.

    getrusage would also count what the process was before it became this program.
    """
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/status", encoding="ascii") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
