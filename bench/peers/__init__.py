"""The brokers that are measured. A peer is a file here and a line in `PEERS`.

A peer is started on free loopback ports with its own data folder, and leaves nothing running behind. Entering
its context returns when it accepts AMQP connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from bench.peers import ceiling, millpond, rabbitmq
from bench.peers.server import PeerError, RunningPeer


class Start(Protocol):
    """Runs a broker from an empty folder, with further `options` of its command line where it has one."""

    def __call__(self, folder: Path, options: Sequence[str] = (), /) -> AbstractContextManager[RunningPeer]: ...


PEERS: Final[dict[str, Start]] = {"rabbitmq": rabbitmq.start, "millpond": millpond.start, "ceiling": ceiling.start}

# Those that are compared unless others are named.
DEFAULT_PEERS: Final = ("rabbitmq", "millpond")

__all__ = ["DEFAULT_PEERS", "PEERS", "PeerError", "RunningPeer", "Start"]
