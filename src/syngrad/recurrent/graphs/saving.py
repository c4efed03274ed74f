"""Where a graph stands as plain data and tensors, and back: clock, messages, windows that are open, and what learns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from syngrad.core.staleness import Staleness
from syngrad.errors import CheckpointError, ConfigError, first_line
from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.graphs.mail import Sent
from syngrad.recurrent.graphs.node import Live, Node, Stream, Turn
from syngrad.recurrent.graphs.sequences import value

if TYPE_CHECKING:
    from syngrad.recurrent.graph import Graph


def state_dict(graph: Graph) -> dict[str, Any]:
    """All that decides how the next step goes, but for the weights of modules and readouts.

    Raises ConfigError in the middle of a window of which ticks have run already: their graph cannot be saved.
    """
    wired, stream = graph.wired, graph.stream
    for name, live in stream.lives.items():
        if live.done:
            period = math.lcm(*(node.plan.every * node.plan.window for node in wired.nodes.values()))
            raise ConfigError(
                f"at step {stream.step} {name!r} is in the middle of a window that somebody has heard of, whose graph "
                f"cannot be saved; save at multiples of {period} steps, where no window is open"
            )
    book: list[Sent] = []
    lives = {name: _live(live, book) for name, live in stream.lives.items()}
    current = [[sender, receiver, _page(sent, book)] for (sender, receiver), sent in stream.current.items()]
    return {
        "step": stream.step,
        "n": stream.n,
        "lives": lives,
        "current": current,
        "messages": [_copied(sent) for sent in book],
        "nodes": {name: _node(node) for name, node in wired.nodes.items()},
        "edges": [
            {
                "name": edge.name,
                "count": edge.count,
                "quality": edge.quality.state_dict(),
                "staleness": dict(vars(edge.staleness)),
                "late": dict(vars(edge.late)),
            }
            for edge in wired.edges
        ],
        "guard": graph.guard.state_dict() if graph.guard is not None else None,
    }


def _copied(sent: Sent) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(sent).items()}


def _page(sent: Sent | None, book: list[Sent]) -> int | None:
    if sent is None:
        return None
    found = next((k for k, each in enumerate(book) if each is sent), None)
    if found is None:
        book.append(sent)
        return len(book) - 1
    return found


def _live(live: Live, book: list[Sent]) -> dict[str, Any]:
    return {
        "state": pytree.tree_leaves(live.state) if live.state is not None else None,
        "pending": live.pending.state_dict() if live.pending is not None else None,
        "outbox": _page(live.outbox, book),
        "turns": [
            {
                "step": turn.step,
                **{name: value(getattr(turn, name)) for name in ("inputs", "target", "context")},
                "heard": {sender: _page(sent, book) for sender, sent in turn.heard.items()},
            }
            for turn in live.turns
        ],
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "count": node.count,
        "quality": node.quality.state_dict(),
        "randomness": node.stage.randomness.save(),
        "interfaces": [dict(interface.state_dict()) for interface in node.interfaces],
        # what has come back since its last update, and waits for the next
        "gathered": [p.grad for interface in node.interfaces for p in interface.parameters()],
        "optimizers": [each.state_dict() for each in node.updates.optimizers] if node.updates is not None else [],
        "schedulers": [each.state_dict() for each in node.updates.schedulers] if node.updates is not None else [],
    }


def load_state_dict(graph: Graph, state: dict[str, Any]) -> None:
    """Go on from there. Raises CheckpointError for a state of another graph."""
    wired = graph.wired
    try:
        if state["nodes"].keys() != wired.nodes.keys():
            raise ValueError(f"it has modules {', '.join(state['nodes'])}")
        for name, node in wired.nodes.items():
            _load_node(node, state["nodes"][name])
        for edge, saved in zip(wired.edges, state["edges"], strict=True):
            if saved["name"] != edge.name:
                raise ValueError(f"it has a message {saved['name']}")
            edge.count = int(saved["count"])
            edge.quality.load_state_dict(saved["quality"])
            edge.staleness, edge.late = Staleness(**saved["staleness"]), Staleness(**saved["late"])
        if graph.guard is not None and state["guard"] is not None:
            graph.guard.load_state_dict(state["guard"])
        book = [Sent(**_copied(Sent(**each))) for each in state["messages"]]
        lives = {name: _load_live(wired.nodes[name], saved, book) for name, saved in state["lives"].items()}
        current = {(sender, receiver): book[page] for sender, receiver, page in state["current"]}
        graph.stream = Stream(lives, True, int(state["step"]), state["n"], None, current)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"this state is of another graph ({first_line(error):.160}); give it the same") from error


def _load_node(node: Node, saved: dict[str, Any]) -> None:
    node.count = int(saved["count"])
    node.quality.load_state_dict(saved["quality"])
    node.stage.randomness.load(saved["randomness"])
    for interface, each in zip(node.interfaces, saved["interfaces"], strict=True):
        interface.load_state_dict(each)
    parameters = [p for interface in node.interfaces for p in interface.parameters()]
    for parameter, gradient in zip(parameters, saved["gathered"], strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    if node.updates is not None:
        for optimizer, each in zip(node.updates.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(each)
        for scheduler, each in zip(node.updates.schedulers, saved["schedulers"], strict=True):
            scheduler.load_state_dict(each)


def _load_live(node: Node, saved: dict[str, Any], book: list[Sent]) -> Live:
    def page(number: int | None) -> Sent | None:
        return None if number is None else book[number]

    state = saved["state"]
    if state is not None and node.layout is not None:
        state = pytree.tree_unflatten(state, node.layout.spec)
    turns = [
        Turn(**{**turn, "heard": {sender: page(number) for sender, number in turn["heard"].items()}})
        for turn in saved["turns"]
    ]
    pending = None if saved["pending"] is None else Pending(**saved["pending"])
    return Live(state=state, pending=pending, outbox=page(saved["outbox"]), turns=turns)
