"""Who is in a consumer group whose assignment the broker decides, and how members come to what they are to have
(KIP-848).

    a heartbeat        tells what has changed of the member, and which partitions it has
      -> group epoch   grows when a subscription, or a topic that is read, is another now
      -> target        the assignor shares the partitions out for the new epoch
      -> reconciliation  brings the member nearer to its target, one step a heartbeat (reconciliation.py)

No partition is given to a member before the one that had it has said that it has let go, or is gone. What each call
decides and which error it raises is Apache Kafka's (`GroupMetadataManager`). Everything is durable at once, so members
go on with their epochs after a restart.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from millpond.base.limits import GROUP_CLIENT_ID_CHARACTERS_MAX
from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.assignors import DEFAULT_ASSIGNOR, Subscriber, assignors
from millpond.broker.groups.errors import (
    FencedMemberEpoch,
    GroupFull,
    GroupNotFound,
    InvalidGroupRequest,
    UnreleasedInstance,
    UnsupportedAssignor,
)
from millpond.broker.groups.group import Group
from millpond.broker.groups.modern import AWAY_EPOCH, ModernGroup, ModernMember, TopicDirectory
from millpond.broker.groups.modern_records import (
    CONSUMER,
    NOTHING,
    REVOKING,
    Assignment,
    CurrentAssignment,
    CurrentChanged,
    ModernHeadChanged,
    ModernMemberChanged,
    ModernMemberState,
    PatternResolved,
    TargetChanged,
)
from millpond.broker.groups.modern_requests import LEAVE_EPOCH, MemberAnswer, check_member_size, check_newer_epoch
from millpond.broker.groups.reconciliation import reconciled
from millpond.broker.groups.records import MemberRemoved
from millpond.broker.groups.store import GroupStore
from millpond.broker.groups.subscription_pattern import check_pattern, matching
from millpond.broker.shares.settings import CONSUMER_HEARTBEAT_INTERVAL, CONSUMER_SESSION_TIMEOUT

logger = logging.getLogger(__name__)


def _everything(_name: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ConsumerHeartbeat:
    """A sign of life of a member; epoch 0 joins, -1 leaves, -2 is a static member that will be back."""

    group: str
    member_id: str
    epoch: int
    instance_id: str | None = None
    rack_id: str | None = None
    # -1, and None, where it is as before.
    rebalance_timeout_ms: int = -1
    topics: tuple[str, ...] | None = None
    pattern: str | None = None
    assignor: str | None = None
    owned: Assignment | None = None
    client_id: str = ""
    client_host: str = ""
    # Which topics its user may know of: a pattern matches no others.
    may_see: Callable[[str], bool] = _everything
    # The client makes its own id.
    knows_id: bool = True


class ConsumerMembership:
    """The members of all such groups of a virtual host.

    `upgrade` makes one of a classic group, where that can be; `downgrade` a classic group of one that the last members
    of the new protocol, which are named, are about to leave. It says whether it has.
    """

    def __init__(
        self,
        store: GroupStore,
        topics: TopicDirectory,
        upgrade: Callable[[Group], bool],
        downgrade: Callable[[Group, list[ModernMember]], bool],
    ) -> None:
        self._store: Final = store
        self._topics: Final = topics
        self._upgrade: Final = upgrade
        self._downgrade: Final = downgrade

    # --- Heartbeats -------------------------------------------------------------------------------------------------

    def heartbeat(self, asked: ConsumerHeartbeat) -> MemberAnswer:
        """Join, stay or leave. InvalidGroupRequest, UnsupportedAssignor, InvalidPattern, GroupNotFound, UnknownMember,
        FencedMemberEpoch, FencedInstance, UnreleasedInstance, GroupFull, GroupTooLarge."""
        _check(asked)
        if asked.epoch in {LEAVE_EPOCH, AWAY_EPOCH}:
            return self._leave(asked)
        group = self._group(asked)
        member_id = asked.member_id or str(uuid.uuid4())
        found = self._member(group, asked, member_id)
        before = NOTHING if found is None else found.current.assigned
        member = self.take_down(group, self._state(group, asked, member_id), found, asked.may_see)
        self.reconcile(group, member, asked.owned)
        self.expect(group, member, self._session_timeout_ms(group))
        told_all = asked.rebalance_timeout_ms >= 0 and asked.owned is not None
        is_full = asked.epoch == 0 or (told_all and (asked.topics is not None or asked.pattern is not None))
        current = member.current
        return MemberAnswer(
            member_id,
            current.epoch,
            self._store.configured(
                group.id, CONSUMER_HEARTBEAT_INTERVAL, self._store.settings.consumer_heartbeat_interval_ms
            ),
            current.assigned if is_full or current.assigned != before else None,
        )

    def _group(self, asked: ConsumerHeartbeat) -> Group:
        """The group, which is made where a member joins one that is not there."""
        store, group_id = self._store, asked.group
        group = store.groups.get(group_id)
        if group is None:
            if asked.epoch != 0:
                raise GroupNotFound(f"Group {group_id} not found.")
            store.create_modern(group_id, CONSUMER)
            return store.groups[group_id]
        if group.type != CONSUMER:
            if group.modern is not None or asked.epoch != 0:
                raise GroupNotFound(f"Group {group_id} is not a consumer group.")
            self._check_room(group, asked.member_id)
            if group.is_empty:
                store.make_modern(group_id, CONSUMER)
            elif not self._upgrade(group):
                raise GroupNotFound(f"Group {group_id} is not a consumer group.")
        self._check_room(group, asked.member_id)
        return group

    def _check_room(self, group: Group, member_id: str) -> None:
        """GroupFull where the group cannot have another member."""
        members_max = self._store.settings.members_max
        members = group.members if group.modern is None else group.modern.members
        if len(members) >= members_max and member_id not in members:
            raise GroupFull(f"The consumer group has reached its maximum capacity of {members_max} members.")

    def _member(self, group: Group, asked: ConsumerHeartbeat, member_id: str) -> ModernMember | None:
        """The member; None where it is a new one. Errors as `heartbeat`."""
        modern = modern_of(group)
        if asked.epoch == 0:
            owner = modern.instances.get(asked.instance_id or "")
            if owner is not None and owner != member_id:
                return self.replace_static(group, modern.members[owner], member_id, takes_over=False)
            member = modern.members.get(member_id)
            if member is None:
                return None
        else:
            member = modern.member(member_id, asked.instance_id)
        check_newer_epoch(member, asked.epoch, CONSUMER)
        current = member.current
        # One that joins again says that it has nothing. The answer with a new epoch may have been lost.
        is_known = asked.epoch in {0, current.epoch} or (
            asked.epoch == current.previous_epoch and _is_part(asked.owned, current.assigned)
        )
        if not is_known:
            raise FencedMemberEpoch(
                f"The consumer group member has a smaller member epoch ({asked.epoch}) than the one known by the group "
                f"coordinator ({current.epoch}). The member must abandon all its partitions and rejoin."
            )
        return member

    def replace_static(self, group: Group, previous: ModernMember, member_id: str, *, takes_over: bool) -> ModernMember:
        """A static member is another client now, which has what the one before it was to have. UnreleasedInstance where
        that one has not left, unless it speaks another protocol than the new one (`takes_over`)."""
        if not takes_over and not previous.is_classic and previous.current.epoch != AWAY_EPOCH:
            raise UnreleasedInstance(
                f"Static member {member_id} with instance id {previous.state.instance_id} cannot join the group "
                f"because the instance id is owned by {previous.member_id} member."
            )
        modern = modern_of(group)
        target = modern.target(previous.member_id)
        current = replace(previous.current, epoch=0, previous_epoch=0)
        self._store.record(
            MemberRemoved(group.id, previous.member_id),
            ModernMemberChanged(group.id, replace(previous.state, member_id=member_id)),
            CurrentChanged(group.id, member_id, current),
            TargetChanged(group.id, member_id, target),
        )
        return modern.members[member_id]

    def _state(self, group: Group, asked: ConsumerHeartbeat, member_id: str) -> ModernMemberState:
        """What the member says of itself by now."""
        known = modern_of(group).members.get(member_id)
        before = ModernMemberState(member_id) if known is None else known.state
        pattern = before.pattern
        if asked.pattern is not None:
            pattern = asked.pattern or None
        timeout_ms = asked.rebalance_timeout_ms
        return replace(
            before,
            instance_id=before.instance_id if asked.instance_id is None else asked.instance_id,
            rack_id=before.rack_id if asked.rack_id is None else asked.rack_id,
            client_id=asked.client_id[:GROUP_CLIENT_ID_CHARACTERS_MAX],
            client_host=asked.client_host,
            rebalance_timeout_ms=before.rebalance_timeout_ms if timeout_ms < 0 else timeout_ms,
            topics=before.topics if asked.topics is None else tuple(sorted(set(asked.topics))),
            pattern=pattern,
            assignor=before.assignor if asked.assignor is None else asked.assignor,
            classic=None,
        )

    def take_down(
        self,
        group: Group,
        state: ModernMemberState,
        found: ModernMember | None,
        may_see: Callable[[str], bool] = _everything,
    ) -> ModernMember:
        """Record what a member says of itself, and begin another epoch of the group where that is a reason to."""
        modern = modern_of(group)
        is_changed = found is None
        if found is None or state != found.state:
            check_member_size(self._store, group, state, 0 if found is None else found.state.size)
            if found is not None:
                is_changed = state.topics != found.state.topics or state.pattern != found.state.pattern
            self._store.record(ModernMemberChanged(group.id, state))
        self._resolve(group, modern, state.pattern, may_see)
        self.refresh(group, is_changed)
        return modern.members[state.member_id]

    def _resolve(self, group: Group, modern: ModernGroup, pattern: str | None, may_see: Callable[[str], bool]) -> None:
        """Look which topics a pattern matches, where that may be others than last time."""
        if pattern and (
            pattern not in modern.patterns or modern.patterns_versions.get(pattern) != self._topics.version
        ):
            modern.patterns_versions[pattern] = self._topics.version
            names = matching(pattern, self._topics.names(), may_see)
            if names != modern.patterns.get(pattern):
                self._store.record(PatternResolved(group.id, pattern, names))

    # --- Epochs and targets -----------------------------------------------------------------------------------------

    def refresh(self, group: Group, is_changed: bool = False) -> None:
        """Begin another epoch where subscriptions or topics have changed, and share the partitions out for it."""
        modern = modern_of(group)
        head = modern.head
        noted = (self._topics.version, tuple(modern.patterns.values()))
        if is_changed or modern.noted != noted:
            modern.noted = noted
            topics_hash = modern.hash_of_topics(self._topics)
            if is_changed or topics_hash != head.topics_hash:
                now_ms = self._store.clock.wall_ms()
                head = replace(head, epoch=head.epoch + 1, topics_hash=topics_hash, since_ms=now_ms)
        if head.epoch > head.assignment_epoch:
            self._share_out(group, modern)
            head = replace(head, assignment_epoch=head.epoch)
        if head != modern.head:
            self._store.record(ModernHeadChanged(group.id, head))

    def _share_out(self, group: Group, modern: ModernGroup) -> None:
        found = {name: self._topics.find(name) for name in modern.subscribed_topics()}
        ids = {name: place[0] for name, place in found.items() if place is not None}
        members = {
            member_id: Subscriber(
                member.state.instance_id or member_id,
                frozenset([ids[name] for name in modern.topics_of(member.state) if name in ids]),
                modern.target(member_id),
            )
            for member_id, member in modern.members.items()
        }
        topics = dict([place for place in found.values() if place is not None])
        for member_id, target in assignors()[assignor_of(modern)](members, topics).items():
            if target != modern.target(member_id):
                self._store.record(TargetChanged(group.id, member_id, target))

    def reconcile(self, group: Group, member: ModernMember, owned: Assignment | None) -> None:
        """Bring the member one step nearer to its target."""
        modern = modern_of(group)
        target = modern.target(member.member_id)
        before = member.current
        current = reconciled(before, modern.head.assignment_epoch, target, modern.owners, owned)
        if current == before:
            return
        self._store.record(CurrentChanged(group.id, member.member_id, current))
        if member.is_classic:
            # It has its time to join again, and to sync.
            return
        if current.state == REVOKING:
            self._expect_revocation(group, member)
        elif member.rebalance is not None:
            member.rebalance.stop()
            member.rebalance = None

    # --- Time -------------------------------------------------------------------------------------------------------

    def _session_timeout_ms(self, group: Group) -> int:
        default = self._store.settings.consumer_session_timeout_ms
        return self._store.configured(group.id, CONSUMER_SESSION_TIMEOUT, default)

    def expect(self, group: Group, member: ModernMember, session_timeout_ms: int) -> None:
        """The member has this long until its next sign of life."""
        if member.session is None:
            callback = partial(self.fence_late, group.id, member.member_id, "was silent for too long")
            member.session = Alarm(self._store.clock, callback)
        member.session.set(session_timeout_ms)

    def _expect_revocation(self, group: Group, member: ModernMember) -> None:
        if member.rebalance is not None:
            member.rebalance.stop()
        callback = partial(self._revocation_is_late, group.id, member.member_id, member.current.epoch)
        member.rebalance = Alarm(self._store.clock, callback)
        member.rebalance.set(max(0, member.state.rebalance_timeout_ms))

    def _revocation_is_late(self, group_id: str, member_id: str, epoch: int) -> None:
        member = self._find(group_id, member_id)
        if member is not None and member.current.epoch == epoch:
            self.fence_late(group_id, member_id, "did not give up its partitions in time")

    def fence_late(self, group_id: str, member_id: str, reason: str) -> None:
        """A member has let its time pass."""
        member = self._find(group_id, member_id)
        if member is not None:
            logger.info("member %s of group %s %s", member_id, group_id, reason)
            self.fence(self._store.groups[group_id], [member])

    def _find(self, group_id: str, member_id: str) -> ModernMember | None:
        group = self._store.groups.get(group_id)
        if group is None or group.modern is None or group.modern.type != CONSUMER:
            return None
        return group.modern.members.get(member_id)

    # --- Leaving ----------------------------------------------------------------------------------------------------

    def _leave(self, asked: ConsumerHeartbeat) -> MemberAnswer:
        group = self._store.groups.get(asked.group)
        if group is None or group.type != CONSUMER:
            found = "not found" if group is None else "is not a consumer group"
            raise GroupNotFound(f"Group {asked.group} {found}.")
        member = modern_of(group).member(asked.member_id, asked.instance_id)
        if asked.epoch == AWAY_EPOCH:
            # It keeps what it has until it is back, or its session ends.
            current = CurrentAssignment(AWAY_EPOCH, member.current.epoch, assigned=member.current.assigned)
            self._store.record(CurrentChanged(group.id, member.member_id, current))
            if member.rebalance is not None:
                member.rebalance.stop()
        else:
            self.fence(group, [member])
        return MemberAnswer(asked.member_id, asked.epoch)

    def fence(self, group: Group, members: list[ModernMember]) -> None:
        """Take members out; the others are given what they had when they are heard of next."""
        if self._downgrade(group, members):
            return
        for member in members:
            self._store.record(MemberRemoved(group.id, member.member_id))
        modern = modern_of(group)
        topics_hash = modern.hash_of_topics(self._topics)
        now_ms = self._store.clock.wall_ms()
        head = replace(modern.head, epoch=modern.head.epoch + 1, topics_hash=topics_hash, since_ms=now_ms)
        self._store.record(ModernHeadChanged(group.id, head))

    # --- Starting again ---------------------------------------------------------------------------------------------

    def restored(self, group: Group) -> None:
        """Go on with a group as it was found at the start: all times begin anew."""
        for member in modern_of(group).members.values():
            classic = member.state.classic
            timeout_ms = self._session_timeout_ms(group)
            self.expect(group, member, timeout_ms if classic is None else classic.session_timeout_ms)
            if member.current.state == REVOKING and classic is None:
                self._expect_revocation(group, member)


def modern_of(group: Group) -> ModernGroup:
    assert group.modern is not None
    return group.modern


def assignor_of(modern: ModernGroup) -> str:
    """The assignor that most members want, of those who say."""
    votes: dict[str, int] = {}
    for member in modern.members.values():
        if member.state.assignor:
            votes[member.state.assignor] = votes.get(member.state.assignor, 0) + 1
    return max(votes, key=lambda name: votes[name], default=DEFAULT_ASSIGNOR)


def _is_part(owned: Assignment | None, assigned: Assignment) -> bool:
    if owned is None:
        return False
    return all(numbers <= assigned.get(topic_id, frozenset()) for topic_id, numbers in owned.items())


def _check(asked: ConsumerHeartbeat) -> None:
    for value, name in ((asked.group or "", "GroupId"), (asked.instance_id, "InstanceId"), (asked.rack_id, "RackId")):
        if value == "":
            raise InvalidGroupRequest(f"{name} can't be empty.")
    if not asked.member_id and (asked.epoch != 0 or asked.knows_id):
        raise InvalidGroupRequest("MemberId can't be empty.")
    if asked.epoch < AWAY_EPOCH:
        raise InvalidGroupRequest("MemberEpoch is invalid.")
    if asked.epoch == AWAY_EPOCH and asked.instance_id is None:
        raise InvalidGroupRequest("InstanceId can't be null.")
    if asked.epoch == 0:
        if asked.rebalance_timeout_ms < 0:
            raise InvalidGroupRequest("RebalanceTimeoutMs must be provided in first request.")
        if asked.owned is None or asked.owned:
            raise InvalidGroupRequest("TopicPartitions must be empty when (re-)joining.")
        if asked.topics is None and asked.pattern is None:
            raise InvalidGroupRequest(
                "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining."
            )
    if asked.pattern:
        check_pattern(asked.pattern)
    if asked.assignor is not None and asked.assignor not in assignors():
        raise UnsupportedAssignor(
            f"ServerAssignor {asked.assignor} is not supported. Supported assignors: {', '.join(assignors())}."
        )
