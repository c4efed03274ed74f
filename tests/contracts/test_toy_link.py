"""A new kind of link is one file, tests/_support/local_link.py, and one line here, and does what every link does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from tests._support.link_pairs import registered_pair
from tests._support.local_link import LocalLink, link_neighbours
from tests.contracts.test_links import *  # noqa: F403  the suite's checks, untouched

from syngrad.links import LINKS
from syngrad.links.link import Link


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Link, Link]]:
    monkeypatch.setitem(LINKS, "toy", link_neighbours)
    return partial(registered_pair, "toy")


def test_it_is_the_toy_that_is_checked(opened: Callable[[], tuple[Link, Link]]) -> None:
    assert [type(end) for end in opened()] == [LocalLink, LocalLink]
