"""Queues bound to topics as to exchanges: what is produced with Kafka is work for those who consume with AMQP."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.kafka.conftest import CreateTopic, wait_for_topic
from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.kafka_client import quiet, read_to_the_end
from tests.support.pika_client import Delivery, Inbox, channel_refused, drain, get, ready_count, turn, wait_ready
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.millpond_only("a topic of Apache Kafka's is no exchange of AMQP's")

DeclareQueue = Callable[..., str]

# In seconds; what is older than a week is deleted from a topic that says nothing else.
A_MINUTE_AGO = int(time.time()) - 60


@pytest.fixture
def channel(kafka: str, session_kafka: BrokerProcess) -> Iterator[BlockingChannel]:
    with BlockingConnection(Endpoint.of_url(session_kafka.amqp_url).parameters()) as connection:
        yield connection.channel()


@pytest.fixture
def declare(channel: BlockingChannel) -> Iterator[DeclareQueue]:
    """Declares durable queues of the test's own; keywords are arguments."""
    names: list[str] = []

    def declare_queue(**arguments: Any) -> str:
        named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        names.append(f"work-{uuid.uuid4().hex[:12]}")
        channel.queue_declare(names[-1], durable=True, arguments=named)
        return names[-1]

    yield declare_queue
    for name in names:
        channel.connection.channel().queue_delete(name)


class Producer:
    """A producer whose records are acknowledged when `produce` returns."""

    def __init__(self, servers: str, **settings: Any) -> None:
        self.client = confluent_kafka.Producer(quiet(servers) | {"linger.ms": 0} | settings)

    def produce(self, topic: str, *values: bytes, **record: Any) -> None:
        failures: list[object] = []

        def told(error: object, message: object) -> None:
            if error is not None:
                failures.append(error)

        for value in values:
            self.client.produce(topic, value, on_delivery=told, **record)
        assert self.client.flush(DEADLINE_S) == 0
        assert not failures


@pytest.fixture
def producer(kafka: str) -> Producer:
    return Producer(kafka)


def bodies(channel: BlockingChannel, queue: str, count: int) -> list[bytes]:
    """What a queue gets: so many messages, and no more."""
    wait_ready(channel, queue, count)
    return drain(channel, queue)


