"""What the clients of Kafka's protocol have written down, and what the logs hold in the end."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

READ_S: Final = 60.0
POLL_S: Final = 0.1
# Of what concerns a failure so many lines are told.
LINES_MAX: Final = 60

Partition = tuple[str, int]


class Record(NamedTuple):
    offset: int
    key: str
    value: str


@dataclass(slots=True)
class Event:
    """One line of a client's file. `at` and `began` are of the machine's monotonic clock."""

    client: str
    at: float
    what: str
    facts: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.client} {self.what} {json.dumps(self.facts, separators=(',', ':'))[:400]}"


@dataclass(slots=True)
class History:
    """All that was written down, in the order of time."""

    events: list[Event] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> History:
        events = [event for path in sorted(folder.glob("*.notes")) for event in _events_of(path)]
        events.sort(key=lambda event: event.at)
        return cls(events)

    def of(self, *what: str) -> Iterator[Event]:
        return (event for event in self.events if event.what in what)

    def about(self, *words: str, client: str | None = None) -> list[str]:
        """The lines that have one of the words, the last ones where there are many."""
        found = [
            str(event) for event in self.events
            if (client is None or event.client == client) and _mentions(event, words)
        ]  # fmt: skip
        return found[-LINES_MAX:]

    def around(self, at: float, seconds: float = 1.0) -> list[str]:
        return [str(event) for event in self.events if abs(event.at - at) <= seconds][:LINES_MAX]


def _mentions(event: Event, words: Sequence[str]) -> bool:
    text = json.dumps(event.facts, separators=(",", ":"))
    return any(word in text for word in words)


def _events_of(path: Path) -> Iterator[Event]:
    for line in path.read_text().splitlines():
        facts = json.loads(line)
        yield Event(path.stem, facts.pop("at"), facts.pop("what"), facts)


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
