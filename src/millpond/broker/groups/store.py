"""The groups of a virtual host, and the one way in which they change durably.

    decide (membership.py, offsets.py) -> record -> apply

`record` tells the journal and applies; recovery applies what the journal tells. Heartbeats change nothing durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from millpond.base.limits import (
    GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS,
    GROUP_CONSUMER_SESSION_TIMEOUT_MS,
    GROUP_NAME_BYTES_MAX,
    GROUP_SHARE_HEARTBEAT_INTERVAL_MS,
    GROUP_SHARE_MEMBERS_MAX,
    GROUP_SHARE_SESSION_TIMEOUT_MS,
    SHARE_LOCK_DURATION_MAX_MS,
    SHARE_LOCK_DURATION_MIN_MS,
)
from millpond.broker.groups.errors import GroupFull, InvalidGroupName
from millpond.broker.groups.group import Group, Member
from millpond.broker.groups.modern import ModernGroup
from millpond.broker.groups.modern_records import ModernHead, ModernHeadChanged, ModernRecord
from millpond.broker.groups.pending import PendingOffsets
from millpond.broker.groups.records import (
    COMPLETING_REBALANCE,
    PREPARING_REBALANCE,
    STABLE,
    Assigned,
    Cleared,
    CommittedOffset,
    GroupDeleted,
    GroupHead,
    HeadChanged,
    MemberChanged,
    MemberRemoved,
    MemberState,
    OffsetsCommitted,
    OffsetsDeleted,
    Record,
    TopicDeleted,
    encode_record,
)
from millpond.broker.keepers import KeeperState
from millpond.broker.records import CHANGE_GROUP

if TYPE_CHECKING:
    from millpond.base.clock import Clock
    from millpond.broker.ledger import Ledger
    from millpond.broker.turn import Turn


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What an operator may set."""

    session_timeout_min_ms: int
    session_timeout_max_ms: int
    initial_rebalance_delay_ms: int
    members_max: int
    offsets_retention_ms: int
    groups_max: int
    offsets_max: int
    # Of groups whose assignment the broker decides.
    consumer_session_timeout_ms: int = GROUP_CONSUMER_SESSION_TIMEOUT_MS
    consumer_heartbeat_interval_ms: int = GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS
    consumer_migration_policy: str = "bidirectional"
    share_session_timeout_ms: int = GROUP_SHARE_SESSION_TIMEOUT_MS
    share_heartbeat_interval_ms: int = GROUP_SHARE_HEARTBEAT_INTERVAL_MS
    share_members_max: int = GROUP_SHARE_MEMBERS_MAX
    # Between these a share group chooses how long its members have a record for themselves.
    share_lock_duration_min_ms: int = SHARE_LOCK_DURATION_MIN_MS
    share_lock_duration_max_ms: int = SHARE_LOCK_DURATION_MAX_MS


class GroupTotals:
    """What the groups of all virtual hosts have together."""

    def __init__(self) -> None:
        self.groups = 0
        self.offsets = 0
        # Characters that clients have written beside offsets.
        self.metadata = 0
        # What members say of themselves and are assigned.
        self.member_bytes = 0


class GroupState(KeeperState):
    """A group as it was at the moment of a checkpoint: copies of references to what never changes."""

    def __init__(self, vhost: str, group: Group) -> None:
        self._vhost: Final = vhost
        self._id: Final = group.id
        self._head: Final[GroupHead] = group.head
        self._members: Final[list[MemberState]] = [member.state for member in group.members.values()]
        modern = group.modern
        self._modern: Final[list[ModernRecord]] = [] if modern is None else modern.records(group.id)
        self._offsets: Final[dict[str, dict[int, CommittedOffset]]] = {
            topic: dict(partitions) for topic, partitions in group.offsets.items()
        }

    def records(self) -> list[bytes]:
        records: list[Record] = [HeadChanged(self._id, self._head)]
        records += [MemberChanged(self._id, member) for member in self._members]
        records += self._modern
        for topic, partitions in self._offsets.items():
            offsets = tuple([(topic, partition, committed) for partition, committed in partitions.items()])
            records.append(OffsetsCommitted(self._id, offsets))
        return [encode_record(self._vhost, record) for record in records]


def _not_configured(_group_id: str) -> Mapping[str, str]:
    return {}


