"""Two nets at two rates: a fast one sees a stream of images, a slow one ticks every T of them and sees none.

    fast   at every image; of the last T, how many are of an odd class?           asked as its window of T ends
    slow   every T images; of the last T², how many are of class 3?               asked at each of its ticks

Each hears the last message of the other, and nothing else: what the slow net knows of images, the fast one has to have
learnt to tell it, from the gradient that comes back, or is predicted to, at its message. To be exact, the slow net
would have to be unrolled over T of its ticks, and with it the fast one over T² images; with synthetic gradients the
fast net is unrolled over T images, and updates T times as often, the slow one over two of its ticks, and updates half
as often as it ticks.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3, the multi-network system. Deviations: the counts are
classes of a cross-entropy; the nets are small; a message takes its sender's period to arrive (see :class:`Graph`). The
paper's images are MNIST's digits: they are taken where `syngrad data fetch mnist` has brought them, and where not the
bundled part of Fashion-MNIST, whose classes have numbers too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, unknown
from syngrad.estimators.losses import count_targets, token_cross_entropy
from syngrad.experiments.digits import images
from syngrad.experiments.experiment import check_count
from syngrad.recurrent import Graph

HIDDEN, MESSAGE = 64, 32

#: what may be told of a window
TOLD = ("part", "next")
#: The recipe. A head on the fast net's message foretells what comes back from the slow net; it is bounded, as an error
#: of a softmax is, where a linear estimate can grow until the fast net is lost. Two of the slow net's ticks at a time,
#: and an estimate at its state of which three fifths count, let the slow net update often: it is what learns last. What
#: it says is of no use to the fast net, nor what that remembers from window to window: there the estimate is zero.
ESTIMATOR = {
    "fast→slow": "sobolev(hidden=1, feedback_every=4)",
    "slow: state": "linear",
    "default": "zero",
}
INJECT = {"slow: state": 0.6}
UNROLL = 2

#: inputs, targets and contexts, each by module
Parts = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


class Streams:
    """n endless streams of images, drawn from the training or the test set as the seed says.

    period: T. :meth:`take` gives the next images with their targets; what is asked reaches back over what was given
    before, and at a stream's beginning over what there has been. told: what the fast net's estimators are shown with
    its message of a window: "part", how many of class 3 were in that window, the window's part of what the slow net
    will be asked; or "next", what it will be asked next, of which that is a T-th on the average.
    """

    def __init__(self, n: int = 32, period: int = 4, *, train: bool = True, seed: int = 0, told: str = "part") -> None:
        if told not in TOLD:
            raise unknown("told=:", told, TOLD)
        self.told = told
        self.n, self.period = check_count("n", n, 1), check_count("period", period, 2)
        self.images, self.labels, self.dataset = images(train)
        self.generator = torch.Generator().manual_seed(seed)
        #: how many of class 3 there were in each of the last T windows, (n, T), the latest last
        self.threes = torch.zeros(self.n, self.period, dtype=torch.int64)

    def take(self, windows: int) -> Parts:
        """The next `windows`·T images: inputs {"fast": (n, windows·T, 1, 28, 28)}; targets {"fast": (n, windows·T),
        −100 but at the end of each window; "slow": (n, windows), of the T windows before each of its ticks}; contexts
        for estimators that see labels, of what is known by then: {"fast": (n, windows·T), at the end of each window
        what `told` says, "slow": its targets}.
        """
        steps = windows * self.period
        drawn = torch.randint(len(self.labels), (self.n, steps), generator=self.generator)
        labels = self.labels[drawn].view(self.n, windows, self.period)
        fast = torch.full_like(labels, -100)
        fast[:, :, -1] = (labels % 2).sum(2)
        part = (labels == 3).sum(2)
        threes = torch.cat([self.threes, part], 1)
        slow = threes.unfold(1, self.period, 1).sum(2)
        self.threes = threes[:, windows:]
        context = torch.full_like(fast, -100)
        context[:, :, -1] = part if self.told == "part" else slow[:, 1:]
        targets = {"fast": fast.view(self.n, steps), "slow": slow[:, :windows]}
        return {"fast": self.images[drawn]}, targets, {"fast": context.view(self.n, steps), "slow": slow[:, :windows]}

    def state_dict(self) -> dict[str, Tensor]:
        """Where the streams stand."""
        return {"generator": self.generator.get_state(), "threes": self.threes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.generator.set_state(state["generator"])
        self.threes = state["threes"]


class Fast(nn.Module):
    """Images (n, t, 1, 28, 28) and what the slow net said (n, t, MESSAGE) → (n, t, MESSAGE), by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Linear(28 * 28, 2 * HIDDEN), nn.ReLU(), nn.Linear(2 * HIDDEN, HIDDEN), nn.ReLU())
        self.remember = nn.LSTM(HIDDEN + MESSAGE, HIDDEN, batch_first=True)
        self.say = nn.Linear(HIDDEN, MESSAGE)

    def forward(self, inputs: tuple[Tensor, Tensor], state: Any = None) -> tuple[Tensor, Any]:
        """(outputs, state)."""
        seen, heard = inputs
        outputs, state = self.remember(torch.cat([self.look(seen.flatten(2)), heard], 2), state)
        return self.say(outputs), state


