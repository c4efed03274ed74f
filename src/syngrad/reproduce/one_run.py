"""One case with one seed, trained by the code that `syngrad train` and `syngrad compare` use."""

from __future__ import annotations

import torch

from syngrad.compare import RecurrentComparison
from syngrad.compare.training import Training
from syngrad.errors import TrainingError, first_line
from syngrad.recurrent import RecurrentExperiment
from syngrad.reproduce.study import Case
from syngrad.results import Row

#: what is measured on the way costs time, and nobody asks for it here
UNSAMPLED = {"quality_every": 0, "true_every": 0}


def train(case: Case, seed: int, threads: int = 1, device: torch.device | None = None) -> Row:
    """The run as a row of results; one that breaks off is a row too, whose status says why.

    Args:
        case: What is trained.
        seed: Of weights and data.
        threads: PyTorch's.
        device: Of a feed-forward net, as the Trainer has it; recurrent ones are trained on the CPU.

    Raises:
        ConfigError: what cannot be used, data that is not there before all.
    """
    experiment = case.recipe.experiment()
    if isinstance(experiment, RecurrentExperiment):
        text = case.method if case.estimator is None else f"{case.method}:{case.estimator}"
        comparison = RecurrentComparison(experiment, [text], seed=seed, threads=threads)
        row = comparison.new_row(comparison.keys[0], seed)
        comparison.train(comparison.keys[0], row)
        return row
    options = {**UNSAMPLED, **case.options, **({} if device is None else {"device": device})}
    training = Training(experiment, case.method, case.estimator, seed, threads, options, progress=False)
    try:
        return training.run()
    except TrainingError as error:
        return Row(case.method, case.estimator or "", seed, f"failed: {first_line(error)}", metric="accuracy")
