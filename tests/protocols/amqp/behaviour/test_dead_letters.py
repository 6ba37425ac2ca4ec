"""Dead-lettering: what sends a message to the dead-letter exchange, and what it then says about its death."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import NackError

from tests.support.pika_client import (
    Connect,
    Delivery,
    Inbox,
    Unique,
    drain,
    get,
    numbered,
    publish,
    ready_count,
    turn,
    wait_ready,
)
from tests.support.waiting import eventually

DeclareQueue = Callable[..., str]


@pytest.fixture
def channel(connect: Connect) -> BlockingChannel:
    """In confirm mode: a message is in its queue before its death is looked for."""
    channel = connect().channel()
    channel.confirm_delivery()
    return channel


@pytest.fixture
def declare(channel: BlockingChannel, unique: Unique) -> DeclareQueue:
    """Declares a queue: `declare("work", to=dead)` dead-letters to the queue `dead` through the default exchange."""

    def declare_queue(stem: str, *, to: str | None = None, **arguments: Any) -> str:
        name = unique(stem)
        table: dict[str, Any] = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        if to is not None:
            table |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": to}
        channel.queue_declare(name, arguments=table)
        return name

    return declare_queue


def deaths(delivery: Delivery) -> list[dict[str, Any]]:
    """The x-death entries without their time."""
    return [
        {key: value for key, value in death.items() if key != "time"} for death in delivery.headers.get("x-death", [])
    ]


class TestReasons:
    @pytest.mark.parametrize("operation", ["nack", "reject"])
    def test_rejected(self, channel: BlockingChannel, declare: DeclareQueue, operation: str) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, b"m")
        tag = get(channel, work, auto_ack=False).tag
        if operation == "nack":
            channel.basic_nack(tag, requeue=False)
        else:
            channel.basic_reject(tag, requeue=False)
        wait_ready(channel, dead, 1)
        delivery = get(channel, dead)
        assert delivery.body == b"m"
        assert deaths(delivery) == [
            {"count": 1, "reason": "rejected", "queue": work, "exchange": "", "routing-keys": [work]}
        ]

    def test_expired_by_the_queue(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead, message_ttl=50)
        publish(channel, work, *numbered(3))
        wait_ready(channel, dead, 3)
        delivery = get(channel, dead)
        assert delivery.body == b"0"
        assert deaths(delivery) == [
            {"count": 1, "reason": "expired", "queue": work, "exchange": "", "routing-keys": [work]}
        ]
        assert drain(channel, dead) == [b"1", b"2"]

    def test_expired_by_the_message_and_its_expiration_is_moved_away(
        self, channel: BlockingChannel, declare: DeclareQueue
    ) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, b"m", expiration="50")
        wait_ready(channel, dead, 1)
        delivery = get(channel, dead)
        # Else it would expire in the dead-letter queue as well.
        assert delivery.properties.expiration is None
        assert deaths(delivery) == [
            {
                "count": 1,
                "reason": "expired",
                "queue": work,
                "exchange": "",
                "routing-keys": [work],
                "original-expiration": "50",
            }
        ]

    def test_dropped_by_the_length_limit(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead, max_length=1)
        publish(channel, work, *numbered(3))
        wait_ready(channel, dead, 2)
        delivery = get(channel, dead)
        assert delivery.body == b"0"
        assert deaths(delivery) == [
            {"count": 1, "reason": "maxlen", "queue": work, "exchange": "", "routing-keys": [work]}
        ]
        assert drain(channel, dead) == [b"1"]
        assert drain(channel, work) == [b"2"]

    def test_refused_by_reject_publish_dlx(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead, max_length=1, overflow="reject-publish-dlx")
        publish(channel, work, b"kept")
        with pytest.raises(NackError):
            publish(channel, work, b"refused")
        wait_ready(channel, dead, 1)
        delivery = get(channel, dead)
        assert (delivery.body, deaths(delivery)[0]["reason"]) == (b"refused", "maxlen")

    @pytest.mark.parametrize("operation", ["purge", "delete", "ack"])
    def test_what_is_purged_deleted_or_acknowledged_is_not_dead_lettered(
        self, channel: BlockingChannel, declare: DeclareQueue, operation: str
    ) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, b"m")
        wait_ready(channel, work, 1)
        match operation:
            case "purge":
                channel.queue_purge(work)
            case "delete":
                channel.queue_delete(work)
            case "ack":
                get(channel, work, auto_ack=False).ack()
        # What would be dead-lettered goes before this one.
        publish(channel, dead, b"fence")
        wait_ready(channel, dead, 1)
        assert drain(channel, dead) == [b"fence"]

    def test_a_requeued_message_is_not_dead_lettered(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=True)
        wait_ready(channel, work, 1)
        assert ready_count(channel, dead) == 0
        assert "x-death" not in get(channel, work).headers


class TestRouting:
    def test_keeps_the_routing_key_unless_told_otherwise(
        self, channel: BlockingChannel, declare: DeclareQueue, unique: Unique
    ) -> None:
        exchange = unique("dlx")
        channel.exchange_declare(exchange, "direct")
        dead = declare("dead")
        work = declare("work", dead_letter_exchange=exchange)
        channel.queue_bind(work, "amq.direct", f"{work}.key")
        channel.queue_bind(dead, exchange, f"{work}.key")
        channel.basic_publish("amq.direct", f"{work}.key", b"m")
        wait_ready(channel, work, 1)
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)
        delivery = get(channel, dead)
        assert (delivery.method.exchange, delivery.method.routing_key) == (exchange, f"{work}.key")
        assert deaths(delivery) == [
            {
                "count": 1,
                "reason": "rejected",
                "queue": work,
                "exchange": "amq.direct",
                "routing-keys": [f"{work}.key"],
            }
        ]

    def test_uses_the_dead_letter_routing_key(
        self, channel: BlockingChannel, declare: DeclareQueue, unique: Unique
    ) -> None:
        exchange = unique("dlx")
        channel.exchange_declare(exchange, "direct")
        dead = declare("dead")
        channel.queue_bind(dead, exchange, "poison")
        work = declare("work", dead_letter_exchange=exchange, dead_letter_routing_key="poison")
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)
        assert get(channel, dead).method.routing_key == "poison"

    def test_reaches_every_queue_of_the_exchange(
        self, channel: BlockingChannel, declare: DeclareQueue, unique: Unique
    ) -> None:
        exchange = unique("dlx")
        channel.exchange_declare(exchange, "fanout")
        graves = [declare("dead") for _ in range(3)]
        for dead in graves:
            channel.queue_bind(dead, exchange)
        work = declare("work", dead_letter_exchange=exchange)
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        for dead in graves:
            wait_ready(channel, dead, 1)

    def test_a_missing_exchange_drops_silently(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        work = declare("work", dead_letter_exchange="no-such-exchange")
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, work, 0)
        assert channel.is_open

    def test_an_exchange_declared_later_is_used(
        self, channel: BlockingChannel, declare: DeclareQueue, unique: Unique
    ) -> None:
        exchange = unique("dlx")
        work = declare("work", dead_letter_exchange=exchange)
        dead = declare("dead")
        channel.exchange_declare(exchange, "fanout")
        channel.queue_bind(dead, exchange)
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)

    def test_many_rejected_at_once_keep_their_order(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, *numbered(100))
        Inbox(channel, work).wait(100)
        channel.basic_nack(0, multiple=True, requeue=False)
        wait_ready(channel, dead, 100)
        assert drain(channel, dead) == numbered(100)

    def test_properties_and_headers_are_kept(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        sent = BasicProperties(
            headers={"mine": "kept", "nested": {"list": [1, 2]}},
            content_type="text/plain",
            message_id="id",
            correlation_id="correlation",
            delivery_mode=2,
            priority=3,
            timestamp=1700000000,
        )
        channel.basic_publish("", work, b"m", sent)
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)
        received = get(channel, dead).properties
        for name in ("content_type", "message_id", "correlation_id", "delivery_mode", "priority", "timestamp"):
            assert getattr(received, name) == getattr(sent, name), name
        assert received.headers is not None
        assert received.headers["mine"] == "kept"
        assert received.headers["nested"] == {"list": [1, 2]}


class TestDeathHeaders:
    def test_the_time_is_a_timestamp_of_now(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        before = int(time.time()) - 1
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)
        died_at = get(channel, dead).headers["x-death"][0]["time"]
        assert isinstance(died_at, datetime)
        if died_at.tzinfo is None:
            died_at = died_at.replace(tzinfo=UTC)
        assert before <= died_at.timestamp() <= time.time() + 1

    def test_the_first_death_is_told_apart(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        second = declare("second", to=dead)
        first = declare("first", to=second, message_ttl=20)
        publish(channel, first, b"m")
        wait_ready(channel, second, 1)
        delivery = get(channel, second, auto_ack=False)
        channel.basic_reject(delivery.tag, requeue=False)
        wait_ready(channel, dead, 1)
        for headers in (delivery.headers, get(channel, dead).headers):
            assert headers["x-first-death-reason"] == "expired"
            assert headers["x-first-death-queue"] == first
            assert headers["x-first-death-exchange"] == ""

    def test_the_latest_death_stands_first(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        second = declare("second", to=dead)
        first = declare("first", to=second)
        publish(channel, first, b"m")
        for name in (first, second):
            wait_ready(channel, name, 1)
            channel.basic_reject(get(channel, name, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)
        assert deaths(get(channel, dead)) == [
            {"count": 1, "reason": "rejected", "queue": second, "exchange": "", "routing-keys": [second]},
            {"count": 1, "reason": "rejected", "queue": first, "exchange": "", "routing-keys": [first]},
        ]

    def test_another_death_of_the_same_kind_counts_up(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, b"m")
        for expected in (1, 2, 3):
            wait_ready(channel, work, 1)
            channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
            wait_ready(channel, dead, 1)
            delivery = get(channel, dead)
            assert [(death["queue"], death["count"]) for death in deaths(delivery)] == [(work, expected)]
            # Redriven with its headers, as an operator's tool does.
            channel.basic_publish("", work, delivery.body, delivery.properties)

    def test_deaths_for_different_reasons_are_counted_apart(
        self, channel: BlockingChannel, declare: DeclareQueue
    ) -> None:
        dead = declare("dead")
        work = declare("work", to=dead)
        publish(channel, work, b"m")
        channel.basic_reject(get(channel, work, auto_ack=False).tag, requeue=False)
        wait_ready(channel, dead, 1)
        delivery = get(channel, dead)
        delivery.properties.expiration = "20"
        channel.basic_publish("", work, delivery.body, delivery.properties)
        wait_ready(channel, dead, 1)
        counted = [(death["reason"], death["queue"], death["count"]) for death in deaths(get(channel, dead))]
        assert counted == [("expired", work, 1), ("rejected", work, 1)]


class TestRetryLoop:
    def test_a_delay_queue_brings_a_rejected_message_back(self, channel: BlockingChannel, unique: Unique) -> None:
        work, delay = unique("work"), unique("delay")
        channel.queue_declare(work, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": delay})
        channel.queue_declare(
            delay,
            arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": work, "x-message-ttl": 30},
        )
        attempts: list[int] = []

        def reject_three_times(delivery: Delivery) -> None:
            rejected = [death["count"] for death in deaths(delivery) if death["reason"] == "rejected"]
            attempts.append(rejected[0] if rejected else 0)
            if len(attempts) < 4:
                channel.basic_reject(delivery.tag, requeue=False)
            else:
                delivery.ack()

        inbox = Inbox(channel, work, on_delivery=reject_three_times)
        publish(channel, work, b"m")
        inbox.wait(4)
        # A rejection breaks the cycle, so that it may go round as often as the application likes.
        assert attempts == [0, 1, 2, 3]

    def test_a_cycle_of_expiry_alone_ends(self, channel: BlockingChannel, unique: Unique) -> None:
        name, witness = unique("cycle"), unique("witness")
        channel.queue_declare(
            name, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, "x-message-ttl": 20}
        )
        channel.queue_declare(witness, arguments={"x-message-ttl": 200})
        publish(channel, name, b"m")
        publish(channel, witness, b"m")
        wait_ready(channel, witness, 0)
        # Nobody rejected it on its way, so coming back to the same queue would go on for ever: it is dropped.
        assert ready_count(channel, name) == 0

    def test_a_cycle_through_two_queues_ends(self, channel: BlockingChannel, unique: Unique) -> None:
        one, two, witness = unique("one"), unique("two"), unique("witness")
        for name, other in ((one, two), (two, one)):
            channel.queue_declare(
                name, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": other, "x-message-ttl": 20}
            )
        channel.queue_declare(witness, arguments={"x-message-ttl": 300})
        publish(channel, one, b"m")
        publish(channel, witness, b"m")
        wait_ready(channel, witness, 0)
        assert (ready_count(channel, one), ready_count(channel, two)) == (0, 0)


def test_a_dead_letter_reaches_a_waiting_consumer(channel: BlockingChannel, declare: DeclareQueue) -> None:
    dead = declare("dead")
    work = declare("work", to=dead, message_ttl=20)
    inbox = Inbox(channel, dead, auto_ack=True)
    publish(channel, work, *numbered(10))
    eventually(lambda: len(inbox.deliveries) == 10, "ten dead letters", step=lambda: turn(channel))
    assert inbox.bodies == numbered(10)
