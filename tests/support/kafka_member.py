"""Members of consumer groups: each client polls in a thread of its own, and shows what it has been given.

Run as a program (`python -m tests.support.kafka_member CLIENT SERVERS GROUP TOPIC`) one member lives in a process that
a test may kill. It says on its standard output, one JSON list a line, what its assignment is whenever that changes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiokafka
import confluent_kafka
import kafka
from aiokafka.coordinator.assignors.range import RangePartitionAssignor as AioRangeAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor

from tests.support.kafka_client import Record, confluent_record, python_record, quiet
from tests.support.waiting import DEADLINE_S, eventually

# Far more than a busy machine holds a member up. One that is killed is noticed much sooner.
SESSION_TIMEOUT_MS = 10_000
MORTAL_SESSION_TIMEOUT_MS = 1_000
# Members hear of a rebalance as often as that.
HEARTBEAT_INTERVAL_MS = 100
# kafka-python gives up a rebalance that takes longer than one poll may, and has to begin again.
KAFKA_PYTHON_POLL_MS = 300

Assignment = frozenset[tuple[str, int]]


class Member:
    """What all members have in common. `lost` and `gained` are the rebalances as the client has reported them."""

    client = ""

    def __init__(
        self,
        servers: str,
        group: str,
        *topics: str,
        instance_id: str | None = None,
        auto_commit: bool = True,
        session_timeout_ms: int = SESSION_TIMEOUT_MS,
        **settings: Any,
    ) -> None:
        self.servers = servers
        self.group = group
        self.topics = list(topics)
        self.instance_id = instance_id
        self.auto_commit = auto_commit
        self.session_timeout_ms = session_timeout_ms
        self.settings = settings
        self.assignment: Assignment = frozenset()
        self.gained: list[Assignment] = []
        self.lost: list[Assignment] = []
        self.records: list[Record] = []
        self.failure: BaseException | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def wait_for(self, count: int) -> Assignment:
        """Wait until it has `count` partitions."""
        self.until(lambda: len(self.assignment) == count, f"{count} partitions for {self.client}")
        return self.assignment

    def until(self, condition: Callable[[], bool], what: str) -> None:
        eventually(lambda: condition() or self.failure is not None, what)
        if self.failure is not None:
            raise self.failure

    def leave(self) -> None:
        """Close the client, which leaves the group (a static member does not) and commits what it has read."""
        self._leaving.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"{self.client} did not close"

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]

    def _live(self) -> None:
        try:
            self._run()
        except Exception as failure:  # noqa: BLE001 - whoever waits for it raises it
            self.failure = failure
        self.assignment = frozenset()

    def _run(self) -> None:
        raise NotImplementedError

    def _show(self, places: Any) -> None:
        self.assignment = as_assignment(places)


class ConfluentMember(Member):
    client = "confluent"

    def client_settings(self) -> dict[str, Any]:
        settings = quiet(self.servers) | {
            "group.id": self.group,
            "partition.assignment.strategy": "range",
            "auto.offset.reset": "earliest",
            "session.timeout.ms": self.session_timeout_ms,
            "heartbeat.interval.ms": HEARTBEAT_INTERVAL_MS,
            "max.poll.interval.ms": max(self.session_timeout_ms, 20_000),
            "enable.auto.commit": self.auto_commit,
            "topic.metadata.refresh.interval.ms": 200,
            "fetch.wait.max.ms": 100,
        }
        if self.instance_id is not None:
            settings["group.instance.id"] = self.instance_id
        return settings | {key.replace("_", "."): value for key, value in self.settings.items()}

    def _run(self) -> None:
        consumer = confluent_kafka.Consumer(self.client_settings())
        try:
            consumer.subscribe(
                self.topics,
                on_assign=lambda _, places: self.gained.append(as_assignment(places)),
                on_revoke=lambda _, places: self.lost.append(as_assignment(places)),
            )
            while not self._leaving.is_set():
                message = consumer.poll(0.02)
                self._show(consumer.assignment())
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    self.records.append(confluent_record(message))
                elif error.code() in (confluent_kafka.KafkaError._FATAL, confluent_kafka.KafkaError.FENCED_INSTANCE_ID):
                    raise confluent_kafka.KafkaException(error)
        finally:
            consumer.close()


class KafkaPythonMember(Member):
    client = "kafka-python"

    def _run(self) -> None:
        member = self

        class Listener(kafka.ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_assigned(self, assigned: Any) -> None:
                member.gained.append(as_assignment(assigned))

            def on_partitions_revoked(self, revoked: Any) -> None:
                member.lost.append(as_assignment(revoked))

        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.servers,
            group_id=self.group,
            group_instance_id=self.instance_id,
            partition_assignment_strategy=(RangePartitionAssignor,),
            auto_offset_reset="earliest",
            session_timeout_ms=self.session_timeout_ms,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            max_poll_interval_ms=max(self.session_timeout_ms, 20_000),
            enable_auto_commit=self.auto_commit,
            **self.settings,
        )
        try:
            for topic in self.topics:
                # A leader that joins before it knows the topic would share out nothing, and be slow to notice.
                consumer.partitions_for_topic(topic)
            consumer.subscribe(topics=self.topics, listener=Listener())
            while not self._leaving.is_set():
                for batch in consumer.poll(timeout_ms=KAFKA_PYTHON_POLL_MS).values():
                    self.records.extend(python_record(record) for record in batch)
                self._show(consumer.assignment())
        finally:
            consumer.close()


class AioKafkaMember(Member):
    client = "aiokafka"

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        member = self

        class Listener(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_assigned(self, assigned: Any) -> None:
                member.gained.append(as_assignment(assigned))

            def on_partitions_revoked(self, revoked: Any) -> None:
                member.lost.append(as_assignment(revoked))

        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self.servers,
            group_id=self.group,
            group_instance_id=self.instance_id,
            partition_assignment_strategy=(AioRangeAssignor,),
            auto_offset_reset="earliest",
            session_timeout_ms=self.session_timeout_ms,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            enable_auto_commit=self.auto_commit,
            **self.settings,
        )
        consumer.subscribe(self.topics, listener=Listener())
        async with consumer:
            while not self._leaving.is_set():
                for batch in (await consumer.getmany(timeout_ms=20)).values():
                    self.records.extend(python_record(record) for record in batch)
                self._show(consumer.assignment())


MEMBERS: tuple[type[Member], ...] = (ConfluentMember, KafkaPythonMember, AioKafkaMember)


def as_assignment(places: Any) -> Assignment:
    return frozenset((place.topic, place.partition) for place in places)


class MortalMember:
    """A member in a process of its own, to be killed."""

    def __init__(self, client: str, servers: str, group: str, topic: str) -> None:
        arguments = [sys.executable, "-m", __name__, client, servers, group, topic]
        root = Path(__file__).parents[2]
        self.assignment: Assignment = frozenset()
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=root)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.assignment = frozenset((topic, partition) for topic, partition in json.loads(line))

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.assignment) == count, f"{count} partitions for the member in a process")

    def kill(self) -> None:
        self._process.kill()

    def __enter__(self) -> MortalMember:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join()
        self._process.communicate()


def main(client: str, servers: str, group: str, topic: str) -> None:
    [member_type] = [member for member in MEMBERS if member.client == client]
    member = member_type(servers, group, topic, auto_commit=False, session_timeout_ms=MORTAL_SESSION_TIMEOUT_MS)
    shown: Assignment | None = None

    def changed() -> bool:
        return member.assignment != shown or member.failure is not None

    with suppress(KeyboardInterrupt):
        while member.failure is None:
            eventually(changed, "another assignment", deadline_s=3600)
            shown = member.assignment
            print(json.dumps(sorted(shown)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
