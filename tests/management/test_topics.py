"""Topics by the management API and the command line: made, shown, changed, deleted, counted, and who may do it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from pika.adapters.blocking_connection import BlockingChannel

from millpond import cli
from millpond.base.limits import PARTITIONS_PER_TOPIC_MAX
from millpond.pytest_plugin import BackgroundBroker
from tests.support import management
from tests.support.management import Call
from tests.support.waiting import DEADLINE_S, eventually

User = Callable[..., str]
TOPICS = "/api/topics/%2F"


@pytest.fixture(scope="module")
def pond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundBroker]:
    """A broker for Kafka's clients, with data and the management API."""
    broker = BackgroundBroker(data_dir=tmp_path_factory.mktemp("pond"), kafka="127.0.0.1:0", admin="127.0.0.1:0")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def _clean_up(pond: BackgroundBroker) -> Iterator[None]:
    yield
    call = partial(management.request, pond.address("admin"))
    for topic in call("GET", TOPICS).json:
        assert call("DELETE", f"{TOPICS}/{topic['name']}").status == 204


@pytest.fixture
def produce(pond: BackgroundBroker) -> Iterator[Callable[..., None]]:
    producer = Producer({"bootstrap.servers": pond.kafka_address, "client.id": "test", "acks": "all", "log_level": 0})

    def send(topic: str, *values: bytes) -> None:
        failures: list[object] = []
        for value in values:
            producer.produce(topic, value, partition=0, on_delivery=lambda error, _: failures.append(error))
        assert producer.flush(DEADLINE_S) == 0
        assert failures == [None] * len(values)

    yield send
    producer.purge()


def metric(call: Call, name: str, path: str = "/metrics") -> float:
    """One line of the metrics, without its labels where it has none."""
    for line in call("GET", path).content.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name}")


# --- Made and shown ---------------------------------------------------------------------------------------------------


def test_a_topic_is_made_shown_and_deleted(call: Call) -> None:
    body = {"partitions": 2, "configs": {"retention.ms": 5000, "preallocate": True, "cleanup.policy": "compact"}}
    assert call("PUT", f"{TOPICS}/orders", body).status == 201
    assert call("PUT", f"{TOPICS}/orders", body).status == 204
    shown = call("GET", f"{TOPICS}/orders").json
    assert (shown["name"], shown["vhost"], shown["partitions"]) == ("orders", "/", 2)
    assert uuid.UUID(shown["id"])
    assert shown["configs"] == {"retention.ms": "5000", "preallocate": "true", "cleanup.policy": "compact"}
    assert shown["effective_configs"]["retention.ms"] == {"value": "5000", "source": "topic", "acts": True}
    assert shown["effective_configs"]["flush.ms"]["source"] == "default"
    [first, second] = shown["partition_details"]
    assert (first["partition"], first["start_offset"], first["end_offset"], first["bytes"]) == (0, 0, 0, 0)
    assert second["partition"] == 1
    assert call("DELETE", f"{TOPICS}/orders").status == 204
    assert call("GET", f"{TOPICS}/orders").status == 404
    assert call("DELETE", f"{TOPICS}/orders").status == 404


def test_a_body_is_not_needed(call: Call) -> None:
    assert call("PUT", f"{TOPICS}/plain").status == 201
    assert call("GET", f"{TOPICS}/plain").json["partitions"] == 1


