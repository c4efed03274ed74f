"""The recurrent experiments: what is asked, what estimators see, and how a lesson grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from syngrad.errors import ConfigError
from syngrad.experiments import RECURRENT, char_lm, copying, image_data, load_any, row_mnist
from syngrad.recurrent import Course, RecurrentExperiment


@pytest.fixture(autouse=True)
def small_text(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(char_lm, "STREAMS", 2)
    monkeypatch.setattr(char_lm, "EXAMINED", 20)
    char_lm.parts.cache_clear()
    yield
    char_lm.parts.cache_clear()


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_every_experiment_learns_a_piece_in_each_of_its_ways(name: str) -> None:
    experiment = load_any(name, batch_size=3)
    assert isinstance(experiment, RecurrentExperiment)
    assert experiment.name == name
    assert experiment.dataset
    for way in experiment.ways(experiment.rows):
        student = experiment.student(way, 0)
        course = experiment.course(3, 0)
        assert isinstance(course, Course)
        assert math.isfinite(student.learn(course.sample()))
        assert math.isfinite(course.examine(student))
        probed = course.probe()
        if probed is not None:
            student.probe(probed)
        assert student.steps(course.take()) >= 1


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_the_seed_alone_decides_the_course(name: str) -> None:
    experiment = load_any(name, batch_size=3)
    assert isinstance(experiment, RecurrentExperiment)
    one, same, other = (experiment.course(3, seed).take() for seed in (0, 0, 1))
    flat = [torch.utils._pytree.tree_leaves((p.inputs, p.targets, p.context)) for p in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(flat[0], flat[1], strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(flat[0], flat[2], strict=True))


def test_copy_asks_for_what_was_shown() -> None:
    inputs, targets = copying.sequences(2, 3, 2, torch.Generator().manual_seed(0))
    assert inputs.shape == (2, 10, 10)
    shown = inputs[:, :3, :8]
    assert torch.equal(targets[:, 4:7], shown)
    assert torch.equal(targets[:, 7:], shown)
    assert bool((targets[:, :4] == copying.NOTHING).all())
    assert torch.equal(inputs[:, 3, 8:], torch.tensor([[1.0, 0.2]] * 2))
    assert not inputs[:, 4:].any()


def test_estimators_see_what_is_to_come() -> None:
    _, targets = copying.sequences(2, 2, 1, torch.Generator().manual_seed(0))
    seen = copying.to_come(targets, 3).view(2, 5, 3, 8)
    signs = targets * 2 - 1
    assert torch.equal(seen[:, 1, 1], signs[:, 3])  # two steps after step 1
    assert torch.equal(seen[:, 2, 0], signs[:, 3])
    assert torch.equal(seen[:, 2, 1], signs[:, 4])
    assert not seen[:, 4].any()
    assert not seen[:, 0, :2].any()


def test_the_loss_of_copy_is_over_the_bits_asked_for() -> None:
    _, targets = copying.sequences(2, 2, 1, torch.Generator().manual_seed(0))
    scores = torch.zeros_like(targets)
    assert float(copying.loss(scores, targets)) == pytest.approx(math.log(2) * 2 / 5)
    sure = (targets * 2 - 1) * 20
    assert float(copying.loss(sure, targets)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("repeating", "lessons"), [(False, [1, 2, 3, 4]), (True, [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3)])]
)
def test_a_lesson_grows_when_it_is_learnt(repeating: bool, lessons: list[object]) -> None:
    course = copying.Copying(2, 0, repeating)
    seen: list[object] = []
    for _ in lessons:
        seen.append((course.length, course.repeats) if repeating else course.length)
        piece = course.take()
        solved = course.solved
        course.heard(0.0, piece)
        while course.solved == solved:
            course.heard(0.0, piece)
    assert seen == lessons
    before = course.length, course.repeats
    for _ in range(50):
        course.heard(0.16 * math.log(2), course.take())
    assert (course.length, course.repeats) == before, "0.16 bits a step of which half ask is more than 0.15 a bit"


def test_streams_of_text_go_on_where_they_stopped() -> None:
    course = char_lm.Reading(2, 0)
    first, second = course.take(), course.take()
    assert first.stream
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    assert torch.equal(second.inputs[:, 0], first.targets[:, -1])
    characters = char_lm.parts()[2]
    seen = first.context.view(2, char_lm.PIECE, char_lm.SEEN, characters).argmax(-1)
    assert torch.equal(seen[:, :-1, 0], first.targets[:, :-1])
    assert torch.equal(seen[:, 3, 2], first.targets[:, 5])


def test_what_is_examined_is_not_learnt_from() -> None:
    learnt, held, _ = char_lm.parts()
    assert held.shape == (2, 21)
    numbers, _ = char_lm.text()
    assert len(learnt) < len(numbers)
    assert torch.equal(held[0], numbers[len(learnt) : len(learnt) + 21])


def test_rows_of_a_digit_are_asked_for_at_the_end() -> None:
    pictures, labels, _ = image_data.digits(False)
    piece = row_mnist.unrolled(pictures[:3], labels[:3])
    assert piece.inputs.shape == (3, 28, 28)
    assert torch.equal(piece.targets[:, -1], labels[:3])
    assert bool((piece.targets[:, :-1] == -100).all())
    assert torch.equal(piece.context[:, 5, :10].argmax(1), labels[:3])
    assert bool((piece.context[:, 5, 10:].argmax(1) == 5).all())


@pytest.mark.parametrize("name", ["copy", "repeat-copy", "row-mnist"])
def test_online_learning_fits_into_memory_as_the_experiment_is(name: str) -> None:
    experiment = load_any(name)
    assert isinstance(experiment, RecurrentExperiment)
    student = experiment.student(experiment.ways(["online"])[0], 0)
    piece = experiment.course(experiment.batch_size, 0).sample()
    learner = student.learner  # type: ignore[attr-defined]
    learner.bind(piece.inputs, piece.context)
    learner.traces.prepare(experiment.batch_size)


@pytest.mark.parametrize(
    "option", [{"options": {"clip_norm": 1.0}}, {"scheduler": torch.optim.lr_scheduler.ConstantLR}]
)
def test_two_clocks_refuse_what_only_one_side_would_heed(option: dict[str, object]) -> None:
    experiment = load_any("two-clocks")
    assert isinstance(experiment, RecurrentExperiment)
    with pytest.raises(ConfigError, match=f"'two-clocks' takes no {next(iter(option))}="):
        replace(experiment, **option)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"trained by bptt\(16\), bptt\(4\) or synthetic\(4\)"):
        experiment.ways(["online"])
