"""Gradients written out by hand for the estimators that stand at every layer: no graph, a handful of operations.

Autograd costs two to four times the arithmetic here, because the matrices are small. Shapes: h (n, f), labels (n,);
weights as `nn.Linear` keeps them, (out, in). A head's scores are s = W·h + b, or W·z + b with z = relu(V·h + c). With
softmax cross-entropy the error is e = scale·(softmax(s) − onehot(y)), and the gradient that a head gives is

    δ̂ = e·W            without a hidden layer
    δ̂ = u·V            with one, where u = (e·W) ⊙ [z > 0]

The derivative fit (Sobolev training, Czarnecki et al. 2017, arXiv 1706.04859) minimises weight·Σ‖δ̂ − g‖²/scale: it
differentiates the expressions above once more, through the softmax's Jacobian diag(p) − p·pᵀ. Where h is normalised
first, x = (h − mean)·rstd, its Jacobian rstd·(I − 1·1ᵀ/f − x·xᵀ/f) is symmetric, and one function serves both ways.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor


def softmax_error(scores: Tensor, labels: Tensor, scale: float) -> Tensor:
    """e = scale·(softmax(s) − onehot(y)), (n, classes): the gradient of scale·Σ cross-entropy with respect to s."""
    error = scores.softmax(1)
    error.scatter_add_(1, labels.unsqueeze(1), error.new_full((1, 1), -1.0).expand(labels.shape[0], 1))
    return error.mul_(scale)


def through_softmax(error: Tensor, labels: Tensor, grad_error: Tensor, scale: float) -> Tensor:
    """∂/∂s of ⟨grad_error, e(s)⟩ = scale·p ⊙ (grad_error − ⟨p, grad_error⟩), with p got back from e; (n, classes)."""
    p = error / scale
    p.scatter_add_(1, labels.unsqueeze(1), p.new_ones((1, 1)).expand(labels.shape[0], 1))
    return (grad_error - (p * grad_error).sum(1, keepdim=True)).mul_(p).mul_(scale)


def linear_regressor_grads(h: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """(∂W, ∂b) of δ̂ = W·h + b for the gradient `residual` (n, f) with respect to scale·δ̂."""
    return residual.t() @ h, residual.sum(0)


def label_grads(labels: Tensor, residual: Tensor, classes: int) -> Tensor:
    """∂C (classes, f) of δ̂ = C[y]: rows of `residual` summed by label."""
    return residual.new_zeros(classes, residual.shape[1]).index_add_(0, labels, residual)


def hidden_units(h: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """z = relu(V·h + c), (n, hidden)."""
    return torch.addmm(c, h, v.t()).relu_()


def masked(gradient: Tensor, z: Tensor) -> Tensor:
    """gradient ⊙ [z > 0]: relu's derivative."""
    result: Tensor = torch.ops.aten.threshold_backward(gradient, z, 0)
    return result


#: mean and reciprocal standard deviation of each row
Statistics: TypeAlias = tuple[Tensor, Tensor]


def normalised(h: Tensor) -> tuple[Tensor, Statistics]:
    """Rows of h (n, f) with mean 0 and variance 1, as `nn.LayerNorm(f, elementwise_affine=False)` gives them."""
    x, mean, rstd = torch.ops.aten.native_layer_norm(h, [h.shape[1]], None, None, 1e-5)
    return x, (mean, rstd)


def through_normalisation(gradient: Tensor, h: Tensor, statistics: Statistics) -> Tensor:
    """J·gradient (n, f), with J the symmetric Jacobian of the normalisation at h."""
    mean, rstd = statistics
    width = [h.shape[1]]
    result: Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, h, width, mean, rstd, None, None, [True, False, False]
    )[0]
    return result
