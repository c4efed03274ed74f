"""`syngrad train`: one experiment by one method, in one process or several, with checkpoints to go on from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syngrad.checks import check_whole
from syngrad.cli.options import (
    as_command,
    complain,
    instead,
    interrupted,
    kept,
    resolve,
)
from syngrad.cli.train_options import MOST, OF_REPLICAS, OF_WORKERS, OPTIONS, RESTARTS, trainers
from syngrad.errors import CheckpointError, ConfigError
from syngrad.experiments import BUILT_IN, RECURRENT
from syngrad.links.world import world
from syngrad.replicas.options import Replicas
from syngrad.replicas.place import place as replica_place
from syngrad.runtime.option_fields import flat_options
from syngrad.startup import INTERRUPTED
from syngrad.trainer.options import Options

if TYPE_CHECKING:
    from syngrad.callbacks import Callback
    from syngrad.compare.training import Training
    from syngrad.trainer import Trainer
    from syngrad.trainer.history import Epoch

#: the configuration of a run, beside its checkpoints
RUN = "run.json"
#: seconds that other replicas have to end once the first has, which alone writes and says what came of the run
AFTER_S = 2.0
#: more than any configuration
RUN_LIMIT_BYTES = 1 << 24
#: a worker; Ctrl-C while it still imports PyTorch ends it without a trace
WORKER = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); import runpy; "
    "runpy.run_module('syngrad.cli.worker', run_name='__main__', alter_sys=True)"
)


@as_command(OPTIONS)
def train(given: dict[str, Any]) -> int:
    """Train one experiment by one method; Ctrl-C saves, and --resume goes on as if nothing had happened."""
    resume, config = given["resume"], given["config"]
    if resume is not None:
        for other, value in (("--save", given["save"]), ("--config", config)):
            if value is not None:
                raise ConfigError(f"--resume {resume} knows its own {other[2:]}; leave {other} out")
        config, given["save"] = _run_file(resume), resume
    elif given["trust"]:
        raise ConfigError("--trust is for --resume: an experiment that you name is run anyway")
    options = resolve("train", OPTIONS, given, config, exclusive=[("cuts", "stages")])
    if resume is not None and given["experiment"] is None and not given["trust"]:
        _check_no_code(resume, str(options["experiment"]))
    if resume is not None and given["workers"] is not None and given["place"] is None:
        options["place"] = None  # it was made for another number of them; they are laid out anew, by cost
    return run(options, resume is not None)


def _run_file(folder: str) -> str:
    """The configuration that a run has left with its checkpoints."""
    path = Path(folder) / RUN
    try:
        if not path.is_file():
            what = f"it has no {RUN}" if Path(folder).is_dir() else "there is no such folder"
            raise CheckpointError(f"nothing to resume in {folder!r}: {what}; give the folder of an earlier --save")
        if path.stat().st_size > RUN_LIMIT_BYTES:
            raise CheckpointError(f"nothing to resume in {folder!r}: its {RUN} is too large; name another folder")
    except OSError as error:
        raise CheckpointError(f"{folder!r:.80} cannot be read: {error.strerror}; name another folder") from error
    return str(path)


def _check_no_code(folder: str, experiment: str) -> None:
    """Refuse to run a Python file because a folder says so: the folder may be from anybody."""
    if experiment not in {**BUILT_IN, **RECURRENT}:
        raise ConfigError(
            f"{folder!r} names the experiment {experiment!r:.200}, a file that would be run; to allow that, name it "
            "yourself beside --resume, or add --trust"
        )


def run(options: dict[str, Any], resume: bool) -> int:
    """The training that these options ask for: in this process, as one of several, or in workers started here."""
    from syngrad import results
    from syngrad.runtime import checkpoint

    options = {**options, **{name: _absolute(options[name]) for name in ("save", "json", "tensorboard")}}
    place, folder = world(), options["save"]
    replicas = 1 if options["replicas"] is None else check_whole("replicas", options["replicas"], 1, MOST)
    replica = None if options["replicas"] is None else replica_place()
    if replica is not None and replica.count != replicas:
        raise ConfigError(f"--replicas {replicas}, but NUM_REPLICA_GROUPS is {replica.count}; give both the same")
    for name in OPTIONS if not resume else ():
        if options.get(name) is None:
            continue
        typed = f"--{name.replace('_', '-')} {options[name]}"
        several = place.size > 1 or (options["workers"] or 1) > 1
        if name in OF_WORKERS and not several and not (name == "restarts" and replicas > 1):
            raise ConfigError(f"{typed} needs --workers, 2 or more processes")
        if name in OF_REPLICAS and replicas == 1 and replica is None:
            raise ConfigError(f"{typed} needs --replicas, 2 or more of them")
    first = place.rank == 0 and (replica is None or replica.index == 0)
    again = place.attempt > 0 or (replica is not None and replica.attempt > 0)
    if first and not again:
        _check_output(options, resume)
    if replicas > 1 and replica is None:
        return _start_replicas(options, resume, replicas)
    if _starts_workers(options["workers"]):
        return _start_workers(options, resume)
    # what restarts workers has no other way to say so than their count
    training = _training(options, resume or (place.attempt > 0 and folder is not None))
    if not first:
        return _follow(training)
    remembering = _remembering(folder, training, options) if folder is not None else None
    if remembering is not None:
        training.callbacks.append(remembering)
    tell = _told(training)
    told: list[int] = []

    def each(record: Epoch) -> None:
        told.append(record.epoch)
        tell(record)

    try:
        row = training.run(each)
    except KeyboardInterrupt as error:
        done = training.trainer.minibatches
        if folder is None:
            return interrupted(f"interrupted after minibatch {done}; nothing is saved: --save DIR keeps a run")
        if error.args:
            return interrupted(f"interrupted after minibatch {done}; go on with: {_resuming(options)}")
        return interrupted(_last_checkpoint(options))
    except BaseException:
        if remembering is not None and remembering.written and not resume and not checkpoint.found(str(folder)):
            (Path(str(folder)) / RUN).unlink(missing_ok=True)  # what has not begun is not in the way of another try
        raise
    document = results.document(
        results.environment(training.threads), training.description(), [row], None, _resolved(training, options)
    )
    if options["json"] is not None:
        results.write(options["json"], document)
    _close(training, folder, bool(told))
    return 0


def _last_checkpoint(options: dict[str, Any]) -> str:
    """What is said of a run that was interrupted before it could save, or asked twice."""
    from syngrad.runtime import checkpoint

    if options["save"] is None or not checkpoint.found(options["save"]):
        return "interrupted"
    return f"interrupted; go on from the last checkpoint: {_resuming(options)}"


def _absolute(path: str | None) -> str | None:
    """Where it is, wherever the experiment's code may go."""
    return path if not path else str(Path(path).absolute())


