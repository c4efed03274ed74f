"""Train a network whose four stages do not wait for each other, on images that come with Syngrad."""

import torch
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches, fashion_mnist


def main(epochs: int = 3, samples: int | None = None) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256), nn.ReLU(),
        nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip
    train = TensorBatches(*fashion_mnist(train=True, limit=samples), batch_size=256, shuffle=True, seed=0)
    test = TensorBatches(*fashion_mnist(train=False, limit=samples), batch_size=1000)

    net = syngrad.decouple(model, cuts=["3", "5", "7"])  # a name starts a new stage
    trainer = syngrad.Trainer(net, loss=F.cross_entropy, metric="accuracy")
    history = trainer.fit(train, epochs=epochs, validate=test)

    for epoch in history.epochs:
        print(f"epoch {epoch.epoch}: loss {epoch.train_loss:.3f}, accuracy {epoch.metrics['accuracy']:.3f}")
    for interface in history.interfaces:
        print(f"interface before {interface['cut']}: cosine to the gradient that came back {interface['cosine']:.2f}")
    return history.epochs[-1].metrics["accuracy"]


if __name__ == "__main__":
    main()
