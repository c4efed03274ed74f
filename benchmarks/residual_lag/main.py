"""Residual networks under the default estimator, and what was tried where it lags. See README.md.

python benchmarks/residual_lag/main.py --tasks llama gpt --rows backprop zero default --seeds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write

import syngrad
from syngrad.estimators import Binding, Head

RESULTS = Path(__file__).parent / "results" / "residual_lag.json"
VOCABULARY, LENGTH, WIDTH, BATCH = 97, 12, 32, 8


class Attention(nn.Module):
    """Causal, four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (part.view(n, t, 4, width // 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(made.transpose(1, 2).reshape(n, t, width))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Llama's feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.into = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.into(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm: h + f(norm(h)), twice."""

    def __init__(self, width: int, llama: bool) -> None:
        super().__init__()
        norm = nn.RMSNorm if llama else nn.LayerNorm
        self.norm1, self.norm2, self.attention = norm(width), norm(width), Attention(width)
        wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.feed = Gated(width) if llama else wide

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class Embedding(nn.Module):
    """Tokens and, as GPT has them, places."""

    def __init__(self, llama: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x) + self.places  # type: ignore[no-any-return]


def language_model(llama: bool) -> nn.Sequential:
    """Four blocks, a stage each."""
    blocks = [Block(WIDTH, llama) for _ in range(4)]
    norm = nn.RMSNorm(WIDTH) if llama else nn.LayerNorm(WIDTH)
    return nn.Sequential(Embedding(llama), *blocks, norm, nn.Linear(WIDTH, VOCABULARY, bias=False))


class Residual(nn.Module):
    """h + f(norm(h)) of vectors, or of pictures."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)  # type: ignore[no-any-return]


def dense_autoencoder() -> nn.Sequential:
    """Vectors of 64 through 16 numbers, by residual blocks on both sides."""

    def block(width: int) -> nn.Module:
        parts = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        return Residual(nn.Sequential(*parts))

    return nn.Sequential(
        nn.Linear(64, 64), block(64), block(64), nn.Linear(64, 16), nn.Linear(16, 64), block(64), nn.Linear(64, 64)
    )


def conv_autoencoder() -> nn.Sequential:
    """Pictures of one channel, 16×16, through 8 channels of 4×4."""

    def block(width: int) -> nn.Module:
        parts = nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        return Residual(nn.Sequential(*parts))

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), block(16), nn.Conv2d(16, 8, 3, stride=2, padding=1), block(8),
        nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1), block(16), nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
    )  # fmt: skip


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all tokens."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def tokens(order: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """Random tokens; the label is a fixed function of the last one, or of the last two."""
    table = torch.randint(VOCABULARY, (VOCABULARY, VOCABULARY), generator=torch.Generator().manual_seed(5))

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(VOCABULARY if order == 1 else 12, (n, LENGTH), generator=generator)
        before = torch.cat([x.new_zeros(n, 1), x[:, :-1]], 1)
        return x, ((x + 1) % VOCABULARY if order == 1 else table[x, before])

    return draw


def vectors(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """On a curved surface of 12 dimensions in 64."""
    mixing = torch.Generator().manual_seed(5)
    a, b = torch.randn(12, 40, generator=mixing) * 0.4, torch.randn(40, 64, generator=mixing) * 0.25
    x = torch.tanh(torch.randn(n, 12, generator=generator) @ a) @ b
    return x, x


def pictures(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two waves each, of drawn lengths and phases."""
    place = torch.arange(16.0)
    k = torch.rand(n, 4, 1, 1, generator=generator) * 0.6
    phase = torch.rand(n, 2, 1, 1, generator=generator) * 6
    y, x = place.view(1, -1, 1), place.view(1, 1, -1)
    waves = [torch.sin(k[:, i] * x + k[:, i + 2] * y + phase[:, i]) for i in (0, 1)]
    made = (waves[0] + waves[1]).unsqueeze(1)
    return made, made


@dataclass
class Task:
    """A model, where it is cut, its data and loss."""

    model: Callable[[], nn.Module]
    cuts: list[str]
    data: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Any, Any], Tensor]
    count: Callable[[Any], float] | None = None
    steps: int = 200


