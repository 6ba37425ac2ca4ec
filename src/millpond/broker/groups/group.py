"""A consumer group: what is durable of it, and who waits for it at the moment.

The durable part (`head`, the members' `state`, `offsets`) consists of values that never change, and is replaced by
`GroupStore.apply` only. The rest is of this process: answers that are waited for, timers, members that have been given
an id and have yet to come with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.base.errors import PeerError
from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.errors import FencedInstance, UnknownMember
from millpond.broker.groups.modern import ModernGroup
from millpond.broker.groups.modern_records import CLASSIC
from millpond.broker.groups.records import (
    EMPTY,
    CommittedOffset,
    GroupHead,
    MemberState,
)
from millpond.broker.groups.subscription import PROTOCOL_TYPE, subscribed_topics


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A client wants to be a member, or to begin another generation."""

    group: str
    # Empty for one that has none yet.
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    # (name, metadata), the preferred one first.
    protocols: tuple[tuple[str, bytes], ...]
    # The client comes back with the id that it is given, and is a member only then.
    knows_id_first: bool = True
    # The client can be told that it leads a group that has its assignments already.
    can_skip_assignment: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class JoinedMember:
    """What the leader is told of a member."""

    member_id: str
    instance_id: str | None
    metadata: bytes


@dataclass(frozen=True, slots=True)
class JoinResult:
    """A join's outcome: a new generation, or an error."""

    member_id: str
    error: PeerError | None = None
    generation: int = -1
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str = ""
    # For the leader only.
    members: tuple[JoinedMember, ...] = ()
    # It leads, and need not assign: all members keep what they have.
    skip_assignment: bool = False


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """A member asks for its assignment; the leader brings all of them."""

    group: str
    member_id: str
    instance_id: str | None
    generation: int
    # None where the client does not tell.
    protocol_type: str | None = None
    protocol: str | None = None
    assignments: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class SyncResult:
    """A sync's outcome: the member's assignment, or an error."""

    error: PeerError | None = None
    protocol_type: str | None = None
    protocol: str | None = None
    assignment: bytes = b""


JoinDone = Callable[[JoinResult], None]
SyncDone = Callable[[SyncResult], None]


class Member:
    """A member of a group."""

    def __init__(self, state: MemberState) -> None:
        self.state = state
        # Since it joined for the first time: it has no generation yet, so it cannot send heartbeats.
        self.is_new = False
        self.join_done: JoinDone | None = None
        self.sync_done: SyncDone | None = None
        self.session: Alarm | None = None

    @property
    def member_id(self) -> str:
        return self.state.member_id

    @property
    def is_static(self) -> bool:
        return self.state.instance_id is not None

    def metadata(self, protocol: str | None) -> bytes:
        """What it says of itself under `protocol`; nothing where it does not know that."""
        for name, metadata in self.state.protocols:
            if name == protocol:
                return metadata
        return b""


