"""Any graph of modules that tick at rates of their own and send each other messages, none waiting for another.

    graph = Graph("linear")
    graph.add("fast", fast, every=1, window=4, receives=("slow",), loss=F.cross_entropy)
    graph.add("slow", slow, every=4, receives=("fast",), loss=F.cross_entropy, message=32)
    losses = graph.tick({"fast": x}, {"fast": y})        # one step of the clock
    losses = graph.run({"fast": xs}, {"fast": ys, "slow": zs})     # whole sequences, (n, ticks, …) by module

**Time.** A module that ticks every k steps does so at steps 0, k, 2k, …; a tick takes as long as that, so what it makes
at step t is delivered at t + k, as its next tick begins, and heard by others until it makes way for the one after it.
At its ticks a module takes the messages delivered last, cut from the graphs they were made in (zeros before the first),
runs, and sends its output as its message. All edges lead through the past, so a cycle is a graph like another.

**Learning.** After `window` ticks (its unroll; 1 unless it is recurrent) a module updates at once, from

    ℒ  +  Σ ⟨ĝ(m), m⟩ over its messages in that window that somebody will hear  +  ⟨ĝ(s), s⟩ at its last state,

with ℒ its own loss, where it has one, and ĝ from an estimator of its own for each of its listeners and for its state.
What came back in the same backward pass at a message it has heard, and at the state its window began with, is what
these estimators are fitted to: at the state at once, as in :class:`TruncatedBPTT`; for a message when all ticks at
which it was heard have been learnt from, summed over them, on the message as it was stored. That fit joins the sender's
next update. As everywhere, estimates are of one sample and of the sum of all losses to come, so neither the batch nor a
window's length moves them. With exact estimates a module's gradient is that of the sum of all losses of all modules,
divided by the number of losses that its own loss averages over (the ticks of its window where it has none).

**What waits for what.** No module waits for another's forward of the same step, for another's update, or for a gradient
to come back: forward, backward and update locks are gone between modules. Within a module forward, backward and update
of one window follow each other. Only the clock is common, and it turns when everybody's step is done: this is one
process, in which a run with one seed is the same every time. Who hears whom, and how often, follows from the rates, so
an estimate is made only for messages that will be heard, and a module runs all its ticks at once between which it hears
nothing new and nobody hears it.

**Late feedback.** What comes back for a message is of weights that its sender has changed since. How late it is, in
updates of the sender and in steps, is measured at every edge: see :meth:`Graph.report`.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3, the multi-network system. Deviations: messages take a
sender's period to arrive, where the paper does not say; any graph, any rates; the loss of a state's estimator spans a
window, as in :class:`TruncatedBPTT`. All samples of a batch begin and end together: sequences of unequal length within
one batch, and resets in a stream, are the affair of :class:`TruncatedBPTT` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_callable, check_positive, check_seed
from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.estimators.registry import EstimatorSpec
from syngrad.optim.clipping import Clipping
from syngrad.optim.groups import OptimizerFactory
from syngrad.optim.guard import Guard, check_bound
from syngrad.recurrent.checks import check_factor, check_least
from syngrad.recurrent.evaluating import evaluating
from syngrad.recurrent.graphs.beat import at, beat, check_given, due, length, samples
from syngrad.recurrent.graphs.build import Wired, wire
from syngrad.recurrent.graphs.learn import Closed
from syngrad.recurrent.graphs.node import Live, Stream
from syngrad.recurrent.graphs.plan import Join, Plan, check, concatenated, core_of, sizes
from syngrad.recurrent.graphs.saving import load_state_dict, state_dict
from syngrad.runtime.options import check_device
from syngrad.trainer import default_optimizer
from syngrad.tree import to_device

Given = Mapping[str, Any]


class Graph:
    """Modules, who hears whom, and a clock; see the head of this file for what happens when.

    estimator: of what comes back for messages and states; a name, a module, a function, or a mapping from the names of
    edges ("fast→slow") and states ("fast: state"), or "default", to these. "zero" foretells nothing: what is "zero"
    everywhere leaves everybody with their own losses. On an edge to a module with a loss it may be a head, "default",
    "local" or "sobolev": it predicts what the receiver will be asked, which is then the sender's context.
    inject: factor of the estimates where they enter a module, for all, or by the same names (1 for those not named). In
    a stream without end, and in cycles, estimates are made of estimates: where they grow, a factor below 1 holds them.
    optimizer: parameters → optimiser, one a module, of its weights and of its estimators; estimator_lr, scheduler,
    clip_norm (of each module's weights), guard, seed, device: as for :class:`syngrad.Trainer`; a scheduler steps with
    every update of its module.
    quality_every: so many messages of an edge from one sample of its estimates' quality to the next; 0 for none.
    """

    def __init__(
        self,
        estimator: EstimatorSpec = "linear",
        *,
        optimizer: OptimizerFactory = default_optimizer,
        estimator_lr: float = 1.0,
        scheduler: Callable[[Any], Any] | None = None,
        inject: float | Mapping[str, float] = 1.0,
        clip_norm: float | None = None,
        guard: float | None = 100.0,
        seed: int = 0,
        device: str | torch.device | None = None,
        quality_every: int = 50,
    ) -> None:
        check_spec(estimator)
        check_callable("optimizer", optimizer, "(output, target)")
        self.estimator, self.optimizer, self.scheduler = estimator, optimizer, scheduler
        self.estimator_lr = check_positive("estimator_lr", estimator_lr)
        self.inject: float | dict[str, float] = (
            {name: check_factor(f"inject of {name!r}", factor) for name, factor in inject.items()}
            if isinstance(inject, Mapping)
            else check_factor("inject", inject)
        )
        self.clipping = None if clip_norm is None else Clipping(check_positive("clip_norm", clip_norm))
        bound = check_bound(guard)
        self.guard = None if bound is None else Guard(bound)
        self.seed = check_seed(seed)
        self.device = check_device(device) or torch.device("cpu")
        self.quality_every = check_least("quality_every", quality_every, 0)
        self.plans: dict[str, Plan] = {}
        self.stream = Stream({}, True)
        self._wired: Wired | None = None

    def add(
        self,
        name: str,
        module: nn.Module,
        *,
        every: int = 1,
        window: int = 1,
        receives: Sequence[str] = (),
        recurrent: bool | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        loss_count: Callable[[Any], float] | None = None,
        readout: nn.Module | None = None,
        join: Join = concatenated,
        message: int | tuple[int, ...] | None = None,
        classes: int | None = None,
        estimator: EstimatorSpec | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        """One module more. Its output is its message: one floating tensor, (n, …).

        every: steps between two of its ticks. receives: the names of those it hears; they may be added later, and it
        may be among them. recurrent: whether it is called (inputs, state) → (outputs, state) over time, (n, t, …), as
        for :class:`TruncatedBPTT`; that is known of PyTorch's layers and cells. window: of a recurrent one, the ticks
        from one update to the next.
        join: (inputs, messages by sender) → what the module is called with; inputs are None where it is given none.
        Unless given, all side by side along the last dimension.
        loss: (outputs, targets) → scalar, a mean; over a window's ticks, (n, t, …), where the module is recurrent.
        loss_count: targets → the losses it averages over; all of them, n·t, unless given. readout: output → what the
        loss is given instead. message: the shape of one sample's message, needed of one module in a cycle at least.
        classes: how many there are, where contexts are labels. estimator, optimizer: its own instead of the graph's.

        Raises ConfigError for what cannot be used, a name that is there already among it.
        """
        if self._wired is not None:
            raise ConfigError(f"module {name!r} came after the graph was bound; add all modules before the first step")
        if name in self.plans:
            raise ConfigError(f"there is a module {name!r} already; give each its own name")
        plan = Plan(
            name,
            module,
            core_of(name, module, recurrent),
            every,
            window,
            receives if isinstance(receives, str) else tuple(receives),  # type: ignore[arg-type]  # checked below
            loss,
            loss_count,
            readout,
            join,
            sizes(name, message),
            classes,
            self.estimator if estimator is None else estimator,
            self.optimizer if optimizer is None else optimizer,
        )
        check(plan)
        for part in (module, readout):
            if part is not None:
                part.to(self.device)
        self.plans[name] = plan

    @property
    def wired(self) -> Wired:
        """The modules at work, once :meth:`bind` or the first step has put them together."""
        if self._wired is None:
            raise ConfigError("the graph is not bound yet; call tick(), run() or bind() first")
        return self._wired

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self.stream.step

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimiser of each module that has something to train; none before the graph is bound."""
        nodes = self._wired.nodes if self._wired is not None else {}
        return {name: node.updates.optimizers[0] for name, node in nodes.items() if node.updates is not None}

    @property
    def guarded(self) -> dict[str, int]:
        """How many updates were skipped, by part."""
        return dict(self.guard.counts) if self.guard is not None else {}

    def bind(self, inputs: Given, contexts: Given | None = None) -> None:
        """Find the shapes of messages and states, make estimators and optimisers; the first step does so by itself.

        inputs, contexts: as for :meth:`tick` at step 0. Raises ConfigError for a graph that cannot be put together.
        """
        if self._wired is None:
            self._wired = wire(self, to_device(inputs, self.device), to_device(contexts or {}, self.device))
            self.restart()

    def restart(self) -> None:
        """Begin new sequences with the next step, which is step 0: no state is carried on, no message heard, and what
        has not come back never comes. Windows that are open are dropped.
        """
        self.stream = Stream({name: Live() for name in self.wired.nodes}, True)

    def tick(
        self, inputs: Given, targets: Given | None = None, *, contexts: Given | None = None, ends: bool = False
    ) -> dict[str, Tensor]:
        """One step of the clock, going on from the last.

        inputs, targets, contexts: by module, of those that tick now, (n, …). contexts: what a module's estimators may
        look at beside the message made now, and the state at the end of a window. ends: the sequences end with this
        step: all windows end, at their last states nothing is injected, and the next step begins anew.

        Returns the losses of the modules whose window ended and has targets, detached. Where something is wrong with
        the data, weights and clock stay as they were, and the step may be made again.
        """
        inputs, targets, contexts = (self._given(each) for each in (inputs, targets, contexts))
        self._check(inputs, targets, contexts)
        n = samples(self.stream, (inputs, targets))
        closed = self._beat((inputs, targets, contexts), n, ends)
        if ends:
            self.restart()
        return {each.node.name: each.loss.detach() for each in closed if each.loss is not None}

    def run(
        self, inputs: Given, targets: Given | None = None, *, contexts: Given | None = None, ends: bool = True
    ) -> dict[str, Tensor]:
        """Many steps: whole sequences from their first step to their last, or with ends=False a piece of a stream that
        goes on from where it stopped.

        inputs, targets, contexts: (n, ticks, …) by module, over its own ticks. Since the end is known, nothing is
        foretold for messages that nobody will hear any more.

        Returns each module's loss, averaged over its windows, detached.
        """
        parts = tuple(self._given(each) for each in (inputs, targets, contexts))
        steps = length(self.plans, parts)
        if self._wired is None:
            self.bind(*(at(parts[k], self.plans, 0) for k in (0, 2)))
        if ends:
            self.restart()
            self.stream.until = steps
        elif off := [n for n, p in self.plans.items() if self.stream.step % p.every]:
            raise MessageError(
                f"step {self.stream.step} lies between two ticks of {off[0]!r}, so a piece of its ticks cannot begin "
                "here; use pieces of whole periods, or tick()"
            )
        mean = Mean()
        try:
            self._check(*parts)
            n = samples(self.stream, parts)
            for step in range(steps):
                given = tuple(due(part, self.plans, step) for part in parts)
                for each in self._beat(given, n, ends and step == steps - 1):
                    mean.add(each)
        finally:
            if ends:
                self.restart()
        return mean.found()

    @torch.no_grad()
    def evaluate(self, inputs: Given, targets: Given | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(losses, scores) over whole sequences, (n, ticks, …) by module, without learning; the training stream stays
        where it is. scores: what each module's loss is given at all its ticks, (n, ticks, …) if it is recurrent in that
        order itself.
        """
        parts = tuple(self._given(each) for each in (inputs, targets, {}))
        steps = length(self.plans, parts)
        # estimators are bound by what is trained on, contexts among it: until then these nodes are for once
        nodes = (self._wired or wire(self, at(parts[0], self.plans, 0), {})).nodes
        stream = Stream({name: Live() for name in nodes}, False, until=steps)
        mean = Mean()
        scores: dict[str, list[Any]] = {name: [] for name in nodes}
        check_given(self.plans, 0, parts)
        n = samples(stream, parts)
        with evaluating([node.stage.segment for node in nodes.values()]):
            for step in range(steps):
                given = tuple(due(part, self.plans, step) for part in parts)
                for each in beat(nodes, stream, given, n=n, ends=step == steps - 1):
                    mean.add(each)
                    scores[each.node.name].append(each.scores)
        joined = {
            name: plan.core.joined(scores[name]) if plan.core is not None else torch.stack(scores[name], 1)
            for name, plan in self.plans.items()
        }
        return mean.found(), joined

    def report(self) -> list[dict[str, Any]]:
        """One row an edge, and one a state: the quality of the estimates there against what came back, as in the
        results file. Of edges also staleness, in updates that the sender made between a message and its feedback, mean
        and most; late_steps, the same in steps of the clock; and how many messages have been learnt from. What comes
        back at a state is one update old, that of the window which it ends.
        """
        edges = [
            {
                **edge.quality.summary(edge.staleness.mean or 0.0),
                "most_staleness": edge.staleness.most,
                "late_steps": edge.late.mean,
                "messages": edge.count,
            }
            for edge in self.wired.edges
        ]
        states = [node.quality.summary(1.0) for node in self.wired.nodes.values() if node.boundary is not None]
        return [*edges, *states]

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the next step goes, but for the weights of modules and readouts.

        Raises ConfigError in the middle of a window of which somebody has heard; the error says where one may save.
        """
        return state_dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the graph has to be bound. Raises CheckpointError for a state of another graph."""
        load_state_dict(self, state)

    def _given(self, each: Given | None) -> Given:
        made: Given = to_device({} if each is None else each, self.device)
        return made

    def _check(self, inputs: Given, targets: Given, contexts: Given) -> None:
        """Bind, where that has not been, and refuse what cannot be given at this step, or from it on."""
        self.bind(inputs, contexts)
        check_given(self.plans, self.stream.step, (inputs, targets, contexts))
        for name, context in contexts.items():
            if context is not None and name not in self.wired.contexts:
                raise MessageError(
                    f"a context for {name!r} was given at step {self.stream.step}, and none when the graph was bound; "
                    "give it from step 0 on, or to bind()"
                )

    def _beat(self, given: tuple[Given, ...], n: int, ends: bool) -> list[Closed]:
        step = self.stream.step
        try:
            return beat(self.wired.nodes, self.stream, given, n=n, ends=ends, sample=self.quality_every)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, SyngradError | Warning):
                raise TrainingError(f"step {step} failed: {first_line(error)}") from error
            raise


class Mean:
    """Each module's loss, averaged over its windows by the number of losses that each of them averages over."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.like: dict[str, Tensor] = {}

    def add(self, closed: Closed) -> None:
        """One window more."""
        if closed.loss is not None:
            sums = self.sums.setdefault(closed.node.name, [0.0, 0.0])
            sums[0] += closed.value * closed.count
            sums[1] += closed.count
            self.like[closed.node.name] = closed.loss.detach()

    def found(self) -> dict[str, Tensor]:
        """By module, as its loss is."""
        return {name: self.like[name].new_tensor(a / b) for name, (a, b) in self.sums.items()}