def test_topics_are_listed_everywhere_and_in_one_virtual_host(call: Call) -> None:
    for name in ("one", "two"):
        call("PUT", f"{TOPICS}/{name}")
    assert call("PUT", "/api/vhosts/other").status == 201
    assert call("PUT", "/api/topics/other/three").status == 201
    assert [topic["name"] for topic in call("GET", "/api/topics").json] == ["one", "two", "three"]
    assert [topic["name"] for topic in call("GET", TOPICS).json] == ["one", "two"]
    assert [topic["name"] for topic in call("GET", "/api/topics?page=1&name=tw").json["items"]] == ["two"]
    assert call("GET", "/api/overview").json["object_totals"]["topics"] == 3
    assert call("DELETE", "/api/vhosts/other").status == 204
    assert [topic["name"] for topic in call("GET", "/api/topics").json] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("not%20valid", {}),
        ("orders", {"partitions": 0}),
        ("orders", {"partitions": PARTITIONS_PER_TOPIC_MAX + 1}),
        ("orders", {"partitions": "many"}),
        ("orders", {"configs": {"nope": "1"}}),
        ("orders", {"configs": {"retention.ms": "soon"}}),
        ("orders", {"configs": ["retention.ms"]}),
        ("taken", {}),
        ("same", {"partitions": 2}),
        ("same", {"configs": {"retention.ms": "1"}}),
    ],
)
def test_a_topic_that_cannot_be_is_refused(call: Call, name: str, body: dict[str, Any]) -> None:
    call("PUT", "/api/queues/%2F/taken")
    call("PUT", f"{TOPICS}/same")
    answer = call("PUT", f"{TOPICS}/{name}", body)
    assert answer.status == 400, answer
    assert answer.json["reason"]
    assert [topic["name"] for topic in call("GET", TOPICS).json] == ["same"]
    call("DELETE", "/api/queues/%2F/taken")


# --- Changed ----------------------------------------------------------------------------------------------------------


def test_a_configuration_is_changed_entry_by_entry(call: Call) -> None:
    call("PUT", f"{TOPICS}/orders", {"configs": {"retention.ms": 1, "segment.ms": 2}})
    changed = {"configs": {"retention.ms": None, "max.message.bytes": 1000}}
    assert call("PATCH", f"{TOPICS}/orders", changed).status == 204
    assert call("GET", f"{TOPICS}/orders").json["configs"] == {"segment.ms": "2", "max.message.bytes": "1000"}
    for configs in ({"retention.ms": "soon"}, {"nope": None}, {"nope": "1"}):
        assert call("PATCH", f"{TOPICS}/orders", {"configs": configs}).status == 400
    assert call("PATCH", f"{TOPICS}/nope", changed).status == 404


def test_a_topic_gets_more_partitions(call: Call) -> None:
    call("PUT", f"{TOPICS}/orders")
    assert call("POST", f"{TOPICS}/orders/partitions", {"count": 3}).status == 204
    assert call("GET", f"{TOPICS}/orders").json["partitions"] == 3
    for body in ({"count": 3}, {"count": 1}, {}):
        assert call("POST", f"{TOPICS}/orders/partitions", body).status == 400
    assert call("POST", f"{TOPICS}/nope/partitions", {"count": 3}).status == 404


def test_a_change_needs_the_permission_to_configure_the_topic(call: Call, user: User) -> None:
    call("PUT", f"{TOPICS}/orders")
    reader = user("reader", "management", ("^mine", ".*", ".*"))
    for method, path, body in (
        ("PUT", "/orders", {}),
        ("PUT", "/new", {}),
        ("PATCH", "/orders", {"configs": {}}),
        ("POST", "/orders/partitions", {"count": 2}),
        ("DELETE", "/orders", None),
        ("DELETE", "/nope", None),
    ):
        assert call(method, TOPICS + path, body, login=reader).status == 401
    assert call("PUT", f"{TOPICS}/mine", login=reader).status == 201
    assert [topic["name"] for topic in call("GET", TOPICS, login=reader).json] == ["orders", "mine"]
    stranger = user("stranger", "management")
    assert call("GET", TOPICS, login=stranger).status == 404
    assert call("GET", "/api/topics", login=stranger).json == []


def test_topics_survive_a_restart_with_their_configuration(
    pond: BackgroundBroker, produce: Callable[..., None]
) -> None:
    def shown() -> dict[str, Any]:
        found: dict[str, Any] = management.request(pond.address("admin"), "GET", f"{TOPICS}/orders").json
        return found

    body = {"partitions": 2, "configs": {"retention.ms": "77000000"}}
    management.request(pond.address("admin"), "PUT", f"{TOPICS}/orders", body)
    produce("orders", b"a" * 1000, b"b" * 1000)
    before = shown()
    pond.restart()
    after = shown()
    assert {key: after[key] for key in ("id", "partitions", "configs", "messages")} == {
        key: before[key] for key in ("id", "partitions", "configs", "messages")
    }
    assert after["messages"] == 2
    assert after["partition_details"][0]["bytes"] >= 2000