TOKENS = {"loss": token_loss, "count": lambda target: float(target.numel())}
TASKS = {
    "llama": Task(lambda: language_model(True), ["2", "3", "4"], tokens(1), **TOKENS),
    "gpt": Task(lambda: language_model(False), ["2", "3", "4"], tokens(1), **TOKENS),
    "llama, two tokens": Task(lambda: language_model(True), ["2", "3", "4"], tokens(2), **TOKENS),
    "dense autoencoder": Task(dense_autoencoder, ["2", "4", "5"], vectors, F.mse_loss, steps=400),
    "conv autoencoder": Task(conv_autoencoder, ["2", "4", "5"], pictures, F.mse_loss, steps=400),
}


class Tangential(Head):
    """A head whose estimate has no part along h: what lengthens a token helps the head, and no norm behind it."""

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """As the head's, less its part along h, token by token."""
        made, kept = super().estimate(h, context, scale, keep)
        along = (made * h).sum(-1, keepdim=True) / h.square().sum(-1, keepdim=True).clamp_min(1e-12)
        return made - along * h, kept


def without_radial_part(binding: Binding) -> Tangential:
    """The default head, but for that."""
    return Tangential(norm=None, learning_rate=None, derivative=None, feedback_every=4)


ROWS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "zero": {"method": "zero"},
    "default": {},
    "local": {"estimator": "local"},
    "rate 1": {"estimator": "default(learning_rate=1.0)"},
    "rate 30": {"estimator": "default(learning_rate=30.0)"},
    "normalised": {"estimator": "default(norm=True)"},
    "normalised, rate 30": {"estimator": "default(norm=True, learning_rate=30.0)"},
    "normalised, derivative 10": {"estimator": "default(norm=True, derivative=10.0)"},
    "no radial part": {"estimator": without_radial_part},
    "not normalised": {"estimator": "default(norm=False)"},
    "hidden 128": {"estimator": "default(hidden=1, width=128)"},
    "derivative 10": {"estimator": "default(derivative=10.0)"},
}


def run(task: Task, row: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure the loss on data that was not seen, and how good the estimates were."""
    torch.manual_seed(seed)
    model = task.model()
    given = dict(row)
    kind = given.pop("feedback", "bootstrapped")
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=task.cuts), loss=task.loss, loss_count=task.count, seed=seed, progress=False,
        optimizer=lambda params: torch.optim.Adam(params, 1e-3, fused=True),
        feedback=syngrad.Feedback(kind, true_every=40, quality_every=40), **given,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1000 + seed)
    held = task.data(256, torch.Generator().manual_seed(77))
    curve = []
    for step in range(task.steps):
        trainer.step(task.data(BATCH, generator))
        if step % 50 == 49:
            model.eval()
            with torch.no_grad():
                curve.append(task.loss(model(held[0]), held[1]).item())
            model.train()
    return {
        "loss": curve[-1],
        "curve": curve,
        "guarded": trainer.guarded,
        "true_cosine": [quality.summary()["true_cosine"] for quality in trainer.quality],
        "true_norm_ratio": [quality.summary()["true_norm_ratio"] for quality in trainer.quality],
        "true_history": [[list(sample) for sample in quality.true] for quality in trainer.quality],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Any] = json.loads(given.results.read_text())["runs"] if given.results.exists() else {}
    for name in given.tasks:
        for row in given.rows:
            found = runs.setdefault(name, {}).setdefault(row, {})
            for seed in range(given.seeds):
                if str(seed) not in found:
                    found[str(seed)] = run(TASKS[name], ROWS[row], seed)
                    write(given.results, {"claim": "residual_lag", "runs": runs})
            losses = [found[str(seed)]["loss"] for seed in range(given.seeds)]
            cosines = [found["0"][f"true_{figure}"] for figure in ("cosine", "norm_ratio")]
            shown = [[f"{x:.2f}" if x is not None else "–" for x in each] for each in cosines]
            print(
                f"{name:20} {row:26} {statistics.mean(losses):8.4f}  {losses}  cosine {shown[0]} ratio {shown[1]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
