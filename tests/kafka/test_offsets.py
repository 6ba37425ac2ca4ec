"""Where a partition begins and ends, which offset a point in time has, and reading from there."""

from __future__ import annotations

import asyncio
import time

import aiokafka
import aiokafka.errors
import confluent_kafka
import kafka as kafka_python
import pytest
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka.errors import OffsetOutOfRangeError
from kio.schema.list_offsets.v7 import request as list_offsets
from kio.schema.offset_for_leader_epoch.v3 import request as leader_epoch

from tests.kafka.conftest import CreateTopic
from tests.support.kafka_client import CODECS, Client, ConfluentClient, Message, Unique, numbered, poll, quiet
from tests.support.raw_kafka import RawKafka, fetch_batches
from tests.support.waiting import DEADLINE_S, eventually

# An hour ago: older than what a client stamps itself, and not so old that the broker no longer keeps it.
THEN_MS = int(time.time() * 1000) - 3_600_000
EARLIEST, LATEST, MAX_TIMESTAMP = -2, -1, -3
UNKNOWN_TOPIC_OR_PARTITION = 3


def stamped(*offsets_ms: int) -> list[Message]:
    return [Message(b"%d" % after_ms, timestamp_ms=THEN_MS + after_ms) for after_ms in offsets_ms]


def delete_records(admin: AdminClient, topic: str, before: int) -> int:
    """Delete the records of partition 0 below `before`; the new first offset."""
    place = confluent_kafka.TopicPartition(topic, 0, before)
    return int(admin.delete_records([place])[place].result(DEADLINE_S).low_watermark)


class TestBounds:
    def test_of_an_empty_partition(self, client: Client, topic: str) -> None:
        assert client.bounds(topic) == (0, 0)

    def test_of_a_partition_with_records(self, client: Client, topic: str) -> None:
        client.produce(topic, numbered(7))
        assert client.bounds(topic) == (0, 7)

    def test_begin_where_records_were_deleted(self, client: Client, admin: AdminClient, topic: str) -> None:
        client.produce(topic, numbered(10))
        assert delete_records(admin, topic, 4) == 4
        assert client.bounds(topic) == (4, 10)
        assert [record.offset for record in client.read(topic, 6, start=4)] == [4, 5, 6, 7, 8, 9]

    def test_meet_when_all_records_were_deleted(self, client: Client, admin: AdminClient, topic: str) -> None:
        client.produce(topic, numbered(10))
        assert delete_records(admin, topic, -1) == 10, "-1 stands for the end"
        assert client.bounds(topic) == (10, 10)
        assert client.produce(topic, numbered(1)) == [(0, 10)]

    def test_no_more_can_be_deleted_than_there_is(self, admin: AdminClient, topic: str, clients: list[Client]) -> None:
        clients[0].produce(topic, numbered(3))
        with pytest.raises(confluent_kafka.KafkaException) as caught:
            delete_records(admin, topic, 4)
        assert caught.value.args[0].code() == confluent_kafka.KafkaError.OFFSET_OUT_OF_RANGE
        assert delete_records(admin, topic, 2) == 2
        assert delete_records(admin, topic, 1) == 2, "what is gone already is not an error"


class TestByTime:
    @pytest.mark.parametrize("codec", CODECS)
    def test_a_record_in_the_middle_of_a_batch_is_found(
        self, kafka: str, topic: str, client: Client, codec: str
    ) -> None:
        client.produce(topic, stamped(*range(0, 1000, 10)), codec=codec)
        assert any(batch.count > 1 for batch in fetch_batches(kafka, topic))
        times = (0, THEN_MS + 500, THEN_MS + 501, THEN_MS + 990, THEN_MS + 991)
        assert client.offsets_for_times(topic, *times) == [0, 50, 51, 99, None]

    def test_with_times_out_of_order_the_first_that_is_not_older(self, client: Client, topic: str) -> None:
        for after_ms in (100, 500, 200, 300, 600):
            client.produce(topic, stamped(after_ms))
        times = [THEN_MS + after_ms for after_ms in (50, 150, 250, 500, 550)]
        assert client.offsets_for_times(topic, *times) == [0, 1, 1, 1, 4]

    def test_of_an_empty_partition_there_is_none(self, client: Client, topic: str) -> None:
        assert client.offsets_for_times(topic, 0) == [None]

    def test_deleted_records_are_not_found(self, client: Client, admin: AdminClient, topic: str) -> None:
        client.produce(topic, stamped(*range(10)))
        delete_records(admin, topic, 5)
        assert client.offsets_for_times(topic, THEN_MS, THEN_MS + 7) == [5, 7]

    def test_many_batches_in_many_segments(self, client: Client, create_topic: CreateTopic) -> None:
        name = create_topic(segment_bytes=1 << 20)
        payload = b"x" * 10_000
        client.produce(name, [Message(payload, timestamp_ms=THEN_MS + number) for number in range(300)])
        numbers = [0, 1, 99, 100, 101, 150, 299]
        assert client.offsets_for_times(name, *(THEN_MS + number for number in numbers)) == numbers


