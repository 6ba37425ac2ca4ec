"""How often a broker asks the disk to be sure: its fdatasync and fsync calls during one run, counted by strace.

Tracing slows the broker down, so the rate of such a run is not a result. What counts is how many messages share a
call, and over how many files the calls are spread: the journal's design says one, whatever the number of queues.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import load, process
from bench.peers.server import PeerError, RunningPeer
from bench.workloads import Workload

_CALL: Final = re.compile(r"\b(?:fdatasync|fsync)\(\d+<([^>]*)>")
_DETACH_SECONDS_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class SyncCount:
    """The calls of one run."""

    messages: int
    calls: int
    files: int
    duration_s: float


class _Trace:
    """strace on a broker's whole process tree, from `attach` to `detach`."""

    def __init__(self, peer: RunningPeer, output: Path) -> None:
        self._peer = peer
        self._output = output
        self._strace: subprocess.Popen[str] | None = None

    def attach(self) -> None:
        pids = process.process_tree(self._peer.pid)
        command = ["strace", "-f", "-y", "-e", "trace=fdatasync,fsync", "-o", str(self._output)]
        for pid in pids:
            command += ["-p", str(pid)]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        for _ in pids:
            if "attached" not in (line := self._strace.stderr.readline()):
                raise PeerError(f"strace cannot attach to {self._peer.name}: {line.strip()}")

    def detach(self) -> None:
        if self._strace is not None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.communicate(timeout=_DETACH_SECONDS_MAX)
            self._strace = None


def ensure_available() -> None:
    if shutil.which("strace") is None:
        raise PeerError("--strace needs strace; install it with `apt-get install strace`")


def count(program: Path, peer: RunningPeer, workload: Workload, seconds: float, folder: Path) -> SyncCount:
    """Run `workload` once with its sync calls counted."""
    output = folder / f"strace-{peer.name}-{workload.name}"
    trace = _Trace(peer, output)
    try:
        run = load.run(program, peer, workload.options, seconds, at_start=trace.attach, at_end=trace.detach)
    finally:
        trace.detach()
    # A call that was interrupted in the trace appears twice; only its first line names the file.
    paths = _CALL.findall(output.read_text(errors="replace"))
    return SyncCount(run.messages, len(paths), len(set(paths)), run.duration_s)
