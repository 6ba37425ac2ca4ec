"""Clients of AMQP, with pika, each in a process of its own that can be killed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Final

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.frame import Method

from faults.kills.amqp_queues import (
    LEDGERS,
    ORDERS_IN,
    ORDERS_OUT,
    RECEIPTS,
    body_of,
    is_poison,
    name_of,
    number_of,
    priority_of,
    route_of,
)
from faults.kills.client import Client

POLL_S: Final = 0.1
# How long whoever lost the broker waits before the next attempt.
AGAIN_S: Final = 0.05
# Messages that a publisher sends in one go, and how many may wait for their confirms.
BATCH_MESSAGES: Final = 30
UNCONFIRMED_MAX: Final = 500
# How long an orderly end may take, when the broker is there.
END_S: Final = 15.0
# Most messages are small, some take several frames.
SIZES: Final = ((0.9, 0, 200), (0.997, 1_000, 8_000), (1.0, 100_000, 300_000))
PERSISTENT: Final = 2
# What pika raises when the broker goes away in the middle of something. The last two are its own mistakes: it looks at
# what a closed connection does not have any more.
AWAY: Final = (AMQPError, OSError, AssertionError, AttributeError)


def size_of(client: Client) -> int:
    chance = client.choose.random()
    least, most = next((least, most) for bound, least, most in SIZES if chance < bound)
    return client.choose.randint(least, most)


class Publisher:
    """One connection's worth of publishing with confirms, many at a time. Each connection is a publisher of its own:
    between two there is no order."""

    def __init__(self, client: Client, connection: str) -> None:
        self._client = client
        self._name = connection
        self._number = 0
        self._tag = 0
        self._waiting: dict[int, int] = {}
        self._channel: Channel | None = None
        self._give_up_at = 0.0
        self._connection = pika.SelectConnection(
            pika.URLParameters(client.told["url"]),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_open_error_callback=self._closed,
            on_close_callback=self._closed,
        )

    def run(self) -> None:
        self._connection.ioloop.start()

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._channel_closed)
        channel.confirm_delivery(self._answered, callback=lambda _: self._publish())

    def _channel_closed(self, channel: Channel, reason: Exception) -> None:
        if self._connection.is_open:
            self._client.notes.write("refused", error=str(reason))
            self._connection.close()

    def _closed(self, connection: pika.SelectConnection, reason: Exception) -> None:
        connection.ioloop.stop()

    def _publish(self) -> None:
        client, channel = self._client, self._channel
        if channel is None or not channel.is_open:
            return
        if client.over.is_set():
            self._give_up_at = self._give_up_at or time.monotonic() + END_S
            if not self._waiting or time.monotonic() > self._give_up_at:
                self._connection.close()
                return
        elif len(self._waiting) < UNCONFIRMED_MAX:
            count = client.choose.randint(1, BATCH_MESSAGES)
            client.notes.write("send", publisher=self._name, first=self._number, count=count)
            for number in range(self._number, self._number + count):
                route = route_of(number)
                properties = pika.BasicProperties(delivery_mode=PERSISTENT, priority=priority_of(number))
                body = body_of(f"{self._name}:{number}", size_of(client))
                self._tag += 1
                self._waiting[self._tag] = number
                channel.basic_publish(route.exchange, route.key, body, properties)
            self._number += count
        self._connection.ioloop.call_later(BATCH_MESSAGES / 2 / client.told["rate"], self._publish)

    def _answered(self, frame: Method) -> None:
        answer = frame.method
        tags = [answer.delivery_tag]
        if answer.multiple:
            tags = [tag for tag in self._waiting if tag <= answer.delivery_tag]
        numbers = [self._waiting.pop(tag) for tag in tags]
        what = "confirmed" if isinstance(answer, pika.spec.Basic.Ack) else "nacked"
        self._client.notes.write(what, publisher=self._name, numbers=numbers)


def publish(client: Client) -> None:
    """Publish with confirms until it is over, and then wait for those that are due."""
    connections = 0
    while not client.over.is_set():
        connections += 1
        try:
            Publisher(client, f"{client.name}.{connections}").run()
        except AWAY as failure:
            client.notes.write("away", error=repr(failure))
        client.over.wait(AGAIN_S)


class Taken:
    """What one consumer was given and has not settled."""

    def __init__(self) -> None:
        self.tags: dict[str, int] = {}
        self.new: list[tuple[str, bool]] = []

    def receive(
        self, channel: BlockingChannel, method: pika.spec.Basic.Deliver, _: pika.BasicProperties, body: bytes
    ) -> None:
        name = name_of(body)
        # A name tells a delivery only while nobody gets the same message twice on one channel.
        self.tags[name] = method.delivery_tag
        self.new.append((name, bool(method.redelivered)))

    def note(self, client: Client, connection: str, queue: str) -> None:
        if self.new:
            client.notes.write("taken", connection=connection, queue=queue, messages=self.new)
            self.new = []


def again_and_again(client: Client, use: Callable[[str, BlockingChannel], None]) -> None:
    """Have one connection after the other, each with a name, until it is over. That one breaks is no error."""
    connections = 0
    while not client.over.is_set():
        connections += 1
        name = f"{client.name}.{connections}"
        try:
            began = time.monotonic()
            connection = BlockingConnection(pika.URLParameters(client.told["url"]))
            client.notes.write("connected", connection=name, began=began)
            use(name, connection.channel())
            connection.close()
        except AWAY as failure:
            client.notes.write("away", connection=name, error=repr(failure))
            client.over.wait(AGAIN_S)


def work(client: Client) -> None:
    """A worker: takes, and acknowledges, gives back or rejects; sometimes it vanishes with what it has."""
    queue = client.told["queue"]

    def use(connection: str, channel: BlockingChannel) -> None:
        taken = Taken()
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=client.told["prefetch"])
        channel.basic_consume(queue, taken.receive)
        while not client.over.is_set():
            channel.connection.process_data_events(POLL_S)
            taken.note(client, connection, queue)
            if taken.tags:
                # The stuck and the slow have what they take for some time.
                client.over.wait(client.choose.uniform(0, client.told["holds_s"]))
                _vanish_by_chance(client)
                _settle(client, channel, taken, queue)

    again_and_again(client, use)


def _vanish_by_chance(client: Client) -> None:
    if client.choose.random() < client.told["vanishes"]:
        client.notes.write("vanishes")
        os._exit(0)


def _settle(client: Client, channel: BlockingChannel, taken: Taken, queue: str) -> None:
    fates: dict[str, list[str]] = {"ack": [], "reject": [], "requeue": []}
    for name in taken.tags:
        if client.told["rejects"] and is_poison(number_of(name)):
            fates["reject"].append(name)
        else:
            fates["requeue" if client.choose.random() < client.told["requeues"] else "ack"].append(name)
    client.notes.write("settling", queue=queue, **fates)
    if not fates["reject"] and not fates["requeue"]:
        channel.basic_ack(max(taken.tags.values()), multiple=True)
    else:
        for name in fates["ack"]:
            channel.basic_ack(taken.tags[name])
        for name in fates["reject"]:
            channel.basic_reject(taken.tags[name], requeue=False)
        for name in fates["requeue"]:
            channel.basic_nack(taken.tags[name], requeue=True)
    taken.tags.clear()
    if client.choose.random() < client.told["receipts"]:
        properties = pika.BasicProperties(delivery_mode=PERSISTENT)
        channel.basic_publish("", RECEIPTS, client.name.encode(), properties)
        client.notes.write("settled", queue=queue, ack=fates["ack"], reject=fates["reject"])


def move(client: Client) -> None:
    """A mover: each turn one transaction, which publishes what it acknowledges. Some are rolled back."""
    numbers = itertools.count(1)

    def use(connection: str, channel: BlockingChannel) -> None:
        taken = Taken()
        channel.tx_select()
        channel.basic_qos(prefetch_count=BATCH_MESSAGES)
        channel.basic_consume(ORDERS_IN, taken.receive)
        committed = True
        # What is acknowledged and rolled back is this channel's still, and goes back when it is closed.
        while committed and not client.over.is_set():
            channel.connection.process_data_events(POLL_S)
            taken.note(client, connection, ORDERS_IN)
            if taken.tags:
                names = list(taken.tags)
                transaction = f"{client.name}.t{next(numbers)}"
                client.notes.write("begin", transaction=transaction, names=names)
                for name in names:
                    _publish_in_transaction(client, channel, ORDERS_OUT, f"{name}|{transaction}")
                    channel.basic_ack(taken.tags[name])
                taken.tags.clear()
                committed = _end_transaction(client, channel, transaction)

    again_and_again(client, use)


def book(client: Client) -> None:
    """A booker: each turn one transaction of messages that go to two queues."""
    numbers = itertools.count(1)

    def use(connection: str, channel: BlockingChannel) -> None:
        number = 0
        channel.tx_select()
        while not client.over.is_set():
            transaction = f"{client.name}.t{next(numbers)}"
            count = client.choose.randint(1, BATCH_MESSAGES // 3)
            names = [f"{connection}:{each}" for each in range(number, number + count)]
            number += count
            client.notes.write("begin", transaction=transaction, names=names)
            for name in names:
                for ledger in LEDGERS:
                    _publish_in_transaction(client, channel, ledger, f"{name}|{transaction}")
            _end_transaction(client, channel, transaction)
            client.over.wait(POLL_S)

    again_and_again(client, use)


def _publish_in_transaction(client: Client, channel: BlockingChannel, queue: str, name: str) -> None:
    channel.basic_publish(
        "", queue, body_of(name, size_of(client)), pika.BasicProperties(delivery_mode=PERSISTENT)
    )  # fmt: skip


def _end_transaction(client: Client, channel: BlockingChannel, transaction: str) -> bool:
    """Whether it was committed."""
    if client.choose.random() < client.told["rollbacks"]:
        client.notes.write("rolling back", transaction=transaction)
        channel.tx_rollback()
        client.notes.write("rolled back", transaction=transaction)
        return False
    client.notes.write("committing", transaction=transaction)
    channel.tx_commit()
    client.notes.write("committed", transaction=transaction)
    return True


def read(client: Client) -> None:
    """A reader of a stream, from its beginning or its end."""

    def use(connection: str, channel: BlockingChannel) -> None:
        messages: list[tuple[int, str]] = []

        def receive(
            channel: BlockingChannel, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
        ) -> None:
            assert properties.headers is not None
            messages.append((properties.headers["x-stream-offset"], name_of(body)))
            channel.basic_ack(method.delivery_tag)

        channel.basic_qos(prefetch_count=BATCH_MESSAGES)
        start = "first" if client.choose.random() < client.told["from_the_first"] else "next"
        channel.basic_consume(client.told["queue"], receive, arguments={"x-stream-offset": start})
        while not client.over.is_set():
            channel.connection.process_data_events(POLL_S)
            if messages:
                client.notes.write("read", connection=connection, messages=messages)
                messages.clear()

    again_and_again(client, use)


ROLES: Final[dict[str, Callable[[Client], None]]] = {
    "publish": publish, "work": work, "move": move, "book": book, "read": read,
}  # fmt: skip


if __name__ == "__main__":
    Client.run(ROLES)
