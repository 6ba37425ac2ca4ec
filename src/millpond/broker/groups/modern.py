"""A group whose assignment the broker decides: a consumer group of KIP-848, or a share group.

    group epoch        what the members subscribe to, and which topics there are, as of this number
    assignment epoch   the group epoch for which the target assignment was made
    member epoch       the assignment epoch that the member has come to

As in `group.py`, what is durable consists of values that never change, and is replaced by `apply` only; alarms are of
this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, Protocol

from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.errors import FencedInstance, UnknownMember
from millpond.broker.groups.modern_records import (
    CONSUMER,
    NOTHING,
    Assignment,
    CurrentAssignment,
    CurrentChanged,
    ModernHead,
    ModernHeadChanged,
    ModernMemberChanged,
    ModernMemberState,
    ModernRecord,
    PatternResolved,
    TargetChanged,
)
from millpond.broker.groups.records import EMPTY, STABLE

# The names under which Apache Kafka tells the state of such a group, besides those of classic groups.
ASSIGNING: Final = "Assigning"
RECONCILING: Final = "Reconciling"

# The epoch of a static member that is away for a while.
AWAY_EPOCH: Final = -2


class TopicDirectory(Protocol):
    """Which topics there are."""

    @property
    def version(self) -> int:
        """Grows with every change."""

    def names(self) -> Iterator[str]:
        """Of all topics."""

    def find(self, name: str) -> tuple[bytes, int] | None:
        """A topic's id and how many partitions it has; None where there is none."""

    def name(self, topic_id: bytes) -> str | None:
        """What a topic is called; None where it is gone."""


class ModernMember:
    """A member of such a group."""

    def __init__(self, state: ModernMemberState) -> None:
        self.state = state
        self.current = CurrentAssignment()
        # Until its next sign of life; until it has given up what it was told to.
        self.session: Alarm | None = None
        self.rebalance: Alarm | None = None
        # Of one that speaks the classic protocol: until it joins again, and until it asks for its assignment.
        self.join: Alarm | None = None
        self.sync: Alarm | None = None

    @property
    def member_id(self) -> str:
        return self.state.member_id

    @property
    def is_classic(self) -> bool:
        return self.state.classic is not None

    def stop(self) -> None:
        for alarm in (self.session, self.rebalance, self.join, self.sync):
            if alarm is not None:
                alarm.stop()


