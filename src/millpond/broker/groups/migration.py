"""Groups whose clients change from one protocol to the other, one after the other (KIP-848, online migration).

    classic  ──a client of the new protocol joins──>  consumer   ──the last of them leaves──>  classic

While there are both in a group, it is a consumer group, and the broker decides for all of them who reads what. Members
of the classic protocol go on with JoinGroup, SyncGroup and Heartbeat: their generation is their member epoch, each is
told to join again when there is something to give up or to be given, and SyncGroup tells it what it has. Nobody waits
for others.

A group without members is what the next client to join needs. Which error is raised when is Apache Kafka's.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from functools import partial
from typing import Final

from millpond.base.errors import PeerError
from millpond.base.limits import GROUP_CLIENT_ID_CHARACTERS_MAX
from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.consumer_membership import ConsumerMembership, modern_of
from millpond.broker.groups.errors import (
    GroupFull,
    GroupNotFound,
    IllegalGeneration,
    InconsistentProtocol,
    InvalidSessionTimeout,
    MemberIdRequired,
    RebalanceInProgress,
    UnknownMember,
)
from millpond.broker.groups.group import Group, JoinDone, JoinRequest, JoinResult, SyncDone, SyncRequest, SyncResult
from millpond.broker.groups.membership import Membership
from millpond.broker.groups.modern import ModernMember, TopicDirectory
from millpond.broker.groups.modern_records import (
    AWAITING,
    CONSUMER,
    REVOKING,
    SHARE,
    Assignment,
    ClassicPart,
    CurrentAssignment,
    CurrentChanged,
    ModernMemberChanged,
    ModernMemberState,
    TargetChanged,
)
from millpond.broker.groups.records import STABLE, GroupHead, HeadChanged, MemberChanged, MemberState
from millpond.broker.groups.store import GroupStore
from millpond.broker.groups.subscription import (
    PROTOCOL_TYPE,
    Subscription,
    assigned_partitions,
    read_subscription,
    write_assignment,
)

logger = logging.getLogger(__name__)

# `group.consumer.migration.policy`: in which directions groups may change.
UPGRADING_POLICIES: Final = frozenset({"upgrade", "bidirectional"})
DOWNGRADING_POLICIES: Final = frozenset({"downgrade", "bidirectional"})


class MixedMembership(Membership):
    """The members of classic groups, and those of consumer groups that speak the classic protocol."""

    def __init__(self, store: GroupStore, topics: TopicDirectory) -> None:
        super().__init__(store)
        self._topics: Final = topics
        self.consumers: Final = ConsumerMembership(store, topics, self._upgrade, self._downgrade)

    # --- The classic protocol ---------------------------------------------------------------------------------------

    def _join(self, request: JoinRequest, done: JoinDone) -> None:
        group = self._store.groups.get(request.group)
        if group is None or group.modern is None:
            super()._join(request, done)
        elif group.type == SHARE:
            raise InconsistentProtocol(f"group '{group.id}' is a share group")
        elif group.modern.members:
            self._join_consumers(group, request, done)
        elif request.member_id:
            raise UnknownMember(f"group '{group.id}' has no members")
        else:
            self._store.record(HeadChanged(group.id, GroupHead(since_ms=self._store.clock.wall_ms())))
            super()._join(request, done)

    def _join_consumers(self, group: Group, request: JoinRequest, done: JoinDone) -> None:
        modern, settings = modern_of(group), self._store.settings
        if not settings.session_timeout_min_ms <= request.session_timeout_ms <= settings.session_timeout_max_ms:
            raise InvalidSessionTimeout(
                f"the session timeout must be between {settings.session_timeout_min_ms} and "
                f"{settings.session_timeout_max_ms} ms"
            )
        if len(modern.members) >= settings.members_max and request.member_id not in modern.members:
            raise GroupFull(f"group '{group.id}' has {settings.members_max} members already")
        subscription = self._subscription(group, request)
        member_id = request.member_id or str(uuid.uuid4())
        if not request.member_id and request.instance_id is None and request.knows_id_first:
            done(JoinResult(member_id, MemberIdRequired("the member has an id now, and is to join again with it")))
            return
        found, is_last_of_others = self._joining(group, request, member_id)
        before = ModernMemberState(member_id) if found is None else found.state
        state = replace(
            before,
            instance_id=request.instance_id,
            client_id=request.client_id[:GROUP_CLIENT_ID_CHARACTERS_MAX],
            client_host=request.client_host,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            topics=tuple(sorted(set(subscription.topics))),
            pattern=None,
            assignor=None,
            classic=ClassicPart(request.session_timeout_ms, request.protocols),
        )
        member = self.consumers.take_down(group, state, found)
        self.consumers.reconcile(group, member, self._by_id(subscription.owned))
        epoch = member.current.epoch
        _stop(member.join)
        member.join = None
        if is_last_of_others and self._may_downgrade(group):
            self._make_classic(group, list(modern.members.values()))
        else:
            self.consumers.expect(group, member, request.session_timeout_ms)
            member.sync = self._alarm(member.sync, group, member, "did not ask for its assignment in time")
            member.sync.set(request.rebalance_timeout_ms)
        protocol = request.protocols[0][0]
        done(JoinResult(member_id, generation=epoch, protocol_type=PROTOCOL_TYPE, protocol=protocol))

    def _subscription(self, group: Group, request: JoinRequest) -> Subscription:
        """What the member wants to read. InconsistentProtocol where it cannot be one of the group."""
        classic = [one.state.classic for one in modern_of(group).members.values() if one.state.classic is not None]
        known = [{name for name, _ in one.protocols} for one in classic]
        is_common = any(all(name in names for names in known) for name, _ in request.protocols)
        if request.protocol_type != PROTOCOL_TYPE or not request.protocols or not is_common:
            raise InconsistentProtocol(f"Member {request.member_id}'s protocols are not supported.")
        subscription = read_subscription(request.protocols[0][1])
        if subscription is None:
            raise InconsistentProtocol("what the member says of its subscription cannot be read")
        return subscription

    def _joining(self, group: Group, request: JoinRequest, member_id: str) -> tuple[ModernMember | None, bool]:
        """The member that joins, None for a new one, and whether it takes the place of the last one of the new
        protocol."""
        modern = modern_of(group)
        if request.instance_id is None:
            return modern.members.get(member_id), False
        owner = modern.instances.get(request.instance_id)
        if request.member_id:
            return modern.member(member_id, request.instance_id), False
        if owner is None:
            return None, False
        previous = modern.members[owner]
        others = [one for one in modern.members.values() if one is not previous]
        is_last = not previous.is_classic and all(one.is_classic for one in others)
        return self.consumers.replace_static(group, previous, member_id, takes_over=True), is_last

    def _sync(self, request: SyncRequest, done: SyncDone) -> None:
        group = self._store.groups.get(request.group)
        if group is None or group.modern is None:
            super()._sync(request, done)
            return
        member = self._classic_member(group, request.member_id, request.instance_id, request.generation)
        classic = member.state.classic
        assert classic is not None
        protocol, metadata = classic.protocols[0]
        if request.protocol_type not in {None, PROTOCOL_TYPE} or request.protocol not in {None, protocol}:
            raise InconsistentProtocol(f"the member has joined group '{group.id}' with another protocol")
        if modern_of(group).head.epoch > member.current.epoch and member.current.state != REVOKING:
            self._expect_join(group, member)
            raise RebalanceInProgress(f"group '{group.id}' is rebalancing")
        _stop(member.sync)
        member.sync = None
        self.consumers.expect(group, member, classic.session_timeout_ms)
        subscription = read_subscription(metadata)
        version = 0 if subscription is None else subscription.version
        assignment = write_assignment(version, self._by_name(member.current.assigned))
        done(SyncResult(None, request.protocol_type, request.protocol, assignment))

    def heartbeat(self, group_id: str, member_id: str, instance_id: str | None, generation: int) -> None:
        group = self._store.groups.get(group_id)
        if group is None or group.modern is None:
            super().heartbeat(group_id, member_id, instance_id, generation)
            return
        member = self._classic_member(group, member_id, instance_id, generation)
        classic = member.state.classic
        assert classic is not None
        self.consumers.expect(group, member, classic.session_timeout_ms)
        self.consumers.refresh(group)
        modern, current = modern_of(group), member.current
        if (
            current.epoch < modern.head.epoch
            or current.state == REVOKING
            or (current.state == AWAITING and not modern.awaits_others(member))
        ):
            self._expect_join(group, member)
            raise RebalanceInProgress(f"group '{group.id}' is rebalancing")

    def leave(self, group_id: str, leaving: list[tuple[str, str | None]]) -> list[PeerError | None]:
        group = self._store.groups.get(group_id)
        if group is None or group.modern is None:
            return super().leave(group_id, leaving)
        if group.type == SHARE:
            return [UnknownMember(f"there is no group '{group_id}' with members") for _ in leaving]
        told: list[PeerError | None] = []
        gone: dict[str, ModernMember] = {}
        for member_id, instance_id in leaving:
            try:
                member = self._leaving(group, member_id, instance_id)
                gone[member.member_id] = member
                told.append(None)
            except PeerError as error:
                told.append(error)
        if gone:
            self.consumers.fence(group, list(gone.values()))
        return told

    def _leaving(self, group: Group, member_id: str, instance_id: str | None) -> ModernMember:
        # An operator takes out members of either protocol by this request, also static ones that are away.
        modern = modern_of(group)
        if not member_id and instance_id is not None:
            member_id = modern.instances.get(instance_id, "")
        return modern.member(member_id, instance_id)

    def _classic_member(self, group: Group, member_id: str, instance_id: str | None, generation: int) -> ModernMember:
        if group.type == SHARE:
            raise UnknownMember(f"there is no group '{group.id}' with members")
        member = modern_of(group).member(member_id, instance_id)
        if not member.is_classic:
            raise UnknownMember(f"Member {member_id} does not use the classic protocol.")
        if generation != member.current.epoch:
            raise IllegalGeneration(f"member {member_id} is in generation {member.current.epoch}")
        return member

    def _expect_join(self, group: Group, member: ModernMember) -> None:
        """The member has its rebalance timeout to join again, from when it was first told to."""
        if member.join is None:
            member.join = self._alarm(None, group, member, "did not join again in time")
            member.join.set(max(0, member.state.rebalance_timeout_ms))

    def _alarm(self, alarm: Alarm | None, group: Group, member: ModernMember, reason: str) -> Alarm:
        if alarm is not None:
            return alarm
        return Alarm(self._store.clock, partial(self.consumers.fence_late, group.id, member.member_id, reason))

    # --- From one protocol to the other -----------------------------------------------------------------------------

    def _upgrade(self, group: Group) -> bool:
        """Let a classic group with members be a consumer group. Whether it is."""
        if self._store.settings.consumer_migration_policy not in UPGRADING_POLICIES:
            logger.info("group %s remains classic: groups are not upgraded here", group.id)
            return False
        if group.head.protocol_type != PROTOCOL_TYPE:
            return False
        states = [member.state for member in group.members.values()]
        subscriptions = [read_subscription(_metadata(group, state)) for state in states]
        if None in subscriptions:
            raise GroupNotFound(
                f"Cannot upgrade the classic group {group.id} to consumer group because the embedded consumer protocol "
                "is malformed."
            )
        rebalancing = RebalanceInProgress("the group is one of the new protocol now")
        for member in list(group.members.values()):
            group.answer_join(member, JoinResult(member.member_id, rebalancing))
            group.answer_sync(member, SyncResult(rebalancing))
        group.not_synced.clear()
        group.is_initial = group.has_grown = False
        epoch, is_stable = group.generation, group.state == STABLE
        modern = self._store.make_modern(group.id, CONSUMER, epoch)
        taken: set[tuple[bytes, int]] = set()
        assigned = [_without(taken, self._by_id(assigned_partitions(state.assignment) or {})) for state in states]
        for number, (state, subscription) in enumerate(zip(states, subscriptions, strict=True)):
            assert subscription is not None
            has = assigned[number]
            if not is_stable:
                # In the middle of a rebalance assignments are unknown, or not yet known to the members, and cooperative
                # ones go on reading what they had when they joined.
                has = _united(has, _without(taken, self._by_id(subscription.owned)))
            self._adopt(group, state, subscription, has, epoch)
        for one in modern.members.values():
            assert one.state.classic is not None
            self.consumers.expect(group, one, one.state.classic.session_timeout_ms)
        logger.info("group %s is a consumer group from now on", group.id)
        return True

    def _adopt(self, group: Group, state: MemberState, subscription: Subscription, has: Assignment, epoch: int) -> None:
        """A member of the classic group keeps what it has."""
        made = ModernMemberState(
            state.member_id,
            state.instance_id,
            client_id=state.client_id,
            client_host=state.client_host,
            rebalance_timeout_ms=state.rebalance_timeout_ms,
            topics=tuple(sorted(set(subscription.topics))),
            classic=ClassicPart(state.session_timeout_ms, state.protocols),
        )
        self._store.record(
            ModernMemberChanged(group.id, made),
            CurrentChanged(group.id, made.member_id, CurrentAssignment(epoch, epoch, assigned=has)),
            TargetChanged(group.id, made.member_id, has),
        )

    def _may_downgrade(self, group: Group) -> bool:
        return self._store.settings.consumer_migration_policy in DOWNGRADING_POLICIES

    def _downgrade(self, group: Group, leaving: list[ModernMember]) -> bool:
        """Let a consumer group be classic, where those who leave are the last ones of the new protocol. Whether it
        is."""
        staying = [member for member in modern_of(group).members.values() if member not in leaving]
        if not staying or not all(member.is_classic for member in staying) or not self._may_downgrade(group):
            return False
        self._make_classic(group, staying)
        self._prepare(group, "it is a classic group again")
        return True

    def _make_classic(self, group: Group, members: list[ModernMember]) -> None:
        """The members go on in a classic group, each with what it was to have."""
        modern = modern_of(group)
        states: list[MemberState] = []
        for member in members:
            state, classic = member.state, member.state.classic
            assert classic is not None
            subscription = read_subscription(classic.protocols[0][1])
            version = 0 if subscription is None else subscription.version
            assignment = write_assignment(version, self._by_name(modern.target(member.member_id)))
            states.append(
                MemberState(
                    member.member_id,
                    state.instance_id,
                    state.client_id,
                    state.client_host,
                    classic.session_timeout_ms,
                    state.rebalance_timeout_ms,
                    classic.protocols,
                    assignment,
                )
            )
        head = GroupHead(
            STABLE, modern.head.epoch, PROTOCOL_TYPE, None, states[0].member_id, self._store.clock.wall_ms()
        )
        self._store.record(HeadChanged(group.id, head), *[MemberChanged(group.id, state) for state in states])
        self._store.change_head(group, replace(head, protocol=group.selected_protocol()))
        for one in group.members.values():
            self._expect(group, one)
        logger.info("group %s is a classic group from now on", group.id)

    def restored(self, group: Group) -> None:
        if group.modern is None:
            super().restored(group)
        else:
            self.consumers.restored(group)

    # --- Topics by their names, and by their ids --------------------------------------------------------------------

    def _by_id(self, partitions: dict[str, list[int]]) -> Assignment:
        found: dict[bytes, frozenset[int]] = {}
        for name, numbers in partitions.items():
            topic = self._topics.find(name)
            if topic is not None:
                found[topic[0]] = frozenset([number for number in numbers if 0 <= number < topic[1]])
        return found

    def _by_name(self, assignment: Assignment) -> dict[str, list[int]]:
        names = {topic_id: self._topics.name(topic_id) for topic_id in assignment}
        return {name: sorted(assignment[topic_id]) for topic_id, name in names.items() if name is not None}


def _without(taken: set[tuple[bytes, int]], assignment: Assignment) -> Assignment:
    """What of it nobody has taken yet; it is taken from now on."""
    free: dict[bytes, frozenset[int]] = {}
    for topic_id, numbers in assignment.items():
        left = frozenset([number for number in numbers if (topic_id, number) not in taken])
        taken.update([(topic_id, number) for number in left])
        if left:
            free[topic_id] = left
    return free


def _united(one: Assignment, other: Assignment) -> Assignment:
    none: frozenset[int] = frozenset()
    return {topic_id: one.get(topic_id, none) | other.get(topic_id, none) for topic_id in sorted({*one, *other})}


def _metadata(group: Group, state: MemberState) -> bytes:
    """What a member of a classic group says of itself under the protocol that was chosen."""
    found = dict(state.protocols)
    return found.get(group.head.protocol or "", state.protocols[0][1])


def _stop(alarm: Alarm | None) -> None:
    if alarm is not None:
        alarm.stop()
