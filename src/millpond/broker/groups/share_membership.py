"""Who is in a share group, and which partitions each member is to fetch from (KIP-932).

Members of a share group are told of partitions as those of consumer groups are, but do not own them: several read the
same one, and nobody waits until somebody else has let go. Who gets which record is not decided here.

For those who deliver to share groups, `vhost.groups.shares` has

    is_member(group_id, member_id)      whether the client is a member now
    subscribed_topics(group_id)         the ids of the topics that the members read; none without members
    assigned(group_id, member_id)       the partitions that a member was told to fetch from
    ensure(group_id)                    let there be a share group of this name, with or without members;
                                        GroupNotFound where the name is another type's, GroupFull, InvalidGroupName
    watchers                            a list, to which a `ShareGroupWatcher` is appended: it is told of changes

and `vhost.groups.delete(group_id)` deletes one without members. What they answer is as durable as
`vhost.groups.sequence` says.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from millpond.base.limits import GROUP_CLIENT_ID_CHARACTERS_MAX
from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.assignors import Subscriber, simple
from millpond.broker.groups.errors import FencedMemberEpoch, GroupFull, GroupNotFound, InvalidGroupRequest
from millpond.broker.groups.group import Group
from millpond.broker.groups.modern import ModernGroup, ModernMember, TopicDirectory
from millpond.broker.groups.modern_records import (
    NOTHING,
    SHARE,
    Assignment,
    CurrentAssignment,
    CurrentChanged,
    ModernHeadChanged,
    ModernMemberChanged,
    ModernMemberState,
    TargetChanged,
)
from millpond.broker.groups.modern_requests import (
    LEAVE_EPOCH,
    MemberAnswer,
    check_member_size,
    check_newer_epoch,
)
from millpond.broker.groups.records import MemberRemoved
from millpond.broker.groups.store import GroupStore
from millpond.broker.shares.settings import SHARE_HEARTBEAT_INTERVAL, SHARE_SESSION_TIMEOUT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShareHeartbeat:
    """A sign of life of a member of a share group; epoch 0 joins, -1 leaves."""

    group: str
    member_id: str
    epoch: int
    rack_id: str | None = None
    # None where it is as before.
    topics: tuple[str, ...] | None = None
    client_id: str = ""
    client_host: str = ""


class ShareGroupWatcher:
    """Is told of changes in share groups of a virtual host, right after them, in the same turn."""

    def changed(self, group_id: str) -> None:
        """The members of a group, or the topics that they read, are others now."""

    def member_gone(self, group_id: str, member_id: str) -> None:
        """A member has left, or was silent for too long: what it holds is to be released."""

    def deleted(self, group_id: str) -> None:
        """A group is gone."""


class ShareMembership:
    """The members of all share groups of a virtual host."""

    def __init__(self, store: GroupStore, topics: TopicDirectory) -> None:
        self._store: Final = store
        self._topics: Final = topics
        self.watchers: Final[list[ShareGroupWatcher]] = []

    # --- What others want to know -----------------------------------------------------------------------------------

    def is_member(self, group_id: str, member_id: str) -> bool:
        modern = self._find(group_id)
        return modern is not None and member_id in modern.members

    def subscribed_topics(self, group_id: str) -> frozenset[bytes]:
        """The ids of the topics that the members read; none for a group that is not there."""
        modern = self._find(group_id)
        return frozenset() if modern is None else self._ids(modern.subscribed_topics())

    def assigned(self, group_id: str, member_id: str) -> Assignment:
        """What a member was told to fetch from; nothing where there is no such member."""
        modern = self._find(group_id)
        member = None if modern is None else modern.members.get(member_id)
        return NOTHING if member is None else member.current.assigned

    def check_name(self, group_id: str) -> None:
        """GroupNotFound where there can be no share group of this name, as it is that of another type's group."""
        group = self._store.groups.get(group_id)
        if group is not None and group.type != SHARE and (not group.is_empty or group.offset_count):
            raise GroupNotFound(f"Group {group_id} is not a share group.")

    def ensure(self, group_id: str) -> None:
        """Let there be a share group of this name. GroupNotFound as `check_name`."""
        self.check_name(group_id)
        group = self._store.groups.get(group_id)
        if group is None:
            self._store.create_modern(group_id, SHARE)
        elif group.type != SHARE:
            self._store.make_modern(group_id, SHARE)

    def _find(self, group_id: str) -> ModernGroup | None:
        group = self._store.groups.get(group_id)
        return group.modern if group is not None and group.type == SHARE else None

    def _ids(self, names: set[str]) -> frozenset[bytes]:
        return frozenset([found[0] for found in map(self._topics.find, names) if found is not None])

    # --- Heartbeats -------------------------------------------------------------------------------------------------

    def heartbeat(self, asked: ShareHeartbeat) -> MemberAnswer:
        """Join, stay or leave. InvalidGroupRequest, GroupNotFound, UnknownMember, FencedMemberEpoch, GroupFull,
        GroupTooLarge."""
        _check(asked)
        if asked.epoch == LEAVE_EPOCH:
            modern = self._existing(asked.group)
            self._remove(asked.group, modern.member(asked.member_id))
            return MemberAnswer(asked.member_id, LEAVE_EPOCH)
        if asked.epoch == 0:
            self.ensure(asked.group)
        modern = self._existing(asked.group)
        member = modern.members.get(asked.member_id)
        if member is None and asked.epoch == 0:
            if len(modern.members) >= self._store.settings.share_members_max:
                raise GroupFull(
                    f"The share group has reached its maximum capacity of {self._store.settings.share_members_max} "
                    "members."
                )
        else:
            member = modern.member(asked.member_id)
            check_newer_epoch(member, asked.epoch, "share")
            if 0 < asked.epoch < member.current.epoch and asked.epoch != member.current.previous_epoch:
                raise FencedMemberEpoch(
                    f"The share group member has a smaller member epoch ({asked.epoch}) than the one known by the "
                    f"group coordinator ({member.current.epoch}). The member must abandon all its partitions and "
                    "rejoin."
                )
        before = NOTHING if member is None else member.current.assigned
        is_changed = self._update(asked, modern, member)
        member = modern.members[asked.member_id]
        self._share_out(asked.group, modern, is_changed)
        self._give(asked.group, modern, member)
        self._expect(asked.group, member)
        is_told = asked.epoch == 0 or member.current.assigned != before
        assigned = member.current.assigned if is_told else None
        default_ms = self._store.settings.share_heartbeat_interval_ms
        interval_ms = self._store.configured(asked.group, SHARE_HEARTBEAT_INTERVAL, default_ms)
        return MemberAnswer(member.member_id, member.current.epoch, interval_ms, assigned)

    def _existing(self, group_id: str) -> ModernGroup:
        modern = self._find(group_id)
        if modern is None:
            found = "is not a share group" if group_id in self._store.groups else "not found"
            raise GroupNotFound(f"Group {group_id} {found}.")
        return modern

    def _update(self, asked: ShareHeartbeat, modern: ModernGroup, member: ModernMember | None) -> bool:
        """Take down what the member says. Whether it reads other topics now."""
        before = ModernMemberState(asked.member_id) if member is None else member.state
        state = replace(
            before,
            rack_id=asked.rack_id if asked.rack_id is not None else before.rack_id,
            client_id=asked.client_id[:GROUP_CLIENT_ID_CHARACTERS_MAX],
            client_host=asked.client_host,
            topics=before.topics if asked.topics is None else tuple(sorted(set(asked.topics))),
        )
        if member is not None and state == before:
            return False
        group = self._store.groups[asked.group]
        check_member_size(self._store, group, state, 0 if member is None else before.size)
        self._store.record(ModernMemberChanged(asked.group, state))
        return member is None or state.topics != before.topics

    def _share_out(self, group_id: str, modern: ModernGroup, is_changed: bool) -> None:
        """Begin another epoch where there is a reason to, and say who is to have what in it."""
        head = modern.head
        noted = (self._topics.version, ())
        if is_changed or modern.noted != noted:
            modern.noted = noted
            topics_hash = modern.hash_of_topics(self._topics)
            if is_changed or topics_hash != head.topics_hash:
                now_ms = self._store.clock.wall_ms()
                head = replace(head, epoch=head.epoch + 1, topics_hash=topics_hash, since_ms=now_ms)
        if head.epoch > head.assignment_epoch:
            members = {
                member_id: Subscriber(member_id, self._ids(modern.topics_of(one.state)), modern.target(member_id))
                for member_id, one in modern.members.items()
            }
            topics = dict(filter(None, map(self._topics.find, modern.subscribed_topics())))
            for member_id, target in simple.assign(members, topics).items():
                if target != modern.target(member_id):
                    self._store.record(TargetChanged(group_id, member_id, target))
            head = replace(head, assignment_epoch=head.epoch)
        if head != modern.head:
            self._store.record(ModernHeadChanged(group_id, head))
            self._tell_changed(group_id)

    def _give(self, group_id: str, modern: ModernGroup, member: ModernMember) -> None:
        """The member is told its target at once: nobody has to let go first."""
        current = member.current
        if current.epoch != modern.head.assignment_epoch:
            target = modern.target(member.member_id)
            changed = CurrentAssignment(modern.head.assignment_epoch, current.epoch, assigned=target)
            self._store.record(CurrentChanged(group_id, member.member_id, changed))

    def _tell_changed(self, group_id: str) -> None:
        for watcher in self.watchers:
            watcher.changed(group_id)

    # --- Leaving ----------------------------------------------------------------------------------------------------

    def _expect(self, group_id: str, member: ModernMember) -> None:
        if member.session is None:
            member.session = Alarm(self._store.clock, partial(self._session_over, group_id, member.member_id))
        default_ms = self._store.settings.share_session_timeout_ms
        member.session.set(self._store.configured(group_id, SHARE_SESSION_TIMEOUT, default_ms))

    def _session_over(self, group_id: str, member_id: str) -> None:
        modern = self._find(group_id)
        member = None if modern is None else modern.members.get(member_id)
        if member is not None:
            logger.info("member %s of share group %s was silent for too long", member_id, group_id)
            self._remove(group_id, member)

    def _remove(self, group_id: str, member: ModernMember) -> None:
        self._store.record(MemberRemoved(group_id, member.member_id))
        modern = self._existing(group_id)
        head = replace(modern.head, epoch=modern.head.epoch + 1, since_ms=self._store.clock.wall_ms())
        self._store.record(ModernHeadChanged(group_id, head))
        for watcher in self.watchers:
            watcher.member_gone(group_id, member.member_id)
        self._tell_changed(group_id)

    def deleted(self, group_id: str) -> None:
        """A share group has been deleted."""
        for watcher in self.watchers:
            watcher.deleted(group_id)

    def restored(self, group: Group) -> None:
        """Go on with a group as it was found at the start: sessions begin anew."""
        assert group.modern is not None
        for member in group.modern.members.values():
            self._expect(group.id, member)


def _check(asked: ShareHeartbeat) -> None:
    if not asked.group:
        raise InvalidGroupRequest("GroupId can't be empty.")
    if not asked.member_id:
        raise InvalidGroupRequest("MemberId can't be empty.")
    if asked.rack_id == "":
        raise InvalidGroupRequest("RackId can't be empty.")
    if asked.epoch < LEAVE_EPOCH:
        raise InvalidGroupRequest("MemberEpoch is invalid.")
    if asked.epoch == 0 and not asked.topics:
        raise InvalidGroupRequest("SubscribedTopicNames must be set in first request.")