# --- Topics as exchanges ----------------------------------------------------------------------------------------------


def test_a_topic_shows_what_is_bound_to_it_and_how_far_that_is_behind(
    call: Call, channel: BlockingChannel, produce: Callable[..., None]
) -> None:
    call("PUT", f"{TOPICS}/orders")
    found = call("GET", f"{TOPICS}/orders").json
    assert (found["bindings"], found["cursors"]) == ([], [])
    channel.queue_declare("work", durable=True)
    # Full with one message: what comes then waits in the topic.
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare("full", durable=True, arguments=full)
    channel.queue_bind("work", "orders", "")
    channel.queue_bind("full", "orders", "", {"x-stream-offset": "first"})
    produce("orders", b"one", b"two", b"three")

    def cursors() -> list[dict[str, Any]]:
        return sorted(call("GET", f"{TOPICS}/orders").json["cursors"], key=lambda cursor: bool(cursor["name"]))

    eventually(lambda: [cursor["routed"] for cursor in cursors()] == [3, 1], "all that can be is routed")
    shared, own = cursors()
    assert (shared["name"], shared["partition"], shared["next_offset"], shared["lag"]) == ("", 0, 3, 0)
    assert (own["partition"], own["next_offset"], own["lag"]) == (0, 1, 2)
    assert own["state"] != shared["state"]
    assert (shared["unroutable"], shared["missed"]) == (0, 0)
    bindings = call("GET", f"{TOPICS}/orders").json["bindings"]
    assert sorted(binding["destination"] for binding in bindings) == ["full", "work"]
    listed = [binding for binding in call("GET", "/api/bindings/%2F").json if binding["source"] == "orders"]
    assert sorted(binding["destination"] for binding in listed) == ["full", "work"]
    channel.queue_purge("full")
    eventually(lambda: cursors()[1]["lag"] == 1, "there was room for another one")
    channel.queue_delete("full")
    channel.queue_delete("work")
    found = call("GET", f"{TOPICS}/orders").json
    assert (found["bindings"], found["cursors"]) == ([], [])


# --- Definitions ------------------------------------------------------------------------------------------------------


def test_topics_are_exported_and_imported(call: Call) -> None:
    call("PUT", f"{TOPICS}/orders", {"partitions": 3, "configs": {"retention.ms": 5}})
    document = call("GET", "/api/definitions").json
    expected = {"name": "orders", "vhost": "/", "partitions": 3, "configs": {"retention.ms": "5"}}
    assert document["topics"] == [expected]
    of_vhost = call("GET", "/api/definitions/%2F").json
    assert of_vhost["topics"] == [{key: value for key, value in expected.items() if key != "vhost"}]
    call("DELETE", f"{TOPICS}/orders")
    assert call("POST", "/api/definitions", document).status == 204
    shown = call("GET", f"{TOPICS}/orders").json
    assert (shown["partitions"], shown["configs"]) == (3, {"retention.ms": "5"})
    # One that exists is never changed.
    document["topics"][0]["partitions"] = 9
    assert call("POST", "/api/definitions", document).status == 204
    assert call("GET", f"{TOPICS}/orders").json["partitions"] == 3
    # Into a virtual host of its own, that comes with the document.
    document["vhosts"].append({"name": "copy"})
    document["topics"][0]["vhost"] = "copy"
    assert call("POST", "/api/definitions", document).status == 204
    assert call("GET", "/api/topics/copy/orders").json["partitions"] == 9
    call("DELETE", "/api/vhosts/copy")


