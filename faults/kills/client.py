"""What a client of a workload is made of: what it was told, the file it writes what it does to, and when to end.

A client is told by one JSON object on its command line what it is, and ends in an orderly way when its standard input
is closed, which also happens when whoever started it dies. What it does it writes to a file, one JSON object a line,
each by one system call, so that a SIGKILL takes nothing that was written. Intentions are written before, answers after
the fact: a message that is there and in no file's intentions is a phantom, and an answer in a file was given.

`at` is the machine's monotonic clock, which all processes share; `began` is when the request of an answer was made.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

Settings = dict[str, Any]


class Notes:
    """The file in which a client writes what it does."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()

    def write(self, what: str, **facts: Any) -> None:
        line = json.dumps({"at": time.monotonic(), "what": what, **facts}, separators=(",", ":"))
        with self._lock:
            os.write(self._file, line.encode() + b"\n")


class Client:
    """What a role is given. `over` is set when it shall end."""

    def __init__(self, told: Settings) -> None:
        self.told = told
        self.name: str = told["name"]
        self.notes = Notes(Path(told["notes"]))
        self.choose = random.Random(told["seed"])
        self.over = threading.Event()
        threading.Thread(target=self._wait_for_the_end, daemon=True).start()

    def _wait_for_the_end(self) -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        self.over.set()

    @classmethod
    def run(cls, roles: Mapping[str, Callable[[Self], None]]) -> None:
        """Be the client that the command line tells of."""
        # Who is asked where it hangs tells it on its standard error.
        faulthandler.register(signal.SIGUSR1)
        client = cls(json.loads(sys.argv[1]))
        client.notes.write("starts", role=client.told["role"])
        roles[client.told["role"]](client)
        client.notes.write("ends")
