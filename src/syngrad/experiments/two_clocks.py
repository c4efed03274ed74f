"""Two nets at two rates: a fast one sees a stream of images, a slow one ticks every T of them and sees none.

    fast   at every image; of the last T, how many are of an odd class?           asked as its window of T ends
    slow   every T images; of the last T², how many are of class 3?               asked at each of its ticks

Each hears the last message of the other, and nothing else: what the slow net knows of images, the fast one has to have
learnt to tell it, from the gradient that comes back, or is predicted to, at its message. To be exact, the slow net
would have to be unrolled over T of its ticks, and with it the fast one over T² images; with synthetic gradients the
fast net is unrolled over T images, and updates T times as often, the slow one over two of its ticks, and updates half
as often as it ticks. What is compared:

    bptt(T²)       back-propagation through both nets, over T² images at once
    bptt(T)        windows of T images, and nothing foretold beyond them
    synthetic(T)   windows of T images, with estimates at what crosses between the nets and from window to window

The metric is the share of wrong counts, the mean of both nets'. Trained is on one endless piece after the other.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3, the multi-network system. Deviations: the counts are
classes of a cross-entropy; the nets are small; a message takes its sender's period to arrive (see :class:`Graph`). The
paper's images are MNIST's digits: they are taken where `syngrad data fetch mnist` has brought them, and where not the
bundled part of Fashion-MNIST, whose classes have numbers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_whole
from syngrad.errors import ConfigError, unknown
from syngrad.estimators.losses import count_targets, token_cross_entropy
from syngrad.experiments.experiment import adam
from syngrad.experiments.image_data import digits
from syngrad.optim.groups import OptimizerFactory
from syngrad.recurrent import Curriculum, Graph, RecurrentExperiment, SequenceBatch
from syngrad.recurrent.curriculum import LearnerAdapter
from syngrad.recurrent.recurrent_experiment import RecurrentMethod

HIDDEN, MESSAGE, RATE = 64, 32, 1e-3

#: what may be told of a window
TOLD = ("part", "next")
#: The recipe. A head on the fast net's message foretells what comes back from the slow net; it is bounded, as an error
#: of a softmax is, where a linear estimate can grow until the fast net is lost. Two of the slow net's ticks at a time,
#: and an estimate at its state of which three fifths count, let the slow net update often: it is what learns last. What
#: it says is of no use to the fast net, nor what that remembers from window to window: there the estimate is zero.
ESTIMATOR = {"fast→slow": "sobolev(hidden=1, feedback_every=4)", "slow: state": "linear", "default": "zero"}
INJECT = {"slow: state": 0.6}
UNROLL = 2

PERIOD = 4
#: windows of a piece: a multiple of T, so that exact back-propagation has whole spans
WINDOWS = 4 * PERIOD
#: streams that are examined, and their seed, which no training has
EXAMINED, SEED = 200, 999

PUBLISHED = ()
"""The paper shows curves of its own two nets; no figure of them could be checked."""

#: inputs, targets and contexts, each by module
Parts = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


class Streams:
    """n endless streams of images, drawn from the training or the test set as the seed says.

    :meth:`take` gives the next images with their targets; what is asked reaches back over what was given before, and at
    a stream's beginning over what there has been.

    Args:
        n: streams side by side.
        period: T.
        train: draw from the training set, or from the test set.
        seed: of what is drawn.
        told: what the fast net's estimators are shown with its message of a window: "part", how many of class 3 were in
            that window, the window's part of what the slow net will be asked; or "next", what it will be asked next, of
            which that is a T-th on the average.

    Raises:
        ConfigError: n below 1, a period below 2, or told something else.
    """

    def __init__(self, n: int = 32, period: int = 4, *, train: bool = True, seed: int = 0, told: str = "part") -> None:
        if told not in TOLD:
            raise unknown("told=:", told, TOLD)
        self.told = told
        self.n, self.period = check_whole("n", n, 1), check_whole("period", period, 2)
        self.images, self.labels, self.dataset = digits(train)
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


def nets(period: int = 4, estimator: Any = None, seed: int = 0, *, unroll: int = UNROLL, **options: Any) -> Graph:
    """The two nets, wired.

    Args:
        period: T.
        estimator: the recipe, which looks at contexts, unless given.
        seed: of the weights and of the graph.
        unroll: ticks of the slow net from one of its updates to the next.
        **options: of :class:`Graph`, as optimizer and estimator_lr.

    The stream has no end and the nets are a cycle, so estimates are made of estimates for ever. Linear ones everywhere,
    injected as they are, grow without bound here; at half, the default for what is not the recipe, they do not.
    """
    torch.manual_seed(seed)
    inject = INJECT if estimator is None else 0.5
    chosen = ESTIMATOR if estimator is None else estimator
    graph = Graph(chosen, seed=seed, **{"optimizer": adam(RATE), "inject": inject, **options})
    asked: dict[str, Any] = {"loss": token_cross_entropy, "loss_count": count_targets}
    # fmt: off
    graph.add("fast", Fast(), window=period, receives=("slow",), recurrent=True, join=both,
              readout=nn.Linear(MESSAGE, period + 1), classes=period * period + 1, **asked)
    graph.add("slow", nn.LSTMCell(MESSAGE, MESSAGE), every=period, window=unroll, receives=("fast",), message=MESSAGE,
              readout=nn.Linear(MESSAGE, period * period + 1), classes=period * period + 1, **asked)
    # fmt: on
    return graph


class Whole:
    """The two nets by back-propagation through both, over T² images, that is T ticks of the slow one, at once.

    Args:
        graph: as :func:`nets` makes it; its weights are trained in place, by one optimiser, and it evaluates them.
        optimizer: parameters → optimiser; Adam 1e-3 unless given.
        more: one loss more, of what the fast net has said, (n, T², MESSAGE), and of which of the images given that was.
    """

    def __init__(
        self,
        graph: Graph,
        optimizer: OptimizerFactory | None = None,
        more: Callable[[Tensor, slice], Tensor] | None = None,
    ) -> None:
        self.more = more
        self.fast, self.slow = graph.specs["fast"], graph.specs["slow"]
        self.period = self.slow.every
        modules = [self.fast.module, self.fast.readout, self.slow.module, self.slow.readout]
        parameters = [p for module in modules if module is not None for p in module.parameters()]
        self.optimizer = (optimizer or adam(RATE))(parameters)
        self.state: tuple[Any, ...] | None = None

    def run(self, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Train on the next of a stream, T² images an update, as :meth:`Graph.run` does with ends=False.

        Returns:
            The mean losses, detached.

        Raises:
            ConfigError: the windows do not make whole spans of T.
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


class Counting(Curriculum):
    """n streams without end."""

    def __init__(self, n: int, seed: int) -> None:
        self.streams = Streams(n, PERIOD, seed=seed)

    def take(self) -> SequenceBatch:
        """The next windows."""
        inputs, targets, contexts = self.streams.take(WINDOWS)
        return SequenceBatch(inputs, targets, contexts, stream=True)

    def examine(self, student: LearnerAdapter) -> float:
        """The mean share of wrong counts, on test images."""
        assert isinstance(student, GraphAdapter)
        found = errors(student.graph, Streams(EXAMINED, PERIOD, train=False, seed=SEED))
        return (found["fast"] + found["slow"]) / 2


class GraphAdapter:
    """Two nets that tick at two rates; whole: what trains them exactly, where that is asked for."""

    def __init__(self, graph: Graph, whole: Whole | None) -> None:
        self.graph, self.whole = graph, whole

    def learn(self, piece: SequenceBatch) -> float:
        """The piece, going on from the last; the sum of both losses."""
        if self.whole is not None:
            losses = self.whole.run(piece.inputs, piece.targets)
        else:
            losses = self.graph.run(piece.inputs, piece.targets, contexts=piece.context, ends=False)
        return float(sum(losses.values(), torch.zeros(())))

    def steps(self, piece: SequenceBatch) -> int:
        """Images of a stream."""
        return int(piece.inputs["fast"].shape[1])

    def probe(self, piece: SequenceBatch) -> None:
        """In a cycle without end there is no gradient of all that is to come: none is held against it."""

    def predict(self, inputs: Any) -> Any:
        """Both nets' scores."""
        return self.graph.evaluate(inputs)[1]

    def evaluate(self, inputs: Any, targets: Any) -> Any:
        """Both nets' losses."""
        return self.graph.evaluate(inputs, targets)[0]

    def modules(self) -> list[nn.Module]:
        """Both nets with their readouts."""
        return [part for spec in self.graph.specs.values() for part in spec.parts.values()]

    def estimators(self) -> list[nn.Module]:
        """Those at edges and states."""
        if self.whole is not None:
            return []
        wired = self.graph.wired
        states = [node.boundary for node in wired.nodes.values() if node.boundary is not None]
        return [*(edge.interface for edge in wired.edges), *states]

    def held_bytes(self) -> int:
        """All that is kept is autograd's."""
        return 0

    def interfaces(self) -> list[dict[str, Any]]:
        """Of each edge and state at which something is foretold, against what came back."""
        if self.whole is not None:
            return []
        return [row for row in self.graph.report() if row["cosine"] is not None]

    @property
    def guarded(self) -> dict[str, int]:
        """Updates that were skipped."""
        return self.graph.guarded

    @property
    def optimizer(self) -> str | None:
        """Its name."""
        made = [self.whole.optimizer] if self.whole is not None else list(self.graph.optimizers.values())
        return type(made[0]).__name__ if made else None


