"""A run over process groups: what it refuses, and a process that is killed in the middle of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError, SyngradError
from syngrad.launch.launcher import launch
from syngrad.links import LINKS

#: rank 1 kills itself in its third minibatch; rank 0 writes down what it makes of that
KILLED = """
import os, signal, sys, torch
from pathlib import Path
from tests.distributed import cases
from syngrad.errors import LinkError
from syngrad.launch.parent_death import die_with_parent
from syngrad.links.world import world
torch.set_num_threads(1)
die_with_parent()
made = cases.trainer(link="process_group")
calls = []

def die(*_):
    calls.append(1)
    if world().rank == 1 and made.minibatches == 2:
        os.kill(os.getpid(), signal.SIGKILL)

made.model[9].register_forward_hook(die)
try:
    made.fit(cases.batches(), epochs=500)
except LinkError as error:
    Path(sys.argv[1]).write_text(str(error))
    raise
"""


@pytest.mark.distributed
def test_a_killed_process_is_noticed_and_named(tmp_path: Path) -> None:
    said = tmp_path / "said"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "SYNGRAD_HOST": "here"}
    with pytest.raises(SyngradError, match=r"rank 1 \(.*\) was killed by signal 9"):
        launch([sys.executable, "-c", KILLED, str(said)], 2, restarts=0, environment=environment)
    assert said.read_text().startswith("stages '6' to '9' (rank 1 on here) is gone (")


def test_it_cannot_keep_to_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNGRAD_PORTS", "5000-5010")
    request: Any = None
    with pytest.raises(ConfigError, match="SYNGRAD_PORTS is set, and link='process_group' listens on any free port"):
        LINKS["process_group"](request)


def test_it_cannot_be_encrypted() -> None:
    net = syngrad.decouple(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), cuts=["1"])
    with pytest.raises(ConfigError, match=r"link_key is 'secret'.* cannot encrypt; use link='zeromq'"):
        syngrad.Trainer(net, loss=F.mse_loss, distributed=syngrad.Distributed(link="process_group", link_key="secret"))
    with pytest.raises(ConfigError, match="unknown link 'process-group'; did you mean 'process_group'"):
        syngrad.Trainer(net, loss=F.mse_loss, distributed=syngrad.Distributed(link="process-group"))
