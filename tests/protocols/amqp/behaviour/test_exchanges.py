"""Exchanges: how each type routes, and what may be declared, bound and deleted."""

from __future__ import annotations

from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    drain,
    get,
    publish,
    wait_ready,
)


def bound_queue(channel: BlockingChannel, exchange: str, key: str = "", arguments: Any = None) -> str:
    queue = str(channel.queue_declare("", exclusive=True).method.queue)
    channel.queue_bind(queue, exchange, key, arguments)
    return queue


def received(channel: BlockingChannel, queue: str, expected: list[bytes]) -> None:
    """Exactly `expected` is in `queue`, in this order. The publishes were on the same channel, so all has arrived."""
    wait_ready(channel, queue, len(expected))
    assert drain(channel, queue) == expected


class TestDirect:
    def test_routes_by_equal_key_to_every_queue_bound_with_it(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("direct")
        channel.exchange_declare(exchange, "direct")
        red, red_too = bound_queue(channel, exchange, "red"), bound_queue(channel, exchange, "red")
        blue = bound_queue(channel, exchange, "blue")
        channel.basic_publish(exchange, "red", b"r")
        channel.basic_publish(exchange, "blue", b"b")
        channel.basic_publish(exchange, "green", b"g")
        received(channel, red, [b"r"])
        received(channel, red_too, [b"r"])
        received(channel, blue, [b"b"])

    def test_several_bindings_that_match_deliver_once(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("direct")
        channel.exchange_declare(exchange, "direct")
        queue = bound_queue(channel, exchange, "red")
        channel.queue_bind(queue, exchange, "red", {"other": 1})
        channel.basic_publish(exchange, "red", b"once")
        received(channel, queue, [b"once"])

    def test_binding_twice_is_one_binding(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("direct")
        channel.exchange_declare(exchange, "direct")
        queue = bound_queue(channel, exchange, "red")
        channel.queue_bind(queue, exchange, "red")
        channel.queue_unbind(queue, exchange, "red")
        channel.basic_publish(exchange, "red", b"nobody")
        received(channel, queue, [])

    def test_unbinding_stops_the_routing(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("direct")
        channel.exchange_declare(exchange, "direct")
        queue = bound_queue(channel, exchange, "red")
        channel.basic_publish(exchange, "red", b"before")
        channel.queue_unbind(queue, exchange, "red")
        channel.basic_publish(exchange, "red", b"after")
        received(channel, queue, [b"before"])

    def test_unbinding_what_was_never_bound_is_fine(self, channel: BlockingChannel, queue: str) -> None:
        channel.queue_unbind(queue, "amq.direct", "never")

    def test_a_binding_made_between_two_publishes_takes_effect_at_once(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        exchange = unique("direct")
        channel.exchange_declare(exchange, "direct")
        first = bound_queue(channel, exchange, "k")
        channel.basic_publish(exchange, "k", b"1")
        second = bound_queue(channel, exchange, "k")
        channel.basic_publish(exchange, "k", b"2")
        received(channel, first, [b"1", b"2"])
        received(channel, second, [b"2"])


class TestFanout:
    def test_routes_to_every_queue_whatever_the_key(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("fanout")
        channel.exchange_declare(exchange, "fanout")
        queues = [bound_queue(channel, exchange, key) for key in ("", "a", "b")]
        channel.basic_publish(exchange, "whatever", b"all")
        for queue in queues:
            received(channel, queue, [b"all"])


class TestTopic:
    @pytest.mark.parametrize(
        ("pattern", "matching", "others"),
        [
            ("a.b.c", ["a.b.c"], ["a.b", "a.b.c.d", "a.b.x", ""]),
            ("*.b.*", ["a.b.c", "x.b.y", ".b."], ["b", "a.b", "a.b.c.d", "b.b"]),
            ("#", ["", "a", "a.b.c", "."], []),
            ("#.#", ["", "a", "a.b"], []),
            ("a.#", ["a", "a.b", "a.b.c"], ["b.a", "ab", ""]),
            ("#.c", ["c", "b.c", "a.b.c"], ["c.d", ""]),
            ("a.#.c", ["a.c", "a.b.c", "a.b.b.c"], ["a", "a.b", "c"]),
            ("#.b.#", ["b", "a.b", "b.c", "a.b.c", "b.b"], ["a", "a.c"]),
            # An empty routing key is no word in RabbitMQ's eyes.
            ("*", ["a"], ["a.b", ""]),
            ("*.*", ["a.b", "."], ["a", "a.b.c"]),
            ("*.#", ["a", "a.b"], [""]),
            ("#.*", ["a", "a.b"], [""]),
            ("a*", ["a*"], ["ab"]),
            ("a.*b", ["a.*b"], ["a.bb"]),
            ("", [""], ["a"]),
        ],
    )
    def test_pattern(
        self, channel: BlockingChannel, unique: Unique, pattern: str, matching: list[str], others: list[str]
    ) -> None:
        exchange = unique("topic")
        channel.exchange_declare(exchange, "topic")
        queue = bound_queue(channel, exchange, pattern)
        for key in (*matching, *others):
            channel.basic_publish(exchange, key, key.encode())
        received(channel, queue, [key.encode() for key in matching])

    def test_several_patterns_of_one_queue_deliver_once(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("topic")
        channel.exchange_declare(exchange, "topic")
        queue = bound_queue(channel, exchange, "a.#")
        for pattern in ("#", "*.b", "a.b"):
            channel.queue_bind(queue, exchange, pattern)
        channel.basic_publish(exchange, "a.b", b"once")
        received(channel, queue, [b"once"])

    def test_removing_one_pattern_keeps_the_others(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("topic")
        channel.exchange_declare(exchange, "topic")
        queue = bound_queue(channel, exchange, "a.*")
        channel.queue_bind(queue, exchange, "a.#")
        channel.queue_unbind(queue, exchange, "a.#")
        channel.basic_publish(exchange, "a.b", b"yes")
        channel.basic_publish(exchange, "a.b.c", b"no")
        received(channel, queue, [b"yes"])


class TestHeaders:
    @pytest.mark.parametrize(
        ("arguments", "headers", "matches"),
        [
            ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x"}, True),
            ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 2}, True),
            ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1}, False),
            ({"x-match": "all", "a": 1}, {"a": 2}, False),
            ({"a": 1, "b": 2}, {"a": 1}, False),
            ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
            ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
            ({"x-match": "any", "a": 1, "b": 2}, {"c": 3}, False),
            ({"x-match": "any", "a": 1, "b": 2}, {}, False),
            ({"x-match": "all"}, {}, True),
            ({"x-match": "any"}, {"a": 1}, False),
            # A binding without a value asks for the header alone.
            ({"x-match": "all", "a": None}, {"a": "anything"}, True),
            ({"x-match": "all", "a": None}, {"b": 1}, False),
            # Headers that begin with x- count only in the -with-x modes.
            ({"x-match": "all", "x-a": 1, "b": 2}, {"b": 2}, True),
            ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
            ({"x-match": "all-with-x", "x-a": 1, "b": 2}, {"b": 2}, False),
            # Text is not a number.
            ({"x-match": "all", "a": 1}, {"a": "1"}, False),
        ],
    )
    def test_match(
        self,
        channel: BlockingChannel,
        unique: Unique,
        arguments: dict[str, Any],
        headers: dict[str, Any],
        matches: bool,
    ) -> None:
        exchange = unique("headers")
        channel.exchange_declare(exchange, "headers")
        queue = bound_queue(channel, exchange, "ignored", arguments)
        channel.basic_publish(exchange, "key", b"m", BasicProperties(headers=headers))
        received(channel, queue, [b"m"] if matches else [])

    def test_a_message_without_headers_matches_only_an_empty_binding(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        exchange = unique("headers")
        channel.exchange_declare(exchange, "headers")
        wants_nothing = bound_queue(channel, exchange, "", {"x-match": "all"})
        wants_something = bound_queue(channel, exchange, "", {"x-match": "all", "a": 1})
        channel.basic_publish(exchange, "", b"m")
        received(channel, wants_nothing, [b"m"])
        received(channel, wants_something, [])

    def test_an_unknown_x_match_is_refused(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, queue = unique("headers"), unique("queue")
        channel.exchange_declare(exchange, "headers")
        channel.queue_declare(queue, exclusive=True)
        with channel_refused(406):
            channel.queue_bind(queue, exchange, "", {"x-match": "some", "a": 1})


class TestDefaultExchange:
    def test_every_queue_is_bound_by_its_name(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"direct")
        received(channel, queue, [b"direct"])

    @pytest.mark.parametrize("operation", ["bind", "unbind", "exchange_bind"])
    def test_may_not_be_bound(self, channel: BlockingChannel, queue: str, operation: str) -> None:
        with channel_refused(403, "ACCESS_REFUSED - operation not permitted on the default exchange"):
            if operation == "bind":
                channel.queue_bind(queue, "", "key")
            elif operation == "unbind":
                channel.queue_unbind(queue, "", queue)
            else:
                channel.exchange_bind("amq.fanout", "", "key")

    def test_may_not_be_deleted(self, channel: BlockingChannel) -> None:
        with channel_refused(403, "ACCESS_REFUSED - operation not permitted on the default exchange"):
            channel.exchange_delete("")

    def test_may_not_be_declared(self, channel: BlockingChannel) -> None:
        with channel_refused(403, "ACCESS_REFUSED - operation not permitted on the default exchange"):
            channel.exchange_declare("", "direct", durable=True)


class TestPredeclared:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("amq.direct", "direct"),
            ("amq.fanout", "fanout"),
            ("amq.topic", "topic"),
            ("amq.headers", "headers"),
            ("amq.match", "headers"),
        ],
    )
    def test_exists_durable_with_its_type(self, channel: BlockingChannel, name: str, kind: str) -> None:
        channel.exchange_declare(name, kind, passive=True)
        channel.exchange_declare(name, kind, durable=True)

    def test_routes(self, channel: BlockingChannel, unique: Unique) -> None:
        key = unique("key")
        queue = bound_queue(channel, "amq.topic", f"{key}.#")
        channel.basic_publish("amq.topic", f"{key}.a", b"m")
        received(channel, queue, [b"m"])

    def test_may_not_be_deleted(self, channel: BlockingChannel) -> None:
        with channel_refused(403):
            channel.exchange_delete("amq.direct")

    def test_the_amq_prefix_is_reserved(self, channel: BlockingChannel) -> None:
        with channel_refused(403, "ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'"):
            channel.exchange_declare("amq.mine", "direct")


class TestDeclare:
    def test_the_same_again_is_fine(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        for _ in range(2):
            channel.exchange_declare(exchange, "topic", durable=True, arguments={"x": "y"})

    def test_passive_does_not_create(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no exchange '{exchange}' in vhost '/'"):
            channel.exchange_declare(exchange, "direct", passive=True)

    def test_passive_finds_whatever_the_type(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "topic")
        channel.exchange_declare(exchange, passive=True)

    @pytest.mark.parametrize(
        ("again", "text"),
        [
            (
                {"exchange_type": "fanout"},
                "inequivalent arg 'type' for exchange '{}' in vhost '/': received 'fanout' but current is 'direct'",
            ),
            (
                {"durable": True},
                "inequivalent arg 'durable' for exchange '{}' in vhost '/': received 'true' but current is 'false'",
            ),
            (
                {"auto_delete": True},
                "inequivalent arg 'auto_delete' for exchange '{}' in vhost '/': received 'true' but current is 'false'",
            ),
            (
                {"internal": True},
                "inequivalent arg 'internal' for exchange '{}' in vhost '/': received 'true' but current is 'false'",
            ),
            (
                {"arguments": {"alternate-exchange": "other"}},
                (
                    "inequivalent arg 'alternate-exchange' for exchange '{}' in vhost '/': "
                    "received the value 'other' of type 'longstr' but current is none"
                ),
            ),
        ],
    )
    def test_other_properties_are_refused_with_406(
        self, channel: BlockingChannel, unique: Unique, again: dict[str, Any], text: str
    ) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "direct")
        with channel_refused(406, "PRECONDITION_FAILED - " + text.format(exchange)):
            channel.exchange_declare(exchange, **{"exchange_type": "direct", **again})

    def test_an_unknown_type_is_refused(self, channel: BlockingChannel, unique: Unique) -> None:
        # 503 on the connection until RabbitMQ 3.13, 406 on the channel since 4.
        with pytest.raises((ChannelClosedByBroker, ConnectionClosedByBroker)) as refused:
            channel.exchange_declare(unique("exchange"), "no-such-type")
        assert refused.value.reply_code in (406, 503)


class TestDelete:
    def test_a_deleted_exchange_is_gone(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "direct")
        channel.exchange_delete(exchange)
        with channel_refused(404):
            channel.exchange_declare(exchange, passive=True)

    def test_deleting_what_is_missing_is_fine(self, channel: BlockingChannel, unique: Unique) -> None:
        channel.exchange_delete(unique("missing"))

    def test_if_unused_refuses_while_bound(self, connect: Connect, unique: Unique) -> None:
        connection = connect()
        channel = connection.channel()
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "direct")
        queue = bound_queue(channel, exchange, "key")
        with channel_refused(406, f"PRECONDITION_FAILED - exchange '{exchange}' in vhost '/' in use"):
            connection.channel().exchange_delete(exchange, if_unused=True)
        channel.queue_unbind(queue, exchange, "key")
        channel.exchange_delete(exchange, if_unused=True)

    def test_auto_delete_goes_with_its_last_binding(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "direct", auto_delete=True)
        channel.exchange_declare(exchange, passive=True)
        queue = bound_queue(channel, exchange, "key")
        channel.queue_unbind(queue, exchange, "key")
        with channel_refused(404):
            channel.exchange_declare(exchange, passive=True)

    def test_auto_delete_goes_with_the_queue_that_was_bound(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "direct", auto_delete=True)
        channel.queue_delete(bound_queue(channel, exchange, "key"))
        with channel_refused(404):
            channel.exchange_declare(exchange, passive=True)

    def test_bindings_of_a_deleted_exchange_do_not_come_back(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "fanout")
        queue = bound_queue(channel, exchange)
        channel.exchange_delete(exchange)
        channel.exchange_declare(exchange, "fanout")
        channel.basic_publish(exchange, "", b"nobody")
        received(channel, queue, [])


class TestExchangeToExchange:
    def test_messages_pass_through_bound_exchanges(self, channel: BlockingChannel, unique: Unique) -> None:
        source, destination = unique("source"), unique("destination")
        channel.exchange_declare(source, "topic")
        channel.exchange_declare(destination, "direct")
        channel.exchange_bind(destination, source, "a.#")
        queue = bound_queue(channel, destination, "a.b")
        channel.basic_publish(source, "a.b", b"yes")
        channel.basic_publish(source, "a.c", b"other key at the second exchange")
        channel.basic_publish(source, "b.b", b"other key at the first exchange")
        received(channel, queue, [b"yes"])
        channel.exchange_unbind(destination, source, "a.#")
        channel.basic_publish(source, "a.b", b"unbound")
        received(channel, queue, [])

    def test_a_cycle_delivers_once(self, channel: BlockingChannel, unique: Unique) -> None:
        one, two = unique("one"), unique("two")
        for exchange in (one, two):
            channel.exchange_declare(exchange, "fanout")
        channel.exchange_bind(one, two)
        channel.exchange_bind(two, one)
        queues = [bound_queue(channel, one), bound_queue(channel, two)]
        channel.basic_publish(one, "", b"once")
        for queue in queues:
            received(channel, queue, [b"once"])

    def test_two_ways_to_one_queue_deliver_once(self, channel: BlockingChannel, unique: Unique) -> None:
        top, left, right = unique("top"), unique("left"), unique("right")
        for exchange in (top, left, right):
            channel.exchange_declare(exchange, "fanout")
        channel.exchange_bind(left, top)
        channel.exchange_bind(right, top)
        queue = bound_queue(channel, left)
        channel.queue_bind(queue, right)
        channel.basic_publish(top, "", b"once")
        received(channel, queue, [b"once"])

    def test_binding_a_missing_exchange_is_refused_with_404(self, channel: BlockingChannel, unique: Unique) -> None:
        missing = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
            channel.exchange_bind(missing, "amq.fanout")

    def test_binding_a_missing_queue_is_refused_with_404(self, channel: BlockingChannel, unique: Unique) -> None:
        missing = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'"):
            channel.queue_bind(missing, "amq.fanout")


class TestAlternateExchange:
    def test_takes_what_cannot_be_routed(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, alternate = unique("exchange"), unique("alternate")
        channel.exchange_declare(alternate, "fanout")
        channel.exchange_declare(exchange, "direct", arguments={"alternate-exchange": alternate})
        routed, rest = bound_queue(channel, exchange, "known"), bound_queue(channel, alternate)
        channel.basic_publish(exchange, "known", b"known")
        channel.basic_publish(exchange, "unknown", b"unknown")
        received(channel, routed, [b"known"])
        wait_ready(channel, rest, 1)
        delivery = get(channel, rest)
        assert (delivery.body, delivery.method.exchange, delivery.method.routing_key) == (
            b"unknown",
            exchange,
            "unknown",
        )

    def test_counts_as_routed_for_mandatory(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, alternate = unique("exchange"), unique("alternate")
        channel.exchange_declare(alternate, "fanout")
        channel.exchange_declare(exchange, "direct", arguments={"alternate-exchange": alternate})
        queue = bound_queue(channel, alternate)
        channel.confirm_delivery()
        channel.basic_publish(exchange, "unknown", b"m", mandatory=True)
        received(channel, queue, [b"m"])

    def test_alternates_may_be_chained_and_cycle(self, channel: BlockingChannel, unique: Unique) -> None:
        first, second = unique("first"), unique("second")
        channel.exchange_declare(first, "direct", arguments={"alternate-exchange": second})
        channel.exchange_declare(second, "direct", arguments={"alternate-exchange": first})
        queue = bound_queue(channel, second, "known")
        channel.basic_publish(first, "known", b"m")
        channel.basic_publish(first, "unknown", b"dropped")
        received(channel, queue, [b"m"])

    def test_a_missing_alternate_drops(self, channel: BlockingChannel, unique: Unique, queue: str) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "direct", arguments={"alternate-exchange": unique("missing")})
        channel.basic_publish(exchange, "unknown", b"dropped")
        publish(channel, queue, b"the channel still works")
        received(channel, queue, [b"the channel still works"])


class TestInternal:
    def test_clients_may_not_publish_to_it(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("internal")
        channel.exchange_declare(exchange, "fanout", internal=True)
        with channel_refused(403, f"ACCESS_REFUSED - cannot publish to internal exchange '{exchange}' in vhost '/'"):
            channel.basic_publish(exchange, "", b"m")
            channel.basic_qos(prefetch_count=1)

    def test_other_exchanges_reach_it(self, channel: BlockingChannel, unique: Unique) -> None:
        front, internal = unique("front"), unique("internal")
        channel.exchange_declare(front, "fanout")
        channel.exchange_declare(internal, "fanout", internal=True)
        channel.exchange_bind(internal, front)
        queue = bound_queue(channel, internal)
        channel.basic_publish(front, "", b"m")
        received(channel, queue, [b"m"])


def test_deliveries_name_the_exchange_and_key_of_the_publish(channel: BlockingChannel, unique: Unique) -> None:
    exchange = unique("exchange")
    channel.exchange_declare(exchange, "topic")
    inbox = Inbox(channel, bound_queue(channel, exchange, "#"), auto_ack=True)
    channel.basic_publish(exchange, "some.key", b"m")
    method = inbox.wait(1)[0].method
    assert (method.exchange, method.routing_key) == (exchange, "some.key")
