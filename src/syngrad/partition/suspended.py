"""The route that never traces: the user's own forward runs, and stands still at the cuts.

    stage 0:  model(x)  ┄┄▶ the named module is about to be called: hand over its differentiable inputs h, stand still
    stage 1:  m comes   ┄┄▶ in place of h, wherever the forward holds it; go on to the next cut, or to the end

A forward that stands still is a greenlet: its frames wait, on the same thread, until they are switched to again. So
whatever Python decides in there (control flow, caches, lists, random branches) is decided by the very code that runs
without Syngrad. A stage cannot run without those before it, so this is for one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from greenlet import greenlet
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils import _pytree as pytree

from syngrad.errors import TrainingError

#: forwards that are begun anew because they ended before the first cut: a layer that is dropped by chance, say
_TRIES = 100


class Forward:
    """One model's forward, cut at modules of it.

    Args:
        model: the user's.
        cuts: the names of modules, each of which starts a stage, in the order of execution.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[str]) -> None:
        self._model, self._names = model, list(cuts)
        self._modules = [model.get_submodule(name.removesuffix("._orig_mod")) for name in cuts]
        #: by cut, which of the module's floating inputs are handed over, first what was made first, as in a recording:
        #: in a checkpoint estimators are known by their places; None for all that require a gradient
        self.alive: list[list[int] | None] = [None] * len(self._names)
        self._handles: dict[int, Any] = {}
        self._run: greenlet | None = None
        #: by cut, which of the module's floating inputs were handed over last
        self.offered: list[list[int]] = [[] for _ in self._names]
        #: by cut, whether the stage writes into what it is given, and so gets copies; None until one has run
        self.writes: list[bool | None] = [None] * len(self._names)
        #: what stands in the stage that runs, and how often it had been written to
        self._standing: list[tuple[Tensor, int]] = []
        self._next = 0
        self._around = _Modes.now()

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's arguments to the first message; a forward that still stands somewhere is given up."""
        for _ in range(_TRIES):
            self.close()
            for index, module in enumerate(self._modules):
                hook = partial(self._reached, index)
                self._handles[index] = module.register_forward_pre_hook(hook, with_kwargs=True)
            self._next, self._run = 0, greenlet(self._model)
            message = self._switch(args, kwargs)
            if not self._run.dead or not self._names:
                return message
        self._missed()

    def go_on(self, index: int, message: Any) -> Any:
        """From the message at the cut that starts stage `index`, to the next message or the model's output."""
        if self._run is None or self._run.dead or self._next != index:
            name = self._names[index - 1]
            raise TrainingError(
                f"stage {name!r} is a part of the model's own forward, and runs only after the stages before it"
            )
        found = self._switch(message)
        if self.writes[index - 1] is None and self._standing:
            self.writes[index - 1] = any(h._version != before for h, before in self._standing)
        self._standing = []
        if self._run is not None and self._run.dead:
            if self._next < len(self._names):
                self._missed()
            self.close()
        return found

    def close(self) -> None:
        """Give up a forward that stands still: its frames end as at an exception, and hooks are taken off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        run, self._run = self._run, None
        if run is not None and not run.dead:
            outer = _Modes.now()
            run.throw()
            outer.hold()

    def _switch(self, *given: Any) -> Any:
        run = self._run
        assert run is not None
        run.parent = greenlet.getcurrent()
        self._around = _Modes.now()
        try:
            return run.switch(*given) if self._next else run.switch(*given[0], **given[1])
        except BaseException:
            self._run = None
            self.close()
            raise

    def _missed(self) -> None:
        name = self._names[self._next]
        self.close()
        raise TrainingError(
            f"the model's forward ended without calling {name!r}, where a stage starts: where layers are dropped by "
            "chance, switch that off, or cut where nothing is dropped"
        )

    def _reached(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hook: the module is about to be called."""
        run = self._run
        # in evaluation, and where a checkpointed region is computed again on the way back, the forward is not this one
        if run is None or greenlet.getcurrent() is not run or index < self._next:
            return None
        if index > self._next:
            raise TrainingError(
                f"the model's forward called {self._names[index]!r} before {self._names[self._next]!r}, in another "
                "order than on the first batch; cut where the order stays"
            )
        self._next = index + 1
        self._handles.pop(index).remove()
        found, alive = floating(args, kwargs), self.alive[index]
        if alive is None:
            alive = sorted((i for i, h in enumerate(found) if h.requires_grad), key=lambda i: _made(found[i]))
        self.offered[index] = alive
        held = [found[i] for i in alive if i < len(found)]
        copies = self.writes[index] is not False
        # with the graph, which what the forward holds is about to lose; a view would follow what is written there
        sent = [Carry.apply(h) if copies else h.view_as(h) for h in held]  # type: ignore[no-untyped-call]
        region, around = _Modes.now(), self._around
        if region == around:  # as a rule
            came = run.parent.switch(sent[0] if len(sent) == 1 else tuple(sent))
        else:
            around.hold_over(region)
            try:
                came = run.parent.switch(sent[0] if len(sent) == 1 else tuple(sent))
            finally:
                around.uncover(region)
        given = [came] if len(sent) == 1 else list(came)
        if region.hooks != around.hooks:
            # activation checkpointing has saved what it was given, and can take out again only what is part of a graph
            given = [
                m if m.requires_grad or m is h else m.detach().requires_grad_()
                for m, h in zip(given, sent, strict=True)
            ]
        others, self._standing = _replaced(held, sent, given, copies)
        if not others:
            return None
        return pytree.tree_map(lambda leaf: others.get(id(leaf), leaf), (args, kwargs))


