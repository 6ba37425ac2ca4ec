"""A broker in a process of its own, as an operator runs it: started, asked to stop, killed, started again."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

START_DEADLINE_S = 30.0
# The command line's contract: SIGTERM shuts down cleanly within five seconds. What is waited on top of it is the
# interpreter's own way out on a loaded machine.
STOP_DEADLINE_S = 10.0
# Where ports are looked for; most systems give outgoing connections those from 32768 on.
PORTS_FROM, PORTS_BEFORE = 10_000, 32_768
# Another way to start the broker under test, an installed `millpond` for example. It gets the same arguments.
COMMAND_VARIABLE = "MILLPOND_TEST_COMMAND"
# What makes the tests of Kafka's protocol quick.
KAFKA_ARGUMENTS = (
    *("--group-session-timeout-min-ms", "100"),
    *("--group-initial-rebalance-delay-ms", "0"),
    *("--group-consumer-heartbeat-interval-ms", "200"),
    *("--group-share-heartbeat-interval-ms", "200"),
    *("--group-share-min-record-lock-duration-ms", "1000"),
    *("--stream-check-interval-ms", "1000"),
)


def broker_command() -> list[str]:
    configured = os.environ.get(COMMAND_VARIABLE)
    return shlex.split(configured) if configured else [sys.executable, "-m", "millpond"]


def restartable_port(host: str = "127.0.0.1") -> int:
    """A free port that no outgoing connection is given while its broker is down."""
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(outgoing.read_text().split()[0]) if outgoing.exists() else PORTS_BEFORE
    while True:
        port = secrets.choice(range(PORTS_FROM, end))
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried, suppress(OSError):
            tried.bind((host.strip("[]"), port))
            return port


class BrokerProcess:
    """`millpond serve` on a data directory. It keeps its ports, so that clients find it again."""

    def __init__(
        self,
        directory: Path,
        *,
        arguments: Sequence[str] = (),
        host: str = "127.0.0.1",
        kafka: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to that of the tests."""
        self.directory = directory
        self.data = directory / "data"
        self.host = host
        self.listeners: dict[str, str] = {}
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._ready_file = directory / "ready.json"
        self._log_path = directory / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = restartable_port(host)
        self._kafka = kafka
        self._kafka_port = restartable_port(host) if kafka else 0

    @property
    def port(self) -> int:
        return self._port

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}/%2F"

    @property
    def kafka_address(self) -> str:
        assert self._kafka_port, "the broker has no listener for Kafka's protocol"
        return f"{self.host}:{self._kafka_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def start(self) -> BrokerProcess:
        """Start and wait until every listener accepts; fails with the broker's own words if it does not."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start, and do not wait for anything."""
        assert not self.running, "the broker runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ready_file.unlink(missing_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *broker_command(),
                    "serve",
                    *("--data", str(self.data)),
                    *("--amqp", f"{self.host}:{self._port}"),
                    *("--admin", "off"),
                    *(("--kafka", f"{self.host}:{self._kafka_port}") if self._kafka else ()),
                    *("--ready-file", str(self._ready_file)),
                    *self._arguments,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._environment},
            )

    def wait_until_ready(self) -> None:
        """Wait until every listener of the one that was launched accepts."""
        process = self._process
        assert process is not None, "the broker has not been launched"
        give_up_at = time.monotonic() + START_DEADLINE_S
        while not self._ready_file.exists():
            if process.poll() is not None:
                raise AssertionError(f"the broker ended with {process.returncode} at start:\n{self.log[-4000:]}")
            if time.monotonic() > give_up_at:
                self.kill()
                raise AssertionError(f"the broker was not ready within {START_DEADLINE_S:g} s:\n{self.log[-4000:]}")
            time.sleep(0.005)
        # The file is written atomically, so once it is there it is whole.
        ready = json.loads(self._ready_file.read_text())
        assert isinstance(ready["pid"], int)
        self.listeners = ready["listeners"]
        self._port = int(self.listeners["amqp"].rpartition(":")[2])
        if self._kafka:
            self._kafka_port = int(self.listeners["kafka"].rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL: what the broker had in memory is gone."""
        self.end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM, the clean way. Returns the exit code."""
        return self.end(signal.SIGTERM)

    def restart(self) -> None:
        """A clean restart on the same data directory and port."""
        assert self.terminate() == 0, self.log[-4000:]
        self.start()

    def stop(self) -> None:
        """End whatever still runs; for the end of a test."""
        if self.running:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def end(self, number: signal.Signals) -> int:
        """Send a signal that ends the process; returns the exit code."""
        assert self._process is not None, "the broker is not running"
        self._process.send_signal(number)
        return self._process.wait(timeout=STOP_DEADLINE_S)

    def __enter__(self) -> BrokerProcess:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_operator_command(data: Path, *arguments: str, standard_input: str = "") -> str:
    """Run `millpond ARGUMENTS --data DATA` and return what it printed. Fails when the command does."""
    finished = subprocess.run(
        [*broker_command(), *arguments, "--data", str(data)],
        input=standard_input,
        capture_output=True,
        text=True,
        timeout=START_DEADLINE_S,
    )
    assert finished.returncode == 0, f"{' '.join(arguments)} ended with {finished.returncode}: {finished.stderr}"
    return finished.stdout