@pytest.mark.parametrize(
    "topic",
    [
        {"name": "not valid"},
        {"name": "orders", "partitions": 0},
        {"name": "orders", "partitions": True},
        {"name": "orders", "partitions": "3"},
        {"name": "orders", "partitions": PARTITIONS_PER_TOPIC_MAX + 1},
        {"name": "orders", "configs": {"nope": "1"}},
        {"name": "orders", "configs": {"retention.ms": [1]}},
        {"name": "orders", "configs": []},
        {"name": "work"},
        {"partitions": 1},
    ],
)
def test_definitions_with_a_topic_that_cannot_be_change_nothing(call: Call, topic: dict[str, Any]) -> None:
    document = {"queues": [{"name": "work"}], "topics": [{"name": "good"}, topic]}
    if topic == {"name": "orders", "configs": []}:
        # As Erlang writes an empty table.
        assert call("POST", "/api/definitions/%2F", document).status == 204
        call("DELETE", "/api/queues/%2F/work")
        return
    assert call("POST", "/api/definitions/%2F", document).status == 400
    assert call("GET", TOPICS).json == []
    assert call("GET", "/api/queues/%2F").json == []


# --- Streams of AMQP's ------------------------------------------------------------------------------------------------

STREAM = {"x-queue-type": "stream"}


def declare(call: Call, name: str, **arguments: object) -> int:
    return call("PUT", f"/api/queues/%2F/{name}", {"durable": True, "arguments": {**STREAM, **arguments}}).status


def named(call: Call, path: str) -> list[str]:
    return sorted(one["name"] for one in call("GET", path).json)


def test_a_topic_is_among_the_queues_and_a_stream_among_the_topics(call: Call) -> None:
    assert declare(call, "events", **{"x-max-age": "1h"}) == 201
    assert declare(call, "events", **{"x-max-age": "1h"}) == 204
    call("PUT", f"{TOPICS}/orders", {"partitions": 2})
    call("PUT", f"{TOPICS}/plain")
    assert named(call, TOPICS) == ["events", "orders", "plain"]
    assert named(call, "/api/queues/%2F") == ["events", "orders-0", "orders-1", "plain"]
    assert {one["type"] for one in call("GET", "/api/queues").json} == {"stream"}
    assert call("GET", f"{TOPICS}/events").json["configs"]["retention.ms"] == "3600000"
    assert call("GET", "/api/queues/%2F/events").json["arguments"] == {**STREAM, "x-max-age": "1h"}
    assert call("GET", "/api/queues/%2F/plain").json["arguments"] == STREAM
    assert call("GET", "/api/queues/%2F/orders-1").json["committed_offset"] == -1
    assert call("GET", "/api/queues/%2F/orders").json["partitions"] == 2
    assert call("GET", "/api/queues/%2F/orders-2").status == 404
    assert metric(call, "rabbitmq_queues") == 4
    assert metric(call, "millpond_topics") == 3
    assert metric(call, "millpond_topic_partitions") == 4
    assert call("GET", "/api/overview").json["object_totals"]["queues"] == 4
    assert call("DELETE", "/api/queues/%2F/orders-1").status == 400
    assert call("DELETE", "/api/queues/%2F/orders").status == 204
    assert call("DELETE", f"{TOPICS}/events").status == 204
    assert named(call, TOPICS) == named(call, "/api/queues/%2F") == ["plain"]


def test_messages_are_counted_once(call: Call, produce: Callable[..., None]) -> None:
    declare(call, "events")
    produce("events", b"1", b"2")
    assert call("POST", "/api/exchanges/%2F/amq.default/publish", publication("events")).json == {"routed": True}
    assert call("GET", "/api/queues/%2F/events").json["messages"] == 3
    assert call("GET", f"{TOPICS}/events").json["messages"] == 3
    assert metric(call, "rabbitmq_queue_messages") == 3
    assert metric(call, "millpond_topic_messages") == 3


def publication(key: str) -> dict[str, Any]:
    return {"properties": {}, "routing_key": key, "payload": "3", "payload_encoding": "string"}


