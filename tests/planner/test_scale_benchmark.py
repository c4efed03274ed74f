"""The benchmark that simulates layouts at scale: the model that it states, and rows that are what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests._support.benchmark_modules import imported

NAMES = ("common", "model", "main")


@pytest.fixture
def modules() -> Iterator[dict[str, Any]]:
    with imported(NAMES, "scale") as found:
        yield found


def test_the_models_have_the_size_of_their_names(modules: dict[str, Any]) -> None:
    sizes = {name: each.parameters for name, each in modules["model"].MODELS.items()}
    assert sizes == pytest.approx({"1.3B": 1.4e9, "13B": 13.1e9}, rel=0.03)
    # eight FLOPs a weight and token with the second forward pass, beside attention
    one = modules["model"].profile(modules["model"].MODELS["13B"], 1)
    flops = sum(unit.forward_s + unit.backward_s for unit in one.units) * 312e12 * 0.4
    assert flops / (8 * 2048 * sizes["13B"]) == pytest.approx(1.0, rel=0.1)
    assert one.units[1].message_bytes == 2048 * 5120 * 4
    assert one.units[-1].message_bytes == 0


def test_rows_have_all_workers_and_as_many_sequences(modules: dict[str, Any]) -> None:
    main = modules["main"]
    model, link = modules["model"].MODELS["1.3B"], main.PLACES["site"][0]
    for row in main.ROWS:
        for each, cluster, layout in main.layouts(row, model, 64, link, 2, False):
            workers = cluster.workers * layout.replicas
            assert workers == (1 if row == "alone" else 64), row
            apart = cluster.workers if layout.kind == "diloco" else layout.replicas
            assert each.batch_size * apart in (2 * 64, 32, 32 * 64), row
            if layout.family == "stages":
                assert layout.message_dtype == "bfloat16"
                assert layout.averaged_every == 100
            if layout.family == "microbatches" and layout.cuts:
                assert layout.microbatches == 32


def test_a_rack_a_pipeline_has_the_link_between_pipelines_alone(modules: dict[str, Any]) -> None:
    main = modules["main"]
    link = main.PLACES["internet"][0]
    ((_, cluster, _),) = main.layouts("1f1b", modules["model"].MODELS["1.3B"], 64, link, 2, True)
    assert (cluster.link, cluster.apart) == (main.PLACES["rack"][0], link)


def test_a_cell_is_the_same_whenever_it_is_computed(modules: dict[str, Any]) -> None:
    main = modules["main"]
    model, (link, mean_s, variation) = modules["model"].MODELS["1.3B"], main.PLACES["internet"]
    given = {"variation": variation, "failing": main.failures(model, link, mean_s)}
    one = main.cell("synthetic:local", model, 32, link, **given)
    assert one == main.cell("synthetic:local", model, 32, link, **given)
    assert 0 < one["share"] < 1
    assert main.cell("diloco", modules["model"].MODELS["13B"], 32, link)["why"] == "does not fit"
