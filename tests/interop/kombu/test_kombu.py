"""kombu, on which Celery stands: pools, simple queues, services that reconnect, delays made of queues and exchanges."""

from __future__ import annotations

import queue as queues
import threading
import time
from collections.abc import Iterator

import kombu
import pytest
from kombu.mixins import ConsumerProducerMixin
from kombu.pools import connections, producers, reset
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    calculate_routing_key,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique, get, ready_count
from tests.support.waiting import eventually

DEADLINE_S = 20.0


@pytest.fixture
def connection(broker: Endpoint) -> Iterator[kombu.Connection]:
    with kombu.Connection(broker.url) as opened:
        yield opened


class TestSimpleQueues:
    def test_a_simple_queue_is_read_like_one_of_the_standard_library(
        self, connection: kombu.Connection, unique: Unique
    ) -> None:
        with connection.SimpleQueue(unique("simple")) as simple:
            for number in range(5):
                simple.put({"number": number})
            eventually(lambda: simple.qsize() == 5, "all messages are there")
            assert simple.clear() == 5
            for number in range(5):
                simple.put({"number": number})
            for number in range(5):
                message = simple.get(timeout=DEADLINE_S)
                assert message.payload == {"number": number}
                message.ack()
            with pytest.raises(simple.Empty):
                simple.get_nowait()

    def test_what_is_requeued_comes_again(self, connection: kombu.Connection, unique: Unique) -> None:
        with connection.SimpleQueue(unique("simple")) as simple:
            simple.put("once more")
            simple.get(timeout=DEADLINE_S).requeue()
            again = simple.get(timeout=DEADLINE_S)
            assert again.delivery_info["redelivered"]
            again.ack()

    def test_a_simple_buffer_needs_no_acknowledgements(self, connection: kombu.Connection, unique: Unique) -> None:
        with connection.SimpleBuffer(unique("buffer")) as buffer:
            buffer.put("a")
            assert buffer.get(timeout=DEADLINE_S).payload == "a"
            with pytest.raises(queues.Empty):
                buffer.get_nowait()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_messages_say_how_they_are_written(connection: kombu.Connection, unique: Unique, serializer: str) -> None:
    name = unique("queue")
    body = {"list": [1, 2.5, None], "text": "Grüße"}
    received = []

    def on_message(payload: object, message: kombu.Message) -> None:
        received.append(payload)
        message.ack()

    with connection.Consumer(kombu.Queue(name), callbacks=[on_message], accept=["json", "pickle"]):
        connection.Producer().publish(
            body, routing_key=name, serializer=serializer, compression="bzip2", headers={"x": 1}, expiration=60
        )
        while not received:
            connection.drain_events(timeout=DEADLINE_S)
    assert received == [body]


class TestPools:
    @pytest.fixture(autouse=True)
    def _closed_pools(self) -> Iterator[None]:
        yield
        reset()

    def test_threads_share_a_few_connections(self, broker: Endpoint, channel: BlockingChannel, unique: Unique) -> None:
        pooled = kombu.Connection(broker.url, transport_options={"confirm_publish": True})
        target = kombu.Queue(unique("queue"), durable=True)
        producers[pooled].limit = connections[pooled].limit = 3

        def publish(number: int) -> None:
            with producers[pooled].acquire(block=True, timeout=DEADLINE_S) as producer:
                producer.publish(number, routing_key=target.name, declare=[target], retry=True)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert ready_count(channel, target.name) == 30

    def test_a_pooled_producer_publishes_again_after_a_restart(self, broker_process: BrokerProcess) -> None:
        pooled = kombu.Connection(broker_process.amqp_url, transport_options={"confirm_publish": True})
        target = kombu.Queue("queue", kombu.Exchange("exchange", "topic"), routing_key="#", durable=True)
        policy = {"interval_start": 0, "interval_step": 0.1, "interval_max": 0.5, "max_retries": 50}

        def publish(body: str) -> None:
            with producers[pooled].acquire(block=True) as producer:
                producer.publish(
                    body, exchange="exchange", routing_key="a.b", declare=[target], retry=True, retry_policy=policy
                )

        publish("before")
        broker_process.kill()
        broker_process.start()
        publish("after")
        with kombu.Connection(broker_process.amqp_url) as reading:
            simple = reading.SimpleQueue(target)
            assert [simple.get(timeout=DEADLINE_S).payload for _ in range(2)] == ["before", "after"]
            simple.close()


