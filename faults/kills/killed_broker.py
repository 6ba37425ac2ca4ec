"""The broker that is killed, and what kills it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Final

from faults.kills.kafka_work import BROKER_ARGUMENTS
from faults.kills.proxy import Proxy
from tests.support.broker_process import BrokerProcess, restartable_port

# So small that backlogs leave memory.
MEMORY_BUDGET: Final = "32MiB"
# Of all kills, so many come while the broker starts, this long after its launch at most.
KILLED_AT_START: Final = 0.3
START_S_MAX: Final = 0.9
# Of all ends, so many are clean ones.
STOPPED: Final = 0.05
PAUSED: Final = 0.15
PAUSE_S: Final = (0.05, 1.5)
# Time between two things that happen to connections, on average.
CONNECTION_PAUSE_S: Final = 0.5


class BrokerFailed(Exception):
    """It ended by itself, or did not start."""


class KilledBroker:
    """A broker behind a proxy, whose addresses stay the same while it is killed and started."""

    def __init__(self, folder: Path, choose: random.Random, done: Counter[str]) -> None:
        self.done = done
        self.generation = 0
        self.starts_s: list[float] = []
        self._choose = choose
        self.proxy = Proxy(choose, done)
        self.management = ("127.0.0.1", restartable_port())
        amqp_port = self.proxy.listen(lambda: self.process.port)
        kafka_port = self.proxy.listen(lambda: int(self.process.kafka_address.rpartition(":")[2]))
        self.amqp_address = f"127.0.0.1:{amqp_port}"
        self.kafka_address = f"127.0.0.1:{kafka_port}"
        arguments = [
            *BROKER_ARGUMENTS,
            *("--admin", f"127.0.0.1:{self.management[1]}"),
            *("--kafka-advertised", self.kafka_address),
            *("--memory-budget", MEMORY_BUDGET),
        ]
        self.process = BrokerProcess(folder, arguments=arguments, kafka=True)

    @property
    def amqp_url(self) -> str:
        """The way to it that nobody disturbs."""
        return self.process.amqp_url

    def start(self) -> None:
        """Have it running, after some that were killed when they had hardly begun."""
        self._launch()
        began = time.monotonic()
        try:
            self.process.wait_until_ready()
        except AssertionError as error:
            raise BrokerFailed(str(error)) from None
        self.starts_s.append(time.monotonic() - began)

    def kill(self) -> None:
        if not self.process.running:
            raise BrokerFailed(f"the broker has ended by itself:\n{self.process.log[-4000:]}")
        self.process.kill()
        self.done["broker killed"] += 1

    def kill_at_start(self) -> None:
        self._launch()
        time.sleep(self._choose.uniform(0, START_S_MAX))
        self.kill()
        self.done["broker killed while it started"] += 1

    def _launch(self) -> None:
        self.generation += 1
        self.process.launch()

    def live(self, seconds: float) -> None:
        """Let it work for so long, with a pause now and then and with connections that break."""
        until = time.monotonic() + seconds
        if self._choose.random() < PAUSED:
            self._pause(min(seconds, self._choose.uniform(*PAUSE_S)))
        while (left := until - time.monotonic()) > 0:
            pause_s = self._choose.expovariate(1 / CONNECTION_PAUSE_S)
            time.sleep(min(left, pause_s))
            if pause_s < left:
                self.proxy.disturb_one()

    def _pause(self, seconds: float) -> None:
        self.done["broker paused"] += 1
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGCONT)

    def end_somehow(self) -> None:
        """Most often by a kill."""
        if self._choose.random() < STOPPED:
            code = self.process.terminate()
            self.done["broker stopped cleanly"] += 1
            if code != 0:
                raise BrokerFailed(f"a clean stop ended with {code}:\n{self.process.log[-4000:]}")
        else:
            self.kill()
        while self._choose.random() < KILLED_AT_START:
            self.kill_at_start()

    def close(self) -> None:
        if self.process.running:
            self.process.kill()
        self.proxy.close()
