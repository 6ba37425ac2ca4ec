"""The APIs of consumer groups in every version that is advertised, and what they tell of the core's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from millpond.base.errors import PeerError
from millpond.base.limits import GROUP_INITIAL_REBALANCE_DELAY_MS, OFFSET_METADATA_CHARACTERS_MAX
from millpond.broker.groups import errors as group_errors
from millpond.protocols.kafka.errors import UNKNOWN_SERVER_ERROR, code_of
from millpond.protocols.kafka.registry import APIS
from tests.broker.group_members import assignment, subscription
from tests.protocols.kafka.harness import HOST, PORT, Client, DurablePond, Pond

OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR, JOIN_GROUP, HEARTBEAT, LEAVE_GROUP, SYNC_GROUP = 8, 9, 10, 11, 12, 13, 14
DESCRIBE_GROUPS, LIST_GROUPS, DELETE_GROUPS, OFFSET_DELETE = 15, 16, 42, 47

GROUP = "crew"
TOPIC = "log"
SESSION_MS = 10_000


def versions(api_key: int) -> Any:
    """Each version that is advertised."""
    from millpond.protocols.kafka import registry

    registry.load(1)
    found = APIS[api_key]
    return pytest.mark.parametrize("version", range(found.advertised_from, found.most + 1))


@dataclass
class Member:
    member_id: str
    generation: int

    @property
    def identity(self) -> dict[str, object]:
        return {"group_id": GROUP, "member_id": self.member_id, "generation_id": self.generation}


def join_tree(member_id: str = "", instance_id: str | None = None, **changes: object) -> dict[str, object]:
    return {
        "group_id": GROUP,
        "session_timeout": SESSION_MS,
        "rebalance_timeout": 60_000,
        "member_id": member_id,
        "group_instance_id": instance_id,
        "protocol_type": "consumer",
        "protocols": [{"name": "range", "metadata": subscription(TOPIC)}],
        "reason": None,
        **changes,
    }


def join(pond: Pond, client: Client, version: int = 9, **changes: object) -> Any:
    """Join an empty group, alone; the answer."""
    client.send(JOIN_GROUP, version, **join_tree(**changes))
    told = client.take_all()
    if told and told[0].error_code is ErrorCode.member_id_required:
        client.send(JOIN_GROUP, version, **join_tree(told[0].member_id, **changes))
        told = client.take_all()
    assert not told, "the first rebalance was not waited for"
    pond.advance(GROUP_INITIAL_REBALANCE_DELAY_MS)
    return client.take()


def sync_tree(member: Member, *parts: int) -> dict[str, object]:
    given = [{"member_id": member.member_id, "assignment": assignment(TOPIC, *parts)}]
    return {**member.identity, "protocol_type": "consumer", "protocol_name": "range", "assignments": given}


def stable(pond: Pond, client: Client, **changes: object) -> Member:
    told = join(pond, client, **changes)
    member = Member(told.member_id, told.generation_id)
    assert client.call(SYNC_GROUP, 5, **sync_tree(member, 0)).error_code is ErrorCode.none
    return member


def commit_tree(*places: tuple[str, int, int], member: Member | None = None, **changes: object) -> dict[str, object]:
    return {
        "group_id": GROUP,
        "generation_id_or_member_epoch": member.generation if member else -1,
        "member_id": member.member_id if member else "",
        "retention_time": -1,
        "topics": [
            {
                "name": topic,
                "partitions": [
                    {
                        "partition_index": number,
                        "committed_offset": offset,
                        "committed_leader_epoch": 0,
                        "committed_metadata": "note",
                    }
                ],
            }
            for topic, number, offset in places
        ],
        **changes,
    }


def codes_of(response: Any) -> list[ErrorCode]:
    return [partition.error_code for topic in response.topics for partition in topic.partitions]


def committed(client: Client, *parts: int) -> list[int]:
    """What is committed of the topic's partitions."""
    asked = {"group_id": GROUP, "topics": [{"name": TOPIC, "partition_indexes": list(parts)}]}
    (group,) = client.call(OFFSET_FETCH, 9, groups=[asked]).groups
    return [partition.committed_offset for topic in group.topics for partition in topic.partitions]


# --- Each version -----------------------------------------------------------------------------------------------------


@versions(FIND_COORDINATOR)
def test_every_group_is_looked_after_here(client: Client, version: int) -> None:
    response = client.call(FIND_COORDINATOR, version, key=GROUP, key_type=0, coordinator_keys=[GROUP, "other"])
    for found in [response] if version < 4 else response.coordinators:
        assert (found.error_code, found.node_id, found.host, found.port) == (ErrorCode.none, 1, HOST, PORT)
    if version >= 4:
        assert [found.key for found in response.coordinators] == [GROUP, "other"]