@dataclass(slots=True)
class Group:
    """A consumer group."""

    id: str
    head: GroupHead = field(default_factory=GroupHead)
    members: dict[str, Member] = field(default_factory=dict)
    offsets: dict[str, dict[int, CommittedOffset]] = field(default_factory=dict)
    # What there is in the place of head and members where the broker decides who reads what; None in a classic group.
    modern: ModernGroup | None = None
    # What follows from these.
    offset_count: int = 0
    metadata: int = 0
    member_bytes: int = 0
    instances: dict[str, str] = field(default_factory=dict)
    # How many members know a protocol.
    supporters: dict[str, int] = field(default_factory=dict)
    # Of this process.
    pending: dict[str, Alarm] = field(default_factory=dict)
    # Members of this generation that have not asked for their assignment.
    not_synced: set[str] = field(default_factory=set)
    joins_waiting: int = 0
    # The first rebalance after the group was empty: it waits for more members, and one has come meanwhile.
    is_initial: bool = False
    has_grown: bool = False
    rebalance: Alarm | None = None
    sync: Alarm | None = None

    @property
    def type(self) -> str:
        """As Apache Kafka calls it: classic, consumer, share."""
        return CLASSIC if self.modern is None else self.modern.type

    @property
    def state(self) -> str:
        return self.head.state if self.modern is None else self.modern.state

    @property
    def protocol_type(self) -> str | None:
        """What its members are; None for a group that only ever had offsets."""
        return self.head.protocol_type if self.modern is None else self.modern.type

    @property
    def member_count(self) -> int:
        return len(self.members) if self.modern is None else len(self.modern.members)

    @property
    def generation(self) -> int:
        return self.head.generation

    @property
    def is_empty(self) -> bool:
        return self.state == EMPTY

    @property
    def reads_topics(self) -> bool:
        """Whether its members are Kafka's consumers, so that it is known which topics they read."""
        return self.protocol_type == PROTOCOL_TYPE

    @property
    def rebalance_timeout_ms(self) -> int:
        """How long the members want to be waited for: as long as the most patient of them."""
        return max((member.state.rebalance_timeout_ms for member in self.members.values()), default=0)

    @property
    def has_all_joined(self) -> bool:
        """Whether everybody who is expected has joined."""
        return len(self.members) == self.joins_waiting and not self.pending

    # --- Members ----------------------------------------------------------------------------------------------------

    def member(self, member_id: str, instance_id: str | None) -> Member:
        """The member. UnknownMember, or FencedInstance where its instance id is another's by now."""
        if instance_id is not None:
            owner = self.instances.get(instance_id)
            if owner is None:
                raise UnknownMember(f"no member of group '{self.id}' has the instance id '{instance_id}'")
            if owner != member_id:
                raise FencedInstance(f"another member of group '{self.id}' has the instance id '{instance_id}'")
        member = self.members.get(member_id)
        if member is None:
            raise UnknownMember(f"group '{self.id}' has no member '{member_id}'")
        return member

    def supports(self, protocol_type: str, protocols: tuple[tuple[str, bytes], ...]) -> bool:
        """Whether a member with these has something in common with all others."""
        if self.is_empty:
            return bool(protocol_type) and bool(protocols)
        if self.head.protocol_type != protocol_type:
            return False
        return any(self.supporters.get(name, 0) == len(self.members) for name, _ in protocols)

    def selected_protocol(self) -> str | None:
        """Of the protocols that all members know, the one that most of them like best."""
        everyone = len(self.members)
        votes: dict[str, int] = {}
        for member in self.members.values():
            for name, _ in member.state.protocols:
                if self.supporters.get(name) == everyone:
                    votes[name] = votes.get(name, 0) + 1
                    break
        return max(votes, key=lambda name: votes[name], default=None)

    def joined_members(self) -> tuple[JoinedMember, ...]:
        """What the leader has to know to assign partitions."""
        protocol = self.head.protocol
        return tuple(
            [
                JoinedMember(member.member_id, member.state.instance_id, member.metadata(protocol))
                for member in self.members.values()
            ]
        )

    # --- Answers that are waited for --------------------------------------------------------------------------------

    def await_join(self, member: Member, done: JoinDone) -> None:
        """`done` is called when the join phase is over. Whoever waited for that before has been replaced by it."""
        self.answer_join(member, JoinResult("", UnknownMember("the member has joined again since")))
        member.join_done = done
        self.joins_waiting += 1

    def answer_join(self, member: Member, result: JoinResult) -> None:
        """Tell the member, if it waits."""
        done = member.join_done
        if done is not None:
            member.join_done = None
            self.joins_waiting -= 1
            done(result)

    def answer_sync(self, member: Member, result: SyncResult) -> bool:
        """Tell the member, if it waits. Whether it did."""
        done = member.sync_done
        if done is None:
            return False
        member.sync_done = None
        done(result)
        return True

    # --- Topics -----------------------------------------------------------------------------------------------------

    def subscribed_topics(self) -> set[str] | None:
        """What the members read; None where that is not known."""
        if self.modern is not None:
            return self.modern.subscribed_topics()
        if not self.reads_topics:
            return None
        topics: set[str] = set()
        for member in self.members.values():
            found = subscribed_topics(member.metadata(self.head.protocol))
            if self.head.protocol is None or found is None:
                return None
            topics.update(found)
        return topics

    def is_subscribed(self, topic: str) -> bool:
        """Whether members read the topic. Of consumers whose subscriptions cannot be read, it must be supposed."""
        topics = self.subscribed_topics()
        return self.reads_topics if topics is None else topic in topics

    # --- The end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The group is gone, or its broker stops: nothing happens by itself any more."""
        if self.modern is not None:
            self.modern.stop()
        for member in self.members.values():
            if member.session is not None:
                member.session.stop()
        for alarm in (self.rebalance, self.sync, *self.pending.values()):
            if alarm is not None:
                alarm.stop()
        self.pending.clear()
