"""Settings of a topic that act: timestamps, compression, retention, compaction."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from tests.conftest import EXTERNAL_KAFKA_VARIABLE
from tests.kafka.conftest import CreateTopic, wait_for_topic
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import (
    CODECS,
    Client,
    ConfluentClient,
    Message,
    Record,
    numbered,
    quiet,
    read_to_the_end,
)
from tests.support.raw_kafka import RawKafka, batch_of, fetch_batches, produce_batch
from tests.support.waiting import DEADLINE_S, eventually

HOUR_MS = 3_600_000
CORRUPT_MESSAGE = 2
INVALID_TIMESTAMP = 32

# A pass waits for a checkpoint, and those keep their distance.
COMPACTION_DEADLINE_S = 40.0

Fill = Callable[[Client, str], None]


@pytest.fixture
def producer(kafka: str) -> Client:
    return ConfluentClient(kafka)


def one_segment_each(
    producer: Client, topic: str, messages: Sequence[tuple[bytes | None, bytes | None]], *, after_minutes: int = 0
) -> None:
    """Produce keys and values, each with a timestamp so much later than the last that it begins a new segment.

    The topics of these tests have `segment.ms=1000`. A last record makes the segment of the one before it old as well:
    what is retained or compacted is never the segment that is being written.
    """
    start_ms = int(time.time() * 1000) - HOUR_MS + 60_000 * after_minutes
    for number, (key, value) in enumerate((*messages, (b"last", b"last"))):
        producer.produce(topic, [Message(value, key, timestamp_ms=start_ms + 10_000 * number)])


class TestTimestamps:
    def test_the_broker_s_clock_stamps_when_it_is_to(
        self, client: Client, clients: list[Client], create_topic: CreateTopic
    ) -> None:
        name = create_topic(message_timestamp_type="LogAppendTime")
        begun_ms = int(time.time() * 1000)
        client.produce(name, [Message(b"old", timestamp_ms=begun_ms - HOUR_MS), Message(b"new")], codec="gzip")
        ended_ms = int(time.time() * 1000)
        for reader in clients:
            for record in reader.read(name, 2):
                assert begun_ms <= record.timestamp_ms <= ended_ms
                assert record.append_time
        assert client.offsets_for_times(name, begun_ms, ended_ms + 1) == [0, None]

    def test_the_acknowledgement_has_the_broker_s_time(self, raw: RawKafka, create_topic: CreateTopic) -> None:
        by_broker, by_client = create_topic(message_timestamp_type="LogAppendTime"), create_topic()
        assert produce_batch(raw, by_broker, batch_of(b"m")).log_append_time is not None
        assert produce_batch(raw, by_client, batch_of(b"m")).log_append_time is None

    def test_a_time_too_far_in_the_future_is_refused(self, raw: RawKafka, topic: str) -> None:
        now_ms = int(time.time() * 1000)
        assert (
            produce_batch(raw, topic, batch_of(b"m", timestamp_ms=now_ms + 2 * HOUR_MS)).error_code == INVALID_TIMESTAMP
        )
        assert produce_batch(raw, topic, batch_of(b"m", timestamp_ms=now_ms + HOUR_MS // 2)).error_code == 0


class TestCompression:
    @pytest.mark.parametrize("codec", CODECS[1:])
    def test_what_comes_in_another_way_is_compressed_anew(
        self, kafka: str, clients: list[Client], create_topic: CreateTopic, codec: str
    ) -> None:
        name = create_topic(compression_type=codec)
        producer = ConfluentClient(kafka)
        headers = (("header", b"value"),)
        messages = [Message(b"value %d" % number * 20, b"key %d" % number, headers) for number in range(20)]
        producer.produce(name, messages, codec="none")
        producer.produce(name, messages, codec="gzip")
        producer.produce(name, messages, codec=codec)
        assert {batch.codec for batch in fetch_batches(kafka, name)} == {codec}
        for reader in clients:
            records = reader.read(name, 60)
            assert [Message(each.value, each.key, each.headers) for each in records] == messages * 3
            assert [record.offset for record in records] == list(range(60))

    def test_uncompressed_is_a_choice_too(self, kafka: str, client: Client, create_topic: CreateTopic) -> None:
        name = create_topic(compression_type="uncompressed")
        client.produce(name, numbered(20), codec="zstd")
        assert {batch.codec for batch in fetch_batches(kafka, name)} == {"none"}
        assert [record.value for record in client.read(name, 20)] == [message.value for message in numbered(20)]


class TestDamage:
    def test_a_batch_that_was_damaged_on_its_way_is_refused(self, raw: RawKafka, topic: str, kafka: str) -> None:
        batch = bytearray(batch_of(b"some value"))
        batch[-1] ^= 1
        assert produce_batch(raw, topic, bytes(batch)).error_code == CORRUPT_MESSAGE
        assert read_to_the_end(kafka, topic) == []

    def test_a_batch_that_is_cut_off_is_refused_or_ends_the_connection(
        self, raw: RawKafka, topic: str, kafka: str
    ) -> None:
        try:
            assert produce_batch(raw, topic, batch_of(b"some value")[:-3]).error_code != 0
        except AssertionError:
            assert raw.closed_by_broker()
        assert read_to_the_end(kafka, topic) == []


class TestRetention:
    def test_records_that_are_too_old_go(self, producer: Client, create_topic: CreateTopic) -> None:
        name = create_topic(retention_ms=HOUR_MS // 4)
        old_ms = int(time.time() * 1000) - HOUR_MS
        producer.produce(name, [Message(b"old", timestamp_ms=old_ms) for _ in range(10)])
        eventually(lambda: producer.bounds(name) == (10, 10), "all are gone")
        assert producer.produce(name, [Message(b"new")]) == [(0, 10)]
        assert [record.value for record in producer.read(name, 1, start=10)] == [b"new"]

    def test_records_that_are_not_yet_old_stay(self, producer: Client, create_topic: CreateTopic) -> None:
        name = create_topic(retention_ms=HOUR_MS // 4, segment_ms=1000)
        now_ms = int(time.time() * 1000)
        for age_ms in (HOUR_MS, HOUR_MS - 10_000, 20_000, 10_000, 0):
            producer.produce(name, [Message(b"%d" % age_ms, timestamp_ms=now_ms - age_ms)])
        eventually(lambda: producer.bounds(name) == (2, 5), "the old ones are gone")
        assert [record.value for record in producer.read(name, 3, start=2)] == [b"20000", b"10000", b"0"]

    def test_the_oldest_go_when_there_is_too_much(self, producer: Client, create_topic: CreateTopic) -> None:
        name = create_topic(retention_bytes=2 << 20, segment_bytes=1 << 20)
        producer.produce(name, [Message(b"x" * 100_000) for _ in range(60)])
        eventually(lambda: producer.bounds(name)[0] > 0, "the oldest are gone")

        def size() -> int:
            first, end = producer.bounds(name)
            return 100_000 * (end - first)

        eventually(lambda: size() <= (3 << 20) + 200_000, "no more is left than what must be, and a segment")
        assert size() >= 2 << 20
        first, end = producer.bounds(name)
        assert end == 60
        assert [record.offset for record in producer.read(name, end - first, start=first)] == list(range(first, 60))


COMPACTED = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.01, "segment_ms": 1000}


def pairs(records: Sequence[Record]) -> list[tuple[bytes | None, bytes | None]]:
    return [(record.key, record.value) for record in records]


def many_records(codec: str) -> Fill:
    """Three batches for ten keys: the second has every other key again, the third every third."""

    def fill(producer: Client, topic: str) -> None:
        then_ms = int(time.time() * 1000) - HOUR_MS
        for number in range(3):
            messages = [
                Message(
                    b"%d of %d" % (number, key), b"key-%d" % key, (("n", b"%d" % number),), then_ms + number * 10_000
                )
                for key in range(0, 10, 1 + number)
            ]
            producer.produce(topic, messages, codec=codec)
        producer.produce(topic, [Message(b"last", b"last")], codec=codec)

    return fill


def of_many_ages(producer: Client, topic: str) -> None:
    now_ms = int(time.time() * 1000)
    for number, age_ms in enumerate((HOUR_MS, HOUR_MS - 10_000, HOUR_MS - 20_000, 30_000, 20_000, 10_000, 0)):
        producer.produce(topic, [Message(b"%d" % number, b"key", timestamp_ms=now_ms - age_ms)])


def old_and_new(producer: Client, topic: str) -> None:
    one_segment_each(producer, topic, [(b"a", b"1"), (b"b", b"1")])
    producer.produce(topic, [Message(b"new", b"c")])


def segments(*messages: tuple[bytes, bytes | None]) -> Fill:
    return lambda producer, topic: one_segment_each(producer, topic, messages)


# What the tests of compaction begin with: a topic's configuration, and what is in it.
PREPARED: dict[str, tuple[dict[str, Any], Fill]] = {
    "keys": (COMPACTED, segments(*((key, b"%d" % number) for number in range(4) for key in (b"a", b"b", b"c")))),
    **{codec: (COMPACTED, many_records(codec)) for codec in CODECS},
    "tombstone that goes": (
        COMPACTED | {"delete_retention_ms": 0},
        segments((b"a", b"1"), (b"b", b"1"), (b"a", None), (b"c", b"1")),
    ),
    "tombstone that stays": (COMPACTED, segments((b"a", b"1"), (b"b", b"1"), (b"a", None), (b"b", b"2"))),
    "ages": (COMPACTED | {"min_compaction_lag_ms": HOUR_MS // 4}, of_many_ages),
    "compacted and retained": (
        COMPACTED | {"cleanup_policy": "compact,delete", "retention_ms": HOUR_MS // 4},
        old_and_new,
    ),
    "changed policy": (COMPACTED | {"cleanup_policy": "delete"}, segments((b"a", b"1"), (b"a", b"2"))),
}


@pytest.fixture(scope="module")
def prepared(session_kafka: BrokerProcess | None) -> Iterator[dict[str, str]]:
    """The topics by what they are for. All are filled at once: compaction comes when it comes, and to all of them."""
    servers = os.environ[EXTERNAL_KAFKA_VARIABLE] if session_kafka is None else session_kafka.kafka_address
    admin = AdminClient(quiet(servers))
    names = {purpose: f"compacted-{uuid.uuid4().hex[:12]}" for purpose in PREPARED}
    settings = {
        names[purpose]: {key.replace("_", "."): str(value) for key, value in configuration.items()}
        for purpose, (configuration, _) in PREPARED.items()
    }
    for created in admin.create_topics([NewTopic(name, 1, 1, config=settings[name]) for name in settings]).values():
        created.result(DEADLINE_S)
    change_policy(admin, names["changed policy"])
    for purpose, (_, fill) in PREPARED.items():
        wait_for_topic(admin, names[purpose])
        fill(ConfluentClient(servers), names[purpose])
    yield names
    for deleted in admin.delete_topics(list(names.values())).values():
        deleted.exception(DEADLINE_S)


def change_policy(admin: AdminClient, topic: str) -> None:
    change = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[change])
    admin.incremental_alter_configs([resource])[resource].result(DEADLINE_S)


class TestCompaction:
    def wait(self, kafka: str, topic: str, left: list[tuple[bytes | None, bytes | None]]) -> None:
        eventually(lambda: pairs(read_to_the_end(kafka, topic)) == left, f"{left}", deadline_s=COMPACTION_DEADLINE_S)

    def test_the_last_value_of_each_key_stays(
        self, kafka: str, producer: Client, clients: list[Client], prepared: dict[str, str]
    ) -> None:
        name = prepared["keys"]
        left: list[tuple[bytes | None, bytes | None]] = [(b"a", b"3"), (b"b", b"3"), (b"c", b"3"), (b"last", b"last")]
        self.wait(kafka, name, left)
        for reader in clients:
            records = reader.read(name, 4)
            assert pairs(records) == left, reader.name
            assert [record.offset for record in records] == [9, 10, 11, 12], "offsets stay what they were"
        assert producer.bounds(name)[1] == 13

    @pytest.mark.parametrize("codec", CODECS)
    def test_batches_of_many_records_are_thinned_out(self, kafka: str, prepared: dict[str, str], codec: str) -> None:
        name = prepared[codec]
        left = [(key, 2 if key % 3 == 0 else 1 if key % 2 == 0 else 0) for key in range(10)]
        expected = {b"key-%d" % key: b"%d of %d" % (number, key) for key, number in left} | {b"last": b"last"}
        eventually(
            lambda: len(read_to_the_end(kafka, name)) == len(expected),
            "one value for each key",
            deadline_s=COMPACTION_DEADLINE_S,
        )
        records = read_to_the_end(kafka, name)
        assert {record.key: record.value for record in records} == expected
        assert all(record.headers[0][0] == "n" for record in records if record.key != b"last")
        assert {batch.codec for batch in fetch_batches(kafka, name)} <= {codec, "none"}

    def test_a_tombstone_stays_for_a_while(self, kafka: str, prepared: dict[str, str]) -> None:
        self.wait(kafka, prepared["tombstone that stays"], [(b"a", None), (b"b", b"2"), (b"last", b"last")])

    def test_young_records_are_let_be(self, kafka: str, prepared: dict[str, str]) -> None:
        left = [b"2", b"3", b"4", b"5", b"6"]
        self.wait(kafka, prepared["ages"], [(b"key", value) for value in left])

    def test_old_keys_go_from_a_topic_that_is_compacted_and_retained(
        self, kafka: str, prepared: dict[str, str]
    ) -> None:
        self.wait(kafka, prepared["compacted and retained"], [(b"c", b"new")])

    def test_a_policy_may_be_changed(self, kafka: str, prepared: dict[str, str]) -> None:
        self.wait(kafka, prepared["changed policy"], [(b"a", b"2"), (b"last", b"last")])

    @pytest.mark.slow
    def test_a_tombstone_goes_in_the_end(self, kafka: str, producer: Client, prepared: dict[str, str]) -> None:
        """With a later compaction than its key's value did, and that takes something new."""
        name = prepared["tombstone that goes"]

        def values_of(key: bytes) -> list[bytes | None]:
            return [record.value for record in read_to_the_end(kafka, name) if record.key == key]

        for round_number in range(2, 6):
            newest = b"%d" % round_number
            one_segment_each(producer, name, [(b"c", newest)], after_minutes=round_number)
            eventually(
                lambda: values_of(b"c") == [newest],  # noqa: B023 - called at once
                "another compaction",
                deadline_s=COMPACTION_DEADLINE_S,
            )
            if values_of(b"a") == []:
                break
        assert values_of(b"a") == []
        assert values_of(b"b") == [b"1"]

    def test_a_record_without_a_key_is_refused(
        self, raw: RawKafka, producer: Client, kafka: str, create_topic: CreateTopic
    ) -> None:
        name = create_topic(cleanup_policy="compact")
        with pytest.raises(confluent_kafka.KafkaException) as caught:
            producer.produce(name, [Message(b"no key")])
        assert caught.value.args[0].code() == KafkaError.INVALID_RECORD
        assert produce_batch(raw, name, batch_of(b"no key", key=None)).error_code == KafkaError.INVALID_RECORD
        producer.produce(name, [Message(b"value", b"key")])
        assert pairs(read_to_the_end(kafka, name)) == [(b"key", b"value")]
