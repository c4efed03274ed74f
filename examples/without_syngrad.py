"""A model trained with Syngrad, used where there is none: its weights are a plain safetensors file."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


def network() -> nn.Sequential:
    """The model, as it stands in your own code."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def train(folder: str, epochs: int, samples: int | None) -> None:
    """Here Syngrad is needed."""
    import syngrad
    from syngrad.data import TensorBatches, fashion_mnist

    torch.manual_seed(0)
    loader = TensorBatches(*fashion_mnist(train=True, limit=samples), batch_size=128, shuffle=True, seed=0)
    trainer = syngrad.Trainer(syngrad.decouple(network(), cuts=["3"]), loss=nn.functional.cross_entropy)
    trainer.fit(loader, epochs, save=folder)


def use(folder: str, images: torch.Tensor) -> torch.Tensor:
    """Here it is not: only torch and safetensors."""
    model = network()
    newest = max(Path(folder).glob("*/model.safetensors"))
    model.load_state_dict(load_file(newest))
    model.eval()
    with torch.no_grad():
        return model(images).argmax(1)  # type: ignore[no-any-return]


def main(epochs: int = 2, samples: int | None = None) -> float:
    from syngrad.data import fashion_mnist

    images, labels = fashion_mnist(train=False, limit=samples)
    with tempfile.TemporaryDirectory() as folder:
        train(folder, epochs, samples)
        accuracy = (use(folder, images) == labels).float().mean().item()
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
