"""Policies, parameters and limits on a running broker: set through the management API, seen by clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, NackError, ProbableAccessDeniedError

from millpond.pytest_plugin import BackgroundBroker
from tests.support.management import Management
from tests.support.pika_client import drain, get, numbered, publish, ready_count, wait_ready
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def pond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundBroker]:
    """One broker with data for all tests here: the first request imports FastAPI."""
    broker = BackgroundBroker(data_dir=tmp_path_factory.mktemp("pond"), admin="127.0.0.1:0")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def management(pond: BackgroundBroker) -> Management:
    return Management(pond.address("admin"))


@pytest.fixture
def channel(pond: BackgroundBroker) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


numbers = itertools.count()


@pytest.fixture
def name(pond: BackgroundBroker) -> Iterator[str]:
    """A name that no other test has, for queues, exchanges and policies, all of which go after the test."""
    stem = f"name-{next(numbers)}"
    yield stem
    management = Management(pond.address("admin"))
    for path in ("policies", "operator-policies"):
        for policy in management.get(f"/api/{path}"):
            management.delete(f"/api/{path}/%2F/{policy['name']}")
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        for queue in management.get("/api/queues/%2F"):
            if not queue["exclusive"]:
                connection.channel().queue_delete(queue["name"])


def set_policy(management: Management, name: str, kind: str = "policies", **more: Any) -> Callable[..., None]:
    """Sets a policy for the names that begin with `name`; the keys of its definition are written with underscores."""

    def setting(**definition: Any) -> None:
        settings = {key.replace("_", "-"): value for key, value in definition.items()}
        management.put(f"/api/{kind}/%2F/{name}", {"pattern": f"^{name}", "definition": settings, **more})

    return setting


class TestARunningQueue:
    def test_a_length_limit_acts_at_once(self, management: Management, channel: BlockingChannel, name: str) -> None:
        channel.queue_declare(name)
        publish(channel, name, *numbered(5))
        set_policy(management, name)(max_length=2)
        wait_ready(channel, name, 2)
        publish(channel, name, b"5")
        assert drain(channel, name) == [b"4", b"5"]
        management.delete(f"/api/policies/%2F/{name}")
        publish(channel, name, *numbered(5))
        assert ready_count(channel, name) == 5

    def test_what_exceeds_it_goes_to_the_dead_letter_exchange_of_the_same_policy(
        self, management: Management, channel: BlockingChannel, name: str
    ) -> None:
        channel.queue_declare(name)
        channel.queue_declare("dead")
        publish(channel, name, *numbered(3))
        set_policy(management, name)(max_length=1, dead_letter_exchange="", dead_letter_routing_key="dead")
        wait_ready(channel, "dead", 2)
        death = get(channel, "dead").headers["x-death"][0]
        assert (death["queue"], death["reason"]) == (name, "maxlen")

    def test_an_overflow_changes_while_publishers_publish(
        self, management: Management, channel: BlockingChannel, name: str
    ) -> None:
        channel.queue_declare(name, arguments={"x-max-length": 1})
        publish(channel, name, b"first")
        set_policy(management, name)(overflow="reject-publish")
        with pytest.raises(NackError):
            publish(channel, name, b"refused")
        set_policy(management, name)(overflow="drop-head")
        publish(channel, name, b"second")
        assert drain(channel, name) == [b"second"]

    def test_a_time_to_live_is_for_messages_that_come_later(
        self, management: Management, channel: BlockingChannel, name: str
    ) -> None:
        channel.queue_declare(name)
        publish(channel, name, b"stays")
        set_policy(management, name)(message_ttl=1)
        assert drain(channel, name) == [b"stays"]
        publish(channel, name, b"goes")
        wait_ready(channel, name, 0)

    def test_the_queue_expires_and_no_longer(self, management: Management, channel: BlockingChannel, name: str) -> None:
        channel.queue_declare(f"{name}-kept")
        set_policy(management, name)(expires=100_000_000)
        set_policy(management, name)(max_length=5)
        channel.queue_declare(f"{name}-goes")
        management.put(f"/api/policies/%2F/{name}-2", {"pattern": "goes$", "definition": {"expires": 1}, "priority": 1})
        eventually(
            lambda: [queue["name"] for queue in management.get("/api/queues/%2F")] == [f"{name}-kept"], "one is gone"
        )

    def test_an_argument_is_not_loosened(self, management: Management, channel: BlockingChannel, name: str) -> None:
        channel.queue_declare(name, arguments={"x-max-length": 2})
        set_policy(management, name)(max_length=10)
        publish(channel, name, *numbered(5))
        wait_ready(channel, name, 2)

    def test_a_quorum_queue_gets_a_delivery_limit(
        self, management: Management, channel: BlockingChannel, name: str
    ) -> None:
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_declare("dead")
        set_policy(management, name)(delivery_limit=1, dead_letter_exchange="", dead_letter_routing_key="dead")
        publish(channel, name, b"poison")
        for _ in range(2):
            channel.basic_nack(get(channel, name, auto_ack=False).tag)
        wait_ready(channel, "dead", 1)

    def test_a_declaration_is_compared_with_arguments_only(
        self, management: Management, channel: BlockingChannel, name: str
    ) -> None:
        set_policy(management, name)(max_length=2)
        channel.queue_declare(name)
        channel.queue_declare(name)
        with pytest.raises(ChannelClosedByBroker, match="inequivalent arg 'x-max-length'"):
            channel.queue_declare(name, arguments={"x-max-length": 2})


class TestAnExchange:
    def test_an_alternate_exchange_comes_and_goes(
        self, management: Management, channel: BlockingChannel, name: str
    ) -> None:
        channel.exchange_declare(name, "direct")
        channel.queue_declare("unrouted")
        channel.queue_bind("unrouted", "amq.fanout")
        channel.basic_publish(name, "nowhere", b"lost")
        set_policy(management, name, **{"apply-to": "exchanges"})(alternate_exchange="amq.fanout")
        channel.basic_publish(name, "nowhere", b"found")
        [shown] = [one for one in management.get("/api/exchanges/%2F") if one["name"] == name]
        assert shown["policy"] == name
        management.delete(f"/api/policies/%2F/{name}")
        channel.basic_publish(name, "nowhere", b"lost")
        assert drain(channel, "unrouted") == [b"found"]
        channel.exchange_delete(name)

    def test_its_own_argument_wins(self, management: Management, channel: BlockingChannel, name: str) -> None:
        set_policy(management, name)(alternate_exchange="amq.direct")
        channel.exchange_declare(name, "direct", arguments={"alternate-exchange": "amq.fanout"})
        channel.queue_declare("unrouted")
        channel.queue_bind("unrouted", "amq.fanout")
        channel.basic_publish(name, "nowhere", b"found")
        assert drain(channel, "unrouted") == [b"found"]
        channel.exchange_delete(name)


def test_an_operator_policy_cannot_be_lifted(management: Management, channel: BlockingChannel, name: str) -> None:
    channel.queue_declare(name, arguments={"x-max-length": 50})
    set_policy(management, name, "operator-policies")(max_length=1)
    set_policy(management, name)(max_length=20, message_ttl=60_000)
    publish(channel, name, *numbered(5))
    wait_ready(channel, name, 1)
    shown = management.get(f"/api/queues/%2F/{name}")
    assert (shown["policy"], shown["operator_policy"]) == (name, name)
    assert shown["effective_policy_definition"] == {"max-length": 1, "message-ttl": 60_000}
    assert shown["arguments"] == {"x-max-length": 50}


def test_policies_survive_a_restart(pond: BackgroundBroker, management: Management, name: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare(name, durable=True)
        channel.exchange_declare(name, "direct", durable=True)
    set_policy(management, name)(max_length=2, alternate_exchange="amq.fanout")
    set_policy(management, name, "operator-policies", priority=3)(message_ttl=60_000)
    management.put("/api/global-parameters/note", {"value": {"a": [1, "b"]}})
    management.put("/api/vhost-limits/%2F/max-queues", {"value": 3})
    pond.restart()
    management = Management(pond.address("admin"))
    assert management.get("/api/policies")[0]["definition"] == {"max-length": 2, "alternate-exchange": "amq.fanout"}
    assert management.get(f"/api/operator-policies/%2F/{name}")["priority"] == 3
    assert management.get("/api/global-parameters") == [{"name": "note", "value": {"a": [1, "b"]}}]
    shown = management.get(f"/api/queues/%2F/{name}")
    assert shown["effective_policy_definition"]["message-ttl"] == 60_000
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_bind(name, "amq.fanout")
        channel.confirm_delivery()
        for body in numbered(5):
            channel.basic_publish(name, "nowhere", body)
        assert drain(channel, name) == [b"3", b"4"]
        for number in range(2):
            channel.queue_declare(f"{name}-{number}")
        text = rf"cannot declare queue '{name}-2': queue limit in vhost '/' \(3\) is reached"
        with pytest.raises(ChannelClosedByBroker, match=text):
            channel.queue_declare(f"{name}-2")
    management.delete("/api/vhost-limits/%2F/max-queues")
    management.delete("/api/global-parameters/note")


class TestPaths:
    def test_a_policy_is_put_got_listed_and_deleted(self, management: Management, name: str) -> None:
        body = {"pattern": "^x", "definition": {"max-length": 1}, "priority": 2, "apply-to": "queues"}
        path = f"/api/policies/%2F/{name}"
        assert management.call("PUT", path, body).status == 201
        assert management.call("PUT", path, body).status == 204
        shown = {"vhost": "/", "name": name, **body}
        assert management.get(path) == shown
        assert management.get("/api/policies/%2F") == [shown]
        assert management.get("/api/policies") == [shown]
        assert management.call("DELETE", path).status == 204
        assert [management.call(method, path).status for method in ("DELETE", "GET")] == [404, 404]
        assert management.call("GET", "/api/policies/absent").status == 404

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({"pattern": "x"}, "[{key_missing,definition}]"),
            ({"definition": {"max-length": 1}}, "[{key_missing,pattern}]"),
            ({"pattern": "x", "definition": {}}, "Validation failed\n\nno policy provided\n"),
        ],
    )
    def test_what_is_no_policy_is_refused(self, management: Management, body: object, reason: str) -> None:
        answer = management.call("PUT", "/api/policies/%2F/wrong", body)
        assert (answer.status, answer.json) == (400, {"error": "bad_request", "reason": reason})

    @pytest.mark.parametrize(
        "body",
        [
            {"pattern": "\ud800", "definition": {"max-length": 1}},
            {"pattern": "x", "definition": {"dead-letter-exchange": "\ud800"}},
            {"pattern": "x", "definition": {"dead-letter-routing-key": "\ud800"}},
            {"pattern": "x", "definition": {"max-length": 1 << 64}},
            {"pattern": "x", "definition": {"max-length": 1}, "priority": 1 << 64},
            {"pattern": 5, "definition": 5},
            {"pattern": None, "definition": None, "priority": [], "apply-to": {}},
        ],
    )
    def test_what_cannot_be_kept_is_refused(self, management: Management, body: object) -> None:
        assert management.call("PUT", "/api/policies/%2F/wrong", body).status == 400
        assert management.get("/api/policies") == []

    def test_a_policymaker_sets_policies_but_no_limits(self, management: Management, name: str) -> None:
        management.put("/api/users/maker", {"password": "secret", "tags": "policymaker"})
        body = {"pattern": "^x", "definition": {"max-length": 1}}
        path = f"/api/policies/%2F/{name}"
        assert management.call("PUT", path, body, login="maker:secret").status == 404
        management.put("/api/permissions/%2F/maker", {"configure": "", "write": "", "read": ""})
        assert management.call("PUT", path, body, login="maker:secret").status == 201
        for method, limit, content in (
            ("PUT", f"/api/operator-policies/%2F/{name}", body),
            ("PUT", f"/api/parameters/operator_policy/%2F/{name}", {"value": body}),
            ("PUT", "/api/parameters/vhost-limits/%2F/limits", {"value": {"max-queues": 1}}),
            ("PUT", "/api/vhost-limits/%2F/max-queues", {"value": 1}),
            ("GET", "/api/definitions", None),
            ("POST", "/api/definitions", {}),
        ):
            assert management.call(method, limit, content, login="maker:secret").status == 401, limit
        management.put("/api/users/reader", {"password": "secret", "tags": "management"})
        management.put("/api/permissions/%2F/reader", {"configure": "", "write": "", "read": ""})
        assert len(management.get("/api/policies", login="reader:secret")) == 1
        assert management.call("DELETE", path, login="reader:secret").status == 401
        for user in ("maker", "reader"):
            management.delete(f"/api/users/{user}")

    def test_operator_policies_are_parameters_too(self, management: Management, name: str) -> None:
        path = f"/api/parameters/operator_policy/%2F/{name}"
        value = {"pattern": "^x", "definition": {"max-length": 1}, "priority": 0, "apply-to": "queues"}
        management.put(path, {"value": value})
        assert management.get(f"/api/operator-policies/%2F/{name}")["definition"] == {"max-length": 1}
        shown = {"value": value, "vhost": "/", "component": "operator_policy", "name": name}
        assert management.get("/api/parameters") == [shown]
        assert management.get("/api/parameters/operator_policy/%2F") == [shown]
        assert management.get(path) == shown
        management.delete(path)
        assert management.get("/api/operator-policies") == []

    @pytest.mark.parametrize(
        ("path", "value", "reason"),
        [
            ("nothing/%2F/x", {}, "Validation failed\n\ncomponent nothing not found\n"),
            ("policy/%2F/x", {}, "policies may not be set using this method"),
            (
                "vhost-limits/%2F/limits",
                {"max-bogus": 1},
                'Validation failed\n\nUnrecognised terms [{<<"max-bogus">>,1}] in limits\n',
            ),
            (
                "vhost-limits/%2F/limits",
                {"max-queues": "x"},
                'Validation failed\n\nmax-queues should be a number, actually was <<"x">>\n',
            ),
            ("operator_policy/%2F/x", 5, "Validation failed\n\nx not a list 5\n"),
            ("shovel/%2F/x", [[[[]]]] * 3 + [1 << 64], "a number has at most 64 bits"),
        ],
    )
    def test_what_is_no_parameter_is_refused(
        self, management: Management, path: str, value: object, reason: str
    ) -> None:
        answer = management.call("PUT", f"/api/parameters/{path}", {"value": value})
        assert (answer.status, answer.json["reason"]) == (400, reason)
        assert management.call("PUT", f"/api/parameters/{path}", {}).json["reason"] == "[{key_missing,value}]"

    def test_parameters_for_links_are_kept(self, management: Management) -> None:
        path = "/api/parameters/shovel/%2F/moves"
        management.put(path, {"value": {"src-uri": "amqp://"}})
        assert management.get(path)["value"] == {"src-uri": "amqp://"}
        management.delete(path)
        assert management.call("DELETE", path).status == 404


class TestLimits:
    def test_direct_reply_to_is_no_queue(self, management: Management, channel: BlockingChannel, name: str) -> None:
        management.put("/api/vhost-limits/%2F/max-queues", {"value": 1})
        channel.basic_consume("amq.rabbitmq.reply-to", lambda *_: None, auto_ack=True)
        channel.queue_declare(name)
        with pytest.raises(ChannelClosedByBroker, match=r"queue limit in vhost '/' \(1\) is reached"):
            channel.queue_declare(f"{name}-2")
        management.delete("/api/vhost-limits/%2F/max-queues")

    def test_a_virtual_host_has_so_many_connections(self, pond: BackgroundBroker, management: Management) -> None:
        management.put("/api/vhosts/limited", None)
        management.put("/api/vhost-limits/limited/max-connections", {"value": 1})
        management.put("/api/vhost-limits/limited/max-queues", {"value": 0})
        assert management.get("/api/vhost-limits") == [
            {"vhost": "limited", "value": {"max-connections": 1, "max-queues": 0}}
        ]
        url = pika.URLParameters(pond.amqp_url.replace("%2F", "limited"))
        with pika.BlockingConnection(url) as connection:
            text = r"access to vhost 'limited' refused for user 'guest': connection limit \(1\) is reached"
            with pytest.raises(ProbableAccessDeniedError, match=text):
                pika.BlockingConnection(url)
            with pytest.raises(ChannelClosedByBroker, match="queue limit in vhost 'limited'"):
                connection.channel().queue_declare("q")
            management.put("/api/vhost-limits/limited/max-connections", {"value": -1})
            pika.BlockingConnection(url).close()
        management.delete("/api/vhosts/limited")
        assert management.get("/api/vhost-limits") == []

    def test_a_user_has_so_many_connections_and_channels(self, pond: BackgroundBroker, management: Management) -> None:
        management.put("/api/users/ann", {"password": "secret", "tags": ""})
        management.put("/api/permissions/%2F/ann", {"configure": "", "write": "", "read": ""})
        management.put("/api/user-limits/ann/max-connections", {"value": 1})
        management.put("/api/user-limits/ann/max-channels", {"value": 2})
        limits = {"max-connections": 1, "max-channels": 2}
        assert management.get("/api/user-limits/ann") == [{"user": "ann", "value": limits}]
        assert management.get("/api/users/ann")["limits"] == limits
        url = pika.URLParameters(pond.amqp_url.replace("guest:guest", "ann:secret"))
        with pika.BlockingConnection(url) as connection:
            with pytest.raises(ProbableAccessDeniedError, match=r"user connection limit \(1\) is reached"):
                pika.BlockingConnection(url)
            connection.channel()
            connection.channel()
            text = "number of channels opened for user 'ann' has reached the maximum allowed user limit of 2"
            with pytest.raises(ConnectionClosedByBroker, match=text):
                connection.channel()
        management.delete("/api/user-limits/ann/max-channels")
        assert management.get("/api/user-limits") == [{"user": "ann", "value": {"max-connections": 1}}]
        management.delete("/api/users/ann")
        management.put("/api/users/ann", {"password": "secret", "tags": ""})
        assert management.get("/api/user-limits/ann") == []
        management.delete("/api/users/ann")
