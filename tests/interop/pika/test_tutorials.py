"""The six RabbitMQ tutorials with pika: what each of them shows, as a test."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.endpoint import Endpoint
from tests.support.pika_client import Connect, Delivery, Inbox, Unique, drain, publish, turn, wait_ready
from tests.support.waiting import eventually


def test_one_hello_world(connect: Connect, unique: Unique) -> None:
    name = unique("hello")
    with connect() as sending:
        channel = sending.channel()
        channel.queue_declare(queue=name)
        channel.basic_publish(exchange="", routing_key=name, body="Hello World!")

    channel = connect().channel()
    channel.queue_declare(queue=name)
    received: list[bytes] = []

    def callback(
        ch: BlockingChannel, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        received.append(body)
        ch.stop_consuming()

    channel.basic_consume(queue=name, on_message_callback=callback, auto_ack=True)
    channel.start_consuming()
    assert received == [b"Hello World!"]


class TestTwoWorkQueues:
    @pytest.fixture
    def task_queue(self, connect: Connect, unique: Unique) -> str:
        name = unique("task_queue")
        connect().channel().queue_declare(queue=name, durable=True)
        return name

    def test_tasks_of_a_worker_that_dies_are_done_by_another(self, connect: Connect, task_queue: str) -> None:
        publish(connect().channel(), task_queue, b"First.", b"Second..", b"Third...", delivery_mode=2)
        dying = connect()
        Inbox(dying.channel(), task_queue).wait(3)
        dying.close()

        surviving = connect().channel()
        inbox = Inbox(surviving, task_queue, on_delivery=Delivery.ack)
        inbox.wait(3)
        assert inbox.bodies == [b"First.", b"Second..", b"Third..."]
        assert all(delivery.redelivered for delivery in inbox.deliveries)

    def test_fair_dispatch_gives_a_free_worker_what_a_busy_one_would_get(
        self, connect: Connect, task_queue: str
    ) -> None:
        connection = connect()
        busy, free = connection.channel(), connection.channel()
        for channel in (busy, free):
            channel.basic_qos(prefetch_count=1)
        stuck = Inbox(busy, task_queue)
        publish(busy, task_queue, b"a long task", delivery_mode=2)
        stuck.wait(1)
        quick = Inbox(free, task_queue, on_delivery=Delivery.ack)
        publish(busy, task_queue, *[b"a short task"] * 9, delivery_mode=2)
        quick.wait(9)
        assert len(stuck.deliveries) == 1


def test_three_publish_subscribe(connect: Connect, unique: Unique) -> None:
    logs = unique("logs")
    subscribers = []
    for _ in range(3):
        channel = connect().channel()
        channel.exchange_declare(exchange=logs, exchange_type="fanout")
        queue_name = channel.queue_declare(queue="", exclusive=True).method.queue
        channel.queue_bind(exchange=logs, queue=queue_name)
        subscribers.append(Inbox(channel, queue_name, auto_ack=True))
    emitter = connect().channel()
    emitter.exchange_declare(exchange=logs, exchange_type="fanout")
    emitter.basic_publish(exchange=logs, routing_key="", body="info: Hello World!")
    for subscriber in subscribers:
        subscriber.wait(1)
        assert subscriber.bodies == [b"info: Hello World!"]


def test_four_routing(connect: Connect, unique: Unique) -> None:
    exchange = unique("direct_logs")
    channel = connect().channel()
    channel.exchange_declare(exchange=exchange, exchange_type="direct")

    def receiver(*severities: str) -> Inbox:
        queue_name = channel.queue_declare(queue="", exclusive=True).method.queue
        for severity in severities:
            channel.queue_bind(exchange=exchange, queue=queue_name, routing_key=severity)
        return Inbox(channel, queue_name, auto_ack=True)

    to_disk, to_screen = receiver("warning", "error"), receiver("info", "warning", "error")
    for severity in ("info", "debug", "error", "warning"):
        channel.basic_publish(exchange=exchange, routing_key=severity, body=severity)
    to_disk.wait(2)
    to_screen.wait(3)
    assert to_disk.bodies == [b"error", b"warning"]
    assert to_screen.bodies == [b"info", b"error", b"warning"]


def test_five_topics(connect: Connect, unique: Unique) -> None:
    exchange = unique("topic_logs")
    channel = connect().channel()
    channel.exchange_declare(exchange=exchange, exchange_type="topic")

    def receiver(*keys: str) -> Inbox:
        queue_name = channel.queue_declare(queue="", exclusive=True).method.queue
        for key in keys:
            channel.queue_bind(exchange=exchange, queue=queue_name, routing_key=key)
        return Inbox(channel, queue_name, auto_ack=True)

    # The animals of the tutorial: speed, colour, species.
    everything, orange = receiver("#"), receiver("*.orange.*")
    rabbits_and_lazy = receiver("*.*.rabbit", "lazy.#")
    keys = [
        "quick.orange.rabbit",
        "lazy.orange.elephant",
        "quick.orange.fox",
        "lazy.brown.fox",
        "lazy.pink.rabbit",
        "quick.brown.fox",
        "orange",
        "quick.orange.new.rabbit",
        "lazy.orange.new.rabbit",
    ]
    for key in keys:
        channel.basic_publish(exchange=exchange, routing_key=key, body=key)
    everything.wait(9)
    orange.wait(3)
    rabbits_and_lazy.wait(5)
    assert everything.bodies == [key.encode() for key in keys]
    assert orange.bodies == [key.encode() for key in keys[:3]]
    assert rabbits_and_lazy.bodies == [
        b"quick.orange.rabbit",
        b"lazy.orange.elephant",
        b"lazy.brown.fox",
        b"lazy.pink.rabbit",
        b"lazy.orange.new.rabbit",
    ]


class TestSixRemoteProcedureCall:
    @pytest.fixture
    def rpc_queue(self, broker: Endpoint, unique: Unique) -> Iterator[str]:
        """A server that computes Fibonacci numbers, on a thread of its own."""
        name = unique("rpc_queue")
        connection = pika.BlockingConnection(broker.parameters())
        channel = connection.channel()
        channel.queue_declare(queue=name)

        def fibonacci(n: int) -> int:
            previous, current = 0, 1
            for _ in range(n):
                previous, current = current, previous + current
            return previous

        def on_request(
            ch: BlockingChannel, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
        ) -> None:
            ch.basic_publish(
                exchange="",
                routing_key=str(properties.reply_to),
                properties=pika.BasicProperties(correlation_id=properties.correlation_id),
                body=str(fibonacci(int(body))),
            )
            ch.basic_ack(delivery_tag=method.delivery_tag)

        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue=name, on_message_callback=on_request)
        server = threading.Thread(target=channel.start_consuming)
        server.start()
        yield name
        connection.add_callback_threadsafe(channel.stop_consuming)
        server.join(20)
        assert not server.is_alive()
        connection.close()

    def test_each_caller_gets_the_answer_to_its_own_question(self, connect: Connect, rpc_queue: str) -> None:
        channel = connect().channel()
        callback_queue = channel.queue_declare(queue="", exclusive=True).method.queue
        answers = Inbox(channel, callback_queue, auto_ack=True)
        asked: dict[str, int] = {}
        for n in (30, 1, 10, 0, 20):
            correlation_id = str(uuid.uuid4())
            asked[correlation_id] = n
            channel.basic_publish(
                exchange="",
                routing_key=rpc_queue,
                properties=pika.BasicProperties(reply_to=callback_queue, correlation_id=correlation_id),
                body=str(n),
            )
        answers.wait(5)
        results = {asked[str(answer.properties.correlation_id)]: int(answer.body) for answer in answers.deliveries}
        assert results == {30: 832040, 1: 1, 10: 55, 0: 0, 20: 6765}


def test_publisher_confirms_one_by_one_and_the_generator_consumer(connect: Connect, unique: Unique) -> None:
    name = unique("confirmed")
    channel = connect().channel()
    channel.queue_declare(name, durable=True)
    channel.confirm_delivery()
    for number in range(50):
        publish(channel, name, b"%d" % number, delivery_mode=2)
    received: list[bytes] = []
    for method, _, body in channel.consume(name, inactivity_timeout=5):
        assert method is not None, "the generator ran dry"
        received.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(received) == 50:
            break
    assert channel.cancel() == 0
    assert received == [b"%d" % number for number in range(50)]


def test_an_abandoned_generator_gives_back_what_was_not_handed_out(connect: Connect, unique: Unique) -> None:
    name = unique("abandoned")
    channel = connect().channel()
    channel.queue_declare(name)
    publish(channel, name, *[b"%d" % number for number in range(10)])
    generator = channel.consume(name)
    method, _, body = next(generator)
    assert body == b"0"
    channel.basic_ack(method.delivery_tag)
    channel.cancel()
    wait_ready(channel, name, 9)
    assert drain(channel, name) == [b"%d" % number for number in range(1, 10)]


def test_the_select_connection_works_as_the_blocking_one_does(broker: Endpoint, unique: Unique) -> None:
    name = unique("select")
    received: list[bytes] = []
    confirmed: list[int] = []
    connection: pika.SelectConnection

    def on_open(opened: pika.SelectConnection) -> None:
        opened.channel(on_open_callback=on_channel)

    def on_channel(channel: pika.channel.Channel) -> None:
        def on_declared(_: object) -> None:
            channel.confirm_delivery(lambda frame: confirmed.append(frame.method.delivery_tag), on_selected)

        def on_selected(_: object) -> None:
            channel.basic_consume(name, on_message)
            for number in range(20):
                channel.basic_publish("", name, b"%d" % number)

        channel.queue_declare(name, callback=on_declared)

    def on_message(
        channel: pika.channel.Channel, method: pika.spec.Basic.Deliver, _: pika.BasicProperties, body: bytes
    ) -> None:
        received.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(received) == 20:
            connection.ioloop.call_later(0, close_when_confirmed)

    def close_when_confirmed() -> None:
        if confirmed and max(confirmed) == 20:
            connection.close()
        else:
            connection.ioloop.call_later(0.01, close_when_confirmed)

    errors: list[BaseException] = []

    def on_open_error(_: object, error: BaseException) -> None:
        errors.append(error)
        connection.ioloop.stop()

    def on_closed(_: object, reason: BaseException) -> None:
        connection.ioloop.stop()

    connection = pika.SelectConnection(broker.parameters(), on_open, on_open_error, on_closed)
    connection.ioloop.call_later(20, connection.ioloop.stop)
    connection.ioloop.start()
    # pika leaves the loop's own sockets to whoever ran it.
    connection.ioloop.close()
    assert not errors
    assert received == [b"%d" % number for number in range(20)]
    assert max(confirmed) == 20


def test_threads_hand_their_work_to_the_connections_thread(connect: Connect, unique: Unique) -> None:
    # The way pika's documentation recommends for long tasks: work on threads, acknowledge through a callback.
    name = unique("threaded")
    channel = connect().channel()
    channel.queue_declare(name)
    publish(channel, name, *[b"%d" % number for number in range(20)])
    channel.basic_qos(prefetch_count=5)
    done: list[int] = []
    threads: list[threading.Thread] = []

    def finish(delivery: Delivery) -> None:
        delivery.ack()
        done.append(int(delivery.body))

    def start_work(delivery: Delivery) -> None:
        def work() -> None:
            channel.connection.add_callback_threadsafe(lambda: finish(delivery))

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    Inbox(channel, name, on_delivery=start_work)
    eventually(lambda: len(done) == 20, "all work done", step=lambda: turn(channel))
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(20))
