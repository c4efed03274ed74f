"""Which replica a process belongs to: from the environment, and what of it is refused."""

from __future__ import annotations

import pytest

from syngrad.errors import ConfigError
from syngrad.replicas.place import Place, place

GIVEN = {"TORCHFT_LIGHTHOUSE": "http://localhost:29510", "REPLICA_GROUP_ID": "1", "NUM_REPLICA_GROUPS": "3"}


def test_it_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() is None
    for name, value in {**GIVEN, "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(1, 3, "http://localhost:29510", 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"TORCHFT_LIGHTHOUSE": ""}, "NUM_REPLICA_GROUPS is 3, and TORCHFT_LIGHTHOUSE does not say"),
        ({"TORCHFT_LIGHTHOUSE": "nowhere"}, "TORCHFT_LIGHTHOUSE is 'nowhere', no address"),
        ({"REPLICA_GROUP_ID": ""}, "TORCHFT_LIGHTHOUSE is set, but not both"),
        ({"NUM_REPLICA_GROUPS": "0"}, "TORCHFT_LIGHTHOUSE is set, but not both"),
        ({"REPLICA_GROUP_ID": "3"}, "REPLICA_GROUP_ID is 3, and NUM_REPLICA_GROUPS 3"),
        ({"REPLICA_GROUP_ID": "-1"}, "REPLICA_GROUP_ID is '-1', no whole number"),
        ({"NUM_REPLICA_GROUPS": "many"}, "NUM_REPLICA_GROUPS is 'many', no whole number"),
    ],
)
def test_half_of_it_is_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], said: str) -> None:
    for name, value in {**GIVEN, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        place()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
