"""The mean over replicas: the same in each to the last bit, by weight, and in no more bytes than it says."""

from __future__ import annotations

import pytest
import torch
from tests._support.replica_threads import ThreadGroup, replicas, vectors

from syngrad.replicas.encoding import DTYPES
from syngrad.replicas.exchange import mean

#: how far off, in parts of the largest number
OFF = {"float32": 1e-12, "bfloat16": 2**-7, "int8": 1.02 / 127}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "count"), [(1, 5), (2, 700), (3, 1), (3, 2000)])
def test_it_is_the_mean_and_the_same_everywhere(size: int, count: int, dtype: str) -> None:
    x = vectors(size, count, torch.float64)
    weights = [1.0, 0.5, 2.0][:size]
    found = replicas(size, lambda group: mean(group, x[group.rank], weights, dtype))
    expected = sum(w * each for w, each in zip(weights, x, strict=True)) / sum(weights)
    largest = max(each.abs().max().item() for each in x)
    for values, _ in found:
        assert torch.equal(values, found[0][0])
        assert (values - expected).abs().max() <= OFF[dtype] * largest


def test_what_does_not_count_is_not_looked_at() -> None:
    x = [torch.full((10,), float("nan")), torch.arange(10.0)]
    found = replicas(2, lambda group: mean(group, x[group.rank], [0.0, 1.0], "int8"))
    assert torch.allclose(found[0][0], x[1], atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_are_those_that_are_sent(dtype: str) -> None:
    class Counting(ThreadGroup):
        sent = 0

        def all_to_all(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
            self.sent += sum(part.numel() for rank, part in enumerate(parts) if rank != self.rank)
            return super().all_to_all(parts)

        def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
            self.sent += (self.size - 1) * part.numel()
            return super().all_gather(part)

    def run(group: ThreadGroup) -> tuple[int, int]:
        counting = Counting(**{name.lstrip("_"): value for name, value in vars(group).items()})
        return mean(counting, torch.randn(5000), [1.0] * group.size, dtype)[1], counting.sent

    for said, sent in replicas(3, run):
        assert said == sent > 0
