"""Key, headers, timestamp and properties survive the way from AMQP's clients to Kafka's, and back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import CLIENTS, CODECS, Client, ConfluentClient, Message
from tests.support.pika_client import Delivery, Inbox, turn
from tests.support.waiting import eventually

STREAM = {"x-queue-type": "stream"}
PROPERTIES: dict[str, Any] = {
    "content_type": "application/json",
    "content_encoding": "identity",
    "headers": {
        "text": "söme",
        "number": 7,
        "true": True,
        "bytes": b"\xff\x00",
        "nothing": None,
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "table": {"list": [1, "two", {"three": 3}]},
    },
    "delivery_mode": 2,
    "priority": 5,
    "correlation_id": "correlation",
    "reply_to": "answers",
    "message_id": "id",
    "timestamp": 1_700_000_000,
    "type": "order",
    "app_id": "shop",
    "cluster_id": "cluster",
}
SHOWN = (
    ("text", "söme".encode()),
    ("number", b"7"),
    ("true", b"true"),
    ("bytes", b"\xff\x00"),
    ("nothing", None),
    ("time", b"2026-01-02T03:04:05Z"),
    ("table", b'{"list":[1,"two",{"three":3}]}'),
    ("content-type", b"application/json"),
    ("content-encoding", b"identity"),
    ("priority", b"5"),
    ("correlation-id", b"correlation"),
    ("reply-to", b"answers"),
    ("message-id", b"id"),
    ("type", b"order"),
    ("app-id", b"shop"),
)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("crossing"), kafka=True) as made:
        yield made


@pytest.fixture
def channel(process: BrokerProcess) -> Iterator[BlockingChannel]:
    connection = BlockingConnection(pika.URLParameters(process.amqp_url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)
    channel.confirm_delivery()
    yield channel
    connection.close()


@pytest.fixture
def stream(channel: BlockingChannel) -> str:
    name = f"stream-{uuid.uuid4().hex[:12]}"
    channel.queue_declare(name, durable=True, arguments=STREAM)
    return name


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest, process: BrokerProcess) -> Client:
    made: Client = request.param(process.kafka_address)
    return made


def read(channel: BlockingChannel, stream: str, count: int, **arguments: Any) -> list[Delivery]:
    inbox = Inbox(
        channel,
        stream,
        on_delivery=lambda delivery: delivery.ack(),
        arguments={"x-stream-offset": "first", **arguments},
    )
    deliveries = inbox.wait(count)
    channel.basic_cancel(inbox.consumer_tag)
    return deliveries


def got(channel: BlockingChannel, queue: str) -> Delivery:
    """One message of a queue, by basic.get."""
    found: list[Delivery] = []

    def arrived() -> bool:
        method, properties, body = channel.basic_get(queue)
        if method is not None:
            found.append(Delivery(channel, method, properties, body))
        return bool(found)

    eventually(arrived, f"a message in {queue}", step=lambda: turn(channel))
    return found[0]


def test_kafka_s_consumers_see_what_amqp_published(channel: BlockingChannel, stream: str, client: Client) -> None:
    channel.exchange_declare(f"x-{stream}", "topic")
    channel.queue_bind(stream, f"x-{stream}", "#")
    channel.basic_publish(f"x-{stream}", "orders.new", b"body", pika.BasicProperties(**PROPERTIES))
    (record,) = client.read(stream, 1)
    assert (record.key, record.value, record.timestamp_ms) == (b"orders.new", b"body", 1_700_000_000_000)
    assert record.headers[:-1] == SHOWN
    assert record.headers[-1][0] == "millpond"


def test_amqp_gets_back_what_it_published(channel: BlockingChannel, stream: str) -> None:
    channel.basic_publish("", stream, b"body", pika.BasicProperties(**PROPERTIES))
    (delivery,) = read(channel, stream, 1)
    headers = delivery.properties.headers
    assert headers.pop("x-stream-offset") == 0
    # pika knows no time zone.
    headers["time"] = headers["time"].replace(tzinfo=UTC)
    found = {name: value for name, value in vars(delivery.properties).items() if value is not None}
    assert found == PROPERTIES


def test_a_message_that_states_no_time_has_that_of_its_receipt(
    channel: BlockingChannel, stream: str, process: BrokerProcess
) -> None:
    before_ms = int(time.time() * 1000)
    channel.basic_publish("", stream, b"without")
    channel.basic_publish("", stream, b"far ahead", pika.BasicProperties(timestamp=before_ms // 1000 + 100_000))
    for record in ConfluentClient(process.kafka_address).read(stream, 2):
        assert before_ms <= record.timestamp_ms <= int(time.time() * 1000)
        assert record.headers[-1][0] == "millpond"


@pytest.mark.parametrize("codec", CODECS)
def test_amqp_s_consumers_see_what_kafka_produced(
    channel: BlockingChannel, stream: str, client: Client, codec: str
) -> None:
    now_ms = int(time.time() * 1000)
    client.produce(
        stream,
        [
            Message(b"value", b"key", (("text", "söme".encode()), ("type", b"order"), ("priority", b"4")), now_ms),
            Message(b"binary", b"\xff", (("bytes", b"\xff"), ("twice", b"1"), ("twice", b"2")), now_ms + 1),
            Message(None, b"gone", (), now_ms + 2),
            Message(b"", None, (), now_ms + 3),
        ],
        codec=codec,
    )
    value, binary, gone, empty = read(channel, stream, 4)
    assert (value.method.exchange, value.method.routing_key, value.body) == ("", "key", b"value")
    assert (value.properties.type, value.properties.priority, value.properties.delivery_mode) == ("order", 4, 2)
    assert value.properties.timestamp == now_ms // 1000
    assert value.properties.headers == {
        "text": "söme", "type": "order", "priority": "4", "timestamp_in_ms": now_ms, "x-stream-offset": 0
    }  # fmt: skip
    assert binary.method.routing_key == ""
    assert binary.properties.headers == {
        "bytes": b"\xff",
        "twice": ["1", "2"],
        "timestamp_in_ms": now_ms + 1,
        "x-kafka-key": b"\xff",
        "x-stream-offset": 1,
    }
    assert (gone.method.routing_key, gone.body, gone.properties.headers["x-kafka-tombstone"]) == ("gone", b"", True)
    assert (empty.method.routing_key, empty.body) == ("", b"")
    assert empty.properties.headers == {"timestamp_in_ms": now_ms + 3, "x-stream-offset": 3}


def test_a_filter_of_amqp_s_takes_kafka_s_headers(channel: BlockingChannel, stream: str, client: Client) -> None:
    name = "x-stream-filter-value"
    client.produce(stream, [Message(b"%d" % n, None, ((name, (b"red", b"blue")[n % 2]),)) for n in range(6)], "gzip")
    deliveries = read(channel, stream, 3, **{"x-stream-filter": "blue"})
    assert [delivery.body for delivery in deliveries] == [b"1", b"3", b"5"]


def test_a_program_of_kafka_s_may_pass_on_a_message_that_amqp_gets_back_whole(
    channel: BlockingChannel, stream: str, client: Client, process: BrokerProcess
) -> None:
    channel.basic_publish("", stream, b"body", pika.BasicProperties(**PROPERTIES))
    (record,) = client.read(stream, 1)
    # Not every client can produce a header without a value.
    ConfluentClient(process.kafka_address).produce(
        stream, [Message(b"other body", b"other key", (*record.headers, ("trace", b"1")))]
    )
    _, delivery = read(channel, stream, 2)
    assert (delivery.body, delivery.method.routing_key) == (b"other body", "other key")
    headers = delivery.properties.headers
    assert (headers["trace"], headers["number"], headers["table"]) == ("1", 7, PROPERTIES["headers"]["table"])
    assert (delivery.properties.priority, delivery.properties.cluster_id) == (5, "cluster")


def test_a_consumer_that_publishes_what_it_got_from_kafka_loses_neither_key_nor_time(
    channel: BlockingChannel, stream: str, client: Client
) -> None:
    now_ms = int(time.time() * 1000) - 1000
    client.produce(stream, [Message(b"v", b"\xff", (("a", b"1"),), now_ms), Message(None, b"k", (), now_ms)])
    for delivery in read(channel, stream, 2):
        channel.basic_publish("", stream, delivery.body, delivery.properties)
    first, second, copy, second_copy = client.read(stream, 4)
    assert (copy.key, copy.value, copy.timestamp_ms) == (first.key, first.value, first.timestamp_ms)
    assert copy.headers[0] == ("a", b"1")
    # Its routing key was the stream's name when it was published again.
    assert (second_copy.value, second_copy.timestamp_ms) == (None, second.timestamp_ms)
