"""Records that Kafka has made, as consumers of AMQP's get them: on a stream, and with all that a queue does to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from millpond.broker.message import Address, Message, further_routing_keys
from millpond.broker.record_properties import record_properties
from millpond.broker.streams.stream_queue import StreamQueue
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.properties import encode_properties, parse_properties
from millpond.storage.batch_rewrite import recompressed
from millpond.storage.compression import CODECS
from millpond.storage.record_batch import BatchBuilder, RecordReader, encode_headers
from tests.protocols.amqp.harness import Client, Pond, pond_of
from tests.protocols.amqp.harness import Message as Delivered

Header = tuple[bytes, bytes | None]

NOW_MS = 1_700_000_000_123


@pytest.fixture
def pond() -> Iterator[Pond]:
    with pond_of() as made:
        yield made


@pytest.fixture
def client(pond: Pond) -> Client:
    return pond.client(channels=2)


def produced(*records: tuple[bytes | None, bytes | None, list[Header]]) -> bytes:
    builder = BatchBuilder()
    for key, value, headers in records:
        builder.append_with_headers(builder.count, NOW_MS, key, value, headers)
    return builder.finish(0, builder.count - 1)


def append(pond: Pond, stream: str, batch: bytes) -> None:
    queue = pond.broker.vhosts["/"].queue(stream, None)
    assert isinstance(queue, StreamQueue)
    assert queue.partition is not None
    queue.partition.append(batch)


def publish(pond: Pond, exchange: str, key: bytes | None, value: bytes | None, headers: list[Header]) -> None:
    """What routing a topic's record to an exchange comes to."""
    vhost = pond.broker.vhosts["/"]
    properties = record_properties(NOW_MS, key, value is None, encode_headers(headers))
    address = Address(exchange, "" if key is None else key.decode())
    message = Message(address, properties, value or b"", NOW_MS)
    copies = further_routing_keys(properties.headers())
    vhost.publish(vhost.route(vhost.exchange(exchange), address, properties, copies), message)
    pond.broker.turn.touch()
    pond.rest()


def stream_of(client: Client) -> str:
    client.declare(1, "s", durable=True, arguments={"x-queue-type": "stream"})
    return "s"


def read(client: Client, stream: str, **arguments: Any) -> list[Delivered]:
    client.call(2, methods.BasicQos(prefetch_count=100), methods.BasicQosOk)
    named = {"x-stream-offset": "first", **{f"x-stream-{key.replace('_', '-')}": arguments[key] for key in arguments}}
    client.consume(2, stream, arguments=named)
    return client.messages()


def headers_of(message: Delivered) -> dict[str, object]:
    return parse_properties(message.properties).headers()


def test_a_stream_s_consumer_gets_records_among_messages(pond: Pond, client: Client) -> None:
    stream = stream_of(client)
    client.publish(1, stream, b"of AMQP", properties=encode_properties(headers={"n": 7}, priority=3))
    pond.rest()
    append(pond, stream, produced((b"k", b"of Kafka", [(b"t", b"1"), (b"content-type", b"a/b")]), (None, None, [])))
    first, second, third = read(client, stream)
    assert (first.body, headers_of(first)) == (b"of AMQP", {"n": 7, "x-stream-offset": 0})
    assert isinstance(second.method, methods.BasicDeliver)
    assert (second.method.exchange, second.method.routing_key, second.body) == ("", "k", b"of Kafka")
    assert parse_properties(second.properties).described() == {
        "content_type": "a/b",
        "headers": {"t": "1", "content-type": "a/b", "timestamp_in_ms": NOW_MS, "x-stream-offset": 1},
        "delivery_mode": 2,
        "timestamp": NOW_MS // 1000,
    }
    assert (third.body, headers_of(third)["x-kafka-tombstone"], headers_of(third)["x-stream-offset"]) == (b"", True, 2)


@pytest.mark.parametrize("codec", sorted(CODECS.values()))
def test_filters_look_into_compressed_records(pond: Pond, client: Client, codec: int) -> None:
    stream = stream_of(client)
    name = b"x-stream-filter-value"
    batch = produced((b"k", b"1", [(name, b"red")]), (b"k", b"2", [(name, b"blue")]), (b"k", b"3", []))
    append(pond, stream, recompressed(batch, codec))
    assert [message.body for message in read(client, stream, filter="blue")] == [b"2"]
    client.call(2, methods.BasicCancel(consumer_tag="c"), methods.BasicCancelOk)
    assert [message.body for message in read(client, stream, filter=["red"], match_unfiltered=True)] == [b"1", b"3"]