def _resuming(options: dict[str, Any]) -> str:
    """What to type to go on."""
    experiment = str(options["experiment"])
    return f"syngrad train --resume {options['save']}" + (f" {experiment}" if experiment not in BUILT_IN else "")


def _check_output(options: dict[str, Any], resume: bool) -> None:
    """Refuse at once what the run could not write in the end, or would write over."""
    from syngrad import results
    from syngrad.runtime import checkpoint

    if options["json"] is not None:
        results.check_writable(options["json"])
    folder = options["save"]
    if folder is not None and not resume and (checkpoint.found(folder) or (Path(folder) / RUN).exists()):
        raise CheckpointError(f"{folder!r} holds an earlier run; go on with --resume {folder}, or name another folder")
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise CheckpointError(f"cannot save to {folder!r}: it is no folder; name another")


def _follow(training: Training) -> int:
    """Any process but the first: that one writes and says everything."""
    try:
        training.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _starts_workers(workers: int | None) -> bool:
    """Whether processes are to be started here: not where this is one of them already."""
    size = world().size
    if workers is None:
        return False
    check_whole("workers", workers, 1, MOST)
    if size > 1 and workers not in (1, size):
        raise ConfigError(f"--workers {workers}, but torchrun has started {size} processes; leave --workers out")
    return size == 1 and workers > 1


def _start_workers(options: dict[str, Any], resume: bool) -> int:
    """Run `syngrad train` with these options in its workers until they are done, also where one has to be started
    again; the exit code.
    """
    from syngrad.launch.launcher import launch
    from syngrad.pipeline.options import Distributed

    given = trainers(options)
    Distributed(**{field.name: given[field.name] for field in flat_options(Distributed) if field.name in given})
    command = [sys.executable, "-c", WORKER, json.dumps([options, resume])]
    try:
        restarts = RESTARTS if options["restarts"] is None else options["restarts"]
        launch(command, options["workers"], restarts=restarts, threads=options["threads"], say=complain)
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # the first worker ended before it could say what became of the run
            return interrupted(_last_checkpoint(options))
        return INTERRUPTED
    return 0


