"""A gradient estimator of one's own: a module with `forward(h, context)`, sized by `build`, starting at zero."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches, fashion_mnist
from syngrad.estimators import Binding, zero_


class Gated(syngrad.GradientEstimator):
    """δ̂ = W·h ⊙ [h > 0] + C[y]: where a ReLU is off nothing is sent, as with the real gradient."""

    def build(self, binding: Binding) -> None:
        self.map = zero_(nn.Linear(binding.features, binding.features))
        self.labels = zero_(nn.Embedding(binding.context.size, binding.features))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return (self.map(h) + self.labels(context)) * (h > 0)


def main(epochs: int = 2, samples: int | None = None) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    train = TensorBatches(*fashion_mnist(train=True, limit=samples), batch_size=128, shuffle=True, seed=0)
    test = TensorBatches(*fashion_mnist(train=False, limit=samples), batch_size=1000)
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=["3", "5"]), loss=F.cross_entropy, estimator=Gated, metric="accuracy"
    )
    history = trainer.fit(train, epochs=epochs, validate=test)
    for interface in history.interfaces:
        print(f"interface before {interface['cut']}: cosine {interface['cosine']:.2f}")
    accuracy = history.epochs[-1].metrics["accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
