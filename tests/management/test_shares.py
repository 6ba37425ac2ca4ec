"""Share groups and queues over topics as operators see them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pika
import pytest
from confluent_kafka import Producer

from millpond.pytest_plugin import BackgroundBroker
from tests.support import management
from tests.support.management import Call
from tests.support.waiting import DEADLINE_S, eventually


@pytest.fixture(scope="module")
def pond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundBroker]:
    folder: Path = tmp_path_factory.mktemp("pond")
    broker = BackgroundBroker(data_dir=folder, admin="127.0.0.1:0", kafka="127.0.0.1:0")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def call(pond: BackgroundBroker) -> Call:
    return partial(management.request, pond.address("admin"))


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def queue(pond: BackgroundBroker, topic: str) -> Iterator[str]:
    """A queue over a topic of ten records: three are done, two are in hands."""
    host, port = pond.address("kafka")
    producer = Producer({"bootstrap.servers": f"{host}:{port}"})
    for number in range(10):
        producer.produce(topic, b"%d" % number)
    assert producer.flush(DEADLINE_S) == 0
    host, port = pond.address("amqp")
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, port))
    channel = connection.channel()
    arguments = {"x-queue-type": "share", "x-source-topic": topic, "x-stream-offset": "first"}
    channel.queue_declare("work", durable=True, arguments=arguments)
    for number in range(5):
        method, _, _ = channel.basic_get("work")
        assert method is not None
        if number < 3:
            channel.basic_ack(method.delivery_tag)
    yield "work"
    channel.queue_delete("work")
    connection.close()


def test_what_a_group_has_yet_to_do_is_told(call: Call, queue: str, topic: str) -> None:
    eventually(lambda: call("GET", "/api/shares/%2F/work").json["lag"] == 7, "three records done")
    found = call("GET", "/api/shares/%2F/work").json
    assert (found["messages_ready"], found["messages_acquired"], found["queue"]) == (5, 2, True)
    [place] = found["partition_details"]
    assert (place["topic"], place["start_offset"], place["window_end"], place["end_offset"]) == (topic, 3, 5, 10)
    assert (place["delivered"], place["accepted"]) == (5, 3)
    assert [one["name"] for one in call("GET", "/api/shares").json] == ["work"]
    assert [one["name"] for one in call("GET", "/api/shares/%2F").json] == ["work"]


def test_a_group_that_is_not_there_is_not_found(call: Call) -> None:
    assert call("GET", "/api/shares/%2F/missing").status == 404


def test_the_queue_is_among_the_queues(call: Call, queue: str, topic: str) -> None:
    found = call("GET", "/api/queues/%2F/work").json
    assert (found["type"], found["source_topic"], found["messages_acquired"]) == ("share", topic, 2)
    assert (found["messages_ready"], found["messages_unacknowledged"]) == (5, 2)


def test_metrics_tell_it_of_each_group(call: Call, queue: str, topic: str) -> None:
    labels = f'group="work",topic="{topic}",vhost="/"'
    text = call("GET", "/metrics/per-object").content.decode()
    assert f"millpond_share_lag{{{labels}}} 7.0" in text
    assert f"millpond_share_acquired{{{labels}}} 2.0" in text
    assert "millpond_share_lag 7.0" in call("GET", "/metrics").content.decode()
