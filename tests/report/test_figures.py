"""Figures are plain data that Plotly accepts, each row with a style of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.report import made

from syngrad.report import bars, figures, gradient_quality
from syngrad.report.bars import broken
from syngrad.report.figures import Figure, over_seeds
from syngrad.report.measured import Measured, measured
from syngrad.report.style import styles
from syngrad.results import Aggregate


def all_figures(m: Measured) -> list[Figure]:
    one = [bars.target_time(m), figures.tradeoff(m), gradient_quality.by_interface(m)]
    more = [gradient_quality.over_time(m), bars.step_split(m), bars.memory(m)]
    return [figure for figure in [*figures.learning(m), *one, *more] if figure is not None]


def plain(node: Any) -> Any:
    """A figure with black for every colour of the style sheet."""
    if isinstance(node, list):
        return [plain(each) for each in node]
    if isinstance(node, dict):
        return "#000000" if "$css" in node else {key: plain(each) for key, each in node.items()}
    return node


@pytest.mark.parametrize("document", [made.results(), made.hostile(), made.old()], ids=["whole", "hostile", "old"])
def test_plotly_takes_every_figure(document: dict[str, Any]) -> None:
    from plotly.graph_objects import Figure as Drawn

    drawn = all_figures(measured(document))
    assert len(drawn) >= 5
    for figure in drawn:
        for panel in figure.panels:
            Drawn(plain(panel.data), plain(panel.layout))  # raises for what Plotly does not know
            json.dumps(panel.data, allow_nan=False)


def test_names_reach_plotly_escaped() -> None:
    m = measured(made.hostile())
    for figure in all_figures(m):
        for panel in figure.panels:
            text = json.dumps([panel.data, panel.layout])
            assert "<img" not in text
            assert "<script" not in text
            assert "<a " not in text


def test_no_two_rows_look_the_same() -> None:
    rows = [Aggregate("backprop", "", "ok", 1, "m", True)]
    rows += [Aggregate("synthetic", str(k), "ok", 1, "m", True) for k in range(40)]
    made_ = styles(rows)
    assert len({(style.colour, style.dash, style.marker) for style in made_}) == 41
    assert [style.index for style in made_] == list(range(41))
    assert (made_[0].colour, made_[0].dash) == (0, "solid")
    assert len({style.dash for style in made_[:8]}) >= 7


def test_a_curve_over_seeds_is_the_mean_with_the_lowest_and_the_highest() -> None:
    curve = over_seeds([[(1, 10.0, 0.5), (2, 20.0, 0.7)], [(1, 14.0, 0.7), (2, 24.0, 0.8), (3, 30.0, 1.0)]], 2, 1)
    assert curve.x == [1, 2]
    assert curve.mean == pytest.approx([0.6, 0.75])
    assert curve.seconds == [12.0, 22.0]
    assert curve.band(curve.x) == ([1, 2, 2, 1], [0.7, 0.8, 0.7, 0.5])


def test_a_curve_with_holes() -> None:
    curve = over_seeds([[(1, 1.0, None), (2, 2.0, float("nan")), (3, 3.0, 0.5)]], 2, 1)
    assert curve.mean == [None, None, 0.5]
    assert curve.last == 0.5
    assert curve.band(curve.x) is None
    assert over_seeds([], 2).x == []


def test_the_split_of_a_step_adds_up() -> None:
    m = measured(made.results())
    figure = bars.step_split(m)
    assert figure is not None
    data = figure.panels[0].data
    assert [trace["name"] for trace in data] == ["forward", "backward", "estimator", "optimizer"]
    assert sum(trace["x"][1] for trace in data) == pytest.approx(3.0)
    assert len({trace["marker"]["pattern"]["shape"] for trace in data}) == 4


def test_many_interfaces_are_thinned_and_the_caption_says_so() -> None:
    document = made.results(seeds=1)
    for each in document["results"]:
        each["interfaces"] = (
            [{**each["interfaces"][0], "cut": f"layer.{k}"} for k in range(30)] if each["interfaces"] else []
        )
    for each in document["aggregate"]:
        each["cosines"] = {f"layer.{k}": 0.5 for k in range(30)}
    figure = gradient_quality.over_time(measured(document))
    assert figure is not None
    assert len(figure.panels) == gradient_quality.PANELS
    assert "12 of 30 interfaces are drawn" in figure.caption
    assert "layer.29" in figure.panels[-1].heading


def test_far_norm_ratios_are_drawn_on_a_logarithmic_scale() -> None:
    document = made.results(seeds=1)
    document["results"][1]["interfaces"][0]["history"] = [[0, 0.1, 0.01, 0, 0], [50, 0.1, 100.0, 0, 0]]
    figure = gradient_quality.over_time(measured(document))
    assert figure is not None
    scales = [panel.layout["yaxis2"].get("type") for panel in figure.panels]
    assert scales == ["log", None]


def test_a_long_name_is_broken_into_lines() -> None:
    assert broken("synthetic:mlp(hidden=2,width=64)") == ["synthetic:mlp(", "hidden=2,width=64)"]
    assert broken("zero") == ["zero"]
    assert broken("x" * 500) == ["x" * 20] * 3 + ["x" * 19 + "…"]
    m = measured(made.results((("backprop", ""), ("synthetic", "a<b>" * 9)), failed=False))
    figure = bars.target_time(m)
    assert figure is not None
    assert figure.panels[0].layout["yaxis"]["ticktext"][1].startswith("synthetic:<br>a&lt;b&gt;a&lt;b&gt;")
