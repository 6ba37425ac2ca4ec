"""The whole way: produced with Kafka, worked off by Celery, poison in a dead-letter queue, replayed with Kafka."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from pika.adapters.blocking_connection import BlockingConnection

from tests.interop.celery.worker import RESULT_DEADLINE_S, WorkerProcess, client
from tests.kafka.conftest import wait_for_topic
from tests.support.broker_process import BrokerProcess, run_operator_command
from tests.support.endpoint import Endpoint
from tests.support.kafka_client import quiet
from tests.support.pika_client import get, turn, wait_ready
from tests.support.waiting import DEADLINE_S, eventually

TOPIC = "tasks"


def task(name: str, *arguments: Any) -> tuple[bytes, list[tuple[str, bytes]]]:
    """A task as Celery's message protocol 2 has it: a record's value and headers."""
    task_id = str(uuid.uuid4())
    value = json.dumps([arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    headers = {
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "correlation-id": task_id,
        "task": name,
        "id": task_id,
        "lang": "py",
    }
    return value.encode(), [(key, text.encode()) for key, text in headers.items()]


def replayed(servers: str, count: int) -> list[bytes]:
    """What a new consumer group gets from the beginning."""
    consumer = confluent_kafka.Consumer(
        quiet(servers) | {"group.id": f"replay-{uuid.uuid4().hex}", "auto.offset.reset": "earliest"}
    )
    values: list[bytes] = []

    def has_all() -> bool:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            values.append(message.value())
        return len(values) >= count

    try:
        consumer.subscribe([TOPIC])
        eventually(has_all, f"{count} records", step=lambda: None)
    finally:
        consumer.close()
    return values


@pytest.fixture
def endpoint(kafka_process: BrokerProcess) -> Endpoint:
    """A broker with a topic of tasks, from whose queues poison goes to the queue "dead"."""
    admin = AdminClient(quiet(kafka_process.kafka_address))
    admin.create_topics([NewTopic(TOPIC, 3, 1)])[TOPIC].result(DEADLINE_S)
    wait_for_topic(admin, TOPIC, 3)
    run_operator_command(
        kafka_process.data, "policy", "set", "poison", "^celery-",
        '{"dead-letter-exchange": "", "dead-letter-routing-key": "dead"}',
    )  # fmt: skip
    return Endpoint.of_url(kafka_process.amqp_url)


def test_a_record_is_worked_off_by_celery_its_poison_dead_lettered_and_its_history_replayed(
    kafka_process: BrokerProcess, endpoint: Endpoint, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    with client(endpoint) as app, BlockingConnection(endpoint.parameters()) as connection:
        worker = WorkerProcess(endpoint, app, "miller", tmp_path)
        try:
            worker.wait_until_ready()
            channel = connection.channel()
            channel.queue_declare("dead", durable=True)
            channel.queue_bind(app.conf.task_default_queue, TOPIC, "")
            records = [task("tests.note", str(done), number) for number in range(20)]
            poison = task("tests.poison")
            records.insert(7, poison)
            producer = confluent_kafka.Producer(quiet(kafka_process.kafka_address))
            for number, (value, headers) in enumerate(records):
                producer.produce(TOPIC, value, key=f"customer-{number}", headers=headers)
            assert producer.flush(DEADLINE_S) == 0

            def lines() -> list[str]:
                turn(channel)
                return done.read_text().splitlines() if done.exists() else []

            eventually(lambda: len(lines()) >= 20, "all tasks are done", deadline_s=RESULT_DEADLINE_S)
            assert sorted(int(line.split()[0]) for line in lines()) == list(range(20))
            wait_ready(channel, "dead", 1)
            letter = get(channel, "dead")
            assert letter.body == poison[0]
            assert letter.headers["task"] == "tests.poison"
            assert letter.headers["x-death"][0]["reason"] == "rejected"
            assert letter.headers["x-death"][0]["exchange"] == TOPIC
        finally:
            worker.discard()
    assert sorted(replayed(kafka_process.kafka_address, 21)) == sorted(value for value, _ in records)
