"""A first conversation: what every client does."""

from __future__ import annotations

import uuid

import pytest

from tests.protocols.kafka.harness import (
    API_VERSIONS,
    FETCH,
    METADATA,
    PRODUCE,
    Client,
    DurablePond,
    Pond,
    batch_of,
    fetch_tree,
    produce_tree,
    records_of,
)


def test_what_was_produced_is_fetched(pond: Pond, client: Client) -> None:
    pond.topic("t")
    assert client.produce("t", batch_of(b"a", b"b")).base_offset == 0
    assert client.produce("t", batch_of(b"c")).base_offset == 2
    found = client.fetch("t", 0)
    assert found.high_watermark == 3
    assert records_of(found.records) == [(0, b"a"), (1, b"b"), (2, b"c")]


def test_what_was_produced_is_fetched_from_a_broker_with_a_disk(durable: DurablePond) -> None:
    durable.topic("t")
    client = durable.client()
    client.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}}))
    durable.settle()
    assert client.take().responses[0].partition_responses[0].base_offset == 0
    durable.write_out(durable.partition("t"))
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=1000))
    durable.until(lambda: len(client.transport.sent) > 100, "the answer")
    assert records_of(client.take_all()[-1].responses[0].partitions[0].records) == [(0, b"a")]


def test_metadata_makes_a_topic_that_is_asked_for(client: Client) -> None:
    response = client.call(METADATA, 12, topics=[{"topic_id": None, "name": "new"}], allow_auto_topic_creation=True)
    assert [topic.name for topic in response.topics] == ["new"]
    assert response.brokers[0].port == 9092


@pytest.mark.parametrize("name", [None, ""])
def test_metadata_finds_a_topic_by_its_id_whatever_is_sent_as_its_name(
    pond: Pond, client: Client, name: str | None
) -> None:
    topic_id = pond.topic("log", 2).id
    response = client.call(METADATA, 12, topics=[{"topic_id": topic_id, "name": name}], allow_auto_topic_creation=True)
    [topic] = response.topics
    assert (topic.error_code.value, topic.name, topic.topic_id) == (0, "log", uuid.UUID(bytes=topic_id))
    assert len(topic.partitions) == 2
    assert set(pond.topics.by_name) == {"log"}


def test_a_topic_that_cannot_be_made_because_of_a_queue_is_refused_for_good(pond: Pond, client: Client) -> None:
    pond.broker.vhost("/").declare_queue("taken", True, False, False, {}, None)
    response = client.call(METADATA, 12, topics=[{"topic_id": None, "name": "taken"}], allow_auto_topic_creation=True)
    assert [(topic.name, int(topic.error_code)) for topic in response.topics] == [("taken", 17)]


def test_versions_are_told(client: Client) -> None:
    response = client.call(API_VERSIONS, 3, client_software_name="x", client_software_version="1")
    assert {entry.api_key for entry in response.api_keys} >= {0, 1, 2, 3, 18, 22}
