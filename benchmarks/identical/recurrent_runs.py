"""Recurrent scenarios: 50 windows, steps or ticks in float64; midway a new trainer goes on from the state saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import adapter
import masks
import torch
from torch import Tensor, nn

from syngrad import TruncatedBPTT
from syngrad.recurrent import Graph, OnlineBPLambda

N, IN, HIDDEN, CLASSES, COUNT = 3, 4, 5, 6, 50


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 5e-3)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.05)


class Nested(nn.Module):
    """A core of one's own, with a nested state and in it a counter of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.over = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, inputs: Tensor, state: Any) -> Any:
        if state is None:
            zero = inputs.new_zeros(len(inputs), HIDDEN)
            state = {"h": zero, "more": [zero, torch.zeros((), dtype=torch.int64)]}
        h, (slow, count) = state["h"], state["more"]
        outputs = []
        for x in inputs.unbind(1):
            h = torch.tanh(self.into(x) + self.over(h) + 0.5 * slow)
            slow = 0.9 * slow + 0.1 * h
            outputs.append(h)
            count = count + 1
        return torch.stack(outputs, 1), {"h": h, "more": [slow, count]}


CORES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(IN, HIDDEN, batch_first=True),
    "two layers": lambda: nn.LSTM(IN, HIDDEN, 2, batch_first=True, dropout=0.2),
    "gru": lambda: nn.GRU(IN, HIDDEN, batch_first=True),
    "rnn": lambda: nn.RNN(IN, HIDDEN),
    "gru cell": lambda: nn.GRUCell(IN, HIDDEN),
    "own": Nested,
}


def data(steps: int, first: bool, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, steps, IN, generator=g, dtype=torch.float64)
    targets = torch.randint(CLASSES, (N, steps), generator=g)
    return (inputs, targets) if first else (inputs.transpose(0, 1).contiguous(), targets.t().contiguous())


def learner(kind: type, core: str, **options: Any) -> Callable[[], dict[str, Any]]:
    """A run of a trainer of one core. window: steps a call; context: whether the estimator sees the time to go."""
    windowed, context = kind is TruncatedBPTT, options.pop("context", False)
    sequences = options.pop("sequences", False)
    steps = options.get("window", 1) * options.get("horizon", 1) if windowed else 2

    def make() -> tuple[Any, nn.Module, nn.Module]:
        torch.manual_seed(0)
        made, readout = CORES[core]().double(), nn.Linear(HIDDEN, CLASSES).double()
        given = {"readout": readout, "optimizer": adam, "quality_every": 3, **options}
        if given.get("scheduler"):
            given["scheduler"] = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.7)
        return kind(made, **given), made, readout

    def run() -> dict[str, Any]:
        trainer, module, readout = make()
        first = bool(getattr(module, "batch_first", True)) or not isinstance(module, nn.RNNBase)
        inputs, targets = data(steps * COUNT, first)
        losses: list[Any] = []
        for k in range(COUNT):
            cut = slice(k * steps, (k + 1) * steps)
            x, y = (inputs[:, cut], targets[:, cut]) if first else (inputs[cut], targets[cut])
            if k == COUNT // 2:
                state = copy.deepcopy(trainer.state_dict())
                weights = [copy.deepcopy(each.state_dict()) for each in (module, readout)]
                trainer, module, readout = make()
                for each, saved in zip((module, readout), weights, strict=True):
                    each.load_state_dict(saved)
                trainer.bind(x, **contexts(x, first, context, windowed))
                trainer.load_state_dict(state)
            if sequences:
                losses.append(trainer.run(x, y, **({"lengths": [steps, steps - 1, 1]} if first else {})))
                continue
            marks: dict[str, Any] = {}
            if k % 7 == 3:
                marks["ends"] = torch.tensor([True, False, False])
            if k % 7 == 5:
                marks["reset"] = torch.tensor([False, True, False])
            losses.append(trainer.step(x, y, **contexts(x, first, context, windowed), **marks))
        return {
            "losses": losses,
            "core": module.state_dict(),
            "readout": readout.state_dict(),
            "state": masks.masked(trainer.state_dict()),
            "optimizers": [each.state_dict() for each in adapter.optimizers(trainer)],
            "guarded": trainer.guarded,
            "evaluated": trainer.evaluate(inputs, targets),
            "predicted": trainer.predict(inputs),
        }

    return run


