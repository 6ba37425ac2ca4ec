"""Groups whose assignment the broker decides, request by request: what each API answers, and which error when."""

from __future__ import annotations

from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from tests.protocols.kafka.harness import Client, DurablePond, Pond

CONSUMER_HEARTBEAT, CONSUMER_DESCRIBE, SHARE_HEARTBEAT, SHARE_DESCRIBE = 68, 69, 76, 77
JOIN_GROUP, DESCRIBE_GROUPS, LIST_GROUPS, OFFSET_COMMIT, OFFSET_FETCH, DELETE_GROUPS = 11, 15, 16, 8, 9, 42
API_VERSIONS, LEAVE_GROUP, INCREMENTAL_ALTER_CONFIGS = 18, 13, 44
GROUP, TOPIC = "crew", "log"


def beat(client: Client, member_id: str = "m", epoch: int = 0, version: int = 1, **changes: object) -> Any:
    """A heartbeat; one with epoch 0 says what a member that joins must say."""
    joining: dict[str, object] = {}
    if epoch == 0:
        joining = {"rebalance_timeout": 60_000, "subscribed_topic_names": [TOPIC], "topic_partitions": []}
    asked = {"group_id": GROUP, "member_id": member_id, "member_epoch": epoch, "topic_partitions": None, **joining}
    return client.call(CONSUMER_HEARTBEAT, version, **{**asked, **changes})


def share_beat(client: Client, member_id: str = "m", epoch: int = 0, **changes: object) -> Any:
    asked = {"group_id": GROUP, "member_id": member_id, "member_epoch": epoch, "subscribed_topic_names": None}
    if epoch == 0:
        asked["subscribed_topic_names"] = [TOPIC]
    return client.call(SHARE_HEARTBEAT, 1, **{**asked, **changes})


def assigned(answer: Any) -> list[int] | None:
    if answer.assignment is None:
        return None
    return sorted(number for topic in answer.assignment.topic_partitions for number in topic.partitions)


def owned(pond: Pond, *numbers: int) -> list[dict[str, object]]:
    return [{"topic_id": pond.topics.by_name[TOPIC].id, "partitions": list(numbers)}]


@pytest.mark.parametrize("version", [0, 1])
def test_a_member_joins_stays_and_leaves(pond: Pond, client: Client, version: int) -> None:
    pond.topic(TOPIC, 3)
    joined = beat(client, version=version)
    assert (joined.error_code, joined.member_id, assigned(joined)) == (ErrorCode.none, "m", [0, 1, 2])
    assert joined.heartbeat_interval.total_seconds() == 5
    stays = beat(client, epoch=joined.member_epoch, version=version)
    assert (stays.member_epoch, assigned(stays)) == (joined.member_epoch, None)
    left = beat(client, epoch=-1, version=version)
    assert (left.error_code, left.member_epoch) == (ErrorCode.none, -1)
    assert beat(client, epoch=joined.member_epoch, version=version).error_code is ErrorCode.unknown_member_id


