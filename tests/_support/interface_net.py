"""A small network with an interface on each cut, and the estimators that stand there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Interface

N, WIDTH, CLASSES = 8, 5, 3
HEAD = {"loss": F.cross_entropy, "output": CLASSES}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {},
    "low_rank": {},
    "local": HEAD,
    "sobolev(hidden=1)": HEAD,
    "default": HEAD,
}


class Net(nn.Module):
    """Three layers with an interface on each cut; `interfaces` may be empty."""

    def __init__(self, *interfaces: nn.Module, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(2))
        self.top = nn.Linear(WIDTH, CLASSES, dtype=dtype)
        self.interfaces = nn.ModuleList(interfaces)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if i < len(self.interfaces):
                x = self.interfaces[i](x, y)
        return self.top(x)


def batch(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, WIDTH, dtype=dtype, generator=generator)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def interface(estimator: Any = "linear", **options: Any) -> Interface:
    options = {"classes": CLASSES, **options}
    return Interface(estimator, **options)


def bound(net: nn.Module, *args: Any) -> nn.Module:
    """Bound, with estimators at weights that are not zero."""
    with torch.no_grad():
        net(*args)
        torch.manual_seed(11)
        for module in net.modules():
            if isinstance(module, Interface):
                for q in module.parameters():
                    q.normal_(std=0.3)
    return net


def base_grads(net: Net) -> list[Tensor]:
    return [q.grad.clone() for q in [*net.layers.parameters(), *net.top.parameters()]]
