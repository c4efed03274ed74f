"""What single experiments bring of their own: crops and flips, windows of text, bits, and batches that are mappings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Trainer, decouple
from syngrad.errors import SyngradError
from syngrad.experiments import char_gpt, load, regression
from syngrad.experiments.image_data import PADDING, CropAndFlip, crop_and_flip
from syngrad.metrics import bits_per_character


def test_a_crop_is_a_shifted_copy_or_its_mirror_image() -> None:
    images = torch.randn(64, 2, 8, 8)
    changed = crop_and_flip(images, torch.Generator().manual_seed(0))
    padded = F.pad(images, (PADDING,) * 4)
    seen = set()
    for image, padding in zip(changed, padded, strict=True):
        found = [
            (top, left, flip)
            for top in range(2 * PADDING + 1)
            for left in range(2 * PADDING + 1)
            for flip in (False, True)
            if torch.equal(image, maybe_flipped(padding[:, top : top + 8, left : left + 8], flip))
        ]
        assert found
        seen.update(found)
    assert len({flip for *_, flip in seen}) == 2
    assert len({top for top, *_ in seen}) > 5
    assert len({left for _, left, _ in seen}) > 5


def maybe_flipped(image: Tensor, flip: bool) -> Tensor:
    return image.flip(-1) if flip else image


def loader(seed: int = 0) -> CropAndFlip:
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return CropAndFlip(images, torch.arange(12), batch_size=4, shuffle=True, seed=seed)


def test_every_epoch_is_cropped_anew_and_a_seed_decides() -> None:
    made, again = loader(), loader()
    epochs, same = [list(made) for _ in range(2)], [list(again) for _ in range(2)]
    for a, b in zip(epochs, same, strict=True):
        for (x, y), (x2, y2) in zip(a, b, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
    by_label = [{int(label): image for x, y in epoch for image, label in zip(x, y, strict=True)} for epoch in epochs]
    assert any(not torch.equal(by_label[0][k], by_label[1][k]) for k in range(12))


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4])
def test_a_saved_place_brings_the_same_crops_back(taken: int) -> None:
    whole = loader()
    stream = forever(whole)
    for _ in range(taken):
        next(stream)
    place = whole.state_dict()
    want = [next(stream) for _ in range(5)]
    resumed = loader(seed=9)
    resumed.load_state_dict(place)
    for (x, y), (x2, y2) in zip(want, forever(resumed), strict=False):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def forever(batches: CropAndFlip) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from batches


def test_the_windows_of_a_text() -> None:
    numbers, vocabulary = char_gpt.text()
    assert int(numbers.max()) + 1 == vocabulary
    (inputs, targets), (held, _) = char_gpt.windows()
    assert inputs.shape[1] == char_gpt.LENGTH
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert len(inputs) + len(held) == (len(numbers) - 1) // char_gpt.LENGTH
    assert 0 < len(held) < len(inputs) / 10


def test_the_next_character_is_told_from_those_before_it_alone() -> None:
    torch.manual_seed(0)
    net = load("char-gpt").model()
    text = torch.randint(0, 9, (1, 20))
    other = text.clone()
    other[0, 12:] = (other[0, 12:] + 1) % 9
    scores, changed = net(text), net(other)
    torch.testing.assert_close(scores[0, :12], changed[0, :12])
    assert not torch.allclose(scores[0, 12], changed[0, 12])


def test_bits_per_character() -> None:
    even = torch.zeros(2, 3, 8)
    targets = torch.randint(8, (2, 3))
    assert bits_per_character(even, targets) == pytest.approx(3.0)
    assert char_gpt.loss(even, targets).item() == pytest.approx(3.0 * math.log(2))
    assert char_gpt.positions(targets) == 6
    with pytest.raises(SyngradError, match="'bits per character' needs scores"):
        bits_per_character(even, targets[:, :2])


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [char_gpt.share(step, 100) for step in range(120)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert shares[10:101] == sorted(shares[10:101], reverse=True)
    assert shares[100] == shares[119] == pytest.approx(0.0)


def test_the_hand_of_a_straight_arm_and_of_a_folded_one() -> None:
    angles = torch.tensor([[0.0] * 5, [math.pi / 2, 0, 0, 0, 0], [0, math.pi, math.pi, math.pi, math.pi]])
    want = torch.tensor([[5.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    torch.testing.assert_close(regression.hand(angles), want, atol=1e-5, rtol=0)


class Arm(nn.Module):
    """The regression's net, for inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(regression.JOINTS, 64)
        self.middle = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.out = nn.Linear(64, 2)

    def forward(self, *, upper: Tensor, lower: Tensor) -> Tensor:
        return self.out(self.middle(self.into(torch.cat([upper, lower], dim=1))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("estimator", ["default", "local", "linear"])
def test_a_batch_may_be_a_mapping_and_the_task_a_regression(estimator: str) -> None:
    """Named inputs and a vector for a target go through the same Trainer, cuts and estimators."""
    angles, places = (t[:2048] for t in regression.samples())
    batches = [
        {"upper": a[:, :2], "lower": a[:, 2:], "target": p}
        for a, p in zip(angles.split(128), places.split(128), strict=True)
    ]
    torch.manual_seed(0)
    net = decouple(Arm(), cuts=["middle", "out"])
    trainer = Trainer(net, loss=F.mse_loss, metric="mse", estimator=estimator, progress=False)
    before = trainer.evaluate(batches)["mse"]
    trainer.fit(batches, epochs=25)
    assert trainer.evaluate(batches)["mse"] < before / 3
