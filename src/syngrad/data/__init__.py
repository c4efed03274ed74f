"""Data for experiments: a loader over tensors in memory, Fashion-MNIST, a part of which comes with the package, and
sets that `syngrad data fetch` brings.

Syngrad trains from any iterable of minibatches, `torch.utils.data.DataLoader` included. What is here makes the built-in
experiments run at once and without a network, and keeps the loader out of what they measure.
"""

from syngrad.data.batches import TensorBatches
from syngrad.data.load import cifar10, fashion_mnist, gutenberg, mnist

__all__ = ["TensorBatches", "cifar10", "fashion_mnist", "gutenberg", "mnist"]
