"""A model's forward as it really runs: which module is called when, and which parameters are used when.

One run of the whole model, on tensors without data where it can do with them, with a mark at every module's call. When
is told by autograd's own clock: every node of the graph carries the number of nodes made before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.errors import CutError
from syngrad.partition.cuts import PlaceError, RouteError, remedy
from syngrad.partition.example import Example, on_meta, without_data
from syngrad.partition.segment import FIRST, FORWARD, Segment
from syngrad.partition.suspended import Forward, Suspended, floating
from syngrad.preserve_state import preserve_state
from syngrad.tree import as_tree, map_tensors


@dataclass
class Call:
    """One call of a module.

    Args:
        module: that was called.
        clock: autograd's, when it began.
        graph: whether gradients were on.
        carries: whether any of its inputs had a gradient to carry, and gradients were on.
        inputs: (node, number of its output) of every input that has a graph.
    """

    module: nn.Module
    clock: int
    graph: bool
    carries: bool
    inputs: set[tuple[Any, int]]


class Survey:
    """A model in the order in which it runs, as a program whose stages are parts of the user's own forward.

    Args:
        model: the user's.
        example: ``(args, kwargs)`` of one call.
        unread: the positions of what nobody reads in the flattened output.
    """

    def __init__(self, model: nn.Module, example: Example, unread: Callable[[], Sequence[int]] = tuple) -> None:
        self._model, self._unread = model, unread
        #: what is inside a compiled module runs as one piece
        self._outer = [module for name, module in model.named_modules() if "_orig_mod" not in name.split(".")]
        self.calls: list[Call] = []
        #: (autograd's clock, id of a parameter) of every use that a gradient comes back from
        self._used: list[tuple[int, int]] = []
        #: (clock of the earliest tensor that it was with respect to, clock then) of every derivative that forward took
        self._differentiated: list[tuple[int, int]] = []
        self._nodes: list[Any] = []
        self._ends: list[tuple[Any, int] | None] = []
        try:
            with preserve_state(model), on_meta(model) as own, torch.enable_grad():
                for module in model.modules():
                    module.training = False  # where training drops a layer by chance, it is called all the same
                self._run(*map_tensors(lambda leaf: leaf.to("meta"), example))
                self._used = [(clock, own.get(key, key)) for clock, key in self._used]
        except Exception:  # it looks at values, or makes tensors on a device of its own
            without_data([model], example, self._run)
        self._by_module: dict[nn.Module, list[int]] = {}
        for at, call in enumerate(self.calls):
            self._by_module.setdefault(call.module, []).append(at)

    def position(self, cut: str) -> int:
        """The index of the call that the named module begins with; PlaceError where no stage can start there."""
        module = self._model.get_submodule(cut.removesuffix("._orig_mod"))
        at = self._by_module.get(module, [])
        if not at:
            raise PlaceError(
                "is not called by forward on the first batch; a module that some batches pass by starts no stage"
            )
        if len(at) > 1:
            raise PlaceError(f"is called {len(at)} times in forward, so it starts no one stage")
        if not self.calls[at[0]].graph:
            raise PlaceError(
                "is called without a graph: under no_grad, or inside checkpoint(…, use_reentrant=True), where "
                "use_reentrant=False would do"
            )
        if not self.calls[at[0]].carries:
            raise PlaceError("is given nothing that a gradient could come back for")
        return at[0]

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """The tensors that each stage uses: those a gradient comes back to, and those of the modules it calls."""
        starts = [self.position(cut) for cut in cuts]
        clocks = [self.calls[start].clock for start in starts]
        homes = self._homes(starts)
        names: dict[int, list[str]] = {}
        tensors = [
            *self._model.named_parameters(remove_duplicate=False),
            *self._model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in tensors:
            names.setdefault(id(tensor), []).append(name)
        found: list[set[str]] = [set() for _ in range(len(cuts) + 1)]
        seen: set[int] = set()
        for clock, key in self._used:
            seen.add(key)
            stage = bisect_right(clocks, clock)
            for name in self._here(names.get(key, []), stage, homes):
                found[stage].add(name)
        for name, tensor in tensors:
            if id(tensor) not in seen:
                for stage in homes[self._model.get_submodule(name.rpartition(".")[0])]:
                    found[stage].add(name)
        return [[name for name, _ in tensors if name in each] for each in found]

    def _here(self, names: Sequence[str], stage: int, homes: dict[nn.Module, list[int]]) -> Sequence[str]:
        """Of a shared tensor's names those that belong to modules of this stage; all where none does."""
        here = [name for name in names if stage in homes[self._model.get_submodule(name.rpartition(".")[0])]]
        return here or names[:1]

    def segments(self, cuts: Sequence[str]) -> list[Segment]:
        """The stages, each a stretch of one forward."""
        for cut in cuts:
            if self._is_differentiated_through(cut):
                raise CutError(
                    f"cannot cut at {cut!r}: forward itself differentiates through it (torch.autograd.grad, as for "
                    "forces or a gradient penalty), and a stage's graph ends at its cut: "
                    f"{remedy(self._model, self, cut, True)}"
                )
            if not self.closed(cut):
                raise RouteError(f"a value from before {cut!r} is used after it, and it is not given it")
        forward = Forward(self._model, cuts)
        uses = self.uses(cuts)
        owners = self._owners(cuts, uses)
        return [
            Segment(
                name,
                Suspended(
                    forward, stage, self._model, [n for n, m in self._model.named_modules() if owners[m] == stage]
                ),
                route=FORWARD,
                model=self._model,
                tensor_names=used,
            )
            for stage, (name, used) in enumerate(zip([FIRST, *cuts], uses, strict=True))
        ]

    def closed(self, cut: str) -> bool:
        """Whether every gradient that comes back past the named module's call comes through its inputs."""
        call = self.calls[self.position(cut)]
        if self._is_differentiated_through(cut):
            return False
        if any(clock < call.clock and end not in call.inputs for clock, end in self._returned()):
            return False
        return not any(
            node._sequence_nr() >= call.clock
            and not hasattr(following, "variable")
            and following._sequence_nr() < call.clock
            and (following, slot) not in call.inputs
            for node in self._nodes
            for following, slot in node.next_functions
            if following is not None
        )

    def _is_differentiated_through(self, cut: str) -> bool:
        clock = self.calls[self.position(cut)].clock
        return any(since < clock <= until for since, until in self._differentiated)

    def _returned(self) -> Iterator[tuple[int, tuple[Any, int]]]:
        """(clock, (node, number of its output)) of what is returned and read."""
        several = [(at, end) for at, end in enumerate(self._ends) if end is not None]
        left = self._unread() if len(several) > 1 else ()
        return ((node._sequence_nr(), (node, slot)) for at, (node, slot) in several if at not in left)

    def _owners(self, cuts: Sequence[str], uses: Sequence[Sequence[str]]) -> dict[nn.Module, int]:
        """The one stage that trains a module's own tensors: the first that uses any of them."""
        homes = self._homes([self.position(cut) for cut in cuts])
        owners: dict[nn.Module, int] = {}
        for stage, used in enumerate(uses):
            for name in used:
                owners.setdefault(self._model.get_submodule(name.rpartition(".")[0]), stage)
        return {module: owners.get(module, homes[module][0]) for module in self._model.modules()}

    def _homes(self, starts: Sequence[int]) -> dict[nn.Module, list[int]]:
        """The stages in which each module is called; of one that never is, those of the nearest that was.

        That is the module registered before it in the one around it, or that one itself: an expert or a layer that was
        left out of this run stands where its siblings do.
        """
        homes: dict[nn.Module, list[int]] = {}

        def visit(module: nn.Module, near: list[int]) -> None:
            calls = self._by_module.get(module, [])
            stages = sorted({bisect_right(starts, at) for at in calls}) or near
            homes.setdefault(module, stages)
            inside = stages
            for child in module.children():
                if child not in homes:
                    visit(child, inside)
                inside = homes[child] if self._by_module.get(child) or not calls else inside

        visit(self._model, [0])
        return homes

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called with an example that may be without data, and called again with the real one where that fails."""
        self.calls, self._differentiated = [], []

        def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            held = [h for h in floating(given, named) if h.requires_grad]
            inputs = {(h.grad_fn, h.output_nr) for h in held if h.grad_fn is not None}
            graph = torch.is_grad_enabled()
            self.calls.append(Call(module, torch._C._autograd._get_sequence_nr(), graph, graph and bool(held), inputs))

        with ExitStack() as hooks, derivatives_noted(self._differentiated):
            for module in self._outer:
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            output = self._model(*args, **kwargs)
        leaves = pytree.tree_leaves(as_tree(output))
        ends = [leaf.grad_fn if isinstance(leaf, Tensor) else None for leaf in leaves]
        self._ends = [None if end is None else (end, leaf.output_nr) for end, leaf in zip(ends, leaves, strict=True)]
        self._nodes = list(nodes_of(leaves))
        self._used = list(parameters_in(self._nodes))
        return output


@contextmanager
def derivatives_noted(found: list[tuple[int, int]]) -> Iterator[None]:
    """Inside it every derivative that is taken is noted, as (clock of the earliest of its variables, clock now)."""
    engine: Any = vars(torch.autograd)["_engine_run_backward"]

    def noted(outputs: Any, *rest: Any, **options: Any) -> Any:
        variables = [each for each in pytree.tree_leaves(rest[3:4]) if isinstance(each, Tensor)]
        made = [-1 if each.grad_fn is None else each.grad_fn._sequence_nr() for each in variables]
        found.append((min(made, default=-1), int(torch._C._autograd._get_sequence_nr())))
        return engine(outputs, *rest, **options)

    vars(torch.autograd)["_engine_run_backward"] = noted
    try:
        yield
    finally:
        vars(torch.autograd)["_engine_run_backward"] = engine


def parameters_in(nodes: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """(autograd's clock, id) of every use of a leaf tensor by these nodes."""
    for node in nodes:
        for following, _ in node.next_functions:
            variable = getattr(following, "variable", None)
            if variable is not None:
                yield node._sequence_nr(), id(variable)


def nodes_of(roots: Sequence[Any]) -> Iterator[Any]:
    """Every node of the graphs of these tensors, once."""
    stack = [root.grad_fn for root in roots if isinstance(root, Tensor) and root.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
