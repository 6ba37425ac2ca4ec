"""What all peers share: a child process that becomes ready, is measured, and is stopped again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

START_SECONDS_MAX: Final = 60.0  # RabbitMQ needs about 5 s on two idle cores; a busy machine may be far slower
STOP_SECONDS_MAX: Final = 30.0  # RabbitMQ writes out its queues' indexes when it stops
_LOG_LINES_SHOWN: Final = 30
_PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"


class PeerError(Exception):
    """A broker is not installed, did not start, or did not stop."""


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A broker that accepts connections."""

    name: str
    version: str
    host: str
    port: int
    pid: int
    """The root of the process tree whose CPU and memory are the broker's."""
    data: Path
    """Where it keeps its data."""


def free_port() -> int:
    """A loopback port that is free now. Somebody else may take it before it is used, which makes the start fail."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    """Whether somebody accepts connections on `port`."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def speaks_amqp(port: int) -> bool:
    """Whether a broker on `port` answers the protocol header with a method frame (connection.start)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
            client.sendall(_PROTOCOL_HEADER)
            return client.recv(1) == b"\x01"
    except OSError:
        return False


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


def _wait_until_ready(process: subprocess.Popen[bytes], name: str, log: Path, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not is_ready():
        if process.poll() is not None:
            raise PeerError(f"{name} ended with status {process.returncode} instead of starting:\n{_last_lines(log)}")
        if time.monotonic() > deadline:
            raise PeerError(f"{name} is not ready after {START_SECONDS_MAX:.0f} s:\n{_last_lines(log)}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, and end what is left of its session: a start script may die before its broker does."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    is_ready: Callable[[], bool],
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a session of its own, with its output in `log`, from when it is ready to the context's end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, name, log, is_ready)
        yield process
    finally:
        _stop(process)
