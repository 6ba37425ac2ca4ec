"""pika's asynchronous adapters: one service, which reconnects, on the loop of the standard library and on asyncio's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.base_connection import BaseConnection
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique
from tests.support.waiting import eventually

DEADLINE_S = 20.0
ADAPTERS = [SelectConnection, AsyncioConnection]


class Service:
    """Consumes a queue and publishes what it gets to another one, with confirms; connects again when it is cut off.

    Everything happens in callbacks on a thread of its own, as pika's documentation has it: connection, channel,
    queues, confirms and prefetch, consumer.
    """

    def __init__(self, adapter: type[BaseConnection], parameters: pika.ConnectionParameters, names: list[str]) -> None:
        self._adapter = adapter
        self._parameters = parameters
        self._names = names
        self._undeclared = 0
        self._tags: dict[int, int] = {}
        self._published = 0
        self._is_ending = False
        self.channel: Channel | None = None
        self.closed_because: list[BaseException] = []
        self.confirmed = 0
        self.consuming = threading.Event()
        # One loop for all connections that follow one another; without it each SelectConnection has its own.
        self._loop: Any = asyncio.new_event_loop() if adapter is AsyncioConnection else IOLoop()
        self._connection = self._connect()
        self._thread = threading.Thread(target=self._run)

    def _connect(self) -> BaseConnection:
        return self._adapter(
            self._parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=self._on_closed,
            on_close_callback=self._on_closed,
            custom_ioloop=self._loop,
        )

    def _run(self) -> None:
        if isinstance(self._loop, IOLoop):
            self._loop.start()
        else:
            self._loop.run_forever()
        self._loop.close()

    def _on_closed(self, _: BaseConnection, reason: BaseException) -> None:
        self.consuming.clear()
        self.closed_because.append(reason)
        if self._is_ending:
            self._loop.stop()
        else:
            self._loop.call_later(0.05, self._reconnect)

    def _reconnect(self) -> None:
        self._connection = self._connect()

    def _on_channel(self, channel: Channel) -> None:
        self.channel = channel
        self._tags.clear()
        self._published = 0
        self._undeclared = len(self._names)
        channel.basic_qos(prefetch_count=10)
        channel.confirm_delivery(self._on_confirm)
        for name in self._names:
            channel.queue_declare(name, durable=True, callback=self._on_declared)

    def _on_declared(self, _: pika.frame.Method) -> None:
        self._undeclared -= 1
        if not self._undeclared:
            assert self.channel is not None
            self.channel.basic_consume(self._names[0], self._on_message, callback=lambda _: self.consuming.set())

    def _on_message(
        self, channel: Channel, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        channel.basic_publish("", self._names[1], body, properties)
        self._published += 1
        self._tags[self._published] = method.delivery_tag

    def _on_confirm(self, frame: pika.frame.Method) -> None:
        """What has been passed on safely is acknowledged, and not before."""
        assert isinstance(frame.method, pika.spec.Basic.Ack)
        last = frame.method.delivery_tag
        for tag in [tag for tag in self._tags if tag == last or (frame.method.multiple and tag < last)]:
            assert self.channel is not None
            self.channel.basic_ack(self._tags.pop(tag))
            self.confirmed += 1

    def __enter__(self) -> Service:
        self._thread.start()
        assert self.consuming.wait(DEADLINE_S), self.closed_because
        return self

    def __exit__(self, *_: object) -> None:
        def end() -> None:
            self._is_ending = True
            self._connection.close()

        if isinstance(self._loop, IOLoop):
            self._loop.add_callback_threadsafe(end)
        else:
            self._loop.call_soon_threadsafe(end)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def pass_through(endpoint: Endpoint, names: list[str], bodies: list[bytes]) -> list[bytes]:
    """Publish to the first queue, and take from the second what has come out: at least every body once."""
    seen: list[bytes] = []
    with pika.BlockingConnection(endpoint.parameters()) as connection:
        channel = connection.channel()
        for body in bodies:
            channel.basic_publish("", names[0], body, pika.BasicProperties(delivery_mode=2))

        def take() -> bool:
            _, _, body = channel.basic_get(names[1], auto_ack=True)
            if body is not None:
                seen.append(body)
            return set(bodies) <= set(seen)

        eventually(take, "everything has come through")
    return seen


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_messages_are_passed_on_and_then_acknowledged(
    broker: Endpoint, unique: Unique, adapter: type[BaseConnection]
) -> None:
    names = [unique("in"), unique("out")]
    bodies = [b"%d" % number for number in range(200)]
    with Service(adapter, broker.parameters(), names) as service:
        assert pass_through(broker, names, bodies) == bodies
        eventually(lambda: service.confirmed == 200, "all confirms")
    assert isinstance(service.closed_because[-1], pika.exceptions.ConnectionClosedByClient)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("end", [BrokerProcess.terminate, BrokerProcess.kill])
def test_a_service_goes_on_after_a_restart(
    broker_process: BrokerProcess, adapter: type[BaseConnection], end: Callable[[BrokerProcess], object]
) -> None:
    endpoint, names = Endpoint.of_url(broker_process.amqp_url), ["in", "out"]
    with Service(adapter, endpoint.parameters(), names) as service:
        pass_through(endpoint, names, [b"before"])
        end(broker_process)
        eventually(lambda: not service.consuming.is_set(), "the service has noticed")
        broker_process.start()
        assert service.consuming.wait(DEADLINE_S)
        pass_through(endpoint, names, [b"after"])
    if end is BrokerProcess.terminate:
        told = service.closed_because[0]
        assert isinstance(told, pika.exceptions.ConnectionClosedByBroker)
        assert (told.reply_code, told.reply_text) == (
            320,
            "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
        )