class TestByTheAdminClient:
    def offsets(self, admin: AdminClient, topic: str, spec: OffsetSpec) -> tuple[int, int]:
        place = confluent_kafka.TopicPartition(topic, 0)
        found = admin.list_offsets({place: spec})[place].result(DEADLINE_S)
        return found.offset, found.timestamp

    def test_earliest_latest_and_by_time(self, admin: AdminClient, clients: list[Client], topic: str) -> None:
        clients[0].produce(topic, stamped(10, 20, 30))
        assert self.offsets(admin, topic, OffsetSpec.earliest()) == (0, -1)
        assert self.offsets(admin, topic, OffsetSpec.latest()) == (3, -1)
        assert self.offsets(admin, topic, OffsetSpec.for_timestamp(THEN_MS + 15)) == (1, THEN_MS + 20)
        assert self.offsets(admin, topic, OffsetSpec.for_timestamp(THEN_MS + 31)) == (-1, -1)

    @pytest.mark.parametrize("codec", CODECS)
    def test_the_greatest_timestamp(self, admin: AdminClient, kafka: str, topic: str, codec: str) -> None:
        client = ConfluentClient(kafka)
        assert self.offsets(admin, topic, OffsetSpec.max_timestamp()) == (-1, -1)
        client.produce(topic, stamped(10, 90, 20, 90, 30), codec=codec)
        assert self.offsets(admin, topic, OffsetSpec.max_timestamp()) == (1, THEN_MS + 90)
        client.produce(topic, stamped(50), codec=codec)
        assert self.offsets(admin, topic, OffsetSpec.max_timestamp()) == (1, THEN_MS + 90)
        client.produce(topic, stamped(100), codec=codec)
        assert self.offsets(admin, topic, OffsetSpec.max_timestamp()) == (6, THEN_MS + 100)

    def test_kafka_python_s_admin_client_finds_the_same(self, kafka: str, clients: list[Client], topic: str) -> None:
        clients[0].produce(topic, stamped(10, 90, 20))
        place = kafka_python.TopicPartition(topic, 0)
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as admin:
            for asked, found in ((EARLIEST, 0), (LATEST, 3), (MAX_TIMESTAMP, 1), (THEN_MS + 11, 1)):
                assert admin.list_partition_offsets({place: asked})[place].offset == found

    def test_of_a_partition_that_is_not_there(self, raw: RawKafka, topic: str, unique: Unique) -> None:
        for name, partition in ((topic, 1), (unique("missing"), 0)):
            asked = list_offsets.ListOffsetsPartition(partition_index=partition, timestamp=LATEST)
            wanted = list_offsets.ListOffsetsTopic(name=name, partitions=(asked,))
            answer = raw.ask(list_offsets.ListOffsetsRequest(replica_id=-1, isolation_level=0, topics=(wanted,)))
            assert answer.topics[0].partitions[0].error_code == UNKNOWN_TOPIC_OR_PARTITION


class TestReplay:
    def test_from_a_point_in_time(self, client: Client, topic: str) -> None:
        client.produce(topic, stamped(*range(0, 1000, 10)), codec="lz4")
        [start] = client.offsets_for_times(topic, THEN_MS + 700)
        assert start == 70
        records = client.read(topic, 30, start=start)
        assert [record.timestamp_ms - THEN_MS for record in records] == list(range(700, 1000, 10))

    def test_confluent_seeks_back_and_forth(self, kafka: str, topic: str) -> None:
        ConfluentClient(kafka).produce(topic, numbered(20))
        consumer = confluent_kafka.Consumer(quiet(kafka) | {"group.id": "unused", "enable.auto.commit": False})
        try:
            consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
            assert [message.offset() for message in poll(consumer, 20)] == list(range(20))
            for start in (5, 0, 19):
                consumer.seek(confluent_kafka.TopicPartition(topic, 0, start))
                assert [message.offset() for message in poll(consumer, 20 - start)] == list(range(start, 20))
        finally:
            consumer.close()

    def test_kafka_python_seeks_back_and_forth(self, kafka: str, topic: str, clients: list[Client]) -> None:
        clients[0].produce(topic, numbered(20))
        consumer = kafka_python.KafkaConsumer(bootstrap_servers=kafka, group_id=None)
        try:
            place = kafka_python.TopicPartition(topic, 0)
            consumer.assign([place])
            for start in (0, 5, 15, 0, 19):
                consumer.seek(place, start)
                assert [next(consumer).offset for _ in range(20 - start)] == list(range(start, 20))
            consumer.seek_to_beginning(place)
            assert next(consumer).offset == 0
            consumer.seek_to_end(place)
            assert consumer.position(place) == 20
        finally:
            consumer.close()

    def test_aiokafka_seeks_back_and_forth(self, kafka: str, topic: str, clients: list[Client]) -> None:
        clients[0].produce(topic, numbered(20))

        async def seek() -> None:
            consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka)
            async with consumer, asyncio.timeout(DEADLINE_S):
                place = aiokafka.TopicPartition(topic, 0)
                consumer.assign([place])
                for start in (0, 5, 15, 0, 19):
                    consumer.seek(place, start)
                    assert [(await consumer.getone()).offset for _ in range(20 - start)] == list(range(start, 20))
                await consumer.seek_to_end(place)
                assert await consumer.position(place) == 20

        asyncio.run(seek())