def test_partitions_count_as_queues_against_the_limit_of_a_virtual_host(call: Call) -> None:
    call("PUT", "/api/vhost-limits/%2F/max-queues", {"value": 3})
    try:
        assert call("PUT", f"{TOPICS}/orders", {"partitions": 2}).status == 201
        assert call("PUT", f"{TOPICS}/plain", {"partitions": 2}).status == 400
        assert declare(call, "events") == 201
        assert declare(call, "more") == 400
        assert call("POST", f"{TOPICS}/orders/partitions", {"count": 3}).status == 400
        document = {"queues": [{"name": "more", "arguments": STREAM}]}
        assert call("POST", "/api/definitions/%2F", document).status == 400
    finally:
        call("DELETE", "/api/vhost-limits/%2F/max-queues")


def test_a_policy_acts_on_a_topic_whoever_made_it(call: Call) -> None:
    declare(call, "events", **{"x-max-age": "1h"})
    call("PUT", f"{TOPICS}/orders", {"partitions": 2, "configs": {"retention.ms": 5000}})
    policy = {"pattern": "^(events|orders)$", "definition": {"max-age": "2h"}, "apply-to": "streams"}
    assert call("PUT", "/api/policies/%2F/longer", policy).status == 201
    for name in ("events", "orders"):
        shown = call("GET", f"{TOPICS}/{name}").json["effective_configs"]["retention.ms"]
        assert (shown["value"], shown["source"]) == ("7200000", "policy")
    assert call("GET", "/api/queues/%2F/events").json["policy"] == "longer"
    assert call("GET", "/api/queues/%2F/orders-1").json["policy"] == "longer"
    assert call("DELETE", "/api/policies/%2F/longer").status == 204
    shown = call("GET", f"{TOPICS}/orders").json["effective_configs"]["retention.ms"]
    assert (shown["value"], shown["source"]) == ("5000", "topic")
    assert call("GET", "/api/queues/%2F/events").json["policy"] is None


def test_definitions_have_each_stream_once(call: Call) -> None:
    declare(call, "events", **{"x-max-age": "1h"})
    declare(call, "changed", **{"x-max-age": "1h"})
    assert call("PATCH", f"{TOPICS}/changed", {"configs": {"cleanup.policy": "compact"}}).status == 204
    call("PUT", f"{TOPICS}/orders", {"partitions": 2})
    for destination in ("events", "orders", "orders-1"):
        call("POST", f"/api/bindings/%2F/e/amq.fanout/q/{destination}", {})
    document = call("GET", "/api/definitions/%2F").json
    assert [one["name"] for one in document["queues"]] == ["events"]
    assert document["queues"][0]["arguments"] == {**STREAM, "x-max-age": "1h"}
    assert [one["name"] for one in document["topics"]] == ["changed", "orders"]
    assert [one["destination"] for one in document["bindings"]] == ["events", "orders", "orders-1"]
    for name in ("events", "changed", "orders"):
        assert call("DELETE", f"{TOPICS}/{name}").status == 204
    assert call("GET", "/api/definitions/%2F").json["bindings"] == []
    assert call("POST", "/api/definitions/%2F", document).status == 204
    assert call("POST", "/api/definitions/%2F", document).status == 204
    again = call("GET", "/api/definitions/%2F").json
    assert {key: again[key] for key in ("queues", "topics", "bindings")} == {
        key: document[key] for key in ("queues", "topics", "bindings")
    }
    assert declare(call, "changed", **{"x-max-age": "1h"}) == 204


def test_definitions_cannot_make_a_queue_of_a_topic(call: Call) -> None:
    call("PUT", f"{TOPICS}/orders")
    assert call("POST", "/api/definitions/%2F", {"queues": [{"name": "orders"}]}).status == 400
    assert call("POST", "/api/definitions/%2F", {"queues": [{"name": "orders", "arguments": STREAM}]}).status == 204


# --- Clients and counts -----------------------------------------------------------------------------------------------


