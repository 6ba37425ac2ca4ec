"""The load generator: built from `amqp_load.c`, run against a peer, with the peer measured around the run.

The generator stops before the first publish and after the last acknowledgement (`--step`), so that declaring,
consuming and deleting are not charged to the broker.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bench import process
from bench.build import compile_program
from bench.peers.server import RunningPeer

_SOURCE: Final = Path(__file__).with_name("amqp_load.c")
# The generator gives up by itself when nothing moves; this is for when it does not.
_OVERTIME_SECONDS_MAX: Final = 240.0


class LoadError(Exception):
    """A run failed: the broker's words or the generator's finding are in it."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Microseconds."""

    p50: float
    p99: float
    p999: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one workload against one peer."""

    messages: int
    duration_s: float
    rate: float
    end_to_end: Percentiles
    confirm: Percentiles
    broker_cpu_us: float
    """Per message: published, routed, delivered and acknowledged."""
    broker_busy: float
    """CPU seconds per second: above 1 when several cores worked."""
    peak_memory_bytes: int
    load_busy: float
    """The generator's CPU seconds per second, of which it can use at most 1."""
    others_busy: float
    """CPU seconds per second that neither broker nor generator used: a busy machine spoils a figure."""
    raw: dict[str, Any]


def build(folder: Path) -> Path:
    """Compile the generator into `folder`."""
    return compile_program(_SOURCE, folder)


def _expect(output: IO[str], word: str) -> bool:
    return output.readline().strip() == word


def run(
    program: Path,
    peer: RunningPeer,
    options: Sequence[str],
    seconds: float,
    *,
    at_start: Callable[[], object] = lambda: None,
    at_end: Callable[[], object] = lambda: None,
) -> Run:
    """Publish for `seconds`. `at_start` and `at_end` are called just before and just after what is measured."""
    command = [str(program), "--host", peer.host, "--port", str(peer.port), "--seconds", str(seconds), "--step"]
    command += options
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        assert load.stderr is not None
        overtime = threading.Timer(seconds + _OVERTIME_SECONDS_MAX, load.kill)
        overtime.start()
        try:
            if not _expect(load.stdout, "ready"):
                raise LoadError(f"{peer.name}: {load.stderr.read().strip() or 'the generator did not start'}")
            at_start()
            process.reset_peak_memory(peer.pid)
            cpu_before_s, machine_before_s = process.cpu_seconds(peer.pid), process.machine_cpu_seconds()
            load.stdin.write("\n")
            drained = _expect(load.stdout, "drained")
            cpu_s = process.cpu_seconds(peer.pid) - cpu_before_s
            machine_s = process.machine_cpu_seconds() - machine_before_s
            peak_memory_bytes = process.peak_memory_bytes(peer.pid)
            at_end()
            if not drained:
                raise LoadError(f"{peer.name}: {load.stderr.read().strip() or 'the generator was ended'}")
            load.stdin.write("\n")
            answer = load.stdout.read()
            if load.wait() != 0:
                raise LoadError(f"{peer.name}: {load.stderr.read().strip()}")
        finally:
            overtime.cancel()
            load.kill()
    return _result(json.loads(answer), cpu_s, machine_s, peak_memory_bytes)


def _percentiles(raw: dict[str, float]) -> Percentiles:
    return Percentiles(raw["p50"], raw["p99"], raw["p999"])


def _result(raw: dict[str, Any], cpu_s: float, machine_s: float, peak_memory_bytes: int) -> Run:
    messages = raw["published"]
    return Run(
        messages=messages,
        duration_s=raw["duration_s"],
        rate=raw["rate"],
        end_to_end=_percentiles(raw["end_to_end_us"]),
        confirm=_percentiles(raw["confirm_us"]),
        broker_cpu_us=cpu_s * 1e6 / messages,
        broker_busy=cpu_s / raw["duration_s"],
        peak_memory_bytes=peak_memory_bytes,
        load_busy=raw["load_busy"],
        others_busy=max(0.0, machine_s - cpu_s - raw["load_cpu_s"]) / raw["duration_s"],
        raw=raw,
    )