def both(inputs: Tensor, messages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the fast net is called with."""
    return inputs, messages["slow"]


def adam(groups: Any) -> torch.optim.Optimizer:
    """Adam 1e-3."""
    return torch.optim.Adam(groups, 1e-3, fused=True)


def nets(period: int = 4, estimator: Any = None, seed: int = 0, *, unroll: int = UNROLL, **options: Any) -> Graph:
    """The two nets, wired. estimator: the recipe unless given, which looks at contexts. unroll: ticks of the slow net
    from one of its updates to the next. options: of :class:`Graph`, as optimizer and estimator_lr.

    The stream has no end and the nets are a cycle, so estimates are made of estimates for ever. Linear ones everywhere,
    injected as they are, grow without bound here; at half, the default for what is not the recipe, they do not.
    """
    torch.manual_seed(seed)
    inject = INJECT if estimator is None else 0.5
    chosen = ESTIMATOR if estimator is None else estimator
    graph = Graph(chosen, seed=seed, **{"optimizer": adam, "inject": inject, **options})
    asked: dict[str, Any] = {"loss": token_cross_entropy, "loss_count": count_targets}
    graph.add(
        "fast",
        Fast(),
        window=period,
        receives=("slow",),
        recurrent=True,
        join=both,
        readout=nn.Linear(MESSAGE, period + 1),
        classes=period * period + 1,
        **asked,
    )
    graph.add(
        "slow",
        nn.LSTMCell(MESSAGE, MESSAGE),
        every=period,
        window=unroll,
        receives=("fast",),
        readout=nn.Linear(MESSAGE, period * period + 1),
        message=MESSAGE,
        classes=period * period + 1,
        **asked,
    )
    return graph


class Whole:
    """The same two nets by back-propagation through both, over T² images, that is T ticks of the slow one, at once.

    graph: as :func:`nets` makes it; its weights are trained in place, by one optimiser, and it evaluates them.
    more: one loss more, of what the fast net has said, (n, T², MESSAGE), and of which of the images given that was.
    """

    def __init__(
        self,
        graph: Graph,
        optimizer: Callable[[Any], torch.optim.Optimizer] = adam,
        more: Callable[[Tensor, slice], Tensor] | None = None,
    ) -> None:
        self.more = more
        self.fast, self.slow = graph.specs["fast"], graph.specs["slow"]
        self.period = self.slow.every
        modules = [self.fast.module, self.fast.readout, self.slow.module, self.slow.readout]
        self.optimizer = optimizer([p for module in modules if module is not None for p in module.parameters()])
        self.state: tuple[Any, ...] | None = None

    def run(self, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Train on the next of a stream, T² images an update, as :meth:`Graph.run` does with ends=False.

        Returns the mean losses, detached.
        """
        span, windows = self.period * self.period, targets["slow"].shape[1]
        if windows % self.period:
            raise ConfigError(f"{windows} windows do not make whole spans of {self.period}; take a multiple of that")
        total = [torch.zeros(()), torch.zeros(())]
        for k in range(windows // self.period):
            part = slice(k * span, k * span + span)
            ticks = slice(k * self.period, k * self.period + self.period)
            fast, slow, said = self.span(inputs["fast"][:, part])
            losses = [
                token_cross_entropy(fast, targets["fast"][:, part]),
                token_cross_entropy(slow, targets["slow"][:, ticks]),
            ]
            whole = losses[0] + losses[1]
            (whole if self.more is None else whole + self.more(said, part)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total = [a + b.detach() for a, b in zip(total, losses, strict=True)]
        count = windows // self.period
        return {"fast": total[0] / count, "slow": total[1] / count}

    def span(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the fast net (n, T², T + 1) and of the slow one (n, T, T² + 1), and what the fast one said, (n, T²,
        MESSAGE), in one graph.
        """
        n, fast, slow = len(seen), self.fast, self.slow
        assert fast.readout is not None
        assert slow.readout is not None
        if self.state is None:
            zero = seen.new_zeros(n, MESSAGE)
            self.state = (None, (zero, zero), zero, zero)
        of_fast, of_slow, from_fast, from_slow = self.state
        said, states = [], []
        for window in seen.split(self.period, 1):
            of_slow = slow.module(from_fast, of_slow)
            heard = from_slow.unsqueeze(1).expand(-1, window.shape[1], -1)
            outputs, of_fast = fast.module((window, heard), of_fast)
            from_fast, from_slow = outputs[:, -1], of_slow[0]
            said.append(outputs)
            states.append(of_slow[0])
        made = (*(each.detach() for each in of_fast), *(each.detach() for each in of_slow))
        self.state = (made[:2], made[2:], from_fast.detach(), from_slow.detach())
        whole = torch.cat(said, 1)
        return fast.readout(whole), slow.readout(torch.stack(states, 1)), whole


def errors(graph: Graph, streams: Streams, windows: int = 24) -> dict[str, float]:
    """The share of wrong counts of each net, over streams from their beginning; of the slow one, where it has T windows
    to look back on.
    """
    inputs, targets, _ = streams.take(windows)
    _, scores = graph.evaluate(inputs, targets)
    asked = {"fast": targets["fast"], "slow": targets["slow"].clone()}
    asked["slow"][:, : streams.period] = -100
    found = {}
    for name, target in asked.items():
        counts = target != -100
        found[name] = (scores[name].argmax(-1) != target)[counts].double().mean().item()
    return found
