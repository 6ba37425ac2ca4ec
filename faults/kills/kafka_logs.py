"""What the logs of Kafka's topics hold in the end."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

READ_S: Final = 60.0
POLL_S: Final = 0.1

Partition = tuple[str, int]


class Record(NamedTuple):
    offset: int
    key: str
    value: str


@dataclass(slots=True)
class Logs:
    """What each partition holds: all of it, and what whoever reads only what is committed sees."""

    all: dict[Partition, list[Record]] = field(default_factory=dict)
    committed: dict[Partition, list[Record]] = field(default_factory=dict)
    ends: dict[Partition, tuple[int, int]] = field(default_factory=dict)

    def neighbours(self, partition: Partition, offset: int) -> list[str]:
        return [f"in the log: {record}" for record in self.all[partition] if abs(record.offset - offset) <= 3]


def read_logs(servers: str, topics: dict[str, int]) -> Logs:
    """Read all partitions of the topics, which nobody writes to any more."""
    logs = Logs()
    logs.all = _read(servers, topics, "read_uncommitted", logs)
    logs.committed = _read(servers, topics, "read_committed", logs)
    return logs


def _read(servers: str, topics: dict[str, int], isolation: str, logs: Logs) -> dict[Partition, list[Record]]:
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"check-{isolation}", "isolation.level": isolation, "log_level": 0,
         "enable.partition.eof": True, "enable.auto.commit": False, "auto.offset.reset": "error"}
    )  # fmt: skip
    try:
        found: dict[Partition, list[Record]] = defaultdict(list)
        open_places = {(topic, number) for topic, count in topics.items() for number in range(count)}
        starts = []
        for topic, number in sorted(open_places):
            ends = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=READ_S)
            assert ends is not None
            logs.ends[topic, number] = ends
            found[topic, number] = []
            starts.append(TopicPartition(topic, number, ends[0]))
        consumer.assign(starts)
        give_up_at = time.monotonic() + READ_S
        while open_places:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{isolation}: the ends of {sorted(open_places)} were not reached in {READ_S:g} s")
            for message in consumer.consume(1000, POLL_S):
                place = (message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is None:
                    key, value = (message.key() or b"").decode(), (message.value() or b"").decode()
                    found[place].append(Record(message.offset() or 0, key, value))
                elif error.name() == "_PARTITION_EOF":
                    open_places.discard(place)
                else:
                    raise KafkaException(error)
        return dict(found)
    finally:
        consumer.close()
