"""The exchange types that RabbitMQ has as plugins, or has had: x-consistent-hash, x-random, x-modulus-hash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import UnroutableError

from tests.support.pika_client import Connect, Unique, channel_refused, drain, get, ready_count, wait_ready
from tests.support.waiting import eventually

COUNT = 600
WEIGHTS = [1, 2, 3]


def declared(channel: BlockingChannel, unique: Unique, type: str, arguments: Any = None) -> str:
    exchange = unique(type)
    channel.exchange_declare(exchange, type, arguments=arguments)
    return exchange


def bound_queues(channel: BlockingChannel, exchange: str, keys: list[int]) -> list[str]:
    queues = [str(channel.queue_declare("", exclusive=True).method.queue) for _ in keys]
    for queue, key in zip(queues, keys, strict=True):
        channel.queue_bind(queue, exchange, str(key))
    return queues


def drained(channel: BlockingChannel, queues: list[str], count: int) -> list[list[bytes]]:
    """What is in each queue, once there are `count` in all."""
    eventually(
        lambda: sum(ready_count(channel, queue) for queue in queues) == count,
        f"{count} messages in {len(queues)} queues",
    )
    return [drain(channel, queue) for queue in queues]


def assert_spread(bodies: list[list[bytes]], weights: list[int]) -> None:
    """The counts are those of independent draws: each within five standard deviations."""
    count = sum(map(len, bodies))
    for found, weight in zip(bodies, weights, strict=True):
        share = weight / sum(weights)
        deviation = (count * share * (1 - share)) ** 0.5
        assert abs(len(found) - count * share) < 5 * deviation, [len(found) for found in bodies]


def key_and_nothing(number: int) -> tuple[str, BasicProperties]:
    return f"key-{number}", BasicProperties()


def header(number: int) -> tuple[str, BasicProperties]:
    return "same", BasicProperties(headers={"customer": number, "other": "same"})


def message_id(number: int) -> tuple[str, BasicProperties]:
    return "same", BasicProperties(message_id=f"id-{number}", correlation_id="same", timestamp=1)


def correlation_id(number: int) -> tuple[str, BasicProperties]:
    return "same", BasicProperties(message_id="same", correlation_id=f"id-{number}", timestamp=1)


def timestamp(number: int) -> tuple[str, BasicProperties]:
    return "same", BasicProperties(message_id="same", correlation_id="same", timestamp=1_700_000_000 + number)


class TestConsistentHash:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (None, key_and_nothing),
            ({"hash-header": "customer"}, header),
            ({"hash-property": "message_id"}, message_id),
            ({"hash-property": "correlation_id"}, correlation_id),
            ({"hash-property": "timestamp"}, timestamp),
        ],
        ids=["routing key", "header", "message_id", "correlation_id", "timestamp"],
    )
    def test_what_is_hashed_is_spread_by_weight_and_equal_values_stay_together(
        self,
        channel: BlockingChannel,
        unique: Unique,
        arguments: Any,
        message: Callable[[int], tuple[str, BasicProperties]],
    ) -> None:
        exchange = declared(channel, unique, "x-consistent-hash", arguments)
        queues = bound_queues(channel, exchange, WEIGHTS)
        for _ in range(2):
            for number in range(COUNT):
                key, properties = message(number)
                channel.basic_publish(exchange, key, b"%d" % number, properties)
        found = drained(channel, queues, 2 * COUNT)
        for bodies in found:
            # Each number is here twice or not at all.
            assert bodies[: len(bodies) // 2] == bodies[len(bodies) // 2 :]
        assert_spread([bodies[: len(bodies) // 2] for bodies in found], WEIGHTS)

    @pytest.mark.parametrize("arguments", [{"hash-header": "customer"}, {"hash-property": "message_id"}])
    def test_messages_without_what_is_hashed_go_to_one_queue(
        self, channel: BlockingChannel, unique: Unique, arguments: Any
    ) -> None:
        exchange = declared(channel, unique, "x-consistent-hash", arguments)
        queues = bound_queues(channel, exchange, [1, 1, 1])
        for number in range(30):
            channel.basic_publish(exchange, f"key-{number}", b"m")
        assert sorted(map(len, drained(channel, queues, 30))) == [0, 0, 30]

    def test_a_new_queue_takes_only_its_share_of_the_keys(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-consistent-hash")
        old = bound_queues(channel, exchange, [1, 1, 1])
        for number in range(COUNT):
            channel.basic_publish(exchange, f"key-{number}", b"%d" % number)
        before = drained(channel, old, COUNT)
        new = bound_queues(channel, exchange, [1])
        for number in range(COUNT):
            channel.basic_publish(exchange, f"key-{number}", b"%d" % number)
        *after, taken = drained(channel, [*old, *new], COUNT)
        assert_spread([*after, taken], [1, 1, 1, 1])
        for then, now in zip(before, after, strict=True):
            assert set(now) <= set(then), "a key moved from one old queue to another"

    def test_the_keys_of_a_deleted_queue_go_to_the_others(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-consistent-hash")
        gone, *others = bound_queues(channel, exchange, [5, 1, 1])
        for number in range(COUNT):
            channel.basic_publish(exchange, f"key-{number}", b"m")
        drained(channel, [gone, *others], COUNT)
        channel.queue_delete(gone)
        for number in range(COUNT):
            channel.basic_publish(exchange, f"key-{number}", b"m")
        assert_spread(drained(channel, others, COUNT), [1, 1])

    def test_with_no_queue_bound_a_mandatory_message_comes_back(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-consistent-hash")
        returned: list[bytes] = []
        channel.add_on_return_callback(lambda _channel, _method, _properties, body: returned.append(body))
        channel.basic_publish(exchange, "k", b"m", mandatory=True)
        eventually(lambda: returned == [b"m"], "the return", step=lambda: channel.connection.process_data_events(0.01))

    def test_further_routing_keys_choose_no_further_queue(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-consistent-hash")
        queues = bound_queues(channel, exchange, [1] * 10)
        channel.basic_publish(exchange, "k", b"m", BasicProperties(headers={"CC": [f"key-{n}" for n in range(20)]}))
        assert sorted(map(len, drained(channel, queues, 1))) == [0] * 9 + [1]

    def test_dead_letters_are_hashed_by_their_own_properties(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-consistent-hash", {"hash-property": "message_id"})
        graves = bound_queues(channel, exchange, [1, 1, 1])
        dying = unique("dying")
        channel.queue_declare(dying, arguments={"x-dead-letter-exchange": exchange})
        for number in range(60):
            properties = BasicProperties(message_id=f"id-{number}")
            channel.basic_publish("", dying, b"%d" % number, properties)
            channel.basic_publish(exchange, "k", b"%d" % number, properties)
        wait_ready(channel, dying, 60)
        for _ in range(60):
            channel.basic_nack(get(channel, dying, auto_ack=False).tag, requeue=False)
        found = drained(channel, graves, 120)
        assert all(found)
        for bodies in found:
            assert bodies[: len(bodies) // 2] == bodies[len(bodies) // 2 :]

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (
                {"hash-header": "a", "hash-property": "message_id"},
                "hash-header and hash-property are mutually exclusive",
            ),
            ({"hash-property": "app_id"}, "Unsupported property: app_id"),
        ],
    )
    def test_arguments_that_name_nothing_to_hash_are_refused(
        self, connect: Connect, unique: Unique, arguments: Any, text: str
    ) -> None:
        connection, exchange = connect(), unique("x-consistent-hash")
        with channel_refused(406, "PRECONDITION_FAILED - " + text):
            connection.channel().exchange_declare(exchange, "x-consistent-hash", arguments=arguments)
        with channel_refused(404):
            connection.channel().exchange_declare(exchange, passive=True)

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("0", "The binding key must be greater than 0"),
            ("-3", "The binding key must be greater than 0"),
            ("10001", "The binding key must not exceed 10000"),
            ("", "The binding key must be an integer: <<>>"),
            ("heavy", 'The binding key must be an integer: <<"heavy">>'),
        ],
    )
    def test_a_binding_key_that_is_no_weight_is_refused(
        self, channel: BlockingChannel, unique: Unique, queue: str, key: str, text: str
    ) -> None:
        exchange = declared(channel, unique, "x-consistent-hash")
        with channel_refused(406, "PRECONDITION_FAILED - " + text):
            channel.queue_bind(queue, exchange, key)

    def test_a_long_binding_key_is_refused_with_a_text_that_fits(
        self, channel: BlockingChannel, unique: Unique, queue: str
    ) -> None:
        exchange = declared(channel, unique, "x-consistent-hash")
        with channel_refused(406):
            channel.queue_bind(queue, exchange, "x" * 255)


class TestRandom:
    def test_each_message_goes_to_one_queue_by_chance(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-random")
        queues = bound_queues(channel, exchange, [1, 1, 1])
        for number in range(COUNT):
            channel.basic_publish(exchange, "same", b"%d" % number)
        assert_spread(drained(channel, queues, COUNT), [1, 1, 1])

    def test_each_message_of_a_transaction_is_drawn_for_itself(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-random")
        queues = bound_queues(channel, exchange, [1, 1])
        channel.tx_select()
        for number in range(100):
            channel.basic_publish(exchange, "same", b"%d" % number)
        channel.tx_commit()
        assert_spread(drained(channel, queues, 100), [1, 1])

    def test_chance_behind_another_exchange_is_drawn_for_each_message(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        before, exchange = declared(channel, unique, "fanout"), declared(channel, unique, "x-random")
        channel.exchange_bind(exchange, before)
        queues = bound_queues(channel, exchange, [1, 1])
        for number in range(100):
            channel.basic_publish(before, "same", b"%d" % number)
        assert_spread(drained(channel, queues, 100), [1, 1])

    def test_further_routing_keys_draw_no_further_queue(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-random")
        queues = bound_queues(channel, exchange, [1] * 10)
        channel.basic_publish(exchange, "k", b"m", BasicProperties(headers={"CC": [f"key-{n}" for n in range(20)]}))
        assert sorted(map(len, drained(channel, queues, 1))) == [0] * 9 + [1]

    def test_binding_keys_and_arguments_may_be_anything(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-random", {"hash-header": 1})
        queue = str(channel.queue_declare("", exclusive=True).method.queue)
        for key in ("", "#", "-1"):
            channel.queue_bind(queue, exchange, key, {"x-match": "some"})
        channel.basic_publish(exchange, "k", b"m")
        assert drained(channel, [queue], 1) == [[b"m"]]


class TestLocalRandom:
    def test_each_message_goes_to_one_queue_by_chance(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-local-random")
        queues = [str(channel.queue_declare("", exclusive=True).method.queue) for _ in range(3)]
        for queue in queues:
            channel.queue_bind(queue, exchange, "")
        for number in range(90):
            channel.basic_publish(exchange, "any", b"%d" % number)
        assert all(drained(channel, queues, 90))

    def test_a_binding_key_is_refused(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-local-random")
        queue = str(channel.queue_declare("", exclusive=True).method.queue)
        with channel_refused(406, "PRECONDITION_FAILED - Non empty binding 'k' key not permitted"):
            channel.queue_bind(queue, exchange, "k")


class TestModulusHash:
    def test_a_routing_key_keeps_its_queue_and_all_queues_have_some(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        exchange = declared(channel, unique, "x-modulus-hash")
        queues = [str(channel.queue_declare("", exclusive=True).method.queue) for _ in range(4)]
        for queue in queues:
            channel.queue_bind(queue, exchange, "ignored")
            channel.queue_bind(queue, exchange, "ignored too")
        for _ in range(2):
            for number in range(60):
                channel.basic_publish(exchange, f"key-{number}", b"%d" % number)
        found = drained(channel, queues, 120)
        assert all(found)
        assert all(sorted(bodies) == sorted(2 * list(set(bodies))) for bodies in found)

    def test_with_no_queue_bound_a_mandatory_message_comes_back(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = declared(channel, unique, "x-modulus-hash")
        channel.confirm_delivery()
        with pytest.raises(UnroutableError):
            channel.basic_publish(exchange, "k", b"m", mandatory=True)
