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

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import CheckpointError, ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.estimators.registry import EstimatorSpec
from syngrad.grad_mode import training
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import OptimizerFactory
from syngrad.optim.guard import Guard
from syngrad.recurrent.core import evaluating
from syngrad.recurrent.graph.messages import ModuleState, Stream
from syngrad.recurrent.graph.module import Join, ModuleSpec, concatenated, core_of, message_shape
from syngrad.recurrent.graph.node import ClosedWindow
from syngrad.recurrent.graph.tick import MeanLosses, at, check_given, due, length, samples, tick
from syngrad.recurrent.graph.wiring import Wired, wire
from syngrad.recurrent.options import GraphOptions
from syngrad.tree import to_device

Given = Mapping[str, Any]


class Graph:
    """Modules, who hears whom, and a clock; see the head of this file for what happens when.

    What is not named here (estimator_lr, guard, seed) is as for `syngrad.Trainer`.

    Args:
        estimator: of what comes back for messages and states; a name, a module, a function, or a mapping from the names
            of edges ("fast→slow") and states ("fast: state"), or "default", to these. "zero" foretells nothing: what is
            "zero" everywhere leaves everybody with their own losses. On an edge to a module with a loss it may be a
            head, "default", "local" or "sobolev": it predicts what the receiver will be asked, which is then the
            sender's context.
        optimizer: parameters → optimiser, one a module, of its weights and of its estimators.
        scheduler: optimiser → scheduler; it steps with every update of its module.
        inject: factor of the estimates where they enter a module, for all, or by the names of edges and states (1 for
            those not named). In a stream without end, and in cycles, estimates are made of estimates: where they grow,
            a factor below 1 holds them.
        clip_norm: the largest norm of the gradient of a module's weights.
        device: where to train; the CPU unless given.
        quality_every: messages of an edge from one sample of its estimates' quality to the next; 0 for none.
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
        options = self._options = GraphOptions.of(locals())
        self.guard = None if options.guard is None else Guard(options.guard)
        self.device, self.quality_every = options.device or torch.device("cpu"), options.quality_every
        self.specs: dict[str, ModuleSpec] = {}
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

        Args:
            name: by which inputs, messages and reports name it.
            module: what it is.
            every: steps between two of its ticks.
            window: of a recurrent one, the ticks from one update to the next.
            receives: the names of those it hears; they may be added later, and it may be among them.
            recurrent: whether it is called (inputs, state) → (outputs, state) over time, (n, t, …), as for
                `TruncatedBPTT`; that is known of PyTorch's layers and cells.
            loss: (outputs, targets) → scalar, a mean; over a window's ticks, (n, t, …), where the module is recurrent.
            loss_count: targets → the losses it averages over; all of them, n·t, unless given.
            readout: output → what the loss is given instead.
            join: (inputs, messages by sender) → what the module is called with; inputs are None where it is given none.
                Unless given, all side by side along the last dimension.
            message: the shape of one sample's message, needed of one module in a cycle at least.
            classes: how many there are, where contexts are labels.
            estimator: its own instead of the graph's.
            optimizer: its own instead of the graph's.

        Raises:
            ConfigError: for what cannot be used, a name that is there already among it.
        """
        if self._wired is not None:
            raise ConfigError(f"module {name!r} came after the graph was bound; add all modules before the first step")
        if name in self.specs:
            raise ConfigError(f"there is a module {name!r} already; give each its own name")
        spec = ModuleSpec(
            name,
            module,
            core_of(name, module, recurrent),
            every,
            window,
            receives if isinstance(receives, str) else tuple(receives),  # type: ignore[arg-type]  # checked there
            loss,
            loss_count,
            readout,
            join,
            message_shape(name, message),
            classes,
            self._options.estimator if estimator is None else estimator,
            self._options.optimizer if optimizer is None else optimizer,
        )
        for part in spec.parts.values():
            part.to(self.device)
        self.specs[name] = spec

    @property
    def wired(self) -> Wired:
        """The modules at work, once `bind` or the first step has put them together."""
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

        What is given is as for `tick` at step 0.

        Raises:
            ConfigError: for a graph that cannot be put together.
        """
        if self._wired is None:
            inputs, contexts = to_device(inputs, self.device), to_device(contexts or {}, self.device)
            self._wired = wire(self.specs, self._options, self.guard, self.device, inputs, contexts)
            self.restart()

    def restart(self) -> None:
        """Begin new sequences with the next step, which is step 0: no state is carried on, no message heard, and what
        has not come back never comes. Windows that are open are dropped.
        """
        self.stream = Stream({name: ModuleState() for name in self.wired.nodes}, True)

    def tick(
        self, inputs: Given, targets: Given | None = None, *, contexts: Given | None = None, ends: bool = False
    ) -> dict[str, Tensor]:
        """One step of the clock, going on from the last.

        Where something is wrong with the data, weights and clock stay as they were, and the step may be made again.

        Args:
            inputs: by module, of those that tick now, (n, …).
            targets: by module, of those that tick now and have a loss.
            contexts: by module, what its estimators may look at beside a message made now, or a window's last state.
            ends: whether the sequences end with this step: all windows end, at their last states nothing is injected,
                and the next step begins anew.

        Returns:
            The losses of the modules whose window ended and has targets, detached.
        """
        inputs, targets, contexts = (self._given(each) for each in (inputs, targets, contexts))
        self._check(inputs, targets, contexts)
        n = samples(self.stream, (inputs, targets))
        closed = self._tick((inputs, targets, contexts), n, ends)
        if ends:
            self.restart()
        return {each.node.name: each.loss.detach() for each in closed if each.loss is not None}

    def run(
        self, inputs: Given, targets: Given | None = None, *, contexts: Given | None = None, ends: bool = True
    ) -> dict[str, Tensor]:
        """Many steps: whole sequences from their first step to their last, or with ends=False a piece of a stream that
        goes on from where it stopped. Nothing is foretold for messages that nobody will hear any more.

        Args:
            inputs: by module, (n, ticks, …), over its own ticks.
            targets: by module, with the same ticks.
            contexts: by module, with the same ticks.
            ends: whether they are whole sequences.

        Returns:
            Each module's loss, averaged over its windows, detached.
        """
        parts = tuple(self._given(each) for each in (inputs, targets, contexts))
        steps = length(self.specs, parts)
        if self._wired is None:
            self.bind(*(at(parts[k], self.specs, 0) for k in (0, 2)))
        if ends:
            self.restart()
            self.stream.until = steps
        elif off := [n for n, p in self.specs.items() if self.stream.step % p.every]:
            raise MessageError(
                f"step {self.stream.step} lies between two ticks of {off[0]!r}, so a piece of its ticks cannot begin "
                "here; use pieces of whole periods, or tick()"
            )
        mean = MeanLosses()
        try:
            self._check(*parts)
            n = samples(self.stream, parts)
            for step in range(steps):
                given = tuple(due(part, self.specs, step) for part in parts)
                for each in self._tick(given, n, ends and step == steps - 1):
                    mean.add(each)
        finally:
            if ends:
                self.restart()
        return mean.found()

    @torch.no_grad()
    def evaluate(self, inputs: Given, targets: Given | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the modules say of whole sequences, without learning; the training stream stays where it is.

        Args:
            inputs: by module, (n, ticks, …).
            targets: by module, with the same ticks.

        Returns:
            The losses by module; and by module what its loss is given at all its ticks, (n, ticks, …) if it is
            recurrent in that order itself.
        """
        parts = tuple(self._given(each) for each in (inputs, targets, {}))
        steps = length(self.specs, parts)
        # estimators are bound by what is trained on, contexts among it: until then these nodes are for once
        first, common = at(parts[0], self.specs, 0), (self._options, self.guard, self.device)
        nodes = (self._wired or wire(self.specs, *common, first, {})).nodes
        stream = Stream({name: ModuleState() for name in nodes}, False, until=steps)
        mean = MeanLosses()
        scores: dict[str, list[Any]] = {name: [] for name in nodes}
        check_given(self.specs, 0, parts)
        n = samples(stream, parts)
        with evaluating([node.stage.segment for node in nodes.values()]):
            for step in range(steps):
                given = tuple(due(part, self.specs, step) for part in parts)
                for each in tick(nodes, stream, given, n=n, ends=step == steps - 1):
                    mean.add(each)
                    scores[each.node.name].append(each.scores)
        joined = {
            name: spec.core.joined(scores[name]) if spec.core is not None else torch.stack(scores[name], 1)
            for name, spec in self.specs.items()
        }
        return mean.found(), joined

    def report(self) -> list[dict[str, Any]]:
        """One row an edge, and one a state: the quality of the estimates there, as in the results file. Of edges also
        staleness, the sender's updates between a message and its feedback, mean and most; late_steps, that in steps of
        the clock; and the messages learnt from. What comes back at a state is one update old.
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

        Raises:
            ConfigError: in the middle of a window of which somebody has heard; the error says where one may save.
        """
        wired, stream = self.wired, self.stream
        for name, each in stream.modules.items():
            if each.done:
                period = math.lcm(*(node.spec.every * node.spec.window for node in wired.nodes.values()))
                raise ConfigError(
                    f"at step {stream.step} {name!r} is in the middle of a window that somebody has heard of, whose "
                    f"graph cannot be saved; save at multiples of {period} steps, where no window is open"
                )
        return {
            **stream.state_dict(),
            "nodes": {name: node.state_dict() for name, node in wired.nodes.items()},
            "edges": [edge.state_dict() for edge in wired.edges],
            "guard": self.guard.state_dict() if self.guard is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the graph has to be bound.

        Raises:
            CheckpointError: for a state of another graph.
        """
        wired = self.wired
        try:
            if state["nodes"].keys() != wired.nodes.keys():
                raise ValueError(f"it has modules {', '.join(state['nodes'])}")
            for name, node in wired.nodes.items():
                node.load_state_dict(state["nodes"][name])
            for edge, saved in zip(wired.edges, state["edges"], strict=True):
                edge.load_state_dict(saved)
            if self.guard is not None and state["guard"] is not None:
                self.guard.load_state_dict(state["guard"])
            self.stream = Stream.restored(state, {name: node.layout for name, node in wired.nodes.items()})
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"this state is of another graph ({first_line(error):.160}); give it the same"
            ) from error

    def _given(self, each: Given | None) -> Given:
        made: Given = to_device({} if each is None else each, self.device)
        return made

    def _check(self, inputs: Given, targets: Given, contexts: Given) -> None:
        """Bind, where that has not been, and refuse what cannot be given at this step, or from it on."""
        self.bind(inputs, contexts)
        check_given(self.specs, self.stream.step, (inputs, targets, contexts))
        for name, context in contexts.items():
            if context is not None and name not in self.wired.contexts:
                raise MessageError(
                    f"a context for {name!r} was given at step {self.stream.step}, and none when the graph was bound; "
                    "give it from step 0 on, or to bind()"
                )

    def _tick(self, given: tuple[Given, ...], n: int, ends: bool) -> list[ClosedWindow]:
        step = self.stream.step
        try:
            with training():
                return tick(self.wired.nodes, self.stream, given, n=n, ends=ends, sample=self.quality_every)
        except (SyngradError, Warning):
            raise
        except Exception as error:
            raise TrainingError(f"step {step} failed: {first_line(error)}") from error
