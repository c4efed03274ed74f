"""Targets that are numbers: the default estimator is a head, and takes the loss as it is."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches


def made_up(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two sums of waves of eight numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 8, generator=generator) * 2 - 1
    return x, torch.stack([(2 * x[:, :4]).sin().sum(1), (3 * x[:, 4:]).cos().sum(1)], 1)


def main(epochs: int = 12, samples: int | None = None) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    train = TensorBatches(*made_up(samples or 5000, seed=0), batch_size=100, shuffle=True, seed=0)
    x, y = made_up(1000, seed=1)
    # a mean over samples, as all losses are here: mse_loss alone would average over the two numbers as well
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=["2", "4"]),
        loss=lambda output, target: F.mse_loss(output, target, reduction="sum") / len(target),
        optimizer=lambda groups: torch.optim.Adam(groups, 3e-3),
        metric="mse",
    )
    history = trainer.fit(train, epochs=epochs, validate=[(x, y)])
    left = history.epochs[-1].metrics["mse"] / y.var(0).mean().item()
    print(f"unexplained share of the variance {left:.3f}")
    return left


if __name__ == "__main__":
    main()