@pytest.mark.parametrize(
    ("key_type", "code"),
    [
        (2, ErrorCode.invalid_request),
        (9, ErrorCode.invalid_request),
    ],
)
def test_there_are_coordinators_of_groups_and_transactions_only(client: Client, key_type: int, code: ErrorCode) -> None:
    (found,) = client.call(FIND_COORDINATOR, 6, key_type=key_type, coordinator_keys=["k"]).coordinators
    assert (found.error_code, found.node_id, found.port) == (code, -1, -1)


@versions(JOIN_GROUP)
def test_a_client_joins_and_leads(pond: Pond, client: Client, version: int) -> None:
    if version >= 4:
        first = client.call(JOIN_GROUP, version, **join_tree())
        assert first.error_code is ErrorCode.member_id_required
        assert first.member_id.startswith("test-")
    told = join(pond, client, version)
    assert told.error_code is ErrorCode.none
    assert (told.generation_id, told.leader, told.protocol_name) == (1, told.member_id, "range")
    assert [(member.member_id, member.metadata) for member in told.members] == [(told.member_id, subscription(TOPIC))]
    if version == 0:
        (member,) = pond.broker.vhost("/").groups.group(GROUP).members.values()
        assert member.state.rebalance_timeout_ms == SESSION_MS


@versions(JOIN_GROUP)
def test_a_join_that_is_refused_is_answered_in_every_version(client: Client, version: int) -> None:
    told = client.call(JOIN_GROUP, version, **join_tree(session_timeout=1))
    assert (told.error_code, told.generation_id, told.leader) == (ErrorCode.invalid_session_timeout, -1, "")
    assert told.protocol_name == (None if version >= 7 else "")


@versions(SYNC_GROUP)
def test_a_leader_syncs(pond: Pond, client: Client, version: int) -> None:
    told = join(pond, client)
    member = Member(told.member_id, told.generation_id)
    synced = client.call(SYNC_GROUP, version, **sync_tree(member, 0, 1))
    assert (synced.error_code, synced.assignment) == (ErrorCode.none, assignment(TOPIC, 0, 1))
    late = Member(member.member_id, 7)
    assert client.call(SYNC_GROUP, version, **sync_tree(late)).error_code is ErrorCode.illegal_generation


def test_a_sync_must_name_the_protocol_from_version_5_on(pond: Pond, client: Client) -> None:
    member = stable(pond, client)
    unnamed = {**sync_tree(member), "protocol_name": None}
    assert client.call(SYNC_GROUP, 5, **unnamed).error_code is ErrorCode.inconsistent_group_protocol


@versions(HEARTBEAT)
def test_a_member_is_alive(pond: Pond, client: Client, version: int) -> None:
    member = stable(pond, client)
    assert client.call(HEARTBEAT, version, **member.identity).error_code is ErrorCode.none
    pond.advance(SESSION_MS)
    assert client.call(HEARTBEAT, version, **member.identity).error_code is ErrorCode.unknown_member_id


@versions(LEAVE_GROUP)
def test_a_member_leaves(pond: Pond, client: Client, version: int) -> None:
    member = stable(pond, client)
    one = {"member_id": member.member_id, "group_instance_id": None, "reason": None}
    for code in (ErrorCode.none, ErrorCode.unknown_member_id):
        response = client.call(LEAVE_GROUP, version, group_id=GROUP, member_id=member.member_id, members=[one])
        if version < 3:
            assert response.error_code is code
        else:
            assert response.error_code is ErrorCode.none
            assert [(told.member_id, told.error_code) for told in response.members] == [(member.member_id, code)]


def with_ids(pond: Pond, topics: list[dict[str, object]]) -> list[dict[str, object]]:
    """What newer versions call topics by, besides their names."""
    return [{**topic, "topic_id": pond.topics.by_name[str(topic["name"])].id} for topic in topics]


@versions(OFFSET_COMMIT)
def test_offsets_are_committed(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC, 2)
    member = stable(pond, client)
    tree = commit_tree((TOPIC, 0, 5), (TOPIC, 9, 1), member=member)
    response = client.call(OFFSET_COMMIT, version, **{**tree, "topics": with_ids(pond, tree["topics"])})  # type: ignore[arg-type]
    assert codes_of(response) == [ErrorCode.none, ErrorCode.unknown_topic_or_partition]
    assert committed(client, 0, 1) == [5, -1]


