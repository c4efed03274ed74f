"""Data that would have to be fetched, made up instead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from syngrad.experiments import char_gpt, char_lm, image_data, row_mnist, two_clocks
from syngrad.reproduce import recipes

SHAPES = {"MNIST": (1, 28, 28), "CIFAR-10": (3, 32, 32)}


def made_up_images(data: str, train: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(int(train))
    return torch.randn(24, *SHAPES[data], generator=generator), torch.randint(10, (24,), generator=generator)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No study reads anything from a cache folder here, and none keeps what it was given."""
    monkeypatch.setattr(recipes, "images", made_up_images)
    for module in (image_data, row_mnist, two_clocks):
        monkeypatch.setattr(module, "digits", lambda train: (*made_up_images("MNIST", train), "made-up digits"))
    monkeypatch.setattr(two_clocks, "EXAMINED", 2)
    monkeypatch.setattr(char_gpt, "gutenberg", lambda: "the cat sat on the mat; the dog did not.\n" * 300)
    monkeypatch.setattr(char_lm, "STREAMS", 2)
    monkeypatch.setattr(char_lm, "EXAMINED", 20)
    caches = (char_gpt.text, char_lm.parts)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()
