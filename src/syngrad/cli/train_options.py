"""The options of `syngrad train`: its own, and the Trainer's, which are derived from the fields of those."""

from __future__ import annotations

from typing import Any

from syngrad.cli.options import EXPERIMENT, Option, arranged, derived, listed, whole
from syngrad.optim.groups import parse_groups
from syngrad.replicas.options import Replicas
from syngrad.runtime.option_fields import flat_options
from syngrad.trainer.options import Options

MOST, RESTARTS = 64, 3
#: in the order of the help; options of the Trainer that are not named come last
ORDER = """
    experiment method estimator stages cuts epochs batch_size seed threads optimizer device autocast
    clip_norm clip_scope guard group freeze feedback feedback_every estimator_lr warmup feedback_delay inputs
    workers place queue_depth message_dtype share_every link_key restarts
    replicas replicas_every replicas_outer replicas_fragments replicas_delay replicas_dtype replicas_estimators
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
        "replicas": Option("whole", "Train so many of them side by side, which average their weights rarely."),
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
#: options that say nothing to one replica alone
OF_REPLICAS = {name for name, each in TRAINERS.items() if each.part is not None and each.part[0] == "replicas"}


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


def trainers(options: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's options that are given, by their flat names and as the Trainer takes them."""
    given = {each.name: options[flag] for flag, each in TRAINERS.items() if options[flag] not in (None, [])}
    if options["replicas"] is not None:
        given = {"replicas": Replicas(), **given}
    return {name: READ[name](value) if name in READ else value for name, value in given.items()}
