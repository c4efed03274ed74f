"""From the plans of a graph's modules to modules at work: shapes of messages, estimators, optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.core.interface import Interface, infer_context
from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, TrainingError, first_line, unknown
from syngrad.estimators.base import Binding, Context
from syngrad.optim.updates import Updates
from syngrad.preserve_state import preserve_state
from syngrad.recurrent.graphs.beat import check_given, samples
from syngrad.recurrent.graphs.calls import at, call, check_message, join, pick
from syngrad.recurrent.graphs.mail import Edge, silent
from syngrad.recurrent.graphs.node import Node, Stream
from syngrad.recurrent.graphs.plan import Plan
from syngrad.recurrent.state import layout

if TYPE_CHECKING:
    from syngrad.recurrent.graph import Graph


@dataclass(frozen=True)
class Wired:
    """nodes, by name. edges: in the order of the receivers. contexts: the modules whose estimators look at one."""

    nodes: dict[str, Node]
    edges: list[Edge]
    contexts: frozenset[str]


def wire(graph: Graph, inputs: Mapping[str, Any], contexts: Mapping[str, Any]) -> Wired:
    """All of it, from what is given at step 0, at which every module ticks.

    Raises ConfigError for senders that are not there, modules that nothing would train, shapes that cannot be found,
    and parameters that belong to two modules.
    """
    plans = graph.plans
    check_wiring(plans)
    check_given(plans, 0, (inputs, {}, contexts))
    n = samples(Stream({}, False), (inputs, {}))
    messages = probe(plans, inputs, n, graph.device)
    active = reached(plans, {name for name, plan in plans.items() if any(p.requires_grad for p in parameters(plan))})
    nodes = {}
    for k, (name, plan) in enumerate(plans.items()):
        parts = {"module": plan.module, "readout": plan.readout}
        whole = nn.ModuleDict({key: part for key, part in parts.items() if part is not None})
        stage = Stage(name, whole, None, graph.seed + k, graph.device)
        nodes[name] = Node(plan, messages[name].shape[1:], messages[name].dtype, stage, name in active)
    edges = []
    factors = injected(graph.inject, plans)
    with torch.random.fork_rng(devices=[graph.device] if graph.device.type == "cuda" else []):
        torch.manual_seed(graph.seed)
        for node in nodes.values():
            bind_state(node, inputs, messages, contexts)
            node.inject = factors.get(state_name(node.name), 1.0)
        for node in nodes.values():
            output = asked(node.plan, inputs, messages)
            loss, count = node.plan.loss, node.plan.loss_count
            for sender in node.plan.receives:
                plan = plans[sender]
                interface = Interface(plan.estimator, classes=plan.classes, name=edge_name(sender, node.name))
                message = messages[sender]
                kind = infer_context(contexts.get(sender), plan.classes)
                binding = Binding(message.shape[1:], message.dtype, message.device, kind, output, loss, count)
                interface.bind_leaves([binding], [0])
                edge = Edge(sender, node.name, interface, factors.get(interface.name, 1.0))
                edges.append(edge)
                node.senders[sender] = nodes[sender].listeners[node.name] = edge
                nodes[sender].periods[node.name] = node.plan.every
    for node in nodes.values():
        optimize(graph, node)
    return Wired(nodes, edges, frozenset(name for name, each in contexts.items() if each is not None))


def edge_name(sender: str, receiver: str) -> str:
    """How the place of one module's message to another is called."""
    return f"{sender}→{receiver}"


def state_name(name: str) -> str:
    """How the place of a module's state at the end of its window is called."""
    return f"{name}: state"


def injected(inject: float | Mapping[str, float], plans: Mapping[str, Plan]) -> dict[str, float]:
    """The factor of the estimates at each place."""
    places = [edge_name(sender, name) for name, plan in plans.items() for sender in plan.receives]
    places += [state_name(name) for name, plan in plans.items() if plan.core is not None]
    if not isinstance(inject, Mapping):
        return dict.fromkeys(places, inject)
    for place in inject:
        if place not in places:
            raise unknown("place in inject=:", place, places)
    return dict(inject)


def parameters(plan: Plan) -> list[nn.Parameter]:
    """Of the module and its readout."""
    return [p for part in (plan.module, plan.readout) if part is not None for p in part.parameters()]


def reached(plans: Mapping[str, Plan], start: set[str]) -> set[str]:
    """Those of `start`, and all that hear of them, at any distance: what a gradient has to go through."""
    found = set(start)
    while more := {name for name, plan in plans.items() if name not in found and found & set(plan.receives)}:
        found |= more
    return found