class TwoClocks(RecurrentExperiment):
    """Of the recurrent experiment's ways those that two nets have, and of its options the optimiser alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {"scheduler": self.scheduler, "options": self.options or None, "loss": self.loss}
        if ignored := next((name for name, value in given.items() if value is not None), None):
            raise ConfigError(f"experiment {self.name!r} takes no {ignored}=: exact back-propagation would not heed it")

    def ways(self, rows: Sequence[str], estimator: Any = None) -> list[RecurrentMethod]:
        """Rows as they are asked for; those that these nets cannot be trained in are refused."""
        made = super().ways(rows, estimator)
        for text, method in zip(rows, made, strict=True):
            if method.window not in {"bptt": (PERIOD, PERIOD**2), "synthetic": (PERIOD,)}.get(method.kind, ()):
                raise ConfigError(
                    f"row {text!r}: two clocks of period {PERIOD} are trained by bptt({PERIOD**2}), bptt({PERIOD}) or "
                    f"synthetic({PERIOD})"
                )
        return made

    def student(self, method: RecurrentMethod, seed: int, **more: Any) -> LearnerAdapter:
        """Fresh nets."""
        exact = method.window == PERIOD**2
        recipe = None if method.estimator is ESTIMATOR else method.estimator
        options = {"optimizer": self.optimizer, **more}
        graph = nets(PERIOD, recipe if method.estimates else "zero", seed, **options)
        return GraphAdapter(graph, Whole(graph, self.optimizer) if exact else None)


def two_clocks() -> RecurrentExperiment:
    """The whole recipe: 1.2 million images."""
    return TwoClocks(
        name="two-clocks",
        dataset=f"{digits(True)[2]}, in streams",
        model=lambda: nn.Identity(),  # the nets are made with their wiring
        course=Counting,
        metric="wrong counts",
        higher_is_better=False,
        window=PERIOD,
        estimator=ESTIMATOR,
        rows=(f"bptt({PERIOD**2})", f"bptt({PERIOD})", f"synthetic({PERIOD})"),
        optimizer=adam(RATE),
        batch_size=64,
        steps=PERIOD * WINDOWS * 29,
        epochs=10,
    )
