"""Topics made, grown, cut, described and deleted by a Kafka client."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from millpond.base.limits import PARTITIONS_PER_TOPIC_MAX
from millpond.broker.broker import DEFAULT_VHOST
from millpond.protocols.kafka import errors
from tests.protocols.kafka.harness import Client, DurablePond, Pond, batch_of, pond_of

CREATE_TOPICS, DELETE_TOPICS, DELETE_RECORDS, OFFSET_FOR_LEADER_EPOCH = 19, 20, 21, 23
CREATE_PARTITIONS, DESCRIBE_CLUSTER, DESCRIBE_PRODUCERS, DESCRIBE_TOPIC_PARTITIONS = 37, 60, 61, 75
DESCRIBE_LOG_DIRS, ALTER_REPLICA_LOG_DIRS, ELECT_LEADERS = 35, 34, 43
ALTER_REASSIGNMENTS, LIST_REASSIGNMENTS = 45, 46


def wanted(name: str, partitions: int = 1, replicas: int = 1, **more: object) -> dict[str, object]:
    return {"name": name, "num_partitions": partitions, "replication_factor": replicas, **more}


def assigned(*brokers: list[int]) -> list[dict[str, object]]:
    return [{"partition_index": number, "broker_ids": ids} for number, ids in enumerate(brokers)]


def create(client: Client, *topics: dict[str, object], version: int = 7, validate_only: bool = False) -> list[Any]:
    response = client.call(CREATE_TOPICS, version, topics=topics, timeout=1000, validate_only=validate_only)
    return list(response.topics)


def code_of(result: Any) -> int:
    return int(result.error_code.value)


def forbid(pond: Pond, configure: str = "", write: str = ".*", read: str = ".*") -> None:
    """Let the clients' user do no more than this."""
    pond.broker.access.set_permission("guest", DEFAULT_VHOST, configure, write, read)


# --- Created --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(2, 8))
def test_a_topic_is_created_in_every_version(client: Client, version: int) -> None:
    [result] = create(client, wanted("orders", 3), version=version)
    assert (result.name, code_of(result), result.error_message) == ("orders", errors.NONE, None)
    topic = client.pond.topics.by_name["orders"]
    assert len(topic.partitions) == 3
    if version >= 7:
        assert result.topic_id.bytes == topic.id


def test_the_answer_tells_the_configuration_that_counts(client: Client) -> None:
    [result] = create(client, wanted("orders", configs=[{"name": "retention.ms", "value": " 77 "}]))
    assert (result.num_partitions, result.replication_factor) == (1, 1)
    configs = {config.name: (config.value, config.config_source) for config in result.configs}
    assert configs["retention.ms"] == ("77", 1)
    assert configs["cleanup.policy"] == ("delete", 5)
    assert client.pond.topics.by_name["orders"].settings.retention_ms == 77


def test_a_topic_that_does_not_say_has_the_nodes_number_of_partitions() -> None:
    with pond_of(partitions=4) as pond:
        [result] = create(pond.client(), wanted("orders", -1, -1))
        assert result.num_partitions == 4
        assert len(pond.topics.by_name["orders"].partitions) == 4


def test_partitions_are_assigned_to_this_node(client: Client) -> None:
    [result] = create(client, wanted("orders", -1, -1, assignments=assigned([1], [1])))
    assert (code_of(result), result.num_partitions) == (errors.NONE, 2)


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        (wanted("orders", 1, 2), errors.INVALID_REPLICATION_FACTOR),
        (wanted("orders", 1, 0), errors.INVALID_REPLICATION_FACTOR),
        (wanted("orders", 1, -2), errors.INVALID_REPLICATION_FACTOR),
        (wanted("orders", 0), errors.INVALID_PARTITIONS),
        (wanted("orders", -2), errors.INVALID_PARTITIONS),
        (wanted("orders", PARTITIONS_PER_TOPIC_MAX + 1), errors.POLICY_VIOLATION),
        (wanted(""), errors.INVALID_TOPIC_EXCEPTION),
        (wanted("no/slash"), errors.INVALID_TOPIC_EXCEPTION),
        (wanted("x" * 250), errors.INVALID_TOPIC_EXCEPTION),
        (wanted("orders", -1, -1, assignments=assigned([2])), errors.INVALID_REPLICA_ASSIGNMENT),
        (wanted("orders", -1, -1, assignments=assigned([])), errors.INVALID_REPLICA_ASSIGNMENT),
        (wanted("orders", -1, -1, assignments=assigned([1, 1])), errors.INVALID_REPLICA_ASSIGNMENT),
        (wanted("orders", -1, -1, assignments=assigned([1])[:1] * 2), errors.INVALID_REPLICA_ASSIGNMENT),
        (wanted("orders", -1, -1, assignments=assigned([1], [1])[1:]), errors.INVALID_REPLICA_ASSIGNMENT),
        (wanted("orders", 1, -1, assignments=assigned([1])), errors.INVALID_REQUEST),
        (wanted("orders", -1, 1, assignments=assigned([1])), errors.INVALID_REQUEST),
        (wanted("orders", configs=[{"name": "nope", "value": "1"}]), errors.INVALID_CONFIG),
        (wanted("orders", configs=[{"name": "retention.ms", "value": "soon"}]), errors.INVALID_CONFIG),
        (wanted("orders", configs=[{"name": "retention.ms", "value": None}]), errors.INVALID_CONFIG),
    ],
)
def test_a_topic_that_cannot_be_is_refused(client: Client, topic: dict[str, object], code: int) -> None:
    refused, made = create(client, topic, wanted("other"))
    assert code_of(refused) == code
    assert refused.error_message
    assert code_of(made) == errors.NONE
    assert list(client.pond.topics.by_name) == ["other"]