def test_a_record_whose_headers_fill_a_frame_still_has_its_offset(pond: Pond) -> None:
    client = pond.client(channels=2, frame_max=4096)
    stream = stream_of(client)
    append(pond, stream, produced((b"k", b"v", [(b"small", b"1"), (b"large", b"x" * 10_000)])))
    (message,) = read(client, stream)
    assert headers_of(message) == {
        "small": "1", "timestamp_in_ms": NOW_MS, "x-headers-left-out": 1, "x-stream-offset": 0
    }  # fmt: skip


def test_headers_that_a_program_of_kafka_s_added_to_a_message_need_not_fit_into_a_frame(pond: Pond) -> None:
    client = pond.client(channels=2, frame_max=4096)
    stream, back = stream_of(client), "back"
    client.declare(1, back, durable=True, arguments={"x-queue-type": "stream"})
    client.publish(1, stream, b"m", properties=encode_properties(headers={"n": 7}, app_id="a"))
    pond.rest()
    queue = pond.broker.vhosts["/"].queue(stream, None)
    assert queue.partition is not None
    reader = RecordReader(queue.partition.hot[0].data)
    assert reader.next()
    append(pond, back, produced((reader.key, reader.value, [*reader.headers(), (b"large", b"x" * 10_000)])))
    (message,) = read(client, back)
    assert message.body == b"m"
    described = parse_properties(message.properties).described()
    assert (described["app_id"], described["headers"]) == ("a", {"n": 7, "x-headers-left-out": 1})


def test_records_are_routed_by_their_headers_and_further_keys(pond: Pond, client: Client) -> None:
    client.call(1, methods.ExchangeDeclare(exchange="by-headers", type="headers"), methods.ExchangeDeclareOk)
    client.declare(1, "red")
    client.call(
        1,
        methods.QueueBind(queue="red", exchange="by-headers", arguments={"x-match": "all", "colour": "red"}),
        methods.QueueBindOk,
    )
    publish(pond, "by-headers", b"k", b"v", [(b"colour", b"red")])
    publish(pond, "by-headers", b"k", b"v", [(b"colour", b"blue")])
    assert client.ready(1, "red") == 1
    publish(pond, "", b"nowhere", b"v", [(b"CC", b"red")])
    assert client.ready(1, "red") == 2


def test_records_have_priorities_in_a_queue(pond: Pond, client: Client) -> None:
    client.declare(1, "q", durable=True, arguments={"x-max-priority": 10})
    for text in (b"1", b"9", b"5"):
        publish(pond, "", b"q", text, [(b"priority", text)])
    client.consume(1, "q")
    messages = client.messages()
    assert [message.body for message in messages] == [b"9", b"5", b"1"]
    assert parse_properties(messages[0].properties).priority == 9


def test_a_record_that_dies_says_so_to_amqp_and_to_kafka(pond: Pond, client: Client) -> None:
    stream = stream_of(client)
    client.declare(1, "work", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": stream})
    publish(pond, "", b"work", b"v", [(b"a", b"1"), (b"a", b"2")])
    client.send(1, methods.BasicGet(queue="work"))
    (got,) = client.messages()
    assert headers_of(got)["a"] == ["1", "2"]
    assert isinstance(got.method, methods.BasicGetOk)
    client.send(1, methods.BasicReject(delivery_tag=got.method.delivery_tag, requeue=False))
    pond.rest()
    (dead,) = read(client, stream)
    deaths = headers_of(dead)["x-death"]
    assert isinstance(deaths, list)
    assert (deaths[0]["queue"], deaths[0]["reason"]) == ("work", "rejected")
    assert isinstance(dead.method, methods.BasicDeliver)
    assert dead.method.routing_key == stream
    queue = pond.broker.vhosts["/"].queue(stream, None)
    assert queue.partition is not None
    reader = RecordReader(queue.partition.hot[0].data)
    assert reader.next()
    assert (reader.key, reader.value, reader.timestamp_ms) == (b"work", b"v", NOW_MS)
    assert reader.headers()[:2] == [(b"a", b"1"), (b"a", b"2")]
    assert dict(reader.headers())[b"x-first-death-queue"] == b"work"


def test_a_record_that_comes_back_is_counted(pond: Pond, client: Client) -> None:
    client.declare(1, "q", durable=True, arguments={"x-queue-type": "quorum"})
    publish(pond, "", b"q", b"v", [(b"a", b"1")])
    client.send(1, methods.BasicGet(queue="q"))
    (got,) = client.messages()
    assert isinstance(got.method, methods.BasicGetOk)
    client.send(1, methods.BasicReject(delivery_tag=got.method.delivery_tag, requeue=True))
    client.send(1, methods.BasicGet(queue="q"))
    (again,) = client.messages()
    assert headers_of(again) == {"a": "1", "timestamp_in_ms": NOW_MS, "x-delivery-count": 1}
