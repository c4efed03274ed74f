"""Interrupt a run, go on from its checkpoint, and arrive at the very weights of a run that was never interrupted."""

import signal
import tempfile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.callbacks import Callback
from syngrad.data import TensorBatches, fashion_mnist


class CtrlC(Callback):
    """Does what you would do at the keyboard, in the middle of an epoch."""

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        if trainer.minibatches == 10:
            signal.raise_signal(signal.SIGINT)


def made() -> syngrad.Trainer:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    return syngrad.Trainer(syngrad.decouple(model, cuts=["4", "6"]), loss=F.cross_entropy, metric="accuracy")


def main(epochs: int = 3, samples: int | None = None) -> float:
    def loader() -> TensorBatches:
        return TensorBatches(*fashion_mnist(train=True, limit=samples), batch_size=128, shuffle=True, seed=0)

    test = TensorBatches(*fashion_mnist(train=False, limit=samples), batch_size=1000)
    undisturbed = made()
    undisturbed.fit(loader(), epochs, validate=test)

    with tempfile.TemporaryDirectory() as folder:
        try:
            made().fit(loader(), epochs, validate=test, save=folder, callbacks=[CtrlC()])
        except KeyboardInterrupt as interrupted:
            print(interrupted)
        # in a process of its own, as a rule: the same script, with the same model, data and options
        resumed = made()
        history = resumed.fit(loader(), epochs, validate=test, save=folder, resume=True)

    pairs = zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    accuracy = history.epochs[-1].metrics["accuracy"]
    print(f"the same weights to the last bit, test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