def test_a_name_is_taken_once(client: Client) -> None:
    client.pond.topic("orders")
    [result] = create(client, wanted("orders"))
    assert (code_of(result), result.error_message) == (errors.TOPIC_ALREADY_EXISTS, "Topic 'orders' already exists.")


def test_a_topic_that_is_named_twice_is_not_made(client: Client) -> None:
    twice, once = create(client, wanted("twice"), wanted("once"), wanted("twice"))
    assert (twice.name, code_of(twice)) == ("twice", errors.INVALID_REQUEST)
    assert (once.name, code_of(once)) == ("once", errors.NONE)


def test_validation_alone_makes_nothing(client: Client) -> None:
    good, bad = create(client, wanted("good", 2), wanted("bad", 1, 3), validate_only=True)
    assert (code_of(good), good.num_partitions, good.topic_id) == (errors.NONE, 2, None)
    assert code_of(bad) == errors.INVALID_REPLICATION_FACTOR
    assert not client.pond.topics.by_name


def test_who_may_not_configure_a_topic_makes_changes_and_deletes_none(pond: Pond, client: Client) -> None:
    pond.topic("orders")
    forbid(pond)
    refused = errors.TOPIC_AUTHORIZATION_FAILED
    assert [code_of(result) for result in create(client, wanted("new"))] == [refused]
    grown = client.call(CREATE_PARTITIONS, 3, topics=[{"name": "orders", "count": 3, "assignments": None}])
    assert code_of(grown.results[0]) == refused
    for topic in ({"name": "orders"}, {"topic_id": pond.topics.by_name["orders"].id}):
        deleted = client.call(DELETE_TOPICS, 6, topics=[topic], timeout=1000)
        assert code_of(deleted.responses[0]) == refused
        assert deleted.responses[0].name == topic.get("name")
    assert cut(client, "orders", 0)[1] == refused
    assert len(pond.topics.by_name["orders"].partitions) == 1


def test_the_answer_waits_until_the_topic_is_durable(durable: DurablePond) -> None:
    client = durable.client()
    durable.settle()
    durable.disk.hold_syncs()
    client.send(CREATE_TOPICS, 7, topics=[wanted("orders")], timeout=1000)
    assert client.take_all() == []
    durable.disk.release_syncs()
    durable.settle()
    assert [code_of(result) for result in client.take().topics] == [errors.NONE]


# --- Deleted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, 6))
def test_topics_are_deleted_by_name(client: Client, version: int) -> None:
    client.pond.topic("orders")
    response = client.call(DELETE_TOPICS, version, topic_names=["nope", "orders"], timeout=1000)
    assert {result.name: code_of(result) for result in response.responses} == {
        "nope": errors.UNKNOWN_TOPIC_OR_PARTITION,
        "orders": errors.NONE,
    }
    assert not client.pond.topics.by_name


def test_topics_are_deleted_by_id(client: Client) -> None:
    topic_id = client.pond.topic("orders").id
    unknown = uuid.uuid4().bytes
    response = client.call(DELETE_TOPICS, 6, topics=[{"topic_id": unknown}, {"topic_id": topic_id}], timeout=1000)
    missing, deleted = response.responses
    assert (missing.topic_id.bytes, missing.name, code_of(missing)) == (unknown, None, errors.UNKNOWN_TOPIC_ID)
    assert (deleted.topic_id.bytes, deleted.name, code_of(deleted)) == (topic_id, "orders", errors.NONE)


