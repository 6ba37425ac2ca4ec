"""How far groups have come: committing offsets, deleting them, and letting them expire.

A commit needs a member of the present generation, or a group without members: "simple" consumers keep their offsets in
a group that they never join.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from millpond.base.errors import PeerError
from millpond.base.limits import OFFSET_METADATA_CHARACTERS_MAX, OFFSETS_METADATA_CHARACTERS_MAX, OFFSETS_PER_GROUP_MAX
from millpond.broker.groups.errors import (
    GroupNotEmpty,
    GroupNotFound,
    GroupSubscribed,
    IllegalGeneration,
    OffsetMetadataTooLarge,
    OldClient,
    RebalanceInProgress,
    StaleMemberEpoch,
    TooManyOffsets,
    UnknownMember,
)
from millpond.broker.groups.group import Group
from millpond.broker.groups.membership import Membership
from millpond.broker.groups.modern import ModernMember
from millpond.broker.groups.modern_records import CONSUMER, SHARE
from millpond.broker.groups.records import (
    COMPLETING_REBALANCE,
    STABLE,
    CommittedOffset,
    OffsetsCommitted,
    OffsetsDeleted,
    TopicDeleted,
)
from millpond.broker.groups.store import GroupStore

# (topic, partition)
Place = tuple[str, int]
Committed = tuple[tuple[str, int, CommittedOffset], ...]


@dataclass(frozen=True, slots=True)
class OffsetCommit:
    """One offset of a commit."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int = -1
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Offsets that a group has come to. Topics and partitions exist: the caller has looked."""

    group: str
    offsets: tuple[OffsetCommit, ...]
    # Empty, and -1, for one who is no member.
    member_id: str = ""
    generation: int = -1
    instance_id: str | None = None
    # How long the offsets are to be kept; -1 for the group's own time.
    retention_ms: int = -1
    # The client says which epoch it has, where members have epochs.
    knows_epochs: bool = True


class Offsets:
    """The offsets of all groups of a virtual host."""

    def __init__(self, store: GroupStore, membership: Membership) -> None:
        self._store: Final = store
        self._membership: Final = membership

    def commit(self, request: CommitRequest) -> Mapping[Place, PeerError]:
        """Remember offsets. Those that are refused, each with the reason.

        GroupNotFound, UnknownMember, FencedInstance, IllegalGeneration, RebalanceInProgress where it is not the
        client's to commit; TooManyOffsets.
        """
        group = self._store.groups.get(request.group)
        if group is None:
            if request.generation >= 0:
                raise GroupNotFound(f"there is no group '{request.group}'")
        else:
            self._check_committer(group, request)
        refused, committed = self._checked(group, request)
        if group is None:
            group = self._store.create(request.group)
        if committed:
            self._store.record(OffsetsCommitted(group.id, committed))
        return refused

    def check_transactional(self, request: CommitRequest) -> tuple[Mapping[Place, PeerError], Committed]:
        """The same for offsets that wait for a transaction's end, and are not committed here. Those that are refused,
        and the others.

        As Kafka has it, older clients do not say who they are, and a rebalance does not matter.
        """
        group = self._store.groups.get(request.group)
        if group is None:
            if request.generation >= 0:
                raise IllegalGeneration(f"there is no group '{request.group}'")
        elif group.modern is not None:
            self._check_modern_transactional(group, request)
        elif request.generation >= 0 or request.member_id or request.instance_id is not None:
            if request.generation >= 0 or not group.is_empty:
                group.member(request.member_id, request.instance_id)
                if request.generation != group.generation:
                    raise IllegalGeneration(f"group '{group.id}' is in generation {group.generation}")
        refused, committed = self._checked(group, request)
        if self._store.pending.count + len(committed) > self._store.settings.offsets_max:
            raise TooManyOffsets(f"at most {self._store.settings.offsets_max} offsets wait for transactions")
        return refused, committed

    def _check_modern_transactional(self, group: Group, request: CommitRequest) -> None:
        if group.type != CONSUMER:
            raise GroupNotFound(f"Group {group.id} is not a consumer group.")
        is_told = request.generation >= 0 or bool(request.member_id) or request.instance_id is not None
        if is_told and (request.generation >= 0 or not group.is_empty):
            try:
                self.check_epoch(group, request.member_id, request.generation)
            except StaleMemberEpoch as error:
                raise IllegalGeneration(str(error)) from None

    def ensure_group(self, group_id: str) -> None:
        """Have a group of this name, without members where it is new."""
        if group_id not in self._store.groups:
            self._store.create(group_id)

    def is_unstable(self, group_id: str, topic: str, partition: int) -> bool:
        """Whether a transaction is open that may change this offset."""
        return self._store.pending.has(group_id, topic, partition)

    def _checked(self, group: Group | None, request: CommitRequest) -> tuple[dict[Place, PeerError], Committed]:
        """The offsets that are refused, and the others as they are to be remembered. TooManyOffsets."""
        now_ms = self._store.clock.wall_ms()
        expires_ms = -1 if request.retention_ms < 0 else now_ms + request.retention_ms
        refused: dict[Place, PeerError] = {}
        committed: list[tuple[str, int, CommittedOffset]] = []
        for one in request.offsets:
            if len(one.metadata) > OFFSET_METADATA_CHARACTERS_MAX:
                refused[one.topic, one.partition] = OffsetMetadataTooLarge(
                    f"an offset's metadata has at most {OFFSET_METADATA_CHARACTERS_MAX} characters"
                )
                continue
            value = CommittedOffset(one.offset, one.leader_epoch, one.metadata, now_ms, expires_ms)
            committed.append((one.topic, one.partition, value))
        self._check_count(group, committed)
        return refused, tuple(committed)

    def _check_committer(self, group: Group, request: CommitRequest) -> None:
        if group.modern is not None:
            if request.generation < 0 and group.type == CONSUMER and group.is_empty:
                return
            member_id = request.member_id
            member_state = _modern_member(group, member_id).state
            if member_state.classic is None and not request.knows_epochs:
                raise OldClient(
                    "OffsetCommit version 9 or above must be used by members using the modern group protocol"
                )
            self.check_epoch(group, member_id, request.generation)
            return
        if request.generation < 0 and group.is_empty:
            return
        if request.generation < 0 and not request.member_id and request.instance_id is None:
            raise UnknownMember(f"group '{group.id}' has members, and only they commit its offsets")
        member = group.member(request.member_id, request.instance_id)
        if request.generation != group.generation:
            raise IllegalGeneration(f"group '{group.id}' is in generation {group.generation}")
        if group.state == COMPLETING_REBALANCE:
            # The member has joined this generation, but it has no partitions in it yet.
            raise RebalanceInProgress(f"group '{group.id}' is rebalancing")
        self._membership.seen(group, member)

    def check_fetcher(self, group_id: str, member_id: str | None, epoch: int) -> None:
        """Whether a client may be told the offsets of a group, where it says which member it is. GroupNotFound for a
        share group, UnknownMember, StaleMemberEpoch, IllegalGeneration."""
        group = self._store.groups.get(group_id)
        if group is None or group.modern is None:
            return
        if group.type != CONSUMER:
            raise GroupNotFound(f"Group {group_id} is not a consumer group.")
        if member_id is not None or epoch >= 0:
            self.check_epoch(group, member_id or "", epoch)

    def check_epoch(self, group: Group, member_id: str, epoch: int) -> None:
        """UnknownMember, or StaleMemberEpoch (IllegalGeneration for who speaks the classic protocol)."""
        member = _modern_member(group, member_id)
        if epoch != member.current.epoch:
            told = f"member {member_id} of group '{group.id}' has epoch {member.current.epoch}"
            raise IllegalGeneration(told) if member.is_classic else StaleMemberEpoch(told)

    def _check_count(self, group: Group | None, committed: list[tuple[str, int, CommittedOffset]]) -> None:
        totals, settings = self._store.totals, self._store.settings
        characters = sum(len(one.metadata) for _, _, one in committed)
        if characters and totals.metadata + characters > OFFSETS_METADATA_CHARACTERS_MAX:
            raise TooManyOffsets(f"beside all offsets there are at most {OFFSETS_METADATA_CHARACTERS_MAX} characters")
        count = group.offset_count if group is not None else 0
        if count + len(committed) <= OFFSETS_PER_GROUP_MAX and totals.offsets + len(committed) <= settings.offsets_max:
            return
        known = group.offsets if group is not None else {}
        new = len({(topic, partition) for topic, partition, _ in committed if partition not in known.get(topic, {})})
        if new and (count + new > OFFSETS_PER_GROUP_MAX or totals.offsets + new > settings.offsets_max):
            raise TooManyOffsets(
                f"a group has at most {OFFSETS_PER_GROUP_MAX} offsets, and all together {settings.offsets_max}"
            )

    def of(self, group_id: str) -> Mapping[str, Mapping[int, CommittedOffset]]:
        """A group's offsets by topic and partition; none for a group that is not there."""
        group = self._store.groups.get(group_id)
        return group.offsets if group is not None else {}

    def delete(self, group_id: str, places: list[Place]) -> Mapping[Place, PeerError]:
        """Forget offsets, whether they are there or not. Those that are refused, because members read the topic.

        GroupNotFound; GroupNotEmpty where it is not known what the members read.
        """
        group = self._store.groups.get(group_id)
        if group is None:
            raise GroupNotFound(f"there is no group '{group_id}'")
        if group.type == SHARE:
            raise GroupNotFound(f"Group {group_id} is not a consumer group.")
        if not group.is_empty and not group.reads_topics:
            raise GroupNotEmpty(f"group '{group_id}' has members")
        subscribed = {topic for topic in {topic for topic, _ in places} if group.is_subscribed(topic)}
        refused: dict[Place, PeerError] = {
            place: GroupSubscribed(f"members of group '{group_id}' read topic '{place[0]}'")
            for place in places
            if place[0] in subscribed
        }
        deleted = [
            (topic, partition)
            for topic, partition in places
            if topic not in subscribed
            and (partition in group.offsets.get(topic, ()) or self._store.pending.has(group_id, topic, partition))
        ]
        if deleted:
            self._store.record(OffsetsDeleted(group_id, tuple(deleted)))
        return refused

    def topic_deleted(self, topic: str) -> None:
        """No group has come anywhere in a topic that is gone. A new one of this name begins anew."""
        if topic in self._store.topics or self._store.pending.count > 0:
            self._store.record(TopicDeleted(topic))

    def expire(self, group: Group) -> bool:
        """Forget those offsets of a group that are too old. Whether none is left."""
        since_ms = _expiry_begins(group)
        if since_ms is None:
            return group.offset_count == 0
        now_ms, retention_ms = self._store.clock.wall_ms(), self._store.settings.offsets_retention_ms
        subscribed = group.subscribed_topics() or set()
        expired: list[Place] = []
        for topic, partitions in group.offsets.items():
            if topic in subscribed:
                continue
            for partition, committed in partitions.items():
                begins_ms = committed.committed_ms if since_ms < 0 else since_ms
                expires_ms = committed.expires_ms if committed.expires_ms >= 0 else begins_ms + retention_ms
                if now_ms >= expires_ms and not self._store.pending.has(group.id, topic, partition):
                    expired.append((topic, partition))
        if expired:
            self._store.record(OffsetsDeleted(group.id, tuple(expired)))
        return group.offset_count == 0


def _modern_member(group: Group, member_id: str) -> ModernMember:
    if group.modern is None or group.type != CONSUMER:
        raise GroupNotFound(f"Group {group.id} is not a consumer group.")
    return group.modern.member(member_id)


def _expiry_begins(group: Group) -> int | None:
    """From when on the offsets of a group age: a time, -1 for when each was committed, None where they do not.

    A group that had members keeps them until it has been empty for long; one that never had any, until they are old.
    While it has members, only what they no longer read ages.
    """
    if group.modern is not None or group.head.protocol_type is None:
        return -1
    if group.is_empty:
        return group.head.since_ms
    if group.state == STABLE and group.subscribed_topics() is not None:
        return -1
    return None
