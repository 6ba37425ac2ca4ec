"""Share groups, worked by librdkafka's share consumer: many workers, some that die, poison, and a broker that dies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pika
import pytest
from confluent_kafka import AcknowledgeType, Message, Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from tests.kafka.conftest import CreateTopic, Unique, wait_for_topic
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import quiet
from tests.support.share_worker import ShareWorker, WorkerProcess, accept, share_consumer
from tests.support.waiting import DEADLINE_S, eventually

Connect = Callable[[], BlockingChannel]

WORKERS = 50
RECORDS = 5_000


def produce(servers: str, topic: str, numbers: range, *, keyed: bool = True) -> set[bytes]:
    """Records with these numbers; their values."""
    producer = Producer(quiet(servers) | {"linger.ms": 5, "batch.num.messages": 100})
    for number in numbers:
        while True:
            try:
                producer.produce(topic, b"%d" % number, key=b"%d" % number if keyed else None)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(DEADLINE_S) == 0
    return {b"%d" % number for number in numbers}


def configure(admin: AdminClient, group: str, **configs: str) -> None:
    entries = [
        ConfigEntry("share." + name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in configs.items()
    ]
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result(DEADLINE_S)


@pytest.fixture
def group(admin: AdminClient, unique: Unique) -> str:
    """A group that begins with what there is."""
    name = unique("share")
    configure(admin, name, auto_offset_reset="earliest")
    return name


def test_fifty_workers_work_off_a_topic(kafka: str, create_topic: CreateTopic, group: str) -> None:
    topic = create_topic(4)
    expected = produce(kafka, topic, range(RECORDS))
    workers = [ShareWorker(kafka, group, topic, max_poll_records=20) for _ in range(WORKERS)]
    try:
        expected |= produce(kafka, topic, range(RECORDS, RECORDS + 1_000))
        eventually(
            lambda: sum(len(worker.done) for worker in workers) >= len(expected),
            "all records done",
            deadline_s=3 * DEADLINE_S,
        )
    finally:
        threads = [threading.Thread(target=worker.leave) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done = Counter(value for worker in workers for value in worker.done)
    assert set(done) == expected
    assert not [value for value, times in done.items() if times > 1], "a record was done twice"


def test_what_a_worker_held_that_was_killed_comes_again(kafka: str, topic: str, group: str) -> None:
    expected = produce(kafka, topic, range(100))
    lost = WorkerProcess(kafka, group, topic)
    lost.wait_for(1)
    lost.kill()
    with ShareWorker(kafka, group, topic) as worker:
        eventually(lambda: len(worker.done) >= 100, "all records done")
    assert set(worker.done) == expected


def test_what_a_worker_holds_for_too_long_comes_again(admin: AdminClient, kafka: str, topic: str, group: str) -> None:
    # The shortest that Kafka allows.
    configure(admin, group, record_lock_duration_ms="15000")
    produce(kafka, topic, range(20))
    idle = share_consumer(kafka, group)
    idle.subscribe([topic])
    held: list[Message] = []
    eventually(lambda: bool(held.extend(idle.poll(0.2)) or held), "records for the idle worker")
    since = time.monotonic()
    with ShareWorker(kafka, group, topic) as worker:
        eventually(lambda: len(worker.done) >= 20, "all records done", deadline_s=15 + DEADLINE_S)
    assert {message.value() for message in held} <= set(worker.done)
    assert time.monotonic() - since > 10, "a lock did not last"
    idle.close()


def test_poison_is_given_up_after_the_limit(admin: AdminClient, kafka: str, topic: str, group: str) -> None:
    configure(admin, group, delivery_count_limit="3")
    produce(kafka, topic, range(10))

    def decide(message: Message) -> AcknowledgeType:
        return AcknowledgeType.RELEASE if message.value() == b"4" else AcknowledgeType.ACCEPT

    with ShareWorker(kafka, group, topic, decide) as worker:
        eventually(lambda: len(worker.done) >= 9, "the others done")
        times = Counter(value for value, _, _ in worker.seen)
        eventually(lambda: sum(value == b"4" for value, _, _ in worker.seen) == 3, "the poison delivered three times")
        produce(kafka, topic, range(10, 20))
        eventually(lambda: len(worker.done) >= 19, "those after it done")
    times = Counter(value for value, _, _ in worker.seen)
    assert times[b"4"] == 3
    assert times.total() == 22


def test_what_was_done_stays_done_when_the_broker_is_killed(kafka_process: BrokerProcess) -> None:
    servers = kafka_process.kafka_address
    admin = AdminClient(quiet(servers))
    admin.create_topics([NewTopic("orders", 2, 1)])["orders"].result(DEADLINE_S)
    wait_for_topic(admin, "orders", 2)
    configure(admin, "g", auto_offset_reset="earliest")
    produce(servers, "orders", range(500))

    def decide(message: Message) -> AcknowledgeType:
        return AcknowledgeType.RELEASE if (message.value() or b"").endswith(b"7") else AcknowledgeType.ACCEPT

    with ShareWorker(servers, "g", "orders", decide, max_poll_records=50) as worker:
        eventually(lambda: len(worker.done) >= 300, "most of them done")
    kafka_process.kill()
    kafka_process.start()
    with ShareWorker(servers, "g", "orders") as second:
        eventually(lambda: len(second.done) + len(worker.done) >= 450, "the others done")
        # What was given back to often before is not among them.
        eventually(lambda: not lag(admin, "g", "orders"), "nothing left")
    assert not set(second.done) & set(worker.done), "what was done has come again"


def lag(admin: AdminClient, group: str, topic: str) -> int:
    """Whether there is something left: asked for by another worker, which would be given it."""
    consumer = share_consumer(admin_servers(admin), group)
    consumer.subscribe([topic])
    left = len(consumer.poll(0.5))
    consumer.close()
    return left


def admin_servers(admin: AdminClient) -> str:
    broker = next(iter(admin.list_topics(timeout=DEADLINE_S).brokers.values()))
    return f"{broker.host}:{broker.port}"


class TestQueueOverATopic:
    """An AMQP queue over a topic, which is a share group of the same name."""

    @pytest.fixture
    def servers(self, kafka_process: BrokerProcess) -> str:
        servers = kafka_process.kafka_address
        admin = AdminClient(quiet(servers))
        admin.create_topics([NewTopic("t", 3, 1)])["t"].result(DEADLINE_S)
        wait_for_topic(admin, "t", 3)
        return servers

    @pytest.fixture
    def connect(self, kafka_process: BrokerProcess) -> Iterator[Connect]:
        """Opens channels, and closes their connections after the test."""
        opened: list[pika.BlockingConnection] = []

        def connect() -> BlockingChannel:
            opened.append(pika.BlockingConnection(pika.URLParameters(kafka_process.amqp_url)))
            return opened[-1].channel()

        yield connect
        for connection in opened:
            # That to a broker that was killed is closed already, as far as it knows.
            with suppress(AMQPError):
                connection.close()

    def declare(self, channel: BlockingChannel) -> BlockingChannel:
        channel.queue_declare("dead", durable=True)
        arguments = {
            "x-queue-type": "share",
            "x-source-topic": "t",
            "x-stream-offset": "first",
            "x-delivery-limit": 2,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        }
        channel.queue_declare("q", durable=True, arguments=arguments)
        return channel

    def test_consumers_of_both_protocols_compete(self, connect: Connect, servers: str) -> None:
        channel = self.declare(connect())
        channel.basic_qos(prefetch_count=10)
        done: list[bytes] = []

        def work(_channel: object, method: pika.spec.Basic.Deliver, _properties: object, body: bytes) -> None:
            done.append(body)
            channel.basic_ack(int(method.delivery_tag))

        channel.basic_consume("q", work)
        with ShareWorker(servers, "q", "t", max_poll_records=10) as worker:
            expected = produce(servers, "t", range(2_000))

            def all_done() -> bool:
                channel.connection.process_data_events(0.05)
                return len(done) + len(worker.done) >= len(expected)

            eventually(all_done, "all records done")
        assert Counter(done + worker.done) == Counter(expected)
        assert done
        assert worker.done

    def test_poison_goes_to_the_dead_letter_queue_whoever_refuses_it(self, connect: Connect, servers: str) -> None:
        channel = self.declare(connect())

        def decide(message: Message) -> AcknowledgeType:
            if message.value() == b"3":
                return AcknowledgeType.REJECT
            return AcknowledgeType.RELEASE if message.value() == b"5" else AcknowledgeType.ACCEPT

        produce(servers, "t", range(8))
        dead: dict[bytes, str] = {}

        def died() -> bool:
            method, properties, body = channel.basic_get("dead", auto_ack=True)
            if method is not None:
                dead[body] = properties.headers["x-last-death-reason"]
            return len(dead) == 2

        with ShareWorker(servers, "q", "t", decide) as worker:
            eventually(died, "two dead letters")
        assert dead == {b"3": "rejected", b"5": "delivery_limit"}
        assert sorted(worker.done) == [b"0", b"1", b"2", b"4", b"6", b"7"]
        assert channel.queue_declare("q", passive=True).method.message_count == 0

    def test_it_goes_on_where_it_was_when_the_broker_is_killed(
        self, kafka_process: BrokerProcess, connect: Connect, servers: str
    ) -> None:
        channel = self.declare(connect())
        expected = produce(servers, "t", range(100))
        first: list[bytes] = []
        for method, _, body in channel.consume("q", inactivity_timeout=DEADLINE_S):
            assert method is not None
            if len(first) == 40:
                break
            first.append(body)
            channel.basic_ack(method.delivery_tag)
        # Whoever declares again waits for what was done before.
        channel.queue_declare("barrier", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "barrier", b"")
        kafka_process.kill()
        with suppress(AMQPError):
            channel.connection.close()
        kafka_process.start()
        channel = connect()
        second: list[bytes] = []
        while True:
            method, _, body = channel.basic_get("q", auto_ack=True)
            if method is None:
                break
            second.append(body)
        assert Counter(first + second) == Counter(expected)


def test_a_worker_is_told_what_became_of_each_record(kafka: str, topic: str, group: str) -> None:
    produce(kafka, topic, range(3))
    with ShareWorker(kafka, group, topic, accept) as worker:
        eventually(lambda: len(worker.done) == 3, "three records done")
    assert [offset for _, _, offset in worker.seen] == [0, 1, 2]
