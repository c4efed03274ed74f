"""Data that would have to be fetched, made up instead: a few pictures, and a text of which enough can be learnt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from syngrad.experiments import char_gpt, image_data

LINE = "the cat sat on the mat; the dog did not.\n"


def made_up_images(*, train: bool) -> tuple[Tensor, Tensor]:
    """48 pictures to learn from, 8 to test."""
    count, generator = 48 if train else 8, torch.Generator().manual_seed(int(train))
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No experiment reads anything from a cache folder here, and none keeps what it was given."""
    monkeypatch.setattr(image_data, "cifar10", made_up_images)
    monkeypatch.setattr(char_gpt, "gutenberg", lambda: LINE * 300)
    monkeypatch.setattr(char_gpt, "PIECE", 4)
    caches = (image_data.cifar_images, char_gpt.text, char_gpt.windows)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()
