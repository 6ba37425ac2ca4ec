"""Who is in a group: joining, the rebalances that follow, syncing, heartbeats and leaving.

    Empty ──join──> PreparingRebalance ──all have joined, or time is up──> CompletingRebalance
      ^                 |       ^                                                 |
      |             all left    └──somebody joins, leaves, is late────────────────┤ the leader syncs
      └─────────────────┘       └──somebody joins, leaves, is silent── Stable <───┘

What each call decides, which error it raises and how long it waits is Apache Kafka's (`GroupMetadataManager`, classic
groups). Different from there, everything is durable at once and not only what a generation ends with: members that have
joined, the generation that has begun. So a restart in the middle of a rebalance finds its members.

Answers come through callbacks: a join waits for the others, a sync for the leader.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from functools import partial
from typing import Final

from millpond.base.errors import PeerError
from millpond.base.limits import (
    GROUP_AWAY_CHECK_MS,
    GROUP_BYTES_MAX,
    GROUP_CLIENT_ID_CHARACTERS_MAX,
    GROUP_MEMBER_BYTES_MAX,
    GROUP_NAME_BYTES_MAX,
    GROUP_NEW_MEMBER_TIMEOUT_MS,
    GROUP_PENDING_MEMBERS_MAX,
    GROUPS_BYTES_MAX,
)
from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.errors import (
    FencedInstance,
    GroupFull,
    GroupTooLarge,
    IllegalGeneration,
    InconsistentProtocol,
    InvalidGroupName,
    InvalidSessionTimeout,
    MemberIdRequired,
    RebalanceInProgress,
    UnknownMember,
)
from millpond.broker.groups.group import (
    Group,
    JoinDone,
    JoinRequest,
    JoinResult,
    Member,
    SyncDone,
    SyncRequest,
    SyncResult,
)
from millpond.broker.groups.records import (
    COMPLETING_REBALANCE,
    EMPTY,
    PREPARING_REBALANCE,
    STABLE,
    Assigned,
    MemberChanged,
    MemberRemoved,
    MemberState,
)
from millpond.broker.groups.store import GroupStore

logger = logging.getLogger(__name__)

# From these a rebalance can begin.
_AT_REST: Final = (EMPTY, COMPLETING_REBALANCE, STABLE)
# Where generations begin anew: members and journal have 31 bits for them.
GENERATION_MAX: Final = (1 << 31) - 1


class Membership:
    """The members of all groups of a virtual host."""

    def __init__(self, store: GroupStore) -> None:
        self._store: Final = store

    # --- Joining ----------------------------------------------------------------------------------------------------

    def join(self, request: JoinRequest, done: JoinDone) -> None:
        """Become a member, or begin a new generation. `done` is called once, now or when the others have joined."""
        try:
            self._join(request, done)
        except PeerError as error:
            done(JoinResult(request.member_id, error))

    def _join(self, request: JoinRequest, done: JoinDone) -> None:
        settings = self._store.settings
        if not request.group:
            raise InvalidGroupName("a group needs a name")
        if not settings.session_timeout_min_ms <= request.session_timeout_ms <= settings.session_timeout_max_ms:
            raise InvalidSessionTimeout(
                f"the session timeout must be between {settings.session_timeout_min_ms} and "
                f"{settings.session_timeout_max_ms} ms"
            )
        group = self._store.groups.get(request.group)
        if group is None:
            if request.member_id:
                raise UnknownMember(f"there is no group '{request.group}'")
            if not request.protocol_type or not request.protocols:
                raise InconsistentProtocol("a member needs a protocol")
            _check_names(request)
            group = self._store.create(request.group)
        self._check_room(group, request)
        _check_names(request)
        if not group.supports(request.protocol_type, request.protocols):
            raise InconsistentProtocol(f"the members of group '{group.id}' have other protocols")
        if not request.member_id:
            self._join_new(group, request, done)
        elif request.member_id in group.pending and request.instance_id is None:
            self._add(group, request.member_id, request, done)
        else:
            self._join_again(group, group.member(request.member_id, request.instance_id), request, done)

    def _check_room(self, group: Group, request: JoinRequest) -> None:
        members_max = self._store.settings.members_max
        member = group.members.get(request.member_id)
        has_room = True
        if group.state == PREPARING_REBALANCE:
            # Those who have joined count: if the group is too large, the last to come are those that have to go.
            has_room = group.joins_waiting < members_max or (member is not None and member.join_done is not None)
        elif not group.is_empty:
            has_room = member is not None or len(group.members) < members_max
        if not has_room:
            if member is not None:
                self._remove(group, member)
            raise GroupFull(f"group '{group.id}' has {members_max} members already")
        size = _member_state(request.member_id, request).size
        before = member.state.size if member is not None else 0
        self._check_bytes(group, size - before)
        if size > GROUP_MEMBER_BYTES_MAX:
            raise GroupTooLarge(f"a member says at most {GROUP_MEMBER_BYTES_MAX} bytes of itself")

    def _check_bytes(self, group: Group, more: int) -> None:
        """GroupTooLarge where a group's members cannot take so many bytes more."""
        if more > 0 and group.member_bytes + more > GROUP_BYTES_MAX:
            raise GroupTooLarge(f"the members of group '{group.id}' take more than {GROUP_BYTES_MAX} bytes")
        if more > 0 and self._store.totals.member_bytes + more > GROUPS_BYTES_MAX:
            raise GroupTooLarge(f"the members of all groups take more than {GROUPS_BYTES_MAX} bytes")

    def _join_new(self, group: Group, request: JoinRequest, done: JoinDone) -> None:
        prefix = request.instance_id if request.instance_id is not None else _short(request.client_id)
        member_id = f"{prefix}-{uuid.uuid4()}"
        if request.instance_id is not None:
            previous = group.members.get(group.instances.get(request.instance_id, ""))
            if previous is not None:
                self._replace(group, previous, member_id, request, done)
                return
        elif request.knows_id_first:
            if len(group.pending) >= GROUP_PENDING_MEMBERS_MAX:
                raise GroupFull(f"{GROUP_PENDING_MEMBERS_MAX} clients are about to join group '{group.id}' already")
            alarm = Alarm(self._store.clock, partial(self._session_over, group.id, member_id))
            group.pending[member_id] = alarm
            alarm.set(request.session_timeout_ms)
            done(JoinResult(member_id, MemberIdRequired("the member has an id now, and is to join again with it")))
            return
        self._add(group, member_id, request, done)

    def _join_again(self, group: Group, member: Member, request: JoinRequest, done: JoinDone) -> None:
        is_changed = request.protocols != member.state.protocols
        is_leader = group.head.leader == member.member_id
        if group.state == PREPARING_REBALANCE or is_changed or (group.state == STABLE and is_leader):
            # A leader that joins again has a reason which its metadata need not show: a topic has more partitions.
            self._update(group, member, request)
            group.await_join(member, done)
            self._rebalance(group, f"member {member.member_id} joins again: {request.reason or 'no reason given'}")
        else:
            # It has missed the answer that began this generation.
            members = group.joined_members() if is_leader and group.state == COMPLETING_REBALANCE else ()
            done(replace(self._joined(group, member), members=members))

    def _joined(self, group: Group, member: Member) -> JoinResult:
        head = group.head
        return JoinResult(
            member.member_id,
            generation=head.generation,
            protocol_type=head.protocol_type,
            protocol=head.protocol,
            leader=head.leader or "",
        )

    def _add(self, group: Group, member_id: str, request: JoinRequest, done: JoinDone) -> None:
        pending = group.pending.pop(member_id, None)
        if pending is not None:
            pending.stop()
        head = group.head
        if not group.members:
            head = replace(head, protocol_type=request.protocol_type)
        if head.leader is None:
            head = replace(head, leader=member_id)
        self._store.record(MemberChanged(group.id, _member_state(member_id, request)))
        self._store.change_head(group, head)
        member = group.members[member_id]
        member.is_new = True
        group.has_grown = group.is_initial
        group.await_join(member, done)
        # It does not know its id, so it cannot send heartbeats; and if it has gone, nothing else would tell.
        self._expect(group, member, GROUP_NEW_MEMBER_TIMEOUT_MS)
        self._rebalance(group, f"member {member_id} joins: {request.reason or 'no reason given'}")

    def _update(self, group: Group, member: Member, request: JoinRequest) -> None:
        state = replace(
            member.state,
            protocols=request.protocols,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            session_timeout_ms=request.session_timeout_ms,
        )
        if state != member.state:
            self._store.record(MemberChanged(group.id, state))

    def _replace(self, group: Group, previous: Member, member_id: str, request: JoinRequest, done: JoinDone) -> None:
        """A static member has come back, as another process: it takes its own place."""
        fenced = FencedInstance(f"another client has the instance id '{request.instance_id}' now")
        group.answer_join(previous, JoinResult(previous.member_id, fenced))
        group.answer_sync(previous, SyncResult(fenced))
        leader_before = group.head.leader or ""
        state = replace(_member_state(member_id, request), assignment=previous.state.assignment)
        self._store.record(MemberRemoved(group.id, previous.member_id), MemberChanged(group.id, state))
        if leader_before == previous.member_id:
            self._store.change_head(group, replace(group.head, leader=member_id))
        if previous.member_id in group.not_synced:
            group.not_synced.remove(previous.member_id)
            group.not_synced.add(member_id)
        member = group.members[member_id]
        self._expect(group, member, request.session_timeout_ms)
        if group.state == STABLE and group.selected_protocol() == group.head.protocol:
            result = self._joined(group, member)
            if not request.can_skip_assignment:
                # It must not believe that it leads, or it would assign partitions that nobody asks for.
                result = replace(result, leader=leader_before)
            elif group.head.leader == member_id:
                result = replace(result, members=group.joined_members(), skip_assignment=True)
            done(result)
            return
        group.await_join(member, done)
        if group.state == PREPARING_REBALANCE:
            self._complete_if_all_joined(group)
        else:
            # While the leader assigns, it does so to the id that is no more.
            self._prepare(group, f"static member {request.instance_id} is another client now")

    # --- Rebalancing ------------------------------------------------------------------------------------------------

    def _rebalance(self, group: Group, reason: str) -> None:
        """The members, or what they know, have changed."""
        if group.state in _AT_REST:
            self._prepare(group, reason)
        else:
            self._complete_if_all_joined(group)

    def _prepare(self, group: Group, reason: str) -> None:
        if group.state == COMPLETING_REBALANCE:
            self._answer_syncs(group, SyncResult(RebalanceInProgress("the group is rebalancing")))
        self._stop_sync_alarm(group)
        group.is_initial = group.is_empty
        logger.debug("group %s rebalances after generation %d: %s", group.id, group.generation, reason)
        self._store.change_head(group, replace(group.head, state=PREPARING_REBALANCE))
        if group.is_initial:
            # Others are about to join too, as a rule.
            delay_ms = self._store.settings.initial_rebalance_delay_ms
            self._delay_first(group, delay_ms, max(0, group.rebalance_timeout_ms - delay_ms))
        elif group.has_all_joined:
            self._complete_join(group)
        else:
            self._await_members(group)

    def _await_members(self, group: Group) -> None:
        self._set_rebalance_alarm(group, group.rebalance_timeout_ms, partial(self._time_is_up, group.id))

    def _set_rebalance_alarm(self, group: Group, delay_ms: int, callback: partial[None]) -> None:
        if group.rebalance is not None:
            group.rebalance.stop()
        group.rebalance = Alarm(self._store.clock, callback)
        group.rebalance.set(delay_ms)

    def _delay_first(self, group: Group, delay_ms: int, left_ms: int) -> None:
        self._set_rebalance_alarm(group, delay_ms, partial(self._first_delay_over, group.id, delay_ms, left_ms))

    def _first_delay_over(self, group_id: str, delay_ms: int, left_ms: int) -> None:
        group = self._store.groups.get(group_id)
        if group is None or group.state != PREPARING_REBALANCE:
            return
        if group.has_grown and left_ms > 0:
            group.has_grown = False
            next_ms = min(self._store.settings.initial_rebalance_delay_ms, left_ms)
            self._delay_first(group, next_ms, max(0, left_ms - delay_ms))
        else:
            self._complete_join(group)

    def _time_is_up(self, group_id: str) -> None:
        group = self._store.groups.get(group_id)
        if group is not None and group.state == PREPARING_REBALANCE:
            self._complete_join(group)

    def _complete_if_all_joined(self, group: Group) -> None:
        if group.state == PREPARING_REBALANCE and not group.is_initial and group.has_all_joined:
            self._complete_join(group)

    def _complete_join(self, group: Group) -> None:
        """Begin the next generation, without those who have not joined."""
        if group.rebalance is not None:
            group.rebalance.stop()
            group.rebalance = None
        for member in list(group.members.values()):
            # A static member may be away for a while: its session's timeout decides.
            if member.join_done is None and not member.is_static:
                self._remove(group, member)
        leader = group.head.leader
        if leader is not None and group.members[leader].join_done is None:
            leader = next((member.member_id for member in group.members.values() if member.join_done), None)
            if leader is None:
                # All that are left are static, and away.
                delay_ms = max(group.rebalance_timeout_ms, GROUP_AWAY_CHECK_MS)
                self._set_rebalance_alarm(group, delay_ms, partial(self._time_is_up, group.id))
                return
        group.is_initial = False
        head = replace(group.head, generation=(group.generation + 1) & GENERATION_MAX, leader=leader)
        if not group.members:
            self._store.change_head(group, replace(head, state=EMPTY, protocol=None))
            return
        selected = group.selected_protocol()
        self._store.change_head(group, replace(head, state=COMPLETING_REBALANCE, protocol=selected))
        logger.debug("group %s has %d members in generation %d", group.id, len(group.members), group.generation)
        group.not_synced = set(group.members)
        for member in list(group.members.values()):
            result = self._joined(group, member)
            if member.member_id == leader:
                result = replace(result, members=group.joined_members())
            member.is_new = False
            self._expect(group, member)
            group.answer_join(member, result)
        self._set_sync_alarm(group)

    # --- Syncing ----------------------------------------------------------------------------------------------------

    def sync(self, request: SyncRequest, done: SyncDone) -> None:
        """Ask for the assignment of this generation. `done` is called once, now or when the leader has assigned."""
        try:
            self._sync(request, done)
        except PeerError as error:
            done(SyncResult(error))

    def _sync(self, request: SyncRequest, done: SyncDone) -> None:
        group = self._group(request.group)
        member = group.member(request.member_id, request.instance_id)
        self._check_generation(group, request.generation)
        head = group.head
        if _differs(request.protocol_type, head.protocol_type) or _differs(request.protocol, head.protocol):
            raise InconsistentProtocol(f"group '{group.id}' has chosen another protocol")
        if group.state == PREPARING_REBALANCE:
            raise RebalanceInProgress(f"group '{group.id}' is rebalancing")
        group.not_synced.discard(member.member_id)
        if group.state == STABLE:
            done(SyncResult(None, head.protocol_type, head.protocol, member.state.assignment))
            return
        # Whoever asked for it before, on another connection, does not wait any more.
        group.answer_sync(member, SyncResult(RebalanceInProgress("the member has asked again since")))
        member.sync_done = done
        if head.leader == member.member_id:
            self._assign(group, request.assignments)

    def _assign(self, group: Group, assignments: tuple[tuple[str, bytes], ...]) -> None:
        known = tuple([pair for pair in assignments if pair[0] in group.members])
        size = sum(len(assignment) for _, assignment in known)
        before = sum(len(member.state.assignment) for member in group.members.values())
        try:
            self._check_bytes(group, size - before)
        except GroupTooLarge as error:
            self._answer_syncs(group, SyncResult(error))
            self._prepare(group, str(error))
            return
        self._store.record(Assigned(group.id, self._store.clock.wall_ms(), known))
        head = group.head
        for member in list(group.members.values()):
            result = SyncResult(None, head.protocol_type, head.protocol, member.state.assignment)
            if group.answer_sync(member, result):
                self._expect(group, member)

    def _answer_syncs(self, group: Group, result: SyncResult) -> None:
        for member in list(group.members.values()):
            if group.answer_sync(member, result):
                self._expect(group, member)

    def _set_sync_alarm(self, group: Group) -> None:
        """Who has joined, and does not ask for an assignment, is not there any more."""
        if group.sync is not None:
            group.sync.stop()
        group.sync = Alarm(self._store.clock, partial(self._sync_is_late, group.id, group.generation))
        group.sync.set(group.rebalance_timeout_ms)

    def _stop_sync_alarm(self, group: Group) -> None:
        group.not_synced.clear()
        if group.sync is not None:
            group.sync.stop()
            group.sync = None

    def _sync_is_late(self, group_id: str, generation: int) -> None:
        group = self._store.groups.get(group_id)
        if group is None or group.generation != generation or group.state not in (COMPLETING_REBALANCE, STABLE):
            return
        late = [group.members[member_id] for member_id in group.not_synced if member_id in group.members]
        for member in late:
            self._remove(group, member)
        if late:
            self._prepare(group, f"{len(late)} members did not ask for their assignments")

    # --- Heartbeats -------------------------------------------------------------------------------------------------

    def heartbeat(self, group_id: str, member_id: str, instance_id: str | None, generation: int) -> None:
        """The member is alive. RebalanceInProgress tells it to join again."""
        group = self._group(group_id)
        member = group.member(member_id, instance_id)
        self._check_generation(group, generation)
        self._expect(group, member)
        if group.state == PREPARING_REBALANCE:
            raise RebalanceInProgress(f"group '{group.id}' is rebalancing")

    def seen(self, group: Group, member: Member) -> None:
        """A commit is a sign of life too."""
        self._expect(group, member)

    def _expect(self, group: Group, member: Member, timeout_ms: int = 0) -> None:
        """The member has this long until its next sign of life, or as long as its session lasts."""
        if member.session is None:
            member.session = Alarm(self._store.clock, partial(self._session_over, group.id, member.member_id))
        member.session.set(timeout_ms or member.state.session_timeout_ms)

    def _session_over(self, group_id: str, member_id: str) -> None:
        group = self._store.groups.get(group_id)
        if group is None:
            return
        if group.pending.pop(member_id, None) is not None:
            if group.state == PREPARING_REBALANCE and group.has_all_joined:
                self._complete_join(group)
            return
        member = group.members.get(member_id)
        if member is None:
            return
        if not member.is_new and (member.join_done is not None or member.sync_done is not None):
            # It is the coordinator who keeps it waiting. Its time begins anew with the answer.
            return
        logger.info("member %s of group %s was silent for too long", member_id, group_id)
        self._remove(group, member)
        self._gone(group, f"member {member_id} was silent for too long")

    # --- Leaving ----------------------------------------------------------------------------------------------------

    def leave(self, group_id: str, leaving: list[tuple[str, str | None]]) -> list[PeerError | None]:
        """End memberships, each (member id, instance id); static members may be named by their instance id alone.
        What each of them is told."""
        if not group_id:
            raise InvalidGroupName("a group needs a name")
        group = self._store.groups.get(group_id)
        if group is None:
            return [UnknownMember(f"there is no group '{group_id}'") for _ in leaving]
        told: list[PeerError | None] = []
        for member_id, instance_id in leaving:
            try:
                self._leave(group, member_id, instance_id)
                told.append(None)
            except PeerError as error:
                told.append(error)
        if None in told:
            if group.state == PREPARING_REBALANCE:
                self._complete_if_all_joined(group)
            elif not group.is_empty:
                self._rebalance(group, "members have left")
        return told

    def _leave(self, group: Group, member_id: str, instance_id: str | None) -> None:
        pending = group.pending.pop(member_id, None)
        if pending is not None:
            pending.stop()
            return
        if not member_id and instance_id is not None:
            member_id = group.instances.get(instance_id, "")
        self._remove(group, group.member(member_id, instance_id))

    def _remove(self, group: Group, member: Member) -> None:
        """Take a member out. What that means to the group is the caller's to decide."""
        unknown = UnknownMember(f"the member is no longer one of group '{group.id}'")
        group.answer_join(member, JoinResult("", unknown))
        group.answer_sync(member, SyncResult(unknown))
        group.not_synced.discard(member.member_id)
        self._store.record(MemberRemoved(group.id, member.member_id))
        if group.head.leader == member.member_id:
            self._store.change_head(group, replace(group.head, leader=next(iter(group.members), None)))

    def _gone(self, group: Group, reason: str) -> None:
        if group.state in (STABLE, COMPLETING_REBALANCE):
            self._prepare(group, reason)
        elif group.state == PREPARING_REBALANCE and group.has_all_joined:
            self._complete_join(group)

    # --- Starting again ---------------------------------------------------------------------------------------------

    def restored(self, group: Group) -> None:
        """Go on with a group as it was found at the start. All its timers begin anew, and whoever waited for an answer
        has lost the connection and asks again."""
        self._mend(group)
        for member in group.members.values():
            self._expect(group, member)
        if group.state == PREPARING_REBALANCE:
            self._await_members(group)
        elif group.state == COMPLETING_REBALANCE:
            group.not_synced = set(group.members)
            self._set_sync_alarm(group)
        if len(group.members) > self._store.settings.members_max and group.state in _AT_REST:
            self._prepare(group, "it has more members than it may have by now")

    def _mend(self, group: Group) -> None:
        """Where the journal has lost its beginning, what is left need not fit together."""
        head = group.head
        if not group.members:
            if not group.is_empty:
                head = replace(head, state=EMPTY, generation=head.generation + 1, protocol=None)
            self._store.change_head(group, replace(head, leader=None))
            return
        if head.leader not in group.members:
            head = replace(head, leader=next(iter(group.members)))
        if group.is_empty or (
            head.state != PREPARING_REBALANCE and group.supporters.get(head.protocol or "") != len(group.members)
        ):
            head = replace(head, state=PREPARING_REBALANCE)
        self._store.change_head(group, head)

    # --- What all calls check ---------------------------------------------------------------------------------------

    def _group(self, group_id: str) -> Group:
        """The group, which has members. UnknownMember where there is none such: to a member it is all the same."""
        if not group_id:
            raise InvalidGroupName("a group needs a name")
        group = self._store.groups.get(group_id)
        if group is None or group.is_empty:
            raise UnknownMember(f"there is no group '{group_id}' with members")
        return group

    def _check_generation(self, group: Group, generation: int) -> None:
        if generation != group.generation:
            raise IllegalGeneration(f"group '{group.id}' is in generation {group.generation}")


def _differs(told: str | None, chosen: str | None) -> bool:
    return told is not None and chosen is not None and told != chosen


def _short(client_id: str) -> str:
    return client_id[:GROUP_CLIENT_ID_CHARACTERS_MAX]


def _member_state(member_id: str, request: JoinRequest) -> MemberState:
    return MemberState(
        member_id,
        request.instance_id,
        _short(request.client_id),
        request.client_host,
        request.session_timeout_ms,
        request.rebalance_timeout_ms,
        request.protocols,
    )


def _check_names(request: JoinRequest) -> None:
    """What a group is called by is in each of its records."""
    names = [request.protocol_type, request.instance_id or "", *[name for name, _ in request.protocols]]
    if max(map(len, names)) > GROUP_NAME_BYTES_MAX:
        raise InconsistentProtocol(f"a name has at most {GROUP_NAME_BYTES_MAX} characters")
