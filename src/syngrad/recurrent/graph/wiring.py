"""From what a graph was told of its modules to modules at work: shapes of messages, estimators, optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.interface import Interface, infer_context
from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, TrainingError, first_line, unknown
from syngrad.estimators.base import Binding, Context
from syngrad.optim.clipping import Clipping
from syngrad.optim.guard import Guard
from syngrad.optim.updates import Updates
from syngrad.preserve_state import preserve_state
from syngrad.recurrent.graph.messages import Stream
from syngrad.recurrent.graph.module import ModuleSpec, naming
from syngrad.recurrent.graph.node import Edge, Node
from syngrad.recurrent.graph.tick import check_given, samples
from syngrad.recurrent.layout import find_layout
from syngrad.recurrent.options import GraphOptions


@dataclass(frozen=True)
class Wired:
    """The modules at work, by name, and those whose estimators look at a context."""

    nodes: dict[str, Node]
    contexts: frozenset[str]

    @property
    def edges(self) -> list[Edge]:
        """In the order of the receivers."""
        return [edge for node in self.nodes.values() for edge in node.senders.values()]


def wire(
    specs: Mapping[str, ModuleSpec],
    options: GraphOptions,
    guard: Guard | None,
    device: torch.device,
    inputs: Mapping[str, Any],
    contexts: Mapping[str, Any],
) -> Wired:
    """All of it, from what is given at step 0, at which every module ticks.

    Raises:
        ConfigError: for senders that are not there, modules that nothing would train, shapes that cannot be found, and
            parameters that belong to two modules.
    """
    check_wiring(specs)
    check_given(specs, 0, (inputs, {}, contexts))
    n = samples(Stream({}, False), (inputs, {}))
    messages = probe(specs, inputs, n, device)
    active = reached(specs, {name for name, spec in specs.items() if any(p.requires_grad for p in spec.parameters)})
    nodes = {}
    for k, (name, spec) in enumerate(specs.items()):
        stage = Stage(name, nn.ModuleDict(spec.parts), None, options.seed + k, device)
        nodes[name] = Node(spec, messages[name].shape[1:], messages[name].dtype, stage, name in active)
    factors = injected(options.inject, specs)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        for node in nodes.values():
            bind_state(node, inputs, messages, contexts)
            node.inject = factors.get(state_name(node.name), 1.0)
        for node in nodes.values():
            output = asked(node.spec, inputs, messages)
            loss, count = node.spec.loss, node.spec.loss_count
            for name in node.spec.receives:
                sender, message = nodes[name], messages[name]
                classes = sender.spec.classes
                interface = Interface(sender.spec.estimator, classes=classes, name=edge_name(name, node.name))
                kind = infer_context(contexts.get(name), classes)
                binding = Binding(message.shape[1:], message.dtype, message.device, kind, output, loss, count)
                interface.bind_leaves([binding], [0])
                edge = Edge(sender, node, interface, factors.get(interface.name, 1.0))
                node.senders[name] = sender.listeners[node.name] = edge
    for node in nodes.values():
        optimize(node, options, guard, device)
    return Wired(nodes, frozenset(name for name, each in contexts.items() if each is not None))


def edge_name(sender: str, receiver: str) -> str:
    """How the place of one module's message to another is called."""
    return f"{sender}→{receiver}"


def state_name(name: str) -> str:
    """How the place of a module's state at the end of its window is called."""
    return f"{name}: state"


def injected(inject: float | Mapping[str, float], specs: Mapping[str, ModuleSpec]) -> dict[str, float]:
    """The factor of the estimates at each place."""
    places = [edge_name(sender, name) for name, spec in specs.items() for sender in spec.receives]
    places += [state_name(name) for name, spec in specs.items() if spec.core is not None]
    if not isinstance(inject, Mapping):
        return dict.fromkeys(places, inject)
    for place in inject:
        if place not in places:
            raise unknown("place in inject=:", place, places)
    return dict(inject)


def reached(specs: Mapping[str, ModuleSpec], start: set[str]) -> set[str]:
    """Those of `start`, and all that hear of them, at any distance: what a gradient has to go through."""
    found = set(start)
    while more := {name for name, spec in specs.items() if name not in found and found & set(spec.receives)}:
        found |= more
    return found


