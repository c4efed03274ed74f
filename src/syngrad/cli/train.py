"""`syngrad train`: one experiment by one method, with checkpoints that a run goes on from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syngrad.cli import workers
from syngrad.cli.common import EXPERIMENT, INSTEAD, INTERRUPTED, ending, experiment_of, number, whole
from syngrad.cli.config import Option, kept, listed, resolve
from syngrad.errors import CheckpointError, ConfigError
from syngrad.links.world import world

if TYPE_CHECKING:
    from syngrad.callbacks import Callback
    from syngrad.compare.training import Training
    from syngrad.trainer import Trainer
    from syngrad.trainer.history import Epoch

#: every option, as a configuration's file and the results file know it
OPTIONS = {
    "experiment": Option("text", "fashion-mlp", argument=True),
    "method": Option("text", "synthetic"),
    "estimator": Option("text"),
    **INSTEAD,
    "seed": Option("whole", 0),
    "threads": Option("whole", 1),
    "device": Option("text"),
    "autocast": Option("text"),
    "clip_norm": Option("number"),
    "clip_scope": Option("text"),
    "guard": Option("number"),
    "group": Option("texts"),
    "freeze": Option("texts"),
    "feedback": Option("text"),
    "feedback_every": Option("whole"),
    "estimator_lr": Option("number"),
    "warmup": Option("whole"),
    "feedback_delay": Option("whole"),
    "inputs": Option("text"),
    "workers": Option("whole"),
    "place": Option("texts"),
    "queue_depth": Option("whole"),
    "message_dtype": Option("text"),
    "link_key": Option("text"),
    "restarts": Option("whole"),
    "validate_every": Option("whole"),
    "early_stopping": Option("whole"),
    "save_every": Option("whole"),
    "keep": Option("whole", 2),
    "save": Option("text", kept=False),
    "tensorboard": Option("text", kept=False),
    "json": Option("text", kept=False),
    "progress": Option("flag", kept=False),
}
#: those that go to the Trainer under their own name, where they are given
TRAINER = ("device", "autocast", "clip_norm", "clip_scope", "feedback", "feedback_every", "feedback_delay", "inputs",
           "estimator_lr", "warmup")  # fmt: skip
#: the configuration of a run, beside its checkpoints
RUN = "run.json"


def _whole(name: str, help_: str, **more: Any) -> Any:
    return typer.Option(metavar="N", parser=whole(f"--{name}"), help=help_, **more)


def _number(name: str, help_: str, **more: Any) -> Any:
    return typer.Option(metavar="X", parser=number(f"--{name}"), help=help_, **more)


@ending
def train(
    experiment: Annotated[
        str | None,
        typer.Argument(help=EXPERIMENT, show_default="fashion-mlp"),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="backprop, synthetic, mixed(λ), delayed(d) or zero.", show_default="synthetic")
    ] = None,
    estimator: Annotated[str | None, typer.Option(help="Its name with options, as in 'mlp(hidden=2)'.")] = None,
    stages: Annotated[int | None, _whole("stages", "So many stages of like cost, instead of its cuts.")] = None,
    cuts: Annotated[str | None, typer.Option(help="The modules that start a new stage, commas between.")] = None,
    epochs: Annotated[int | None, _whole("epochs", "Instead of the experiment's own.")] = None,
    batch_size: Annotated[int | None, _whole("batch-size", "Instead of the experiment's own.")] = None,
    seed: Annotated[int | None, _whole("seed", "Of everything that is drawn.", show_default="0")] = None,
    threads: Annotated[int | None, _whole("threads", "PyTorch's threads.", show_default="1")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Any of torch.optim, as in 'sgd(lr=0.1,momentum=0.9)'.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")] = None,
    autocast: Annotated[str | None, typer.Option(help="bfloat16 or float16.")] = None,
    clip_norm: Annotated[float | None, _number("clip-norm", "The largest norm of a gradient.")] = None,
    clip_scope: Annotated[
        str | None, typer.Option(help="stage or model: whose norm it is.", show_default="stage")
    ] = None,
    guard: Annotated[
        float | None,
        _number("guard", "Skip updates so many times as long as of late; 0 for none.", show_default="100"),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Options of parameters by name, as in '*.bias: weight_decay=0'; may be repeated."),
    ] = None,
    freeze: Annotated[str | None, typer.Option(help="Modules or patterns of names that stand still.")] = None,
    feedback: Annotated[str | None, typer.Option(help="bootstrapped or true.")] = None,
    feedback_every: Annotated[int | None, _whole("feedback-every", "Asked for on every n-th minibatch.")] = None,
    estimator_lr: Annotated[float | None, _number("estimator-lr", "The estimators' rate as a multiple.")] = None,
    warmup: Annotated[int | None, _whole("warmup", "Minibatches of back-propagation at the start.")] = None,
    feedback_delay: Annotated[
        int | None, _whole("feedback-delay", "Minibatches; over processes, as it comes without it.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="linear or 'mlp(width=256)': predict every stage's input too.")
    ] = None,
    workers: Annotated[int | None, _whole("workers", "Train in so many processes, each with its stages.")] = None,
    place: Annotated[
        str | None, typer.Option(help="Stages of each worker, as in 2,1; by measured cost without it.")
    ] = None,
    queue_depth: Annotated[
        int | None, _whole("queue-depth", "Minibatches under way between two workers.", show_default="8; 2 for delayed")
    ] = None,
    message_dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8 between workers, or two: forward,backward.")
    ] = None,
    link_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="A secret that all hosts have; links are then encrypted.")
    ] = None,
    restarts: Annotated[
        int | None, _whole("restarts", "How often lost workers are started again.", show_default="3")
    ] = None,
    validate_every: Annotated[int | None, _whole("validate-every", "Minibatches; besides every epoch.")] = None,
    early_stopping: Annotated[
        int | None, _whole("early-stopping", "End after so many epochs without a better metric.")
    ] = None,
    save: Annotated[str | None, typer.Option(metavar="DIR", help="Checkpoints there, after every epoch.")] = None,
    save_every: Annotated[int | None, _whole("save-every", "And after every so many minibatches.")] = None,
    keep: Annotated[int | None, _whole("keep", "The newest checkpoints that stay.", show_default="2")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="DIR", help="Go on with the run saved there, as it was configured.")
    ] = None,
    tensorboard: Annotated[str | None, typer.Option(metavar="DIR", help="Event files for TensorBoard.")] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write all figures there, as JSON.")] = None,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="A bar; on a terminal unless told otherwise.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Options from a TOML file of these names, or a results file; flags win."),
    ] = None,
) -> int:
    """Train one experiment by one method; Ctrl-C saves, and --resume goes on as if nothing had happened."""
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    if resume is not None:
        for other, value in (("--save", save), ("--config", config)):
            if value is not None:
                raise ConfigError(f"--resume {resume} knows its own {other[2:]}; leave {other} out")
        config, given["save"] = _run_file(resume), resume
    options = resolve("train", OPTIONS, given, config, exclusive=[("cuts", "stages")])
    if resume is not None and workers is not None and place is None:
        options["place"] = None  # it was made for another number of them; they are laid out anew, by cost
    return run(options, resume is not None)


def _run_file(folder: str) -> str:
    """The configuration that a run has left with its checkpoints."""
    path = Path(folder) / RUN
    if not path.is_file():
        what = f"it has no {RUN}" if Path(folder).is_dir() else "there is no such folder"
        raise CheckpointError(f"nothing to resume in {folder!r}: {what}; give the folder of an earlier --save")
    return str(path)


def run(options: dict[str, Any], resume: bool) -> int:
    """The training that these options ask for: in this process, as one of several, or in workers started here."""
    from syngrad import results
    from syngrad.runtime import checkpoint

    place, folder = world(), options["save"]
    if not resume and place.size == 1 and (options["workers"] or 1) == 1:
        for name in workers.OPTIONS:
            if options[name] is not None:
                raise ConfigError(f"--{name.replace('_', '-')} {options[name]} needs --workers, 2 or more processes")
    if place.rank == 0 and place.attempt == 0:
        _check_output(options, resume)
    if workers.wanted(options["workers"]):
        return workers.start(options, resume, _over_processes(options))
    # what restarts workers has no other way to say so than their count
    training = _training(options, resume or (place.attempt > 0 and folder is not None))
    if place.rank > 0:
        return _follow(training)
    if folder is not None:
        training.callbacks.append(_remembering(folder, training, options))
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
            print(f"interrupted after minibatch {done}; nothing is saved: --save DIR keeps a run", file=sys.stderr)
        elif error.args:
            print(f"interrupted after minibatch {done}; go on with: syngrad train --resume {folder}", file=sys.stderr)
        else:
            print(f"interrupted; go on from the last checkpoint: syngrad train --resume {folder}", file=sys.stderr)
        return INTERRUPTED
    except BaseException:
        begun = folder is not None and (Path(folder) / RUN).is_file()
        if begun and not resume and not checkpoint.found(folder):
            (Path(folder) / RUN).unlink()  # what has not begun is not in the way of another try
        raise
    document = results.document(
        results.environment(training.threads), training.description(), [row], None, _resolved(training, options)
    )
    if options["json"] is not None:
        results.write(options["json"], document)
    _close(training, folder, bool(told))
    return 0


def _check_output(options: dict[str, Any], resume: bool) -> None:
    """Refuse at once what the run could not write in the end, or would write over."""
    from syngrad import results
    from syngrad.runtime import checkpoint

    if options["json"] is not None:
        results.check_writable(options["json"])
    folder = options["save"]
    if folder is not None and not resume and (checkpoint.found(folder) or (Path(folder) / RUN).exists()):
        raise CheckpointError(f"{folder!r} holds an earlier run; go on with --resume {folder}, or name another folder")


def _follow(training: Training) -> int:
    """Any process but the first: that one writes and says everything."""
    try:
        training.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _training(options: dict[str, Any], resume: bool) -> Training:
    from syngrad.callbacks import EarlyStopping, TensorBoard
    from syngrad.compare.training import Training
    from syngrad.optim.groups import parse_groups

    trainer = {name: options[name] for name in TRAINER if options[name] is not None}
    if options["guard"] is not None:
        trainer["guard"] = options["guard"] or None
    if options["group"]:
        group = options["group"]
        trainer["groups"] = parse_groups([group] if isinstance(group, str) else group)
    if options["freeze"] is not None:
        trainer["freeze"] = listed(options["freeze"])
    trainer |= _over_processes(options)
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
    return Training(
        experiment_of(options),
        options["method"],
        options["estimator"],
        options["seed"],
        options["threads"],
        trainer,
        fit,
        callbacks,
        options["progress"],
    )


def _over_processes(options: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's options for a run over several processes, where they are given."""
    made = {name: options[name] for name in ("queue_depth", "link_key") if options[name] is not None}
    if options["message_dtype"] is not None:
        dtypes = listed(options["message_dtype"])
        made["message_dtype"] = dtypes[0] if len(dtypes) == 1 else tuple(dtypes)
    if options["place"] is not None:
        made["place"] = [whole("--place")(count) for count in listed(options["place"])]
    return made


def _resolved(training: Training, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration that was run: what the experiment itself decided filled in."""
    filled = {"epochs": training.experiment.epochs, "batch_size": training.experiment.batch_size}
    return kept("train", OPTIONS, {**options, **filled})


def _remembering(folder: str, training: Training, options: dict[str, Any]) -> Callback:
    """Writes the configuration once a run begins or goes on: what was refused until then is not remembered."""
    from syngrad.callbacks import Callback

    class Remembering(Callback):
        whole = False

        def on_start(self, trainer: Trainer) -> None:
            _begin(folder, training, options)

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
    from syngrad.runtime import checkpoint

    trainer = training.trainer
    if not told:
        print(f"nothing is left to do: {trainer.epochs_done} of {training.experiment.epochs} epochs are done")
    if trainer.stopped:
        print("stopped early: the metric did not become better")
    for name, count in trainer.guarded.items():
        print(f"stage {name}: {count} updates skipped, whose gradients were not finite or ran away")
    if folder is not None:
        print(f"the trained model: {checkpoint.newest(folder) / checkpoint.MODEL}")
