"""A neighbour that is slow is waited for, in bounded memory; one that cannot be reached is named at both ends."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from tests.distributed.faults import command, environment, launched, pids
from tests.distributed.scripts import await_, lives

from syngrad.errors import LinkError
from syngrad.launch.emulated_link import able, emulated, parse_link
from syngrad.launch.hosts import launch_on

pytestmark = pytest.mark.distributed

needs_root = pytest.mark.skipif(not able(), reason="needs root, /dev/net/tun and ip")


def test_a_slow_process_is_waited_for(tmp_path: Path) -> None:
    """Every one of its minibatches takes many times as long, and one longer than the silence that counts as loss."""
    depth, samples, count = 3, 16384, 40
    faults = [
        {"rank": 1, "what": "sleep", "amount": 0.05, "module": "9"},
        {"rank": 1, "what": "sleep", "amount": 2.5, "module": "9", "at": 4},
    ]
    spec = {
        "options": {"queue_depth": depth, "timeout_s": 30.0, "place": [2, 2]},
        "fit": {"epochs": 1},
        "data": {"count": count, "size": samples},
        "faults": faults,
        "silence_ms": 2000,
    }
    assert launched(tmp_path, spec, 2) == 0
    load = torch.load(tmp_path / "left.0")["load"]
    assert load["sent"] == count
    assert load["most"] == depth
    message_bytes = samples * 12 * 8
    assert load["most_bytes"] - load["first_bytes"] < (count - 10) * message_bytes / 2


@needs_root
def test_a_cut_link_is_noticed_at_both_ends(tmp_path: Path) -> None:
    """The line is frozen, as by a cable that is pulled: nothing arrives any more, and nothing says so."""
    faults = [
        {"rank": 1, "what": "note", "module": "9", "at": 4},
        *({"rank": rank, "what": "sleep", "amount": 0.02, "module": name} for rank, name in ((0, "0"), (1, "9"))),
    ]
    spec = {"options": {"place": [2, 2]}, "fit": {"epochs": 10_000}, "faults": faults, "silence_ms": 2000}
    with emulated(parse_link("1ms,1gbit")) as pair:
        line = int(pair[0].namespace.split("-")[-2])

        def cut() -> None:
            await_((tmp_path / "ready").exists)
            os.kill(line, signal.SIGSTOP)

        cutting = threading.Thread(target=cut)
        cutting.start()
        try:
            with pytest.raises(LinkError) as error:
                launch_on(pair, command(tmp_path, spec), restarts=0, environment=environment(), logs=tmp_path / "logs")
        finally:
            cutting.join()
            os.kill(line, signal.SIGCONT)
    assert "is gone: its process has ended, its connection is cut, or it was silent for too long" in str(error.value)
    assert not [pid for pid in pids(tmp_path) if lives(pid)]
    for rank, other, stages in ((0, 1, "'6' to '9'"), (1, 0, "'input' to '3'")):
        file = tmp_path / "logs" / pair[rank].name / "attempt_0" / f"rank_{rank}" / "error.json"
        line_said = json.loads(file.read_text())["message"]["message"]
        assert line_said.startswith(f"stages {stages} (rank {other} on {pair[other].name}) is gone")
