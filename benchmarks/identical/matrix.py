"""The scenarios, as plain data: what is trained how, in how many processes, and whether it is killed on the way."""

from __future__ import annotations

from typing import Any

from float64_models import SPECIMENS

Scenario = dict[str, Any]

#: options of the Trainer, flat, by method
METHODS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "synthetic": {},
    "feedback=true": {"feedback": "true"},
    "feedback_every=4": {"feedback_every": 4},
    "feedback_delay=2": {"feedback_delay": 2},
    "mixed(0.5)": {"method": "mixed(0.5)"},
    "delayed(1)": {"method": "delayed(1)"},
    "delayed(2)": {"method": "delayed(2)"},
    "zero": {"method": "zero"},
    "warmup=10": {"warmup": 10},
    "update_probability=0.5": {"update_probability": 0.5},
    "inputs=linear": {"inputs": "linear"},
    "guard, clip_norm, groups, scheduler": {
        "guard": 1.2,
        "clip_norm": 0.5,
        "groups": {"*.bias": {"weight_decay": 0.01}, "*.weight": {"lr": 5e-3}},
        "estimator_lr": 0.5,
        "scheduler": "cosine",
        "scheduler_every": "step",
    },
}
#: further options, of the MLP in one process, straight through
MORE: dict[str, dict[str, Any]] = {
    **{
        f"estimator={spec}": {"estimator": spec}
        for spec in ("local", "sobolev", "linear", "low_rank", "mlp(hidden=2,width=6)", "zero", "own")
    },
    "estimator by cut": {"estimator": {"3": "linear", "default": "local"}},
    "optimizer_scope=stage": {"optimizer_scope": "stage"},
    "clip_scope=model": {"method": "backprop", "clip_norm": 0.3, "clip_scope": "model"},
    "freeze": {"freeze": ["3"]},
    "inputs=mlp": {"inputs": "mlp(width=8)", "feedback_delay": 1},
    "feedback_every=3, feedback_delay=1": {"feedback_every": 3, "feedback_delay": 1},
    "feedback=true, feedback_every=3": {"feedback": "true", "feedback_every": 3},
    "mixed(0.3), warmup=7": {"method": "mixed(0.3)", "warmup": 7},
    "delayed(2), update_probability=0.6": {"method": "delayed(2)", "update_probability": 0.6},
    "record": {"feedback_delay": 1, "record": True},
    "seed=5, no guard": {"seed": 5, "guard": None},
    "no samples": {"quality_every": 0, "true_every": 0},
}
#: runs whose feedback is applied as it comes, in two processes
FREE: dict[str, dict[str, Any]] = {
    "synthetic": {"record": True, "queue_depth": 3},
    "inputs=mlp": {"record": True, "queue_depth": 3, "inputs": "mlp(width=8)"},
    "delayed": {"method": "delayed", "record": True, "queue_depth": 3},
}
#: stages of each process
PLACES = {1: None, 2: [2, 2], 4: [1, 1, 1, 1]}


def feedforward() -> list[Scenario]:
    made = []
    for workers in PLACES:
        for model, specimen in SPECIMENS.items():
            for method, options in METHODS.items():
                if "inputs" in options and not specimen.one_input:
                    continue
                made.append(trained(model, method, options, workers, "straight"))
                if (
                    workers < 4 or model == "mlp"
                ):  # of four processes, each at work for one stage, one model tells enough
                    made.append(trained(model, method, options, workers, "killed and resumed"))
    for name, options in MORE.items():
        made.append(trained("mlp", name, options, 1, "straight"))
    for model in SPECIMENS:
        made.append({**trained(model, "bfloat16", {"autocast": "bfloat16"}, 1, "straight"), "dtype": "float32"})
    made += [{**trained(model, "own loop", {}, 1, "straight"), "kind": "own loop"} for model in SPECIMENS]
    made.append({**trained("mlp", "own loop, delayed(2)", METHODS["delayed(2)"], 1, "straight"), "kind": "own loop"})
    for spec in ("linear", "mlp", "low_rank", "local", "sobolev", "default"):
        options = {"estimator": spec, "lam": 0.3, "head": spec in ("local", "sobolev", "default")}
        made.append({"kind": "interface", "name": f"interface / {spec}", "workers": 1, "options": options})
    made.append(crossed("feedback_delay=2"))
    made += [crossed(method) for method in ("delayed(2)", "mixed(0.5)", "inputs=linear", "update_probability=0.5")]
    made.append(crossed("guard, clip_norm, groups, scheduler"))
    return made


