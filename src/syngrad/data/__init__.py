"""Data for experiments: a loader over tensors in memory, and Fashion-MNIST, a part of which comes with the package.

Syngrad trains from any iterable of minibatches, `torch.utils.data.DataLoader` included. What is here makes the built-in
experiments run at once and without a network, and keeps the loader out of what they measure.
"""

from syngrad.data.batches import TensorBatches
from syngrad.data.fashion import fashion_mnist

__all__ = ["TensorBatches", "fashion_mnist"]
