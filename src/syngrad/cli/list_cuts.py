"""`syngrad cuts`: where a model can be cut, how evenly that divides its time, and what crosses there."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from syngrad.cli.options import EXPERIMENT, ending


@ending
def cuts(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help=EXPERIMENT)] = "fashion-mlp",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the experiment's own.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="PyTorch's threads.")] = 1,
) -> int:
    """List where a model can be cut: how evenly, what crosses, and whether for several workers too. All are tried."""
    import torch

    from syngrad.core.batch import read, unpack
    from syngrad.core.places import list_places
    from syngrad.experiments import load
    from syngrad.report.places_table import places_table

    torch.set_num_threads(threads)
    run = load(experiment, batch_size=batch_size)
    torch.manual_seed(0)
    model = run.model()
    loader, _ = run.data(run.batch_size, 0)
    batch = read(next(iter(loader)), run.options.get("unpack") or unpack, run.options.get("loss_count"), None)
    found = list_places(model, batch.args, batch.kwargs, batch.target, run.loss)
    sys.stdout.write("\n".join(places_table(found, batch.size)) + "\n")
    return 0