def check_wiring(specs: Mapping[str, ModuleSpec]) -> None:
    """Senders that are there, losses that reach every module, parameters that are one module's alone."""
    if not specs:
        raise ConfigError("the graph has no module; give it some with add()")
    owners: dict[int, str] = {}
    for name, spec in specs.items():
        for sender in spec.receives:
            if sender not in specs:
                raise unknown(f"sender in receives= of {name!r}:", sender, specs)
        for p in {id(p) for p in spec.parameters}:
            if owners.setdefault(p, name) != name:
                raise ConfigError(
                    f"modules {owners[p]!r} and {name!r} share a parameter, and each would update it at its own rate; "
                    "give each its own, or make one module of them"
                )
    taught = {name for name, spec in specs.items() if spec.loss is not None}
    while more := {s for name in taught for s in specs[name].receives} - taught:
        taught |= more
    for name, spec in specs.items():
        if name not in taught and any(p.requires_grad for p in spec.parameters):
            raise ConfigError(
                f"module {name!r} has no loss, and no module with one hears of it, so it would never be trained; give "
                "it loss=, name it in receives= of another, or freeze it"
            )


def probe(
    specs: Mapping[str, ModuleSpec], inputs: Mapping[str, Any], n: int, device: torch.device
) -> dict[str, Tensor]:
    """Zeros like the first message of each module. Where its shape was not told, the module is run for one tick as soon
    as all that it hears is known.
    """
    found = {
        name: torch.zeros(n, *spec.message, dtype=_dtype(spec), device=device)
        for name, spec in specs.items()
        if spec.message is not None
    }
    while len(found) < len(specs):
        ready = [name for name, spec in specs.items() if name not in found and found.keys() >= set(spec.receives)]
        if not ready:
            names = [name for name in specs if name not in found]
            raise ConfigError(
                f"the message of {' or '.join(map(repr, names))} has to be known before the first is made, because "
                f"they wait for each other; give one its shape, as in add({names[0]!r}, …, message=64)"
            )
        for name in ready:
            spec = specs[name]
            with preserve_state(spec.module), torch.no_grad():
                heard = {sender: found[sender] for sender in spec.receives}
                output = spec.pick(spec.call([inputs.get(name)], heard, None)[0], 0)
            found[name] = torch.zeros_like(spec.check_message(output, None, n))
    return found


def asked(spec: ModuleSpec, inputs: Mapping[str, Any], messages: Mapping[str, Tensor]) -> torch.Size | None:
    """The shape of what a module's loss is given of one sample at one tick: what a head that stands on a message to it
    predicts. None where it has no loss, or is heard to give no single tensor.
    """
    if spec.loss is None or not spec.receives:
        return None
    with preserve_state(*spec.parts.values()), torch.no_grad():
        output = spec.call([inputs.get(spec.name)], {sender: messages[sender] for sender in spec.receives}, None)[0]
        try:
            scores = spec.pick(output if spec.readout is None else spec.readout(output), 0)
        except Exception as error:
            raise TrainingError(f"readout of {spec.name!r} raised {first_line(error)}") from error
    return scores.shape[1:] if isinstance(scores, Tensor) else None


def bind_state(
    node: Node, inputs: Mapping[str, Any], messages: Mapping[str, Tensor], contexts: Mapping[str, Any]
) -> None:
    """The layout of a recurrent module's state, and the estimator at the end of its window."""
    spec, core = node.spec, node.core
    if core is None:
        return
    joined = spec.joined([inputs.get(spec.name)], {name: messages[name] for name in spec.receives})
    with naming(spec.name):
        node.layout = find_layout(core, joined)
    with preserve_state(spec.module), torch.no_grad():
        leaf = node.layout.leaves(core.run(joined, None)[1])[0]
    kind: Context = infer_context(contexts.get(spec.name), spec.classes)
    node.boundary = Interface(spec.estimator, classes=spec.classes, name=state_name(spec.name))
    node.boundary.bind_leaves([Binding(torch.Size((node.layout.features,)), leaf.dtype, leaf.device, kind)], [0])


def _dtype(spec: ModuleSpec) -> torch.dtype:
    """Of a module's parameters."""
    return next((p.dtype for p in spec.parameters if p.is_floating_point()), torch.get_default_dtype())


def optimize(node: Node, options: GraphOptions, guard: Guard | None, device: torch.device) -> None:
    """The module's own optimiser: of its weights, and of the estimators that it updates from."""
    if not node.active:
        return
    stages = [node.stage, *(Stage(i.name, nn.Module(), i, options.seed, device) for i in node.interfaces)]
    if not any(p.requires_grad for p in node.stage.parameters):  # one that only hands gradients on still estimates
        held = nn.ModuleList(node.interfaces)
        if not any(True for _ in held.parameters()):
            return
        stages = [Stage(node.name, held, None, options.seed, device)]
    node.updates = Updates(
        stages,
        node.spec.optimizer,
        "model",
        options.estimator_lr,
        options.scheduler,
        guard=guard,
        clipping=None if options.clip_norm is None else Clipping(options.clip_norm),
    )
