"""Small graphs for the tests, and a naive clock that runs one in a single autograd graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.recurrent import Graph
from syngrad.tree import map_tensors, tensors

N, WIDE, T = 3, 4, 4


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


class Gather(torch.optim.Optimizer):
    """Sums what it is given and leaves the weights where they are."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["sum"] = self.state[p].get("sum", 0.0) + p.grad


class Plain(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(wide, 5), nn.Tanh(), nn.Linear(5, out))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)
        return made


def two_clocks(estimator: Any = "linear", optimizer: Any = sgd, **options: Any) -> Graph:
    """A fast LSTM that is unrolled between two ticks of a slow one; both have losses."""
    torch.manual_seed(0)
    graph = Graph(estimator, optimizer=optimizer, **{"guard": None, "quality_every": 1, **options})
    graph.add(
        "fast",
        nn.LSTM(WIDE + 3, 4, batch_first=True).double(),
        window=T,
        receives=("slow",),
        readout=nn.Linear(4, 2).double(),
        loss=mean_of_samples,
        loss_count=count_samples,
    )
    graph.add(
        "slow",
        nn.GRUCell(4, 3).double(),
        every=T,
        receives=("fast",),
        readout=nn.Linear(3, 2).double(),
        loss=mean_of_samples,
        loss_count=count_samples,
        message=3,
    )
    return graph


def loop(estimator: Any = "linear", optimizer: Any = sgd, **options: Any) -> Graph:
    """Three modules in a ring at rates 1, 2 and 3, one of them without a state or a loss, one of them heard by two and
    unrolled while it is heard.
    """
    torch.manual_seed(0)
    graph = Graph(estimator, optimizer=optimizer, **{"guard": None, "quality_every": 1, **options})
    graph.add(
        "a",
        nn.LSTM(WIDE + 2, 3).double(),
        window=2,
        receives=("c",),
        loss=mean_of_samples,
        loss_count=count_samples,
        readout=nn.Linear(3, 2).double(),
    )
    graph.add("b", Plain(3, 3).double(), every=2, receives=("a",), message=3)
    graph.add(
        "c",
        nn.GRU(6, 2).double(),
        every=3,
        window=3,
        receives=("b", "a"),
        loss=mean_of_samples,
        loss_count=count_samples,
        readout=nn.Linear(2, 2).double(),
        message=2,
    )
    return graph


def sequences(graph: Graph, steps: int, seed: int = 1, inputs: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs for one module, the first unless named, and targets for all that have a loss."""
    generator = torch.Generator().manual_seed(seed)

    def some(ticks: int, wide: int) -> Tensor:
        return torch.randn(N, ticks, wide, generator=generator, dtype=torch.float64)

    ticks = {name: -(-steps // spec.every) for name, spec in graph.specs.items()}
    name = inputs or next(iter(graph.specs))
    targets = {key: some(ticks[key], 2) for key, spec in graph.specs.items() if spec.loss is not None}
    return {name: some(ticks[name], WIDE)}, targets


def weights(graph: Graph) -> list[Tensor]:
    return [p for spec in graph.specs.values() for p in parameters(spec)]


def parameters(spec: Any) -> Iterable[Tensor]:
    return [p for part in (spec.module, spec.readout) if part is not None for p in part.parameters()]


class Whole:
    """A graph unrolled over all steps at once, tick by tick, with nothing cut.

    Attributes:
        heard: Each message as one of its listeners has it, by (sender, listener, step).
        states: As the next tick has them.
        loss: The sum over all samples.
    """

    def __init__(self, graph: Graph, inputs: dict[str, Tensor], targets: dict[str, Tensor], steps: int) -> None:
        self.heard: dict[tuple[str, str, int], Tensor] = {}
        self.states: dict[tuple[str, int], list[Tensor]] = {}
        self.loss = torch.zeros((), dtype=torch.float64)
        made: dict[tuple[str, int], Tensor] = {}
        shown: dict[tuple[str, str], Tensor] = {}
        state: dict[str, Any] = dict.fromkeys(graph.specs)
        wide = {"fast": 4, "slow": 3, "a": 3, "b": 3, "c": 2}
        for t in range(steps):
            for name, spec in graph.specs.items():
                for sender in spec.receives:
                    sent = t - graph.specs[sender].every
                    if t % graph.specs[sender].every == 0 and t:
                        shown[sender, name] = self.heard[sender, name, sent] = seen(made[sender, sent])
            for name, spec in graph.specs.items():
                if t % spec.every:
                    continue
                k = t // spec.every
                parts = [inputs[name][:, k]] if name in inputs else []
                for sender in spec.receives:
                    zero = torch.zeros(N, wide[sender], dtype=torch.float64)
                    parts.append(shown.get((sender, name), zero))
                x = torch.cat(parts, -1)
                if spec.core is None:
                    out = spec.module(x)
                else:
                    out, after = spec.core.run(x.unsqueeze(spec.core.time), state[name])
                    out, state[name] = out.select(spec.core.time, 0), map_tensors(seen, after)
                    self.states[name, t] = tensors(state[name])
                made[name, t] = out
                if spec.loss is not None and name in targets:
                    scores = spec.readout(out) if spec.readout is not None else out
                    self.loss = self.loss + N * spec.loss(scores, targets[name][:, k])


def seen(tensor: Tensor) -> Tensor:
    """A tensor as another sees it, with a gradient of its own."""
    view = tensor.view_as(tensor)
    view.retain_grad()
    return view


def grad(leaf: Tensor) -> Tensor:
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def mean_of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
    """Summed over the ticks of a window, so that every window weighs the same."""
    return (outputs - targets).square().mean(-1).sum() / N


def count_samples(targets: Tensor) -> float:
    return N
