"""What the tests of Kafka's protocol need around three clients: records in, records out, the same call for each.

The clients are what is tested, so each goes through its own producer, consumer and codecs; only the calls are alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiokafka
import confluent_kafka
import confluent_kafka.admin
import kafka

from tests.support.waiting import DEADLINE_S

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")

Headers = tuple[tuple[str, bytes | None], ...]
Unique = Callable[[str], str]


@dataclass(frozen=True)
class Message:
    """What is handed to a producer. None for a timestamp or a partition leaves it to the client."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int | None = None
    partition: int | None = None


@dataclass(frozen=True)
class Record:
    """What a consumer has got. `append_time` says that the broker has set the timestamp."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    append_time: bool


Place = tuple[int, int]  # partition and offset


class Client(Protocol):
    """One client library on one broker."""

    name: str

    def produce(self, topic: str, messages: Sequence[Message], **settings: Any) -> list[Place]:
        """Produce all and wait for their acknowledgements. Raises what the client reports.

        `settings` are `codec`, `acks` (0, 1 or "all") and `request_bytes_max`, the client's own limit.
        """

    def read(self, topic: str, count: int, partitions: Sequence[int] = (0,), start: int = 0) -> list[Record]:
        """The first `count` records of the partitions from offset `start`, read without a group."""

    def bounds(self, topic: str, partition: int = 0) -> tuple[int, int]:
        """The offset of the first record, and the one after the last."""

    def offsets_for_times(self, topic: str, *timestamps_ms: int) -> list[int | None]:
        """For each time the offset of the first record in partition 0 that is not older, or None when all are."""


def numbered(count: int, partition: int | None = None) -> list[Message]:
    """Messages that a codec makes smaller, so that a client does send them compressed."""
    return [Message(b"%d %s" % (number, b"mill " * 20), partition=partition) for number in range(count)]


class ConfluentClient:
    name = "confluent"

    def __init__(self, servers: str) -> None:
        self.servers = servers

    def produce(
        self,
        topic: str,
        messages: Sequence[Message],
        codec: str = "none",
        acks: int | str = "all",
        request_bytes_max: int | None = None,
    ) -> list[Place]:
        settings: dict[str, Any] = {"compression.type": codec, "acks": acks, "linger.ms": 5}
        if request_bytes_max is not None:
            settings["message.max.bytes"] = request_bytes_max
        producer = confluent_kafka.Producer(quiet(self.servers) | settings)
        done: dict[int, confluent_kafka.Message] = {}
        failures: list[confluent_kafka.KafkaError] = []

        def keep(number: int) -> Callable[[Any, Any], None]:
            def delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
                done[number] = message
                if error is not None:
                    failures.append(error)

            return delivered

        for number, message in enumerate(messages):
            optional: dict[str, Any] = {}
            if message.partition is not None:
                optional["partition"] = message.partition
            if message.timestamp_ms is not None:
                optional["timestamp"] = message.timestamp_ms
            producer.produce(
                topic,
                message.value,
                message.key,
                headers=list(message.headers) or None,
                on_delivery=keep(number),
                **optional,
            )
        assert producer.flush(DEADLINE_S) == 0, "not all messages were acknowledged"
        if failures:
            raise confluent_kafka.KafkaException(failures[0])
        return [(done[number].partition(), done[number].offset()) for number in range(len(messages))]

    def read(self, topic: str, count: int, partitions: Sequence[int] = (0,), start: int = 0) -> list[Record]:
        consumer = confluent_kafka.Consumer(quiet(self.servers) | {"group.id": "unused", "enable.auto.commit": False})
        try:
            consumer.assign([confluent_kafka.TopicPartition(topic, number, start) for number in partitions])
            return [confluent_record(message) for message in poll(consumer, count)]
        finally:
            consumer.close()

    def bounds(self, topic: str, partition: int = 0) -> tuple[int, int]:
        consumer = confluent_kafka.Consumer(quiet(self.servers) | {"group.id": "unused"})
        try:
            low, high = consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, partition), DEADLINE_S)
            return low, high
        finally:
            consumer.close()

    def offsets_for_times(self, topic: str, *timestamps_ms: int) -> list[int | None]:
        consumer = confluent_kafka.Consumer(quiet(self.servers) | {"group.id": "unused"})
        offsets: list[int | None] = []
        try:
            for timestamp_ms in timestamps_ms:
                asked = [confluent_kafka.TopicPartition(topic, 0, timestamp_ms)]
                [found] = consumer.offsets_for_times(asked, DEADLINE_S)
                assert found.error is None, found.error
                offsets.append(None if found.offset == confluent_kafka.OFFSET_END else found.offset)
        finally:
            consumer.close()
        return offsets


class KafkaPythonClient:
    name = "kafka-python"

    def __init__(self, servers: str) -> None:
        self.servers = servers

    def produce(
        self,
        topic: str,
        messages: Sequence[Message],
        codec: str = "none",
        acks: int | str = "all",
        request_bytes_max: int | None = None,
    ) -> list[Place]:
        settings: dict[str, Any] = {"compression_type": None if codec == "none" else codec, "acks": acks}
        # It is idempotent where it may be, and that asks for acks=all.
        settings["enable_idempotence"] = acks == "all"
        if request_bytes_max is not None:
            settings["max_request_size"] = request_bytes_max
        producer = kafka.KafkaProducer(bootstrap_servers=self.servers, linger_ms=5, **settings)
        try:
            sent = [
                producer.send(
                    topic,
                    value=message.value,
                    key=message.key,
                    headers=list(message.headers),
                    partition=message.partition,
                    timestamp_ms=message.timestamp_ms,
                )
                for message in messages
            ]
            producer.flush(DEADLINE_S)
            places = [future.get(DEADLINE_S) for future in sent]
        finally:
            producer.close(DEADLINE_S)
        return [(place.partition, place.offset) for place in places]

    def read(self, topic: str, count: int, partitions: Sequence[int] = (0,), start: int = 0) -> list[Record]:
        consumer = kafka.KafkaConsumer(bootstrap_servers=self.servers, group_id=None, enable_auto_commit=False)
        try:
            places = [kafka.TopicPartition(topic, number) for number in partitions]
            consumer.assign(places)
            for place in places:
                consumer.seek(place, start)
            records: list[Record] = []
            give_up_at = time.monotonic() + DEADLINE_S
            while len(records) < count:
                assert time.monotonic() < give_up_at, f"{len(records)} records instead of {count}"
                for batch in consumer.poll(timeout_ms=1000).values():
                    records.extend(python_record(record) for record in batch)
            return records[:count]
        finally:
            consumer.close()

    def bounds(self, topic: str, partition: int = 0) -> tuple[int, int]:
        consumer = kafka.KafkaConsumer(bootstrap_servers=self.servers, group_id=None)
        try:
            place = kafka.TopicPartition(topic, partition)
            return consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]
        finally:
            consumer.close()

    def offsets_for_times(self, topic: str, *timestamps_ms: int) -> list[int | None]:
        consumer = kafka.KafkaConsumer(bootstrap_servers=self.servers, group_id=None)
        try:
            place = kafka.TopicPartition(topic, 0)
            found = [consumer.offsets_for_times({place: timestamp_ms})[place] for timestamp_ms in timestamps_ms]
            return [None if each is None else each.offset for each in found]
        finally:
            consumer.close()


class AioKafkaClient:
    name = "aiokafka"

    def __init__(self, servers: str) -> None:
        self.servers = servers

    def produce(
        self,
        topic: str,
        messages: Sequence[Message],
        codec: str = "none",
        acks: int | str = "all",
        request_bytes_max: int | None = None,
    ) -> list[Place]:
        settings: dict[str, Any] = {"compression_type": None if codec == "none" else codec, "acks": acks}
        if request_bytes_max is not None:
            settings["max_request_size"] = request_bytes_max

        async def produce() -> list[Place]:
            async with aiokafka.AIOKafkaProducer(bootstrap_servers=self.servers, linger_ms=5, **settings) as producer:
                sent = [
                    await producer.send(
                        topic,
                        value=message.value,
                        key=message.key,
                        headers=list(message.headers),
                        partition=message.partition,
                        timestamp_ms=message.timestamp_ms,
                    )
                    for message in messages
                ]
                places = [await asyncio.wait_for(future, DEADLINE_S) for future in sent]
            # There is no place without an acknowledgement.
            return [(place.partition, place.offset) for place in places if place is not None]

        return asyncio.run(produce())

    def read(self, topic: str, count: int, partitions: Sequence[int] = (0,), start: int = 0) -> list[Record]:
        async def read() -> list[Record]:
            consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=self.servers, enable_auto_commit=False)
            async with consumer, asyncio.timeout(DEADLINE_S):
                places = [aiokafka.TopicPartition(topic, number) for number in partitions]
                consumer.assign(places)
                for place in places:
                    consumer.seek(place, start)
                return [python_record(await consumer.getone()) for _ in range(count)]

        return asyncio.run(read())

    def bounds(self, topic: str, partition: int = 0) -> tuple[int, int]:
        async def bounds() -> tuple[int, int]:
            async with aiokafka.AIOKafkaConsumer(bootstrap_servers=self.servers) as consumer:
                place = aiokafka.TopicPartition(topic, partition)
                first, end = await consumer.beginning_offsets([place]), await consumer.end_offsets([place])
                return first[place], end[place]

        return asyncio.run(bounds())

    def offsets_for_times(self, topic: str, *timestamps_ms: int) -> list[int | None]:
        async def find() -> list[int | None]:
            async with aiokafka.AIOKafkaConsumer(bootstrap_servers=self.servers) as consumer:
                place = aiokafka.TopicPartition(topic, 0)
                found = [(await consumer.offsets_for_times({place: at_ms}))[place] for at_ms in timestamps_ms]
                return [None if each is None else each.offset for each in found]

        return asyncio.run(find())


CLIENTS: tuple[Callable[[str], Client], ...] = (ConfluentClient, KafkaPythonClient, AioKafkaClient)


def quiet(servers: str) -> dict[str, Any]:
    """librdkafka's settings for `servers`. It would print to standard error when a broker goes away, which is meant."""
    return {"bootstrap.servers": servers, "log_level": 0}


