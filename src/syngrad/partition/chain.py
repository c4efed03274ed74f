"""The first route: the cuts lie in nested Sequentials all the way from the root, so a stage is a list of modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

from syngrad.partition.cuts import PlaceError, ancestors, candidates, is_chain
from syngrad.partition.segment import FIRST, Segment


def is_chain_of(model: nn.Module, cuts: Sequence[str]) -> bool:
    """Whether every module around a cut is a plain Sequential."""
    return all(is_chain(model.get_submodule(around)) for cut in cuts for around in ancestors(cut))


class Chain:
    """A model flattened to a list of modules: containers around cuts, and around what could be one, are opened.

    Any other module stays whole, with its hooks and whatever its own forward does.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[str]) -> None:
        self._model = model
        opened = {around for cut in (*cuts, *candidates(model)) for around in ancestors(cut)}
        self._names = list(_flattened(model, "", opened))
        self._modules = [model.get_submodule(name) for name in self._names]

    def position(self, cut: str) -> int:
        """The index of the module the cut names, or of the first one inside it."""
        inside = (i for i, name in enumerate(self._names) if name == cut or name.startswith(f"{cut}."))
        at = next(inside, None)
        if not at:
            raise PlaceError("is the first module, nothing comes before it")
        module = self._model.get_submodule(cut)
        times = [name for name, other in zip(self._names, self._modules, strict=True) if other is module]
        if len(times) > 1:
            raise PlaceError(f"is called {len(times)} times, as {', '.join(map(repr, times))}")
        return at

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """The tensors of each stage's modules."""
        return [
            [name for at in range(start, stop) for name in tensor_names(self._modules[at], self._names[at])]
            for start, stop in self._spans(cuts)
        ]

    def segments(self, cuts: Sequence[str]) -> list[Segment]:
        """The stages, each a list of the user's modules."""
        return [
            Segment(
                name,
                nn.Sequential(*self._modules[start:stop]),
                route="chain",
                model=self._model,
                tensor_names=used,
                writes_message=start > 0 and self._writes_at(start),
            )
            for name, (start, stop), used in zip([FIRST, *cuts], self._spans(cuts), self.uses(cuts), strict=True)
        ]

    def closed(self, cut: str) -> bool:
        """Always: what crosses is found in the list."""
        return True

    def _spans(self, cuts: Sequence[str]) -> list[tuple[int, int]]:
        return list(pairwise([0, *(self.position(cut) for cut in cuts), len(self._modules)]))

    def _writes_at(self, start: int) -> bool:
        """Whether an in-place module may get hold of the message: up to the first module that makes a new tensor."""
        for module in self._modules[start:]:
            if writes_in_place(module):
                return True
            if any(True for _ in module.parameters()):
                return False
        return False


def tensor_names(module: nn.Module, name: str) -> Iterator[str]:
    """The qualified names of a module's parameters and buffers, shared ones under each of their names."""
    yield from (key for key, _ in module.named_parameters(name, remove_duplicate=False))
    yield from (key for key, _ in module.named_buffers(name, remove_duplicate=False))


def writes_in_place(module: nn.Module) -> bool:
    """Whether a module holds one of the activations that overwrite their input."""
    return any(getattr(part, "inplace", False) is True for part in module.modules())


def _flattened(module: nn.Module, path: str, opened: set[str]) -> Iterator[str]:
    if path not in opened:
        yield path
        return
    for name in module._modules:
        child = f"{path}.{name}" if path else name
        yield from _flattened(module.get_submodule(name), child, opened)
