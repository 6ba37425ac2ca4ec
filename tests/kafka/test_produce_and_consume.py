"""What goes in by one client comes out by each, as it went in."""

from __future__ import annotations

import time
from collections import defaultdict

import aiokafka.errors
import confluent_kafka
import kafka.errors
import pytest

from tests.kafka.conftest import CreateTopic, wait_for_topic
from tests.support.kafka_client import (
    CODECS,
    Client,
    KafkaPythonClient,
    Message,
    Unique,
    numbered,
    poll,
    quiet,
    read_to_the_end,
)
from tests.support.raw_kafka import fetch_batches


@pytest.mark.parametrize("codec", CODECS)
def test_what_a_client_compresses_every_client_reads(
    client: Client, clients: list[Client], codec: str, kafka: str, topic: str
) -> None:
    messages = numbered(100)
    assert client.produce(topic, messages, codec=codec) == [(0, number) for number in range(100)]
    for reader in clients:
        values = [record.value for record in reader.read(topic, 100)]
        assert values == [message.value for message in messages], reader.name
    # Kept as it came: the broker has no reason to compress anew, and the client did compress.
    assert {batch.codec for batch in fetch_batches(kafka, topic)} == {codec}


def test_keys_values_headers_and_timestamps_come_out_as_they_went_in(
    client: Client, clients: list[Client], topic: str
) -> None:
    now_ms = int(time.time() * 1000)
    messages = [
        Message(b"value", b"key", (("text", "söme".encode()), ("bytes", bytes(range(256)))), now_ms),
        Message(b"", b"", (("empty", b""),), now_ms + 1),
        Message(None, b"tombstone", (), now_ms + 2),
        Message(b"no key", None, (("twice", b"1"), ("twice", b"2")), now_ms + 3),
        Message(b"history", b"old", (), now_ms - 86_400_000),
        Message(b"future", b"soon", (), now_ms + 60_000),
    ]
    client.produce(topic, messages)
    for reader in clients:
        records = reader.read(topic, len(messages))
        shown = [Message(each.value, each.key, each.headers, each.timestamp_ms) for each in records]
        assert shown == messages, reader.name
        assert not any(record.append_time for record in records)


def test_a_header_without_a_value_is_null(topic: str, clients: list[Client]) -> None:
    confluent = clients[0]
    confluent.produce(topic, [Message(b"value", headers=(("nothing", None),))])
    for reader in clients:
        assert reader.read(topic, 1)[0].headers == (("nothing", None),), reader.name


@pytest.mark.parametrize("acks", [0, 1, "all"])
def test_every_level_of_acknowledgement(client: Client, kafka: str, topic: str, acks: int | str) -> None:
    places = client.produce(topic, numbered(10), acks=acks)
    if acks != 0:
        assert places == [(0, number) for number in range(10)]
    # Without acknowledgements the client does not know when they have arrived: the reader waits for them.
    assert [record.value for record in client.read(topic, 10)] == [message.value for message in numbered(10)]
    assert len(read_to_the_end(kafka, topic)) == 10


def test_acknowledgements_of_batches_in_flight_come_in_order(kafka: str, topic: str) -> None:
    producer = confluent_kafka.Producer(
        quiet(kafka) | {"linger.ms": 0, "batch.num.messages": 1, "max.in.flight": 100, "acks": "all"}
    )
    acknowledged: list[int] = []
    for number in range(500):
        producer.produce(
            topic, b"%d" % number, on_delivery=lambda error, message: acknowledged.append(message.offset())
        )
    assert producer.flush(20) == 0
    assert acknowledged == list(range(500))
    assert [record.value for record in read_to_the_end(kafka, topic)] == [b"%d" % number for number in range(500)]


def test_a_topic_is_created_by_the_first_message_for_it(client: Client, clients: list[Client], unique: Unique) -> None:
    name = unique("auto")
    client.produce(name, numbered(3))
    for reader in clients:
        assert len(reader.read(name, 3)) == 3, reader.name


def test_a_consumer_does_not_create_a_topic_unless_it_asks_to(kafka: str, unique: Unique) -> None:
    name = unique("missing")
    consumer = confluent_kafka.Consumer(quiet(kafka) | {"group.id": unique("group")})
    try:
        consumer.subscribe([name])
        with pytest.raises(confluent_kafka.KafkaException) as caught:
            poll(consumer, 1)
    finally:
        consumer.close()
    assert caught.value.args[0].code() == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART


def test_a_consumer_that_asks_to_creates_the_topic(
    admin: confluent_kafka.admin.AdminClient, kafka: str, unique: Unique
) -> None:
    name = unique("asked")
    consumer = confluent_kafka.Consumer(
        quiet(kafka) | {"group.id": unique("group"), "allow.auto.create.topics": True, "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe([name])
        consumer.poll(0)
        wait_for_topic(admin, name)
    finally:
        consumer.close()


@pytest.mark.parametrize("name", ["no spaces", "no/slash", "ünicode", "x" * 250, "..", "."])
def test_a_topic_of_an_illegal_name_is_not_created(admin: confluent_kafka.admin.AdminClient, name: str) -> None:
    created = admin.create_topics([confluent_kafka.admin.NewTopic(name, 1, 1)])
    with pytest.raises(confluent_kafka.KafkaException) as caught:
        created[name].result(20)
    assert caught.value.args[0].code() == confluent_kafka.KafkaError.TOPIC_EXCEPTION


class TestPartitions:
    def test_each_partition_is_a_log_of_its_own(
        self, client: Client, clients: list[Client], create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=3)
        messages = [Message(b"%d" % number, partition=number % 3) for number in range(30)]
        places = client.produce(name, messages)
        assert places == [(number % 3, number // 3) for number in range(30)]
        for reader in clients:
            found: dict[int, list[bytes | None]] = defaultdict(list)
            for record in reader.read(name, 30, partitions=(0, 1, 2)):
                found[record.partition].append(record.value)
            assert found == {part: [b"%d" % number for number in range(part, 30, 3)] for part in range(3)}, reader.name

    def test_one_key_stays_in_one_partition(self, client: Client, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=5)
        keys = [b"key-%d" % (number % 20) for number in range(100)]
        places = client.produce(name, [Message(b"value", key) for key in keys])
        partitions_of: dict[bytes, set[int]] = defaultdict(set)
        for key, (partition, _) in zip(keys, places, strict=True):
            partitions_of[key].add(partition)
        assert all(len(partitions) == 1 for partitions in partitions_of.values())
        assert len(set.union(*partitions_of.values())) > 1
        for record in client.read(name, 100, partitions=range(5)):
            assert record.key is not None
            assert partitions_of[record.key] == {record.partition}

    def test_all_records_of_many_partitions_are_read(self, client: Client, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=20)
        client.produce(name, [message for part in range(20) for message in numbered(10, part)])
        records = client.read(name, 200, partitions=range(20))
        assert sorted((record.partition, record.offset) for record in records) == [
            (part, offset) for part in range(20) for offset in range(10)
        ]


class TestLargeMessages:
    """A batch may be as large as max.message.bytes, with its header; what is larger is refused and the rest goes on."""

    REFUSALS = (
        confluent_kafka.KafkaException,
        kafka.errors.MessageSizeTooLargeError,
        aiokafka.errors.MessageSizeTooLargeError,
    )

    def test_up_to_the_default_limit(self, client: Client, clients: list[Client], topic: str) -> None:
        # 1,048,588 bytes for the batch, of which its header takes 61 and the record's own fields a few.
        largest = Message(b"x" * 1_048_500)
        assert client.produce(topic, [largest], request_bytes_max=3_000_000) == [(0, 0)]
        with pytest.raises(self.REFUSALS) as caught:
            client.produce(topic, [Message(b"x" * 1_048_600)], request_bytes_max=3_000_000)
        if isinstance(caught.value, confluent_kafka.KafkaException):
            assert caught.value.args[0].code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE
        client.produce(topic, [Message(b"goes on")])
        for reader in clients:
            first, second = reader.read(topic, 2)
            assert (first.value, second.value) == (largest.value, b"goes on"), reader.name
            assert second.offset == 1

    def test_a_topic_may_allow_more(self, client: Client, clients: list[Client], create_topic: CreateTopic) -> None:
        name = create_topic(max_message_bytes=8_000_000)
        message = Message(bytes(range(256)) * 20_000)
        client.produce(name, [message, Message(b"after")], request_bytes_max=9_000_000)
        for reader in clients:
            # More than some of them fetch at once: the first batch is sent whole all the same.
            assert [record.value for record in reader.read(name, 2)] == [message.value, b"after"], reader.name

    def test_a_topic_may_allow_less(self, client: Client, create_topic: CreateTopic) -> None:
        name = create_topic(max_message_bytes=10_000)
        client.produce(name, [Message(b"x" * 9_000)])
        with pytest.raises(self.REFUSALS):
            client.produce(name, [Message(b"x" * 11_000)])
        assert len(client.read(name, 1)) == 1

    def test_what_counts_is_the_compressed_size(self, client: Client, create_topic: CreateTopic) -> None:
        name = create_topic(max_message_bytes=10_000)
        client.produce(name, [Message(b"x" * 100_000)], codec="gzip")
        assert client.read(name, 1)[0].value == b"x" * 100_000


def test_a_client_without_a_key_and_one_with_murmur2_agree_on_partitions(kafka: str, create_topic: CreateTopic) -> None:
    """Java's partitioner, which kafka-python and librdkafka both have: a key is in the same place for both."""
    name = create_topic(partitions=7)
    keys = [b"key-%d" % number for number in range(50)]
    by_kafka_python = KafkaPythonClient(kafka).produce(name, [Message(b"value", key) for key in keys])
    producer = confluent_kafka.Producer(quiet(kafka) | {"partitioner": "murmur2_random"})
    partitions: dict[bytes, int] = {}
    for key in keys:
        producer.produce(
            name, b"value", key, on_delivery=lambda error, sent: partitions.update({sent.key(): sent.partition()})
        )
    assert producer.flush(20) == 0
    assert [partitions[key] for key in keys] == [partition for partition, _ in by_kafka_python]