class GroupStore:
    """The groups of one virtual host."""

    def __init__(
        self, vhost: str, settings: GroupSettings, totals: GroupTotals, clock: Clock, turn: Turn, ledger: Ledger
    ) -> None:
        self.vhost: Final = vhost
        self.settings: Final = settings
        self.totals: Final = totals
        self.clock: Final = clock
        self._turn: Final = turn
        self._ledger: Final = ledger
        self.groups: Final[dict[str, Group]] = {}
        # Offsets that wait for a transaction's end; the transactions' own records keep them.
        self.pending: Final = PendingOffsets()
        # How a group is configured, where it is configured by itself.
        self.configs: Callable[[str], Mapping[str, str]] = _not_configured
        # In how many groups a topic has offsets.
        self.topics: Final[dict[str, int]] = {}
        # The commit that covers everything that groups have been told so far.
        self.sequence = 0

    def configured(self, group_id: str, name: str, default: int) -> int:
        """A number that a group may be configured with; what it is where the group is not."""
        value = self.configs(group_id).get(name)
        return default if value is None else int(value)

    def create(self, group_id: str) -> Group:
        """A new classic group. InvalidGroupName, or GroupFull where there are too many."""
        self._check_new(group_id)
        self.record(HeadChanged(group_id, GroupHead(since_ms=self.clock.wall_ms())))
        return self.groups[group_id]

    def create_modern(self, group_id: str, group_type: str) -> ModernGroup:
        """A new group of another type. Errors as `create`."""
        self._check_new(group_id)
        return self.make_modern(group_id, group_type)

    def make_modern(self, group_id: str, group_type: str, epoch: int = 0) -> ModernGroup:
        """Let a group be of another type; its offsets stay."""
        head = ModernHead(group_type, epoch, epoch, since_ms=self.clock.wall_ms())
        self.record(ModernHeadChanged(group_id, head))
        modern = self.groups[group_id].modern
        assert modern is not None
        return modern

    def _check_new(self, group_id: str) -> None:
        if len(group_id.encode("utf-8", "surrogateescape")) > GROUP_NAME_BYTES_MAX:
            raise InvalidGroupName(f"a group's name has at most {GROUP_NAME_BYTES_MAX} bytes")
        if self.totals.groups >= self.settings.groups_max:
            raise GroupFull(f"there are {self.settings.groups_max} groups already")

    def record(self, *records: Record) -> None:
        """Make a change: whoever is told of it has to wait for the commit `sequence`."""
        ledger = self._ledger
        # A broker that keeps nothing has none, and before the end of recovery there is nothing to be told.
        is_kept = ledger.journal is not None
        for record in records:
            if is_kept:
                ledger.recorded(CHANGE_GROUP, encode_record(self.vhost, record))
            self.apply(record)
        if is_kept:
            self.sequence = int(ledger.sequence())
            ledger.sync_wanted = True
            self._turn.touch()

    def change_head(self, group: Group, head: GroupHead) -> None:
        """Record a change of a group's state, generation, protocol or leader."""
        if head.state != group.head.state:
            head = replace(head, since_ms=self.clock.wall_ms())
        if head != group.head:
            self.record(HeadChanged(group.id, head))

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Change what is durable. What a record speaks of need not be there: part of the journal may be gone."""
        if isinstance(record, OffsetsCommitted):
            self._apply_offsets(self._found(record.group), record.offsets)
        elif isinstance(record, HeadChanged):
            self._apply_head(self._found(record.group), record.head)
        elif isinstance(record, ModernRecord):
            self._apply_modern(record)
        elif isinstance(record, MemberChanged):
            self._apply_member(self._found(record.group), record.member)
        elif isinstance(record, (MemberRemoved, Assigned, OffsetsDeleted)):
            group = self.groups.get(record.group)
            if group is not None:
                self._apply_within(group, record)
        elif isinstance(record, GroupDeleted):
            self._delete(record.group)
        elif isinstance(record, TopicDeleted):
            for group in self.groups.values():
                for partition in list(group.offsets.get(record.topic, ())):
                    self._delete_offset(group, record.topic, partition)
            self.pending.forget_topic(record.topic)
        elif isinstance(record, Cleared):
            for group_id in list(self.groups):
                self._delete(group_id)

    def _apply_within(self, group: Group, record: MemberRemoved | Assigned | OffsetsDeleted) -> None:
        if isinstance(record, MemberRemoved):
            self._remove_member(group, record.member_id)
        elif isinstance(record, Assigned):
            self._assign(group, record)
        else:
            for topic, partition in record.places:
                self._delete_offset(group, topic, partition)
            self.pending.forget_places(group.id, record.places)

    def _found(self, group_id: str) -> Group:
        group = self.groups.get(group_id)
        if group is None:
            group = self.groups[group_id] = Group(group_id)
            self.totals.groups += 1
        return group

    def _apply_head(self, group: Group, head: GroupHead) -> None:
        if group.modern is not None:
            self._remove_members(group)
        if group.head.state == COMPLETING_REBALANCE and head.state == PREPARING_REBALANCE:
            # Nobody got the assignments of that generation, and those of the one before it are over.
            self._set_assignments(group, {})
        group.head = head

    def _apply_modern(self, record: ModernRecord) -> None:
        if isinstance(record, ModernHeadChanged):
            group = self._found(record.group)
            if group.modern is None or group.modern.type != record.head.type:
                self._remove_members(group)
                group.head = GroupHead()
                group.modern = ModernGroup(record.head)
        modern = self._modern(record.group)
        if modern is not None:
            self._count_bytes(self.groups[record.group], modern.apply(record))

    def _modern(self, group_id: str) -> ModernGroup | None:
        group = self.groups.get(group_id)
        return None if group is None else group.modern

    def _remove_members(self, group: Group) -> None:
        """The group is of another type from now on."""
        for member_id in list(group.members):
            self._remove_member(group, member_id)
        group.stop()
        if group.modern is not None:
            for member_id in list(group.modern.members):
                self._remove_member(group, member_id)
            group.modern = None

    def _apply_member(self, group: Group, state: MemberState) -> None:
        member = group.members.get(state.member_id)
        if member is None:
            member = group.members[state.member_id] = Member(state)
        else:
            self._count_member(group, member.state, -1)
            member.state = state
        self._count_member(group, state, 1)
        if state.instance_id is not None:
            group.instances[state.instance_id] = state.member_id

    def _remove_member(self, group: Group, member_id: str) -> None:
        if group.modern is not None:
            self._count_bytes(group, group.modern.remove(member_id))
        member = group.members.pop(member_id, None)
        if member is None:
            return
        self._count_member(group, member.state, -1)
        instance_id = member.state.instance_id
        if instance_id is not None and group.instances.get(instance_id) == member_id:
            del group.instances[instance_id]
        if member.session is not None:
            member.session.stop()

    def _count_member(self, group: Group, state: MemberState, sign: int) -> None:
        self._count_bytes(group, sign * state.size)
        for name in {name for name, _ in state.protocols}:
            count = group.supporters.get(name, 0) + sign
            if count > 0:
                group.supporters[name] = count
            else:
                group.supporters.pop(name, None)

    def _count_bytes(self, group: Group, change: int) -> None:
        group.member_bytes += change
        self.totals.member_bytes += change

    def _assign(self, group: Group, record: Assigned) -> None:
        self._set_assignments(group, dict(record.assignments))
        group.head = replace(group.head, state=STABLE, since_ms=record.since_ms)

    def _set_assignments(self, group: Group, assignments: dict[str, bytes]) -> None:
        for member in group.members.values():
            before = member.state
            member.state = replace(before, assignment=assignments.get(member.member_id, b""))
            self._count_bytes(group, len(member.state.assignment) - len(before.assignment))

    def _apply_offsets(self, group: Group, offsets: tuple[tuple[str, int, CommittedOffset], ...]) -> None:
        for topic, partition, committed in offsets:
            partitions = group.offsets.get(topic)
            if partitions is None:
                partitions = group.offsets[topic] = {}
                self.topics[topic] = self.topics.get(topic, 0) + 1
            before = partitions.get(partition)
            if before is None:
                group.offset_count += 1
                self.totals.offsets += 1
            else:
                self._count_metadata(group, -len(before.metadata))
            self._count_metadata(group, len(committed.metadata))
            partitions[partition] = committed

    def _count_metadata(self, group: Group, change: int) -> None:
        group.metadata += change
        self.totals.metadata += change

    def _delete_offset(self, group: Group, topic: str, partition: int) -> None:
        partitions = group.offsets.get(topic)
        removed = partitions.pop(partition, None) if partitions is not None else None
        if removed is not None:
            self._count_metadata(group, -len(removed.metadata))
            group.offset_count -= 1
            self.totals.offsets -= 1
            if not partitions:
                del group.offsets[topic]
                self._count_topic_out(topic)

    def _count_topic_out(self, topic: str) -> None:
        count = self.topics[topic] - 1
        if count:
            self.topics[topic] = count
        else:
            del self.topics[topic]

    def _delete(self, group_id: str) -> None:
        group = self.groups.pop(group_id, None)
        if group is not None:
            self.pending.forget_group(group_id)
            self.totals.groups -= 1
            self.totals.offsets -= group.offset_count
            self.totals.metadata -= group.metadata
            self.totals.member_bytes -= group.member_bytes
            for topic in group.offsets:
                self._count_topic_out(topic)
            group.stop()