class TestRouting:
    def test_a_record_is_a_message_of_the_queues_bound_to_its_topic(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        queue = declare()
        channel.queue_bind(queue, topic, "")
        producer.produce(
            topic,
            b"a pair of boots",
            key="orders.eu.new",
            headers=[("shop", b"north")],
            timestamp=A_MINUTE_AGO * 1000 + 123,
        )
        wait_ready(channel, queue, 1)
        delivery = get(channel, queue)
        assert delivery.body == b"a pair of boots"
        assert (delivery.method.exchange, delivery.method.routing_key) == (topic, "orders.eu.new")
        assert delivery.headers["shop"] == "north"
        assert delivery.headers["timestamp_in_ms"] == A_MINUTE_AGO * 1000 + 123
        assert delivery.properties.timestamp == A_MINUTE_AGO
        assert delivery.properties.delivery_mode == 2

    def test_the_binding_key_is_a_pattern_of_the_records_key(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        patterns = ("", "#", "orders.*", "orders.new", "*.new.#")
        queues = [declare() for _ in patterns]
        for queue, pattern in zip(queues, patterns, strict=True):
            channel.queue_bind(queue, topic, pattern)
        for key in ("orders.new", "orders.old", "orders", None):
            producer.produce(topic, (key or "none").encode(), key=key)
        expected = [
            [b"orders.new", b"orders.old", b"orders", b"none"],
            [b"orders.new", b"orders.old", b"orders", b"none"],
            [b"orders.new", b"orders.old"],
            [b"orders.new"],
            [b"orders.new"],
        ]
        assert [bodies(channel, queue, len(found)) for queue, found in zip(queues, expected, strict=True)] == expected

    def test_headers_decide_where_the_binding_says_so(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        both, either = declare(), declare()
        channel.queue_bind(both, topic, "", arguments={"x-match": "all", "shop": "north", "kind": "boots"})
        channel.queue_bind(either, topic, "", arguments={"x-match": "any", "shop": "north", "kind": "boots"})
        producer.produce(topic, b"both", headers=[("shop", b"north"), ("kind", b"boots")])
        producer.produce(topic, b"one", headers=[("shop", b"north"), ("kind", b"hats")])
        producer.produce(topic, b"none", key="north")
        assert bodies(channel, either, 2) == [b"both", b"one"]
        assert bodies(channel, both, 1) == [b"both"]

    @pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
    def test_compressed_batches_are_opened(
        self, channel: BlockingChannel, declare: DeclareQueue, kafka: str, topic: str, codec: str
    ) -> None:
        queue = declare()
        channel.queue_bind(queue, topic, "")
        values = [b"%04d " % number * 50 for number in range(100)]
        Producer(kafka, **{"linger.ms": 20, "compression.type": codec}).produce(topic, *values)
        assert bodies(channel, queue, 100) == values

    def test_bindings_lead_through_exchanges(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        queue, exchange = declare(), f"{topic}-hub"
        channel.exchange_declare(exchange, "direct", auto_delete=True)
        channel.exchange_bind(exchange, topic, "orders.#")
        channel.queue_bind(queue, exchange, "orders.new")
        producer.produce(topic, b"new", key="orders.new")
        producer.produce(topic, b"old", key="orders.old")
        producer.produce(topic, b"again", key="orders.new")
        assert bodies(channel, queue, 2) == [b"new", b"again"]

    def test_records_of_all_partitions_come_in_the_order_of_their_keys(
        self, channel: BlockingChannel, declare: DeclareQueue, create_topic: CreateTopic, producer: Producer
    ) -> None:
        topic, queue = create_topic(3), declare()
        channel.queue_bind(queue, topic, "")
        for number in range(50):
            for key in ("a", "b", "c", "d", "e"):
                producer.client.produce(topic, b"%s %d" % (key.encode(), number), key=key)
        assert producer.client.flush(DEADLINE_S) == 0
        found = bodies(channel, queue, 250)
        for key in (b"a", b"b", b"c", b"d", b"e"):
            assert [body for body in found if body[:1] == key] == [b"%s %d" % (key, number) for number in range(50)]

    def test_a_queue_with_priorities_takes_them_from_the_records(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        queue = declare(max_priority=5)
        channel.queue_bind(queue, topic, "")
        producer.produce(topic, b"later")
        producer.produce(topic, b"first", headers=[("priority", b"5")])
        assert bodies(channel, queue, 2) == [b"first", b"later"]

    def test_poison_is_dead_lettered(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        dead = declare()
        queue = declare(dead_letter_exchange="", dead_letter_routing_key=dead)
        channel.queue_bind(queue, topic, "")
        producer.produce(topic, b"poison", key="k")
        producer.produce(topic, b"food", key="k")
        wait_ready(channel, queue, 2)
        channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)
        assert get(channel, queue).body == b"food"
        wait_ready(channel, dead, 1)
        letter = get(channel, dead)
        assert letter.body == b"poison"
        [death] = letter.headers["x-death"]
        assert (death["queue"], death["reason"], death["exchange"], death["routing-keys"]) == (
            queue, "rejected", topic, ["k"],
        )  # fmt: skip


class TestWhereABindingBegins:
    def test_with_what_is_produced_after_it(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        queue = declare()
        producer.produce(topic, b"before")
        channel.queue_bind(queue, topic, "")
        producer.produce(topic, b"after")
        assert bodies(channel, queue, 1) == [b"after"]

    def test_at_the_beginning_an_offset_or_a_time_where_it_says_so(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        for number in range(5):
            producer.produce(topic, b"%d" % number, timestamp=(A_MINUTE_AGO + number) * 1000)
        live = declare()
        channel.queue_bind(live, topic, "")
        starts: dict[object, list[bytes]] = {
            "first": [b"0", b"1", b"2", b"3", b"4", b"new"],
            3: [b"3", b"4", b"new"],
            "next": [b"new"],
        }
        queues = {start: declare() for start in starts}
        for start, queue in queues.items():
            channel.queue_bind(queue, topic, "", arguments={"x-stream-offset": start})
        timed = declare()
        channel.queue_bind(
            timed,
            topic,
            "",
            arguments={"x-stream-offset": datetime.fromtimestamp(A_MINUTE_AGO + 2, UTC)},
        )
        producer.produce(topic, b"new")
        for start, expected in starts.items():
            assert bodies(channel, queues[start], len(expected)) == expected
        assert bodies(channel, timed, 4) == [b"2", b"3", b"4", b"new"]
        assert bodies(channel, live, 1) == [b"new"]

    def test_what_is_no_place_to_begin_is_refused(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str
    ) -> None:
        queue = declare()
        refused = channel.connection.channel()
        with channel_refused(406):
            refused.queue_bind(queue, topic, "", arguments={"x-stream-offset": "yesterday"})

    def test_a_partition_that_is_added_is_read_from_its_beginning(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer, admin: AdminClient
    ) -> None:
        queue = declare()
        channel.queue_bind(queue, topic, "")
        admin.create_partitions([NewPartitions(topic, 2)])[topic].result(DEADLINE_S)
        wait_for_topic(admin, topic, 2)
        producer.produce(topic, b"in the new one", partition=1)
        assert bodies(channel, queue, 1) == [b"in the new one"]


class TestUnbinding:
    def test_nothing_more_comes_and_binding_again_begins_anew(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        queue = declare()
        channel.queue_bind(queue, topic, "")
        producer.produce(topic, b"bound")
        wait_ready(channel, queue, 1)
        channel.queue_unbind(queue, topic, "")
        producer.produce(topic, b"unbound")
        channel.queue_bind(queue, topic, "")
        producer.produce(topic, b"bound again")
        assert bodies(channel, queue, 2) == [b"bound", b"bound again"]

    def test_a_deleted_topic_is_no_exchange(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, admin: AdminClient
    ) -> None:
        queue = declare()
        channel.queue_bind(queue, topic, "")
        channel.exchange_declare(topic, passive=True)
        admin.delete_topics([topic])[topic].result(DEADLINE_S)
        with channel_refused(404):
            channel.connection.channel().queue_bind(queue, topic, "")

    def test_a_topic_is_not_deleted_as_an_exchange(self, channel: BlockingChannel, topic: str) -> None:
        with channel_refused(406):
            channel.connection.channel().exchange_delete(topic)


class TestLoadLevelling:
    def test_records_wait_in_the_topic_while_a_queue_refuses(
        self, channel: BlockingChannel, declare: DeclareQueue, topic: str, producer: Producer
    ) -> None:
        queue = declare(max_length=10, overflow="reject-publish")
        channel.queue_bind(queue, topic, "")
        values = [b"%d" % number for number in range(35)]
        producer.produce(topic, *values)
        wait_ready(channel, queue, 10)
        inbox = Inbox(channel, queue, on_delivery=Delivery.ack)
        assert [delivery.body for delivery in inbox.wait(35)] == values
        inbox.cancel()


# --- Restarts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_producer(kafka_process: BrokerProcess) -> Producer:
    return Producer(kafka_process.kafka_address)


def connected(process: BrokerProcess) -> BlockingConnection:
    return BlockingConnection(Endpoint.of_url(process.amqp_url).parameters())


def created(process: BrokerProcess, name: str, partitions: int) -> None:
    admin = AdminClient(quiet(process.kafka_address))
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(DEADLINE_S)
    wait_for_topic(admin, name, partitions)


def all_bodies(process: BrokerProcess, queue: str, at_least: int) -> list[bytes]:
    """What a queue has when it has at least so many and gets no more."""
    with connected(process) as connection:
        channel = connection.channel()
        eventually(lambda: ready_count(channel, queue) >= at_least, f"{at_least} messages", step=lambda: turn(channel))
        found = drain(channel, queue)
        turn(channel)
        return found + drain(channel, queue)


@pytest.mark.parametrize("way", ["kill", "restart"])
def test_bindings_and_cursors_survive(kafka_process: BrokerProcess, own_producer: Producer, way: str) -> None:
    created(kafka_process, "orders", 1)
    with connected(kafka_process) as connection:
        channel = connection.channel()
        channel.queue_declare("work", durable=True)
        channel.queue_bind("work", "orders", "orders.#")
        own_producer.produce("orders", b"before", key="orders.new")
        wait_ready(channel, "work", 1)
    if way == "kill":
        kafka_process.kill()
        kafka_process.start()
    else:
        kafka_process.restart()
    own_producer.produce("orders", b"after", key="orders.new")
    own_producer.produce("orders", b"elsewhere", key="invoices")
    assert all_bodies(kafka_process, "work", 2) == [b"before", b"after"]


def test_every_record_is_routed_once_although_the_broker_is_killed(
    kafka_process: BrokerProcess, own_producer: Producer
) -> None:
    count = 5000
    created(kafka_process, "orders", 3)
    with connected(kafka_process) as connection:
        channel = connection.channel()
        channel.queue_declare("work", durable=True)
        channel.queue_bind("work", "orders", "")
    sent = 0
    for share in (2000, 1500, 1500):
        for number in range(sent, sent + share):
            own_producer.client.produce("orders", b"%d" % number, key=str(number))
        sent += share
        # What is acknowledged is in the topic; how much of it has been routed by now is left to chance.
        assert own_producer.client.flush(DEADLINE_S) == 0
        if sent < count:
            kafka_process.kill()
            kafka_process.start()
    found = all_bodies(kafka_process, "work", count)
    in_topic = sorted(
        int(record.value or b"") for record in read_to_the_end(kafka_process.kafka_address, "orders", (0, 1, 2))
    )
    assert sorted(int(body) for body in found) == in_topic
