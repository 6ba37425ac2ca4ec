"""What the behaviour tests need around pika's blocking client: collected deliveries, expected refusals, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from tests.support.waiting import DEADLINE_S, eventually


@dataclass(frozen=True)
class Delivery:
    channel: BlockingChannel
    method: pika.spec.Basic.Deliver
    properties: pika.BasicProperties
    body: bytes

    @property
    def tag(self) -> int:
        return int(self.method.delivery_tag)

    @property
    def redelivered(self) -> bool:
        return bool(self.method.redelivered)

    @property
    def headers(self) -> dict[str, Any]:
        return self.properties.headers or {}

    def ack(self) -> None:
        self.channel.basic_ack(self.tag)


class Inbox:
    """One consumer and what it has received, in order."""

    def __init__(
        self,
        channel: BlockingChannel,
        queue: str,
        *,
        auto_ack: bool = False,
        on_delivery: Callable[[Delivery], object] | None = None,
        **consume: Any,
    ) -> None:
        self.channel = channel
        self.deliveries: list[Delivery] = []
        self._on_delivery = on_delivery
        self.consumer_tag: str = channel.basic_consume(queue, self._receive, auto_ack=auto_ack, **consume)

    def _receive(
        self,
        channel: BlockingChannel,
        method: pika.spec.Basic.Deliver,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        delivery = Delivery(channel, method, properties, body)
        self.deliveries.append(delivery)
        if self._on_delivery is not None:
            self._on_delivery(delivery)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    def wait(self, count: int, *, deadline_s: float = DEADLINE_S) -> list[Delivery]:
        """Wait for the first `count` deliveries and return them; more than `count` is a failure."""
        eventually(
            lambda: len(self.deliveries) >= count,
            f"{count} deliveries",
            deadline_s=deadline_s,
            step=lambda: turn(self.channel),
        )
        assert len(self.deliveries) == count, f"{len(self.deliveries)} deliveries instead of {count}: {self.bodies}"
        return self.deliveries

    def cancel(self) -> None:
        self.channel.basic_cancel(self.consumer_tag)


def turn(channel: BlockingChannel) -> None:
    """Let pika read and dispatch what has arrived."""
    channel.connection.process_data_events(time_limit=0.01)


def ready_count(channel: BlockingChannel, queue: str) -> int:
    """Messages that wait in `queue`, without those delivered and not yet acknowledged."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def consumer_count(channel: BlockingChannel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.consumer_count)


def wait_ready(channel: BlockingChannel, queue: str, count: int) -> None:
    """Wait until exactly `count` messages are ready: publishes, requeues and expiries may take their time."""
    seen: list[int] = []

    def reached() -> bool:
        seen.append(ready_count(channel, queue))
        return seen[-1] == count

    try:
        eventually(reached, f"{count} messages ready in {queue}", step=lambda: turn(channel))
    except AssertionError as error:
        raise AssertionError(f"{error}; counts seen: {seen[-5:]}") from None


def get(channel: BlockingChannel, queue: str, *, auto_ack: bool = True) -> Delivery:
    """The message at the head of `queue`, which must be there."""
    method, properties, body = channel.basic_get(queue, auto_ack=auto_ack)
    assert method is not None, f"{queue} is empty"
    return Delivery(channel, method, properties, body)


def drain(channel: BlockingChannel, queue: str) -> list[bytes]:
    """Take everything that is ready."""
    bodies: list[bytes] = []
    while True:
        method, _, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return bodies
        bodies.append(body)


def publish(channel: BlockingChannel, queue: str, *bodies: bytes, **properties: Any) -> None:
    """Publish to `queue` through the default exchange."""
    for body in bodies:
        channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


@contextmanager
def channel_refused(code: int, text: str | None = None) -> Iterator[None]:
    """The broker closes the channel with `code` and, when given, exactly `text`."""
    with pytest.raises(ChannelClosedByBroker) as caught:
        yield
    assert caught.value.reply_code == code, caught.value
    if text is not None:
        assert caught.value.reply_text == text


@contextmanager
def connection_refused(code: int, text: str | None = None) -> Iterator[None]:
    """The broker closes the connection with `code` and, when given, exactly `text`."""
    with pytest.raises(ConnectionClosedByBroker) as caught:
        yield
    assert caught.value.reply_code == code, caught.value
    if text is not None:
        assert caught.value.reply_text == text


Connect = Callable[..., BlockingConnection]
Unique = Callable[[str], str]