def test_a_kafka_connection_is_shown_and_closed_by_an_operator(call: Call, produce: Callable[..., None]) -> None:
    call("PUT", f"{TOPICS}/orders")
    produce("orders", b"1")

    def named() -> list[dict[str, Any]]:
        return [
            shown
            for shown in call("GET", "/api/connections").json
            if shown["protocol"] == "Kafka" and shown["client_properties"]["connection_name"] == "test"
        ]

    found = eventually(named, "a connection")
    assert {(shown["user"], shown["vhost"], shown["state"]) for shown in found} == {("guest", "/", "running")}
    assert any("confluent-kafka" in shown["client_properties"]["product"] for shown in found)
    assert any(shown["recv_oct"] > 0 and shown["send_oct"] > 0 for shown in found)
    names = [shown["name"] for shown in found]
    for name in names:
        assert call("DELETE", f"/api/connections/{name.replace(' ', '%20').replace('>', '%3E')}").status == 204
    eventually(lambda: not [shown for shown in named() if shown["name"] in names], "they are gone")
    # The client comes back by itself.
    produce("orders", b"2")
    listeners = call("GET", "/api/overview").json["listeners"]
    assert "kafka" in {listener["protocol"] for listener in listeners}


def test_topics_and_requests_are_counted(pond: BackgroundBroker, call: Call, produce: Callable[..., None]) -> None:
    call("PUT", f"{TOPICS}/orders", {"partitions": 2})
    produce("orders", b"x" * 500, b"y" * 500)
    consumer = Consumer({"bootstrap.servers": pond.kafka_address, "group.id": "none", "log_level": 0})
    consumer.assign([TopicPartition("orders", 0, 0)])
    received = consumer.consume(2, DEADLINE_S)
    consumer.close()
    assert [message.value()[:1] for message in received] == [b"x", b"y"]
    shown = call("GET", f"{TOPICS}/orders").json
    assert shown["messages"] == 2
    assert shown["bytes"] >= 1000
    assert shown["message_stats"]["appended_bytes"] >= 1000
    assert shown["message_stats"]["read_bytes"] >= 500
    assert metric(call, "millpond_topics") == 1
    assert metric(call, "millpond_topic_partitions") == 2
    assert metric(call, "millpond_topic_messages_appended_total") == 2
    per_object = call("GET", "/metrics/per-object").content.decode()
    assert 'millpond_topic_messages{topic="orders",vhost="/"} 2.0' in per_object
    assert metric(call, 'millpond_requests_total{api="Produce",protocol="kafka"}') >= 2


# --- The command line -------------------------------------------------------------------------------------------------


def test_topics_by_the_command_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert cli.run(["topic", *arguments, "--data", str(data)]) == 0
        return capsys.readouterr().out

    run("create", "orders", "--partitions", "2", "--config", "retention.ms=5", "--config", "segment.ms=6")
    assert run("list") == '/\torders\t2\t0\t0\t{"retention.ms": "5", "segment.ms": "6"}\n'
    assert json.loads(run("list", "--vhost", "/", "--json"))[0]["configs"] == {"retention.ms": "5", "segment.ms": "6"}
    run("alter", "orders", "--partitions", "3", "--set", "retention.ms=7", "--unset", "segment.ms")
    assert run("describe", "orders").splitlines() == [f"{number}\t0\t0\t0\t0\t0" for number in range(3)]
    assert json.loads(run("describe", "orders", "--json"))["configs"] == {"retention.ms": "7"}
    run("delete", "orders")
    assert run("list") == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["describe", "nope"], 66),
        (["delete", "nope"], 66),
        (["create", "not valid"], 65),
        (["create", "orders", "--config", "retention.ms"], 64),
        (["create", "orders", "--config", "=5"], 64),
        (["alter", "orders"], 64),
        (["alter", "nope", "--set", "retention.ms=1"], 66),
    ],
)
def test_what_a_command_cannot_do_is_one_line_and_an_exit_code(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert cli.run(["topic", *arguments, "--data", str(data)]) == code
    assert capsys.readouterr().err.count("\n") == 1
