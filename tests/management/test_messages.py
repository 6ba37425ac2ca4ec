"""Publishing and getting messages by the management API."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.base.limits import ADMIN_LARGE_REQUEST_BYTES_MAX
from millpond.pytest_plugin import BackgroundBroker
from tests.support.endpoint import Endpoint
from tests.support.management import Answer, Call
from tests.support.pika_client import drain, numbered, publish, wait_ready
from tests.support.raw_amqp import RawConnection, commands

ANYTHING = (".*", ".*", ".*")


@pytest.fixture
def queue(channel: BlockingChannel) -> str:
    name: str = channel.queue_declare("", durable=True).method.queue
    return name


def put(call: Call, routing_key: str, exchange: str = "amq.default", login: str = "guest:guest", **body: Any) -> Answer:
    message = {"properties": {}, "routing_key": routing_key, "payload": "m", "payload_encoding": "string", **body}
    return call("POST", f"/api/exchanges/%2F/{exchange}/publish", message, login)


def get(call: Call, queue: str, login: str = "guest:guest", **body: Any) -> Answer:
    asked = {"count": 10, "ackmode": "ack_requeue_false", "encoding": "auto", **body}
    return call("POST", f"/api/queues/%2F/{queue}/get", asked, login)


# --- Publishing -------------------------------------------------------------------------------------------------------


def test_a_published_message_arrives_as_it_was_described(call: Call, channel: BlockingChannel, queue: str) -> None:
    properties = {
        "content_type": "text/plain",
        "headers": {"a": 1, "b": ["x", 2.0, True, None], "c": {"d": "é"}},
        "delivery_mode": 2,
        "priority": 7,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "600000",
        "message_id": "i",
        "timestamp": 1_700_000_000,
        "type": "t",
        "user_id": "guest",
        "app_id": "p",
        "unknown": "passed over",
    }
    answer = put(call, queue, properties=properties, payload="grüß")
    assert (answer.status, answer.json) == (200, {"routed": True})
    method, received, body = channel.basic_get(queue, auto_ack=True)
    assert (method.exchange, method.routing_key, body.decode()) == ("", queue, "grüß")
    for name, value in properties.items():
        assert name == "unknown" or getattr(received, name) == value


def test_a_payload_may_be_base64(call: Call, channel: BlockingChannel, queue: str) -> None:
    payload = bytes(range(256))
    put(call, queue, payload=base64.b64encode(payload).decode(), payload_encoding="base64")
    assert drain(channel, queue) == [payload]


def test_a_large_payload_fits_and_too_large_a_one_is_refused(call: Call, channel: BlockingChannel, queue: str) -> None:
    assert put(call, queue, payload="x" * 1_000_000).json == {"routed": True}
    assert drain(channel, queue) == [b"x" * 1_000_000]
    headers = {"Content-Length": str(ADMIN_LARGE_REQUEST_BYTES_MAX + 1)}
    assert call("POST", "/api/exchanges/%2F/amq.default/publish", headers=headers).status == 413
    headers = {"Content-Length": str(ADMIN_LARGE_REQUEST_BYTES_MAX)}
    assert call("POST", "/api/queues/%2F/publish/get", headers=headers).status == 413


def test_a_message_that_reaches_no_queue_is_not_routed(call: Call) -> None:
    assert put(call, "absent").json == {"routed": False}
    assert put(call, "absent", "amq.topic").json == {"routed": False}


def test_further_routing_keys_count_and_blind_ones_are_taken_out(call: Call, channel: BlockingChannel) -> None:
    names = [channel.queue_declare("", exclusive=True).method.queue for _ in range(3)]
    for name in names:
        channel.queue_bind(name, "amq.direct", f"key-{name}")
    keys = [f"key-{name}" for name in names]
    headers = {"CC": [keys[1]], "BCC": [keys[2]]}
    assert put(call, keys[0], "amq.direct", properties={"headers": headers}).json == {"routed": True}
    for name in names:
        _, received, _ = channel.basic_get(name, auto_ack=True)
        assert received.headers == {"CC": [keys[1]]}


def test_what_was_published_survives_a_restart(call: Call, pond: BackgroundBroker) -> None:
    call("PUT", "/api/queues/%2F/kept", {"durable": True})
    assert put(call, "kept", properties={"delivery_mode": 2}, payload="kept").json == {"routed": True}
    pond.restart()
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        assert drain(connection.channel(), "kept") == [b"kept"]


def test_a_full_queue_refuses(call: Call, channel: BlockingChannel) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    name = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    assert put(call, name).status == 200
    answer = put(call, name)
    assert (answer.status, answer.json["error"]) == (400, "bad_request")
    assert answer.json["reason"].startswith("rejected")


def test_publishing_needs_the_users_permissions(
    call: Call, channel: BlockingChannel, user: Callable[..., str], queue: str
) -> None:
    channel.exchange_declare("own", "topic")
    channel.queue_bind(queue, "own", "#")
    channel.exchange_declare("inside", "fanout", internal=True)
    login = user("writer", "management", ("", "^(own|inside)$", ""))
    assert put(call, "k", "own", login).json == {"routed": True}
    assert put(call, queue, login=login).status == 401
    assert put(call, "k", "amq.topic", login).status == 401
    assert put(call, "k", "inside", login).status == 401
    assert put(call, "k", "inside").status == 401
    answer = put(call, "k", "own", login, properties={"user_id": "guest"})
    assert answer.json["reason"] == "user_id property set to 'guest' but authenticated user was 'writer'"
    assert put(call, "k", "own", login, properties={"user_id": "writer"}).status == 200
    call("PUT", "/api/topic-permissions/%2F/writer", {"exchange": "own", "write": "^{username}$", "read": ""})
    assert put(call, "writer", "own", login).status == 200
    answer = put(call, "k", "own", login)
    assert (answer.status, answer.json["error"]) == (401, "not_authorised")
    assert put(call, "writer", "own", login, properties={"headers": {"CC": ["k"]}}).status == 401
    assert put(call, "k", "own", user("outsider", "management")).status == 404
    channel.exchange_delete("own")
    channel.exchange_delete("inside")


def test_where_to_publish_must_exist(call: Call) -> None:
    answer = put(call, "k", "absent")
    assert (answer.status, answer.json["reason"]) == (404, "exchange_not_found")
    assert call("POST", "/api/exchanges/absent/amq.topic/publish", {}).status == 404


@pytest.mark.parametrize(
    "body",
    [
        {"routing_key": None},
        {"routing_key": 5},
        {"routing_key": "k" * 256},
        {"payload": 5},
        {"payload": None},
        {"payload_encoding": "rot13"},
        {"payload": "not base64!", "payload_encoding": "base64"},
        {"payload": "é", "payload_encoding": "base64"},
        {"properties": "none"},
        {"properties": {"delivery_mode": "2"}},
        {"properties": {"delivery_mode": 256}},
        {"properties": {"delivery_mode": True}},
        {"properties": {"priority": -1}},
        {"properties": {"timestamp": 1.5}},
        {"properties": {"timestamp": -1}},
        {"properties": {"content_type": 5}},
        {"properties": {"message_id": "i" * 256}},
        {"properties": {"expiration": "soon"}},
        {"properties": {"expiration": "-1"}},
        {"properties": {"headers": []}},
        {"properties": {"headers": {"k" * 300: 1}}},
        {"properties": {"headers": {"CC": "k"}}},
        {"properties": {"headers": {"BCC": [1]}}},
    ],
    ids=str,
)
def test_a_message_that_is_not_valid_is_refused(call: Call, queue: str, body: dict[str, object]) -> None:
    answer = put(call, queue, **body) if "routing_key" not in body else put(call, **body)
    assert (answer.status, answer.json["error"]) == (400, "bad_request")
    assert get(call, queue).json == []


@pytest.mark.parametrize("missing", ["routing_key", "properties", "payload", "payload_encoding"])
def test_every_part_of_a_message_is_asked_for(call: Call, missing: str) -> None:
    message = {"properties": {}, "routing_key": "k", "payload": "m", "payload_encoding": "string"}
    del message[missing]
    answer = call("POST", "/api/exchanges/%2F/amq.default/publish", message)
    assert answer.status == 400
    assert missing in answer.json["reason"]


# --- Getting ----------------------------------------------------------------------------------------------------------


def test_a_message_is_shown_with_all_that_it_has(call: Call, channel: BlockingChannel, queue: str) -> None:
    properties = pika.BasicProperties(content_type="text/plain", headers={"a": 1, "raw": b"\xff"}, delivery_mode=2)
    channel.basic_publish("", queue, b"text", properties)
    publish(channel, queue, b"\xff")
    wait_ready(channel, queue, 2)
    first, second = get(call, queue).json
    assert first == {
        "payload_bytes": 4,
        "redelivered": False,
        "exchange": "",
        "routing_key": queue,
        "message_count": 1,
        "properties": {"content_type": "text/plain", "headers": {"a": 1, "raw": "\\xff"}, "delivery_mode": 2},
        "payload": "text",
        "payload_encoding": "string",
    }
    assert (second["payload"], second["payload_encoding"], second["properties"]) == ("/w==", "base64", {})


def test_numbers_that_json_does_not_have_are_shown_as_text(call: Call, pond: BackgroundBroker, queue: str) -> None:
    headers = {"x": [float("nan")], "y": float("inf")}
    with RawConnection(Endpoint.of_url(pond.amqp_url)) as raw:
        raw.handshake()
        number = raw.open_channel()
        raw.publish(number, queue, b"m", properties=commands.Basic.Properties(headers=headers))
        raw.rpc(commands.Queue.Declare(queue=queue, passive=True), commands.Queue.DeclareOk)
    [shown] = get(call, queue).json
    assert shown["properties"]["headers"] == {"x": ["nan"], "y": "inf"}


@pytest.mark.parametrize(
    ("ackmode", "left", "dead"),
    [
        ("ack_requeue_true", [b"0", b"1", b"2"], []),
        ("reject_requeue_true", [b"0", b"1", b"2"], []),
        ("ack_requeue_false", [b"2"], []),
        ("reject_requeue_false", [b"2"], [b"0", b"1"]),
    ],
)
def test_the_mode_says_what_becomes_of_the_messages(
    call: Call, channel: BlockingChannel, ackmode: str, left: list[bytes], dead: list[bytes]
) -> None:
    graveyard = channel.queue_declare("", exclusive=True).method.queue
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": graveyard}
    name = channel.queue_declare("", arguments=arguments).method.queue
    publish(channel, name, *numbered(3))
    wait_ready(channel, name, 3)
    shown = get(call, name, count=2, ackmode=ackmode).json
    assert [(one["payload"], one["message_count"]) for one in shown] == [("0", 2), ("1", 1)]
    wait_ready(channel, name, len(left))
    redelivered = [one["redelivered"] for one in get(call, name, ackmode="ack_requeue_true").json]
    assert redelivered == [len(left) == 3, len(left) == 3, False][-len(left) :]
    assert drain(channel, name) == left
    wait_ready(channel, graveyard, len(dead))
    assert drain(channel, graveyard) == dead
    channel.queue_delete(name)


def test_a_quorum_queue_shows_how_often_a_message_came_back(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("counted", durable=True, arguments={"x-queue-type": "quorum"})
    publish(channel, "counted", b"m")
    wait_ready(channel, "counted", 1)
    assert get(call, "counted", ackmode="reject_requeue_true").json[0]["properties"] == {}
    [shown] = get(call, "counted", ackmode="reject_requeue_true").json
    assert shown["properties"]["headers"] == {"x-delivery-count": 1}
    channel.queue_delete("counted")


def test_payloads_are_cut_and_encoded_as_asked(call: Call, channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, b"0123456789", "é".encode())
    wait_ready(channel, queue, 2)
    first, second = get(call, queue, ackmode="ack_requeue_true", truncate=3).json
    assert (first["payload"], first["payload_bytes"]) == ("012", 10)
    first, second = get(call, queue, ackmode="ack_requeue_true", truncate=1).json
    # Half a character is no text.
    assert (second["payload"], second["payload_encoding"]) == ("ww==", "base64")
    first, _ = get(call, queue, encoding="base64").json
    assert (first["payload"], first["payload_encoding"]) == ("MDEyMzQ1Njc4OQ==", "base64")


def test_a_queue_waits_for_nobody(call: Call, queue: str) -> None:
    assert get(call, queue).json == []
    assert get(call, queue, count=0).json == []


def test_getting_needs_read_permission(call: Call, user: Callable[..., str], queue: str) -> None:
    answer = get(call, queue, user("writer", "management", (".*", ".*", "")))
    assert (answer.status, answer.json["error"]) == (401, "not_authorised")
    assert get(call, queue, user("outsider", "management")).status == 404
    assert get(call, queue, user("reader", "management", ("", "", ".*"))).status == 200
    assert get(call, "absent").json["reason"] == "queue_not_found"


@pytest.mark.parametrize(
    "body",
    [
        {"count": -1},
        {"count": "many"},
        {"count": None},
        {"ackmode": "ack"},
        {"encoding": "string"},
        {"truncate": -1},
        {"truncate": "x"},
    ],
    ids=str,
)
def test_what_is_asked_for_must_be_valid(call: Call, queue: str, body: dict[str, object]) -> None:
    answer = get(call, queue, **body)
    assert (answer.status, answer.json["error"]) == (400, "bad_request")


def test_a_queue_of_a_connection_is_locked(call: Call, channel: BlockingChannel) -> None:
    name = channel.queue_declare("", exclusive=True).method.queue
    assert get(call, name).status == 400
