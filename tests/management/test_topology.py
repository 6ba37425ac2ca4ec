"""Queues, exchanges and bindings by the management API: declared, shown, deleted, and who may do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.pytest_plugin import BackgroundBroker
from tests.support.management import Call

User = Callable[..., str]
ANYTHING = (".*", ".*", ".*")


@pytest.fixture(autouse=True)
def _clean_up(call: Call) -> Any:
    yield
    for kind in ("queues", "exchanges"):
        for one in call("GET", f"/api/{kind}/%2F").json:
            if one["name"] and not one["name"].startswith("amq."):
                call("DELETE", f"/api/{kind}/%2F/{one['name'].replace('/', '%2F')}")


# --- Queues -----------------------------------------------------------------------------------------------------------


def test_a_queue_is_declared_used_and_deleted(call: Call, channel: BlockingChannel) -> None:
    body = {"durable": True, "arguments": {"x-max-length": 5, "note": ["a", 1.5, {"b": None}]}}
    assert call("PUT", "/api/queues/%2F/work", body).status == 201
    assert call("PUT", "/api/queues/%2F/work", body).status == 204
    channel.basic_publish("", "work", b"m")
    assert channel.queue_declare("work", durable=True, passive=True).method.message_count == 1
    shown = call("GET", "/api/queues/%2F/work").json
    assert (shown["durable"], shown["auto_delete"], shown["exclusive"]) == (True, False, False)
    assert shown["type"] == "classic"
    assert shown["arguments"] == body["arguments"]
    assert call("DELETE", "/api/queues/%2F/work?if-empty=true").status == 400
    assert call("DELETE", "/api/queues/%2F/work/contents").status == 204
    assert call("DELETE", "/api/queues/%2F/work?if-empty=true").status == 204
    assert call("GET", "/api/queues/%2F/work").status == 404
    assert call("DELETE", "/api/queues/%2F/work").status == 404


def test_a_body_is_not_needed(call: Call) -> None:
    for body in (None, b"", b"null", {}):
        call("PUT", "/api/queues/%2F/plain", body)
        assert call("DELETE", "/api/queues/%2F/plain").status == 204


def test_a_queue_that_differs_is_refused_in_rabbitmqs_words(call: Call) -> None:
    call("PUT", "/api/queues/%2F/work", {"durable": True})
    answer = call("PUT", "/api/queues/%2F/work", {"durable": False})
    assert answer.status == 400
    assert answer.json == {
        "error": "bad_request",
        "reason": "inequivalent arg 'durable' for queue 'work' in vhost '/': received 'false' but current is 'true'",
    }


def test_a_queue_with_consumers_shows_them_and_is_kept_if_unused(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("work", arguments={"x-single-active-consumer": True})
    for tag in ("first", "second"):
        channel.basic_consume("work", lambda *_: None, consumer_tag=tag, arguments={"x-priority": 0})
    first, second = call("GET", "/api/queues/%2F/work").json["consumer_details"]
    assert (first["consumer_tag"], first["active"], first["activity_status"]) == ("first", True, "single_active")
    assert (second["consumer_tag"], second["active"], second["activity_status"]) == ("second", False, "waiting")
    assert first["arguments"] == {"x-priority": 0}
    [shown] = call("GET", "/api/channels").json
    assert first["channel_details"]["name"] == shown["name"]
    assert first["channel_details"]["user"] == "guest"
    assert call("DELETE", "/api/queues/%2F/work?if-unused=true").status == 400


def test_an_exclusive_queue_belongs_to_its_connection(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("mine", exclusive=True)
    for method, path, body in (
        ("PUT", "/api/queues/%2F/mine", {}),
        ("DELETE", "/api/queues/%2F/mine", None),
        ("DELETE", "/api/queues/%2F/mine/contents", None),
        ("POST", "/api/bindings/%2F/e/amq.topic/q/mine", {}),
    ):
        answer = call(method, path, body)
        assert answer.status == 400
        assert answer.json["reason"].startswith("cannot obtain exclusive access to locked queue 'mine' in vhost '/'")


@pytest.mark.parametrize("name", ["amq.mine", "amq.gen-x"])
def test_reserved_names_are_refused(call: Call, name: str) -> None:
    assert call("PUT", f"/api/queues/%2F/{name}", {}).status == 401
    assert call("PUT", f"/api/exchanges/%2F/{name}", {}).status == 401


# --- Exchanges --------------------------------------------------------------------------------------------------------


def test_an_exchange_is_declared_and_deleted(call: Call, channel: BlockingChannel) -> None:
    body = {"type": "topic", "durable": True, "arguments": {"alternate-exchange": "amq.fanout"}}
    assert call("PUT", "/api/exchanges/%2F/news", body).status == 201
    assert call("PUT", "/api/exchanges/%2F/news", body).status == 204
    channel.exchange_declare("news", passive=True)
    shown = call("GET", "/api/exchanges/%2F/news").json
    assert (shown["type"], shown["durable"], shown["internal"]) == ("topic", True, False)
    assert call("PUT", "/api/exchanges/%2F/news", {"type": "fanout"}).status == 400
    assert call("DELETE", "/api/exchanges/%2F/news").status == 204
    assert call("DELETE", "/api/exchanges/%2F/news").status == 404
    assert call("PUT", "/api/exchanges/%2F/news", {"type": "absent"}).status == 400


def test_the_default_exchange_has_a_name_in_paths(call: Call) -> None:
    assert call("GET", "/api/exchanges/%2F/amq.default").json["name"] == ""
    assert call("DELETE", "/api/exchanges/%2F/amq.default").status == 401
    call("PUT", "/api/queues/%2F/work", {})
    [binding] = call("GET", "/api/bindings/%2F/e/amq.default/q/work").json
    assert (binding["source"], binding["routing_key"]) == ("", "work")
    assert call("POST", "/api/bindings/%2F/e/amq.default/q/work", {}).status == 401


# --- Bindings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routing_key", "arguments"),
    [("", {}), ("a.b", {}), ("a/b c~d%", {}), ("", {"x": 1}), ("k", {"x": {"y": [1]}})],
)
def test_a_queue_is_bound_and_unbound(call: Call, routing_key: str, arguments: dict[str, Any]) -> None:
    call("PUT", "/api/queues/%2F/work", {})
    path = "/api/bindings/%2F/e/amq.direct/q/work"
    answer = call("POST", path, {"routing_key": routing_key, "arguments": arguments})
    assert answer.status == 201
    [shown] = call("GET", path).json
    assert (shown["routing_key"], shown["arguments"]) == (routing_key, arguments)
    assert shown in call("GET", "/api/queues/%2F/work/bindings").json
    assert shown in call("GET", "/api/exchanges/%2F/amq.direct/bindings/source").json
    # The location is relative to the path, as a browser reads it.
    place = path.rpartition("/")[0] + "/" + answer.headers["location"]
    assert call("GET", place).json == shown
    assert call("DELETE", place).status == 204
    assert call("GET", path).json == []
    assert call("DELETE", place).status == 404


def test_exchanges_are_bound_to_exchanges(call: Call) -> None:
    call("PUT", "/api/exchanges/%2F/to", {"type": "fanout"})
    path = "/api/bindings/%2F/e/amq.topic/e/to"
    assert call("POST", path, {"routing_key": "a.#"}).status == 201
    [shown] = call("GET", "/api/exchanges/%2F/to/bindings/destination").json
    assert (shown["destination_type"], shown["properties_key"]) == ("exchange", "a.%23")
    # Some clients quote the key for the path, some send it as it is.
    assert call("GET", f"{path}/a.%2523").json == shown
    assert call("DELETE", f"{path}/a.%23").status == 204


def test_bindings_of_what_does_not_exist_are_not_found(call: Call) -> None:
    call("PUT", "/api/queues/%2F/work", {})
    for path in ("absent/q/work", "amq.direct/q/absent", "amq.direct/e/absent", "amq.direct/x/work"):
        assert call("GET", f"/api/bindings/%2F/e/{path}").status == 404
        assert call("POST", f"/api/bindings/%2F/e/{path}", {}).status == 404
        assert call("DELETE", f"/api/bindings/%2F/e/{path}/~").status == 404


# --- Who may ----------------------------------------------------------------------------------------------------------


def test_what_is_changed_needs_the_users_permissions(call: Call, user: User) -> None:
    login = user("limited", "management", ("^own", "^own", "^own"))
    assert call("PUT", "/api/queues/%2F/own-q", {}, login).status == 201
    assert call("PUT", "/api/exchanges/%2F/own-x", {"type": "topic"}, login).status == 201
    assert call("POST", "/api/bindings/%2F/e/own-x/q/own-q", {"routing_key": "k"}, login).status == 201
    assert call("DELETE", "/api/queues/%2F/own-q/contents", None, login).status == 204
    call("PUT", "/api/queues/%2F/foreign", {})
    dead_lettered = {"arguments": {"x-dead-letter-exchange": "foreign"}}
    for method, path, body in (
        ("PUT", "/api/queues/%2F/foreign", {}),
        ("PUT", "/api/queues/%2F/own-other", dead_lettered),
        ("DELETE", "/api/queues/%2F/foreign", None),
        ("DELETE", "/api/queues/%2F/foreign/contents", None),
        ("PUT", "/api/exchanges/%2F/foreign", {}),
        ("DELETE", "/api/exchanges/%2F/amq.topic", None),
        ("POST", "/api/bindings/%2F/e/own-x/q/foreign", {}),
        ("POST", "/api/bindings/%2F/e/amq.topic/q/own-q", {}),
    ):
        answer = call(method, path, body, login)
        assert (answer.status, answer.json["error"]) == (401, "not_authorised"), path
    topic = {"exchange": "own-x", "write": ".*", "read": "^k$"}
    assert call("PUT", "/api/topic-permissions/%2F/limited", topic).status == 201
    assert call("POST", "/api/bindings/%2F/e/own-x/q/own-q", {"routing_key": "other"}, login).status == 401
    assert call("DELETE", "/api/bindings/%2F/e/own-x/q/own-q/k", None, login).status == 204
    assert call("DELETE", "/api/exchanges/%2F/own-x", None, login).status == 204
    assert call("DELETE", "/api/queues/%2F/own-q", None, login).status == 204


@pytest.mark.parametrize("tags", ["management", "monitoring", "policymaker"])
def test_a_virtual_host_that_a_user_has_no_access_to_is_not_found(call: Call, user: User, tags: str) -> None:
    login = user("outsider", tags)
    assert call("PUT", "/api/queues/%2F/work", {}, login).status == 404
    assert call("PUT", "/api/queues/absent/work", {}, login).status == 404
    assert call("DELETE", "/api/exchanges/%2F/amq.topic", None, login).status == 404


def test_an_administrator_without_permissions_is_refused(call: Call, user: User) -> None:
    login = user("root", "administrator")
    assert call("PUT", "/api/queues/%2F/work", {}, login).status == 401
    login = user("root-2", "administrator", ANYTHING)
    assert call("PUT", "/api/queues/%2F/work", {}, login).status == 201


def test_who_has_no_tag_is_not_let_in(call: Call, user: User) -> None:
    assert call("PUT", "/api/queues/%2F/work", {}, user("plain", "", ANYTHING)).status == 401


# --- Hostile requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"text"',
        b"5",
        b"\xff",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"arguments": NaN}',
        {"durable": "perhaps"},
        {"durable": [True]},
        {"arguments": "none"},
        {"arguments": [1]},
        {"arguments": {"x": 1 << 63}},
        b'{"arguments": {"x": 1e999}}',
        b'{"arguments": {"x": "\\ud800"}}',
        b'{"arguments": {"\\udfff": 1}}',
        {"arguments": {"x-max-length": "many"}},
        {"arguments": {"x-max-length": -1}},
        {"arguments": {"x-queue-type": "absent"}},
    ],
    ids=lambda body: str(body)[:32],
)
def test_what_is_not_a_valid_body_is_refused(call: Call, body: object) -> None:
    answer = call("PUT", "/api/queues/%2F/work", body)
    assert (answer.status, answer.json["error"]) == (400, "bad_request")
    assert call("GET", "/api/queues/%2F/work").status == 404


def test_arguments_nested_without_end_are_refused(call: Call) -> None:
    nested: object = 1
    for _ in range(40):
        nested = {"a": nested}
    assert call("PUT", "/api/queues/%2F/work", {"arguments": nested}).status == 400


def test_names_that_are_too_long_are_refused(call: Call) -> None:
    assert call("PUT", f"/api/queues/%2F/{'q' * 255}", {}).status == 201
    call("DELETE", f"/api/queues/%2F/{'q' * 255}")
    assert call("PUT", f"/api/queues/%2F/{'q' * 256}", {}).status == 400
    assert call("PUT", f"/api/queues/%2F/{'%C3%A9' * 128}", {}).status == 400
    call("PUT", "/api/queues/%2F/work", {})
    path = "/api/bindings/%2F/e/amq.direct/q/work"
    assert call("POST", path, {"routing_key": "k" * 256}).status == 400
    assert call("POST", path, {"routing_key": "é" * 128}).status == 400


def test_a_name_that_is_not_unicode_can_be_deleted(
    call: Call, channel: BlockingChannel, pond: BackgroundBroker
) -> None:
    call("PUT", "/api/queues/%2F/%FF%2F", {"durable": True})
    assert [one["name"] for one in call("GET", "/api/queues/%2F").json] == ["\udcff/"]
    assert call("POST", "/api/bindings/%2F/e/amq.topic/q/%FF%2F", {}).status == 201
    assert call("DELETE", "/api/queues/%2F/%FF%2F").status == 204


def test_what_was_declared_survives_a_restart(call: Call, pond: BackgroundBroker) -> None:
    call("PUT", "/api/queues/%2F/kept", {"durable": True})
    call("PUT", "/api/exchanges/%2F/kept", {"durable": True, "type": "topic"})
    call("POST", "/api/bindings/%2F/e/kept/q/kept", {"routing_key": "k", "arguments": {"x": [1, "two"]}})
    pond.restart()
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        channel = connection.channel()
        channel.basic_publish("kept", "k", b"m")
        assert channel.basic_get("kept", auto_ack=True)[2] == b"m"