def test_what_is_named_in_two_ways_is_not_deleted(client: Client) -> None:
    topic_id = client.pond.topic("orders").id
    for topics in (
        [{"name": "orders"}, {"name": "orders"}],
        [{"topic_id": topic_id}, {"name": "orders"}],
        [{"name": "orders", "topic_id": topic_id}],
        [{"name": None, "topic_id": None}],
    ):
        response = client.call(DELETE_TOPICS, 6, topics=topics, timeout=1000)
        assert [code_of(result) for result in response.responses] == [errors.INVALID_REQUEST]
    assert list(client.pond.topics.by_name) == ["orders"]


# --- Grown ----------------------------------------------------------------------------------------------------------


def grow(client: Client, name: str, count: int, assignments: object = None, validate_only: bool = False) -> int:
    topics = [{"name": name, "count": count, "assignments": assignments}]
    return code_of(client.call(CREATE_PARTITIONS, 3, topics=topics, validate_only=validate_only).results[0])


def test_a_topic_gets_more_partitions_and_never_fewer(client: Client) -> None:
    topic = client.pond.topic("orders", 2)
    assert grow(client, "orders", 4, validate_only=True) == errors.NONE
    assert len(topic.partitions) == 2
    assert grow(client, "orders", 4) == errors.NONE
    assert len(topic.partitions) == 4
    for count in (4, 3, 0, -1):
        assert grow(client, "orders", count) == errors.INVALID_PARTITIONS
    assert grow(client, "orders", PARTITIONS_PER_TOPIC_MAX + 1) == errors.POLICY_VIOLATION
    assert grow(client, "nope", 3) == errors.UNKNOWN_TOPIC_OR_PARTITION


def test_new_partitions_may_be_assigned_to_this_node_alone(client: Client) -> None:
    client.pond.topic("orders")
    assert grow(client, "orders", 3, [{"broker_ids": [1]}]) == errors.INVALID_REPLICA_ASSIGNMENT
    assert grow(client, "orders", 2, [{"broker_ids": [7]}]) == errors.INVALID_REPLICA_ASSIGNMENT
    assert grow(client, "orders", 2, [{"broker_ids": [1]}]) == errors.NONE


def test_a_topic_that_is_named_twice_does_not_grow(client: Client) -> None:
    client.pond.topic("orders")
    asked = {"name": "orders", "count": 3, "assignments": None}
    response = client.call(CREATE_PARTITIONS, 3, topics=[asked, asked])
    assert [code_of(result) for result in response.results] == [errors.INVALID_REQUEST]


# --- Cut ------------------------------------------------------------------------------------------------------------


def cut(client: Client, name: str, offset: int, number: int = 0) -> tuple[int, int]:
    topics = [{"name": name, "partitions": [{"partition_index": number, "offset": offset}]}]
    [result] = client.call(DELETE_RECORDS, 2, topics=topics, timeout=1000).topics[0].partitions
    return result.low_watermark, code_of(result)


def test_records_before_an_offset_are_deleted(client: Client) -> None:
    client.pond.topic("orders")
    client.produce("orders", batch_of(b"1", b"2", b"3"))
    assert cut(client, "orders", 2) == (2, errors.NONE)
    assert client.fetch("orders", 1).error_code.value == errors.OFFSET_OUT_OF_RANGE
    # What is deleted already stays so.
    assert cut(client, "orders", 1) == (2, errors.NONE)
    assert cut(client, "orders", -1) == (3, errors.NONE)


def test_records_that_are_not_there_cannot_be_deleted(client: Client) -> None:
    client.pond.topic("orders")
    for offset in (1, -2):
        assert cut(client, "orders", offset) == (-1, errors.OFFSET_OUT_OF_RANGE)
    assert cut(client, "orders", 0, 1) == (-1, errors.UNKNOWN_TOPIC_OR_PARTITION)
    assert cut(client, "nope", 0) == (-1, errors.UNKNOWN_TOPIC_OR_PARTITION)


def test_a_compacted_topic_is_not_cut(client: Client) -> None:
    client.pond.topic("compacted", cleanup_policy="compact")
    client.pond.topic("both", cleanup_policy="compact,delete")
    assert cut(client, "compacted", 0) == (-1, errors.POLICY_VIOLATION)
    assert cut(client, "both", 0) == (0, errors.NONE)


