"""A broker that is killed while consumer groups rebalance, seen by their members.

What is guaranteed: an offset whose commit was answered is there, members find their group again, and every record is
read by somebody.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from tests.support.broker_process import BrokerProcess
from tests.support.waiting import DEADLINE_S, eventually

TOPIC = "log"
GROUP = "crew"
PARTITIONS = 6
RECORDS_A_ROUND = 300
ROUNDS = 4


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """With a listener for Kafka's protocol, whose port stays the same over restarts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = [
        *("--kafka", f"127.0.0.1:{port}"),
        *("--kafka-partitions", str(PARTITIONS)),
        *("--group-initial-rebalance-delay-ms", "0"),
        *("--group-session-timeout-min-ms", "1000"),
    ]
    with BrokerProcess(tmp_path / "broker", arguments=arguments) as process:
        yield process


def servers_of(broker: BrokerProcess) -> dict[str, object]:
    return {
        "bootstrap.servers": broker.listeners["kafka"],
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 100,
        # What is told of lost connections is what the test is about.
        "log_level": 0,
    }


class Reader:
    """A member in a thread of its own, which commits what it has read, and remembers what was answered."""

    def __init__(self, broker: BrokerProcess, strategy: str) -> None:
        settings = servers_of(broker) | {
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 2000,
            "heartbeat.interval.ms": 100,
            "partition.assignment.strategy": strategy,
        }
        self._consumer = Consumer(settings)
        self.values: set[bytes] = set()
        self.committed: dict[int, int] = {}
        self.partitions: frozenset[int] = frozenset()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self._consumer.subscribe([TOPIC])
        while not self._leaving.is_set():
            for message in self._consumer.consume(20, 0.02):
                if message.error() is None:
                    self.values.add(message.value() or b"")
            self.partitions = frozenset(place.partition for place in self._consumer.assignment())
            self._commit()
        self._consumer.close()
        self.partitions = frozenset()

    def _commit(self) -> None:
        try:
            answered = self._consumer.commit(asynchronous=False)
        except KafkaException:
            # There is nothing new, or the broker is gone, or the partition is another's by now.
            return
        for place in answered or []:
            # Of a partition that nothing was read of nothing is committed.
            if place.error is None and place.offset >= 0:
                self.committed[place.partition] = max(place.offset, self.committed.get(place.partition, 0))

    def leave(self) -> None:
        self._leaving.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the consumer did not close"


def produce(broker: BrokerProcess, first: int) -> set[bytes]:
    values = [b"%d" % number for number in range(first, first + RECORDS_A_ROUND)]
    producer = Producer(servers_of(broker) | {"acks": "all"})
    for number, value in enumerate(values):
        producer.produce(TOPIC, value, partition=number % PARTITIONS)
    assert producer.flush(DEADLINE_S) == 0
    return set(values)


def committed_by_group(broker: BrokerProcess) -> dict[int, int]:
    asking = Consumer(servers_of(broker) | {"group.id": GROUP})
    try:
        found = asking.committed([TopicPartition(TOPIC, number) for number in range(PARTITIONS)], timeout=DEADLINE_S)
        return {place.partition: place.offset for place in found}
    finally:
        asking.close()


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_members_find_their_group_and_its_offsets_after_a_kill(broker: BrokerProcess, strategy: str) -> None:
    produced = produce(broker, 0)
    readers: list[Reader] = []
    for number in range(1, ROUNDS + 1):
        # Joining begins a rebalance, in the middle of which the broker dies.
        readers.append(Reader(broker, strategy))
        if number == ROUNDS:
            readers[0].leave()
        elif number == 1:
            eventually(lambda: len(readers[0].committed) == PARTITIONS, "the first member commits")
        broker.kill()
        answered = [dict(reader.committed) for reader in readers]
        broker.start()
        found = committed_by_group(broker)
        for partition, offset in [place for committed in answered for place in committed.items()]:
            assert found[partition] >= offset, f"the offset of partition {partition} went back"
        produced |= produce(broker, number * RECORDS_A_ROUND)
    eventually(lambda: set.union(*(reader.values for reader in readers)) == produced, "every record was read")

    def is_shared() -> bool:
        parts = [reader.partitions for reader in readers[1:]]
        return sum(map(len, parts)) == PARTITIONS and frozenset.union(*parts) == frozenset(range(PARTITIONS))

    eventually(is_shared, "those who are left share all partitions")
    for reader in readers[1:]:
        reader.leave()
    assert committed_by_group(broker) == dict.fromkeys(range(PARTITIONS), len(produced) // PARTITIONS)