def contexts(x: Tensor, first: bool, wanted: bool, windowed: bool) -> dict[str, Any]:
    if not wanted:
        return {}
    steps = x.shape[1 if first else 0]
    togo = torch.arange(steps, 0, -1, dtype=torch.float64).view(1, -1, 1).expand(N, -1, 1) / steps
    return {"context": togo[:, -1] if windowed else togo}


def graph(make: Callable[..., Graph], ticks: int = 48, by_tick: bool = False, **options: Any) -> Callable[[], Any]:
    """A run of a graph over pieces of a stream, saved and loaded midway."""

    def run() -> dict[str, Any]:
        made, modules, every = make(**options)
        inputs, targets = streams(every, ticks)
        period = 12
        losses = []
        for start in range(0, ticks, period):
            if start == ticks // 2:
                state = copy.deepcopy(made.state_dict())
                weights = copy.deepcopy(modules.state_dict())
                made, modules, _ = make(**options)
                modules.load_state_dict(weights)
                made.bind({name: x[:, 0] for name, x in inputs.items()})
                made.load_state_dict(state)
            pieces = [
                {name: x[:, start // every[name] : (start + period) // every[name]] for name, x in each.items()}
                for each in (inputs, targets)
            ]
            if by_tick:
                for t in range(period):
                    given = [{n: x[:, t // every[n]] for n, x in each.items() if t % every[n] == 0} for each in pieces]
                    losses.append(made.tick(*given))
            else:
                losses.append(made.run(*pieces, ends=False))
        evaluated, scores = made.evaluate(inputs, targets)
        return {
            "losses": losses,
            "modules": modules.state_dict(),
            "state": masks.masked(made.state_dict()),
            "optimizers": [each.state_dict() for each in adapter.optimizers(made)],
            "guarded": made.guarded,
            "report": made.report(),
            "evaluated": evaluated,
            "scores": scores,
        }

    return run


def streams(every: dict[str, int], ticks: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs for the first module, targets of two numbers for those that have a loss."""
    g = torch.Generator().manual_seed(2)
    first = next(iter(every))
    inputs = {first: torch.randn(N, ticks, IN, generator=g, dtype=torch.float64)}
    with_loss = [name for name in every if name != "b"]
    return inputs, {n: torch.randn(N, -(-ticks // every[n]), 2, generator=g, dtype=torch.float64) for n in with_loss}


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1).sum() / N


def count(targets: Tensor) -> float:
    return N


def two_clocks(estimator: Any = "linear", **options: Any) -> tuple[Graph, nn.ModuleDict, dict[str, int]]:
    """A fast LSTM that is unrolled between two ticks of a slow cell."""
    torch.manual_seed(0)
    fast, slow = nn.LSTM(IN + 3, 4, batch_first=True).double(), nn.GRUCell(4, 3).double()
    out, slow_out = nn.Linear(4, 2).double(), nn.Linear(3, 2).double()
    made = Graph(estimator, **{"optimizer": sgd, "quality_every": 2, **options})
    priced = {"loss": squares, "loss_count": count}
    made.add("fast", fast, window=4, receives=("slow",), readout=out, **priced)
    made.add("slow", slow, every=4, receives=("fast",), readout=slow_out, message=3, **priced)
    return made, nn.ModuleDict({"fast": fast, "slow": slow, "out": out, "slow_out": slow_out}), {"fast": 1, "slow": 4}


def ring(estimator: Any = "linear", **options: Any) -> tuple[Graph, nn.ModuleDict, dict[str, int]]:
    """Three modules at rates 1, 2 and 3, one of them without state or loss, one heard by two while it is unrolled."""
    torch.manual_seed(0)
    a, c = nn.LSTM(IN + 2, 3).double(), nn.GRU(6, 2).double()
    b = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    a_out, c_out = nn.Linear(3, 2).double(), nn.Linear(2, 2).double()
    made = Graph(estimator, **{"optimizer": adam, "quality_every": 2, **options})
    priced = {"loss": squares, "loss_count": count}
    made.add("a", a, window=2, receives=("c",), readout=a_out, **priced)
    made.add("b", b, every=2, receives=("a",), message=3)
    made.add("c", c, every=3, window=2, receives=("b", "a"), readout=c_out, message=2, **priced)
    return made, nn.ModuleDict({"a": a, "b": b, "c": c, "a_out": a_out, "c_out": c_out}), {"a": 1, "b": 2, "c": 3}


BPTT, ONLINE = TruncatedBPTT, OnlineBPLambda
RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "bptt / lstm": learner(BPTT, "lstm", window=4),
    "bptt / two layers, dropout": learner(BPTT, "two layers", window=3),
    "bptt / rnn, mlp": learner(BPTT, "rnn", window=4, estimator="mlp(hidden=1,width=8)"),
    "bptt / gru cell": learner(BPTT, "gru cell", window=3),
    "bptt / own core": learner(BPTT, "own", window=4),
    "bptt / zero": learner(BPTT, "lstm", window=4, estimator="zero"),
    "bptt / auxiliary": learner(BPTT, "lstm", window=4, auxiliary=0.5),
    "bptt / horizon and λ": learner(BPTT, "lstm", window=3, horizon=3, lam=0.7),
    "bptt / horizon, λ=1": learner(BPTT, "gru", window=2, horizon=2, lam=1.0),
    "bptt / discount, inject": learner(BPTT, "lstm", window=4, discount=0.9, inject=0.5, horizon=2, lam=0.5),
    "bptt / context": learner(BPTT, "lstm", window=4, context=True),
    "bptt / sequences of unequal length": learner(BPTT, "gru", window=2, horizon=2, sequences=True),
    "bptt / clip, guard, scheduler": learner(
        BPTT,
        "lstm",
        window=4,
        clip_norm=0.5,
        guard=1.5,
        scheduler=True,
        estimator_lr=0.5,
        groups={"*bias*": {"lr": 0.01}},
    ),
    "online / λ=0.9": learner(ONLINE, "gru", lam=0.9, gamma=0.9),
    "online / λ=0": learner(ONLINE, "lstm", lam=0.0),
    "online / λ=1, update=call": learner(ONLINE, "lstm", lam=1.0, gamma=0.95, update="call"),
    "online / low rank": learner(ONLINE, "lstm", estimator="low_rank(rank=3, outputs=4)", inject=0.3),
    "online / features": learner(ONLINE, "gru", estimator="features(width=7)", clip_norm=0.5),
    "online / zero": learner(ONLINE, "gru", estimator="zero"),
    "online / own core": learner(ONLINE, "own", lam=0.8, estimator_lr=0.2),
    "online / context": learner(ONLINE, "gru", context=True),
    "online / sequences": learner(ONLINE, "rnn", sequences=True),
    "graph / two clocks": graph(two_clocks),
    "graph / two clocks, zero": graph(two_clocks, estimator="zero"),
    "graph / two clocks, by tick": graph(two_clocks, by_tick=True, inject=0.3, clip_norm=0.5),
    "graph / two clocks, inject by name": graph(two_clocks, inject={"fast: state": 0.3}, guard=None),
    "graph / ring": graph(ring),
    "graph / ring, mlp": graph(ring, estimator="mlp(hidden=1,width=6)", by_tick=True),
}