@versions(OFFSET_COMMIT)
def test_a_commit_of_a_generation_of_no_group_is_refused(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC)
    nobody = Member("nobody", 3)
    expected = ErrorCode.group_id_not_found if version >= 9 else ErrorCode.illegal_generation
    tree = commit_tree((TOPIC, 0, 5), member=nobody)
    response = client.call(OFFSET_COMMIT, version, **{**tree, "topics": with_ids(pond, tree["topics"])})  # type: ignore[arg-type]
    assert codes_of(response) == [expected]


@versions(OFFSET_FETCH)
def test_offsets_are_fetched(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC, 2)
    client.call(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 5)))
    asked: list[dict[str, object]] | None
    for asked in (with_ids(pond, [{"name": TOPIC, "partition_indexes": [0, 1]}]), None):
        if asked is None and version < 2:
            continue
        group = {"group_id": GROUP, "topics": asked}
        response = client.call(OFFSET_FETCH, version, **group, groups=[group])
        told = response if version < 8 else response.groups[0]
        (topic,) = told.topics
        shown = [(part.partition_index, part.committed_offset, part.metadata) for part in topic.partitions]
        assert shown == ([(0, 5, "note"), (1, -1, "")] if asked else [(0, 5, "note")])


@versions(OFFSET_DELETE)
def test_offsets_are_deleted(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC, 2)
    client.call(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 5)))
    topics = [{"name": TOPIC, "partitions": [{"partition_index": 0}, {"partition_index": 7}]}]
    response = client.call(OFFSET_DELETE, version, group_id=GROUP, topics=topics)
    assert codes_of(response) == [ErrorCode.none, ErrorCode.unknown_topic_or_partition]
    assert committed(client, 0) == [-1]
    response = client.call(OFFSET_DELETE, version, group_id="nowhere", topics=topics)
    assert response.error_code is ErrorCode.group_id_not_found
    stable(pond, client)
    response = client.call(OFFSET_DELETE, version, group_id=GROUP, topics=topics[:1])
    assert codes_of(response)[0] is ErrorCode.group_subscribed_to_topic


@versions(LIST_GROUPS)
def test_groups_are_listed(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC)
    stable(pond, client)
    client.call(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 5), group_id="other"))
    response = client.call(LIST_GROUPS, version, states_filter=[], types_filter=[])
    assert {(group.group_id, group.protocol_type) for group in response.groups} == {(GROUP, "consumer"), ("other", "")}
    if version >= 4:
        response = client.call(LIST_GROUPS, version, states_filter=["stable", "dead"], types_filter=[])
        assert [(group.group_id, group.group_state) for group in response.groups] == [(GROUP, "Stable")]
    if version >= 5:
        found = {
            kind: len(client.call(LIST_GROUPS, version, states_filter=[], types_filter=[kind]).groups)
            for kind in ("Classic", "consumer")
        }
        assert found == {"Classic": 2, "consumer": 0}


@versions(DESCRIBE_GROUPS)
def test_groups_are_described(pond: Pond, client: Client, version: int) -> None:
    member = stable(pond, client, instance_id="first")
    asked = {"groups": [GROUP, "nowhere"], "include_authorized_operations": True}
    found, missing = client.call(DESCRIBE_GROUPS, version, **asked).groups
    assert (found.group_state, found.protocol_type, found.protocol_data) == ("Stable", "consumer", "range")
    (shown,) = found.members
    assert (shown.member_id, shown.client_id, shown.client_host) == (member.member_id, "test", f"/{HOST}")
    assert (shown.member_metadata, shown.member_assignment) == (subscription(TOPIC), assignment(TOPIC, 0))
    if version >= 3:
        assert found.authorized_operations > 0
    if version >= 4:
        assert shown.group_instance_id == "first"
    expected = ErrorCode.group_id_not_found if version >= 6 else ErrorCode.none
    assert (missing.group_state, missing.error_code) == ("Dead", expected)


@versions(DELETE_GROUPS)
def test_groups_are_deleted(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC)
    stable(pond, client)
    client.call(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 5), group_id="other"))
    response = client.call(DELETE_GROUPS, version, groups_names=[GROUP, "other", "nowhere", "other"])
    assert {told.group_id: told.error_code for told in response.results} == {
        GROUP: ErrorCode.non_empty_group,
        "other": ErrorCode.none,
        "nowhere": ErrorCode.group_id_not_found,
    }


# --- Waiting, and being told ------------------------------------------------------------------------------------------


