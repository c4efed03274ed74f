"""Where the workers of one host meet: a store that nobody beyond this host can reach."""

from __future__ import annotations

import datetime
import socket

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

HOST = "127.0.0.1"
TIMEOUT_S = 60


class Loopback(RendezvousHandler):
    """The rendezvous of a launcher that is alone. torch's own opens its store, which asks nobody for a password, to
    the whole network; this one listens on the loopback address, on a port that the kernel chooses.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        listening = socket.create_server((HOST, 0))
        self._port = listening.getsockname()[1]
        # the store closes it in the end
        self._store = TCPStore(
            HOST,
            self._port,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=TIMEOUT_S),
            master_listen_fd=listening.detach(),
        )

    def get_backend(self) -> str:
        """Its name in torch's logs."""
        return "syngrad-loopback"

    @property
    def use_agent_store(self) -> bool:
        """The workers use this very store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """One launcher, the first of one."""
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, RendezvousStoreInfo(HOST, self._port))

    def is_closed(self) -> bool:
        """Never: nobody else could close it."""
        return False

    def set_closed(self) -> None:
        """Nobody else looks."""

    def num_nodes_waiting(self) -> int:
        """Nobody ever is."""
        return 0

    def get_run_id(self) -> str:
        """The run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing is left to do: the store ends with this object."""
        return True
