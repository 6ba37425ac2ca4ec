"""Rewinding a queue by the management API: which queues, to where, and who may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from pika.adapters.blocking_connection import BlockingChannel

from millpond.pytest_plugin import BackgroundBroker
from tests.support.management import Call
from tests.support.pika_client import drain, numbered, publish, wait_ready
from tests.support.waiting import DEADLINE_S

User = Callable[..., str]
QUEUES = "/api/queues/%2F"


@pytest.fixture(scope="module")
def pond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundBroker]:
    broker = BackgroundBroker(data_dir=tmp_path_factory.mktemp("pond"), kafka="127.0.0.1:0", admin="127.0.0.1:0")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def work(channel: BlockingChannel) -> Iterator[str]:
    """A queue with history, which has worked off ten messages."""
    channel.queue_declare("work", durable=True, arguments={"x-retention-ms": 3_600_000})
    publish(channel, "work", *numbered(10))
    wait_ready(channel, "work", 10)
    assert drain(channel, "work") == numbered(10)
    yield "work"
    channel.queue_delete("work")


@pytest.fixture
def wide(call: Call, channel: BlockingChannel, pond: BackgroundBroker) -> Iterator[str]:
    """A queue over a topic with two partitions, of which each has five records that are done."""
    assert call("PUT", "/api/topics/%2F/images", {"partitions": 2}).status == 201
    producer = Producer({"bootstrap.servers": pond.kafka_address})
    for number in range(10):
        producer.produce("images", b"%d" % number, partition=number % 2)
    assert producer.flush(DEADLINE_S) == 0
    arguments = {"x-queue-type": "share", "x-source-topic": "images", "x-stream-offset": "first"}
    channel.queue_declare("wide", durable=True, arguments=arguments)
    wait_ready(channel, "wide", 10)
    assert len(drain(channel, "wide")) == 10
    yield "wide"
    channel.queue_delete("wide")
    assert call("DELETE", "/api/topics/%2F/images").status == 204


def test_a_queue_with_history_is_rewound(call: Call, channel: BlockingChannel, work: str) -> None:
    answer = call("POST", f"{QUEUES}/work/rewind", {"offset": 7})
    assert (answer.status, answer.json) == (200, {"messages": 3, "offsets": {"0": 7}})
    wait_ready(channel, "work", 3)
    assert drain(channel, "work") == numbered(10)[7:]
    assert call("POST", f"{QUEUES}/work/rewind", {"timestamp": 0}).json == {"messages": 10, "offsets": {"0": 0}}
    # A time that has not come, and an offset that is not there yet: nothing is to be done again.
    assert drain(channel, "work") == numbered(10)
    assert call("POST", f"{QUEUES}/work/rewind", {"timestamp": 4_000_000_000_000}).json["messages"] == 0
    assert call("POST", f"{QUEUES}/work/rewind", {"offset": 1_000}).json["messages"] == 0


def test_a_queue_over_a_topic_is_rewound_in_all_partitions_or_in_one(
    call: Call, channel: BlockingChannel, wide: str
) -> None:
    answer = call("POST", f"{QUEUES}/wide/rewind", {"offset": 3, "partition": 1})
    assert answer.json == {"messages": 2, "offsets": {"1": 3}}
    wait_ready(channel, "wide", 2)
    assert sorted(drain(channel, "wide")) == [b"7", b"9"]
    answer = call("POST", f"{QUEUES}/wide/rewind", {"timestamp": 0})
    assert answer.json == {"messages": 10, "offsets": {"0": 0, "1": 0}}
    wait_ready(channel, "wide", 10)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"offset": 1, "timestamp": 1},
        {"offset": -1},
        {"timestamp": -1},
        {"offset": "first"},
        {"offset": 1, "partition": 1},
        {"timestamp": 1, "partition": -1},
    ],
    ids=str,
)
def test_where_to_must_be_one_place_that_there_is(call: Call, work: str, body: dict[str, Any]) -> None:
    assert call("POST", f"{QUEUES}/work/rewind", body).status == 400


def test_an_offset_is_in_one_partition(call: Call, channel: BlockingChannel, wide: str) -> None:
    answer = call("POST", f"{QUEUES}/wide/rewind", {"offset": 3})
    assert answer.status == 400
    assert "2 partitions" in answer.json["reason"]
    assert call("POST", f"{QUEUES}/wide/rewind", {"offset": 3, "partition": 2}).status == 400
    assert drain(channel, "wide") == []


def test_what_has_no_history_cannot_be_rewound(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("plain", durable=True)
    channel.queue_declare("stream", durable=True, arguments={"x-queue-type": "stream"})
    for queue in ("plain", "stream"):
        answer = call("POST", f"{QUEUES}/{queue}/rewind", {"offset": 0})
        assert answer.status == 400
        assert "has no history to go back to" in answer.json["reason"]
        channel.queue_delete(queue)
    assert call("POST", f"{QUEUES}/missing/rewind", {"offset": 0}).status == 404
    assert call("POST", "/api/queues/missing/work/rewind", {"offset": 0}).status == 404


def test_only_administrators_rewind(call: Call, channel: BlockingChannel, work: str, user: User) -> None:
    for tag in ("management", "policymaker", "monitoring"):
        login = user(f"is-{tag}", tag, (".*", ".*", ".*"))
        assert call("POST", f"{QUEUES}/work/rewind", {"offset": 0}, login=login).status == 401
    assert drain(channel, "work") == []
    login = user("is-administrator", "administrator", (".*", ".*", ".*"))
    assert call("POST", f"{QUEUES}/work/rewind", {"offset": 0}, login=login).status == 200
