"""Where the workers of a launcher that is alone meet: a store on this host only."""

from __future__ import annotations

import datetime
import socket

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

#: seconds within which the workers of one host find their store
STORE_S = 60
LOOPBACK = "127.0.0.1"


class Loopback(RendezvousHandler):
    """The rendezvous of a launcher that is alone. torch's own opens its store, which asks nobody for a password, to
    the whole network; this one listens on the loopback address, on a port that the kernel chooses.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        listening = socket.create_server((LOOPBACK, 0))
        self._port = listening.getsockname()[1]
        # the store closes it in the end
        self._store = TCPStore(
            LOOPBACK,
            self._port,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=STORE_S),
            master_listen_fd=listening.detach(),
        )

    def next_rendezvous(self) -> RendezvousInfo:
        """One launcher, the first of one."""
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, RendezvousStoreInfo(LOOPBACK, self._port))

    # The rest of torch's protocol: with one launcher there is nobody to wait for, and nobody who closes it.

    def get_backend(self) -> str:
        """Its name."""
        return "syngrad-loopback"

    @property
    def use_agent_store(self) -> bool:
        """The workers use this very store."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def set_closed(self) -> None:
        """It closes with its launcher."""

    def num_nodes_waiting(self) -> int:
        """Nobody waits."""
        return 0

    def get_run_id(self) -> str:
        """The run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """The store ends with this object."""
        return True
