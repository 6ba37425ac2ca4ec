"""A client that keeps the broker busy has its share of each turn, and others have theirs; and a request's limits."""

from __future__ import annotations

from typing import Any

import pytest

from millpond.base.limits import (
    KAFKA_ITEMS_PER_TURN,
    KAFKA_REQUESTS_PER_TURN,
    PARTITIONS_MADE_PER_REQUEST_MAX,
    SHARE_SESSIONS_ENDED_PER_TURN,
    TOPICS_MADE_PER_REQUEST_MAX,
)
from millpond.protocols.kafka import registry
from millpond.protocols.kafka.apis import list_offsets, metadata, offset_commit
from tests.protocols.kafka.harness import API_VERSIONS, LIST_OFFSETS, METADATA, Client, Pond

OFFSET_COMMIT, CREATE_TOPICS = 8, 19
LEADER_NOT_AVAILABLE, POLICY_VIOLATION = 5, 44


class Calls:
    """How often a function has been called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.count = 0
        self._function = getattr(module, name)
        monkeypatch.setattr(module, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self._function(*arguments)


def test_requests_take_turns(pond: Pond, client: Client) -> None:
    count = 3 * KAFKA_REQUESTS_PER_TURN
    client.feed(b"".join([client.request(API_VERSIONS, 0)[0] for _ in range(count)]))
    assert pond.broker.requests["kafka", "ApiVersions"] == KAFKA_REQUESTS_PER_TURN
    assert len(client.take_all()) == count
    assert client.transport.is_reading


def test_very_many_partitions_are_looked_up_in_turns(
    pond: Pond, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = Calls(monkeypatch, list_offsets, "_look_up")
    pond.topic("t", 2)
    count = 3 * KAFKA_ITEMS_PER_TURN + 1
    asked = [{"partition_index": number, "timestamp": -1} for number in range(count)]
    client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[{"name": "t", "partitions": asked}])
    assert looked_up.count == KAFKA_ITEMS_PER_TURN
    # What follows has to wait, and is answered after it.
    client.send(API_VERSIONS, 0)
    assert pond.broker.requests.get(("kafka", "ApiVersions"), 0) == 0
    answer, versions = client.take_all()
    assert [int(one.error_code) for one in answer.topics[0].partitions] == [0, 0] + [3] * (count - 2)
    assert versions.api_keys
    assert pond.broker.request_errors["kafka", "ListOffsets", 3] == count - 2


def test_a_connection_may_be_lost_between_the_turns_of_a_request(
    pond: Pond, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = Calls(monkeypatch, list_offsets, "_look_up")
    asked = [{"partition_index": number, "timestamp": -1} for number in range(3 * KAFKA_ITEMS_PER_TURN)]
    client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[{"name": "t", "partitions": asked}])
    client.drop()
    assert looked_up.count == KAFKA_ITEMS_PER_TURN


def test_very_many_names_are_looked_up_in_turns(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = Calls(monkeypatch, metadata, "_by_name")
    names = [{"name": f"t{number}"} for number in range(2 * KAFKA_ITEMS_PER_TURN + 1)]
    client.send(METADATA, 4, topics=names, allow_auto_topic_creation=False)
    assert looked_up.count == KAFKA_ITEMS_PER_TURN
    assert [topic.name for topic in client.take().topics] == [asked["name"] for asked in names]


def test_very_many_offsets_are_checked_in_turns(pond: Pond, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Calls(monkeypatch, offset_commit, "partition_error")
    pond.topic("t")
    count = 2 * KAFKA_ITEMS_PER_TURN
    asked = [{"partition_index": number, "committed_offset": 1} for number in range(count)]
    client.send(
        OFFSET_COMMIT, 2, group_id="g", generation_id_or_member_epoch=-1, topics=[{"name": "t", "partitions": asked}]
    )
    assert checked.count < count // 2 + 1
    codes = [int(one.error_code) for one in client.take().topics[0].partitions]
    assert codes == [0] + [3] * (count - 1)


def test_large_answers_are_encoded_on_a_thread() -> None:
    few = [{"partition_index": number} for number in range(KAFKA_ITEMS_PER_TURN // 2)]
    assert not registry._has_many_items({"topics": [{"partitions": few}]})
    assert registry._has_many_items({"topics": [{"partitions": few}] * 3})
    assert registry._has_many_items({"topics": few * 3})


def test_metadata_makes_so_many_topics_at_once(pond: Pond, client: Client) -> None:
    names = [{"name": f"t{number}"} for number in range(TOPICS_MADE_PER_REQUEST_MAX + 2)]
    codes = [int(topic.error_code) for topic in client.call(METADATA, 4, topics=names, **AUTO).topics]
    assert sorted(codes) == [0] * TOPICS_MADE_PER_REQUEST_MAX + [LEADER_NOT_AVAILABLE] * 2
    assert len(pond.topics.by_name) == TOPICS_MADE_PER_REQUEST_MAX
    # A client that is told so asks again.
    codes = [int(topic.error_code) for topic in client.call(METADATA, 4, topics=names, **AUTO).topics]
    assert not any(codes)


AUTO: dict[str, Any] = {"allow_auto_topic_creation": True}


def test_create_topics_makes_so_many_partitions_at_once(pond: Pond, client: Client) -> None:
    half = PARTITIONS_MADE_PER_REQUEST_MAX // 2

    def created(*counts: int) -> list[int]:
        topics = [
            {"name": f"t{number}", "num_partitions": count, "replication_factor": -1}
            for number, count in enumerate(counts)
        ]
        return [int(topic.error_code) for topic in client.call(CREATE_TOPICS, 4, topics=topics).topics]

    assert created(PARTITIONS_MADE_PER_REQUEST_MAX + 1) == [POLICY_VIOLATION]
    assert created(half, half + 1, 1) == [0, POLICY_VIOLATION, 0]
    assert {name: len(topic.partitions) for name, topic in pond.topics.by_name.items()} == {"t0": half, "t2": 1}


def test_share_sessions_of_a_lost_connection_end_in_turns(pond: Pond) -> None:
    shares = pond.broker.vhost("/").shares
    connection = object()
    count = 2 * SHARE_SESSIONS_ENDED_PER_TURN + 1
    for number in range(count):
        shares.opened(f"g{number}")
        shares.sessions.begin(f"g{number}", "m", connection)
    shares.lost(connection)
    assert len(shares.groups) == count - SHARE_SESSIONS_ENDED_PER_TURN
    pond.rest()
    assert not shares.groups