def test_the_answer_waits_until_the_deletion_is_durable(durable: DurablePond) -> None:
    client = durable.client()
    durable.topic("orders")
    client.send(0, 9, **_produced("orders"))
    durable.settle()
    client.take()
    durable.disk.hold_syncs()
    topics = [{"name": "orders", "partitions": [{"partition_index": 0, "offset": 1}]}]
    client.send(DELETE_RECORDS, 2, topics=topics, timeout=1000)
    assert client.take_all() == []
    durable.disk.release_syncs()
    durable.settle()
    assert client.take().topics[0].partitions[0].low_watermark == 1


def _produced(name: str) -> dict[str, object]:
    records = batch_of(b"1", b"2")
    return {
        "transactional_id": None,
        "acks": -1,
        "timeout": 1000,
        "topic_data": [{"name": name, "partition_data": [{"index": 0, "records": records}]}],
    }


# --- Described ------------------------------------------------------------------------------------------------------


def describe(client: Client, *names: str, limit: int = 2000, cursor: object = None) -> Any:
    topics = [{"name": name} for name in names]
    return client.call(DESCRIBE_TOPIC_PARTITIONS, 0, topics=topics, response_partition_limit=limit, cursor=cursor)


def shown(response: Any) -> list[tuple[str, list[int]]]:
    return [(topic.name, [p.partition_index for p in topic.partitions]) for topic in response.topics]


def test_partitions_are_described_so_many_at_a_time(client: Client) -> None:
    client.pond.topic("b", 3)
    client.pond.topic("a", 2)
    pages, cursor = [], None
    while True:
        response = describe(client, limit=2, cursor=cursor)
        pages.append(shown(response))
        if response.next_cursor is None:
            break
        cursor = {
            "topic_name": response.next_cursor.topic_name,
            "partition_index": response.next_cursor.partition_index,
        }
    assert pages == [[("a", [0, 1])], [("b", [0, 1])], [("b", [2])]]


def test_topics_are_described_by_name_those_that_are_not_there_with_an_error(client: Client) -> None:
    topic = client.pond.topic("orders", 2)
    response = describe(client, "orders", "nope", "not/valid")
    assert [(found.name, code_of(found)) for found in response.topics] == [
        ("nope", errors.UNKNOWN_TOPIC_OR_PARTITION),
        ("not/valid", errors.INVALID_TOPIC_EXCEPTION),
        ("orders", errors.NONE),
    ]
    found = response.topics[2]
    assert found.topic_id.bytes == topic.id
    # Apache's own client fails where these are null.
    assert found.partitions[0].eligible_leader_replicas == ()
    assert found.partitions[0].last_known_elr == ()


def test_a_cursor_that_is_none_of_the_asked_topics_is_refused(client: Client) -> None:
    client.pond.topic("orders")
    for cursor in ({"topic_name": "a", "partition_index": 0}, {"topic_name": "orders", "partition_index": -1}):
        response = describe(client, "orders", cursor=cursor)
        assert [code_of(found) for found in response.topics] == [errors.INVALID_REQUEST]


def test_topics_that_the_user_may_not_know_are_not_described(pond: Pond, client: Client) -> None:
    pond.topic("secret")
    forbid(pond, write="", read="")
    assert shown(describe(client)) == []
    assert [code_of(topic) for topic in describe(client, "secret").topics] == [errors.TOPIC_AUTHORIZATION_FAILED]
    response = client.call(DESCRIBE_LOG_DIRS, 4, topics=None)
    assert (code_of(response), response.results) == (errors.CLUSTER_AUTHORIZATION_FAILED, ())


def test_the_cluster_is_this_node(client: Client) -> None:
    response = client.call(DESCRIBE_CLUSTER, 1)
    assert (response.cluster_id, response.controller_id) == ("cluster", 1)
    assert [(broker.broker_id, broker.host, broker.port) for broker in response.brokers] == [(1, "127.0.0.1", 9092)]
    assert code_of(client.call(DESCRIBE_CLUSTER, 1, endpoint_type=2)) == errors.MISMATCHED_ENDPOINT_TYPE
    assert code_of(client.call(DESCRIBE_CLUSTER, 1, endpoint_type=9)) == errors.UNSUPPORTED_ENDPOINT_TYPE


