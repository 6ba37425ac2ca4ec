"""Committing offsets, deleting them, and letting them expire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from millpond.base import limits
from millpond.base.clock import ManualClock
from millpond.base.errors import PeerError
from millpond.broker.groups import offsets as offsets_module
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS, MINUTE_MS, GroupCoordinator
from millpond.broker.groups.errors import (
    FencedInstance,
    GroupNotEmpty,
    GroupNotFound,
    GroupSubscribed,
    IllegalGeneration,
    InvalidGroupName,
    OffsetMetadataTooLarge,
    RebalanceInProgress,
    TooManyOffsets,
    UnknownMember,
)
from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.broker.groups.records import EMPTY, STABLE
from tests.broker.group_members import (
    DELAY_MS,
    GROUP,
    SESSION_MS,
    Client,
    groups_without_disk,
    stabilise,
    subscription,
)

RETENTION_MS = limits.OFFSETS_RETENTION_MINUTES * MINUTE_MS
LOOK_MS = limits.OFFSETS_EXPIRY_CHECK_MS


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def groups(clock: ManualClock) -> GroupCoordinator:
    return groups_without_disk(clock)


def commit(
    groups: GroupCoordinator, *offsets: tuple[str, int, int], by: Client | None = None, group: str = GROUP, **rest: int
) -> None:
    """Commit (topic, partition, offset)s, as a member or as nobody."""
    refused = groups.offsets.commit(request_of(*offsets, by=by, group=group, **rest))
    assert not refused


def request_of(
    *offsets: tuple[str, int, int], by: Client | None = None, group: str = GROUP, **rest: int
) -> CommitRequest:
    member = {} if by is None else {"member_id": by.member_id, "generation": by.generation}
    return CommitRequest(group, tuple(OffsetCommit(*one) for one in offsets), **member, **rest)  # type: ignore[arg-type]


def places(groups: GroupCoordinator, group: str = GROUP) -> dict[tuple[str, int], int]:
    """What is committed."""
    return {
        (topic, partition): committed.offset
        for topic, partitions in groups.offsets.of(group).items()
        for partition, committed in partitions.items()
    }


def member(groups: GroupCoordinator, clock: ManualClock, **options: object) -> Client:
    client = Client(lambda: groups, "reader", **options)  # type: ignore[arg-type]
    stabilise(clock, client)
    return client


# --- Committing -------------------------------------------------------------------------------------------------------


def test_a_member_commits_and_anybody_finds_it(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    commit(groups, ("log", 0, 7), ("log", 1, 8), by=client)
    commit(groups, ("log", 0, 9), by=client)
    assert places(groups) == {("log", 0): 9, ("log", 1): 8}
    committed = groups.offsets.of(GROUP)["log"][0]
    assert (committed.leader_epoch, committed.metadata, committed.committed_ms) == (-1, "", clock.wall_ms())


def test_a_consumer_without_a_group_keeps_its_offsets_in_one(groups: GroupCoordinator) -> None:
    commit(groups, ("log", 0, 7))
    group = groups.group(GROUP)
    assert (group.state, group.head.protocol_type, group.generation) == (EMPTY, None, 0)


def test_a_group_that_is_not_there_has_no_offsets(groups: GroupCoordinator) -> None:
    assert not groups.offsets.of("nowhere")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"member_id": "nobody"}, UnknownMember),
        ({"member_id": "", "generation": -1}, UnknownMember),
        ({"generation": 0}, IllegalGeneration),
        ({"generation": -1}, IllegalGeneration),
        ({"instance_id": "s", "member_id": "other"}, FencedInstance),
        ({"instance_id": "t"}, UnknownMember),
        ({"group": "nowhere"}, GroupNotFound),
    ],
)
def test_only_members_of_this_generation_commit(
    groups: GroupCoordinator, clock: ManualClock, change: dict[str, object], error: type[PeerError]
) -> None:
    client = member(groups, clock, instance_id="s")
    request = replace(request_of(("log", 0, 1), by=client), **change)  # type: ignore[arg-type]
    with pytest.raises(error):
        groups.offsets.commit(request)
    assert not places(groups)


def test_nobody_commits_between_joining_and_syncing(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = Client(lambda: groups).join()
    clock.advance(DELAY_MS)
    with pytest.raises(RebalanceInProgress):
        commit(groups, ("log", 0, 1), by=client)


def test_members_may_commit_what_they_have_before_they_join_again(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    Client(lambda: groups, "new").join()
    commit(groups, ("log", 0, 1), by=client)
    assert places(groups) == {("log", 0): 1}


def test_a_commit_is_a_sign_of_life(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    for number in range(10):
        clock.advance(SESSION_MS - 1)
        commit(groups, ("log", 0, number), by=client)
    assert groups.group(GROUP).state == STABLE


def test_an_offset_with_too_much_beside_it_is_refused_alone(groups: GroupCoordinator) -> None:
    long = OffsetCommit("log", 0, 1, 3, "m" * (limits.OFFSET_METADATA_CHARACTERS_MAX + 1))
    refused = groups.offsets.commit(CommitRequest(GROUP, (long, OffsetCommit("log", 1, 2, 3, "note"))))
    assert {place: type(error) for place, error in refused.items()} == {("log", 0): OffsetMetadataTooLarge}
    committed = groups.offsets.of(GROUP)["log"][1]
    assert (committed.offset, committed.leader_epoch, committed.metadata) == (2, 3, "note")


def test_there_are_only_so_many_offsets(
    groups: GroupCoordinator, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets_module, "OFFSETS_PER_GROUP_MAX", 2)
    commit(groups, ("log", 0, 1), ("log", 1, 1))
    with pytest.raises(TooManyOffsets):
        commit(groups, ("log", 2, 1))
    commit(groups, ("log", 0, 2), ("log", 1, 2))
    monkeypatch.undo()
    few = groups_without_disk(clock, replace(DEFAULT_SETTINGS, offsets_max=1))
    commit(few, ("log", 0, 1), group="one")
    with pytest.raises(TooManyOffsets):
        commit(few, ("log", 0, 1), group="other")
    few.delete("one")
    commit(few, ("log", 0, 1), group="other")


def test_what_is_written_beside_all_offsets_has_a_limit(
    groups: GroupCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets_module, "OFFSETS_METADATA_CHARACTERS_MAX", 10)
    noted = OffsetCommit("log", 0, 1, metadata="six..!")
    groups.offsets.commit(CommitRequest("one", (noted,)))
    with pytest.raises(TooManyOffsets):
        groups.offsets.commit(CommitRequest("other", (noted,)))
    commit(groups, ("log", 0, 1), group="other")
    groups.offsets.topic_deleted("log")
    assert groups.store.totals.metadata == 0


def test_a_group_with_a_name_that_is_too_long_is_refused(groups: GroupCoordinator) -> None:
    with pytest.raises(InvalidGroupName):
        commit(groups, ("log", 0, 1), group="g" * (limits.GROUP_NAME_BYTES_MAX + 1))


# --- Deleting ---------------------------------------------------------------------------------------------------------


def test_offsets_of_topics_that_nobody_reads_are_deleted(groups: GroupCoordinator, clock: ManualClock) -> None:
    commit(groups, ("log", 0, 1), ("old", 0, 1), ("old", 1, 1))
    member(groups, clock)
    refused = groups.offsets.delete(GROUP, [("log", 0), ("old", 0), ("old", 7)])
    assert {place: type(error) for place, error in refused.items()} == {("log", 0): GroupSubscribed}
    assert places(groups) == {("log", 0): 1, ("old", 1): 1}


def test_an_empty_group_lets_all_its_offsets_be_deleted(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    commit(groups, ("log", 0, 1), by=client)
    client.leave()
    assert not groups.offsets.delete(GROUP, [("log", 0)])
    assert not places(groups)


def test_of_members_that_are_no_consumers_it_is_not_known_what_they_read(
    groups: GroupCoordinator, clock: ManualClock
) -> None:
    member(groups, clock, protocol_type="connect")
    with pytest.raises(GroupNotEmpty):
        groups.offsets.delete(GROUP, [("log", 0)])
    with pytest.raises(GroupNotFound):
        groups.offsets.delete("nowhere", [("log", 0)])


@pytest.mark.parametrize("metadata", [b"", b"\x00", b"\x00\x00\x7f\xff\xff\xff", b"\xff\xff\x00\x00\x00\x00"])
def test_consumers_whose_subscription_cannot_be_read_may_read_anything(
    groups: GroupCoordinator, clock: ManualClock, metadata: bytes
) -> None:
    commit(groups, ("log", 0, 1))
    member(groups, clock, protocols=(("range", metadata),))
    refused = groups.offsets.delete(GROUP, [("log", 0)])
    assert [type(error) for error in refused.values()] == [GroupSubscribed]


def test_a_topic_that_is_deleted_is_forgotten_by_all_groups(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    commit(groups, ("log", 0, 1), ("more", 0, 2), by=client)
    commit(groups, ("log", 3, 1), group="other")
    groups.offsets.topic_deleted("log")
    assert places(groups) == {("more", 0): 2}
    assert not places(groups, "other")


def test_a_group_is_deleted_when_it_has_no_members(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    commit(groups, ("log", 0, 1), by=client)
    with pytest.raises(GroupNotEmpty):
        groups.delete(GROUP)
    client.leave()
    groups.delete(GROUP)
    with pytest.raises(GroupNotFound):
        groups.delete(GROUP)
    assert groups.store.totals.groups == groups.store.totals.offsets == 0
    assert not groups.store.topics


# --- Expiry -----------------------------------------------------------------------------------------------------------


def test_offsets_expire_when_the_group_has_been_empty_for_long(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock)
    commit(groups, ("log", 0, 1), by=client)
    clock.advance(SESSION_MS // 2)
    client.leave()
    clock.advance(RETENTION_MS - LOOK_MS)
    assert places(groups) == {("log", 0): 1}
    clock.advance(2 * LOOK_MS)
    assert not list(groups.groups())


def test_offsets_of_what_members_read_never_expire(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = member(groups, clock, session_ms=limits.GROUP_SESSION_TIMEOUT_MAX_MS)
    commit(groups, ("log", 0, 1), ("old", 0, 1), by=client)
    for _ in range(RETENTION_MS // limits.GROUP_SESSION_TIMEOUT_MAX_MS + 2):
        clock.advance(limits.GROUP_SESSION_TIMEOUT_MAX_MS - 1)
        client.heartbeat()
    assert places(groups) == {("log", 0): 1}


def test_offsets_of_a_group_that_never_had_members_expire_by_their_own_age(
    groups: GroupCoordinator, clock: ManualClock
) -> None:
    commit(groups, ("log", 0, 1))
    clock.advance(RETENTION_MS // 2)
    commit(groups, ("log", 1, 1))
    clock.advance(RETENTION_MS // 2 + LOOK_MS)
    assert places(groups) == {("log", 1): 1}


def test_a_client_may_say_how_long_its_offsets_are_kept(groups: GroupCoordinator, clock: ManualClock) -> None:
    commit(groups, ("log", 0, 1), retention_ms=1)
    commit(groups, ("log", 1, 1), retention_ms=RETENTION_MS * 2)
    clock.advance(LOOK_MS)
    assert places(groups) == {("log", 1): 1}
    clock.advance(RETENTION_MS + LOOK_MS)
    assert places(groups) == {("log", 1): 1}
    clock.advance(RETENTION_MS)
    assert not places(groups)


def test_an_empty_group_without_offsets_goes(groups: GroupCoordinator, clock: ManualClock) -> None:
    member(groups, clock).leave()
    assert list(groups.groups())
    clock.advance(LOOK_MS)
    assert not list(groups.groups())


def test_many_groups_are_looked_at_a_few_at_a_time(
    groups: GroupCoordinator, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millpond.broker.groups.coordinator.OFFSETS_EXPIRY_AT_ONCE", 10)
    for number in range(25):
        commit(groups, ("log", 0, number), group=str(number), retention_ms=1)
    clock.advance(LOOK_MS)
    assert len(list(groups.groups())) == 20
    clock.advance(10)
    assert not list(groups.groups())


def test_a_group_that_a_client_is_about_to_join_stays(groups: GroupCoordinator, clock: ManualClock) -> None:
    client = Client(lambda: groups, session_ms=limits.GROUP_SESSION_TIMEOUT_MAX_MS)
    client.ask_to_join()
    clock.advance(LOOK_MS)
    client.ask_to_join()
    assert client.joined is None
    assert groups.group(GROUP).subscribed_topics() is None
    clock.advance(DELAY_MS)
    assert groups.group(GROUP).subscribed_topics() == {"log"}
    assert subscription("log") == client.protocols[0][1]
