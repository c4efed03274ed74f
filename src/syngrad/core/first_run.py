"""A stage's first run, in which it is found how the stage treats the message that it is given.

Two things cannot be read off a module. It may *write* into its input (`h += p`), which would overwrite what the sender
still needs, and which autograd forbids on the leaf that an interface makes of a message: from then on it gets copies.
And it may *hide parameters* behind its input: a block under reentrant checkpointing is one node of the graph, which is
not there at all unless its input requires a gradient, whatever parameters it holds. From then on its input always
requires one, also where nobody has asked for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from syngrad.partition.suspended import Carry, Stand
from syngrad.tree import tensors

#: of the model's own forward: what stands in the place of a message holds no parameters
STANDS = (Stand._backward_cls, Carry._backward_cls)


@dataclass(frozen=True)
class FirstRun:
    """What a stage made of its message, and how.

    Args:
        output: what it returned.
        writes: whether it wrote into the message.
        hides_parameters: whether some of its parameters may get a gradient only where the message requires one.
    """

    output: Any
    writes: bool
    hides_parameters: bool


def first_run(run: Callable[[Any], Any], message: Any, where: list[int]) -> FirstRun:
    """Run a stage on copies of its message's tensors, those at `where` requiring a gradient, and look at the graph.

    What is copied keeps its graph: a gradient comes to the message as it would have without the copy.
    """
    flat, spec = pytree.tree_flatten(message)
    inputs: list[Tensor] = []
    for i, value in enumerate(flat):
        if not isinstance(value, Tensor):
            continue
        if i in where and torch.is_grad_enabled() and not value.requires_grad:
            value = value.detach().requires_grad_()
        if value.requires_grad:
            inputs.append(value)
        flat[i] = value.clone()
    copies = tensors(flat)
    versions = [copy._version for copy in copies]
    output = run(pytree.tree_unflatten(flat, spec))
    writes = any(copy._version != version for copy, version in zip(copies, versions, strict=True))
    return FirstRun(output, writes, hides_parameters(tensors(output), inputs))


def hides_parameters(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> bool:
    """Whether a node written in Python stands in the graph only because one of `inputs` requires a gradient.

    Such a node may hold parameters of its own. One that a parameter leads to is there anyway.
    """
    ours = {id(leaf) for leaf in inputs}
    roots = [leaf.grad_fn for leaf in outputs if leaf.grad_fn is not None]
    before: dict[Any, list[Any]] = {root: [] for root in roots}
    led: list[Any] = []  # nodes that a parameter leads to
    open_nodes = list(before)
    while open_nodes:
        node = open_nodes.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and id(variable) not in ours:
            led.append(node)
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following not in before:
                before[following] = []
                open_nodes.append(following)
            before[following].append(node)
    hiding = {node for node in before if isinstance(node, BackwardCFunction) and not isinstance(node, STANDS)}
    seen = set(led)
    while led and hiding:
        node = led.pop()
        hiding.discard(node)
        fresh = [each for each in before[node] if each not in seen]
        seen.update(fresh)
        led.extend(fresh)
    return bool(hiding)
