"""`plan`: from an experiment to the answer. It measures what nobody has given it, and computes the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from syngrad.checks import check_positive, check_whole
from syngrad.errors import ConfigError
from syngrad.experiments import registry
from syngrad.experiments.experiment import Experiment
from syngrad.launch.emulated_link import parse_link
from syngrad.links.world import world
from syngrad.planner.layouts import Cluster
from syngrad.planner.machine import measure_machine, measure_workers, taken_apart, used_by_others, with_base
from syngrad.planner.machine_worker import measured
from syngrad.planner.profile import profile as measure_profile
from syngrad.planner.quantities import Link, Machine, Profile
from syngrad.planner.ranking import Plan, changes, ranking

#: seconds of measuring, model and machine together, about
SECONDS = 12.0
#: what processes slow each other down with where the experiment is an object, which no other process can make
STAND_IN = "fashion-mlp"


def plan(
    experiment: str | Experiment,
    workers: int = 2,
    link: str | Link | None = None,
    *,
    memory: float | None = None,
    devices: Sequence[float] = (),
    cuts: Sequence[str] | None = None,
    instead: Mapping[str, Any] | None = None,
    seconds: float = SECONDS,
    profile: Profile | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Which layout is the fastest for a model on some workers, and by how much, without training any of them.

    What it ranks is throughput. How many samples each way of updating needs to a loss is not computed: exact layouts
    need what back-propagation needs, all others have to be trained to know.

    Among workers that torchrun has started it is called by the first; the others call `take_part`.

    Args:
        experiment: a built-in name, path/to/file.py:function, or an Experiment.
        workers: processes of one thread each.
        link: what lies between them, each on a host of its own, as in "20ms,100mbit"; None: all are on this machine.
        memory: MiB that a worker may hold.
        devices: speeds of the workers, in multiples of this machine; none: all alike.
        cuts: where the workers part, by names; None: wherever each layout is fastest.
        instead: what stands instead of the experiment's own, as in {"batch_size": 64}.
        seconds: about how long measuring may take.
        profile: of the model, if it has been measured; machine: likewise.

    Raises:
        SyngradError: in one line, for what cannot be used, or measured.
    """
    check_whole("workers", workers, 1, 100_000)
    if memory is not None:
        check_positive("memory", memory)
    check_positive("seconds", seconds)
    between, place = _link(link), world()
    loaded = registry.load(experiment, **(instead or {})) if isinstance(experiment, str) else experiment
    cluster = Cluster(Machine(), workers, workers if between else 1, between or Link(), tuple(devices))
    if place.size > 1 and (place.size != workers or between is not None):
        raise ConfigError(
            f"torchrun has started {place.size} workers, whose own link is measured; give --workers {place.size} and "
            "no --link, or run it without torchrun"
        )
    if profile is None:
        others = used_by_others()
        profile = dataclasses.replace(measure_profile(loaded, seconds * 0.6, cuts), others=others)
    if machine is None:
        if place.size > 1:
            machine, peak = measure_workers(loaded, seconds * 0.4)
            if not place.on_one_host:
                machine, there = taken_apart(machine)
                cluster = dataclasses.replace(cluster, hosts=workers, link=there)
        else:
            named = experiment if isinstance(experiment, str) else STAND_IN
            machine, peak = measure_machine(named, (instead or {}) if named is experiment else {}, seconds * 0.4)
        profile = with_base(profile, peak)
    found = ranking(profile, dataclasses.replace(cluster, machine=machine), _bytes(memory), _at(profile, cuts, workers))
    typed = experiment if isinstance(experiment, str) else ""
    return dataclasses.replace(found, changes=changes(found, _at(profile, cuts, workers)), experiment=typed)


def take_part(experiment: str, instead: Mapping[str, Any], seconds: float = SECONDS) -> None:
    """What every worker but the first of those that torchrun has started does: let itself be measured."""
    measured(registry.load(experiment, **instead), seconds * 0.4)


def _bytes(memory: float | None) -> int | None:
    return None if memory is None else int(memory * 2**20)


def _link(link: str | Link | None) -> Link | None:
    if link is None or isinstance(link, Link):
        return link
    given = parse_link(link)
    return Link(given.delay_s, given.bits_per_s / 8)


def _at(profile: Profile, cuts: Sequence[str] | None, workers: int) -> tuple[int, ...] | None:
    """The units that start the workers' parts, where cuts are named.

    Raises:
        ConfigError: for a name that starts none, or another number than the workers need.
    """
    if cuts is None:
        return None
    names = [unit.name for unit in profile.units]
    missing = [cut for cut in cuts if cut not in names[1:]]
    if missing:
        raise ConfigError(
            f"cut {missing[0]!r} does not start a unit of this model that could be measured; choose among "
            f"{', '.join(names[1:]) or 'none: it cannot be cut'}"
        )
    if len(cuts) != workers - 1:
        raise ConfigError(f"{len(cuts)} cuts part a model into {len(cuts) + 1}, and there are {workers} workers")
    return tuple(sorted(names.index(cut) for cut in cuts))
