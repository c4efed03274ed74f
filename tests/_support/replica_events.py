"""Replicas of a chain event by event, by simpy: what the recursion over rounds is held against. Slow, and plain."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from syngrad.planner.recursion import Variation
from syngrad.planner.replica_rounds import SILENT_S, Lifetimes
from syngrad.planner.timing import Chain
from syngrad.planner.worker_failures import Failures

Events = Generator[Any, Any, None]


class Replicas:
    """All of them in one environment; a coordinator ends each round once every live worker has done its minibatches."""

    def __init__(self, chain: Chain, count: int, every: int, average_s: float, variation: Variation) -> None:
        self.chain, self.count, self.every, self.average_s = chain, count, every, average_s
        self.environment = simpy.Environment()
        self.generator, self.variation = np.random.default_rng(variation.seed), variation
        self.drawn: list[Any] = []
        #: replica → its workers' and links' processes, and what each worker waits for at the end of a round
        self.processes: dict[int, list[simpy.Process]] = {}
        self.gates: dict[tuple[int, int, int], simpy.Event] = {}
        self.arrived: dict[tuple[int, int, int], float] = {}

    def factor(self, minibatch: int, replica: int, worker: int) -> float:
        shape = (self.count, self.chain.workers)
        while len(self.drawn) <= minibatch:
            drawn = self.variation.factors(self.generator, shape)
            self.drawn.append(np.broadcast_to(drawn, shape) * self.variation.devices(shape))
        return float(self.drawn[minibatch][replica, worker])

    def start(self, replica: int, turn: int) -> None:
        """A replica from empty queues on, beginning with a round."""
        env, links = self.environment, range(self.chain.workers - 1)
        stores = {name: [simpy.Store(env) for _ in links] for name in ("out", "in", "answers", "answered")}
        room = [simpy.Container(env, init=self.chain.depth) for _ in links]
        processes = [
            env.process(self.work(replica, worker, turn, stores, room)) for worker in range(self.chain.workers)
        ]
        for k in links:
            there = lambda what, k=k: stores["in"][k].put(what)  # noqa: E731
            back = lambda what, k=k: self.returned(what, k, stores, room)  # noqa: E731
            processes.append(env.process(self.carry(stores["out"][k], self.chain.forward_s[k], k, there)))
            processes.append(env.process(self.carry(stores["answers"][k], self.chain.backward_s[k], k, back)))
        self.processes[replica] = processes

    def stop(self, replica: int) -> None:
        for process in self.processes.pop(replica, []):
            if process.is_alive:
                process.defused = True
                process.interrupt()

    def work(self, replica: int, worker: int, turn: int, stores: Any, room: Any) -> Events:
        chain, env = self.chain, self.environment
        while True:
            for minibatch in range(turn * self.every, (turn + 1) * self.every):
                if worker:
                    yield stores["in"][worker - 1].get()
                if worker < chain.workers - 1:
                    yield room[worker].get(1)
                factor = self.factor(minibatch, replica, worker)
                if worker < chain.workers - 1:
                    env.process(self.later(factor * chain.send_s[worker], stores["out"][worker]))
                if worker:
                    env.process(self.answer(worker, factor * chain.answer_s[worker], stores))
                yield env.timeout(factor * chain.work_s[worker])
            self.arrived[replica, worker, turn] = env.now
            yield self.gates.setdefault((replica, worker, turn), env.event())
            turn += 1

    def later(self, seconds: float, store: simpy.Store) -> Events:
        yield self.environment.timeout(seconds)
        yield store.put(None)

    def answer(self, worker: int, seconds: float, stores: Any) -> Events:
        if self.chain.waits and worker < self.chain.workers - 1:
            yield stores["answered"][worker].get()
        yield self.environment.timeout(seconds)
        yield stores["answers"][worker - 1].put(None)

    def carry(self, store: simpy.Store, seconds: float, link: int, arrived: Any) -> Events:
        while True:
            what = yield store.get()
            yield self.environment.timeout(seconds)
            self.environment.process(self.after_delay(link, what, arrived))

    def after_delay(self, link: int, what: Any, arrived: Any) -> Events:
        yield self.environment.timeout(self.chain.delay_s[link])
        yield arrived(what)

    def returned(self, what: Any, link: int, stores: Any, room: Any) -> Any:
        if self.chain.waits and link > 0:
            stores["answered"][link].put(what)
        return room[link].put(1)


def events(
    chain: Chain,
    count: int,
    rounds: int,
    every: int,
    average_s: float,
    variation: Variation,
    failures: Failures | None = None,
) -> tuple[list[float], list[int], int]:
    """When each averaging was over, the minibatches that went into it, and the failures.

    Queues are to be shorter than a round, so that no worker is at the end of one before all have ended the one before.
    """
    run = Replicas(chain, count, every, average_s, variation)
    env, lives = run.environment, Lifetimes(failures, chain.workers, count, variation.seed)
    fails = {replica: lives.next(replica) for replica in range(count)}
    back: dict[int, float] = {}
    for replica in range(count):
        run.start(replica, 0)
    alive, late = set(range(count)), dict[int, float]()
    ends, trained, failed_in_all = [], [], 0
    for turn in range(rounds):
        # one that has failed with its part of the last round done fails in this one
        taking_part, died, over, late = set(alive), late, dict[int, float](), dict[int, float]()
        alive -= died.keys()
        while len(over) < chain.workers:
            for k in set(range(chain.workers)) - over.keys():
                arrived = {r: run.arrived[r, k, turn] for r in taking_part if (r, k, turn) in run.arrived}
                if arrived.keys() | died.keys() >= taking_part:  # all have come, or will not
                    silent = [when + SILENT_S for r, when in died.items() if r not in arrived]
                    over[k] = max([*arrived.values(), *silent]) + average_s
                    gates = [run.gates[r, k, turn] for r in arrived if r in alive and r not in late]
                    env.process(_open(env, over[k], gates))
            if not alive or len(over) == chain.workers:
                break
            dying = min(alive - late.keys(), key=fails.__getitem__, default=None)
            if dying is not None and env.peek() > fails[dying]:
                run.stop(dying)
                if all((dying, k, turn) in run.arrived for k in range(chain.workers)):
                    late[dying] = fails[dying]
                else:
                    died[dying] = fails[dying]
                    alive.remove(dying)
            else:
                env.step()
        for replica, when in died.items():
            back[replica] = when + (failures.restart_s if failures else 0.0)
        failed_in_all += len(died)
        trained.append(every * len(alive))
        now = max(over.values()) if alive else max(min(back.values()), *died.values(), 0.0)
        for replica in [r for r, when in back.items() if when <= now]:
            del back[replica]
            fails[replica] = now + lives.next(replica)
            env.process(_begin(env, now, run, replica, turn + 1))
            alive.add(replica)
        ends.append(now)
    return ends, trained, failed_in_all


def _open(env: simpy.Environment, when: float, gates: list[simpy.Event]) -> Events:
    yield env.timeout(max(when - env.now, 0.0))
    for gate in gates:
        gate.succeed()


def _begin(env: simpy.Environment, when: float, run: Replicas, replica: int, turn: int) -> Events:
    yield env.timeout(max(when - env.now, 0.0))
    run.start(replica, turn)
