"""Names that no other test has, on the broker that the tests of Kafka's protocol share, and its admin client."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.support.kafka_client import CLIENTS, Client, Unique, quiet
from tests.support.raw_kafka import RawKafka
from tests.support.waiting import DEADLINE_S, eventually

CreateTopic = Callable[..., str]


@pytest.fixture
def admin(kafka: str) -> AdminClient:
    return AdminClient(quiet(kafka))


@pytest.fixture
def unique(admin: AdminClient) -> Iterator[Unique]:
    """Makes names that no other test has. Topics and groups of these names are deleted after the test."""
    names: list[str] = []

    def make(stem: str) -> str:
        names.append(f"{stem}-{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield make
    if names:
        deletions = [
            *admin.delete_topics(names, request_timeout=DEADLINE_S).values(),
            *admin.delete_consumer_groups(names, request_timeout=DEADLINE_S).values(),
        ]
        for deletion in deletions:
            # Most names are a topic's or a group's, not both; a group whose members were killed waits for its timeout.
            deletion.exception(DEADLINE_S)


@pytest.fixture
def create_topic(admin: AdminClient, unique: Unique) -> CreateTopic:
    """Creates a topic and returns its name; keywords are its configuration, with underscores for dots."""

    def create(partitions: int = 1, **configuration: Any) -> str:
        name = unique("topic")
        settings = {key.replace("_", "."): str(value) for key, value in configuration.items()}
        created = admin.create_topics([NewTopic(name, partitions, 1, config=settings)])
        created[name].result(DEADLINE_S)
        wait_for_topic(admin, name, partitions)
        return name

    return create


@pytest.fixture
def topic(create_topic: CreateTopic) -> str:
    """A topic with one partition and no configuration of its own."""
    return create_topic()


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest, kafka: str) -> Client:
    """Each client in turn."""
    made: Client = request.param(kafka)
    return made


@pytest.fixture
def clients(kafka: str) -> list[Client]:
    """All clients."""
    return [client(kafka) for client in CLIENTS]


@pytest.fixture
def raw(kafka: str) -> Iterator[RawKafka]:
    with RawKafka(kafka) as connection:
        yield connection


def wait_for_topic(admin: AdminClient, name: str, partitions: int = 1) -> None:
    """Wait until all partitions answer: in Apache Kafka the controller knows a topic before the broker has its logs."""

    def ready() -> bool:
        found = admin.list_topics(name, timeout=DEADLINE_S).topics[name]
        if found.error is not None or len(found.partitions) != partitions:
            return False
        ends = admin.list_offsets({TopicPartition(name, number): OffsetSpec.latest() for number in range(partitions)})
        return all(end.exception(DEADLINE_S) is None for end in ends.values())

    eventually(ready, f"{name} has {partitions} partitions")
