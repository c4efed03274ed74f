"""Small cores, and what online BP(λ) ought to do written out plainly: states, Jacobians and targets kept in lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N, STEPS, IN, HIDDEN, CLASSES = 2, 5, 3, 3, 4
RATE = 0.1


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, RATE)


class Own(nn.Module):
    """A nested state, a counter of the whole batch, and an output that does not lie in the state."""

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
            outputs.append(torch.sin(h + slow + self.into(x)))
            h = torch.tanh(self.into(x) + self.over(h) + 0.5 * slow)
            slow = 0.9 * slow + 0.3 * h
            count = count + 1
        return torch.stack(outputs, 1), {"h": h, "more": [slow, count]}


CORES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(IN, HIDDEN),
    "two layers": lambda: nn.LSTM(IN, HIDDEN, 2, batch_first=True),
    "projected": lambda: nn.LSTM(IN, HIDDEN + 1, proj_size=HIDDEN),
    "gru": lambda: nn.GRU(IN, HIDDEN, batch_first=True),
    "rnn": lambda: nn.RNN(IN, HIDDEN),
    "lstm cell": lambda: nn.LSTMCell(IN, HIDDEN),
    "gru cell": lambda: nn.GRUCell(IN, HIDDEN),
    "own": Own,
}


def made(name: str) -> tuple[nn.Module, nn.Module, bool]:
    """(core, readout, whether inputs are (n, t, …)), always with the same weights, large enough to matter."""
    torch.manual_seed(0)
    core, readout = CORES[name]().double(), nn.Linear(HIDDEN, CLASSES).double()
    with torch.no_grad():
        for p in core.parameters():
            p.mul_(1.5)
    return core, readout, bool(getattr(core, "batch_first", True))


def data(first: bool, n: int = N, steps: int = STEPS, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, steps, IN, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (n, steps), generator=generator)
    return (inputs, targets) if first else (inputs.transpose(0, 1).contiguous(), targets.t().contiguous())


def leaves(state: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if leaf.is_floating_point()]


class Sample:
    """One sample of a batch, run step by step with its state as a plain vector."""

    def __init__(self, core: nn.Module, readout: nn.Module, first: bool, inputs: Tensor, targets: Tensor) -> None:
        self.core, self.readout = core, readout
        self.inputs, self.targets, self.time = inputs, targets, int(first)
        x = inputs.narrow(self.time, 0, 1)
        _, self.like = self.call(x, None)

    def call(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if isinstance(self.core, nn.RNNCellBase):
            state = self.core(x.squeeze(self.time), state)
            return (state[0] if isinstance(state, tuple) else state).unsqueeze(self.time), state
        if state is None and isinstance(self.core, nn.RNNBase):
            return self.core(x)
        return self.core(x, state)

    def step(self, t: int, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """(L_t, s_t) from s_{t−1}, t counted from 0."""
        state = None
        if vector is not None:
            flat, spec = torch.utils._pytree.tree_flatten(self.like)
            parts = iter(vector.split([leaf.numel() for leaf in leaves(self.like)]))
            state = torch.utils._pytree.tree_unflatten(
                [next(parts).view(leaf.shape) if leaf.is_floating_point() else leaf for leaf in flat], spec
            )
        output, state = self.call(self.inputs.narrow(self.time, t, 1), state)
        scores = self.readout(output).reshape(-1, CLASSES)
        loss = F.cross_entropy(scores, self.targets.narrow(self.time, t, 1).reshape(-1))
        return loss, torch.cat([leaf.reshape(-1) for leaf in leaves(state)])


def samples(core: nn.Module, readout: nn.Module, first: bool, inputs: Tensor, targets: Tensor) -> list[Sample]:
    batch = 1 - int(first)
    return [
        Sample(core, readout, first, inputs.narrow(batch, i, 1), targets.narrow(batch, i, 1))
        for i in range(inputs.shape[batch])
    ]


Estimate = Callable[[Tensor], Tensor]


def offline(
    sample: Sample, steps: int, estimate: Estimate, lam: float, gamma: float
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(s_t, G^λ_t, ĝ(s_t)) for every state behind which there is a step, by the definition, from the end backwards."""
    states, gradients, jacobians = [], [], []
    vector: Tensor | None = None
    for t in range(steps):
        if vector is not None:
            loss_of, state_of = (lambda v, t=t: sample.step(t, v)[0]), (lambda v, t=t: sample.step(t, v)[1])
            gradients.append(torch.autograd.functional.jacobian(loss_of, vector))
            jacobians.append(torch.autograd.functional.jacobian(state_of, vector))
        with torch.no_grad():
            vector = sample.step(t, vector)[1]
        states.append(vector)
    found = []
    target = bootstrap = torch.zeros_like(states[-1])
    for t in reversed(range(steps - 1)):
        target = gradients[t] + gamma * ((1 - lam) * bootstrap + lam * target) @ jacobians[t]
        bootstrap = estimate(states[t])
        found.append((states[t], target, bootstrap))
    return found[::-1]
