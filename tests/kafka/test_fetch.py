"""Fetching: who waits, who is woken by what, and how much comes at once."""

from __future__ import annotations

import threading

import pytest
from kio.schema.api_versions.v0.request import ApiVersionsRequest

from tests.kafka.conftest import CreateTopic
from tests.support.kafka_client import Client, ConfluentClient, Message, Record, Unique, numbered
from tests.support.raw_kafka import RawKafka, batches_in, fetch_batches, fetch_request

OFFSET_OUT_OF_RANGE = 1
UNKNOWN_TOPIC_OR_PARTITION = 3


@pytest.fixture
def producer(kafka: str) -> Client:
    return ConfluentClient(kafka)


class TestWaiting:
    """Fetches here wait for longer than the tests do, so an answer is one that something has caused."""

    def test_a_fetch_at_the_end_is_answered_by_the_next_record(
        self, raw: RawKafka, producer: Client, topic: str
    ) -> None:
        for offset in range(3):
            request = fetch_request(topic, offset)
            raw.send(request)
            producer.produce(topic, numbered(1))
            [partition] = raw.receive(request).responses[0].partitions
            assert partition.high_watermark == offset + 1
            assert [batch.base_offset for batch in batches_in(partition.records)] == [offset]

    def test_a_fetch_waits_for_as_many_bytes_as_it_asks_for(self, raw: RawKafka, producer: Client, topic: str) -> None:
        request = fetch_request(topic, 0, min_bytes=5_000)
        raw.send(request)
        producer.produce(topic, [Message(b"x" * 1_000)])
        producer.produce(topic, [Message(b"x" * 5_000)])
        [partition] = raw.receive(request).responses[0].partitions
        assert [batch.base_offset for batch in batches_in(partition.records)] == [0, 1]

    def test_a_fetch_of_many_partitions_is_woken_by_any(
        self, raw: RawKafka, producer: Client, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=5)
        request = fetch_request(name, *[0] * 5)
        raw.send(request)
        producer.produce(name, numbered(1, partition=3))
        partitions = raw.receive(request).responses[0].partitions
        assert [len(partition.records or b"") > 0 for partition in partitions] == [False, False, False, True, False]

    def test_a_fetch_that_does_not_wait_is_answered_empty(self, raw: RawKafka, topic: str) -> None:
        [partition] = raw.ask(fetch_request(topic, 0, max_wait_s=0)).responses[0].partitions
        assert (partition.error_code, partition.high_watermark, partition.records or b"") == (0, 0, b"")

    def test_what_is_there_already_is_not_waited_for(self, raw: RawKafka, producer: Client, topic: str) -> None:
        producer.produce(topic, numbered(1))
        [partition] = raw.ask(fetch_request(topic, 0)).responses[0].partitions
        assert len(batches_in(partition.records)) == 1

    def test_requests_behind_a_waiting_fetch_are_answered_after_it(
        self, raw: RawKafka, producer: Client, topic: str
    ) -> None:
        fetch, versions = fetch_request(topic, 0), ApiVersionsRequest()
        raw.send(fetch)
        raw.send(versions)
        producer.produce(topic, numbered(1))
        assert len(raw.receive(fetch).responses) == 1
        assert raw.receive(versions).error_code == 0

    def test_a_waiting_consumer_gets_a_record_as_soon_as_there_is_one(
        self, client: Client, producer: Client, topic: str
    ) -> None:
        received: list[Record] = []
        reader = threading.Thread(target=lambda: received.extend(client.read(topic, 10)))
        reader.start()
        for number in range(10):
            producer.produce(topic, [Message(b"%d" % number)])
        reader.join()
        assert [record.value for record in received] == [b"%d" % number for number in range(10)]

    def test_a_connection_that_goes_away_while_it_waits_harms_nobody(
        self, kafka: str, raw: RawKafka, producer: Client, topic: str
    ) -> None:
        with RawKafka(kafka) as other:
            other.send(fetch_request(topic, 0))
        request = fetch_request(topic, 0)
        raw.send(request)
        producer.produce(topic, numbered(1))
        assert len(raw.receive(request).responses[0].partitions[0].records) > 0

    def test_a_topic_that_is_deleted_ends_the_wait(self, admin, raw: RawKafka, producer: Client, topic: str) -> None:
        request = fetch_request(topic, 0)
        raw.send(request)
        admin.delete_topics([topic])[topic].result(20)
        [partition] = raw.receive(request).responses[0].partitions
        assert partition.error_code in (UNKNOWN_TOPIC_OR_PARTITION, 6)


class TestSize:
    def test_the_batch_that_has_the_offset_is_sent_whole(
        self, raw: RawKafka, producer: Client, kafka: str, topic: str
    ) -> None:
        producer.produce(topic, numbered(50))
        last = fetch_batches(kafka, topic)[-1]
        assert last.count > 1
        [partition] = raw.ask(fetch_request(topic, last.last_offset)).responses[0].partitions
        assert batches_in(partition.records)[0] == last

    def test_the_first_batch_is_sent_however_large_it_is(self, raw: RawKafka, producer: Client, topic: str) -> None:
        producer.produce(topic, [Message(b"x" * 100_000)])
        producer.produce(topic, [Message(b"x" * 100_000)])
        for limits in ({"max_bytes": 1}, {"partition_max_bytes": 1}):
            [partition] = raw.ask(fetch_request(topic, 0, **limits)).responses[0].partitions
            assert [batch.base_offset for batch in batches_in(partition.records)] == [0]

    def test_no_more_than_asked_for_of_each_partition(
        self, raw: RawKafka, producer: Client, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=2)
        for partition in (0, 1):
            for _ in range(5):
                producer.produce(name, [Message(b"x" * 1_000, partition=partition)])
        answer = raw.ask(fetch_request(name, 0, 0, partition_max_bytes=2_500))
        for partition in answer.responses[0].partitions:
            assert len(partition.records) <= 2_500
            assert [batch.base_offset for batch in batches_in(partition.records)] == [0, 1]

    def test_no_more_than_asked_for_altogether(
        self, raw: RawKafka, producer: Client, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=3)
        for partition in range(3):
            for _ in range(3):
                producer.produce(name, [Message(b"x" * 1_000, partition=partition)])
        answer = raw.ask(fetch_request(name, 0, 0, 0, max_bytes=4_500))
        sizes = [len(partition.records or b"") for partition in answer.responses[0].partitions]
        assert 0 < sum(sizes) <= 4_500


class TestErrors:
    def test_concern_their_partition_only(self, raw: RawKafka, producer: Client, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=2)
        producer.produce(name, numbered(3, partition=0))
        # The third one does not exist.
        partitions = raw.ask(fetch_request(name, 0, 99, 0)).responses[0].partitions
        errors = {partition.partition_index: int(partition.error_code) for partition in partitions}
        assert errors == {0: 0, 1: OFFSET_OUT_OF_RANGE, 2: UNKNOWN_TOPIC_OR_PARTITION}
        [records] = [partition.records for partition in partitions if partition.partition_index == 0]
        assert len(batches_in(records)) > 0

    def test_are_answered_at_once(self, raw: RawKafka, unique: Unique) -> None:
        [partition] = raw.ask(fetch_request(unique("missing"), 0)).responses[0].partitions
        assert partition.error_code == UNKNOWN_TOPIC_OR_PARTITION

    def test_of_a_fetch_before_the_beginning(self, raw: RawKafka, topic: str) -> None:
        [partition] = raw.ask(fetch_request(topic, -1)).responses[0].partitions
        assert partition.error_code == OFFSET_OUT_OF_RANGE