def check_wiring(plans: Mapping[str, Plan]) -> None:
    """Senders that are there, losses that reach every module, parameters that are one module's alone."""
    if not plans:
        raise ConfigError("the graph has no module; give it some with add()")
    owners: dict[int, str] = {}
    for name, plan in plans.items():
        for sender in plan.receives:
            if sender not in plans:
                raise unknown(f"sender in receives= of {name!r}:", sender, plans)
        for p in {id(p) for p in parameters(plan)}:
            if owners.setdefault(p, name) != name:
                raise ConfigError(
                    f"modules {owners[p]!r} and {name!r} share a parameter, and each would update it at its own rate; "
                    "give each its own, or make one module of them"
                )
    taught = {name for name, plan in plans.items() if plan.loss is not None}
    while more := {s for name in taught for s in plans[name].receives} - taught:
        taught |= more
    for name, plan in plans.items():
        if name not in taught and any(p.requires_grad for p in parameters(plan)):
            raise ConfigError(
                f"module {name!r} has no loss, and no module with one hears of it, so it would never be trained; give "
                "it loss=, name it in receives= of another, or freeze it"
            )


def probe(plans: Mapping[str, Plan], inputs: Mapping[str, Any], n: int, device: torch.device) -> dict[str, Tensor]:
    """Zeros like the first message of each module. Where its shape was not told, the module is run for one tick as soon
    as all that it hears is known.
    """
    found = {
        name: torch.zeros(n, *plan.message, dtype=dtype_of(plan), device=device)
        for name, plan in plans.items()
        if plan.message is not None
    }
    while len(found) < len(plans):
        ready = [name for name, plan in plans.items() if name not in found and found.keys() >= set(plan.receives)]
        if not ready:
            names = [name for name in plans if name not in found]
            raise ConfigError(
                f"the message of {' or '.join(map(repr, names))} has to be known before the first is made, because "
                f"they wait for each other; give one its shape, as in add({names[0]!r}, …, message=64)"
            )
        for name in ready:
            plan = plans[name]
            with preserve_state(plan.module), torch.no_grad():
                heard = {sender: found[sender] for sender in plan.receives}
                output = pick(plan, call(plan, [inputs.get(name)], heard, None)[0], 0)
            found[name] = torch.zeros_like(check_message(name, output, None, n))
    return found


def asked(plan: Plan, inputs: Mapping[str, Any], messages: Mapping[str, Tensor]) -> torch.Size | None:
    """The shape of what a module's loss is given of one sample at one tick: what a head that stands on a message to it
    predicts. None where it has no loss, or is heard to give no single tensor.
    """
    if plan.loss is None or not plan.receives:
        return None
    parts = [part for part in (plan.module, plan.readout) if part is not None]
    with preserve_state(*parts), torch.no_grad():
        output = call(plan, [inputs.get(plan.name)], {sender: messages[sender] for sender in plan.receives}, None)[0]
        try:
            scores = pick(plan, output if plan.readout is None else plan.readout(output), 0)
        except Exception as error:
            raise TrainingError(f"readout of {plan.name!r} raised {first_line(error)}") from error
    return scores.shape[1:] if isinstance(scores, Tensor) else None


def dtype_of(plan: Plan) -> torch.dtype:
    """Of a module's parameters."""
    return next((p.dtype for p in parameters(plan) if p.is_floating_point()), torch.get_default_dtype())


def bind_state(
    node: Node, inputs: Mapping[str, Any], messages: Mapping[str, Tensor], contexts: Mapping[str, Any]
) -> None:
    """The layout of a recurrent module's state, and the estimator at the end of its window."""
    plan, core = node.plan, node.core
    if core is None:
        return
    joined = join(plan, [inputs.get(plan.name)], {name: messages[name] for name in plan.receives})
    with at(plan.name):
        node.layout = layout(core, joined)
    with preserve_state(plan.module), torch.no_grad():
        leaf = node.layout.leaves(core.run(joined, None)[1])[0]
    kind: Context = infer_context(contexts.get(plan.name), plan.classes)
    node.boundary = Interface(plan.estimator, classes=plan.classes, name=state_name(plan.name))
    node.boundary.bind_leaves([Binding(torch.Size((node.layout.features,)), leaf.dtype, leaf.device, kind)], [0])
    node.silent = silent(node.boundary)


def optimize(graph: Graph, node: Node) -> None:
    """The module's own optimiser: of its weights, and of the estimators that it updates from."""
    if not node.active:
        return
    parts = [Stage(i.name, nn.Module(), i, graph.seed, graph.device) for i in node.interfaces]
    stages = [node.stage, *parts]
    if not any(p.requires_grad for p in node.stage.parameters):  # one that only hands gradients on still estimates
        held = nn.ModuleList(node.interfaces)
        if not any(True for _ in held.parameters()):
            return
        stages = [Stage(node.name, held, None, graph.seed, graph.device)]
    node.updates = Updates(
        stages,
        node.plan.optimizer,
        "model",
        graph.estimator_lr,
        graph.scheduler,
        guard=graph.guard,
        clipping=graph.clipping,
    )