def _start_replicas(options: dict[str, Any], resume: bool, replicas: int) -> int:
    """Run `syngrad train` with these options in several replicas; the exit code."""
    from syngrad.launch.replica_launcher import launch_replicas
    from syngrad.pipeline.options import Distributed

    given = trainers(options)
    for kind, part in ((Distributed, "distributed"), (Replicas, "replicas")):
        own = {each.name: each.field for each in flat_options(Options) if each.part == (part, kind)}
        kind(**{field: given[name] for name, field in own.items() if name in given})
    command = [sys.executable, "-c", WORKER, json.dumps([options, resume])]
    restarts = RESTARTS if options["restarts"] is None else options["restarts"]
    try:
        launch_replicas(
            command, replicas, options["workers"] or 1, restarts=restarts, threads=options["threads"],
            after_s=AFTER_S, say=complain,
        )  # fmt: skip
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _training(options: dict[str, Any], resume: bool) -> Training:
    from syngrad.callbacks import EarlyStopping, TensorBoard
    from syngrad.compare.training import Training
    from syngrad.experiments import load

    trainer = trainers(options)
    callbacks: list[Callback] = []
    if options["early_stopping"] is not None:
        callbacks.append(EarlyStopping(options["early_stopping"]))
    if options["tensorboard"] is not None:
        callbacks.append(TensorBoard(options["tensorboard"]))
    fit = {"validate_every": options["validate_every"]}
    if options["save"] is not None:
        fit |= {name: options[name] for name in ("save", "save_every", "keep")}
        fit["resume"] = "auto" if resume else False
    elif options["save_every"] is not None:
        raise ConfigError(f"--save-every {options['save_every']} needs --save, the folder of the checkpoints")
    method, estimator, seed = trainer.pop("method"), trainer.pop("estimator", None), trainer.pop("seed")
    experiment = load(options["experiment"], **instead(options))
    threads, progress = options["threads"], options["progress"]
    return Training(experiment, method, estimator, seed, threads, trainer, fit, callbacks, progress)


def _resolved(training: Training, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration that was run: what the experiment itself decided filled in."""
    filled = {"epochs": training.experiment.epochs, "batch_size": training.experiment.batch_size}
    return kept("train", OPTIONS, {**options, **filled})


def _remembering(folder: str, training: Training, options: dict[str, Any]) -> Any:
    """A callback that writes the configuration once a run begins or goes on: what was refused until then is not
    remembered.
    """
    from syngrad.callbacks import Callback

    class Remembering(Callback):
        whole = False
        written = False

        def on_start(self, trainer: Trainer) -> None:
            _begin(folder, training, options)
            self.written = True

    return Remembering()


def _begin(folder: str, training: Training, options: dict[str, Any]) -> None:
    """Leave the configuration in the folder, so that --resume needs nothing else, from whichever folder it is typed."""
    from syngrad import results

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot save to {folder!r}: {error.strerror}; name another folder") from error
    config = _resolved(training, options)
    path, colon, function = str(config["experiment"]).rpartition(":")
    if path.endswith(".py"):
        config["experiment"] = f"{Path(path).resolve()}{colon}{function}"
    results.write(Path(folder) / RUN, {"config": config})


def _told(training: Training) -> Any:
    """A line an epoch."""
    trainer, epochs = training.trainer, training.experiment.epochs
    skipped = 0

    def told(record: Epoch) -> None:
        nonlocal skipped
        parts = [f"epoch {record.epoch}/{epochs}", f"loss {record.train_loss:.4f}"]
        parts += [f"{name if name != 'loss' else 'test loss'} {value:.4f}" for name, value in record.metrics.items()]
        if cosines := [q.history[-1].cosine for q in trainer.quality if q.history]:
            parts.append(f"cosine {sum(cosines) / len(cosines):.2f}")
        parts.append(f"{record.train_s:.1f} s")
        total = sum(trainer.guarded.values())
        if total > skipped:
            parts.append(f"{total - skipped} updates skipped")
            skipped = total
        print("  ".join(parts), flush=True)

    return told


def _close(training: Training, folder: str | None, told: bool) -> None:
    """What is left to say at the end."""
    from syngrad.report.places_table import what_was_shared
    from syngrad.runtime import checkpoint

    trainer = training.trainer
    if not told:
        print(f"nothing is left to do: {trainer.epochs_done} of {training.experiment.epochs} epochs are done")
    if trainer.stopped:
        print("stopped early: the metric did not become better")
    for line in what_was_shared(training.processes):
        print(line)
    for name, count in trainer.guarded.items():
        print(f"stage {name}: {count} updates skipped, whose gradients were not finite or ran away")
    if folder is not None and checkpoint.found(folder):
        print(f"the trained model: {checkpoint.newest(folder) / checkpoint.MODEL}")