def test_partitions_are_measured_in_memory_and_in_their_logs(durable: DurablePond) -> None:
    client = durable.client()
    durable.topic("orders", 2)

    def sizes(topics: object = None) -> dict[int, int]:
        client.send(DESCRIBE_LOG_DIRS, 4, topics=topics)
        answers: list[Any] = []

        def has_come() -> bool:
            answers.extend(client.take_all())
            return bool(answers)

        durable.until(has_come, "an answer")
        [found] = answers[0].results
        assert found.total_bytes > 0
        assert found.usable_bytes >= 0
        return {p.partition_index: p.partition_size for topic in found.topics for p in topic.partitions}

    assert sizes() == {0: 0, 1: 0}
    client.send(0, 9, **_produced("orders"))
    durable.settle()
    client.take()
    size = sizes()[0]
    assert size > 0
    durable.write_out(durable.partition("orders"))
    assert sizes([{"topic": "orders", "partitions": [0, 7]}]) == {0: size}
    # As after a restart: nobody has opened the log.
    durable.broker.streams._logs.clear()
    assert sizes() == {0: size, 1: 0}


def test_a_broker_that_keeps_nothing_measures_what_is_in_memory(client: Client) -> None:
    client.pond.topic("orders")
    batch = batch_of(b"1", b"2")
    client.produce("orders", batch)
    [found] = client.call(DESCRIBE_LOG_DIRS, 4, topics=None).results
    assert (found.log_dir, found.total_bytes, found.usable_bytes) == ("", -1, -1)
    assert [partition.partition_size for partition in found.topics[0].partitions] == [len(batch)]


def test_a_producer_is_described_once_however_often_it_is_asked_for(client: Client) -> None:
    client.pond.topic("orders")
    client.produce("orders", batch_of(b"1", b"2", producer=(7, 3, 0)))
    asked = {"name": "orders", "partition_indexes": [0, 0, 5]}
    [topic] = client.call(DESCRIBE_PRODUCERS, 0, topics=[asked, asked]).topics
    known, unknown = topic.partitions
    [producer] = known.active_producers
    assert (producer.producer_id, producer.producer_epoch, producer.last_sequence) == (7, 3, 1)
    assert code_of(unknown) == errors.UNKNOWN_TOPIC_OR_PARTITION


@pytest.mark.parametrize("version", range(2, 5))
def test_the_only_epoch_ends_where_readers_see_the_end(client: Client, version: int) -> None:
    client.pond.topic("orders")
    client.produce("orders", batch_of(b"1"))

    def end(current: int, epoch: int, number: int = 0) -> tuple[int, int, int]:
        partition = {"partition": number, "current_leader_epoch": current, "leader_epoch": epoch}
        topics = [{"topic": "orders", "partitions": [partition]}]
        [found] = client.call(OFFSET_FOR_LEADER_EPOCH, version, topics=topics, replica_id=-1).topics[0].partitions
        return code_of(found), found.leader_epoch, found.end_offset

    assert end(-1, 0) == (errors.NONE, 0, 1)
    assert end(0, 5) == (errors.NONE, -1, -1)
    assert end(5, 0) == (errors.UNKNOWN_LEADER_EPOCH, -1, -1)
    assert end(0, 0, 3) == (errors.UNKNOWN_TOPIC_OR_PARTITION, -1, -1)


def test_no_partition_is_ever_on_the_move(client: Client) -> None:
    client.pond.topic("orders")
    assert client.call(LIST_REASSIGNMENTS, 0, topics=None).topics == ()
    for replicas, code in (
        ([1], errors.NONE),
        ([2], errors.INVALID_REPLICA_ASSIGNMENT),
        (None, errors.NO_REASSIGNMENT_IN_PROGRESS),
    ):
        topics = [{"name": "orders", "partitions": [{"partition_index": 0, "replicas": replicas}]}]
        response = client.call(ALTER_REASSIGNMENTS, 0, topics=topics)
        assert code_of(response.responses[0].partitions[0]) == code
    response = client.call(ELECT_LEADERS, 2, topic_partitions=[{"topic": "orders", "partitions": [0, 1]}])
    assert [code_of(result) for result in response.replica_election_results[0].partition_result] == [
        errors.ELECTION_NOT_NEEDED,
        errors.UNKNOWN_TOPIC_OR_PARTITION,
    ]
    # All partitions are meant: those that need no election are not told.
    assert client.call(ELECT_LEADERS, 2, topic_partitions=None).replica_election_results == ()
    dirs = [{"path": "/elsewhere", "topics": [{"name": "orders", "partitions": [0]}]}]
    [moved] = client.call(ALTER_REPLICA_LOG_DIRS, 2, dirs=dirs).results
    assert code_of(moved.partitions[0]) == errors.LOG_DIR_NOT_FOUND
