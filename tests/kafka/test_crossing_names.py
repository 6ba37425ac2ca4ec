"""One name space: a stream of AMQP's and a topic of Kafka's are one thing, whoever made it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import pika
import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker

from tests.kafka.conftest import wait_for_topic
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import ConfluentClient, Message, Record, quiet, read_to_the_end
from tests.support.pika_client import Inbox, publish, turn
from tests.support.waiting import DEADLINE_S, eventually

STREAM = {"x-queue-type": "stream"}
OLDER_DATA = Path(__file__).parent / "data" / "streams-of-catalog-0003.tar.xz"


@contextmanager
def refused(code: int, part: str) -> Iterator[None]:
    """The broker closes the channel, and says so much."""
    with pytest.raises(ChannelClosedByBroker) as caught:
        yield
    assert caught.value.reply_code == code
    assert part in caught.value.reply_text


class Pond:
    """A broker with a client of each protocol, which connect anew after a restart."""

    def __init__(self, process: BrokerProcess) -> None:
        self.process = process
        self.servers = process.kafka_address
        self.admin = AdminClient(quiet(self.servers))
        self.kafka = ConfluentClient(self.servers)
        self.connection = self._connection()

    def _connection(self) -> BlockingConnection:
        return BlockingConnection(pika.URLParameters(self.process.amqp_url))

    def channel(self) -> BlockingChannel:
        channel = self.connection.channel()
        channel.basic_qos(prefetch_count=100)
        channel.confirm_delivery()
        return channel

    def restart(self, how: Callable[[], object]) -> None:
        self.connection.close()
        how()
        if not self.process.running:
            self.process.start()
        self.connection = self._connection()

    def create(self, name: str, partitions: int = 1, **configuration: str) -> None:
        configs = {key.replace("_", "."): value for key, value in configuration.items()}
        self.admin.create_topics([NewTopic(name, partitions, 1, config=configs)])[name].result(DEADLINE_S)
        wait_for_topic(self.admin, name, partitions)

    def topics(self) -> dict[str, int]:
        found = self.admin.list_topics(timeout=DEADLINE_S).topics
        return {name: len(topic.partitions) for name, topic in found.items()}

    def configs(self, name: str) -> dict[str, str]:
        asked = ConfigResource(ResourceType.TOPIC, name)
        entries = self.admin.describe_configs([asked])[asked].result(DEADLINE_S)
        return {entry.name: entry.value for entry in entries.values()}

    def records(self, name: str, partitions: int = 1) -> list[Record]:
        return read_to_the_end(self.servers, name, partitions=range(partitions))

    def values(self, name: str, partitions: int = 1) -> list[bytes | None]:
        return [record.value for record in self.records(name, partitions)]


@pytest.fixture
def pond(kafka_process: BrokerProcess) -> Iterator[Pond]:
    made = Pond(kafka_process)
    yield made
    if made.connection.is_open:
        made.connection.close()


def inbox(channel: BlockingChannel, name: str, start: str | int = "first") -> Inbox:
    return Inbox(channel, name, arguments={"x-stream-offset": start}, on_delivery=lambda delivery: delivery.ack())


def cancelled_tags(channel: BlockingChannel) -> list[str]:
    tags: list[str] = []
    channel.add_on_cancel_callback(lambda frame: tags.append(frame.method.consumer_tag))
    return tags


class TestStreamsAreTopics:
    @pytest.mark.parametrize("ends", ["kill", "restart"])
    def test_a_declared_stream_is_a_topic_before_and_after_a_restart(self, pond: Pond, ends: str) -> None:
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments={**STREAM, "x-max-age": "7D"})
        publish(channel, "orders", b"one", b"two")
        assert pond.topics()["orders"] == 1
        assert pond.kafka.produce("orders", [Message(b"three", b"key")]) == [(0, 2)]
        assert pond.values("orders") == [b"one", b"two", b"three"]
        assert inbox(channel, "orders").wait(3)[2].body == b"three"

        pond.restart(getattr(pond.process, ends))
        assert pond.values("orders") == [b"one", b"two", b"three"]
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments={**STREAM, "x-max-age": "7D"})
        reader = inbox(channel, "orders")
        assert [delivery.body for delivery in reader.wait(3)] == [b"one", b"two", b"three"]
        assert pond.kafka.produce("orders", [Message(b"four")]) == [(0, 3)]
        assert reader.wait(4)[3].body == b"four"

    @pytest.mark.parametrize("ends", ["kill", "restart"])
    def test_a_topic_is_a_stream_before_and_after_a_restart(self, pond: Pond, ends: str) -> None:
        pond.create("events")
        pond.kafka.produce("events", [Message(b"one")])
        channel = pond.channel()
        assert channel.queue_declare("events", passive=True).method.message_count == 1
        assert channel.queue_declare("events", durable=True, arguments=STREAM).method.message_count == 1
        publish(channel, "events", b"two")
        reader = inbox(channel, "events")
        assert [delivery.body for delivery in reader.wait(2)] == [b"one", b"two"]

        pond.restart(getattr(pond.process, ends))
        channel = pond.channel()
        publish(channel, "events", b"three")
        assert pond.values("events") == [b"one", b"two", b"three"]
        assert inbox(channel, "events").wait(3)[0].body == b"one"

    def test_what_is_told_of_retention_must_be_what_the_topic_has(self, pond: Pond) -> None:
        pond.create("events", retention_ms="3600000", retention_bytes="5000000")
        same = {**STREAM, "x-max-age": "1h", "x-max-length-bytes": 5_000_000}
        pond.channel().queue_declare("events", durable=True, arguments=same)
        with refused(406, "inequivalent arg 'x-max-age'"):
            pond.channel().queue_declare("events", durable=True, arguments={**STREAM, "x-max-age": "2h"})
        with refused(406, "inequivalent arg 'x-queue-type'"):
            pond.channel().queue_declare("events", durable=True)

    def test_a_stream_is_declared_again_as_it_was_declared(self, pond: Pond) -> None:
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments={**STREAM, "x-max-age": "1h"})
        resource = ConfigResource(
            ResourceType.TOPIC,
            "orders",
            incremental_configs=[
                ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET),
            ],
        )
        pond.admin.incremental_alter_configs([resource])[resource].result(DEADLINE_S)
        channel.queue_declare("orders", durable=True, arguments={**STREAM, "x-max-age": "1h"})
        assert pond.configs("orders")["retention.ms"] == "60000"
        with refused(406, "inequivalent arg 'x-max-age'"):
            channel.queue_declare("orders", durable=True, arguments=STREAM)

    def test_arguments_are_shown_as_configuration(self, pond: Pond) -> None:
        channel = pond.channel()
        limits = {"x-max-age": "1h", "x-max-length-bytes": 9_000_000, "x-stream-max-segment-size-bytes": 1_000_000}
        channel.queue_declare("limited", durable=True, arguments={**STREAM, **limits})
        channel.queue_declare("endless", durable=True, arguments=STREAM)
        shown = pond.configs("limited")
        assert (shown["retention.ms"], shown["retention.bytes"], shown["segment.bytes"]) == (
            "3600000", "9000000", "1000000",
        )  # fmt: skip
        assert pond.configs("endless")["retention.ms"] == "-1", "a stream keeps everything, unlike a topic by default"

    def test_a_group_commits_offsets_in_a_stream(self, pond: Pond) -> None:
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments=STREAM)
        publish(channel, "orders", b"one", b"two")
        settings = {"group.id": "readers", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        consumer = confluent_kafka.Consumer(quiet(pond.servers) | settings)
        try:
            consumer.commit(offsets=[TopicPartition("orders", 0, 1)], asynchronous=False)
            [committed] = consumer.committed([TopicPartition("orders", 0)], DEADLINE_S)
            assert committed.offset == 1
        finally:
            consumer.close()

    def test_a_stream_whose_name_is_no_topics_is_not_shown_to_kafka(self, pond: Pond) -> None:
        channel = pond.channel()
        channel.queue_declare("orders of today", durable=True, arguments=STREAM)
        publish(channel, "orders of today", b"one")
        assert inbox(channel, "orders of today").wait(1)[0].body == b"one"
        assert not pond.topics().keys() - {"__consumer_offsets"}


class TestConflicts:
    def test_kafka_is_told_that_a_stream_exists(self, pond: Pond) -> None:
        pond.channel().queue_declare("orders", durable=True, arguments=STREAM)
        [created] = pond.admin.create_topics([NewTopic("orders", 1, 1)]).values()
        error = created.exception(DEADLINE_S)
        assert isinstance(error, confluent_kafka.KafkaException)
        assert error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS

    def test_a_queue_and_a_topic_cannot_share_a_name(self, pond: Pond) -> None:
        channel = pond.channel()
        channel.queue_declare("work", durable=True)
        [created] = pond.admin.create_topics([NewTopic("work", 1, 1)]).values()
        assert created.exception(DEADLINE_S) is not None
        pond.create("events", 2)
        with refused(406, "inequivalent arg 'x-queue-type'"):
            channel.queue_declare("events", durable=True)


class TestDeleting:
    def test_kafka_deletes_a_stream_with_its_consumers_and_bindings(self, pond: Pond) -> None:
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments=STREAM)
        channel.queue_bind("orders", "amq.fanout")
        tags = cancelled_tags(channel)
        reader = inbox(channel, "orders")
        pond.admin.delete_topics(["orders"])["orders"].result(DEADLINE_S)
        eventually(lambda: tags == [reader.consumer_tag], "the consumer is cancelled", step=lambda: turn(channel))
        with refused(404, "no queue 'orders'"):
            channel.queue_declare("orders", passive=True)
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments=STREAM)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("amq.fanout", "", b"lost", mandatory=True)

    def test_amqp_deletes_a_topic(self, pond: Pond) -> None:
        pond.create("events", 3)
        channel = pond.channel()
        with refused(406, "is a partition of the topic 'events'"):
            channel.queue_delete("events-1")
        pond.channel().queue_delete("events")
        assert "events" not in pond.topics()
        pond.restart(pond.process.kill)
        assert "events" not in pond.topics()


class TestTopicsWithSeveralPartitions:
    @pytest.fixture
    def channel(self, pond: Pond) -> BlockingChannel:
        pond.create("events", 3)
        return pond.channel()

    def test_the_same_key_is_in_the_same_partition_whoever_publishes(
        self, pond: Pond, channel: BlockingChannel
    ) -> None:
        keys = [f"key-{number}" for number in range(40)] + ["mühle", "x"]
        channel.exchange_declare("in", "topic", durable=True)
        channel.queue_bind("events", "in", "#")
        for key in keys:
            channel.basic_publish("in", key, b"amqp")
        producer = confluent_kafka.Producer(quiet(pond.servers) | {"partitioner": "murmur2_random"})
        for key in keys:
            producer.produce("events", b"kafka", key.encode())
        assert producer.flush(DEADLINE_S) == 0
        records = pond.records("events", 3)
        by_protocol = {
            value: {record.key: record.partition for record in records if record.value == value}
            for value in (b"amqp", b"kafka")
        }
        assert len(records) == 2 * len(keys)
        assert by_protocol[b"amqp"] == by_protocol[b"kafka"]
        assert set(by_protocol[b"kafka"].values()) == {0, 1, 2}

    def test_the_key_that_a_header_states_chooses_the_partition(self, pond: Pond, channel: BlockingChannel) -> None:
        for number in range(12):
            properties = pika.BasicProperties(headers={"x-kafka-key": f"key-{number}"})
            channel.basic_publish("", "events", b"amqp", properties)
        producer = confluent_kafka.Producer(quiet(pond.servers) | {"partitioner": "murmur2_random"})
        for number in range(12):
            producer.produce("events", b"kafka", b"key-%d" % number)
        assert producer.flush(DEADLINE_S) == 0
        records = pond.records("events", 3)
        of_amqp, of_kafka = (
            {record.key: record.partition for record in records if record.value == value}
            for value in (b"amqp", b"kafka")
        )
        assert of_amqp == of_kafka
        assert len(of_amqp) == 12

    def test_a_binding_to_a_topic_survives_a_kill(self, pond: Pond, channel: BlockingChannel) -> None:
        channel.exchange_declare("in", "direct", durable=True)
        channel.queue_bind("events", "in", "key")
        channel.queue_bind("events-2", "in", "last")
        pond.restart(pond.process.kill)
        channel = pond.channel()
        channel.basic_publish("in", "key", b"one", mandatory=True)
        channel.basic_publish("in", "last", b"two", mandatory=True)
        assert {record.value: record.partition for record in pond.records("events", 3)}[b"two"] == 2
        channel.queue_unbind("events", "in", "key")
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("in", "key", b"lost", mandatory=True)

    @pytest.mark.parametrize("exchange", ["", "amq.fanout"])
    def test_messages_without_a_key_are_spread(self, pond: Pond, channel: BlockingChannel, exchange: str) -> None:
        if exchange:
            channel.queue_bind("events", exchange)
        for number in range(9):
            channel.basic_publish(exchange, "" if exchange else "events", b"%d" % number, mandatory=True)
        records = pond.records("events", 3)
        assert sorted(record.value or b"" for record in records) == [b"%d" % number for number in range(9)]
        assert {record.partition for record in records} == {0, 1, 2}

    def test_it_is_consumed_from_by_its_partitions(self, pond: Pond, channel: BlockingChannel) -> None:
        pond.kafka.produce("events", [Message(b"%d" % number, partition=number) for number in range(3)])
        assert channel.queue_declare("events", passive=True).method.message_count == 3
        for number in range(3):
            assert channel.queue_declare(f"events-{number}", durable=True, arguments=STREAM).method.message_count == 1
            assert inbox(channel, f"events-{number}").wait(1)[0].body == b"%d" % number
        assert channel.queue_declare("events", passive=True).method.consumer_count == 3
        with refused(406, "in use"):
            pond.channel().queue_delete("events", if_unused=True)
        with refused(404, "no queue 'events-3'"):
            channel.queue_declare("events-3", passive=True)
        with refused(406, "consume from each of them, by the names 'events-0' to 'events-2'"):
            inbox(pond.channel(), "events")

    def test_an_exact_name_wins(self, pond: Pond, channel: BlockingChannel) -> None:
        channel.queue_bind("events-1", "amq.fanout")
        tags = cancelled_tags(channel)
        reader = inbox(channel, "events-1")
        pond.create("events-1")
        eventually(lambda: tags == [reader.consumer_tag], "the consumer is cancelled", step=lambda: turn(channel))
        channel.queue_declare("events-2", durable=True)
        publish(channel, "events-1", b"exact")
        publish(channel, "events-2", b"queue")
        assert pond.values("events-1") == [b"exact"]
        assert pond.values("events", 3) == []
        channel.queue_delete("events-2")
        assert channel.queue_declare("events-2", passive=True).method.message_count == 0
        publish(channel, "events-2", b"partition")
        assert [(record.partition, record.value) for record in pond.records("events", 3)] == [(2, b"partition")]

    def test_a_stream_that_grows_is_consumed_from_by_its_partitions(self, pond: Pond) -> None:
        channel = pond.channel()
        channel.queue_declare("orders", durable=True, arguments=STREAM)
        channel.exchange_declare("in", "direct", durable=True)
        channel.queue_bind("orders", "in", "key")
        channel.basic_publish("in", "key", b"before")
        tags = cancelled_tags(channel)
        reader = inbox(channel, "orders")
        pond.admin.create_partitions([NewPartitions("orders", 4)])["orders"].result(DEADLINE_S)
        eventually(lambda: tags == [reader.consumer_tag], "the consumer is cancelled", step=lambda: turn(channel))
        for number in range(8):
            publish(channel, "orders", b"%d" % number)
        channel.basic_publish("in", "key", b"after", mandatory=True)
        channel.queue_declare("orders", durable=True, arguments=STREAM)
        assert inbox(channel, "orders-0").wait(3)[0].body == b"before"
        pond.restart(pond.process.kill)
        channel = pond.channel()
        channel.basic_publish("in", "key", b"later", mandatory=True)
        assert len(pond.values("orders", 4)) == 11
        with refused(406, "'orders-0' to 'orders-3'"):
            inbox(channel, "orders")


class TestSuperStreams:
    def test_those_that_rabbitmqs_clients_declare_are_topics_of_their_own(self, pond: Pond) -> None:
        """As RabbitMQ's own tools make them by AMQP: a direct exchange, and a stream for each partition."""
        channel = pond.channel()
        channel.exchange_declare("invoices", "direct", durable=True, arguments={"x-super-stream": True})
        for number in range(3):
            name = f"invoices-{number}"
            channel.queue_declare(name, durable=True, arguments=STREAM)
            order: dict[str, Any] = {"x-stream-partition-order": number}
            channel.queue_bind(name, "invoices", str(number), order)
        for number in range(3):
            channel.basic_publish("invoices", str(number), b"%d" % number, mandatory=True)
        assert {f"invoices-{number}": 1 for number in range(3)}.items() <= pond.topics().items()
        assert "invoices" not in pond.topics()
        pond.restart(pond.process.kill)
        channel = pond.channel()
        for number in range(3):
            assert inbox(channel, f"invoices-{number}").wait(1)[0].body == b"%d" % number
            assert pond.values(f"invoices-{number}") == [b"%d" % number]


class TestOlderData:
    def test_streams_of_a_catalog_that_had_them_among_the_queues_are_topics(self, tmp_path: Path) -> None:
        """The data directory of a broker that was killed, with 200 messages in segments and five in the journal."""
        with BrokerProcess(tmp_path / "broker", kafka=True) as process:
            process.stop()
            shutil.rmtree(process.data)
            with tarfile.open(OLDER_DATA) as archive:
                archive.extractall(process.data, filter="data")
            process.start()
            pond = Pond(process)
            records = pond.records("orders")
            assert [int((record.value or b"").split()[0]) for record in records] == list(range(205))
            channel = pond.channel()
            arguments = {"x-max-age": "36500D", "x-stream-max-segment-size-bytes": 4096}
            channel.queue_declare("orders", durable=True, arguments=STREAM | arguments)
            channel.basic_publish("in", "order.last", b"205", mandatory=True)
            deliveries = inbox(channel, "orders", 200).wait(6)
            assert [int(delivery.body.split()[0]) for delivery in deliveries] == list(range(200, 206))
            assert deliveries[0].method.routing_key == "order.200"
            assert deliveries[0].headers["n"] == 200
            assert channel.queue_declare("work", passive=True).method.message_count == 1
            pond.connection.close()