def floating(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among a module's inputs that may carry a gradient, in a fixed order, each once."""
    leaves = pytree.tree_leaves((args, kwargs))
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())]
    return list({id(leaf): leaf for leaf in found}.values())


def _made(h: Tensor) -> int:
    """When a tensor was made, by autograd's clock."""
    return -1 if h.grad_fn is None else int(h.grad_fn._sequence_nr())


def _replaced(
    held: list[Tensor], sent: list[Tensor], given: list[Tensor], copies: bool
) -> tuple[dict[int, Tensor], list[tuple[Tensor, int]]]:
    """Have what has come stand in the place of what was handed over: in the inputs, and wherever else the forward holds
    it, a residual path around the module or an argument of later modules, say.

    Args:
        held: by the forward; sent: with their graph; given: for them.
        copies: whether the stage gets memory of its own, which it may write into.

    Returns:
        What has to take the place of an input by its id, and what stands now, with its version.
    """
    others: dict[int, Tensor] = {}
    standing: list[tuple[Tensor, int]] = []
    for h, ours, m in zip(held, sent, given, strict=True):
        if m is ours:  # the graph is not cut here
            continue
        real = type(m) is Tensor and not m.is_meta
        if isinstance(h, nn.Parameter) or h._is_view() or (h.is_leaf and h.requires_grad):
            own = others[id(h)] = m.clone() if copies else m  # h cannot be cut from its graph where it stands
            if copies and real:
                standing.append((own, own._version))
            continue
        h.detach_()
        if copies and real:
            h.data = m.detach().clone()
            standing.append((h, h._version))
        if m.requires_grad:
            with _unsafe_preserve_version_counter(h):  # its values stay, and previous stages may have saved them
                Stand.apply(m, h)  # type: ignore[no-untyped-call]
    return others, standing


class Carry(torch.autograd.Function):
    """Another tensor of h's values and graph, and no view."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        """h."""
        return h.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """As it comes."""
        return gradient


class Stand(torch.autograd.Function):
    """Makes h, in place, a tensor computed from m, which has the same values."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, h: Tensor) -> Tensor:
        """h itself."""
        ctx.mark_dirty(h)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """All of it to m."""
        return gradient, None


@dataclass
class _Modes:
    """What a `with` of torch's changes for the whole thread: gradients, autocast, hooks on saved tensors.

    A forward may stand still inside such a region, and what others compute meanwhile must not be in it.
    """

    grad: bool
    autocast: list[tuple[str, bool, torch.dtype]]
    hooks: Any

    @classmethod
    def now(cls) -> _Modes:
        kinds = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
        return cls(torch.is_grad_enabled(), kinds, torch._C._autograd._top_saved_tensors_default_hooks(True))

    def hold(self) -> None:
        """Have these hold, but for the hooks."""
        torch.set_grad_enabled(self.grad)
        for kind, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)

    def hold_over(self, region: _Modes) -> None:
        """Have these hold though a region is not left: its hooks are covered by these."""
        self.hold()
        if region.hooks != self.hooks:
            pack, unpack = self.hooks or (_as_it_is, _as_it_is)
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)

    def uncover(self, region: _Modes) -> None:
        """Go on in the region."""
        if region.hooks != self.hooks:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        region.hold()


def _as_it_is(value: Any) -> Any:
    return value


class Suspended(nn.Module):
    """A stage of a model that is cut in its own forward.

    Its modules are the user's own, under their own names, though it is no parent of theirs: a stage's parameters and
    buffers are found through it, and `torch.func.functional_call` puts others in their places.

    Args:
        forward: of the model, common to all stages.
        index: of the stage.
        model: the user's.
        names: of the modules that belong to this stage.
    """

    def __init__(self, forward: Forward, index: int, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._common = (forward, index, model)  # in a tuple: the user's model is no child of a stage
        self._own = tuple((name, model.get_submodule(name)) for name in names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's arguments, or a message, to the next message or the output."""
        forward, index, _ = self._common
        return forward.go_on(index, args[0]) if index else forward.start(args, kwargs)

    def leave_out(self, dead: Sequence[bool]) -> bool:
        """Hand over no more what no gradient comes to."""
        forward, index, _ = self._common
        offered = forward.offered[index]
        forward.alive[index] = [i for i, gone in zip(offered, dead, strict=True) if not gone]
        return True

    def named_modules(self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        """Itself, and the user's modules that belong to the stage."""
        memo = set() if memo is None else memo
        for name, module in (("", self), *self._own):
            if module in memo:
                continue
            if remove_duplicate:
                memo.add(module)
            yield prefix + ("." if prefix and name else "") + name, module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_common", (None, None, None))[2]
            if model is None or name not in model._modules:
                raise
            return model._modules[name]