def confluent_record(message: confluent_kafka.Message) -> Record:
    kind, timestamp_ms = message.timestamp()
    return Record(
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        tuple(message.headers() or ()),
        timestamp_ms,
        kind == confluent_kafka.TIMESTAMP_LOG_APPEND_TIME,
    )


def python_record(record: Any) -> Record:
    """kafka-python and aiokafka call the parts of a record the same."""
    append_time = record.timestamp_type == 1
    headers = tuple(record.headers)
    return Record(record.partition, record.offset, record.key, record.value, headers, record.timestamp, append_time)


def poll(
    consumer: confluent_kafka.Consumer, count: int, *, deadline_s: float = DEADLINE_S
) -> list[confluent_kafka.Message]:
    """The next `count` messages of a confluent consumer. Raises what it reports instead of one."""
    messages: list[confluent_kafka.Message] = []
    give_up_at = time.monotonic() + deadline_s
    while len(messages) < count:
        message = consumer.poll(0.1)
        if message is None:
            assert time.monotonic() < give_up_at, f"{len(messages)} messages instead of {count}"
        elif message.error() is not None:
            raise confluent_kafka.KafkaException(message.error())
        else:
            messages.append(message)
    return messages


def read_to_the_end(servers: str, topic: str, partitions: Sequence[int] = (0,)) -> list[Record]:
    """Everything that is in the partitions now."""
    settings = {
        "group.id": "unused",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 10,
    }
    consumer = confluent_kafka.Consumer(quiet(servers) | settings)
    records: list[Record] = []
    ended: set[int] = set()
    give_up_at = time.monotonic() + DEADLINE_S
    try:
        places = [confluent_kafka.TopicPartition(topic, number) for number in partitions]
        for place in places:
            # Left to itself it would take half a second to ask where the beginning is.
            place.offset, _ = consumer.get_watermark_offsets(place, DEADLINE_S)
        consumer.assign(places)
        while len(ended) < len(partitions):
            assert time.monotonic() < give_up_at, f"the end of {topic} was not reached"
            message = consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is None:
                records.append(confluent_record(message))
            elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            else:
                raise confluent_kafka.KafkaException(error)
    finally:
        consumer.close()
    return records
