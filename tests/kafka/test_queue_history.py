"""A queue that keeps its history: work done an hour ago can be done again.

It is an ordinary queue to its workers. Its log stays readable after a message was settled, for as long as
`x-retention-ms` says: as a read-only topic of the queue's name for Kafka's clients, and by rewinding the queue itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import confluent_kafka
import pika
import pika.exceptions
import pytest
from confluent_kafka.admin import AdminClient
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess, run_operator_command
from tests.support.kafka_client import quiet, read_to_the_end
from tests.support.pika_client import Delivery, channel_refused, drain, get, numbered, publish, ready_count, wait_ready
from tests.support.waiting import DEADLINE_S, eventually

HOUR_MS = 3_600_000


@pytest.fixture
def channel(kafka_process: BrokerProcess) -> Iterator[BlockingChannel]:
    connection = connected(kafka_process)
    try:
        yield connection
    finally:
        # A test may have killed the broker.
        with suppress(pika.exceptions.AMQPError):
            connection.connection.close()


def connected(process: BrokerProcess) -> BlockingChannel:
    channel = pika.BlockingConnection(pika.URLParameters(process.amqp_url)).channel()
    channel.confirm_delivery()
    return channel


def declare(channel: BlockingChannel, name: str = "work", **arguments: object) -> None:
    channel.queue_declare(name, durable=True, arguments={"x-retention-ms": HOUR_MS, **arguments})


def rewind(process: BrokerProcess, *arguments: str) -> str:
    return run_operator_command(process.data, "rewind", *arguments).strip()


def test_what_was_worked_off_is_a_topic_for_kafka(channel: BlockingChannel, kafka_process: BrokerProcess) -> None:
    declare(channel)
    publish(channel, "work", *numbered(100))
    assert drain(channel, "work") == numbered(100)
    assert ready_count(channel, "work") == 0
    records = read_to_the_end(kafka_process.kafka_address, "work")
    assert [record.value for record in records] == numbered(100)


def test_the_topic_of_a_queue_is_read_only(channel: BlockingChannel, kafka_process: BrokerProcess) -> None:
    declare(channel)
    producer = confluent_kafka.Producer(quiet(kafka_process.kafka_address) | {"message.timeout.ms": 20_000})
    errors: list[confluent_kafka.KafkaError | None] = []
    producer.produce("work", b"sneaked in", on_delivery=lambda error, message: errors.append(error))
    producer.flush(DEADLINE_S)
    assert errors[0] is not None
    assert errors[0].code() == confluent_kafka.KafkaError.TOPIC_EXCEPTION
    admin = AdminClient(quiet(kafka_process.kafka_address))
    deletion = admin.delete_topics(["work"], request_timeout=DEADLINE_S)["work"].exception(DEADLINE_S)
    assert isinstance(deletion, confluent_kafka.KafkaException)
    assert ready_count(channel, "work") == 0


def test_rewound_to_an_offset_the_work_is_done_again(channel: BlockingChannel, kafka_process: BrokerProcess) -> None:
    declare(channel)
    publish(channel, "work", *numbered(10))
    assert drain(channel, "work") == numbered(10)
    publish(channel, "work", b"new")
    assert rewind(kafka_process, "work", "--to-offset", "6") == "4 to be done again, from offset 6"
    wait_ready(channel, "work", 5)
    first = get(channel, "work")
    assert first.body == numbered(10)[6]
    assert drain(channel, "work") == [*numbered(10)[7:], b"new"]


def test_rewound_to_a_time_the_work_since_then_is_done_again(
    channel: BlockingChannel, kafka_process: BrokerProcess
) -> None:
    declare(channel)
    publish(channel, "work", *numbered(10))
    turned = time.time()
    while time.time() < turned + 0.01:
        # The clock of the broker has to go on as well; it is the same.
        channel.connection.process_data_events(0.005)
    publish(channel, "work", b"after")
    assert len(drain(channel, "work")) == 11
    assert rewind(kafka_process, "work", "--to-time", f"{turned:.3f}").startswith("1 to be done again")
    wait_ready(channel, "work", 1)
    assert drain(channel, "work") == [b"after"]


def test_what_is_in_a_worker_s_hands_is_not_given_to_another_by_a_rewind(
    channel: BlockingChannel, kafka_process: BrokerProcess
) -> None:
    declare(channel)
    publish(channel, "work", *numbered(3))
    held = get(channel, "work", auto_ack=False)
    assert drain(channel, "work") == numbered(3)[1:]
    rewind(kafka_process, "work", "--to-offset", "0")
    wait_ready(channel, "work", 2)
    assert drain(channel, "work") == numbered(3)[1:]
    channel.basic_ack(held.tag)
    wait_ready(channel, "work", 0)


def test_history_and_what_is_still_to_be_done_survive_a_kill(kafka_process: BrokerProcess) -> None:
    channel = connected(kafka_process)
    declare(channel)
    publish(channel, "work", *numbered(50))
    for _ in range(20):
        get(channel, "work", auto_ack=True)
    # A declaration answered after the acknowledgements: they are on the disk with it.
    publish(channel, "work", b"last")
    kafka_process.kill()
    with suppress(pika.exceptions.AMQPError):
        channel.connection.close()
    kafka_process.start()
    channel = connected(kafka_process)
    declare(channel)
    left = drain(channel, "work")
    assert left == [*numbered(50)[20:], b"last"]
    records = read_to_the_end(kafka_process.kafka_address, "work")
    assert len(records) == 51
    rewind(kafka_process, "work", "--to-offset", "0")
    wait_ready(channel, "work", 51)
    channel.connection.close()


def test_poison_goes_to_the_dead_letter_queue_and_can_be_worked_off_again(
    channel: BlockingChannel, kafka_process: BrokerProcess
) -> None:
    channel.queue_declare("dead", durable=True)
    declare(channel, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    publish(channel, "work", b"good", b"poison")
    for _ in range(2):
        delivery: Delivery = get(channel, "work", auto_ack=False)
        if delivery.body == b"poison":
            channel.basic_reject(delivery.tag, requeue=False)
        else:
            channel.basic_ack(delivery.tag)
    wait_ready(channel, "dead", 1)
    dead = get(channel, "dead")
    assert (dead.body, dead.headers["x-first-death-queue"]) == (b"poison", "work")
    rewind(kafka_process, "work", "--to-offset", "1")
    wait_ready(channel, "work", 1)


def test_a_queue_with_history_is_bound_and_deleted_as_any_other(
    channel: BlockingChannel, kafka_process: BrokerProcess
) -> None:
    declare(channel)
    channel.exchange_declare("shop", "topic", durable=True)
    channel.queue_bind("work", "shop", "orders.*")
    channel.basic_publish("shop", "orders.new", b"one")
    wait_ready(channel, "work", 1)
    channel.queue_delete("work")
    admin = AdminClient(quiet(kafka_process.kafka_address))
    eventually(lambda: "work" not in admin.list_topics(timeout=DEADLINE_S).topics, "the topic to be gone")
    # The name is free for what has no history.
    channel.queue_declare("work", durable=True)
    assert ready_count(channel, "work") == 0


def test_another_queue_works_off_the_same_history(channel: BlockingChannel, kafka_process: BrokerProcess) -> None:
    declare(channel)
    publish(channel, "work", *numbered(10))
    assert drain(channel, "work") == numbered(10)
    over = {"x-queue-type": "share", "x-source-topic": "work", "x-stream-offset": "first"}
    channel.queue_declare("audit", durable=True, arguments=over)
    wait_ready(channel, "audit", 10)
    assert drain(channel, "audit") == numbered(10)
    # The two know nothing of each other's work.
    publish(channel, "work", b"new")
    wait_ready(channel, "audit", 1)
    wait_ready(channel, "work", 1)
    rewind(kafka_process, "audit", "--to-offset", "8")
    wait_ready(channel, "audit", 3)
    wait_ready(channel, "work", 1)
    # Deleting it leaves the history alone, and the history does not go while its own queue is there.
    channel.queue_delete("audit")
    assert drain(channel, "work") == [b"new"]
    assert len(read_to_the_end(kafka_process.kafka_address, "work")) == 11


def test_a_queue_over_a_history_goes_with_it(channel: BlockingChannel) -> None:
    declare(channel)
    over = {"x-queue-type": "share", "x-source-topic": "work"}
    channel.queue_declare("audit", durable=True, arguments=over)
    channel.queue_delete("work")
    with channel_refused(404):
        channel.queue_declare("audit", passive=True)


def test_what_is_published_to_a_queue_over_a_history_is_work_of_both(channel: BlockingChannel) -> None:
    declare(channel)
    over = {"x-queue-type": "share", "x-source-topic": "work", "x-stream-offset": "first"}
    channel.queue_declare("audit", durable=True, arguments=over)
    publish(channel, "work", b"by the queue")
    publish(channel, "audit", b"by the queue over it")
    wait_ready(channel, "work", 2)
    assert drain(channel, "work") == drain(channel, "audit") == [b"by the queue", b"by the queue over it"]


@pytest.mark.parametrize(
    "arguments",
    [{"x-retention-ms": -1}, {"x-retention-ms": "1h"}, {"x-max-priority": 5}, {"x-queue-type": "stream"}],
    ids=str,
)
def test_what_a_queue_with_history_cannot_have_is_refused(
    channel: BlockingChannel, arguments: dict[str, object]
) -> None:
    with channel_refused(406):
        declare(channel, **arguments)