class TestOutOfRange:
    """Who asks for what is not there is told so; what the client does then is its setting."""

    @pytest.fixture
    def trimmed(self, admin: AdminClient, topic: str, kafka: str) -> str:
        """A topic whose records are those from 4 to 9."""
        ConfluentClient(kafka).produce(topic, numbered(10))
        delete_records(admin, topic, 4)
        return topic

    @pytest.mark.parametrize("start", [0, 1000])
    def test_confluent(self, kafka: str, trimmed: str, start: int) -> None:
        for policy, first in (("earliest", 4), ("error", None)):
            consumer = confluent_kafka.Consumer(quiet(kafka) | {"group.id": "unused", "auto.offset.reset": policy})
            try:
                consumer.assign([confluent_kafka.TopicPartition(trimmed, 0, start)])
                if first is None:
                    with pytest.raises(confluent_kafka.KafkaException) as caught:
                        poll(consumer, 1)
                    assert caught.value.args[0].code() == confluent_kafka.KafkaError._AUTO_OFFSET_RESET
                else:
                    assert poll(consumer, 1)[0].offset() == first
            finally:
                consumer.close()

    @pytest.mark.parametrize("start", [0, 1000])
    def test_kafka_python(self, kafka: str, trimmed: str, start: int) -> None:
        place = kafka_python.TopicPartition(trimmed, 0)
        for policy, first in (("earliest", 4), ("none", None)):
            consumer = kafka_python.KafkaConsumer(bootstrap_servers=kafka, group_id=None, auto_offset_reset=policy)
            try:
                consumer.assign([place])
                consumer.seek(place, start)
                if first is None:
                    with pytest.raises(OffsetOutOfRangeError):
                        next(consumer)
                else:
                    assert next(consumer).offset == first
            finally:
                consumer.close()

    @pytest.mark.parametrize("start", [0, 1000])
    def test_aiokafka(self, kafka: str, trimmed: str, start: int) -> None:
        place = aiokafka.TopicPartition(trimmed, 0)

        async def first_offset(policy: str) -> int:
            consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset=policy)
            async with consumer, asyncio.timeout(DEADLINE_S):
                consumer.assign([place])
                consumer.seek(place, start)
                return int((await consumer.getone()).offset)

        assert asyncio.run(first_offset("earliest")) == 4
        with pytest.raises(aiokafka.errors.OffsetOutOfRangeError):
            asyncio.run(first_offset("none"))


class TestLeaderEpochs:
    def ask(self, raw: RawKafka, topic: str, epoch: int, current: int = -1, partition: int = 0) -> tuple[int, int, int]:
        asked = leader_epoch.OffsetForLeaderPartition(
            partition=partition, current_leader_epoch=current, leader_epoch=epoch
        )
        wanted = leader_epoch.OffsetForLeaderTopic(topic=topic, partitions=(asked,))
        [answer] = (
            raw.ask(leader_epoch.OffsetForLeaderEpochRequest(replica_id=-1, topics=(wanted,))).topics[0].partitions
        )
        return int(answer.error_code), answer.leader_epoch, answer.end_offset

    def test_the_present_epoch_ends_where_the_log_ends(self, raw: RawKafka, kafka: str, topic: str) -> None:
        ConfluentClient(kafka).produce(topic, numbered(5))
        epoch = fetch_batches(kafka, topic)[-1].leader_epoch
        assert self.ask(raw, topic, epoch) == (0, epoch, 5)
        assert self.ask(raw, topic, epoch, current=epoch) == (0, epoch, 5)

    def test_an_epoch_that_has_not_begun_has_no_end(self, raw: RawKafka, kafka: str, topic: str) -> None:
        ConfluentClient(kafka).produce(topic, numbered(5))
        epoch = fetch_batches(kafka, topic)[-1].leader_epoch
        assert self.ask(raw, topic, epoch + 7) == (0, -1, -1)
        unknown_leader_epoch = 75
        assert self.ask(raw, topic, epoch, current=epoch + 1)[0] == unknown_leader_epoch

    def test_of_a_partition_that_is_not_there(self, raw: RawKafka, topic: str) -> None:
        assert self.ask(raw, topic, 0, partition=5)[0] == UNKNOWN_TOPIC_OR_PARTITION


def test_a_consumer_at_the_end_reads_only_what_is_new(kafka: str, topic: str) -> None:
    client = ConfluentClient(kafka)
    client.produce(topic, numbered(5))
    consumer = confluent_kafka.Consumer(quiet(kafka) | {"group.id": "unused", "enable.auto.commit": False})
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, 0, confluent_kafka.OFFSET_END)])
        # When it has found the end is not seen from here, so there is something new until it has got some of it.
        first = eventually(lambda: consumer.poll(0.05), "a new record", step=lambda: client.produce(topic, numbered(1)))
        assert first.offset() >= 5
    finally:
        consumer.close()
