"""A broker that is killed while Kafka's clients of all kinds work, some of which are killed themselves."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.kills.kafka_work import BROKER_ARGUMENTS, KafkaWork
from faults.report import Assignment
from tests.support.broker_process import BrokerProcess

SEED = 6
KILLS = 3
# A kill comes so long after the broker was ready.
PAUSE_S = (0.3, 1.5)


class KilledBroker:
    """What the work sees of a broker."""

    def __init__(self, process: BrokerProcess) -> None:
        self._process = process
        self.generation = 1

    @property
    def kafka_address(self) -> str:
        return self._process.kafka_address

    @property
    def management(self) -> tuple[str, int]:
        host, _, port = self._process.listeners["admin"].rpartition(":")
        return host, int(port)

    def kill(self) -> None:
        self._process.kill()
        self._process.start()
        self.generation += 1


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KilledBroker]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        admin = f"127.0.0.1:{found.getsockname()[1]}"
    arguments = [*BROKER_ARGUMENTS, "--admin", admin]
    with BrokerProcess(tmp_path / "broker", kafka=True, arguments=arguments) as process:
        yield KilledBroker(process)


@pytest.mark.timeout(180)
def test_what_was_acknowledged_to_clients_of_kafka_outlives_kills(broker: KilledBroker, tmp_path: Path) -> None:
    assignment = Assignment(SEED, 15, tmp_path, print)
    choose = assignment.choose("kills")
    work = KafkaWork(assignment, broker)
    try:
        work.start()
        for _ in range(KILLS):
            # The moment of a kill is what chance is for; there is no condition to wait for.
            time.sleep(choose.uniform(*PAUSE_S))
            broker.kill()
        work.stop()
        failures = work.check()
    finally:
        work.end()
    assert not failures, "\n".join([failures[0].what, *failures[0].history])
    assert work.done["Kafka records acknowledged"] > 0
    assert work.done["share group records settled"] > 0
