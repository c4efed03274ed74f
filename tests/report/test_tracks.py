"""What the timeline draws: pieces that do not lie over one another, out of a stretch in which all workers train."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report import several

from syngrad.report.measured import NEXT, PREVIOUS
from syngrad.report.tracks import MINIBATCHES, Piece, Stretch, disjoint, length, steady, track


def test_a_span_within_another_stands_for_its_time() -> None:
    spans = [["send", 1, 2.0, 3.0], [NEXT, 1, 4.0, 5.0], ["work", 1, 0.0, 6.0], ["work", 2, 6.0, 7.0]]
    assert disjoint(spans) == [
        Piece("work", 1, 0.0, 2.0),
        Piece("send", 1, 2.0, 3.0),
        Piece("work", 1, 3.0, 4.0),
        Piece(NEXT, 1, 4.0, 5.0),
        Piece("work", 1, 5.0, 6.0),
        Piece("work", 2, 6.0, 7.0),
    ]


def test_spans_deep_within_one_another() -> None:
    spans = [["a", 0, 0.0, 9.0], ["b", 0, 1.0, 8.0], ["c", 0, 2.0, 3.0], ["c", 1, 3.0, 8.0]]
    assert [(piece.name, piece.begin, piece.end) for piece in disjoint(spans)] == [
        ("a", 0.0, 1.0), ("b", 1.0, 2.0), ("c", 2.0, 3.0), ("c", 3.0, 8.0), ("a", 8.0, 9.0)
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=12))
def test_pieces_never_overlap_and_cover_what_the_spans_cover(drawn: list[tuple[int, int]]) -> None:
    spans = [["work", k, float(begin), float(begin + lasts)] for k, (begin, lasts) in enumerate(drawn)]
    pieces = disjoint(spans)
    assert all(a.end <= b.begin for a, b in pairwise(pieces))
    assert all(piece.lasts > 0 for piece in pieces)
    # a span that begins within another ends with it at the latest, as every real one does
    covered = {moment for _, _, begin, end in spans for moment in range(int(begin), int(end))}
    told = {moment for piece in pieces for moment in range(int(piece.begin), int(piece.end))}
    assert told <= covered


def test_the_stretch_is_the_last_one_that_is_long_enough() -> None:
    accounts = [several.account(0), several.account(1)]
    found = steady(accounts)
    assert found is not None
    assert found.minibatches == 20
    assert found.begin == pytest.approx(1000.0 + 40 * 0.005 + 2 * 0.02)
    assert found.pace == pytest.approx(0.005, rel=0.02)
    begin, end = found.window(0.05)
    assert end - begin == pytest.approx(0.05)
    assert begin - found.begin == pytest.approx(found.end - end)


def test_where_none_is_long_enough_it_is_the_longest() -> None:
    account = several.account(0, spans=several.spans(0, minibatches=13, every=5))
    found = steady([account])
    assert found is not None
    assert found.minibatches == 5 < MINIBATCHES
    assert found.begin > 1000.03, "the later of two"
    assert length([found]) == pytest.approx(5 * found.pace)


def test_without_spans_there_is_none() -> None:
    assert steady([several.account(0, spans=[])]) is None
    assert steady([]) is None


def test_the_window_is_as_long_for_every_row() -> None:
    fast, slow = Stretch(0.0, 1.0, 1000), Stretch(0.0, 1.0, 500)
    assert length([fast, slow], 16) == pytest.approx(0.016), "so many minibatches of the fastest"
    assert length([fast, Stretch(0.0, 12.0, 100)], 16) == pytest.approx(0.32), "and more where another is far slower"


def test_a_track_is_cut_at_the_window() -> None:
    found = track(several.account(1), 1000.001 + 5 * 0.005, 1000.001 + 7 * 0.005)
    assert [piece.name for piece in found] == [PREVIOUS, "work", PREVIOUS, "work"]
    assert [piece.minibatch for piece in found] == [4, 5, 5, 6]
    assert found[0].begin == pytest.approx(0.0, abs=1e-9)
    assert found[-1].end <= 0.01