class Worker(ConsumerProducerMixin):
    """kombu's pattern of a service: it consumes for ever, answers, and connects again by itself."""

    connect_max_retries = None

    def __init__(self, url: str, requests: kombu.Queue) -> None:
        self.connection = kombu.Connection(url)
        self.requests = requests
        self.seen: list[int] = []
        self.consuming = threading.Event()
        self.thread = threading.Thread(target=self.run, kwargs={"safety_interval": 0.05})

    def get_consumers(self, consumer: type[kombu.Consumer], channel: object) -> list[kombu.Consumer]:
        return [consumer([self.requests], on_message=self.on_message, accept=["json"], prefetch_count=2)]

    def on_consume_ready(self, *_: object, **__: object) -> None:
        self.consuming.set()

    def on_message(self, message: kombu.Message) -> None:
        self.seen.append(message.payload)
        if "reply_to" in message.properties:
            self.producer.publish(
                2 * message.payload,
                exchange="",
                routing_key=message.properties["reply_to"],
                correlation_id=message.properties["correlation_id"],
                retry=True,
            )
        message.ack()

    def __enter__(self) -> Worker:
        self.thread.start()
        assert self.consuming.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.should_stop = True
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


def test_a_service_answers_where_it_is_told_to(broker: Endpoint, connection: kombu.Connection, unique: Unique) -> None:
    requests = kombu.Queue(unique("requests"))
    answers: list[tuple[str, int]] = []
    # A name of its own: kombu declares a queue again when it is consumed, and the broker's own names are reserved.
    replies = kombu.Queue(unique("replies"), exclusive=True, auto_delete=True)

    def on_answer(payload: int, message: kombu.Message) -> None:
        answers.append((message.properties["correlation_id"], payload))

    with Worker(broker.url, requests), connection.Consumer(replies, callbacks=[on_answer], no_ack=True):
        for number in range(10):
            connection.Producer().publish(
                number, routing_key=requests.name, reply_to=replies.name, correlation_id=str(number)
            )
        while len(answers) < 10:
            connection.drain_events(timeout=DEADLINE_S)
    assert answers == [(str(number), 2 * number) for number in range(10)]


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_service_goes_on_after_a_restart(broker_process: BrokerProcess, end: str) -> None:
    requests = kombu.Queue("requests", durable=True)

    def publish(number: int) -> None:
        with kombu.Connection(broker_process.amqp_url) as connection:
            connection.Producer().publish(number, routing_key="requests", declare=[requests], delivery_mode=2)

    with Worker(broker_process.amqp_url, requests) as worker:
        publish(1)
        eventually(lambda: worker.seen == [1], "a delivery before the restart")
        worker.consuming.clear()
        getattr(broker_process, end)()
        broker_process.start()
        assert worker.consuming.wait(DEADLINE_S)
        publish(2)
        # A kill may come before the first one's acknowledgement is on the disk; then it is delivered once more.
        eventually(lambda: worker.seen[-1] == 2, "a delivery after the restart")
        assert set(worker.seen) == {1, 2}


def test_the_next_of_several_urls_is_taken_when_one_does_not_answer(broker: Endpoint, unique: Unique) -> None:
    name = unique("queue")
    # Nobody listens on port 1.
    with kombu.Connection(["amqp://127.0.0.1:1//", broker.url]) as connection:
        connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0.1)
        with connection.SimpleQueue(name) as simple:
            simple.put("found")
            assert simple.get(timeout=DEADLINE_S).payload == "found"


@pytest.mark.on_request
def test_heartbeats_keep_an_idle_connection(broker: Endpoint, unique: Unique) -> None:
    with kombu.Connection(broker.url, heartbeat=2) as connection:
        connection.connect()
        assert connection.get_heartbeat_interval() == 2
        for _ in range(60):
            connection.heartbeat_check(rate=2)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
        with connection.SimpleQueue(unique("queue")) as simple:
            simple.put("still here")
            assert simple.get(timeout=DEADLINE_S).payload == "still here"


def test_a_delay_is_a_way_through_queues_of_powers_of_two(
    connection: kombu.Connection, channel: BlockingChannel, unique: Unique
) -> None:
    # What Celery uses with quorum queues: 28 queues whose messages expire after 1, 2, 4... seconds, each before a topic
    # exchange that looks at one bit of the delay in the routing key. The longest waits for more than four years.
    name = unique("work")
    try:
        declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
        work = kombu.Queue(name, kombu.Exchange(name, "topic"), routing_key=name)
        work(connection.default_channel).declare()
        bind_queue_to_native_delayed_delivery_exchange(connection, work)
        sent_at = time.time()
        for seconds in (3, 1, 2, 2**27 + 1):
            connection.Producer().publish(
                seconds, exchange=level_name(MAX_LEVEL), routing_key=calculate_routing_key(seconds, name)
            )
        arrived: dict[int, float] = {}

        def on_arrival(seconds: int, message: kombu.Message) -> None:
            arrived[seconds] = time.time()
            message.ack()

        with connection.Consumer(work, callbacks=[on_arrival]):
            while len(arrived) < 3:
                connection.drain_events(timeout=DEADLINE_S)
        assert all(at >= sent_at + seconds for seconds, at in arrived.items())
        assert get(channel, level_name(MAX_LEVEL)).body == b"%d" % (2**27 + 1)
    finally:
        for level in range(MAX_LEVEL + 1):
            channel.queue_delete(level_name(level))
            channel.exchange_delete(level_name(level))
        channel.exchange_delete(CELERY_DELAYED_DELIVERY_EXCHANGE)
