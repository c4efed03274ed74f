"""One step of the clock: what is due is delivered, then those whose turn it is tick, then windows that end are learnt.

deliver   the message that a module made at its last tick, where its next begins now
tick      with the messages that were delivered last; nobody sees one of the same step
learn     three rounds over all windows that end, so that nothing depends on the order in which modules were added: all
          run forward, then all go backward and hand back what came, then all update
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from syngrad.errors import ConfigError, MessageError, unknown
from syngrad.recurrent.graph.messages import ModuleState, Stream, Tick
from syngrad.recurrent.graph.module import ModuleSpec, TickView
from syngrad.recurrent.graph.node import ClosedWindow, Node
from syngrad.tree import tensors


def tick(
    nodes: dict[str, Node],
    stream: Stream,
    given: tuple[Mapping[str, Any], ...],
    *,
    n: int,
    ends: bool,
    sample: int = 0,
) -> list[ClosedWindow]:
    """One step of a stream. Where it fails while running forward, all is as it was; where it fails later, in an
    estimator or an optimiser, the stream begins anew.

    Args:
        nodes: the modules, by name.
        stream: where they stand.
        given: inputs, targets and contexts by module, or the ticks of sequences of these.
        n: samples.
        ends: whether it is the last step of its sequences.
        sample: every so many messages the quality of their estimates is measured; 0 for never.

    Returns:
        The windows that ended with it.
    """
    before = stream.copy()
    try:
        if ends:
            stream.until = stream.step + 1
        stream.n = n
        # before anybody ticks: nobody sees a message of the same step, so cycles are graphs like others
        _deliver(nodes, stream)
        for node in nodes.values():
            if stream.step % node.spec.every == 0:
                heard = {sender: stream.current.get((sender, node.name)) for sender in node.spec.receives}
                inputs, target, context = (each.get(node.name) for each in given)
                stream.modules[node.name].ticks.append(Tick(stream.step, inputs, target, context, heard))
        closed = [node.close(stream) for node in nodes.values() if _is_full(node, stream, ends)]
    except BaseException:
        vars(stream).update(vars(before))
        for node in nodes.values():
            node.put_back()
        raise
    if stream.learning:
        try:
            for each in closed:
                each.node.learn(each, stream, sample)
            for each in closed:
                each.node.update()
        except BaseException:
            for node in nodes.values():
                if node.updates is not None:
                    node.updates.clear_all()
                node.put_back()
            vars(stream).update(vars(Stream({name: ModuleState() for name in nodes}, True)))
            raise
    else:
        for each in closed:
            own = stream.modules[each.node.name]
            stream.modules[each.node.name] = ModuleState(state=own.state, latest=own.latest)
    stream.step += 1
    for node in nodes.values():
        node.keep()
    return closed


def _is_full(node: Node, stream: Stream, ends: bool) -> bool:
    """Whether the module's window ends with this step: it has all its ticks, or there will be no more."""
    ticks = stream.modules[node.name].ticks
    if not ticks or ends:
        return bool(ticks)
    return ticks[-1].step == stream.step and (len(ticks) == node.spec.window or node.is_last(ticks[-1].step, stream))


def _deliver(nodes: dict[str, Node], stream: Stream) -> None:
    """Hand over the messages whose makers begin their next tick, where somebody will hear them."""
    for node in nodes.values():
        made = stream.step - node.spec.every
        if made < 0 or stream.step % node.spec.every:
            continue
        receivers = node.hears(made, stream.until)
        if not receivers:
            continue
        node.run(stream)
        sent = stream.modules[node.name].latest
        assert sent is not None
        assert sent.step == made
        for receiver in receivers:
            stream.current[node.name, receiver] = sent


def samples(stream: Stream, given: tuple[Mapping[str, Any], ...]) -> int:
    """How many samples there are: as many as at every other step of the stream."""
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


def check_given(specs: Mapping[str, ModuleSpec], step: int, given: tuple[Mapping[str, Any], ...]) -> None:
    """Refuse what is given to nobody, or to one that does not tick now, or has nothing to hold a target against."""
    for what, part in zip(("inputs", "targets", "contexts"), given, strict=True):
        if not isinstance(part, Mapping):
            raise ConfigError(f"{what} are given by module, as in {{'fast': x}}, got {type(part).__name__}")
        for name, value in part.items():
            if name not in specs:
                raise unknown(f"module among the {what}:", name, specs)
            every = specs[name].every
            if value is not None and step % every:
                raise MessageError(
                    f"{what} for {name!r} were given at step {step}, and it ticks at 0, {every}, {2 * every}, …"
                )
            if what == "targets" and value is not None and specs[name].loss is None:
                raise ConfigError(f"targets for {name!r} were given, which has no loss; give add() its loss=")


def due(parts: Mapping[str, Any], specs: Mapping[str, ModuleSpec], step: int) -> dict[str, TickView]:
    """Of sequences (n, ticks, …) by module, the ticks that are due at this step."""
    return {
        name: TickView(tree, step // specs[name].every) for name, tree in parts.items() if step % specs[name].every == 0
    }


def at(parts: Mapping[str, Any], specs: Mapping[str, ModuleSpec], step: int) -> dict[str, Any]:
    """What of sequences is given at this step, cut out of them."""
    return {name: view.value() for name, view in due(parts, specs, step).items()}


def length(specs: Mapping[str, ModuleSpec], parts: tuple[Mapping[str, Any], ...]) -> int:
    """How many steps sequences are of: those of the module that ticks most often among them.

    Raises:
        MessageError: where others have more or fewer ticks than that.
    """
    counts: dict[str, int] = {}
    for part in parts:
        if not isinstance(part, Mapping):
            raise ConfigError(f"sequences are given by module, as in {{'fast': xs}}, got {type(part).__name__}")
        for name, tree in part.items():
            if name not in specs:
                raise unknown("module", name, specs)
            for leaf in tensors(tree):
                if leaf.dim() < 2:
                    raise MessageError(f"a sequence for {name!r} must be (n, ticks, …), got {tuple(leaf.shape)}")
                if counts.setdefault(name, leaf.shape[1]) != leaf.shape[1]:
                    raise MessageError(f"{name!r} was given sequences of {counts[name]} and of {leaf.shape[1]} ticks")
    if not counts or not min(counts.values()):
        raise MessageError("there are no steps in what was given: inputs are (n, ticks, …) by module")
    quickest = min(counts, key=lambda name: specs[name].every)
    steps = counts[quickest] * specs[quickest].every
    for name, count in counts.items():
        wanted = -(-steps // specs[name].every)
        if count != wanted:
            raise MessageError(
                f"{name!r} was given {count} ticks, and ticks {wanted} times in {steps} steps, as {quickest!r} has them"
            )
    return steps


class MeanLosses:
    """Each module's loss, averaged over its windows by the number of losses that each of them averages over."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, Tensor]] = {}

    def add(self, closed: ClosedWindow) -> None:
        """One window more."""
        if closed.loss is not None:
            total, count, _ = self._sums.get(closed.node.name, (0.0, 0.0, closed.loss))
            total, count = total + closed.value * closed.count, count + closed.count
            self._sums[closed.node.name] = (total, count, closed.loss.detach())

    def found(self) -> dict[str, Tensor]:
        """By module, as its loss is."""
        return {name: like.new_tensor(total / count) for name, (total, count, like) in self._sums.items()}
