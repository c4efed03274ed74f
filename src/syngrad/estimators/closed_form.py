"""Gradients written out by hand for the estimators that stand at every layer: no graph, a handful of operations.

Autograd costs two to four times the arithmetic here, because the matrices are small. Shapes: h (n, f), labels (n,);
weights as `nn.Linear` keeps them, (out, in). What a head makes of h stands in columns, (out, n): a softmax over ten
rows runs along memory, which is faster than one over ten columns. A head's scores are s = W·h + b, or
W·z + b with z = relu(V·h + c). With softmax cross-entropy the error is e = scale·(softmax(s) − onehot(y)), and the
gradient that a head gives is, for each sample,

    δ̂ = e·W            without a hidden layer
    δ̂ = u·V            with one, where u = (e·W) ⊙ [z > 0]

The derivative fit (Sobolev training, Czarnecki et al. 2017, arXiv 1706.04859) minimises weight·Σ‖δ̂ − g‖²/scale: it
differentiates the expressions above once more, through the softmax's Jacobian diag(p) − p·pᵀ.

Where h is normalised first, x = s·h with s = (mean h² + ε)^(−1/2), x is never made: s multiplies what is small. With
v the gradient that reaches x, δ̂ = J·v = s·v − h·s³·⟨v, h⟩/f, and ⟨v, x⟩ = ⟨e, W·x⟩ is found among the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: keeps the normalisation of a row of zeros finite
EPSILON = 1e-5


def softmax_error(scores: Tensor, labels: Tensor, scale: float) -> Tensor:
    """e = scale·(softmax(s) − onehot(y)), (classes, n): the gradient of scale·Σ cross-entropy with respect to s."""
    error = scores.softmax(0)
    error.scatter_add_(0, labels.unsqueeze(0), error.new_full((1, 1), -1.0).expand(1, labels.shape[0]))
    return error.mul_(scale)


def through_softmax(error: Tensor, labels: Tensor, grad_error: Tensor, scale: float) -> Tensor:
    """∂/∂s of ⟨grad_error, e(s)⟩ = scale·p ⊙ (grad_error − ⟨p, grad_error⟩), p got back from e; (classes, n)."""
    p = error / scale
    p.scatter_add_(0, labels.unsqueeze(0), p.new_ones((1, 1)).expand(1, labels.shape[0]))
    return (grad_error - (p * grad_error).sum(0)).mul_(p).mul_(scale)


def linear_regressor_grads(h: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """(∂W, ∂b) of δ̂ = W·h + b for the gradient `residual` (n, f) with respect to scale·δ̂."""
    return residual.t() @ h, residual.sum(0)


def label_grads(labels: Tensor, residual: Tensor, classes: int) -> Tensor:
    """∂C (classes, f) of δ̂ = C[y]: rows of `residual` summed by label."""
    return residual.new_zeros(classes, residual.shape[1]).index_add_(0, labels, residual)


def affine(h: Tensor, s: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """weight·x + bias for every row x = s·h of h (n, f), or h itself without s, as columns: (out, n)."""
    if s is None:
        return torch.addmm(bias.unsqueeze(1), weight, h.t())
    return (weight @ h.t()).mul_(s).add_(bias.unsqueeze(1))


def masked(gradient: Tensor, z: Tensor) -> Tensor:
    """gradient ⊙ [z > 0]: relu's derivative."""
    result: Tensor = torch.ops.aten.threshold_backward(gradient, z, 0)
    return result


def rms_reciprocal(h: Tensor) -> Tensor:
    """s = (mean h² + ε)^(−1/2) of each row, (n,), as `nn.RMSNorm` without weights has it."""
    norm: Tensor = torch.linalg.vector_norm(h, dim=1)
    return norm.square_().div_(h.shape[1]).add_(EPSILON).rsqrt_()


def through_normalisation(gradient: Tensor, h: Tensor, s: Tensor) -> Tensor:
    """J·gradient (n, f), with J = s·(I − x·xᵀ/f) the symmetric Jacobian of the normalisation x = s·h at h."""
    dot = (gradient * h).sum(1).mul_(s.pow(3)).div_(-h.shape[1])
    return torch.addcmul(gradient * s.unsqueeze(1), h, dot.unsqueeze(1))
