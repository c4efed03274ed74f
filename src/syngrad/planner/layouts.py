"""The ways to lay a training over workers, as data: what each is called, and what has to be chosen for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from syngrad.checks import check_whole
from syngrad.errors import ConfigError
from syngrad.planner.quantities import DTYPES, Link, Machine


class Kind(NamedTuple):
    """A way to use workers.

    Args:
        family: "alone"; "data" where every worker has the whole model; "microbatches" and "stages" where each has a
            part of it.
        updates: what an update is made from: what it costs of the metric is known of this alone.
    """

    family: str
    updates: str


EXACT, RARE, SMALL, LATE = "exact", "averaged rarely", "compressed", "late"
ESTIMATED, CORRECTED = "estimated", "estimated, corrected late"
#: every layout that is planned, the plainest first
KINDS: dict[str, Kind] = {
    "alone": Kind("alone", EXACT),
    "alone(threads)": Kind("alone", EXACT),
    "ddp": Kind("data", EXACT),
    "ddp:bf16": Kind("data", SMALL),
    "ddp:periodic": Kind("data", RARE),
    "ddp:powersgd": Kind("data", SMALL),
    "diloco": Kind("data", RARE),
    "gpipe": Kind("microbatches", EXACT),
    "1f1b": Kind("microbatches", EXACT),
    "zb1p": Kind("microbatches", EXACT),
    "gpipe:bf16": Kind("microbatches", SMALL),
    "gpipe:int8": Kind("microbatches", SMALL),
    "1f1b:bf16": Kind("microbatches", SMALL),
    "1f1b:int8": Kind("microbatches", SMALL),
    "zb1p:bf16": Kind("microbatches", SMALL),
    "zb1p:int8": Kind("microbatches", SMALL),
    "delayed": Kind("stages", LATE),
    "corrected:local": Kind("stages", CORRECTED),
    "corrected": Kind("stages", CORRECTED),
    "synthetic:local": Kind("stages", ESTIMATED),
    "synthetic": Kind("stages", ESTIMATED),
}


#: a rival's variant → the form of its messages
FORMS = {"bf16": "bfloat16", "int8": "int8"}
#: between workers of one host
NO_LINK = Link()


@dataclass(frozen=True)
class Cluster:
    """The workers, where they are, and what lies between them.

    Args:
        machine: every host is one like this.
        workers: how many processes, of one thread each.
        hosts: how many hosts they are spread over, consecutive ones on each.
        link: between hosts.
        speeds: of every worker, in multiples of the machine that was profiled; none given: all alike.
        replicas: of the whole pipeline, which has so many workers; those of other replicas compute beside it.
        between_replicas: what lies between replicas; None: what lies between hosts, if there are several.
        emulated: whether the hosts share one machine in truth, as those of `syngrad compare --link` do.

    Raises:
        ConfigError: for numbers that do not go together.
    """

    machine: Machine = field(default_factory=Machine)
    workers: int = 2
    hosts: int = 1
    link: Link = field(default_factory=Link)
    speeds: tuple[float, ...] = ()
    replicas: int = 1
    emulated: bool = False
    between_replicas: Link | None = None

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, 1, 100_000)
        check_whole("hosts", self.hosts, 1, self.workers)
        if self.speeds and len(self.speeds) != self.workers:
            raise ConfigError(
                f"devices names {len(self.speeds)} speeds, and there are {self.workers} workers; give one a worker"
            )
        for speed in self.speeds:
            if not 0 < speed < float("inf"):
                raise ConfigError(f"devices must be speeds above 0, got {speed!r}; write --devices 1,0.5")

    def host(self, worker: int) -> int:
        """On which host a worker is."""
        return worker * self.hosts // self.workers

    def speed(self, worker: int) -> float:
        """Of a worker."""
        return self.speeds[worker] if self.speeds else 1.0

    def slowdown(self, worker: int) -> float:
        """What a worker's step takes beside all others, in multiples of what it takes alone on the profiled machine."""
        host = self.host(worker)
        first, after = (-(-each * self.workers // self.hosts) for each in (host, host + 1))
        here = after - first
        return self.machine.slowdown((self.workers if self.emulated else here) * self.replicas) / self.speed(worker)

    def between(self, worker: int) -> Link:
        """What lies between a worker and the next one, beside what their machine takes."""
        return self.link if self.host(worker) != self.host(worker + 1) else NO_LINK

    @property
    def widest(self) -> Link:
        """The worst link that something which goes round all workers meets."""
        return self.link if self.hosts > 1 else NO_LINK

    @property
    def apart(self) -> Link:
        """The link that replicas average over."""
        return self.widest if self.between_replicas is None else self.between_replicas


@dataclass(frozen=True)
class Layout:
    """One way to train over workers, with all that had to be chosen.

    Args:
        kind: of `KINDS`.
        cuts: the units that start the second and every later worker's part; none where all have the whole model.
        microbatches: of a minibatch, for `gpipe`, `1f1b` and `zb1p`.
        every: minibatches between two averagings (`ddp:periodic`, `diloco`), or truths of `corrected`.
        message_dtype: the form in which messages travel.
        queue_depth: minibatches under way between two workers.
        replicas: of the whole pipeline, which average their weights now and then.
        average_every: minibatches between two averagings of replicas; 0: `every`.
    """

    kind: str
    cuts: tuple[int, ...] = ()
    microbatches: int = 1
    every: int = 0
    message_dtype: str = "float32"
    queue_depth: int = 0
    replicas: int = 1
    average_every: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown layout {self.kind!r:.40}; valid: {', '.join(KINDS)}")
        if self.message_dtype not in DTYPES:
            raise ConfigError(f"unknown message_dtype {self.message_dtype!r:.40}; valid: {', '.join(DTYPES)}")

    @property
    def family(self) -> str:
        """What it does with the workers: "alone", "data", "microbatches" or "stages"."""
        return KINDS[self.kind].family

    @property
    def plain_kind(self) -> str:
        """Without what stands behind the colon, an estimator or the form of messages."""
        return self.kind.partition(":")[0]

    @property
    def row(self) -> str:
        """As `syngrad compare --methods` takes it."""
        return f"{self.kind}(every={self.every})" if self.kind == "diloco" else self.kind

    @property
    def form(self) -> str:
        """In which messages travel: a rival's kind says it, and Syngrad's own choose it."""
        return FORMS.get(self.kind.partition(":")[2], self.message_dtype)

    @property
    def averaged_every(self) -> int:
        """Minibatches between two averagings of replicas."""
        return max(self.average_every or self.every, 1)

    @property
    def updates(self) -> str:
        """What an update is made from."""
        rarely = self.replicas > 1 and self.averaged_every > 1
        return RARE + ", " + KINDS[self.kind].updates if rarely else KINDS[self.kind].updates

    def __str__(self) -> str:
        options = []
        if self.every and self.family == "data":
            options.append(f"every={self.every}")
        if self.family == "microbatches":
            options.append(f"{self.microbatches} part{'s' if self.microbatches > 1 else ''}")
        if self.message_dtype != "float32":
            options.append(self.message_dtype)
        name = f"{self.kind}({', '.join(options)})" if options else self.kind
        return f"{self.replicas} × {name}, averaged every {self.averaged_every}" if self.replicas > 1 else name
