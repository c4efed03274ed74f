"""One step of the clock: what is due is delivered, then those whose turn it is tick, then windows that end are learnt.

deliver   the message that a module made at its last tick, where its next begins now
tick      with the messages that were delivered last; nobody sees one of the same step
learn     three rounds over all windows that end: forward, backward, update
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syngrad.errors import ConfigError, MessageError, unknown
from syngrad.recurrent.graphs.learn import Closed, close, learn, update
from syngrad.recurrent.graphs.node import Live, Node, Stream, Turn
from syngrad.recurrent.graphs.plan import Plan
from syngrad.recurrent.graphs.sequences import Tick
from syngrad.tree import tensors


def beat(
    nodes: dict[str, Node],
    stream: Stream,
    given: tuple[Mapping[str, Any], ...],
    *,
    n: int,
    ends: bool,
    sample: int = 0,
) -> list[Closed]:
    """One step. given: inputs, targets and contexts by module, or the ticks of sequences of these. n: samples.
    ends: it is the last of its sequences.

    Returns the windows that ended with it. Where something fails while running forward, all is as it was;
    where it fails later, in an estimator or an optimiser, the stream begins anew.
    """
    before = stream.copy()
    try:
        if ends:
            stream.until = stream.step + 1
        stream.n = n
        deliver(nodes, stream)
        for node in nodes.values():
            if stream.step % node.plan.every == 0:
                heard = {sender: stream.current.get((sender, node.name)) for sender in node.plan.receives}
                inputs, target, context = (each.get(node.name) for each in given)
                stream.lives[node.name].turns.append(Turn(stream.step, inputs, target, context, heard))
        closed = [close(node, stream, nodes) for node in nodes.values() if is_full(node, stream, ends)]
    except BaseException:
        vars(stream).update(vars(before))
        for node in nodes.values():
            node.put_back()
        raise
    if stream.learning:
        try:
            for each in closed:
                learn(each, stream, nodes, sample)
            for each in closed:
                update(each.node)
        except BaseException:
            for node in nodes.values():
                node.forget()
                node.put_back()
            vars(stream).update(vars(Stream({name: Live() for name in nodes}, True)))
            raise
    else:
        for each in closed:
            live = stream.lives[each.node.name]
            stream.lives[each.node.name] = Live(state=live.state, outbox=live.outbox)
    stream.step += 1
    for node in nodes.values():
        node.keep()
    return closed


def is_full(node: Node, stream: Stream, ends: bool) -> bool:
    """Whether the module's window ends with this step: it has all its ticks, or there will be no more."""
    turns = stream.lives[node.name].turns
    if not turns or ends:
        return bool(turns)
    return turns[-1].step == stream.step and (len(turns) == node.plan.window or node.is_last(turns[-1].step, stream))


def deliver(nodes: dict[str, Node], stream: Stream) -> None:
    """Hand over the messages whose makers begin their next tick, where somebody will hear them."""
    for node in nodes.values():
        made = stream.step - node.plan.every
        if made < 0 or stream.step % node.plan.every:
            continue
        receivers = node.hears(made, stream.until)
        if not receivers:
            continue
        node.run(stream, nodes)
        sent = stream.lives[node.name].outbox
        assert sent is not None
        assert sent.step == made
        for receiver in receivers:
            stream.current[node.name, receiver] = sent


def samples(stream: Stream, given: tuple[Mapping[str, Any], ...]) -> int:
    """How many there are; the same at every step of a stream."""
    found = {len(leaf) for part in given[:2] for tree in part.values() for leaf in tensors(tree) if leaf.dim()}
    if stream.n is not None:
        found.add(stream.n)
    if len(found) != 1:
        if not found:
            raise ConfigError("step 0 was given neither inputs nor targets, so how many samples there are is not known")
        sizes = " and ".join(map(str, sorted(found)))
        raise MessageError(
            f"step {stream.step} has {sizes} samples; all modules have the same, at every step until restart()"
        )
    return found.pop()


def check_given(plans: Mapping[str, Plan], step: int, given: tuple[Mapping[str, Any], ...]) -> None:
    """Refuse what is given to nobody, or to one that does not tick now, or has nothing to hold a target against."""
    for what, part in zip(("inputs", "targets", "contexts"), given, strict=True):
        if not isinstance(part, Mapping):
            raise ConfigError(f"{what} are given by module, as in {{'fast': x}}, got {type(part).__name__}")
        for name, value in part.items():
            if name not in plans:
                raise unknown(f"module among the {what}:", name, plans)
            every = plans[name].every
            if value is not None and step % every:
                raise MessageError(
                    f"{what} for {name!r} were given at step {step}, and it ticks at 0, {every}, {2 * every}, …"
                )
            if what == "targets" and value is not None and plans[name].loss is None:
                raise ConfigError(f"targets for {name!r} were given, which has no loss; give add() its loss=")


def due(parts: Mapping[str, Any], plans: Mapping[str, Plan], step: int) -> dict[str, Tick]:
    """Of sequences (n, ticks, …) by module, the ticks that are due at this step."""
    return {
        name: Tick(tree, step // plans[name].every) for name, tree in parts.items() if step % plans[name].every == 0
    }


def at(parts: Mapping[str, Any], plans: Mapping[str, Plan], step: int) -> dict[str, Any]:
    """The same, cut out of the sequences."""
    return {name: tick.value() for name, tick in due(parts, plans, step).items()}


def length(plans: Mapping[str, Plan], parts: tuple[Mapping[str, Any], ...]) -> int:
    """How many steps sequences are of: those of the module that ticks most often among them.

    Raises MessageError where others have more or fewer ticks than that.
    """
    counts: dict[str, int] = {}
    for part in parts:
        if not isinstance(part, Mapping):
            raise ConfigError(f"sequences are given by module, as in {{'fast': xs}}, got {type(part).__name__}")
        for name, tree in part.items():
            if name not in plans:
                raise unknown("module", name, plans)
            for leaf in tensors(tree):
                if leaf.dim() < 2:
                    raise MessageError(f"a sequence for {name!r} must be (n, ticks, …), got {tuple(leaf.shape)}")
                if counts.setdefault(name, leaf.shape[1]) != leaf.shape[1]:
                    raise MessageError(f"{name!r} was given sequences of {counts[name]} and of {leaf.shape[1]} ticks")
    if not counts or not min(counts.values()):
        raise MessageError("there are no steps in what was given: inputs are (n, ticks, …) by module")
    quickest = min(counts, key=lambda name: plans[name].every)
    steps = counts[quickest] * plans[quickest].every
    for name, count in counts.items():
        wanted = -(-steps // plans[name].every)
        if count != wanted:
            raise MessageError(
                f"{name!r} was given {count} ticks, and ticks {wanted} times in {steps} steps, as {quickest!r} has them"
            )
    return steps
