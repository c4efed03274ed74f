"""`syngrad train`: one experiment by one method, in one process or several, with checkpoints to go on from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syngrad.checks import check_whole
from syngrad.cli.options import (
    EXPERIMENT,
    Option,
    arranged,
    as_command,
    complain,
    derived,
    instead,
    interrupted,
    kept,
    listed,
    resolve,
    whole,
)
from syngrad.errors import CheckpointError, ConfigError
from syngrad.experiments import BUILT_IN, RECURRENT
from syngrad.links.world import world
from syngrad.optim.groups import parse_groups
from syngrad.runtime.option_fields import flat_options
from syngrad.startup import INTERRUPTED
from syngrad.trainer.options import Options

if TYPE_CHECKING:
    from syngrad.callbacks import Callback
    from syngrad.compare.training import Training
    from syngrad.trainer import Trainer
    from syngrad.trainer.history import Epoch

MOST, RESTARTS = 64, 3
#: in the order of the help; options of the Trainer that are not named come last
ORDER = """
    experiment method estimator stages cuts epochs batch_size seed threads optimizer device autocast
    clip_norm clip_scope guard group freeze feedback feedback_every estimator_lr warmup feedback_delay inputs
    workers place queue_depth message_dtype share_every link_key restarts
    validate_every early_stopping save save_every keep resume trust tensorboard json progress config
"""
#: every option: those of the run, and the Trainer's own
OPTIONS = arranged(
    ORDER,
    {
        "experiment": Option("text", EXPERIMENT, "fashion-mlp", default="fashion-mlp", argument=True),
        "stages": Option("whole", "So many stages of like cost, instead of its cuts."),
        "cuts": Option("texts", "The modules that start a new stage, commas between."),
        "epochs": Option("whole", "Instead of the experiment's own."),
        "batch_size": Option("whole", "Instead of the experiment's own."),
        "threads": Option("whole", "PyTorch's threads.", "1", default=1),
        "optimizer": Option("text", "Any of torch.optim, as in 'sgd(lr=0.1,momentum=0.9)'."),
        "workers": Option("whole", "Train in so many processes, each with its stages."),
        "restarts": Option("whole", "How often lost workers are started again.", str(RESTARTS)),
        "validate_every": Option("whole", "Minibatches; besides every epoch."),
        "early_stopping": Option("whole", "End after so many epochs without a better metric."),
        "save": Option("text", "Checkpoints there, after every epoch.", metavar="DIR", kept=False),
        "save_every": Option("whole", "And after every so many minibatches."),
        "keep": Option("whole", "The newest checkpoints that stay.", "2", default=2),
        "resume": Option("text", "Go on with the run saved there, as it was configured.", metavar="DIR", filed=False),
        "trust": Option("flag", "With --resume: run the Python file that the folder names.", kept=False, filed=False),
        "tensorboard": Option("text", "Event files for TensorBoard.", metavar="DIR", kept=False),
        "json": Option("text", "Write all figures there, as JSON.", metavar="FILE", kept=False),
        "progress": Option("flag", "A bar; on a terminal unless told otherwise.", kept=False),
        "config": Option(
            "text",
            "Options from a TOML file of these names, or a results file; flags win.",
            metavar="FILE",
            filed=False,
        ),
    },
    derived(Options, method={"default": "synthetic"}, seed={"default": 0}),
)
#: the Trainer's own: flag → the option's flat name
TRAINERS = {each.about.flag.name or each.name: each for each in flat_options(Options) if each.about.flag is not None}
#: options that say nothing to one process alone
OF_WORKERS = {
    "restarts",
    *(name for name, each in TRAINERS.items() if each.part is not None and each.part[0] == "distributed"),
}
#: the configuration of a run, beside its checkpoints
RUN = "run.json"
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
    if not resume and place.size == 1 and (options["workers"] or 1) == 1:
        for name in OPTIONS:
            if name in OF_WORKERS and options[name] is not None:
                raise ConfigError(f"--{name.replace('_', '-')} {options[name]} needs --workers, 2 or more processes")
    if place.rank == 0 and place.attempt == 0:
        _check_output(options, resume)
    if _starts_workers(options["workers"]):
        return _start_workers(options, resume)
    # what restarts workers has no other way to say so than their count
    training = _training(options, resume or (place.attempt > 0 and folder is not None))
    if place.rank > 0:
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

    given = _trainers(options)
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


def _trainers(options: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's options that are given, by their flat names and as the Trainer takes them."""
    given = {each.name: options[flag] for flag, each in TRAINERS.items() if options[flag] not in (None, [])}
    return {name: READ[name](value) if name in READ else value for name, value in given.items()}


def _dtypes(text: str) -> str | tuple[str, ...]:
    dtypes = listed(text)
    return dtypes[0] if len(dtypes) == 1 else tuple(dtypes)


#: what the Trainer takes for what is typed, where that is another thing
READ: dict[str, Any] = {
    "guard": lambda bound: bound or None,
    "groups": lambda group: parse_groups([group] if isinstance(group, str) else group),
    "freeze": listed,
    "place": lambda counts: [whole("--place")(count) for count in listed(counts)],
    "message_dtype": _dtypes,
}


def _training(options: dict[str, Any], resume: bool) -> Training:
    from syngrad.callbacks import EarlyStopping, TensorBoard
    from syngrad.compare.training import Training
    from syngrad.experiments import load

    trainer = _trainers(options)
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