def trained(model: str, method: str, options: dict[str, Any], workers: int, course: str) -> Scenario:
    """Over several processes what comes back is applied with a fixed delay, so that the steps are always the same."""
    options = dict(options)
    if workers > 1:
        options["place"] = PLACES[workers]
        if options.get("method") in (None, "zero"):
            options.setdefault("feedback_delay", 1)
    processes = f"{workers} worker" + ("s" if workers > 1 else "")
    name = f"train / {model} / {method} / {processes} / {course}"
    return {"kind": "train", "name": name, "model": model, "workers": workers, "options": options, "course": course}


def crossed(method: str) -> Scenario:
    """Killed under the base commit, and gone on with by either tree from that checkpoint."""
    made = trained("mlp", method, METHODS[method], 1, "killed and resumed")
    return {**made, "name": f"train / mlp / {method} / from the base's checkpoint", "crossed": True}


def free() -> list[Scenario]:
    made = []
    for name, options in FREE.items():
        base = trained("mlp", name, {**options, "place": [2, 2], "feedback_delay": None}, 2, "straight")
        made.append({**base, "kind": "free", "name": f"free / {name} / 2 workers and replay"})
    return made


def recurrent() -> list[Scenario]:
    from recurrent_runs import RUNS

    return [{"kind": "recurrent", "name": f"recurrent / {name}", "workers": 1, "run": name} for name in RUNS]


def told() -> list[Scenario]:
    """What the library and its command line say."""
    from bad_calls import GROUPS
    from command_runs import BAD, COMMANDS

    made: list[Scenario] = [{"kind": "help", "name": "help", "workers": 1}]
    for name, first in {
        "compare": ["compare"],
        "train": ["train"],
        "others": [name for name in BAD if not name.startswith(("compare", "train"))],
    }.items():
        made.append({"kind": "bad commands", "name": f"errors / commands, {name}", "workers": 1, "first": first})
    made += [{"kind": "bad calls", "name": f"errors / {name}", "workers": 1, "group": name} for name in GROUPS]
    for name, (words, parallel) in COMMANDS.items():
        made.append({"kind": "command", "name": f"command / {name}", "workers": parallel, "words": words})
    return made


def torchrun() -> list[Scenario]:
    """A few of the above under torchrun itself."""
    chosen = [
        trained("mlp", method, METHODS[method], 2, "straight") for method in ("synthetic", "delayed(1)", "backprop")
    ]
    return [
        {"kind": "torchrun", "name": "train / mlp / three methods / 2 workers / torchrun", "workers": 2, "each": chosen}
    ]


def everything() -> list[Scenario]:
    return [*told(), *recurrent(), *feedforward(), *free(), *torchrun()]


def quick(scenario: Scenario) -> bool:
    """A part that is done in two minutes and meets every file of the package at least once."""
    if scenario["kind"] != "train":
        return scenario["kind"] not in ("command", "torchrun") or scenario["name"].endswith(" train")
    if "crossed" in scenario:
        return True
    _, model, method, _, course = scenario["name"].split(" / ")
    if scenario["workers"] == 1:
        return model == "mlp" or (method in ("synthetic", "bfloat16", "delayed(1)") and course == "straight")
    wanted = (
        {"synthetic", "delayed(1)", "mixed(0.5)", "inputs=linear"} if scenario["workers"] == 2 else {"feedback_delay=2"}
    )
    return model == "mlp" and method in wanted and (course == "straight" or method in ("synthetic", "feedback_delay=2"))