def test_in_version_0_the_broker_may_choose_the_id(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    assert beat(client, "", version=0).member_id
    assert beat(client, "", version=1).error_code is ErrorCode.invalid_request


def test_a_partition_is_given_to_another_when_it_has_been_given_up(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 2)
    first = beat(client, "a")
    second = beat(client, "b")
    assert assigned(second) == []
    revoked = beat(client, "a", first.member_epoch)
    assert (revoked.member_epoch, len(assigned(revoked) or ())) == (first.member_epoch, 1)
    kept = assigned(revoked) or []
    assert assigned(beat(client, "b", second.member_epoch)) is None, "nobody has let go"
    done = beat(client, "a", first.member_epoch, topic_partitions=owned(pond, *kept))
    assert done.member_epoch == second.member_epoch
    assert assigned(beat(client, "b", second.member_epoch)) == [number for number in (0, 1) if number not in kept]


def test_a_member_that_does_not_give_up_in_time_is_fenced(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 2)
    first, second = beat(client, "a"), beat(client, "b")
    beat(client, "a", first.member_epoch)
    for _ in range(2):
        pond.clock.advance(20_000)
        assert assigned(beat(client, "b", second.member_epoch)) is None
        assert beat(client, "a", first.member_epoch).error_code is ErrorCode.none
    pond.clock.advance(20_000)
    assert beat(client, "a", first.member_epoch).error_code is ErrorCode.unknown_member_id
    assert assigned(beat(client, "b", second.member_epoch)) == [0, 1]


def test_a_silent_member_is_gone_after_its_session(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    joined = beat(client)
    pond.clock.advance(44_999)
    joined = beat(client, epoch=joined.member_epoch)
    pond.clock.advance(45_000)
    assert beat(client, epoch=joined.member_epoch).error_code is ErrorCode.unknown_member_id


def configure(client: Client, **configs: int | None) -> list[int]:
    """Set, or delete where it is None, what GROUP is configured with."""
    changes = [
        {"name": name.replace("_", ".") + ".ms", "config_operation": int(value is None), "value": str(value)}
        for name, value in configs.items()
    ]
    resources = [{"resource_type": 32, "resource_name": GROUP, "configs": changes}]
    answer = client.call(INCREMENTAL_ALTER_CONFIGS, 1, resources=resources, validate_only=False)
    return [response.error_code.value for response in answer.responses]


def test_a_groups_own_session_timeout_and_heartbeat_interval_count(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    assert configure(client, consumer_session_timeout=60_000, consumer_heartbeat_interval=7_000) == [0]
    joined = beat(client)
    assert joined.heartbeat_interval.total_seconds() == 7
    pond.clock.advance(59_999)
    joined = beat(client, epoch=joined.member_epoch)
    assert configure(client, consumer_session_timeout=None, consumer_heartbeat_interval=None) == [0]
    joined = beat(client, epoch=joined.member_epoch)
    assert joined.heartbeat_interval.total_seconds() == 5
    pond.clock.advance(45_000)
    assert beat(client, epoch=joined.member_epoch).error_code is ErrorCode.unknown_member_id


def test_a_share_groups_own_session_timeout_and_heartbeat_interval_count(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    assert configure(client, share_session_timeout=60_000, share_heartbeat_interval=7_000) == [0]
    joined = share_beat(client)
    assert joined.heartbeat_interval.total_seconds() == 7
    pond.clock.advance(59_999)
    assert share_beat(client, epoch=joined.member_epoch).error_code is ErrorCode.none
    pond.clock.advance(60_000)
    assert share_beat(client, epoch=joined.member_epoch).error_code is ErrorCode.unknown_member_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session_timeout", 44_999),
        ("session_timeout", 60_001),
        ("heartbeat_interval", 4_999),
        ("heartbeat_interval", 15_001),
    ],
)
def test_times_of_a_group_have_bounds(client: Client, name: str, value: int) -> None:
    assert configure(client, **{f"consumer_{name}": value}) == [ErrorCode.invalid_config.value]


def test_epochs_are_checked(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    joined = beat(client)
    assert beat(client, epoch=joined.member_epoch + 1).error_code is ErrorCode.fenced_member_epoch
    again = beat(client)
    assert (again.member_epoch, assigned(again)) == (joined.member_epoch, [0]), "it may always begin anew"


def test_an_answer_that_was_lost_does_not_fence_the_member(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 2)
    first = beat(client, "a").member_epoch
    beat(client, "b")
    kept = assigned(beat(client, "a", first)) or []
    later = beat(client, "a", first, topic_partitions=owned(pond, *kept)).member_epoch
    assert later > first
    assert beat(client, "a", first, topic_partitions=owned(pond, *kept)).member_epoch == later
    assert beat(client, "a", first).error_code is ErrorCode.fenced_member_epoch, "it must say what it has"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"group_id": ""}, ErrorCode.invalid_request),
        ({"instance_id": ""}, ErrorCode.invalid_request),
        ({"rack_id": ""}, ErrorCode.invalid_request),
        ({"member_epoch": -3}, ErrorCode.invalid_request),
        ({"member_epoch": -2}, ErrorCode.invalid_request),
        ({"rebalance_timeout": -1}, ErrorCode.invalid_request),
        ({"topic_partitions": None}, ErrorCode.invalid_request),
        ({"subscribed_topic_names": None}, ErrorCode.invalid_request),
        ({"server_assignor": "sticky"}, ErrorCode.unsupported_assignor),
        ({"subscribed_topic_regex": "lo["}, ErrorCode.invalid_regular_expression),
        ({"subscribed_topic_regex": "((a{1000}){1000}){1000}"}, ErrorCode.invalid_regular_expression),
        ({"subscribed_topic_regex": "a" * 1025}, ErrorCode.invalid_regular_expression),
        ({"member_epoch": 7}, ErrorCode.group_id_not_found),
        ({"member_epoch": -1}, ErrorCode.group_id_not_found),
    ],
)
def test_what_cannot_be_is_refused_and_makes_no_group(
    pond: Pond, client: Client, changes: dict[str, object], code: ErrorCode
) -> None:
    assert beat(client, **changes).error_code is code  # type: ignore[arg-type]
    assert not client.call(LIST_GROUPS, 5, states_filter=[], types_filter=[]).groups


