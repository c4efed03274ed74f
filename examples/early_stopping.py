"""Callbacks: end a run when nothing becomes better, and say something of your own on the way."""

import torch
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.callbacks import Callback, EarlyStopping
from syngrad.data import TensorBatches, fashion_mnist
from syngrad.trainer.history import Epoch


class Report(Callback):
    """A line an epoch. `trainer.stop()` here, under whatever condition, would end the run."""

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        cosines = [quality.history[-1].cosine for quality in trainer.quality if quality.history]
        mean = sum(cosines) / max(len(cosines), 1)
        print(f"epoch {record.epoch}: loss {record.metrics['loss']:.3f}, cosine of the estimates {mean:.2f}")


def main(epochs: int = 50, samples: int | None = 1000) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    train = TensorBatches(*fashion_mnist(train=True, limit=samples), batch_size=128, shuffle=True, seed=0)
    test = TensorBatches(*fashion_mnist(train=False), batch_size=1000)
    trainer = syngrad.Trainer(syngrad.decouple(model, cuts=["3"]), loss=F.cross_entropy, metric="accuracy")
    stopping = EarlyStopping(patience=3, least=0.002)  # looks at the metric, or at "loss" if told so
    history = trainer.fit(train, epochs, validate=test, callbacks=[stopping, Report()])
    best = max(record.metrics["accuracy"] for record in history.epochs)
    print(f"ended after {len(history.epochs)} of {epochs} epochs, best test accuracy {best:.3f}")
    return best


if __name__ == "__main__":
    main()
