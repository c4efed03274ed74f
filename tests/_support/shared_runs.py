"""Runs of a model whose stages share weights, in one process and in several: `python -m tests._support.shared_runs`.

Arguments: FOLDER, and a JSON list of {"name", "options", "fit", "kind"}, taken one after the other. Every rank
leaves what it has, as `NAME.RANK`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tests._support.model_zoo import GPT
from tests._support.options import keywords
from torch import Tensor, nn

import syngrad
from syngrad.trainer.history import History

VOCABULARY, WIDTH = 11, 8
#: stages that may have a layer in common; the first and the last have the table of embeddings
CUTS = ["4", "7"]
#: by whether they mix: which names are one tensor, a stage each
MEETS = {
    False: [["0.weight", "11.weight"]],
    True: [["0.weight", "11.weight"], ["1.weight", "5.weight", "9.weight"], ["1.bias", "5.bias", "9.bias"]],
}


def by_token(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, averaged over tokens."""
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def tokens(count: int = 9, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Minibatches of sequences of five; the target of each token is another one."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (count * size, 5), generator=generator)
    return [(x, (3 * x + 1) % VOCABULARY) for x in ids.split(size)]


def model(mixing: bool = True) -> nn.Module:
    """An embedding and a head that are one tensor; with `mixing`, a layer of every stage too."""
    torch.manual_seed(0)
    often = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    for each in often[1:] if mixing else ():
        each.weight, each.bias = often[0].weight, often[0].bias
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    layers = nn.Sequential(
        *(nn.Embedding(VOCABULARY, WIDTH), often[0], nn.Tanh(), nn.Dropout(0.2)),
        *(nn.Linear(WIDTH, WIDTH), often[1], nn.Tanh()),
        *(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), often[2], nn.Tanh(), head),
    )
    head.weight = layers[0].weight
    return layers.double()


def recorded() -> nn.Module:
    """A tied GPT whose forward has to be recorded for several workers."""
    torch.manual_seed(0)
    made = GPT(checks=True, tied=True).double()
    made.drop.p = 0.0
    return made


def network(kind: str = "mixing") -> syngrad.DecoupledNetwork:
    """What is trained: the chain of modules, mixing or not, or the one that is recorded."""
    if kind == "recorded":
        return syngrad.decouple(recorded(), cuts=["blocks.1", "norm"])
    return syngrad.decouple(model(kind == "mixing"), cuts=CUTS)


def guess(inputs: tuple[int, ...], message: tuple[int, ...]) -> nn.Module:
    """What predicts a stage's input from the tokens."""
    return nn.Embedding(VOCABULARY, message[-1]).double()


def trainer(net: syngrad.DecoupledNetwork | None = None, **options: Any) -> syngrad.Trainer:
    """Three stages, with Adam."""
    given: dict[str, Any] = {
        "loss": by_token,
        "estimator": "linear",
        "optimizer": lambda p: torch.optim.Adam(p, 1e-2),
        "progress": False,
        "quality_every": 0,
        "true_every": 0,
    }
    if options.get("inputs") == "guess":
        options["inputs"] = guess
    return syngrad.Trainer(net or network(), **keywords(**{**given, **options}))


def left(made: syngrad.Trainer, history: History) -> dict[str, Any]:
    """What a run leaves."""
    return {
        "model": dict(made.model.state_dict()),
        "tied": len(list(made.model.parameters())) < len(list(made.model.named_parameters(remove_duplicate=False))),
        "losses": [each.train_loss for each in history.epochs],
        "points": [metrics for _, _, metrics in history.points],
        "processes": history.processes,
    }


def run(options: dict[str, Any], fit: dict[str, Any] | None = None, kind: str = "mixing") -> dict[str, Any]:
    """Two epochs, validated within them too."""
    made = trainer(network(kind), **options)
    data = tokens()
    history = made.fit(data, **{"epochs": 2, "validate": data, "validate_every": 5, **(fit or {})})
    return left(made, history)


def main(folder: str, cases: str) -> None:
    """Take the cases in turn."""
    torch.set_num_threads(1)
    from syngrad.launch.parent_death import die_with_parent
    from syngrad.links.world import world

    die_with_parent()
    for case in json.loads(cases):
        found = run(case["options"], case["fit"], case["kind"])
        torch.save(found, Path(folder) / f"{case['name']}.{world().rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
