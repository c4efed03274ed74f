"""A model with several inputs, fed by a DataLoader whose minibatches are mappings."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import syngrad
from syngrad.data import fashion_mnist


class Halves(Dataset[dict[str, Tensor]]):
    """An image as its upper and its lower half; the target's key is one of the usual ones, the rest are inputs."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.flatten(1), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        upper, lower = self.images[index].chunk(2)
        return {"upper": upper, "lower": lower, "label": self.labels[index]}


class TwoEyes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(392, 64), nn.Linear(392, 64)
        self.middle = nn.Sequential(nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:
        both = torch.cat([self.up(upper).relu(), self.down(lower).relu()], 1)
        scores: Tensor = self.head(self.middle(both))
        return scores


def main(epochs: int = 2, samples: int | None = None) -> float:
    torch.manual_seed(0)
    train: DataLoader[Any] = DataLoader(Halves(*fashion_mnist(train=True, limit=samples)), 128, shuffle=True)
    test: DataLoader[Any] = DataLoader(Halves(*fashion_mnist(train=False, limit=samples)), 1000)
    net = syngrad.decouple(TwoEyes(), cuts=["middle", "head"])
    trainer = syngrad.Trainer(net, loss=F.cross_entropy, metric="accuracy")
    history = trainer.fit(train, epochs=epochs, validate=test)
    accuracy = history.epochs[-1].metrics["accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
