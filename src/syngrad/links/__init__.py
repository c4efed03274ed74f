"""What carries messages between the workers of neighbouring stages, by name, and the form in which they travel.

A new kind of link is one file with a :class:`~syngrad.links.link.Link` and a function that makes a worker's two of
them, and one entry in `LINKS`; tests/contracts/test_links.py then holds it to what every link does.
"""

from __future__ import annotations

from collections.abc import Callable

from syngrad.links.link import LinkRequest, Links


def _zeromq(request: LinkRequest) -> Links:
    from syngrad.links.zeromq import link_neighbours  # here, so that a run in one process does not load it

    return link_neighbours(request)


def _process_group(request: LinkRequest) -> Links:
    from syngrad.links.process_group import link_neighbours  # torch.distributed takes a while to import

    return link_neighbours(request)


LINKS: dict[str, Callable[[LinkRequest], Links]] = {"zeromq": _zeromq, "process_group": _process_group}
