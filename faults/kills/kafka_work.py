"""Kafka's clients at work while the broker and they themselves are killed: what they do, and how it is judged.

| topic | who writes | who reads |
| --- | --- | --- |
| orders | idempotent producers, with keys | two consumer groups (`crew`, classic; `team`, KIP-848), the transformers |
| invoices | the transformers, each turn one transaction with its inputs' offsets | `watch`, of committed ones |
| tasks | idempotent producers | a share group, `gang` |
| ledger, compacted | idempotent producers with few keys | |

While it lasts, a thread kills, pauses and replaces clients. When it is over, producers end first, the groups read all
that is left, and then the history is held against the logs and against what the broker says of itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic  # type: ignore[attr-defined]

from faults.kills.history import TOLD_MAX, Broken, History
from faults.kills.kafka_check import (
    LEDGER_KEYS,
    SHARE_DELIVERIES_MAX,
    check_all_read,
    check_offsets,
    check_reads,
    check_sent,
    check_share,
    check_transactions,
)
from faults.kills.kafka_logs import Logs, Partition, read_logs
from faults.kills.processes import Processes
from faults.report import Assignment, Failure
from tests.support.management import request

TOPICS: Final = {"orders": 4, "invoices": 3, "tasks": 2, "ledger": 2}
COMPACTION: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": "16384",
    "segment.ms": "2000",
    "min.cleanable.dirty.ratio": "0.01",
}
# Each group's members, and how partitions are shared out among them.
GROUPS: Final = {"crew": "cooperative-sticky", "team": "consumer"}
TRANSFORMERS: Final = "mill"
SHARE_GROUP: Final = "gang"
SHARE_SETTINGS: Final = {
    "share.auto.offset.reset": "earliest",
    # The most that there may be, as every kill of the broker or a member counts as one delivery.
    "share.delivery.count.limit": str(SHARE_DELIVERIES_MAX),
    # Longer than any pause, so that nobody answers for what another has been given meanwhile.
    "share.record.lock.duration.ms": "15000",
}
RECORDS_A_SECOND: Final = 60
# Time between two things that happen to clients, on average.
CLIENT_PAUSE_S: Final = 3.0
# How long work that is left may take when nobody is disturbed any more. A record in a dead member's hands comes back
# after 30 seconds, and a dead member of a group without a classic protocol is noticed after 45.
REST_S: Final = 90.0
LOOK_S: Final = 0.2
# What the broker is started with, so that dead members are noticed while it matters.
BROKER_ARGUMENTS: Final = (
    *("--group-session-timeout-min-ms", "1000"),
    *("--group-initial-rebalance-delay-ms", "100"),
    *("--group-consumer-session-timeout-ms", "5000"),
    *("--group-consumer-heartbeat-interval-ms", "500"),
    *("--group-share-session-timeout-ms", "5000"),
    *("--group-share-heartbeat-interval-ms", "500"),
    *("--group-share-min-record-lock-duration-ms", "1000"),
    *("--stream-check-interval-ms", "1000"),
)
SESSION_MS: Final = 5000


class Broker(Protocol):
    """What the work has to know of the broker, whose addresses stay the same while it is killed and started."""

    @property
    def kafka_address(self) -> str: ...
    @property
    def management(self) -> tuple[str, int]: ...
    @property
    def generation(self) -> int: ...


class KafkaWork:
    """See the module. `check` is called once, when the broker is up to stay."""

    def __init__(self, assignment: Assignment, broker: Broker) -> None:
        self.done: Counter[str] = Counter()
        self._assignment = assignment
        self._broker = broker
        self._admin = AdminClient({"bootstrap.servers": broker.kafka_address, "log_level": 0})
        self._processes = Processes("kafka", assignment, self.done)
        self._generation = broker.generation
        self._stuck: list[str] = []

    def start(self) -> None:
        topics = [
            NewTopic(name, count, 1, config=COMPACTION if name == "ledger" else {}) for name, count in TOPICS.items()
        ]
        for made in self._admin.create_topics(topics, request_timeout=30).values():
            made.result()
        settings = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in SHARE_SETTINGS.items()
        ]
        group = ConfigResource(ConfigResource.Type.GROUP, SHARE_GROUP, incremental_configs=settings)
        for changed in self._admin.incremental_alter_configs([group], request_timeout=30).values():
            changed.result()
        add = self._processes.add
        servers = self._broker.kafka_address
        for number in range(2):
            keys = [f"orders.{number}/{key}" for key in range(12)]
            add(f"orders.{number}", "produce", servers=servers, topic="orders", keys=keys, rate=RECORDS_A_SECOND)
        for name in ("tasks.0", "ledger.0"):
            keys = [f"{name}/{key}" for key in range(LEDGER_KEYS)]
            add(name, "produce", servers=servers, topic=name.partition(".")[0], keys=keys, rate=RECORDS_A_SECOND / 2)
        for number in range(2):
            name = f"{TRANSFORMERS}.{number}"
            add(name, "transform", servers=servers, topic="orders", target="invoices", group=TRANSFORMERS,
                transactional_id=name, session_ms=SESSION_MS, aborts=0.15)  # fmt: skip
            add(f"{SHARE_GROUP}.{number}", "share", servers=servers, topic="tasks", group=SHARE_GROUP, drain=False)
            for reading, protocol in GROUPS.items():
                add(f"{reading}.{number}", "read", servers=servers, topic="orders", group=reading, protocol=protocol,
                    session_ms=SESSION_MS)  # fmt: skip
        add("watch.0", "watch", servers=servers, topic="invoices", partitions=TOPICS["invoices"])
        self._processes.disturb(CLIENT_PAUSE_S)

    def stop(self) -> None:
        """No client is disturbed any more, and nothing new is produced."""
        self._processes.calm()
        self._stuck = self._processes.end("produce")

    def end(self) -> None:
        """No process of a client is left, whatever has happened."""
        self._processes.calm()
        self._processes.kill()

    def check(self) -> list[Failure]:
        failures = [self._failure(broken) for broken in self._rest()]
        logs = read_logs(self._broker.kafka_address, TOPICS)
        history = History.read(self._processes.folder)
        self._count(history, logs)
        deaths = [event.at for event in history.of("starts") if event.client.startswith(f"{SHARE_GROUP}.")]
        # Each start of the broker has put what was in hands back, and the delivery is counted.
        deaths += [deaths[-1]] * (self._broker.generation - self._generation)
        committed = {group: self._committed(group) for group in (*GROUPS, TRANSFORMERS)}
        checks: list[Iterable[Broken]] = [
            check_sent(history, logs, ["orders", "tasks"]),
            check_sent(history, logs, ["ledger"], compacted=True),
            check_reads(history, logs),
            check_offsets(history, logs, committed),
            check_transactions(history, logs, "orders", "invoices"),
            *(check_all_read(history, logs, group, "orders") for group in GROUPS),
            check_share(history, logs, "tasks", deaths),
            self._check_figures(logs, committed),
        ]
        for check in checks:
            failures += [self._failure(broken) for broken in islice(check, TOLD_MAX)]
        return failures

    def _failure(self, broken: Broken) -> Failure:
        return Failure(broken.what, broken.history, f"python -m faults kills --seed {self._assignment.seed}")

    def _rest(self) -> Iterator[Broken]:
        """Let the clients do what is left, and end. What they do not come to the end of is a failure."""
        yield from self._processes.errors()
        for name in self._stuck:
            yield Broken(f"{name} did not end within its time", History.read(self._processes.folder).about(client=name))
        for group in (*GROUPS, TRANSFORMERS):
            if not self._within_time(lambda group=group: not self._lag(group)):  # type: ignore[misc]
                lines = [
                    str(event) for event in History.read(self._processes.folder).events if f"{group}." in event.client
                ]
                yield Broken(f"group {group} stands still, behind by {self._lag(group)}", lines[-60:])
        for name in self._processes.end("read", "transform", "watch", "share"):
            yield Broken(f"{name} did not end within its time", History.read(self._processes.folder).about(client=name))
        # Whoever drains has no records of before, so all that it is given has been nobody's.
        self._processes.add(f"{SHARE_GROUP}.drain", "share", servers=self._broker.kafka_address, topic="tasks",
                            group=SHARE_GROUP, drain=True)  # fmt: skip
        if not self._within_time(lambda: self._share_figures()["lag"] == 0):
            yield Broken(f"share group {SHARE_GROUP} is not done: {self._share_figures()}", [])
        self._processes.end("share")

    def _within_time(self, condition: Callable[[], bool]) -> bool:
        give_up_at = time.monotonic() + REST_S
        while time.monotonic() < give_up_at:
            self._processes.revive()
            try:
                if condition():
                    return True
            except KafkaException:
                pass
            time.sleep(LOOK_S)
        return False

    def _committed(self, group: str) -> dict[Partition, int]:
        asked = self._admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=30)
        found = asked[group].result().topic_partitions or []
        return {(place.topic, place.partition): place.offset for place in found}

    def _lag(self, group: str) -> int:
        """By the offsets: markers of transactions are none of these partitions'."""
        committed = self._committed(group)
        consumer = Consumer({"bootstrap.servers": self._broker.kafka_address, "group.id": "lag", "log_level": 0})
        try:
            lag = 0
            for number in range(TOPICS["orders"]):
                ends = consumer.get_watermark_offsets(TopicPartition("orders", number), timeout=30)
                assert ends is not None
                lag += ends[1] - max(committed.get(("orders", number), 0), 0)
            return lag
        finally:
            consumer.close()

    def _get(self, path: str) -> Any:
        answer = request(self._broker.management, "GET", path)
        assert answer.status == 200, f"GET {path}: {answer.status} {answer.content!r}"
        return answer.json

    def _share_figures(self) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"/api/shares/%2F/{SHARE_GROUP}")
        return found

    def _check_figures(self, logs: Logs, committed: dict[str, dict[Partition, int]]) -> Iterator[Broken]:
        """What the management API says is what there is."""
        for topic in TOPICS:
            for place in self._get(f"/api/topics/%2F/{topic}")["partition_details"]:
                told = (place["start_offset"], place["end_offset"])
                if told != logs.ends[topic, place["partition"]]:
                    yield Broken(f"/api/topics/{topic} says {place}", [str(logs.ends[topic, place["partition"]])])
        for group in (*GROUPS, TRANSFORMERS):
            for place in self._get(f"/api/groups/%2F/{group}")["offset_details"]:
                told_offset = committed[group].get((place["topic"], place["partition"]))
                if place["offset"] != told_offset:
                    yield Broken(f"/api/groups/{group} says {place}, OffsetFetch {told_offset}", [])

    def _count(self, history: History, logs: Logs) -> None:
        for event in history.events:
            if event.what == "acked":
                self.done["Kafka records acknowledged"] += len(event.facts["records"])
            elif event.what == "read":
                self.done["Kafka records read"] += len(event.facts["records"])
            elif event.what == "committed":
                self.done["Kafka transactions committed"] += 1
            elif event.what == "aborted":
                self.done["Kafka transactions aborted"] += 1
            elif event.what == "offsets":
                self.done["Kafka offset commits answered"] += 1
            elif event.what == "settled":
                self.done["share group records settled"] += len(event.facts["records"])
            elif event.what == "ended" and event.facts["fenced"]:
                self.done["Kafka producers fenced"] += 1
        self.done["Kafka records in the logs"] += sum(map(len, logs.all.values()))
