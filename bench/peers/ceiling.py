"""No broker at all: what the generator and the machine's loopback can carry (`amqp_ceiling.c`).

Not among the default peers. Its figures say where a broker's figures would stop being the broker's. It has one queue,
so it takes part in the workloads of one queue only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.build import compile_program
from bench.peers.server import RunningPeer, running

_SOURCE: Final = Path(__file__).parent.with_name("amqp_ceiling.c")


@contextmanager
def start(folder: Path, _options: Sequence[str] = ()) -> Iterator[RunningPeer]:
    """Run the ceiling from `folder`, an empty folder."""
    program = compile_program(_SOURCE, folder)
    log = folder / "server.log"  # its first line is the port
    with running("ceiling", [str(program)], os.environ, log, lambda: log.read_text().endswith("\n")) as process:
        yield RunningPeer("ceiling", "none", "127.0.0.1", int(log.read_text()), process.pid, folder)
