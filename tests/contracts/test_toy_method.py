"""The recipe for a method, as docs/architecture.md has it, passes the suite that all methods pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contracts import test_methods as contract

from syngrad.methods.registry import RULES, parse

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
NAME = "sign"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The page's blocks, run as they stand there; what they register goes afterwards."""
    section = PAGE.read_text(encoding="utf-8").split("## Where do I add a method?")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2, "one file, one line"
    assert len([line for line in blocks[1].splitlines() if line.startswith("RULES")]) == 1
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
        yield
    finally:
        RULES.pop(NAME, None)
    assert NAME not in RULES


@pytest.mark.parametrize("check", contract.ALL.values(), ids=list(contract.ALL))
def test_the_recipe_passes(check: Callable[[str], None]) -> None:
    check(NAME)


def test_the_recipe_resumes(tmp_path: Path) -> None:
    contract.check_resuming(NAME, tmp_path)


@pytest.mark.parametrize("stages", [1, 2])
def test_the_recipe_runs_over_two_workers(stages: int) -> None:
    contract.check_two_workers(NAME, stages)


def test_the_recipe_does_what_it_says() -> None:
    assert parse(NAME).estimates
    plain, signed = contract.trainer("synthetic"), contract.trainer(NAME)
    for batch in contract.batches(4):
        plain.step(batch)
        signed.step(batch)
    assert not contract.same(contract.everything(plain), contract.everything(signed))
    (batch,) = contract.batches(1)
    signed.optimizers[0].step = lambda: None  # what has gathered stays to be looked at
    made: list[torch.Tensor] = []
    actor = signed.runner.actors[0]
    estimate = actor.estimate
    actor.estimate = lambda *given: made.extend(estimate(*given)) or made  # type: ignore[func-returns-value]
    seen: list[torch.Tensor] = []
    send = signed.runner.rule.estimate  # type: ignore[attr-defined]
    signed.runner.rule.estimate = lambda *given: seen.extend(found := send(*given)) or found  # type: ignore[attr-defined]
    signed.step(batch)
    assert torch.equal(seen[0], torch.sign(made[0]) / len(batch[0]))
