"""What every worker of a pipeline of microbatches does, in order, as PyTorch's schedules do it.

What a worker receives it has asked for before: right before it waits for it, but in `zb1p`, whose receives are posted
as soon as the sender's turn has come (`_add_send_recv` in torch/distributed/pipelining/schedules.py).
"""

from __future__ import annotations

from functools import lru_cache

FORWARD, BACKWARD, WEIGHTS = "forward", "backward", "weights"
#: (ask, receive, run or send; forward, backward or weights; the part)
Action = tuple[str, str, int]
#: a pass through a worker: its way, and the part
Turn = tuple[str, int]


@lru_cache(maxsize=32)
def orders(kind: str, parts: int, workers: int) -> tuple[tuple[Action, ...], ...]:
    """Of every worker, what it does in a minibatch; sends do not wait.

    Args:
        kind: "gpipe", "1f1b" or "zb1p".
        parts: of a minibatch.
        workers: one after the other.
    """
    turns = [_turns(kind, parts, workers, worker) for worker in range(workers)]
    if kind == "zb1p":
        return _asked_ahead(turns)
    made = []
    for worker, each in enumerate(turns):
        order: list[Action] = []
        for way, part in each:
            comes, goes = _neighbours(way, worker, workers)
            order += [("ask", way, part), ("receive", way, part)] if comes is not None else []
            order += [("run", way, part), *([("send", way, part)] if goes is not None else [])]
        made.append(tuple(order))
    return tuple(made)


def _turns(kind: str, parts: int, workers: int, worker: int) -> list[Turn]:
    """The passes of one worker. `zb1p`: gradients of weights come so many parts late as workers stand before it."""
    if kind == "gpipe":
        return [(way, part) for way in (FORWARD, BACKWARD) for part in range(parts)]
    warm = min(parts, workers - worker)
    turns = [(FORWARD, part) for part in range(warm)]
    late = worker if kind == "zb1p" else parts
    for part in range(parts):
        turns.append((BACKWARD, part))
        if part >= late:
            turns.append((WEIGHTS, part - late))
        if warm + part < parts:
            turns.append((FORWARD, warm + part))
    if kind == "zb1p":
        turns += [(WEIGHTS, part) for part in range(max(parts - late, 0), parts)]
    return turns


def _neighbours(way: str, worker: int, workers: int) -> tuple[int | None, int | None]:
    """From whom comes what a pass needs, and to whom goes what it makes."""
    if way == WEIGHTS:
        return None, None
    step = 1 if way == FORWARD else -1
    comes, goes = ((each if 0 <= each < workers else None) for each in (worker - step, worker + step))
    return comes, goes


def _asked_ahead(turns: list[list[Turn]]) -> tuple[tuple[Action, ...], ...]:
    """All workers in turns, a pass each; who sends has the receiver ask at that place of its own order."""
    workers, asked = len(turns), set[tuple[int, str, int]]()
    made: list[list[Action]] = [[] for _ in turns]
    done, moved = [0] * workers, True
    while moved:
        moved = False
        for worker, each in enumerate(turns):
            if done[worker] == len(each):
                continue
            way, part = each[done[worker]]
            comes, goes = _neighbours(way, worker, workers)
            if comes is not None:
                if (worker, way, part) not in asked:
                    continue
                made[worker].append(("receive", way, part))
            made[worker].append(("run", way, part))
            if goes is not None:
                made[worker].append(("send", way, part))
                made[goes].append(("ask", way, part))
                asked.add((goes, way, part))
            done[worker] += 1
            moved = True
    return tuple(tuple(each) for each in made)
