"""Millpond, as an operator would start it: `millpond serve`, with its data on disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Final

from bench.peers.server import RunningPeer, running

_HOT_MODULE: Final = "millpond.broker.message"


def _version() -> str:
    """The version, and whether its hot modules are compiled: figures of the uncompiled source are not Millpond's."""
    try:
        version = metadata.version("millpond")
    except metadata.PackageNotFoundError:
        version = "from the source tree"
    hot = util.find_spec(_HOT_MODULE)
    return version if hot and hot.origin and not hot.origin.endswith(".py") else f"{version} (uncompiled)"


@contextmanager
def _start(folder: Path, options: Sequence[str], listener: str) -> Iterator[RunningPeer]:
    ready_file = folder / "ready.json"
    command = [sys.executable, "-m", "millpond", "serve", "--data", str(folder / "data")]
    command += ["--amqp", "127.0.0.1:0", "--admin", "off", "--ready-file", str(ready_file), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLPOND_")}
    with running("millpond", command, environment, folder / "server.log", ready_file.exists) as process:
        host, _, port = json.loads(ready_file.read_text())["listeners"][listener].rpartition(":")
        yield RunningPeer("millpond", _version(), host, int(port), process.pid, folder / "data")


def start(folder: Path, options: Sequence[str] = ()) -> AbstractContextManager[RunningPeer]:
    """Run a Millpond node with its data in `folder`, an empty folder, and further options of `millpond serve`."""
    return _start(folder, options, "amqp")


def start_kafka(folder: Path, options: Sequence[str] = ()) -> AbstractContextManager[RunningPeer]:
    """The same, with a listener for Kafka's clients, whose address the peer's is."""
    return _start(folder, ("--kafka", "127.0.0.1:0", *options), "kafka")