def test_a_regular_expression_matches_whole_names(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 2)
    pond.topic("log-2", 1)
    answer = beat(client, subscribed_topic_names=None, subscribed_topic_regex="lo.")
    assert assigned(answer) == [0, 1]


def test_an_instance_id_has_one_owner_until_it_leaves(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    joined = beat(client, "a", instance_id="i")
    assert beat(client, "b", instance_id="i").error_code is ErrorCode.unreleased_instance_id
    assert beat(client, "a", -2, instance_id="i").member_epoch == -2
    again = beat(client, "b", instance_id="i")
    assert (again.member_epoch, assigned(again)) == (joined.member_epoch, [0])
    fenced = beat(client, "a", joined.member_epoch, instance_id="i")
    assert fenced.error_code is ErrorCode.fenced_instance_id


def test_an_operator_removes_members_that_are_away_and_others(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 2)
    beat(client, "a", instance_id="i")
    beat(client, "a", -2, instance_id="i")
    beat(client, "b")
    named = [("", "i"), ("", "nobody"), ("other", "i"), ("b", None)]
    members = [{"member_id": member_id, "group_instance_id": instance_id} for member_id, instance_id in named]
    fenced = client.call(LEAVE_GROUP, 5, group_id=GROUP, members=members[2:3])
    assert [member.error_code for member in fenced.members] == [ErrorCode.fenced_instance_id]
    left = client.call(LEAVE_GROUP, 5, group_id=GROUP, members=members[:2])
    assert [member.error_code for member in left.members] == [ErrorCode.none, ErrorCode.unknown_member_id]
    described = client.call(CONSUMER_DESCRIBE, 1, group_ids=[GROUP], include_authorized_operations=False).groups[0]
    assert [member.member_id for member in described.members] == ["b"]
    left = client.call(LEAVE_GROUP, 5, group_id=GROUP, members=members[3:])
    assert [member.error_code for member in left.members] == [ErrorCode.none]
    described = client.call(CONSUMER_DESCRIBE, 1, group_ids=[GROUP], include_authorized_operations=False).groups[0]
    assert (described.group_state, described.members) == ("Empty", ())


def test_groups_are_described_by_their_own_api(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 2)
    beat(client, "a", instance_id="i")
    share_beat(client, group_id="together")
    asked = {"group_ids": [GROUP, "together", "none"], "include_authorized_operations": True}
    consumer, share, none = client.call(CONSUMER_DESCRIBE, 1, **asked).groups
    assert (consumer.group_state, consumer.assignor_name) == ("Stable", "uniform")
    (member,) = consumer.members
    assert (member.instance_id, member.member_type, list(member.subscribed_topic_names)) == ("i", 1, [TOPIC])
    (place,) = member.assignment.topic_partitions
    assert (place.topic_name, list(place.partitions)) == (TOPIC, [0, 1])
    assert member.target_assignment == member.assignment
    assert {share.error_code, none.error_code} == {ErrorCode.group_id_not_found}
    consumer, share, none = client.call(SHARE_DESCRIBE, 1, **asked).groups
    assert (share.group_state, share.assignor_name, len(share.members)) == ("Stable", "simple", 1)
    assert {consumer.error_code, none.error_code} == {ErrorCode.group_id_not_found}
    (classic,) = client.call(DESCRIBE_GROUPS, 6, groups=[GROUP]).groups
    assert classic.error_code is ErrorCode.group_id_not_found


def test_groups_are_listed_by_type_and_state(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    beat(client)
    share_beat(client, group_id="together")
    listed = client.call(LIST_GROUPS, 5, states_filter=[], types_filter=[]).groups
    assert {(one.group_id, one.group_type, one.group_state) for one in listed} == {
        (GROUP, "consumer", "Stable"),
        ("together", "share", "Stable"),
    }
    (share,) = client.call(LIST_GROUPS, 5, states_filter=[], types_filter=["Share"]).groups
    assert (share.group_id, share.protocol_type) == ("together", "share")


def test_a_name_belongs_to_one_type_of_group(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    beat(client)
    assert share_beat(client).error_code is ErrorCode.group_id_not_found
    share_beat(client, group_id="together")
    assert beat(client, group_id="together").error_code is ErrorCode.group_id_not_found
    (result,) = client.call(DELETE_GROUPS, 2, groups_names=["together"]).results
    assert result.error_code is ErrorCode.non_empty_group
    share_beat(client, epoch=-1, group_id="together")
    (result,) = client.call(DELETE_GROUPS, 2, groups_names=["together"]).results
    assert result.error_code is ErrorCode.none
    assert beat(client, group_id="together").error_code is ErrorCode.none


def test_members_of_a_share_group_read_the_same_partition(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC, 1)
    assert [assigned(share_beat(client, name)) for name in "abc"] == [[0], [0], [0]]
    shares = pond.broker.vhosts["/"].groups.shares
    assert shares.subscribed_topics(GROUP) == {pond.topics.by_name[TOPIC].id}
    assert [shares.is_member(GROUP, name) for name in "az"] == [True, False]


def test_offsets_need_the_epoch_that_the_member_has(pond: Pond, client: Client) -> None:
    pond.topic(TOPIC)
    epoch = beat(client).member_epoch

    def commit(member_id: str, epoch: int, version: int = 9) -> ErrorCode:
        partition = {"partition_index": 0, "committed_offset": 5, "committed_metadata": ""}
        answer = client.call(
            OFFSET_COMMIT, version, group_id=GROUP, member_id=member_id, generation_id_or_member_epoch=epoch,
            retention_time=-1, topics=[{"name": TOPIC, "partitions": [partition]}],
        )  # fmt: skip
        return ErrorCode(answer.topics[0].partitions[0].error_code)

    def fetch(member_id: str | None, epoch: int) -> ErrorCode:
        asked = {"group_id": GROUP, "member_id": member_id, "member_epoch": epoch, "topics": None}
        return ErrorCode(client.call(OFFSET_FETCH, 9, groups=[asked]).groups[0].error_code)

    assert commit("m", epoch) is ErrorCode.none
    assert commit("m", epoch + 1) is ErrorCode.stale_member_epoch
    assert commit("m", epoch, version=8) is ErrorCode.unsupported_version
    assert commit("x", epoch) is ErrorCode.unknown_member_id
    assert commit("", -1) is ErrorCode.unknown_member_id
    assert [fetch("m", epoch), fetch(None, -1)] == [ErrorCode.none] * 2
    assert fetch("m", epoch + 1) is ErrorCode.stale_member_epoch
    assert fetch("x", epoch) is ErrorCode.unknown_member_id
    share_beat(client, group_id="together")
    asked = {"group_id": "together", "topics": None}
    (group,) = client.call(OFFSET_FETCH, 9, groups=[asked]).groups
    assert group.error_code is ErrorCode.group_id_not_found


def test_the_feature_of_the_new_protocol_is_told(client: Client) -> None:
    answer = client.call(API_VERSIONS, 4, client_software_name="x", client_software_version="1")
    told = {one.name: one.max_version_level for one in answer.finalized_features}
    assert told["group.version"] == 1


def test_a_member_hears_of_its_epoch_when_it_is_durable(durable: DurablePond) -> None:
    durable.topic(TOPIC)
    durable.settle()
    client = durable.client()
    durable.disk.hold_syncs()
    client.send(
        CONSUMER_HEARTBEAT, 1, group_id=GROUP, member_id="m", member_epoch=0, rebalance_timeout=60_000,
        subscribed_topic_names=[TOPIC], topic_partitions=[],
    )  # fmt: skip
    assert client.take_all() == []
    durable.disk.release_syncs()
    durable.settle()
    assert assigned(client.take()) == [0]
