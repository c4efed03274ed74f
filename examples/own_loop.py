"""An interface in a training loop of one's own: any graph, any optimiser, and the estimator is trained on the way."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches, fashion_mnist


class Classifier(nn.Module):
    """An encoder and a head that learn from each other only through an interface."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU())
        self.interface = syngrad.Interface("linear", classes=10)
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.interface(self.encoder(x), context=y)  # forward h, backward λ·received + (1−λ)·δ̂
        scores: Tensor = self.head(h)
        return scores


def main(epochs: int = 2, samples: int | None = None) -> float:
    torch.manual_seed(0)
    model = Classifier()
    train = TensorBatches(*fashion_mnist(train=True, limit=samples), batch_size=128, shuffle=True, seed=0)
    x, y = next(iter(train))
    with torch.no_grad():
        model(x, y)  # sizes come from the first message, as with PyTorch's lazy modules: before the optimiser
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, y), y)
            loss.backward()  # fills the estimator's .grad too
            optimizer.step()
        print(f"epoch {epoch + 1}: last loss {loss.item():.3f}")
    model.eval()  # the interface is the identity now
    images, labels = fashion_mnist(train=False, limit=samples)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