class ModernGroup:
    """What such a group has in the place of a classic group's head and members."""

    def __init__(self, head: ModernHead) -> None:
        self.head = head
        self.members: Final[dict[str, ModernMember]] = {}
        self.targets: Final[dict[str, Assignment]] = {}
        # What members' patterns matched when they were looked at last.
        self.patterns: Final[dict[str, tuple[str, ...]]] = {}
        # What follows from these: members by their instance ids, and who has a partition. Nobody else is given it
        # before its owner has said that it has let it go. In share groups partitions are not owned.
        self.instances: Final[dict[str, str]] = {}
        self.owners: Final[dict[tuple[bytes, int], str]] = {}
        # What the group has taken note of: the version of the topics, and what the patterns matched; and the version
        # with which each pattern was looked at. Not durable: it is looked at once more after a start.
        self.noted: tuple[int, tuple[tuple[str, ...], ...]] = (-1, ())
        self.patterns_versions: Final[dict[str, int]] = {}

    @property
    def type(self) -> str:
        return self.head.type

    @property
    def state(self) -> str:
        if not self.members:
            return EMPTY
        if self.head.type != CONSUMER:
            return STABLE
        if self.head.epoch > self.head.assignment_epoch:
            return ASSIGNING
        if all(self.is_settled(member) for member in self.members.values()):
            return STABLE
        return RECONCILING

    def is_settled(self, member: ModernMember) -> bool:
        """Whether a member has what it should have."""
        return member.current.state == 0 and member.current.epoch == self.head.assignment_epoch

    def member(self, member_id: str, instance_id: str | None = None) -> ModernMember:
        """UnknownMember where there is none, FencedInstance where its instance id is another's."""
        if instance_id is not None:
            owner = self.instances.get(instance_id)
            if owner is None:
                raise UnknownMember(f"Instance id {instance_id} is unknown.")
            if owner != member_id:
                raise FencedInstance(
                    f"Static member {member_id} with instance id {instance_id} was fenced by member {owner}."
                )
        member = self.members.get(member_id)
        if member is None:
            raise UnknownMember(f"There is no member {member_id} in the group.")
        return member

    def target(self, member_id: str) -> Assignment:
        return self.targets.get(member_id, NOTHING)

    def topics_of(self, state: ModernMemberState) -> set[str]:
        """What a member reads, of the topics that there are and others."""
        topics = set(state.topics)
        if state.pattern:
            topics.update(self.patterns.get(state.pattern, ()))
        return topics

    def subscribed_topics(self) -> set[str]:
        """What the members read."""
        topics: set[str] = set()
        for member in self.members.values():
            topics |= self.topics_of(member.state)
        return topics

    def hash_of_topics(self, topics: TopicDirectory) -> int:
        """A number for what is known of the topics that the members read."""
        digest = blake2b(digest_size=8)
        for name in sorted(self.subscribed_topics()):
            found = topics.find(name)
            if found is not None:
                digest.update(b"%s %d %s\n" % (found[0], found[1], name.encode("utf-8", "surrogateescape")))
        return int.from_bytes(digest.digest(), "big", signed=True)

    def awaits_others(self, member: ModernMember) -> bool:
        """Whether somebody has yet to let go of what is to be the member's."""
        assigned = member.current.assigned
        return any(
            (topic_id, partition) in self.owners
            for topic_id, partitions in self.target(member.member_id).items()
            for partition in partitions - assigned.get(topic_id, frozenset())
        )

    def records(self, group_id: str) -> list[ModernRecord]:
        """What makes it again."""
        records: list[ModernRecord] = [ModernHeadChanged(group_id, self.head)]
        records += [PatternResolved(group_id, pattern, topics) for pattern, topics in self.patterns.items()]
        for member in self.members.values():
            records.append(ModernMemberChanged(group_id, member.state))
            records.append(CurrentChanged(group_id, member.member_id, member.current))
        records += [TargetChanged(group_id, member_id, target) for member_id, target in self.targets.items()]
        return records

    def stop(self) -> None:
        """Nothing happens by itself any more."""
        for member in self.members.values():
            member.stop()

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, record: ModernRecord) -> int:
        """Change what is durable. How much more its members take, in bytes."""
        if isinstance(record, ModernHeadChanged):
            self.head = record.head
        elif isinstance(record, ModernMemberChanged):
            return self._apply_member(record.member)
        elif isinstance(record, CurrentChanged):
            member = self.members.get(record.member_id)
            if member is not None:
                self._disown(member)
                member.current = record.current
                self._own(member)
        elif isinstance(record, TargetChanged):
            self.targets[record.member_id] = record.target
        else:
            self.patterns[record.pattern] = record.topics
        return 0

    def _apply_member(self, state: ModernMemberState) -> int:
        before = self.members.get(state.member_id)
        size = state.size
        if before is None:
            self.members[state.member_id] = ModernMember(state)
        else:
            size -= before.state.size
            pattern_before = before.state.pattern
            before.state = state
            self._forget_pattern(pattern_before)
        if state.instance_id is not None:
            self.instances[state.instance_id] = state.member_id
        return size

    def remove(self, member_id: str) -> int:
        """A member is gone. How much more the others take than all of them did, in bytes."""
        self.targets.pop(member_id, None)
        member = self.members.pop(member_id, None)
        if member is None:
            return 0
        self._disown(member)
        instance_id = member.state.instance_id
        if instance_id is not None and self.instances.get(instance_id) == member_id:
            del self.instances[instance_id]
        self._forget_pattern(member.state.pattern)
        member.stop()
        return -member.state.size

    def _forget_pattern(self, pattern: str | None) -> None:
        if pattern and all(member.state.pattern != pattern for member in self.members.values()):
            self.patterns.pop(pattern, None)
            self.patterns_versions.pop(pattern, None)

    def _own(self, member: ModernMember) -> None:
        if self.head.type == CONSUMER:
            for place in _places(member.current):
                self.owners[place] = member.member_id

    def _disown(self, member: ModernMember) -> None:
        for place in _places(member.current):
            if self.owners.get(place) == member.member_id:
                del self.owners[place]


def _places(current: CurrentAssignment) -> Iterator[tuple[bytes, int]]:
    for assignment in (current.assigned, current.revoking):
        for topic_id, partitions in assignment.items():
            for partition in partitions:
                yield topic_id, partition