def test_a_follower_waits_for_the_leader_and_others_are_answered_meanwhile(pond: Pond, client: Client) -> None:
    other = pond.client()
    client.send(JOIN_GROUP, 3, **join_tree())
    other.send(JOIN_GROUP, 3, **join_tree())
    assert client.take_all() == other.take_all() == []
    pond.advance(2 * GROUP_INITIAL_REBALANCE_DELAY_MS)
    leader, follower = client.take(), other.take()
    assert len(leader.members) == 2
    assert follower.members == ()
    other.send(SYNC_GROUP, 3, **sync_tree(Member(follower.member_id, 1)))
    assert other.take_all() == []
    assert client.call(LIST_GROUPS, 4, states_filter=[], types_filter=[]).groups[0].group_state == "CompletingRebalance"
    client.call(SYNC_GROUP, 3, **sync_tree(Member(leader.member_id, 1), 0))
    assert other.take().error_code is ErrorCode.none


def test_a_client_that_is_gone_is_not_answered(pond: Pond, client: Client) -> None:
    client.send(JOIN_GROUP, 3, **join_tree())
    client.drop()
    pond.advance(GROUP_INITIAL_REBALANCE_DELAY_MS)
    sent = bytes(client.transport.sent)
    pond.advance(10 * SESSION_MS)
    assert bytes(client.transport.sent) == sent
    assert pond.broker.vhost("/").groups.group(GROUP).is_empty


def test_a_commit_is_answered_when_it_is_durable(durable: DurablePond) -> None:
    durable.topic(TOPIC)
    durable.settle()
    client = durable.client()
    durable.disk.hold_syncs()
    client.send(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 5)))
    # Nor is anybody told of it before.
    asked = {"group_id": GROUP, "topics": None}
    reader = durable.client()
    reader.send(OFFSET_FETCH, 9, groups=[asked])
    assert client.take_all() == reader.take_all() == []
    durable.disk.release_syncs()
    durable.settle()
    assert codes_of(client.take()) == [ErrorCode.none]
    assert reader.take().groups[0].topics[0].partitions[0].committed_offset == 5


def test_a_heartbeat_does_not_wait_for_the_disk(durable: DurablePond) -> None:
    durable.topic(TOPIC)
    client = durable.client()
    client.send(JOIN_GROUP, 3, **join_tree())
    durable.advance(GROUP_INITIAL_REBALANCE_DELAY_MS)
    durable.settle()
    told = client.take()
    member = Member(told.member_id, told.generation_id)
    durable.disk.hold_syncs()
    client.send(HEARTBEAT, 4, **member.identity)
    assert client.take().error_code is ErrorCode.none
    assert not durable.broker.ledger.has_changes()
    durable.disk.release_syncs()


def test_offsets_with_too_much_beside_them_are_refused(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    tree: Any = commit_tree((TOPIC, 0, 5))
    tree["topics"][0]["partitions"][0]["committed_metadata"] = "m" * (OFFSET_METADATA_CHARACTERS_MAX + 1)
    assert codes_of(client.call(OFFSET_COMMIT, 9, **tree)) == [ErrorCode.offset_metadata_too_large]


def test_who_may_not_read_a_topic_has_no_offsets_in_it(pond: Pond, client: Client) -> None:
    for name in (TOPIC, "secret"):
        pond.topic(name)
    client.call(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 5), ("secret", 0, 6)))
    pond.broker.access.set_permission("guest", "/", *3 * (f"^({TOPIC}|{GROUP})$",))
    response = client.call(OFFSET_COMMIT, 9, **commit_tree((TOPIC, 0, 7), ("secret", 0, 8)))
    assert codes_of(response) == [ErrorCode.none, ErrorCode.topic_authorization_failed]
    named = {"group_id": GROUP, "topics": [{"name": "secret", "partition_indexes": [0]}]}
    (group,) = client.call(OFFSET_FETCH, 9, groups=[named]).groups
    (partition,) = group.topics[0].partitions
    assert (partition.error_code, partition.committed_offset) == (ErrorCode.topic_authorization_failed, -1)
    (group,) = client.call(OFFSET_FETCH, 9, groups=[{"group_id": GROUP, "topics": None}]).groups
    assert [topic.name for topic in group.topics] == [TOPIC]


def test_every_error_of_groups_has_a_code_of_its_own() -> None:
    kinds = [kind for kind in vars(group_errors).values() if isinstance(kind, type) and issubclass(kind, PeerError)]
    ours = {kind for kind in kinds if kind.__module__ == group_errors.__name__} - {group_errors.GroupError}
    codes = {kind: code_of(kind("text")) for kind in ours}
    # Apache Kafka has no code for it either.
    assert codes.pop(group_errors.GroupTooLarge) == UNKNOWN_SERVER_ERROR
    assert len(set(codes.values())) == len(codes)
    assert UNKNOWN_SERVER_ERROR not in codes.values()
